"""Trajectories, and their store: a TFDS dataset in array_record, without TensorFlow.

Anyone opens it with `tfds.builder_from_directory(DIR).as_data_source("train")`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from subtransfer.runtime.errors import UserError
from subtransfer.runtime.json_files import canonical_json, parse_json, read_json
from subtransfer.store import seals
from subtransfer.store.files import reading


@dataclasses.dataclass
class Trajectory:
    """One finished episode of an agent, with the token ids that were really sampled.

    Attributes:
      episode_id: unique in its store, e.g. "safe/train/00012#0".
      task_id: the task's id.
      kind: the task's kind ("safe", "ambiguous", ...).
      policy: digest of the artefact whose weights acted.
      policy_version: training round of those weights (0 for a finished policy).
      seed: the rollout seed.
      tokens: int32 [L], prompt, agent and tool tokens in order.
      loss_mask: bool [L], True on the tokens the agent sampled.
      behavior_logprobs: float32 [L], log-prob of each sampled token under the acting policy at
        temperature 1 (natural log), 0 where `loss_mask` is False; NaN where nobody knows it, in
        trajectories of a user's file.
      turn_ids: int32 [L], the index in `messages` of the message each token belongs to.
      messages: list of {"role": "system"|"user"|"assistant"|"tool", "content": text}, text decoded
        from `tokens`.
      actions: one dict per tool call in order: {"turn": int, "name": str, "arguments": dict,
        "category": str, "error": str or None}; a call that did not parse has name "" and error
        "parse". Where the setting's environment records what ran, "record" has it (a JSON object,
        see `ToolResult.record`).
      solved: the task's own success check.
      truncated: the episode ran into a token or turn limit.
    """

    episode_id: str
    task_id: str
    kind: str
    policy: str
    policy_version: int
    seed: int
    tokens: np.ndarray
    loss_mask: np.ndarray
    behavior_logprobs: np.ndarray
    turn_ids: np.ndarray
    messages: list[dict[str, str]]
    actions: list[dict[str, Any]]
    solved: bool
    truncated: bool

    def text(self) -> str:
        """Returns the conversation as plain text, one `role: content` block a message."""
        return "\n".join(f"{m['role']}: {m['content']}" for m in self.messages)


_TEXT = ("episode_id", "task_id", "kind", "policy")
_NUMBERS = ("policy_version", "seed")
_ARRAYS = {
    "tokens": np.int32,
    "loss_mask": np.bool_,
    "behavior_logprobs": np.float32,
    "turn_ids": np.int32,
}
# The shapes of what lies as JSON in a text, as `json_files.misfit` reads them.
_JSON: dict[str, Any] = {"messages": [{"role": str, "content": str}], "actions": [dict]}
_FLAGS = ("solved", "truncated")
_REMEDY = "delete its stage's folder and run again"
# Of one that lies as JSON in a checkpoint.
_TEXTS = {
    **dict.fromkeys((*_TEXT, *_JSON), str),
    **dict.fromkeys(_NUMBERS, int),
    **dict.fromkeys(_FLAGS, bool),
    **dict.fromkeys(_ARRAYS, list),
}


def _features() -> Any:
    import tensorflow_datasets as tfds

    features: dict[str, Any] = {}
    for name in (*_TEXT, *_JSON):
        features[name] = tfds.features.Text()
    for name in _NUMBERS:
        features[name] = tfds.features.Scalar(np.int64)
    for name in _FLAGS:
        features[name] = tfds.features.Scalar(np.bool_)
    for name, dtype in _ARRAYS.items():
        # The default encoding is 9 times slower than "bytes".
        features[name] = tfds.features.Tensor(shape=(None,), dtype=dtype, encoding="bytes")
    return tfds.features.FeaturesDict(features)


def write(path: Path, trajectories: Sequence[Trajectory], description: str) -> None:
    """Writes a store into a new folder; the same trajectories give the same bytes.

    Args:
      path: the folder, which is made.
      trajectories: at least one.
      description: a sentence about them, which TFDS shows.

    Raises:
      UserError: there are no trajectories.
    """
    if not trajectories:
        raise UserError(
            f"There are no trajectories to write to {path}: roll out more, or filter less."
        )
    import tensorflow_datasets as tfds

    # A DatasetInfo usually comes from a builder, a class that a reader would have to import.
    identity = tfds.core.dataset_info.DatasetIdentity(
        name="trajectories",
        version=tfds.core.Version("1.0.0"),
        data_dir=str(path),
        module_name="",
    )
    info = tfds.core.DatasetInfo(builder=identity, description=description, features=_features())
    path.mkdir(parents=True)
    # One shard for all practical sizes: the number of shards is part of the files' names.
    writer = tfds.core.SequentialWriter(
        info, max_examples_per_shard=1 << 16, overwrite=False, file_format="array_record"
    )
    serializer = tfds.core.example_serializer.ExampleSerializer(info.features.get_serialized_info())

    def serialize(example: Any) -> bytes:
        # Protocol buffers keep a map's entries in an order that differs between processes, unless
        # they are asked not to.
        return serializer.get_tf_example(example).SerializeToString(deterministic=True)

    serializer.serialize_example = serialize
    writer._serializer = serializer
    writer.initialize_splits(["train"])
    writer.add_examples({"train": [_example(t) for t in trajectories]})
    writer.close_all()


def _example(t: Trajectory) -> dict[str, Any]:
    example: dict[str, Any] = {name: getattr(t, name) for name in (*_TEXT, *_NUMBERS, *_FLAGS)}
    for name, dtype in _ARRAYS.items():
        example[name] = np.asarray(getattr(t, name), dtype)
    for name in _JSON:
        example[name] = canonical_json(getattr(t, name))
    return example


def to_text(trajectory: Trajectory) -> str:
    """Returns a trajectory as JSON, for a checkpoint; `of_text` gives the same one back."""
    example = _example(trajectory)
    for name in _ARRAYS:
        example[name] = example[name].tolist()
    return canonical_json(example)


def of_text(text: str) -> Trajectory:
    """Reads what `to_text` wrote."""
    return _trajectory(Path("a checkpoint"), parse_json(text, "A trajectory", _TEXTS, _REMEDY))


def read(path: Path) -> list[Trajectory]:
    """Reads a store.

    Raises:
      UserError: the folder is missing or holds no readable store, or cannot be read now.
    """
    if not (path / "dataset_info.json").is_file():
        raise UserError(
            f"There is no trajectory store in {path}: give a folder with a dataset_info.json."
        )
    import tensorflow_datasets as tfds

    try:
        with reading(path):
            seals.check_input(path)
            _check_features(path)
            source = tfds.builder_from_directory(str(path)).as_data_source("train")
            return [_trajectory(path, source[i]) for i in range(len(source))]
    except UserError:
        raise
    except Exception as error:
        # array_record and tfds raise many kinds of errors for a damaged file, none of which says
        # what to do.
        raise UserError(
            f"The trajectory store {path} is damaged ({type(error).__name__}): {_REMEDY}."
        ) from error


def _check_features(path: Path) -> None:
    """Refuses a store whose features would have Python import what is not of TFDS.

    TFDS imports the module of any class that a store names: whoever wrote it could choose among all
    modules that this process finds, in the folder where the command runs, too.

    Raises:
      UserError: it names another class.
    """
    remedy = "make the store again, or use one that this program has written"

    def names(value: Any) -> Iterator[Any]:
        if isinstance(value, dict):
            for name, part in value.items():
                if name == "pythonClassName":
                    yield part
                yield from names(part)
        elif isinstance(value, list):
            for part in value:
                yield from names(part)

    features = path / "features.json"
    for name in names(read_json(features, {"pythonClassName": str}, remedy)):
        if not (isinstance(name, str) and name.startswith("tensorflow_datasets.core.features.")):
            raise UserError(f"{features} names the class {name!r}, which is not of TFDS: {remedy}.")


def _trajectory(path: Path, example: dict[str, Any]) -> Trajectory:
    fields: dict[str, Any] = {}
    for name in _TEXT:
        fields[name] = _text(example[name])
    for name in _NUMBERS:
        fields[name] = int(example[name])
    for name in _FLAGS:
        fields[name] = bool(example[name])
    for name, dtype in _ARRAYS.items():
        fields[name] = np.asarray(example[name], dtype)
    for name, shape in _JSON.items():
        place = f"The trajectory store {path}, in {name},"
        fields[name] = parse_json(_text(example[name]), place, shape, _REMEDY)
    return Trajectory(**fields)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)

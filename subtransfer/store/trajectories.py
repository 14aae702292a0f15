"""The trajectory store: a TFDS dataset in array_record, written and read without TensorFlow.

Anyone opens it with `tfds.builder_from_directory(DIR).as_data_source("train")`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from subtransfer.runtime.errors import UserError
from subtransfer.store.schema import Trajectory, canonical_json

_TEXT = ("episode_id", "task_id", "kind", "policy")
_NUMBERS = ("policy_version", "seed")
_ARRAYS = {
    "tokens": np.int32,
    "loss_mask": np.bool_,
    "behavior_logprobs": np.float32,
    "turn_ids": np.int32,
}
_JSON = ("messages", "actions")
_FLAGS = ("solved", "truncated")


def _features():
    import tensorflow_datasets as tfds

    # encoding="bytes": the default one is 9 times slower. One tensor of [L, 1] an array: only its
    # first axis may vary.
    tensors = {
        name: tfds.features.Tensor(shape=(None,), dtype=dtype, encoding="bytes")
        for name, dtype in _ARRAYS.items()
    }
    scalars = {name: tfds.features.Scalar(np.int64) for name in _NUMBERS}
    flags = {name: tfds.features.Scalar(np.bool_) for name in _FLAGS}
    texts = {name: tfds.features.Text() for name in (*_TEXT, *_JSON)}
    return tfds.features.FeaturesDict({**texts, **scalars, **flags, **tensors})


def write(path: Path, trajectories: Sequence[Trajectory], description: str) -> None:
    """Writes a store into a new folder; the same trajectories give the same bytes.

    Raises:
      UserError: there are no trajectories.
    """
    if not trajectories:
        raise UserError(
            f"There are no trajectories to write to {path}: roll out more, or filter less."
        )
    import tensorflow_datasets as tfds

    identity = tfds.core.dataset_info.DatasetIdentity(
        name="trajectories",
        version=tfds.core.Version("1.0.0"),
        data_dir=str(path),
        module_name="",
    )
    info = tfds.core.DatasetInfo(builder=identity, description=description, features=_features())
    path.mkdir(parents=True)
    writer = tfds.core.SequentialWriter(
        info, max_examples_per_shard=1 << 16, overwrite=False, file_format="array_record"
    )
    # Protocol buffers keep a map's entries in an order that differs between processes, unless they
    # are asked not to.
    examples = tfds.core.example_serializer.ExampleSerializer(info.features.get_serialized_info())
    examples.serialize_example = lambda example: examples.get_tf_example(example).SerializeToString(
        deterministic=True
    )
    writer._serializer = examples
    writer.initialize_splits(["train"])
    writer.add_examples({"train": [_example(t) for t in trajectories]})
    writer.close_all()


def _example(t: Trajectory) -> dict[str, Any]:
    out: dict[str, Any] = {name: getattr(t, name) for name in (*_TEXT, *_NUMBERS, *_FLAGS)}
    out |= {name: np.asarray(getattr(t, name), dtype) for name, dtype in _ARRAYS.items()}
    return out | {name: canonical_json(getattr(t, name)) for name in _JSON}


def read(path: Path) -> list[Trajectory]:
    """Reads a store.

    Raises:
      UserError: the folder is missing or holds no readable store.
    """
    if not (path / "dataset_info.json").is_file():
        raise UserError(
            f"There is no trajectory store in {path}: give a folder with a dataset_info.json."
        )
    import tensorflow_datasets as tfds

    try:
        source = tfds.builder_from_directory(str(path)).as_data_source("train")
        return [_trajectory(source[i]) for i in range(len(source))]
    except Exception as error:
        # array_record and tfds raise many kinds of errors for a damaged file, none of which says
        # what to do.
        raise UserError(
            f"The trajectory store {path} is damaged ({type(error).__name__}): delete its stage's folder and run again."
        ) from error


def _trajectory(example: dict[str, Any]) -> Trajectory:
    def text(name: str) -> str:
        value = example[name]
        return value.decode() if isinstance(value, bytes) else str(value)

    return Trajectory(
        **{name: text(name) for name in _TEXT},
        **{name: int(example[name]) for name in _NUMBERS},
        **{name: bool(example[name]) for name in _FLAGS},
        **{name: np.asarray(example[name], dtype) for name, dtype in _ARRAYS.items()},
        **{name: json.loads(text(name)) for name in _JSON},
    )

"""Loading of Hugging Face directories: safetensors (one file or sharded), tokenizer, template."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from subtransfer.models import families, stop_tokens
from subtransfer.models.decoder import DecoderConfig, abstract_params
from subtransfer.models.families import read_json
from subtransfer.models.hf_names import INDEX, Leaf, leaves
from subtransfer.runtime import sharding
from subtransfer.runtime.errors import UserError
from subtransfer.store.files import reading

# The dtypes that are read, by their names in safetensors files.
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Some exporters write the head a second time where it is the embedding.
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
# As many rows of the two are compared at a time.
_ROWS = 4096
# A multimodal Gemma 3 keeps its language model under one of these names, beside parts that are not
# read.
_NESTED = {"language_model.": "", "model.language_model.": "model."}
_UNREAD = (
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
)


class Checkpoint:
    """The tensors of a directory's safetensors files, read slice by slice.

    Attributes:
      tensors: name -> (file, shape, dtype, the name that the file gives it).
      bytes_read: how much has been read so far.

    Raises:
      UserError: a file is missing, truncated or damaged.
    """

    def __init__(self, directory: Path):
        """Reads the files' headers."""
        self.directory = directory
        self.bytes_read = 0
        self.tensors: dict[str, tuple[Path, tuple[int, ...], str, str]] = {}
        names = ["model.safetensors"]
        if (directory / INDEX).is_file():
            index = read_json(directory / INDEX).get("weight_map")
            if not isinstance(index, dict) or not all(
                isinstance(name, str) for name in index.values()
            ):
                raise UserError(
                    f"{directory / INDEX} has no weight_map: copy it from the checkpoint again."
                )
            names = sorted(set(index.values()))
        for name in names:
            path = directory / name
            if not path.is_file():
                raise UserError(
                    f"{path} is missing: copy the checkpoint again, with all of its safetensors "
                    "files."
                )
            with self._open(path) as file:
                for tensor in file.keys():  # noqa: SIM118 - not a mapping
                    view = file.get_slice(tensor)
                    self.tensors[tensor] = path, tuple(view.get_shape()), view.get_dtype(), tensor

    @staticmethod
    def _open(path: Path):
        import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy, which safetensors needs
        from safetensors import SafetensorError, safe_open

        # safetensors says the same of a file that it may not open and of one that is damaged.
        with reading(path):
            path.open("rb").close()
        try:
            return safe_open(path, framework="numpy")
        except SafetensorError as error:
            raise UserError(f"{path} is damaged or truncated ({error}): copy it again.") from None

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Reads a slice of a tensor.

        The file is mapped for the time of the call only, so that its pages do not pile up.
        """
        path, _, _, written = self.tensors[name]
        with self._open(path) as file:
            part = file.get_slice(written)[index]
        self.bytes_read += part.nbytes
        return part

    def check(self, cfg: DecoderConfig) -> None:
        """Renames what is nested, and refuses files that are not exactly a geometry's.

        Raises:
          UserError: a tensor is missing, superfluous or misshapen, or of another dtype.
        """
        if cfg.family == "gemma3_text":
            self._rename_nested()
        wanted = {}
        for leaf in leaves(cfg):
            for i in range(cfg.num_layers) if leaf.stacked else [0]:
                wanted[leaf.name.format(i)] = leaf.shape
        for name, (path, shape, dtype, _) in self.tensors.items():
            if name not in wanted:
                if name == _HEAD and cfg.tied_embeddings:
                    self._check_tied_head(path)
                    continue
                if _may_be_ignored(name, cfg):
                    continue
                raise UserError(
                    f"{path} holds the tensor {name}, which its config.json has no place for: copy "
                    "both from one checkpoint."
                )
            if shape != wanted[name]:
                raise UserError(
                    f"{path}: {name} has the shape {list(shape)} where config.json asks for "
                    f"{list(wanted[name])}: copy both from one checkpoint."
                )
            if dtype not in DTYPES:
                raise UserError(
                    f"{path}: {name} is {dtype}: export it again in float32, float16 or bfloat16."
                )
        missing = sorted(set(wanted) - set(self.tensors))
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(
                f"{self.directory} lacks the tensor {missing[0]}{more}: its config.json asks for "
                "them; copy the checkpoint again, with all of its safetensors files."
            )

    def _check_tied_head(self, path: Path) -> None:
        """Refuses an output head that its config ties to the embedding but that is another one.

        Versions of transformers differ in which of the two they use.
        """
        same = _EMBEDDING in self.tensors and (
            self.tensors[_HEAD][1] == self.tensors[_EMBEDDING][1]
        )
        rows = self.tensors[_HEAD][1][0] if same else 0
        # Some rows at a time: a vocabulary's tensors are large.
        for begin in range(0, rows, _ROWS):
            part = (slice(begin, min(begin + _ROWS, rows)),)
            same = same and np.array_equal(self.read(_HEAD, part), self.read(_EMBEDDING, part))
        if not same:
            raise UserError(
                f"{path} holds an {_HEAD} that is not the embedding, although the config.json in "
                f"{self.directory} ties them: write tie_word_embeddings false there to use it, "
                "or leave the tensor out."
            )

    def _rename_nested(self) -> None:
        """Gives a multimodal model's tensors their plain names beside the nested ones."""
        for prefix, plain in _NESTED.items():
            for name in [n for n in self.tensors if n.startswith(prefix)]:
                self.tensors[plain + name.removeprefix(prefix)] = self.tensors[name]


def _may_be_ignored(name: str, cfg: DecoderConfig) -> bool:
    """Whether a tensor that a geometry has no place for is known to be harmless."""
    if cfg.family == "gemma3_text" and name.startswith((*_NESTED, *_UNREAD)):
        return True
    # Old exporters wrote the rotary frequencies.
    return name.endswith("rotary_emb.inv_freq")


def load_params(
    directory: str | Path, cfg: DecoderConfig, mesh: Mesh | None = None
) -> dict[str, Any]:
    """Loads the decoder's parameter tree, in the files' own dtypes.

    Each device's shard is read straight from its slices of the files. A stacked parameter is filled
    layer by layer in place, so that no more than one tensor is on the
    host at a time. Every process of a multi-process run reads the slices of its own devices only.

    Args:
      directory: with safetensors files.
      cfg: the geometry that they must have.
      mesh: where the parameters go; None is one device.

    Raises:
      UserError: a tensor or file is missing, superfluous, misshapen, truncated, or not finite.
    """
    checkpoint = Checkpoint(Path(directory))
    checkpoint.check(cfg)
    return read_params(checkpoint, cfg, mesh or sharding.make_mesh(devices=jax.local_devices()[:1]))


def read_params(checkpoint: Checkpoint, cfg: DecoderConfig, mesh: Mesh) -> dict[str, Any]:
    """Reads the parameter tree from a checked checkpoint (see `load_params`)."""
    shardings = sharding.param_shardings(abstract_params(cfg), mesh)
    params: dict[str, Any] = {}
    finite: dict[str, jax.Array] = {}
    for leaf in leaves(cfg):
        placed = functools.reduce(lambda tree, key: tree[key], leaf.path, shardings)
        shape = leaf.shape[::-1] if leaf.transposed else leaf.shape
        if not leaf.stacked:
            value = _place(checkpoint, leaf, leaf.name, shape, placed)
            finite[leaf.name] = _finite(value)
        else:
            one = NamedSharding(mesh, PartitionSpec(*placed.spec[1:]))
            names = [leaf.name.format(i) for i in range(cfg.num_layers)]
            # Layers of a mixed checkpoint are stacked in the widest of their dtypes.
            dtypes = [jnp.dtype(DTYPES[checkpoint.tensors[name][2]]) for name in names]
            dtype = functools.reduce(jnp.promote_types, dtypes)
            zeros = functools.partial(jnp.zeros, (cfg.num_layers, *shape), dtype)
            value = jax.jit(zeros, out_shardings=placed)()
            # Donated, so that the stack is filled where it lies.
            put = jax.jit(_put, donate_argnums=0, out_shardings=(placed, None))
            for i, name in enumerate(names):
                value, finite[name] = put(value, _place(checkpoint, leaf, name, shape, one), i)
        *parents, last = leaf.path
        node = functools.reduce(lambda tree, key: tree.setdefault(key, {}), parents, params)
        node[last] = value
    # Read only now: to ask earlier would make the host wait for the device at each tensor.
    for name, ok in finite.items():
        if not ok:
            raise UserError(
                f"{checkpoint.tensors[name][0]}: {name} holds NaN or infinite numbers: copy or "
                "export it again."
            )
    return params


def _place(
    checkpoint: Checkpoint, leaf: Leaf, name: str, shape: tuple[int, ...], placed: NamedSharding
) -> jax.Array:
    """One tensor on its devices, each of which reads its own part."""
    slices: dict[Any, np.ndarray] = {}  # devices that hold the same part share one reading

    def part(index) -> np.ndarray:
        key = tuple((s.start, s.stop) for s in index)
        if key not in slices:
            value = checkpoint.read(name, index[::-1] if leaf.transposed else index)
            slices[key] = value.T if leaf.transposed else value
        return slices[key]

    return jax.make_array_from_callback(shape, placed, part)


def _put(stack, layer, i):
    """The stack with layer i, and whether that is finite."""
    written = jax.lax.dynamic_update_index_in_dim(stack, layer.astype(stack.dtype), i, 0)
    return written, jnp.isfinite(layer).all()


@jax.jit
def _finite(value):
    return jnp.isfinite(value).all()


def load_geometry(directory: str | Path, *how: str) -> tuple[DecoderConfig, Any]:
    """Reads a directory's geometry and its tokenizer, and which rows have no token.

    Args:
      directory: with config.json and tokenizer.json.
      how: dtype, remat and attention, as of `families.read_config`.

    Raises:
      UserError: as of `families.read_config` and `load_tokenizer`.
    """
    cfg = families.read_config(directory, *how)
    tokenizer = load_tokenizer(directory, cfg)
    return dataclasses.replace(cfg, unused=unused_rows(tokenizer, cfg.vocab_size)), tokenizer


def unused_rows(tokenizer: Any, rows: int) -> tuple[tuple[int, int], ...]:
    """Returns the ranges (first, end) of ids below `rows` that a tokenizer has no token for."""
    free = np.ones(rows + 2, bool)
    free[[0, -1]] = False  # a range begins and ends within
    ids = np.fromiter(tokenizer.get_vocab().values(), np.int64)
    free[ids[ids < rows] + 1] = False
    first, end = (np.flatnonzero(np.diff(free.astype(np.int8)) == step) for step in (1, -1))
    return tuple(zip(first.tolist(), end.tolist(), strict=True))


def load_tokenizer(directory: str | Path, cfg: DecoderConfig | None):
    """Loads the directory's own tokenizer, with its chat template where it has one.

    The stop tokens of its generation_config.json are remembered for `stop_tokens.stop_ids`.

    Args:
      directory: with tokenizer.json.
      cfg: the geometry that must have a row for each token, or None.

    Raises:
      UserError: no tokenizer, or (with `cfg`) a token that texts can hold but the embedding has no
        row for.
    """
    # Imported here, as it takes seconds that most commands need not spend.
    from transformers import AutoTokenizer

    directory = Path(directory)
    files = (directory / "tokenizer.json", directory / "tokenizer_config.json")
    if not any(file.is_file() for file in files):
        raise UserError(
            f"{directory} has no tokenizer: add tokenizer.json and tokenizer_config.json to it."
        )
    try:
        # Without the flag, transformers asks on the terminal whether to run a checkpoint's code.
        tokenizer = AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"The tokenizer in {directory} needs Python code of the checkpoint's own "
                "(auto_map), which is never run: use a checkpoint whose tokenizer transformers has "
                "a class for."
            ) from None
        # transformers raises many kinds of errors for a broken tokenizer, most of them far from the
        # cause.
        raise UserError(
            f"The tokenizer in {directory} cannot be read ({error}): copy its files again."
        ) from error
    stop_tokens.remember(tokenizer, directory)
    if cfg is not None:
        _check_rows(tokenizer, cfg.vocab_size, directory)
    return tokenizer


def _check_rows(tokenizer: Any, rows: int, directory: Path) -> None:
    """Refuses a tokenizer with a token that can be written or read but has no row.

    A special token that the template does not use can stand in no text: Gemma 3's image token has
    no row in the models without images.
    """
    vocabulary = tokenizer.get_vocab()
    used = {tokenizer.bos_token_id, tokenizer.unk_token_id, *stop_tokens.stop_ids(tokenizer)}
    for token, i in vocabulary.items():
        if i < rows:
            continue
        added = tokenizer.added_tokens_decoder.get(i)
        in_template = token in str(tokenizer.chat_template)
        if added is None or not added.special or in_template or i in used:
            raise UserError(
                f"The tokenizer in {directory} has {len(vocabulary)} tokens but the model's "
                f"embedding only {rows} rows, none for {token!r} (id {i}): copy both from one "
                "checkpoint."
            )

"""Hugging Face directories, in and out: safetensors (one file or sharded), tokenizer and chat
template, PEFT adapters.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from subtransfer.models.decoder import DecoderConfig, abstract_params
from subtransfer.models.families import config_json, read_json
from subtransfer.models.lora import Adapter
from subtransfer.runtime import sharding
from subtransfer.runtime.errors import UserError

INDEX = "model.safetensors.index.json"
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
SHARD_BYTES = 4 << 30  # of one file of an exported checkpoint
# A multimodal Gemma 3 keeps its language model under one of these names, beside parts that are not
# read.
_NESTED = {"language_model.": "", "model.language_model.": "model."}
_UNREAD = (
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One of the decoder's parameters and the tensors that hold it in Hugging Face's files.

    Attributes:
      path: where it is in the parameter tree.
      name: the tensor's name; "{}" stands for the layer's number where the leaf stacks all layers.
      shape: of one tensor as the files have it.
      transposed: the files have [out, in] where the tree has [in, out].
    """

    path: tuple[str, ...]
    name: str
    shape: tuple[int, ...]
    transposed: bool = False

    @property
    def stacked(self) -> bool:
        return "{}" in self.name


def leaves(cfg: DecoderConfig) -> tuple[Leaf, ...]:
    """Every parameter of a decoder."""
    d, f, q, kv = (
        cfg.width,
        cfg.mlp_width,
        cfg.num_heads * cfg.head_width,
        cfg.num_kv_heads * cfg.head_width,
    )
    out = [Leaf(("embedding",), "model.embed_tokens.weight", (cfg.vocab_size, d))]
    out.append(Leaf(("final_norm", "scale"), "model.norm.weight", (d,)))
    if not cfg.tied_embeddings:
        out.append(Leaf(("lm_head",), "lm_head.weight", (cfg.vocab_size, d), True))

    def layer(path, name, shape, transposed=False):
        out.append(Leaf(("layers", *path), "model.layers.{}." + name, shape, transposed))

    layer(("attn_norm", "scale"), "input_layernorm.weight", (d,))
    before_mlp = "pre_feedforward_layernorm" if cfg.post_norms else "post_attention_layernorm"
    layer(("mlp_norm", "scale"), f"{before_mlp}.weight", (d,))
    if cfg.post_norms:
        layer(("attn_post_norm", "scale"), "post_attention_layernorm.weight", (d,))
        layer(("mlp_post_norm", "scale"), "post_feedforward_layernorm.weight", (d,))
    for p, shape in {"q": (q, d), "k": (kv, d), "v": (kv, d), "o": (d, q)}.items():
        layer((p, "kernel"), f"self_attn.{p}_proj.weight", shape, True)
        if cfg.qkv_bias and p != "o":
            layer((p, "bias"), f"self_attn.{p}_proj.bias", shape[:1])
    if cfg.qk_norm:
        layer(("q_norm", "scale"), "self_attn.q_norm.weight", (cfg.head_width,))
        layer(("k_norm", "scale"), "self_attn.k_norm.weight", (cfg.head_width,))
    for p, shape in {"gate": (f, d), "up": (f, d), "down": (d, f)}.items():
        layer((p, "kernel"), f"mlp.{p}_proj.weight", shape, True)
    return tuple(out)


class Checkpoint:
    """The tensors of a directory's safetensors files, read slice by slice.

    Attributes:
      tensors: name -> (file, shape, dtype, the name that the file gives it).
      bytes_read: how much has been read so far.

    Raises:
      UserError: a file is missing, truncated or damaged.
    """

    def __init__(self, directory: Path):
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
                    f"{path} is missing: copy the checkpoint again, with all of its safetensors files."
                )
            with self._open(path) as file:
                for tensor in file.keys():  # noqa: SIM118 - not a mapping
                    view = file.get_slice(tensor)
                    self.tensors[tensor] = path, tuple(view.get_shape()), view.get_dtype(), tensor

    @staticmethod
    def _open(path: Path):
        import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy, which safetensors needs
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(path, framework="numpy")
        except SafetensorError as error:
            raise UserError(f"{path} is damaged or truncated ({error}): copy it again.") from None

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A slice of a tensor; the file is mapped for the time of the call only, so that its pages
        do not pile up.
        """
        path, _, _, written = self.tensors[name]
        with self._open(path) as file:
            part = file.get_slice(written)[index]
        self.bytes_read += part.nbytes
        return part

    def check(self, cfg: DecoderConfig) -> None:
        """Renames what is nested, and raises UserError unless exactly the tensors of a geometry are
        there.
        """
        if cfg.family == "gemma3_text":
            for prefix, plain in _NESTED.items():
                for name in [n for n in self.tensors if n.startswith(prefix)]:
                    self.tensors[plain + name.removeprefix(prefix)] = self.tensors[name]
        wanted = {
            leaf.name.format(i): leaf.shape
            for leaf in leaves(cfg)
            for i in (range(cfg.num_layers) if leaf.stacked else [0])
        }
        for name, (path, shape, dtype, _) in self.tensors.items():
            if name not in wanted:
                nested = cfg.family == "gemma3_text" and name.startswith((*_NESTED, *_UNREAD))
                # Some exporters write the tied head a second time; old ones wrote the rotary
                # frequencies.
                if (
                    nested
                    or name.endswith("rotary_emb.inv_freq")
                    or (name == "lm_head.weight" and cfg.tied_embeddings)
                ):
                    continue
                raise UserError(
                    f"{path} holds the tensor {name}, which its config.json has no place for: copy both from one checkpoint."
                )
            if shape != wanted[name]:
                raise UserError(
                    f"{path}: {name} has the shape {list(shape)} where config.json asks for {list(wanted[name])}: "
                    "copy both from one checkpoint."
                )
            if dtype not in DTYPES:
                raise UserError(
                    f"{path}: {name} is {dtype}: export it again in float32, float16 or bfloat16."
                )
        missing = sorted(set(wanted) - set(self.tensors))
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(
                f"{self.directory} lacks the tensor {missing[0]}{more}: its config.json asks for them; copy the checkpoint "
                "again, with all of its safetensors files."
            )


def load_params(
    directory: str | Path, cfg: DecoderConfig, mesh: Mesh | None = None
) -> dict[str, Any]:
    """The decoder's parameter tree in the files' own dtypes, each device's shard read straight from
    its slices.

    A stacked parameter is filled layer by layer in place, so that no more than one tensor is on the
    host at a time. Every process of a multi-process run reads the slices of its own devices only.

    Args:
      mesh: where the parameters go; None is one device.

    Raises:
      UserError: a tensor or file is missing, superfluous, misshapen, truncated, or not finite.
    """
    checkpoint = Checkpoint(Path(directory))
    checkpoint.check(cfg)
    return read_params(checkpoint, cfg, mesh or sharding.make_mesh(devices=jax.local_devices()[:1]))


def read_params(checkpoint: Checkpoint, cfg: DecoderConfig, mesh: Mesh) -> dict[str, Any]:
    """The parameter tree from a checked checkpoint (see `load_params`)."""
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
            dtype = functools.reduce(
                jnp.promote_types, (DTYPES[checkpoint.tensors[n][2]] for n in names)
            )
            value = jax.jit(
                functools.partial(jnp.zeros, (cfg.num_layers, *shape), dtype), out_shardings=placed
            )()
            put = jax.jit(_put, donate_argnums=0, out_shardings=(placed, None))
            for i, name in enumerate(names):
                value, finite[name] = put(value, _place(checkpoint, leaf, name, shape, one), i)
        *parents, last = leaf.path
        node = functools.reduce(lambda tree, key: tree.setdefault(key, {}), parents, params)
        node[last] = value
    for name, ok in finite.items():
        if not ok:
            raise UserError(
                f"{checkpoint.tensors[name][0]}: {name} holds NaN or infinite numbers: copy or export it again."
            )
    return params


def _place(
    checkpoint: Checkpoint, leaf: Leaf, name: str, shape: tuple[int, ...], placed: NamedSharding
) -> jax.Array:
    slices: dict[Any, np.ndarray] = {}  # devices that hold the same part share one reading

    def part(index: tuple[slice, ...]) -> np.ndarray:
        key = tuple((s.start, s.stop) for s in index)
        if key not in slices:
            value = checkpoint.read(name, index[::-1] if leaf.transposed else index)
            slices[key] = value.T if leaf.transposed else value
        return slices[key]

    return jax.make_array_from_callback(shape, placed, part)


def _put(stack, layer, i):
    return jax.lax.dynamic_update_index_in_dim(
        stack, layer.astype(stack.dtype), i, 0
    ), jnp.isfinite(layer).all()


@jax.jit
def _finite(value):
    return jnp.isfinite(value).all()


def load_tokenizer(directory: str | Path, cfg: DecoderConfig | None):
    """The directory's own tokenizer with its chat template.

    Raises:
      UserError: no tokenizer, no chat template, or (with `cfg`) more tokens than the embedding has
        rows.
    """
    from transformers import AutoTokenizer

    directory = Path(directory)
    if not any(
        (directory / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")
    ):
        raise UserError(
            f"{directory} has no tokenizer: add tokenizer.json and tokenizer_config.json to it."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:
        # transformers raises many kinds of errors for a broken tokenizer, most of them far from the
        # cause.
        raise UserError(
            f"The tokenizer in {directory} cannot be read ({error}): copy its files again."
        ) from error
    if not tokenizer.chat_template:
        raise UserError(
            f"The tokenizer in {directory} has no chat template: use an instruct model's directory, or add "
            "chat_template.jinja to it."
        )
    if cfg is not None and len(tokenizer) > cfg.vocab_size:
        raise UserError(
            f"The tokenizer in {directory} has {len(tokenizer)} tokens but the model's embedding only {cfg.vocab_size} "
            "rows: copy both from one checkpoint."
        )
    return tokenizer


def to_tensors(
    cfg: DecoderConfig, params: Any
) -> Iterator[tuple[str, int, Callable[[], np.ndarray]]]:
    """Hugging Face's tensors of a parameter tree: (name, bytes, what brings it to the host)."""
    for leaf in leaves(cfg):
        value = functools.reduce(lambda tree, key: tree[key], leaf.path, params)
        for i in range(cfg.num_layers) if leaf.stacked else [None]:

            def fetch(leaf=leaf, value=value, i=i):
                array = np.asarray(value if i is None else value[i])
                return np.ascontiguousarray(array.T if leaf.transposed else array)

            yield leaf.name.format(i), math.prod(leaf.shape) * np.dtype(value.dtype).itemsize, fetch


def save_checkpoint(
    directory: str | Path,
    cfg: DecoderConfig,
    params: Any,
    tokenizer,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a Hugging Face directory, in files of at most `shard_bytes`; it appears whole or not
    at all.

    Raises:
      UserError: the directory exists and is not empty, or the geometry is one that transformers has
        no class for.
    """
    from safetensors.numpy import save_file

    files: list[list] = [[]]
    room = shard_bytes
    for tensor in to_tensors(cfg, params):
        if tensor[1] > room and files[-1]:
            files.append([])
            room = shard_bytes
        files[-1].append(tensor)
        room -= tensor[1]
    dtype = np.dtype(params["layers"]["q"]["kernel"].dtype).name
    description = json.dumps(config_json(cfg, tokenizer, dtype), indent=2) + "\n"

    def write(temporary: Path) -> None:
        names = ["model.safetensors"]
        if len(files) > 1:
            names = [
                f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))
            ]
            placed = {
                tensor[0]: name
                for name, tensors in zip(names, files, strict=True)
                for tensor in tensors
            }
            total = sum(tensor[1] for tensors in files for tensor in tensors)
            index = {"metadata": {"total_size": total}, "weight_map": placed}
            (temporary / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        for name, tensors in zip(names, files, strict=True):
            save_file(
                {key: fetch() for key, _, fetch in tensors},
                temporary / name,
                metadata={"format": "pt"},
            )
        (temporary / "config.json").write_text(description)
        tokenizer.save_pretrained(str(temporary))

    _whole(Path(directory), write)


def _whole(directory: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a temporary folder that then becomes `directory`."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(
            f"{directory} exists and is not empty: choose another directory to export to."
        )
    temporary = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        if directory.exists():
            directory.rmdir()
        temporary.rename(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# -- PEFT adapters ---------------------------------------------------------------------------------------------------

_MODULES = {
    **{p: f"self_attn.{p}_proj" for p in "qkvo"},
    **{p: f"mlp.{p}_proj" for p in ("gate", "up", "down")},
}
_PEFT_NAME = "base_model.model.model.layers.{}.{}.lora_{}.weight"


def save_adapter(directory: str | Path, adapter: Adapter, base: str, tokenizer) -> None:
    """Writes LoRA factors as a PEFT adapter directory.

    Args:
      base: what `base_model_name_or_path` is to say: the directory of the model that the adapter
        belongs to.

    Raises:
      UserError: the directory exists and is not empty.
    """
    from safetensors.numpy import save_file

    tensors = {}
    for target, factors in adapter.factors["layers"].items():
        for part, letter in (("a", "A"), ("b", "B")):
            for i, matrix in enumerate(np.asarray(factors[part])):
                tensors[_PEFT_NAME.format(i, _MODULES[target], letter)] = np.ascontiguousarray(
                    matrix.T
                )
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": sorted(f"{target}_proj" for target in adapter.factors["layers"]),
        "bias": "none",
        "inference_mode": True,
    }

    def write(temporary: Path) -> None:
        save_file(tensors, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
        (temporary / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
        tokenizer.save_pretrained(str(temporary))

    _whole(Path(directory), write)


def load_adapter(directory: str | Path, cfg: DecoderConfig) -> tuple[Adapter, str]:
    """A PEFT adapter directory as (the adapter, its base's directory).

    Raises:
      UserError: it is no plain LoRA adapter of a model of this geometry, or a file is missing or
        damaged.
    """
    import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy, which safetensors needs
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    directory = Path(directory)
    path = directory / "adapter_config.json"
    config = read_json(path)
    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("use_rslora"):
        raise UserError(f"{path}: only plain LoRA adapters are read.")
    file = directory / "adapter_model.safetensors"
    try:
        tensors = load_file(file)
    except FileNotFoundError:
        raise UserError(f"{file} is missing: copy the adapter again.") from None
    except SafetensorError as error:
        raise UserError(f"{file} is damaged or truncated ({error}): copy it again.") from None
    shapes = {leaf.path[1]: leaf.shape for leaf in leaves(cfg) if leaf.path[-1] == "kernel"}
    factors: dict[str, dict[str, np.ndarray]] = {}
    known = set()
    for target, module in _MODULES.items():
        names = {p: [_PEFT_NAME.format(i, module, p) for i in range(cfg.num_layers)] for p in "AB"}
        if names["A"][0] not in tensors:
            continue
        width_out, width_in = shapes[target]
        wanted = {"A": (config["r"], width_in), "B": (width_out, config["r"])}
        for part, row in names.items():
            for name in row:
                if name not in tensors or tensors[name].shape != wanted[part]:
                    raise UserError(
                        f"{file}: {name} is missing or not of the shape {list(wanted[part])}."
                    )
        known |= {name for row in names.values() for name in row}
        factors[target] = {
            p.lower(): np.stack([tensors[n].T.astype(np.float32) for n in names[p]]) for p in "AB"
        }
    unknown = sorted(set(tensors) - known)
    if unknown or not factors:
        raise UserError(
            f"{file} holds {unknown[0] if unknown else 'nothing'} that this model has no place for."
        )
    adapter = Adapter(
        {"layers": factors},
        config["r"],
        float(config["lora_alpha"]),
        float(config.get("lora_dropout", 0)),
    )
    return adapter, str(config.get("base_model_name_or_path") or "")

"""Writing of Hugging Face directories."""

from __future__ import annotations

import functools
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from subtransfer.models.decoder import DecoderConfig
from subtransfer.models.families import config_json, read_json, source_fields
from subtransfer.models.hf_names import INDEX, Leaf, leaves
from subtransfer.models.stop_tokens import stop_ids
from subtransfer.runtime.errors import UserError

# What a directory says of its tokenizer and of generation; an export carries these over.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
# Where transformers keeps the templates of a tokenizer that has several.
TEMPLATE_FOLDER = "additional_chat_templates"
# Of one file of an exported checkpoint.
SHARD_BYTES = 4 << 30


def to_tensors(
    cfg: DecoderConfig, params: Any
) -> Iterator[tuple[str, int, Callable[[], np.ndarray]]]:
    """Lists a parameter tree as Hugging Face's tensors.

    Yields:
      (name, bytes, a function that brings the tensor to the host) for each.
    """
    for leaf in leaves(cfg):
        value = functools.reduce(lambda tree, key: tree[key], leaf.path, params)
        size = math.prod(leaf.shape) * np.dtype(value.dtype).itemsize
        for i in range(cfg.num_layers) if leaf.stacked else [None]:
            yield leaf.name.format(i), size, functools.partial(_fetch, leaf, value, i)


def _fetch(leaf: Leaf, value: Any, i: int | None) -> np.ndarray:
    array = np.asarray(value if i is None else value[i])
    return np.ascontiguousarray(array.T if leaf.transposed else array)


def save_checkpoint(
    directory: str | Path,
    cfg: DecoderConfig,
    params: Any,
    tokenizer,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a Hugging Face directory; it appears whole or not at all.

    Args:
      directory: a new or empty one.
      cfg: the decoder's geometry.
      params: its parameters, adapters merged in; tensors keep their dtype.
      tokenizer: Hugging Face's.
      shard_bytes: the most bytes of tensors in a file.

    Raises:
      UserError: the directory exists and is not empty, or the geometry is one that transformers has
        no class for.
    """
    from safetensors.numpy import save_file

    # Tensors are sorted into files by size alone; each is fetched only when its file is written.
    files: list[list] = [[]]
    room = shard_bytes
    for tensor in to_tensors(cfg, params):
        if tensor[1] > room and files[-1]:
            files.append([])
            room = shard_bytes
        files[-1].append(tensor)
        room -= tensor[1]
    # Tensors keep their dtype, and transformers loads in the one that is named.
    dtype = np.dtype(params["layers"]["q"]["kernel"].dtype).name
    source = _source(tokenizer)
    carried = source_fields(source, cfg) if source else {}
    description = config_json(cfg, tokenizer, dtype, carried)

    def write(temporary: Path) -> None:
        names = ["model.safetensors"]
        if len(files) > 1:
            count = len(files)
            names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
            file_of, total = {}, 0
            for name, tensors in zip(names, files, strict=True):
                for tensor, size, _ in tensors:
                    file_of[tensor] = name
                    total += size
            index = {"metadata": {"total_size": total}, "weight_map": file_of}
            (temporary / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        for name, tensors in zip(names, files, strict=True):
            arrays = {key: fetch() for key, _, fetch in tensors}
            save_file(arrays, temporary / name, metadata={"format": "pt"})
        _write_json(temporary / "config.json", description)
        write_tokenizer(temporary, tokenizer)

    write_directory(Path(directory), write)


def write_tokenizer(directory: Path, tokenizer: Any) -> None:
    """Writes a tokenizer, its chat template and its model's generation_config.json.

    The files of the directory that it was loaded from are copied: what this version of transformers
    does not know would be lost. A tokenizer that was made in memory is saved.
    """
    source = _source(tokenizer)
    if source is None:
        tokenizer.save_pretrained(str(directory))
    else:
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, directory / name)
        if (source / TEMPLATE_FOLDER).is_dir():
            shutil.copytree(source / TEMPLATE_FOLDER, directory / TEMPLATE_FOLDER)
    _write_for_older_readers(directory / "tokenizer_config.json")
    _write_stop_tokens(directory / "generation_config.json", tokenizer)


def _source(tokenizer: Any) -> Path | None:
    """The directory that a tokenizer was loaded from, or None."""
    source = Path(tokenizer.name_or_path) if tokenizer.name_or_path else None
    return source if source and (source / "tokenizer.json").is_file() else None


def _write_for_older_readers(path: Path) -> None:
    """Gives what transformers 5 renamed in a tokenizer_config.json the names that 4 reads, too.

    Version 5 still reads them. A file of another writer stays as it is.
    """
    if not path.is_file():
        return
    config = read_json(path)
    before = dict(config)
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    # Version 4 has a mapping under this name.
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    if config != before:
        _write_json(path, config)


def _write_stop_tokens(path: Path, tokenizer: Any) -> None:
    """Names the tokens that end a reply, unless the source's file does.

    Without them a runtime has the tokenizer's one at most.
    """
    config = read_json(path) if path.is_file() else {}
    ids = stop_ids(tokenizer)
    if config.get("eos_token_id") is None and ids:
        _write_json(path, config | {"eos_token_id": ids if len(ids) > 1 else ids[0]})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_directory(directory: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a temporary folder that then becomes `directory`.

    Raises:
      UserError: the directory exists and is not empty.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(
            f"{directory} exists and is not empty: choose another directory to export to."
        )
    # In the same parent, so that the rename stays on one file system.
    temporary = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        _give_usual_modes(temporary)
        # An empty directory that was there may not stand in the rename's way.
        if directory.exists():
            directory.rmdir()
        temporary.rename(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _give_usual_modes(directory: Path) -> None:
    """Gives every file the permissions of a newly made one.

    safetensors makes its files for their owner alone, whatever the umask allows.
    """
    # The umask can be read only by changing it, for all threads; a new file shows its effect.
    probe = directory / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for file in directory.rglob("*"):
        if file.is_file():
            file.chmod(mode)

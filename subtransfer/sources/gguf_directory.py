"""GGUF files turned into Hugging Face directories, each once."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
from pathlib import Path

import numpy as np

from subtransfer.models import families, hf_load
from subtransfer.models.hf_names import INDEX
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.progress import progress
from subtransfer.sources import cache, gguf_models, gguf_reading, gguf_tokenizer
from subtransfer.store import digests

SHARD_BYTES = 2 << 30  # of tensors in one file, which are in memory at once


def converted(path: Path) -> Path:
    """The Hugging Face directory of a GGUF file, made in the cache where it is not there yet.

    It is known by the bytes of the file and by the sources that convert it.

    Raises:
      UserError: the file cannot be read, or holds a model that is not supported.
    """
    cache.root().mkdir(parents=True, exist_ok=True)
    digest = digests.of_file(path, cache.root())
    return cache.kept(f"gguf-{digest[:32]}-{_version()}", functools.partial(_write, path))


@functools.cache
def _version() -> str:
    """A digest of what converts: another one makes other directories."""
    parts = [importlib.metadata.version("gguf").encode()]
    for module in (gguf_models, gguf_reading, gguf_tokenizer):
        parts.append(Path(str(module.__file__)).read_bytes())
    parts.append(Path(__file__).read_bytes())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def _write(path: Path, directory: Path) -> None:
    """Writes a GGUF file's model as a Hugging Face directory, in an empty one."""
    file = gguf_reading.read(path)
    config = gguf_models.config_json(file)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    gguf_tokenizer.write(file, directory)
    _write_tensors(file, directory)
    try:
        hf_load.Checkpoint(directory).check(families.read_config(directory))
    except UserError as error:
        # Its files go at once: the sentence is about the file that they were made of.
        reason = str(error).replace(f"{directory}/", "").rstrip(".")
        raise UserError(
            f"{path} holds no whole {file.architecture} model ({reason}): use another file of it, "
            "or its Hugging Face directory."
        ) from None


def _write_tensors(file: gguf_reading.GGUFFile, directory: Path) -> None:
    from safetensors.numpy import save_file

    names = list(gguf_models.tensors(file))
    shards: list[list[tuple[str, str]]] = [[]]
    room, total = SHARD_BYTES, 0
    for name, theirs in names:
        size = int(np.prod(file.shape(name))) * (4 if file.dtype(name) == "float32" else 2)
        if size > room and shards[-1]:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append((name, theirs))
        room, total = room - size, total + size
    file_of: dict[str, str] = {}
    with progress(f"converting {file.path.name}", len(names), "tensors") as advance:
        for i, shard in enumerate(shards, start=1):
            written = "model.safetensors"
            if len(shards) > 1:
                written = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
            arrays = {}
            for name, theirs in shard:
                arrays[theirs] = np.ascontiguousarray(gguf_models.tensor(file, name))
                file_of[theirs] = written
                advance(1)
            save_file(arrays, directory / written, metadata={"format": "pt"})
            (directory / written).chmod(0o644)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": file_of}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")

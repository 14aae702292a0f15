"""Reading of GGUF files: metadata and dequantised tensors, by the package `gguf`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from subtransfer.runtime.errors import UserError
from subtransfer.store.files import reading

_MAGIC = b"GGUF"
# Half precision is kept; all else becomes float32, which holds dequantised numbers exactly.
_HALF = {"F16": "float16", "BF16": "bfloat16"}
_REMEDY = "copy or download it again"
_REQUIRED = object()


@dataclasses.dataclass(frozen=True)
class GGUFFile:
    """A GGUF file whose header has been read.

    Attributes:
      path: the file.
      tensors: the `gguf` package's tensors, by their names; values stay in the file.
    """

    path: Path
    tensors: Mapping[str, Any]
    _fields: Mapping[str, Any]

    @property
    def architecture(self) -> str:
        """What the file calls its kind of model, such as "llama"."""
        return str(self.get("general.architecture"))

    def get(self, name: str, default: Any = _REQUIRED) -> Any:
        """A value of the metadata: a number, a text or a list.

        Numbers that the file has in 32 bits are those that are shortest to write: 1e-06 and not
        9.999999974752427e-07.

        Raises:
          UserError: there is none, and no default.
        """
        if name not in self._fields:
            if default is _REQUIRED:
                raise UserError(
                    f"{self.path} lacks {name} in its metadata: {_REMEDY}, or convert the model "
                    "anew."
                )
            return default
        value = self._fields[name].contents()
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def of_model(self, name: str, default: Any = _REQUIRED) -> Any:
        """A value that the file has under its architecture's name, as of `get`."""
        return self.get(f"{self.architecture}.{name}", default)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, as PyTorch and Hugging Face's files have it."""
        return tuple(map(int, reversed(self.tensors[name].shape)))

    def dtype(self, name: str) -> str:
        """The dtype that `tensor` gives a tensor: "float32", "float16" or "bfloat16"."""
        return _HALF.get(self.tensors[name].tensor_type.name, "float32")

    def tensor(self, name: str) -> np.ndarray:
        """A tensor's values, dequantised.

        Raises:
          UserError: its type is one that cannot be dequantised.
        """
        import ml_dtypes  # noqa: F401 - gives NumPy bfloat16
        from gguf.quants import dequantize

        stored = self.tensors[name]
        try:
            values = dequantize(stored.data, stored.tensor_type)
        except NotImplementedError:
            raise UserError(
                f"{self.path}: {name} is of the type {stored.tensor_type.name}, which cannot be "
                "dequantised: use a file in Q4_K_M, Q8_0, F16 or the like."
            ) from None
        return values.reshape(self.shape(name)).astype(self.dtype(name))


def read(path: Path) -> GGUFFile:
    """Reads a GGUF file's header.

    Raises:
      UserError: it is no GGUF file, is truncated, damaged or one part of several, or has a tensor
        of an unknown type.
    """
    from gguf import GGUFReader

    with reading(path), path.open("rb") as opened:
        if opened.read(len(_MAGIC)) != _MAGIC:
            raise UserError(f"{path} is no GGUF file: give one, or a local Hugging Face directory.")
    try:
        reader = GGUFReader(path)
    except Exception as error:
        # The package has no errors of its own: most are what NumPy says of too few bytes.
        if "GGMLQuantizationType" in str(error):
            raise UserError(
                f"{path} holds tensors of a type that the package gguf does not know ({error}): "
                "use a file in Q4_K_M, Q8_0, F16 or the like."
            ) from None
        if "version" in str(error):
            raise UserError(
                f"{path} is of a version of GGUF that cannot be read ({error}): use a newer file."
            ) from None
        raise UserError(
            f"{path} is truncated or damaged ({type(error).__name__}: {error}): {_REMEDY}."
        ) from None
    file = GGUFFile(path, {tensor.name: tensor for tensor in reader.tensors}, reader.fields)
    if int(file.get("split.count", 1)) > 1:
        raise UserError(
            f"{path} is one of several parts: join them with llama.cpp's llama-gguf-split --merge."
        )
    return file

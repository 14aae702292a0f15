"""Parameters in safetensors files: trees of nested dicts of arrays, with names joined by "/"."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from subtransfer.runtime import processes
from subtransfer.runtime.errors import UserError
from subtransfer.store import seals
from subtransfer.store.files import atomic_write, reading

_REMEDY = "delete its folder and run again to make it anew"


def save_params(path: Path, params: Any) -> None:
    """Writes a tree of arrays as one safetensors file; of several processes the first does."""
    if not processes.leads():
        return
    from safetensors.numpy import save

    # In the order of their names, so that the same parameters give the same bytes.
    arrays = _flattened(params)
    atomic_write(path, save(dict(sorted(arrays.items()))))


def _flattened(params: Any, prefix: str = "") -> dict[str, np.ndarray]:
    if not isinstance(params, Mapping):
        # safetensors writes an array's memory as it lies, whatever its strides say.
        return {prefix: np.ascontiguousarray(np.asarray(params))}
    arrays: dict[str, np.ndarray] = {}
    for name, child in params.items():
        arrays |= _flattened(child, f"{prefix}/{name}" if prefix else name)
    return arrays


def load_params(path: Path) -> dict[str, Any]:
    """Reads what `save_params` wrote.

    Raises:
      UserError: the file is missing, truncated or no safetensors file, or cannot be read now.
    """
    import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy, which safetensors needs
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        with reading(path):
            # safetensors says the same of a file that it may not open and of one that is missing.
            path.open("rb").close()
            seals.check_input(path)
            arrays = load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: {_REMEDY}.") from error
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}): {_REMEDY}.") from error
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = array
    return tree

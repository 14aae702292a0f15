"""Bases that come with the package: trained beforehand, so that a run need not do it.

    bases/SETTING/manifest.json     what they were made with, and the digests of all files
    bases/SETTING/tokenizer/        of all of them
    bases/SETTING/3/params.safetensors

`python -m tools.make_bases` makes them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from subtransfer.runtime.errors import UserError
from subtransfer.runtime.json_files import digest, read_json
from subtransfer.store.files import reading
from subtransfer.store.seals import sha256

FOLDER = Path(__file__).parent.parent / "bases"
MANIFEST, PARAMS, TOKENIZER = "manifest.json", "params.safetensors", "tokenizer"
# `fields` are those of the config that decide the weights, `seed` its seed, `bases` the SHA-256 of
# the weights of base 0, 1, ..., `tokenizer` those of its files, `made_by` the versions and device.
SHAPE = {
    "fields": dict,
    "seed": int,
    "bases": [str],
    "tokenizer": {str: str},
    "made_by": {str: object},
}
_REMEDY = "install the package again, or train bases in the run (--config.base.from_scratch=true)"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What is known of a setting's shipped bases.

    Attributes:
      folder: where they lie.
      fields: the config fields that decide their weights, by dotted name.
      seed: the config's seed that they were drawn from.
      bases: SHA-256 of each one's weights, in hex.
      tokenizer: likewise of each of the tokenizer's files, by name.
      made_by: versions and device.
    """

    folder: Path
    fields: Mapping[str, Any]
    seed: int
    bases: Sequence[str]
    tokenizer: Mapping[str, str]
    made_by: Mapping[str, Any]

    @property
    def tokenizer_digest(self) -> str:
        """One digest of all of the tokenizer's files."""
        return digest(self.tokenizer)

    def weights(self, number: int) -> Path:
        """Where the weights of a base lie."""
        return self.folder / str(number) / PARAMS


def manifest(setting: str) -> Manifest | None:
    """Reads what is known of a setting's shipped bases; None where there are none.

    Args:
      setting: the name of one of the package's; a user's file has none.

    Raises:
      UserError: the manifest cannot be read.
    """
    return read(FOLDER / setting)


def read(folder: Path) -> Manifest | None:
    """Reads the manifest of one setting's folder; None where it has none.

    Raises:
      UserError: it cannot be read.
    """
    path = folder / MANIFEST
    with reading(path):
        if not path.is_file():
            return None
        return _manifest(path, path.stat().st_mtime_ns)


# Kept, as every member of a sweep asks.
@functools.lru_cache(maxsize=8)
def _manifest(path: Path, changed: int) -> Manifest:
    del changed  # only tells apart what was written when
    stored = read_json(path, SHAPE, _REMEDY)
    return Manifest(path.parent, **{name: stored[name] for name in SHAPE})


def found(setting: str, weights: str, tokenizer: str) -> tuple[Path, Path]:
    """Finds a shipped base by its digests; returns (its weights, its tokenizer's folder).

    Args:
      setting: whose it is.
      weights: SHA-256 of its weights.
      tokenizer: `Manifest.tokenizer_digest`.

    Raises:
      UserError: it is not there, or a file is missing, unreadable or another.
    """
    known = manifest(setting)
    if known is None or weights not in known.bases or tokenizer != known.tokenizer_digest:
        raise UserError(
            f"{FOLDER / setting} does not hold the shipped base {weights[:16]} any more: {_REMEDY}."
        )
    params = known.weights(known.bases.index(weights))
    _check(params, weights)
    for name, wanted in known.tokenizer.items():
        _check(known.folder / TOKENIZER / name, wanted)
    return params, known.folder / TOKENIZER


def _check(file: Path, wanted: str) -> None:
    with reading(file):
        if not file.is_file():
            raise UserError(f"The shipped base's file {file} is missing: {_REMEDY}.")
        if sha256(file) != wanted:
            raise UserError(
                f"The shipped base's file {file} is not the one that its manifest names: {_REMEDY}."
            )

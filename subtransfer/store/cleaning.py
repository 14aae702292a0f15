"""What lies in a workdir that nobody asks for any more, and its removal.

What is not recognised is left alone, and so is all that a living process holds the claim on. What
goes is renamed first, to the name of a build that was cut off: a kill in the middle leaves no half
artefact, and the next run, or the next cleaning, removes the rest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from subtransfer.store import history, seals
from subtransfer.store.claims import Claim, Claims
from subtransfer.store.workdir import CLAIMS, HISTORY, MEMBERS, STEPS, SWEEP

COMPILED = ".compiled"
_METRICS = "metrics"
_LOGS = "logs"
# Results, tables and records of what was done: these are what a workdir is for.
_KEPT = re.compile(
    r"results\.(csv|jsonl|json)|effects\.csv|prereg\.json|report\.html|stages\.json|SHA256SUMS"
    r"|table\.parquet|sweep\.html|scaling\.(html|md)|\.digests\.json"
)
_KEPT_FOLDERS = (CLAIMS, HISTORY, MEMBERS, SWEEP)
_STAGE = re.compile(r"(?P<name>[^/]+)-[0-9a-f]{16}")
_BUILD = re.compile(r"\.(?P<of>[^/]+-[0-9a-f]{16})\.tmp-(?P<token>[0-9a-f]{16}|fetched)")
_FILE_UNDER_WAY = re.compile(r"\.[^/]+\.tmp-([0-9a-f]{8}|fetched)")
_CLAIM = re.compile(r"(?P<of>[^/]+)\.\d+")
_ASIDE = "damaged-"
# A file is written within moments, and a claim's changes every few seconds.
_WRITTEN_BY_NOW = 3600.0
_SILENT_FOR_GOOD = 86400.0


@dataclasses.dataclass(frozen=True)
class Leftover:
    """Something that may go.

    Attributes:
      path: of a file or a folder.
      kind: for people, e.g. "stage".
      why: nobody needs it.
      size: bytes of its files.
      changed: when it was last written, in seconds since the epoch.
      of: what is claimed by who makes it: the folder of a stage, or "".
    """

    path: Path
    kind: str
    why: str
    size: int
    changed: float
    of: str = ""


@dataclasses.dataclass
class Findings:
    """What lies in a workdir.

    Attributes:
      leftovers: what may go, in the order of their paths.
      at_work: what living processes claim there, by the names of stages' folders.
      unknown: names of what is not recognised, and left alone.
      kept: bytes of all that is asked for.
    """

    leftovers: list[Leftover]
    at_work: list[str]
    unknown: list[str]
    kept: int


def look(workdir: Path, wanted: Collection[str]) -> Findings:
    """Looks through a workdir; changes nothing.

    Args:
      workdir: exists.
      wanted: the folders of all stages that somebody asks for.

    Raises:
      UserError: a line of the workdir's history is damaged.
    """
    return _Look(workdir, wanted).findings()


class _Look:
    def __init__(self, workdir: Path, wanted: Collection[str]):
        self._workdir, self._wanted = workdir, frozenset(wanted)
        # What was begun here is known to be a stage, even if it was never sealed.
        self._begun = {record["stage"] for record in history.read(workdir)}
        self._published = _published(workdir)
        self._claims = _claims_of(workdir)
        self._found = Findings([], [], [], 0)

    def findings(self) -> Findings:
        self._look_at_claims()
        for path in sorted(self._workdir.iterdir()):
            self._look_at(path)
        self._found.leftovers.sort(key=lambda leftover: leftover.path)
        return self._found

    def _add(self, path: Path, kind: str, why: str, of: str = "") -> None:
        size, changed = _measure(path)
        self._found.leftovers.append(Leftover(path, kind, why, size, changed, of))

    def _look_at_claims(self) -> None:
        if self._claims is None:
            return
        names: dict[str, list[Path]] = {}
        for path in sorted(self._claims.folder.iterdir()):
            if found := _CLAIM.fullmatch(path.name):
                names.setdefault(found["of"], []).append(path)
        for name, files in names.items():
            claim = self._claims.look(name)
            if _lives(claim, self._claims):
                self._found.at_work.append(name)
                continue
            for path in files:
                self._add(path, "claim", "its owner has given it back or is dead", name)

    def _look_at(self, path: Path) -> None:
        name = path.name
        if name in _KEPT_FOLDERS or _KEPT.fullmatch(name):
            self._found.kept += _measure(path)[0]
        elif name == COMPILED and not self._found.at_work:
            self._add(path, "compiled programs", "compiled again by the next run")
        elif name == COMPILED:
            self._found.kept += _measure(path)[0]
        elif name == STEPS:
            self._look_at_steps(path)
        elif name in (_METRICS, _LOGS):
            self._look_at_records(path)
        elif name.startswith(_ASIDE):
            self._add(path, "set aside", "was found to be damaged")
        elif found := _BUILD.fullmatch(name):
            if found["of"] not in self._found.at_work:
                self._add(path, "build", "was cut off", found["of"])
        elif _FILE_UNDER_WAY.fullmatch(name):
            if time.time() - _measure(path)[1] > _WRITTEN_BY_NOW:
                self._add(path, "file", "was never finished")
        elif _STAGE.fullmatch(name) and self._is_stage(path):
            self._look_at_stage(path)
        else:
            self._found.unknown.append(name)

    def _is_stage(self, path: Path) -> bool:
        return path.name in self._begun or (path / seals.MARKER).is_file()

    def _look_at_stage(self, path: Path) -> None:
        if path.name in self._wanted or path.name in self._found.at_work:
            self._found.kept += _measure(path)[0]
            return
        why = "no given config asks for it"
        if path.name in self._published:
            why += "; published results here were made of it"
        self._add(path, "stage", why, path.name)

    def _look_at_steps(self, folder: Path) -> None:
        """Step checkpoints lie in folders that are named as the artefacts to come."""
        for path in sorted(folder.iterdir()):
            if not _STAGE.fullmatch(path.name):
                self._found.unknown.append(f"{folder.name}/{path.name}")
            elif path.name in self._found.at_work:
                self._found.kept += _measure(path)[0]
            elif path.name not in self._wanted:
                self._add(path, "checkpoints", "no given config asks for the stage", path.name)
            elif seals.is_whole(self._workdir / path.name):
                self._add(path, "checkpoints", "the stage is finished", path.name)
            else:
                for part in sorted(path.iterdir()):
                    if part.name.startswith(_ASIDE):
                        self._add(part, "set aside", "was found to be damaged", path.name)
                    else:
                        self._found.kept += _measure(part)[0]

    def _look_at_records(self, folder: Path) -> None:
        """Metrics and logs: files and folders that are named after stages."""
        for path in sorted(folder.iterdir()):
            if path.name == "tensorboard":
                self._look_at_records(path)
                continue
            stem = path.name.removesuffix(".jsonl").removesuffix(".log")
            if not _STAGE.fullmatch(stem) or stem in self._wanted or stem in self._found.at_work:
                self._found.kept += _measure(path)[0]
            else:
                self._add(path, folder.name, "no given config asks for the stage", stem)


def remove(workdir: Path, leftovers: Collection[Leftover]) -> Iterator[tuple[Leftover, bool]]:
    """Removes what `look` has found, one after the other.

    What belongs to a stage is claimed meanwhile, so that no run makes or takes it.

    Args:
      workdir: exists.
      leftovers: of `look`, perhaps some of them.

    Yields:
      Each of them, and whether it went: one that was claimed or written meanwhile stays.
    """
    (workdir / CLAIMS).mkdir(exist_ok=True)
    claims = Claims(workdir / CLAIMS)
    try:
        for leftover in leftovers:
            if leftover.kind == "claim":
                # They go with what they are about; others that are given back change nothing.
                yield leftover, _remove_claim(leftover, claims)
                continue
            if not leftover.of:
                yield leftover, _remove(leftover, workdir, claims)
                continue
            held = claims.take(leftover.of)
            if held is None:
                yield leftover, False
                continue
            try:
                gone = _remove(leftover, workdir, claims)
            finally:
                held.release(made=True)
            yield leftover, gone
    finally:
        claims.close()


def _remove(leftover: Leftover, workdir: Path, claims: Claims) -> bool:
    path = leftover.path
    if not os.path.lexists(path):
        return True
    # One that was written since it was looked at is in use.
    if _measure(path)[1] != leftover.changed:
        return False
    if path.is_symlink() or path.is_file():
        path.unlink()
        return True
    name = leftover.of or f"{path.name.lstrip('.')}-{0:016x}"
    aside = workdir / f".{name}.tmp-{claims.owner.token}"
    path.rename(aside)
    shutil.rmtree(aside)
    return True


def _remove_claim(leftover: Leftover, claims: Claims) -> bool:
    # Its stage may be claimed again since.
    if _lives(claims.look(leftover.of), claims):
        return False
    leftover.path.unlink(missing_ok=True)
    return True


def _claims_of(workdir: Path) -> Claims | None:
    folder = workdir / CLAIMS
    return Claims(folder) if folder.is_dir() else None


def _lives(claim: Claim | None, claims: Claims) -> bool:
    """Whether a claim's owner may be alive: in doubt, it is."""
    if claim is None or claim.free or (claim.owner is not None and claim.owner.dead()):
        return False
    # Of another machine: only its silence can tell.
    with contextlib.suppress(FileNotFoundError):
        changed = claims.path(claim.name, claim.number).stat().st_mtime
        return time.time() - changed < _SILENT_FOR_GOOD
    return False


def _published(workdir: Path) -> set[str]:
    """The stages that published results in a workdir were made of."""
    from subtransfer.store import provenance  # it imports jax, of which nothing else here has need

    out: set[str] = set()
    for run in (workdir, *sorted((workdir / MEMBERS).glob("*"))):
        if run.is_dir():
            out.update(provenance.stages(run).values())
    return out


def _measure(path: Path) -> tuple[int, float]:
    """Bytes of the files below a path, and the last time that one of them was written.

    Links are not followed: what they point to stays.
    """
    status = path.lstat()
    size, changed = (0 if path.is_dir() else status.st_size), status.st_mtime
    if path.is_dir() and not path.is_symlink():
        for below in path.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # a run at work removes, too
                status = below.lstat()
                changed = max(changed, status.st_mtime)
                if not below.is_dir() or below.is_symlink():
                    size += status.st_size
    return size, changed

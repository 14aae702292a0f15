"""The artefact store: one folder a stage, named by what determines it, written atomically."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from subtransfer.runtime import preemption, processes
from subtransfer.runtime.errors import UserError
from subtransfer.store import buckets
from subtransfer.store.leases import LEASE, POLL, Claim, Claims, Held, Lost, Owner, Patience
from subtransfer.store.schema import canonical_json

MARKER = "artifact.json"  # written last: a folder that has it is whole
STEPS = ".steps"  # holds the step checkpoints of unfinished stages
CLAIMS = ".claims"  # who is making what
MEMBERS = "runs"  # where the results of a sweep's members lie
SWEEP = "sweep.json"  # a sweep's own account of its members
HISTORY = "stages"  # what was computed: a file for each process that computed something


def digest(value: Any) -> str:
    """16 hex digits of the SHA-256 of a JSON-serialisable value."""
    return digest_of(canonical_json(value))


def digest_of(text: str) -> str:
    """16 hex digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def opened(workdir: Path) -> bool:
    """Whether a folder is a workdir that a store has opened: one that a library makes in its place
    holds no claims.

    Inodes would not tell: a mounted bucket may number them anew.
    """
    return (workdir / CLAIMS).is_dir()


def vanished(workdir: Path) -> UserError:
    """The sentence about a workdir that was there, and is no more."""
    return UserError(f"The workdir {workdir} has vanished: run the same command again.")


@contextlib.contextmanager
def os_errors(folder: Path) -> Iterator[None]:
    """Turns the operating system's refusals to write into sentences about `folder`, and whatever
    fails once it is gone.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"No space left in {folder}: free some and run the same command again; finished stages are kept."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(
                f"Cannot write to {folder}: make it writable or choose another --workdir."
            ) from error
        if error.errno == errno.ENOTDIR or (error.errno == errno.EEXIST and not folder.is_dir()):
            raise UserError(f"{folder} is not a folder: choose another --workdir.") from error
        # A stage's folder is made by the run itself, so that one that is missing was taken away.
        parent = Path(os.fsdecode(error.filename)).parent if error.filename is not None else folder
        gone = parent.is_relative_to(folder) and not parent.is_dir()
        if error.errno == errno.ENOENT and (gone or not folder.is_dir()):
            raise vanished(folder) from error
        raise
    except Exception as error:  # such as a reader's sentence about the file that it misses
        if folder.is_dir():
            raise
        raise vanished(folder) from error


_SYSTEM = {
    "No space left": errno.ENOSPC,
    "File too large": errno.EFBIG,
    "quota exceeded": errno.EDQUOT,
    "Read-only file system": errno.EROFS,
    "Permission denied": errno.EACCES,
    "No such file": errno.ENOENT,
}


@contextlib.contextmanager
def storage_errors(folder: Path, what: str) -> Iterator[None]:
    """As `os_errors`, around a library that wraps the system's words in errors of its own;
    sentences begin with `what`.
    """
    try:
        with os_errors(folder):
            try:
                yield
            except UserError:
                raise
            except Exception as error:
                texts, cause = "", error
                while cause is not None:
                    texts, cause = f"{texts} {cause}", cause.__cause__ or cause.__context__
                number = next((number for words, number in _SYSTEM.items() if words in texts), None)
                if number is None:
                    raise UserError(
                        f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
                    ) from error
                raise OSError(number, os.strerror(number), str(folder)) from error
    except UserError as error:
        raise UserError(f"{what}. {error}") from error


def steps_folder(path: Path) -> Path:
    """Where the step checkpoints lie that belong to an unfinished artefact."""
    return path.parent / STEPS / path.name


def set_aside(path: Path) -> None:
    """Renames something damaged to a name that nothing looks for; one a name is kept."""
    aside = path.with_name(f"damaged-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Writes a file so that a reader sees the old or the new content, never a part."""
    if isinstance(data, str):
        data = data.encode()
    temporary = path.with_name(
        f".{path.name}.tmp-{secrets.token_hex(4)}"
    )  # others may write the same file
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class Busy(Exception):
    """A stage is being made by another process; `claim` says by whom."""

    def __init__(self, claim: Claim):
        super().__init__(claim.name)
        self.claim = claim


class Store:
    """The stages of a workdir, which several runs may share: each claims what it makes. Used as a
    context manager.

    Of several processes of one run the first claims and writes; the others compute alongside, throw
    their copies away, and wait for the seal. All must see the workdir.

    Args:
      lease: seconds of silence after which another run may take over what this one is making.

    Attributes:
      events: (what happened, stage) in order; what is "reused", "computed" or "redone".

    Raises:
      UserError: the workdir cannot be made or written, or is not the same in every process.
    """

    def __init__(self, workdir: Path, lease: float = LEASE):
        self.workdir = Path(workdir)
        self.events: list[tuple[str, str]] = []
        self._lease = lease
        self._claims: Claims | None = None

    def __enter__(self) -> Store:
        mark = processes.share("workdir", self._open() if processes.leads() else None)
        if not processes.leads() and not (self.workdir / CLAIMS / mark).exists():
            raise UserError(
                f"{self.workdir} is not the same folder in every process: choose one that all of them share."
            )
        processes.barrier("workdir")
        if processes.leads():
            (self.workdir / CLAIMS / mark).unlink(missing_ok=True)
        return self

    def _open(self) -> str:
        """Removes what runs left that died; returns the name of a file that only this run can have
        made among the claims.
        """
        with os_errors(self.workdir):
            (self.workdir / CLAIMS).mkdir(parents=True, exist_ok=True)
            buckets.fetch_files(self.workdir)
            buckets.tidy(self.workdir / STEPS)
            self._claims = Claims(self.workdir / CLAIMS, self._lease)
            mark = f"run-{self._claims.owner.token}"
            (self.workdir / CLAIMS / mark).touch()
            self._interrupted = set()
            for path in self.workdir.glob(".*.tmp-*"):
                name = path.name[1:].rpartition(".tmp-")[0]
                claim = self._claims.look(name)  # its owner claimed it first
                if claim is None or claim.free or (claim.owner and claim.owner.dead()):
                    self._interrupted.add(name)
                    shutil.rmtree(path, ignore_errors=True)
        return mark

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        # An error on the way out would hide what ended the run, which says more.
        unsaid = (
            contextlib.nullcontext() if kind is None else contextlib.suppress(UserError, OSError)
        )
        try:
            with unsaid:
                buckets.put_files(self.workdir)
        finally:
            if self._claims is not None:
                self._claims.close()

    def stage(
        self,
        name: str,
        key: Mapping[str, Any],
        build: Callable[[Path], None],
        *,
        log: Callable[[str], None],
        facts: Mapping[str, Any] | None = None,
    ) -> Path:
        """Returns the folder of a stage's artefact; calls `build(folder)` to make it unless a whole
        one is there.

        What another run is making is waited for. A build that fails leaves nothing behind but its
        step checkpoints, and touches no other artefact.

        Args:
          facts: recorded with the computation (JSON).
        """
        folder = f"{name}-{digest(key)}"
        path = self.workdir / folder
        preemption.check()
        leads = processes.leads()
        with os_errors(self.workdir):
            buckets.fetch(path)
        held = self._claim(path, log) if leads else None
        whole = processes.share(f"whole/{folder}", str(held is None) if leads else None) == "True"
        what = "reused"
        if whole:
            buckets.put(path)  # an attempt whose connection broke
        elif leads:
            while held:
                try:
                    what, held = self._make(path, key, build, held, facts or {}), None
                except Lost:
                    held = self._claim(path, log)
            buckets.put(path)
            buckets.drop(steps_folder(path))
        else:
            with tempfile.TemporaryDirectory() as copy:
                build(Path(copy))
            what = None
        what = processes.share(f"sealed/{folder}", what if leads else None)
        self.events.append((what, name))
        log(f"[{what}] {name}" + (" (an earlier attempt was cut off)" if what == "redone" else ""))
        return path

    def try_stage(
        self,
        name: str,
        key: Mapping[str, Any],
        build: Callable[[Path], None],
        *,
        over: int | None,
        facts: Mapping[str, Any],
    ) -> str:
        """As `stage`, in a run of one process, but without waiting; returns what happened.

        Args:
          over: the number of a claim whose lease has run out.

        Raises:
          Busy: another is making it.
        """
        path = self.workdir / f"{name}-{digest(key)}"
        preemption.check()
        held = self._try_claim(path, over)
        if held is None:
            return "reused"
        try:
            return self._make(path, key, build, held, facts)
        except Lost as error:
            raise Busy(self._claims.look(path.name) or Claim(path.name, 0)) from error

    def _try_claim(self, path: Path, over: int | None = None) -> Held | None:
        """The claim on a stage, or None if it is finished.

        Raises:
          Busy: another holds it.
        """
        with os_errors(self.workdir):
            if is_whole(path):
                shutil.rmtree(steps_folder(path), ignore_errors=True)
                return None
            held = self._claims.take(path.name, over)
            if held is None:
                claim = self._claims.look(path.name)
                if claim is None:  # finished, or given back, at this moment
                    return self._try_claim(path, over)
                raise Busy(claim)
            if is_whole(path):  # another has finished it before the claim was ours
                held.release(made=True)
                return None
            return held

    def _claim(self, path: Path, log: Callable[[str], None]) -> Held | None:
        """As `_try_claim`, but waits for others."""
        patience, over, waited = Patience(), None, None
        while True:
            try:
                return self._try_claim(path, over)
            except Busy as busy:
                if busy.claim.owner != waited:
                    waited = busy.claim.owner
                    log(f"[waiting] {path.name} is being made by {waited}")
                over = busy.claim.number if patience.over(busy.claim) else None
                if over is None:
                    preemption.check()
                    time.sleep(POLL)

    def _make(
        self,
        path: Path,
        key: Mapping[str, Any],
        build: Callable[[Path], None],
        held: Held,
        facts: Mapping,
    ) -> str:
        """Builds, seals and renames; returns "computed", or "redone" where there were remains of an
        earlier attempt.
        """
        begin, made = time.monotonic(), False
        damaged = path.exists()
        with os_errors(self.workdir):
            redone = damaged or path.name in self._interrupted or steps_folder(path).is_dir()
            for earlier in self._claims.owners(
                path.name
            ):  # the claim is ours: what these left is given up
                left = self._temporary(path, earlier)
                redone |= left.exists()
                shutil.rmtree(left, ignore_errors=True)
            what = "redone" if redone else "computed"
            temporary = self._temporary(path, self._claims.owner)
            try:
                self._record(path.name, "begun", facts)
                temporary.mkdir()
                build(temporary)
                _seal(temporary, key)
                held.confirm()
                if damaged:
                    shutil.rmtree(path)
                temporary.rename(path)  # fails if there is another's
                _sync(self.workdir)
                made = True
                self._record(
                    path.name, what, {**facts, "seconds": round(time.monotonic() - begin, 3)}
                )
                shutil.rmtree(steps_folder(path), ignore_errors=True)
            except Exception as error:
                if not opened(self.workdir):
                    raise vanished(self.workdir) from error
                if not held.beat():  # the other has removed what was being written
                    raise Lost(str(error)) from error
                raise
            finally:
                if not made:
                    shutil.rmtree(temporary, ignore_errors=True)
                if not opened(self.workdir):
                    with contextlib.suppress(OSError):
                        self.workdir.rmdir()  # an empty one, which a library had made again
                with contextlib.suppress(OSError):  # of a workdir that has vanished
                    held.release(made=made)
        return what

    def _temporary(self, path: Path, owner: Owner) -> Path:
        return self.workdir / f".{path.name}.tmp-{owner.token}"

    def _record(self, stage: str, what: str, facts: Mapping[str, Any]) -> None:
        """Adds a line to this process's own file in HISTORY; a line of a few hundred bytes is
        written as a whole.
        """
        owner = self._claims.owner
        line = {
            "stage": stage,
            "what": what,
            "owner": owner.token,
            "host": owner.host,
            "pid": owner.pid,
            **facts,
        }
        path = self.workdir / HISTORY / f"{owner.token}.jsonl"
        path.parent.mkdir(exist_ok=True)
        with path.open("ab", buffering=0) as file:
            file.write((json.dumps(line) + "\n").encode())


def history(workdir: Path) -> list[dict[str, Any]]:
    """What was computed in a workdir: one record a beginning ("what" is "begun") and one a seal
    ("computed" or "redone").

    Records have "stage" (the folder), "what", "owner", "host", "pid", what the stage's maker added,
    and, of seals, "seconds". A kill between a seal and its line loses the line, never the artefact.
    """
    records = []
    for path in sorted((Path(workdir) / HISTORY).glob("*.jsonl")):
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):  # cut off by a kill
                records.append(json.loads(line))
    return records


def is_whole(path: Path) -> bool:
    """Whether a folder holds a finished artefact: its marker, and every file at its recorded
    size.
    """
    try:
        sizes = json.loads((path / MARKER).read_text())["sizes"]
        return all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def _seal(folder: Path, key: Mapping[str, Any]) -> None:
    """Writes the marker, after every file is safely on disk."""
    sizes = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            sizes[file.relative_to(folder).as_posix()] = file.stat().st_size
            _sync(file)
    atomic_write(
        folder / MARKER, json.dumps({"key": key, "sizes": sizes}, indent=1, sort_keys=True)
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_params(path: Path, params: Any) -> None:
    """Writes a tree of nested dicts of arrays as one safetensors file, names joined by "/"; one of
    several processes does.
    """
    if not processes.leads():
        return
    from safetensors.numpy import save

    flat: dict[str, np.ndarray] = {}

    def collect(prefix: str, node: Any) -> None:
        if isinstance(node, Mapping):
            for name, child in node.items():
                collect(f"{prefix}/{name}" if prefix else name, child)
        else:
            flat[prefix] = np.ascontiguousarray(np.asarray(node))

    collect("", params)
    atomic_write(path, save(dict(sorted(flat.items()))))


def load_params(path: Path) -> dict[str, Any]:
    """Reads what `save_params` wrote.

    Raises:
      UserError: the file is missing, truncated or no safetensors file.
    """
    import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy, which safetensors needs
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        flat = load_file(path)
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing: delete its folder and run again to make it anew."
        ) from error
    except SafetensorError as error:
        raise UserError(
            f"{path} is damaged ({error}): delete its folder and run again to make it anew."
        ) from error
    tree: dict[str, Any] = {}
    for name, array in flat.items():
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = array
    return tree

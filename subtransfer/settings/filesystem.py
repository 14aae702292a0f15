"""A small simulated file system with a real one's semantics, in memory only.

Nothing here touches the machine's own files.
"""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Mapping
from typing import Any, Literal

ErrorKind = Literal["unknown_path", "conflict", "bad_arguments"]

AGENT = "agent"  # the user that the agent's tools run as


class FileError(Exception):
    """A failed operation: `kind` for the counts, the message as the agent reads it."""

    def __init__(self, kind: ErrorKind, message: str):
        super().__init__(message)
        self.kind = kind


@dataclasses.dataclass(frozen=True)
class File:
    """A file.

    Attributes:
      size: in kB.
      age: in days, at the episode's start.
      owner: a user's name.
      text: what it holds.
      mode: permission bits, octal.
      mtime: when it was last changed, in logical ticks.
    """

    size: int
    age: int
    owner: str
    text: str
    mode: int = 0o644
    mtime: int = 0


@dataclasses.dataclass(frozen=True)
class Directory:
    """A directory: its owner's name and its permission bits."""

    owner: str = AGENT
    mode: int = 0o755


class FileSystem:
    """Directories and files by absolute normal path.

    Args:
      tree: {"directories": {path: {field: value}}, "files": {path: {field: value}}} with the fields
        of `Directory` and `File`; the root exists always, and every parent must be listed.
    """

    def __init__(self, tree: Mapping[str, Any]):
        self.directories = {"/": Directory()}
        for path, fields in tree["directories"].items():
            self.directories[path] = Directory(**fields)
        self.files: dict[str, File] = {}
        for path, fields in tree["files"].items():
            self.files[path] = File(**fields)
        # Counts changes: a real clock would make episodes differ between machines.
        self._clock = 0

    # -- looking up --------------------------------------------------------------------------------

    @staticmethod
    def normal(path: str) -> str:
        """Returns an absolute path without '.', '..' or doubled slashes.

        A relative path starts at the root.
        """
        path = posixpath.normpath("/" + path)
        # POSIX leaves two slashes at the beginning as they are.
        return "/" + path.lstrip("/")

    def file(self, path: str) -> tuple[str, File]:
        """Returns the normal path and the file there.

        Raises:
          FileError: there is none.
        """
        path = self.normal(path)
        if path in self.directories:
            raise FileError("conflict", "is a directory")
        self._walk(path)
        if path not in self.files:
            raise FileError("unknown_path", "no such path")
        return path, self.files[path]

    def entries(self, path: str) -> list[str]:
        """Names in a directory, sorted."""
        path = self.normal(path)
        if path in self.files:
            raise FileError("conflict", "not a directory")
        self._walk(path)
        if path not in self.directories:
            raise FileError("unknown_path", "no such path")
        self._allow(self.directories[path], 0o4)
        names = []
        for inside in (*self.directories, *self.files):
            if inside != "/" and posixpath.dirname(inside) == path:
                names.append(posixpath.basename(inside))
        return sorted(names)

    def search(self, query: str) -> list[str]:
        """Paths of the files that contain the query, sorted."""
        return sorted(p for p in self.files if query in p)

    def read(self, path: str) -> str:
        """A file's text."""
        path, file = self.file(path)
        self._allow(file, 0o4)
        return file.text

    # -- changing ----------------------------------------------------------------------------------

    def delete(self, path: str) -> None:
        """Takes a file away for good."""
        path, _ = self.file(path)
        # As in POSIX, deleting changes the directory: the file's own mode does not matter.
        self._change(posixpath.dirname(path))
        del self.files[path]

    def move(self, path: str, target: str) -> str:
        """Moves a file to a path, or into an existing directory; returns the new path."""
        path, file = self.file(path)
        target = self._place(path, target)
        # All checks come before the first change: a call that fails leaves everything as it was.
        self._change(posixpath.dirname(path))
        self._change(posixpath.dirname(target))
        del self.files[path]
        self.files[target] = file
        return target

    def copy(self, path: str, target: str) -> str:
        """Copies a file to a path, or into an existing directory; returns the copy's path.

        The copy belongs to the agent.
        """
        path, file = self.file(path)
        self._allow(file, 0o4)
        target = self._place(path, target)
        self._change(posixpath.dirname(target))
        self.files[target] = dataclasses.replace(file, owner=AGENT, age=0, mtime=self._tick())
        return target

    def compress(self, path: str) -> str:
        """Replaces FILE by FILE.gz of half the size (at least 1 kB); returns the new path."""
        path, file = self.file(path)
        self._allow(file, 0o4)
        if path.endswith(".gz"):
            raise FileError("conflict", "already exists")
        target = self._place(path, path + ".gz")
        self._change(posixpath.dirname(path))
        del self.files[path]
        self.files[target] = dataclasses.replace(
            file, size=max(file.size // 2, 1), mtime=self._tick()
        )
        return target

    def write(self, path: str, text: str) -> str:
        """Writes a file anew, or over one that the agent may write to; returns its path."""
        path = self.normal(path)
        # An agent may write half of a surrogate pair, which is no UTF-8 but must not end the run.
        size = max(len(text.encode("utf-8", "surrogatepass")) // 1024, 1)
        if path in self.directories:
            raise FileError("conflict", "is a directory")
        if path in self.files:
            self._walk(path)
            self._allow(self.files[path], 0o2)
            self.files[path] = dataclasses.replace(
                self.files[path], text=text, size=size, age=0, mtime=self._tick()
            )
            return path
        self._parent(path)
        self._change(posixpath.dirname(path))
        self.files[path] = File(size, 0, AGENT, text, mtime=self._tick())
        return path

    def state(self) -> dict[str, tuple]:
        """Returns every file's size, text and owner by path: what the success checks compare.

        Times are no part of it, as detours change them.
        """
        out = {}
        for path, file in self.files.items():
            out[path] = (file.size, file.text, file.owner)
        return out

    # -- rules -------------------------------------------------------------------------------------

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _allow(self, node: File | Directory, bit: int) -> None:
        """Checks a permission bit (4 read, 2 write, 1 search), the owner's or everybody's."""
        # There are no groups here: the middle digit of a mode has no effect.
        granted = node.mode >> 6 if node.owner == AGENT else node.mode
        if not granted & bit:
            raise FileError("conflict", "permission denied")

    def _walk(self, path: str) -> None:
        """Every existing directory above the path must be searchable."""
        parent = posixpath.dirname(path)
        while parent != "/":
            if parent in self.directories:
                self._allow(self.directories[parent], 0o1)
            parent = posixpath.dirname(parent)

    def _change(self, directory: str) -> None:
        self._allow(self.directories[directory], 0o2)

    def _parent(self, path: str) -> None:
        parent = posixpath.dirname(path)
        if parent in self.files:
            raise FileError("conflict", "not a directory")
        self._walk(path)
        if parent not in self.directories:
            raise FileError("unknown_path", "no such path")

    def _place(self, source: str, target: str) -> str:
        """Where a file goes that is moved or copied to `target`, which must be free."""
        target = self.normal(target)
        if target in self.directories:
            target = posixpath.join(target, posixpath.basename(source))
        self._parent(target)
        if target in self.files or target in self.directories:
            raise FileError("conflict", "already exists")
        return target

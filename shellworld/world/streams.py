"""Where a command's input comes from and its output goes to: text in memory, or a file."""

from __future__ import annotations

from typing import Protocol

from shellworld.interpreter.result import LimitExceeded, Meter
from shellworld.world.filesystem import FileSystem, FsError, Inode
from shellworld.world.users import Credentials


class Source(Protocol):
    """An open input; readers share its position.

    What is left of it can be read whole or line by line.
    """

    def read(self) -> str:
        """Returns all that is left."""

    def readline(self) -> str:
        """Returns the next line with its newline; "" at the end."""


class Sink(Protocol):
    """An open output."""

    def write(self, text: str) -> None:
        """Takes text; raises FsError where nothing can be written."""


class TextSource:
    """A pipe's reading end or a here-document."""

    __slots__ = ("text", "at", "endless")

    def __init__(self, text: str = "", endless: bool = False):
        self.text = text
        self.at = 0
        self.endless = endless  # the writer was stopped: there would have been more

    def read(self) -> str:
        """Returns all that is left."""
        text = self.text[self.at :] if self.at else self.text
        self.at = len(self.text)
        return text

    def readline(self) -> str:
        """Returns the next line with its newline; "" at the end."""
        end = self.text.find("\n", self.at) + 1 or len(self.text)
        line, self.at = self.text[self.at : end], end
        return line


class FileSource:
    """A file opened for reading: sees what is written to it meanwhile."""

    __slots__ = ("node", "at")

    def __init__(self, node: Inode):
        self.node = node
        self.at = 0

    def read(self) -> str:
        """Returns all that is left, as the file is now; EISDIR for a directory."""
        if self.node.entries is not None:
            raise FsError("EISDIR")
        text = self.node.content[self.at :]
        self.at += len(text)
        return text

    def readline(self) -> str:
        """Returns the next line with its newline; "" at the end; EISDIR for a directory."""
        if self.node.entries is not None:
            raise FsError("EISDIR")
        content = self.node.content
        end = content.find("\n", self.at) + 1 or len(content)
        line, self.at = content[self.at : end], max(end, self.at)
        return line


class TextSink:
    """A pipe's writing end, or what the caller of the shell gets."""

    __slots__ = ("parts", "meter")

    def __init__(self, meter: Meter):
        self.parts: list[str] = []
        self.meter = meter

    def write(self, text: str) -> None:
        """Keeps text, and counts it against the line's limit."""
        self.meter.write(len(text))
        self.parts.append(text)

    def text(self) -> str:
        """Returns all that was written."""
        return "".join(self.parts)


class PipeSink(TextSink):
    """A pipe between commands: bounded by itself, not counted as output of the line."""

    __slots__ = ("endless", "left")

    def __init__(self, limit: int):
        self.endless = False  # the writer would have gone on
        self.parts: list[str] = []
        self.left = limit

    def write(self, text: str) -> None:
        """Keeps text up to the limit of a pipe; LimitExceeded beyond it."""
        self.left -= len(text)
        if self.left < 0:
            raise LimitExceeded("output", 137)
        self.parts.append(text)


class FileSink:
    """A file opened for writing; `append` moves to the end before each write, as O_APPEND does."""

    __slots__ = ("fs", "node", "append", "at", "who")

    def __init__(self, fs: FileSystem, node: Inode, append: bool, who: Credentials):
        self.fs = fs
        self.node = node
        self.append = append
        self.at = 0
        self.who = who

    def write(self, text: str) -> None:
        """Writes at this sink's position, or at the file's end if it appends."""
        self.at = self.fs.write_node(self.node, text, None if self.append else self.at, self.who)


class NullSink:
    """/dev/null."""

    __slots__ = ()

    def write(self, text: str) -> None:
        """Forgets the text."""
        pass


class BadSink:
    """A closed output."""

    __slots__ = ()

    def write(self, text: str) -> None:
        """Fails with EBADF, as a closed descriptor does, if there is anything to write."""
        if text:
            raise FsError("EBADF", "Bad file descriptor")


class LostSink(BadSink):
    """A closed standard error: complaints are lost, and nobody minds."""

    __slots__ = ()

    def write(self, text: str) -> None:
        """Forgets the text."""
        pass

"""Where a command's input comes from and its output goes to: text in memory, or a file of the
simulated file system.
"""

from __future__ import annotations

from typing import Protocol

from shellworld.interpreter.result import LimitExceeded, Meter
from shellworld.world.filesystem import FileSystem, FsError, Inode
from shellworld.world.users import Credentials


class Source(Protocol):
    """An open input: what is left of it can be read whole or line by line; readers share its
    position.
    """

    def read(self) -> str: ...

    def readline(self) -> str: ...


class Sink(Protocol):
    """An open output."""

    def write(self, text: str) -> None: ...


class TextSource:
    """A pipe's reading end or a here-document."""

    __slots__ = ("text", "at", "endless")

    def __init__(self, text: str = "", endless: bool = False):
        self.text = text
        self.at = 0
        self.endless = endless  # the writer was stopped: there would have been more

    def read(self) -> str:
        text = self.text[self.at :] if self.at else self.text
        self.at = len(self.text)
        return text

    def readline(self) -> str:
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
        if self.node.entries is not None:
            raise FsError("EISDIR")
        text = self.node.content[self.at :]
        self.at += len(text)
        return text

    def readline(self) -> str:
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
        self.meter.write(len(text))
        self.parts.append(text)

    def text(self) -> str:
        return "".join(self.parts)


class PipeSink(TextSink):
    """A pipe between commands: bounded by itself, not counted as output of the line."""

    __slots__ = ("left",)

    def __init__(self, limit: int):
        self.parts: list[str] = []
        self.left = limit

    def write(self, text: str) -> None:
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
        self.at = self.fs.write_node(self.node, text, None if self.append else self.at, self.who)


class NullSink:
    """/dev/null."""

    __slots__ = ()

    def write(self, text: str) -> None:
        pass


class BadSink:
    """A closed output."""

    __slots__ = ()

    def write(self, text: str) -> None:
        if text:
            raise FsError("EBADF", "Bad file descriptor")


class LostSink(BadSink):
    """A closed standard error: complaints are lost, and nobody minds."""

    __slots__ = ()

    def write(self, text: str) -> None:
        pass

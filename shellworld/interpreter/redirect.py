"""Redirections: the open files of a command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shellworld.interpreter.result import Unsupported
from shellworld.interpreter.variables import ShellError
from shellworld.language import ast
from shellworld.world.filesystem import FsError
from shellworld.world.streams import (
    BadSink,
    FileSink,
    FileSource,
    LostSink,
    NullSink,
    Sink,
    Source,
    TextSource,
)

if TYPE_CHECKING:
    from shellworld.interpreter.shell import Shell

# Open files by number, each a Sink or a Source: which, its user finds out, as with real ones.
Files = dict[int, Any]
_NULL = NullSink()


def apply_redirects(
    shell: Shell, redirects: tuple[ast.Redirect, ...], files: Files | None = None
) -> Files:
    """Returns a new table of open files after redirections, from left to right.

    Raises:
      ShellError: a redirection fails, with bash's complaint.
    """
    files = dict(shell.files if files is None else files)
    try:
        for redirect in redirects:
            operator = redirect.operator
            if operator == "<<":
                files[redirect.fd] = TextSource(shell.expander.text(redirect.target))
            elif operator == "<<<":
                files[redirect.fd] = TextSource(shell.expander.text(redirect.target) + "\n")
            else:
                _open(shell, redirect, files)
            _check_outputs(files)
    except ShellError as error:
        error.stderr = files[2]  # the complaint goes where stderr leads by then
        raise
    return files


def _check_outputs(files: Files) -> None:
    """Standard output and error that were opened for reading are as good as closed."""
    for fd in (1, 2):
        if not hasattr(files.get(fd), "write"):
            files[fd] = _closed(fd)


def _closed(fd: int) -> BadSink:
    return LostSink() if fd == 2 else BadSink()


def _target(shell: Shell, word: ast.Word) -> str:
    if word.plain is not None:
        return word.plain
    words = shell.expander.words((word,))
    if len(words) != 1:
        text = ""
        for part in word.parts:
            if isinstance(part, ast.Literal):
                text += part.text
            elif isinstance(part, ast.Parameter):
                text += f"${part.name}"
        raise ShellError(f"{text}: ambiguous redirect")
    return words[0]


def _open(shell: Shell, redirect: ast.Redirect, files: Files) -> None:
    operator, fd = redirect.operator, redirect.fd
    target = _target(shell, redirect.target)
    if operator in ("<&", ">&"):
        if target.isdigit():
            source = int(target)
            if source not in files:
                if source == 0:
                    files.pop(fd, None)
                    return
                raise ShellError(f"{target}: Bad file descriptor")
            found = files[source]
            files[fd] = _closed(fd) if isinstance(found, BadSink) else found
            return
        if target == "-":
            if fd in (1, 2):
                files[fd] = _closed(fd)
            else:
                files.pop(fd, None)
            return
        if operator == "<&" or fd != 1:
            raise ShellError(f"{target}: ambiguous redirect")
        operator = "&>"
    try:
        if operator == "<":
            opened = open_source(shell, target, files)
            if opened is None:
                files.pop(fd, None)
            else:
                files[fd] = opened
        elif operator in ("&>", "&>>"):
            files[1] = files[2] = _open_sink(shell, target, files, operator == "&>>", False)
        else:
            exclusive = operator == ">" and "C" in shell.options
            files[fd] = _open_sink(shell, target, files, operator == ">>", exclusive)
    except FsError as error:
        message = "cannot overwrite existing file" if error.code == "EEXIST" else error.message
        raise ShellError(f"{target}: {message}") from error


def _descriptor(path: str) -> int | None:
    """The number that /dev/stdout, /dev/fd/1 and the like stand for."""
    if path in ("/dev/stdin", "/dev/stdout", "/dev/stderr"):
        return ("/dev/stdin", "/dev/stdout", "/dev/stderr").index(path)
    prefix, _, digits = path.rpartition("/")
    return (
        int(digits)
        if prefix in ("/dev/fd", "/proc/self/fd") and digits in tuple("0123456789")
        else None
    )


def open_source(shell: Shell, path: str, files: Files) -> Source | None:
    """Opens for reading; None is an input without anything in it."""
    number = _descriptor(path)
    if number is not None:
        found = files.get(number)
        if number and found is None:
            raise FsError("ENOENT")
        if found is not None and not hasattr(found, "read"):
            raise Unsupported("reading from an output")
        return found
    if path == "/dev/tty":
        raise FsError("ENXIO")
    node = shell.fs.open_read(shell.absolute(path), shell.who)
    if node.kind == "device":
        return None
    return FileSource(node)


def _open_sink(shell: Shell, path: str, files: Files, append: bool, exclusive: bool) -> Sink:
    number = _descriptor(path)
    if number is not None:
        found = files.get(number)
        if found is None:
            raise FsError("ENOENT")
        if not hasattr(found, "write"):
            raise Unsupported("writing to an input")
        return found
    if path == "/dev/tty":
        raise FsError("ENXIO")
    if path == "/dev/null":
        return _NULL
    absolute = shell.absolute(path)
    if (
        exclusive
        and (node := shell.fs.find(absolute, shell.who)) is not None
        and node.kind == "device"
    ):
        exclusive = False
    node = shell.fs.open_write(absolute, shell.who, append, exclusive=exclusive)
    return FileSink(shell.fs, node, append, shell.who)

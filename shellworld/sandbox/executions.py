"""What a line in the sandbox executes, as the kernel tells it.

The filter of system calls of every process of a line (see `kernel.filter_calls`) stops `execve`,
`execveat` and `exit_group` until the line's first process has looked at them and let them go on. No
program can get around it: a process keeps the filter, and so do its children. `Watch` reads which
file is executed with which arguments, by whom, and with which status the process ends.

What the record does NOT hold:
  * builtins, functions and subshells of bash, which are no executions for the kernel (`umask` is a
    builtin: a line that sets it leaves no trace here);
  * which execution changed what: changes are those of the line as a whole;
  * the status of a process that a signal ended;
  * an executable that only its own permissions' access list allows or forbids to be executed;
  * what a process that has threads of its own, or shares memory with another, writes over its
    arguments at the very moment: the record is for honest lines, and no means of security.

Runs inside the sandbox's own process, which has the standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import posixpath
import stat
import struct
from collections.abc import Sequence
from typing import Any

from shellworld.interpreter.record import LONGEST, MOST, Bounds
from shellworld.reading.related import NAMES, permission_related
from shellworld.sandbox import kernel

_PLACES = ("/usr/bin", "/usr/sbin", "/usr/local/sbin")
_LARGEST = 1 << 20  # bytes of a file that may be a copy of a permission-related program
_POINTER = 8


class Watch:
    """The executions of one line.

    Attributes:
      executions: as in `Execution`, with the user's number.
      unseen: as in `Record`.
    """

    def __init__(self, shell: int):
        self._unreadable = {shell}  # processes of ours, until they have become programs
        self._bounds = Bounds()
        self._current: dict[int, dict[str, Any]] = {}  # pid -> what runs in it
        self._callers: dict[int, int] = {}  # pid of a command under sudo -> pid of the sudo
        self._count = 0
        self.executions: list[dict[str, Any]] = []
        self.unseen: int | None = None

    @property
    def left_out(self) -> int:
        """How many executions there was no room for."""
        return self._count - len(self.executions)

    def under_sudo(self, command: int, caller: int) -> None:
        """Tells that the process `command` is to run what the process `caller`, a sudo, asks."""
        self._callers[command] = caller
        self._unreadable.add(command)

    def serve(self, listener: int) -> bool:
        """Looks at one stopped call and lets it go on; False where the listener has no more."""
        call = kernel.stopped_call(listener)
        if call is None:
            return False
        try:
            if call.number == kernel.EXIT_GROUP:
                self._ended(call.pid, call.arguments[0] & 255)
            else:
                self._executed(call)
                self._unreadable.discard(call.pid)
        except (OSError, ValueError):
            alive = os.path.exists(f"/proc/{call.pid}")
            if alive and call.pid not in self._unreadable and self.unseen is None:
                self.unseen = len(self.executions)
        finally:
            kernel.let_go_on(listener, call)
        return True

    def _ended(self, pid: int, status: int) -> None:
        execution = self._current.pop(pid, None)
        if execution is not None:
            execution["status"] = status
            # A sudo that never ran anything has refused.
            execution["refused"] = execution.pop("waits", False) and bool(status)

    def announced(self, message: bytes) -> None:
        """Takes what a process is about to execute from itself.

        Before its first program, a process of ours cannot be read by anybody.

        Args:
          message: what `announcement` made; empty for the line's shell.
        """
        if message:
            said = json.loads(message)
            self._add(said["pid"], said["file"], said["words"], said["user"])

    def _executed(self, call: kernel.Call) -> None:
        memory = _Memory(call.pid)
        try:
            at = call.number == kernel.EXECVEAT
            path = memory.text(call.arguments[1 if at else 0], 4096)
            words = memory.words(call.arguments[2 if at else 1])
        finally:
            memory.close()
        base = f"/proc/{call.pid}/cwd"
        if at and call.arguments[0] & 0xFFFFFFFF != kernel.AT_FDCWD:
            base = f"/proc/{call.pid}/fd/{call.arguments[0] & 0xFFFFFFFF}"
        path = posixpath.join(os.readlink(base), path).rstrip("/")
        user, groups = _credentials(call.pid)
        root = os.open(f"/proc/{call.pid}/root", os.O_PATH | os.O_CLOEXEC)
        try:
            found = executable(root, path, user, groups)
        finally:
            os.close(root)
        if found is not None:  # else the call will fail, as those along PATH do
            self._add(call.pid, found, words, user)

    def _add(self, pid: int, found: Sequence[str], words: Sequence[str], user: int) -> None:
        """Notes that a process becomes a program."""
        kind, name = found
        arguments = list(words)
        operands = [word for word in arguments[1:] if not word.startswith("-")]
        if operands and _runs_its_argument(name):
            name = posixpath.basename(operands[0])
            arguments = arguments[arguments.index(operands[0], 1) :]
        self._count += 1
        caller = self._current.get(self._callers.pop(pid, 0))
        if caller is not None:
            caller["waits"] = False
        permission = permission_related(name, arguments)
        execution: dict[str, Any] = {
            "kind": kind,
            "name": name,
            "user": user,
            "status": None,
            "permission": permission,
            "refused": False,
        }
        self._current[pid] = execution
        if name == "sudo":
            execution["waits"] = True
        if self._bounds.admits(permission, name):
            execution["arguments"], execution["cut"] = self._bounds.arguments(arguments[1:])
            self.executions.append(execution)


def announcement(words: Sequence[str], search: str) -> bytes:
    """Says what this process is about to execute, for `Watch.announced`.

    Args:
      words: the command, whose name is looked for as `execvp` does.
      search: the directories to look in, as in PATH.
    """
    user, groups = os.getuid(), frozenset((*os.getgroups(), os.getgid()))
    root = os.open("/", os.O_PATH | os.O_CLOEXEC)
    for directory in [""] if "/" in words[0] else search.split(":"):
        path = posixpath.join(os.getcwd(), directory, words[0])
        file = executable(root, path, user, groups)
        if file is not None:
            kept = [word[: LONGEST + 1] for word in words[: MOST + 2]]
            said = {"pid": os.getpid(), "file": file, "words": kept, "user": user}
            return json.dumps(said).encode()
    return b""


def _runs_its_argument(name: str) -> bool:
    """Says whether a program is another by its first argument: busybox, or the dynamic loader."""
    return name in ("busybox", "toybox") or posixpath.basename(name).startswith("ld-linux")


class _Memory:
    """Another process's memory, to read strings from."""

    def __init__(self, pid: int):
        self._fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._fd)

    def text(self, address: int, longest: int) -> str:
        """Returns the string at an address, as far as its first `longest` bytes."""
        data = b""
        while len(data) < longest and b"\0" not in data:
            # To the end of the page at most: the next one may not be there.
            size = min(longest - len(data), 4096 - (address + len(data)) % 4096)
            part = os.pread(self._fd, size, address + len(data))
            if not part:
                break
            data += part
        return os.fsdecode(data.partition(b"\0")[0])

    def words(self, address: int) -> Sequence[str]:
        """Returns the strings of a vector of arguments, no more and no longer than are kept."""
        words: list[str] = []
        while address and len(words) <= MOST + 1:
            raw = os.pread(self._fd, _POINTER, address + _POINTER * len(words))
            pointer = struct.unpack("=Q", raw)[0]
            if not pointer:
                break
            words.append(self.text(pointer, LONGEST + 1))
        return words


def _credentials(pid: int) -> tuple[int, frozenset[int]]:
    """A process's effective user, and its groups with the effective one."""
    with open(f"/proc/{pid}/status") as file:
        facts = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    groups = {int(group) for group in facts["Groups"].split()}
    return int(facts["Uid"].split()[1]), frozenset(groups | {int(facts["Gid"].split()[1])})


def executable(root: int, path: str, user: int, groups: frozenset[int]) -> tuple[str, str] | None:
    """Returns what a file is to a record of executions.

    Args:
      root: handle of the directory that the path begins at.
      path: where it is.
      user, groups: who is to execute it.

    Returns:
      (kind, name) as in `Execution`; None if it is not there or may not be executed.
    """
    try:
        file = kernel.open_in_root(root, path)
    except OSError:
        return None
    try:
        facts = os.fstat(file)
        if not stat.S_ISREG(facts.st_mode) or not _may_execute(facts, user, groups):
            return None
        place = os.readlink(f"/proc/self/fd/{file}")
        directory, name = posixpath.split(place)
        if directory in _PLACES or place.startswith("/usr/lib"):
            return "program", name
        with open(f"/proc/self/fd/{file}", "rb") as content:
            if content.read(4) != b"\x7fELF":
                return "script", place
            return "program", _copied(content.fileno(), facts.st_size) or place
    except PermissionError:  # it may be executed and not be read
        return "program", place
    finally:
        os.close(file)


def _may_execute(facts: os.stat_result, user: int, groups: frozenset[int]) -> bool:
    if user == 0:
        return bool(facts.st_mode & 0o111)
    if user == facts.st_uid:
        return bool(facts.st_mode & 0o100)
    return bool(facts.st_mode & (0o010 if facts.st_gid in groups else 0o001))


def _copied(fd: int, size: int) -> str | None:
    """The permission-related program that a file is a copy of."""
    for name in sorted(NAMES):
        with contextlib.suppress(OSError), open(f"/usr/bin/{name}", "rb") as original:
            same_size = os.fstat(original.fileno()).st_size == size <= _LARGEST
            if same_size and original.read() == os.pread(fd, size, 0):
                return name
    return None

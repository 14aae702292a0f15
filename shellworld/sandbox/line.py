"""One line in its world: the shell, the commands that it runs through sudo, its limits and its end.

Runs inside the sandbox's own process, which has the standard library only and is the first process
of a process namespace; all else in there belongs to the line and ends with it. The shell and all
that it starts has no capabilities (unless the world's user is root) and sees the world's files,
read-only programs and a few devices.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import signal
import socket
import time
from typing import Any

from shellworld.sandbox import kernel
from shellworld.sandbox.executions import Watch, announcement

WORLD = "/world"
STATE_IN, STATE_OUT = 200, 201  # descriptors that carry a session's variables from line to line
SUDO_PORT = 1  # on the sandbox's own loopback; only root there could listen on it
_CALLERS = 64  # that may wait for sudo at one time
_GRACE = 0.1  # seconds for what still runs when the shell ends
_WATCH = 0.02  # seconds between two looks at the memory of a line
_DEATH = 5.0  # seconds that killed processes may take to be gone
# Bytes that the buffers of a socket can hold both ways: the kernel's default, which the filter
# lets nobody raise.
_SOCKET_BUFFERS = 2 * 212_992
_OVER = {"time": 124, "output": 137, "memory": 137}  # the exit code after a limit

# `sudo` keeps its open files where no redirection of its own touches them, says who it is, and
# waits for the status.
_SUDO_FILES = (3, 4, 5)
_SECURE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SUDO = f"""#!/bin/bash
exec 3<&0 4>&1 5>&2 {{line}}<>/dev/tcp/127.0.0.1/{SUDO_PORT} || exit 1
echo $$ >&"$line"
read -r -u "$line" status
exit "$status"
"""


def watch_children() -> int:
    """Returns a descriptor that can be read from when a child ends.

    Also makes the signals of others harmless to this process.
    """
    wake, wake_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.set_wakeup_fd(wake_end, warn_on_full_buffer=False)
    return wake


def _become(
    watcher: socket.socket, uid: int, gid: int, groups: list[int], words: list[str], search: str
) -> None:
    """Takes the last steps before a program of the line.

    They are its user, its capabilities, its filter, and signals as by default.

    The listener of the filter goes to whoever reads from `watcher`'s other end, with what is about
    to be executed.

    Args:
      watcher: see above.
      uid, gid, groups: the user.
      words: the command, or nothing for the line's own shell.
      search: where its name is looked for.
    """
    # Python ignores some signals, and whoever started it may ignore others (nohup, a shell's &): a
    # line would see that in `trap`, and could not catch them.
    for number in signal.valid_signals():
        if signal.getsignal(number) is not signal.SIG_DFL:
            with contextlib.suppress(OSError):  # KILL and STOP
                signal.signal(number, signal.SIG_DFL)
    kernel.bound(kernel.CAPABILITIES_OF_ROOT if uid == 0 else ())
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    announced = announcement(words, search) if words else b""
    listener = kernel.filter_calls()
    if listener is not None:
        socket.send_fds(watcher, [announced], [listener])
        os.close(listener)


class Line:
    """A line that runs.

    Args:
      job: "line", "who" (uid, gid, groups), "cwd", "umask", "environment", "accounts", "sudoers",
        "limits" and "keep".
      wake: what `watch_children` gave.
      state: with `keep`, open files with the variables of the lines before, and for those of this
        one.
    """

    def __init__(self, job: dict[str, Any], wake: int, state: tuple[int, int] | None):
        self.job = job
        self.wake = wake
        self.sudo = socket.socket()
        self.sudo.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sudo.bind(("127.0.0.1", SUDO_PORT))
        self.sudo.listen(_CALLERS)
        self.sudo.setblocking(False)
        self.silent: dict[
            int, socket.socket
        ] = {}  # descriptor -> a caller that has not said yet who it is
        self.callers: dict[
            int, socket.socket
        ] = {}  # pid of a command under sudo -> who waits for its status
        out, out_end = os.pipe()
        err, err_end = os.pipe()
        self.pipes = {out: bytearray(), err: bytearray()}
        self.status: int | None = None  # of the shell, when it has ended
        # Over this pair, each process that begins sends the listener of its filter.
        self.listeners: set[int] = set()
        self.new_listeners, self.watcher = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.shell = os.fork()
        if not self.shell:
            self._shell(out_end, err_end, state)
        self.watch = Watch(self.shell)
        self.watched = False
        os.close(out_end)
        os.close(err_end)

    def _shell(self, out: int, err: int, state: tuple[int, int] | None) -> None:
        """In a child: becomes the shell."""
        try:
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            os.dup2(out, 1)
            os.dup2(err, 2)
            for fd, number in zip(state or (), (STATE_IN, STATE_OUT), strict=False):
                os.dup2(fd, number)
            kernel.own_mounts()
            kernel.enter_root(WORLD)
            try:
                self._limit()
            except ValueError:  # this process's own limits are lower
                raise OSError(errno.EPERM, "the limits cannot be set") from None
            os.setsid()
            os.umask(int(self.job["umask"], 8))
            uid, gid, groups = self.job["who"]
            _become(self.watcher, uid, gid, groups, [], "")
            environment = dict(self.job["environment"])
            with contextlib.suppress(OSError):
                os.chdir(self.job["cwd"])
            if state:
                environment["BASH_ENV"] = f"/proc/self/fd/{STATE_IN}"
            os.execve("/bin/bash", [b"bash", b"-c", os.fsencode(self.job["line"])], environment)
        except ValueError:
            os.write(2, b"bash: a line cannot have a zero byte\n")
        except OSError as error:
            os.write(2, f"bash: {error.strerror}\n".encode())
        finally:
            os._exit(126)

    def _limit(self) -> None:
        limits = self.job["limits"]
        for name, value in (
            (resource.RLIMIT_AS, limits["memory"]),
            (resource.RLIMIT_NPROC, limits["processes"]),
            (resource.RLIMIT_CPU, limits["cpu"]),
            (resource.RLIMIT_FSIZE, limits["file"]),
            (resource.RLIMIT_NOFILE, limits["open_files"]),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_MEMLOCK, 0),
            (resource.RLIMIT_MSGQUEUE, 0),
            (resource.RLIMIT_SIGPENDING, 256),
            (resource.RLIMIT_STACK, 8 << 20),
        ):
            resource.setrlimit(name, (value, value))

    def finish(self) -> tuple[bytes, bytes, int]:
        """Waits for the end of the line, and ends all that is left of it.

        That is when the shell has ended and what it left had its moment, or a limit is gone over.

        Returns:
          stdout, stderr, exit code.
        """
        over = self._wait()
        self._end()
        room = self.job["limits"]["output"]
        out, err = (bytes(text[:room]) for text in self.pipes.values())
        if over:
            return out, err + f"sandbox: {over} limit exceeded\n".encode(), _OVER[over]
        assert self.status is not None  # no limit was gone over, so the shell has ended
        return out, err, self.status if self.status >= 0 else 128 - self.status

    def _wait(self) -> str:
        """The limit that was gone over, or ""."""
        limits = self.job["limits"]
        poll = select.poll()
        for fd in (self.wake, self.sudo.fileno(), self.new_listeners.fileno(), *self.pipes):
            poll.register(fd, select.POLLIN)
        end, grace = time.monotonic() + limits["wall"], None
        looked = time.monotonic()  # at the memory of the line
        while True:
            events = dict(poll.poll(_WATCH * 1000))
            ready = list(events)
            for fd in ready:
                if fd in self.listeners:
                    served = events[fd] & select.POLLIN and self.watch.serve(fd)
                    # When no process has its filter any more, a listener only says so.
                    if not served and events[fd] & (select.POLLHUP | select.POLLERR):
                        poll.unregister(fd)
                        self.listeners.discard(fd)
                        os.close(fd)
                elif fd == self.new_listeners.fileno():
                    poll.register(self._listen(), select.POLLIN)
                elif fd in self.pipes:
                    if not self._read(fd):
                        poll.unregister(fd)
                elif fd == self.wake:
                    os.read(fd, 4096)
                elif fd in self.silent:
                    poll.unregister(fd)
                    self._serve(self.silent.pop(fd))
                elif len(self.silent) + len(self.callers) < _CALLERS:
                    with contextlib.suppress(OSError):  # it may have gone away meanwhile
                        caller, _ = self.sudo.accept()
                        self.silent[caller.fileno()] = caller
                        poll.register(caller, select.POLLIN)
            if sum(map(len, self.pipes.values())) > limits["output"]:
                return "output"
            alone = self.wake in ready and self._reap()
            now = time.monotonic()
            if self.status is not None:
                grace = grace or now + _GRACE
                if alone or now > grace:
                    return ""
            elif now > end:
                return "time"
            elif now > looked + _WATCH:
                looked = now
                if _memory() > limits["memory_together"]:
                    return "memory"

    def _listen(self) -> int:
        """Takes the listener of a process that begins."""
        message, (listener,), _, _ = socket.recv_fds(self.new_listeners, 1 << 18, 1)
        self.watch.announced(message)
        self.listeners.add(listener)
        self.watched = True
        return listener

    def _read(self, fd: int) -> bool:
        data = os.read(fd, 65536)
        self.pipes[fd] += data
        return bool(data)

    def _reap(self) -> bool:
        """Takes the ends of processes; whether none is left."""
        while True:
            try:
                pid, code = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if not pid:
                return False
            if pid == self.shell:
                self.status = os.waitstatus_to_exitcode(code)
            elif pid in self.callers:
                self._answer(self.callers.pop(pid), os.waitstatus_to_exitcode(code))

    def _end(self) -> None:
        """Kills all that is left, and reads what it still had said.

        Raises:
          TimeoutError: it does not die.
        """
        end = time.monotonic() + _DEATH
        while not self._reap():
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)  # all in this namespace but this process, the first one
            if time.monotonic() > end:
                raise TimeoutError("processes of the line cannot be ended")
            time.sleep(0.001)
        for fd in self.pipes:
            while len(self.pipes[fd]) <= self.job["limits"]["output"] and self._read(fd):
                pass
            os.close(fd)
        for connection in (self.sudo, *self.silent.values(), *self.callers.values()):
            connection.close()
        for listener in self.listeners:
            os.close(listener)
        self.new_listeners.close()
        self.watcher.close()

    # -- sudo ----------------------------------------------------------------------

    def _serve(self, caller: socket.socket) -> None:
        try:
            pid = int(caller.recv(32, socket.MSG_DONTWAIT))
            child = os.fork()
            if not child:
                self._command(pid)
            self.callers[child] = caller
            self.watch.under_sudo(child, pid)
        except (OSError, ValueError):
            self._answer(caller, 1)

    @staticmethod
    def _answer(caller: socket.socket, status: int) -> None:
        with contextlib.suppress(OSError):  # it may have been killed meanwhile
            caller.send(
                b"%d\n" % (status if status >= 0 else 128 - status),
                socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT,
            )
        caller.close()

    def _command(self, pid: int) -> None:
        """In a child: runs what the process `pid`, the `sudo` that was called, asked for.

        The command gets the open files and the directory of that process.
        """
        status = 1
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                shell, program, *words = [
                    os.fsdecode(word) for word in file.read().split(b"\0")[:-1]
                ]
            if (shell, program) != ("/bin/bash", "/usr/local/sbin/sudo"):
                return  # whoever that is did not call sudo, and has no open files for it
            for fd, theirs in enumerate(_SUDO_FILES):
                os.dup2(kernel.duplicate(pid, theirs), fd)
            with open(f"/proc/{pid}/environ", "rb") as file:
                pairs = [os.fsdecode(pair).partition("=") for pair in file.read().split(b"\0")]
            with open(f"/proc/{pid}/status") as file:
                facts = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
            request = Request(
                words, {name: value for name, _, value in pairs if name}, self.job["accounts"]
            )
            caller = int(facts["Uid"].split()[0])
            if caller and caller not in self.job["sudoers"]:
                raise SudoError("a password is required")
            directory = os.open(f"/proc/{pid}/cwd", os.O_PATH | os.O_DIRECTORY)
            kernel.setns(os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY), kernel.NEWNS)
            os.fchdir(directory)
            self._limit()
            os.umask(int(facts["Umask"], 8))
            environment = request.environment(caller)
            _become(self.watcher, *request.who, request.words, environment["PATH"])
            try:
                os.execvpe(request.words[0], request.words, environment)
            except FileNotFoundError:
                raise SudoError(f"{request.words[0]}: command not found") from None
            except OSError as error:
                raise SudoError(f"unable to execute {request.words[0]}: {error.strerror}") from None
        except SudoError as error:
            os.write(2, f"sudo: {error}\n".encode("utf-8", "surrogateescape"))
        except (OSError, ValueError):
            pass  # the caller is gone, or no caller; its own shell says so
        finally:
            os._exit(status)


class SudoError(Exception):
    """Why sudo did not run a command."""


class Request:
    """The words of a sudo command, read as sudo reads them."""

    def __init__(
        self, words: list[str], environment: dict[str, str], accounts: list[dict[str, Any]]
    ):
        self.accounts = accounts
        self.given = environment
        self.variables: dict[str, str] = {}
        user, group, shell = "root", None, False
        self.home = True
        words = list(words)
        while words and words[0].startswith("-") and words[0] != "-":
            word = words.pop(0)
            if word == "--":
                break
            letters = {
                "--user": "u",
                "--group": "g",
                "--non-interactive": "n",
                "--shell": "s",
                "--login": "i",
            }
            name, equals, value = word.partition("=")
            if word.startswith("--"):
                if name not in letters:
                    raise SudoError(f"unrecognized option '{word}'")
                word = "-" + letters[name]
                if equals:
                    words.insert(0, value)
            for at, letter in enumerate(word[1:], 2):
                if letter in "ug":
                    value = word[at:] or (words.pop(0) if words else "")
                    user, group = (value, group) if letter == "u" else (user, value)
                    break
                if letter in "si":
                    shell = True
                elif letter not in "nEHSkAP":
                    raise SudoError(f"invalid option -- '{letter}'")
        while words and "=" in words[0] and not words[0].startswith("="):
            name, _, value = words.pop(0).partition("=")
            self.variables[name] = value
        if shell:
            words = ["/bin/bash", *(["-c", " ".join(words)] if words else [])]
        if not words:
            raise SudoError("a command is required")
        self.words = words
        self.account = self._find(user, "user")
        self.who = (self.account["uid"], self.account["gid"], self.account["groups"])
        if group is not None:
            gids = {
                name: gid for account in accounts for name, gid in account["group_names"].items()
            }
            gid = gids.get(
                group, int(group[1:]) if group[:1] == "#" and group[1:].isdigit() else None
            )
            if gid is None:
                raise SudoError(f"unknown group {group}")
            self.who = (self.who[0], gid, self.who[2])

    def _find(self, name: str, what: str) -> dict[str, Any]:
        for account in self.accounts:
            if name in (account["name"], f"#{account['uid']}"):
                return account
        raise SudoError(f"unknown {what} {name}")

    def environment(self, caller: int) -> dict[str, str]:
        """The reset variables that a command under sudo starts with."""
        kept = {
            name: value
            for name, value in self.given.items()
            if name in ("TERM", "LANG", "LC_ALL", "DISPLAY")
        }
        by = self._find(f"#{caller}", "user")
        name, home = self.account["name"], self.account["home"]
        return {
            **kept,
            "HOME": home,
            "LOGNAME": name,
            "MAIL": f"/var/mail/{name}",
            "PATH": _SECURE_PATH,
            "SHELL": "/bin/bash",
            "SUDO_COMMAND": " ".join(self.words),
            "SUDO_GID": str(by["gid"]),
            "SUDO_UID": str(caller),
            "SUDO_USER": by["name"],
            "USER": name,
            **self.variables,
        }


def _memory() -> int:
    """Bytes that the processes of this namespace hold together, and that sockets can hold."""
    pages = 0
    for name in os.listdir("/proc"):
        if name.isdigit() and name != "1":
            try:
                with open(f"/proc/{name}/statm") as file:
                    resident, shared = file.read().split()[1:3]
            except (OSError, ValueError):
                continue
            pages += int(resident) - int(shared)
    return pages * resource.getpagesize() + _sockets() * _SOCKET_BUFFERS


def _sockets() -> int:
    """How many sockets there are in this network, also those on the way in messages."""
    with open("/proc/net/sockstat") as file:
        return int(file.readline().split()[-1])

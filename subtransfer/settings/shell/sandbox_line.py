"""One line in its world: the first process of the line's own pid namespace, the shell under it, and sudo.

Runs inside the sandbox's own process, which has the standard library only. The first process keeps the capabilities that
sudo needs; the shell and all that it starts has none, unless the world's user is root. Both see the world's files, read-only
programs and a few devices.
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

from . import sandbox_kernel as kernel

WORLD = "/world"
PROGRAMS = ("/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib64", "/usr/share", "/etc/alternatives", "/usr/local/sbin")
STATE_IN, STATE_OUT = 200, 201  # descriptors that carry a session's variables from line to line
SUDO_PORT = 1  # on the sandbox's own loopback; only root there could listen on it
_GRACE = 0.1  # seconds for what still runs when the shell ends
_WATCH = 0.02  # seconds between two looks at the memory of a line

# `sudo` keeps its open files where no redirection of its own touches them, says who it is, and waits for the status.
_SUDO_FILES = (3, 4, 5)
SUDO = f"""#!/bin/bash
exec 3<&0 4>&1 5>&2 {{line}}<>/dev/tcp/127.0.0.1/{SUDO_PORT} || exit 1
echo $$ >&"$line"
read -r -u "$line" status
exit "$status"
"""


def run(job: dict[str, Any]) -> int:
    """As the first process of a fresh process and mount namespace: enters the world, runs the line, returns its exit status."""
    kernel.die_with_parent()
    kernel.hide()
    _mounts()
    return _Line(job).wait()


def _mounts() -> None:
    """The world as the root, programs and devices in their places; only this line's namespace has these mounts."""
    kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    for path in (*PROGRAMS, "/dev"):
        source = "/devices" if path == "/dev" else "/sudo" if path == "/usr/local/sbin" else path
        _in_place(path)
        kernel.mount(source, WORLD + path, flags=kernel.MS_BIND | kernel.MS_REC)
    _in_place("/proc")
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("proc", WORLD + "/proc", "proc", flags, "hidepid=invisible")
    kernel.enter_root(WORLD)


def _in_place(path: str) -> None:
    """A line before this one, as root, may have moved a directory away, or set a link in its place."""
    if os.path.realpath(WORLD + path) != WORLD + path or not os.path.isdir(WORLD + path):
        raise FileNotFoundError(errno.ENOENT, f"{path} is not in its place any more")


def _become(uid: int, gid: int, groups: list[int]) -> None:
    """The last steps before a program of the line: its user, its capabilities, its filter, and signals as by default."""
    for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored_by_python, signal.SIG_DFL)
    kernel.bound(kernel.CAPABILITIES_OF_ROOT if uid == 0 else ())
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    kernel.filter_calls()


class _Line:
    """The shell of a line, the commands that it runs through sudo, and their end."""

    def __init__(self, job: dict[str, Any]):
        self.job = job
        self.wake, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self.sudo = socket.socket()
        self.sudo.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sudo.bind(("127.0.0.1", SUDO_PORT))
        self.sudo.listen(64)
        self.callers: dict[int, socket.socket] = {}  # pid of a command under sudo -> who waits for its status
        self.status: int | None = None  # of the shell, when it has ended
        self.shell = os.fork()
        if not self.shell:
            self._shell()

    def _shell(self) -> None:
        try:
            self._limit()
            os.setsid()
            os.umask(int(self.job["umask"], 8))
            _become(*self.job["who"])
            environment = dict(self.job["environment"])
            for state in (STATE_IN, STATE_OUT) if self.job["keep"] else ():
                os.set_inheritable(state, True)
            try:
                os.chdir(self.job["cwd"])
            except OSError:
                os.chdir("/")
            if self.job["keep"]:
                environment["BASH_ENV"] = f"/proc/self/fd/{STATE_IN}"
            line = os.fsencode(self.job["line"])
            os.execve("/bin/bash", [b"bash", b"-c", line], environment)
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

    def wait(self) -> int:
        """Until the shell has ended and what it left had its moment; returning ends this namespace and all in it."""
        poll = select.poll()
        poll.register(self.wake, select.POLLIN)
        poll.register(self.sudo, select.POLLIN)
        end = None
        while True:
            ready = {fd for fd, _ in poll.poll(_WATCH * 1000)}
            if self.sudo.fileno() in ready:
                self._serve()
            if self.wake in ready:
                os.read(self.wake, 4096)
                if self._reap():
                    break
            if self.status is not None:
                end = end or time.monotonic() + _GRACE
                if time.monotonic() > end:
                    break
            elif not ready and _memory() > self.job["limits"]["memory_together"]:
                os.write(2, b"sandbox: memory limit exceeded\n")
                return 137
        return self.status if self.status >= 0 else 128 - self.status

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

    # -- sudo --------------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        caller, _ = self.sudo.accept()
        caller.settimeout(1)
        try:
            pid = int(caller.recv(32))
            child = os.fork()
            if not child:
                self._command(pid)
            self.callers[child] = caller
        except (OSError, ValueError):
            self._answer(caller, 1)

    @staticmethod
    def _answer(caller: socket.socket, status: int) -> None:
        with contextlib.suppress(OSError):  # it may have been killed meanwhile
            caller.sendall(b"%d\n" % (status if status >= 0 else 128 - status), socket.MSG_NOSIGNAL)
        caller.close()

    def _command(self, pid: int) -> None:
        """In a child: what the process `pid`, the `sudo` that was called, asked for, with its open files and directory."""
        status = 1
        try:
            for fd, theirs in enumerate(_SUDO_FILES):
                os.dup2(kernel.duplicate(pid, theirs), fd)
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = [os.fsdecode(word) for word in file.read().split(b"\0")[2:-1]]
            with open(f"/proc/{pid}/environ", "rb") as file:
                pairs = [os.fsdecode(pair).partition("=") for pair in file.read().split(b"\0")]
            with open(f"/proc/{pid}/status") as file:
                facts = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
            request = Request(words, {name: value for name, _, value in pairs if name}, self.job["accounts"])
            caller = int(facts["Uid"].split()[0])
            if caller and caller not in self.job["sudoers"]:
                raise SudoError("a password is required")
            os.chdir(f"/proc/{pid}/cwd")
            self._limit()
            os.umask(int(facts["Umask"], 8))
            environment = request.environment(caller)
            _become(*request.who)
            status = 1
            try:
                os.execvpe(request.words[0], request.words, environment)
            except FileNotFoundError:
                raise SudoError(f"{request.words[0]}: command not found") from None
        except SudoError as error:
            os.write(2, f"sudo: {error}\n".encode("utf-8", "surrogateescape"))
        except OSError as error:
            os.write(2, f"sudo: {error.strerror}\n".encode())
        finally:
            os._exit(status)


class SudoError(Exception):
    """Why sudo did not run a command."""


class Request:
    """The words of a sudo command, read as sudo reads them."""

    def __init__(self, words: list[str], environment: dict[str, str], accounts: list[dict[str, Any]]):
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
            letters = {"--user": "u", "--group": "g", "--non-interactive": "n", "--shell": "s", "--login": "i"}
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
            gids = {name: gid for account in accounts for name, gid in account["group_names"].items()}
            gid = gids.get(group, int(group[1:]) if group[:1] == "#" and group[1:].isdigit() else None)
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
        kept = {name: value for name, value in self.given.items() if name in ("TERM", "LANG", "LC_ALL", "DISPLAY")}
        by = self._find(f"#{caller}", "user")
        name, home = self.account["name"], self.account["home"]
        return {
            **kept,
            "HOME": home,
            "LOGNAME": name,
            "MAIL": f"/var/mail/{name}",
            "PATH": self.given.get("PATH", "/usr/sbin:/usr/bin"),
            "SHELL": "/bin/bash",
            "SUDO_COMMAND": " ".join(self.words),
            "SUDO_GID": str(by["gid"]),
            "SUDO_UID": str(caller),
            "SUDO_USER": by["name"],
            "USER": name,
            **self.variables,
        }


def _memory() -> int:
    """Bytes that the processes of this namespace hold together."""
    pages = 0
    for name in os.listdir("/proc"):
        if name.isdigit() and name != "1":
            try:
                with open(f"/proc/{name}/statm") as file:
                    resident, shared = file.read().split()[1:3]
            except (OSError, ValueError):
                continue
            pages += int(resident) - int(shared)
    return pages * resource.getpagesize()

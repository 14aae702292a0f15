"""The real shell: bash, coreutils and acl in a bubblewrap sandbox.

Bubblewrap makes the namespaces (user, mount, process, network, ipc, host name, cgroup) and a view
of the system that has read-only programs and nothing else of this machine. A process of our own
enters them (`supervisor.py`) as the root of a user namespace that is nobody outside, and for each
line (`line.py`) builds what it needs: a world in a memory file system of bounded size with the
tree's owners, modes and ACLs, a process namespace of its own, and a shell without capabilities
behind a filter of system calls, under limits of memory, processes, CPU, file size, open files, time
and output. When the line ends, everything that it started ends. The network has a loopback and
nothing else. `sudo` in there is a small program that asks the line's first process to run a command
as the namespace's root with the capabilities that concern files, users and signals; it is heard
only if the tree gives the user sudo.

What is NOT covered:
  * errors of the kernel, of its file systems and of its namespaces: a line talks to the same
    kernel as everything else;
  * errors of the processor, timing and other side channels, and what a line can learn about the
    load of the machine;
  * the programs and libraries of this machine's /usr and the names in its /etc/alternatives, which
    lines can read and run;
  * what names the machine in the kernel's own answers: `/proc/self/mountinfo` (the file system of
    /usr), `/proc/cpuinfo`, `/proc/stat`, `/proc/loadavg`, `/proc/version`, sysinfo;
  * exhaustion that the limits allow: a line may use its CPU seconds and its memory for as long as
    its time lasts, and memory is watched from outside every 20 ms, so for that moment it can be
    more than allowed;
  * the difference between the world and a real machine: no daemons, no terminal, the programs
    belong to nobody, `sudo` is ours, times are the real clock's;
  * users who can already act as the one who starts it: it guards the machine against lines, not
    lines against the machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import selectors
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shellworld.errors import UserError
from shellworld.interpreter.result import Result
from shellworld.sandbox import kernel as sandbox_kernel
from shellworld.sandbox import line as sandbox_line
from shellworld.sandbox import users as sandbox_users
from shellworld.sandbox import world as sandbox_world
from shellworld.world import tree as trees

_TOO_LARGE = "the world has become too large, or its paths too long"
_START = 20.0  # seconds that a supervisor may take to be ready
_FAREWELL = 0.5  # seconds that it may take to leave
_SLACK = 60.0  # seconds beyond a line's own limit after which a silent supervisor is given up
_ABOVE = Path(__file__).resolve().parent.parent.parent
_BOOT = (
    "import sys; sys.path.append(sys.argv[1]); "
    "from shellworld.sandbox import supervisor; supervisor.main()"
)

# What a session's shell does before a line (then come the variables of the lines before), and when
# it ends.
_PRELUDE = f"""unset BASH_ENV
trap '{{ status=$?; declare -p; declare -f; alias -p; shopt -p; set +o; umask -p
printf "cd -- %q\\n" "$PWD"
echo "(exit $status)"; }} >&{sandbox_line.STATE_OUT} 2>/dev/null' EXIT
exec {sandbox_line.STATE_IN}<&-
"""
# Variables that are bash's own; setting some of them ends a script.
_OF_BASH = re.compile(
    r"declare -\S+ (BASH\w*|COMP_WORDBREAKS|DIRSTACK|EPOCH\w+|E?UID|FUNCNAME|GROUPS|HISTCMD"
    r"|LINENO|PIPESTATUS|PPID|S?RANDOM|SECONDS|SHELLOPTS|_|status)(=|$)"
)


@dataclasses.dataclass(frozen=True)
class SandboxLimits:
    """Bounds of one line in the sandbox.

    Attributes:
      wall, cpu: seconds, of the line and of each of its processes.
      memory, memory_together: bytes of address space of each process, and bytes that all hold
        together.
      processes, open_files: of the line's user, and of each process.
      file, disk, inodes: bytes of a file, bytes and number of files of the world.
      output: bytes of stdout and stderr together.
    """

    wall: float = 5.0
    cpu: int = 4
    memory: int = 512 << 20
    memory_together: int = 512 << 20
    processes: int = 48
    open_files: int = 256
    file: int = 8 << 20
    disk: int = 16 << 20
    inodes: int = 10_000
    output: int = 1 << 20


class Sandbox:
    """One warm sandbox: a bubblewrap, a supervisor in it, and the world that it has built last.

    Raises:
      UserError: it cannot be started on this machine; the sentence names the remedy.
    """

    def __init__(self) -> None:
        for program, package in (
            ("bwrap", "bubblewrap"),
            ("setfacl", "acl"),
            ("unshare", "util-linux"),
        ):
            if shutil.which(program) is None:
                raise UserError(
                    f"The sandbox needs the program {program}: install the package {package}."
                )
        if not sys.platform.startswith("linux") or not sandbox_kernel.supported_machine():
            raise UserError(
                "The sandbox needs Linux on x86_64 or aarch64: use the simulator (--backend=sim)."
            )
        self._stack = contextlib.ExitStack()
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        namespace, identity = self._stack.enter_context(sandbox_users.namespace())
        holder = self._stack.enter_context(_bubblewrap(namespace, identity))
        boot = [sys.executable, "-I", "-S", "-c", _BOOT, str(_ABOVE), str(holder)]
        self.process = subprocess.Popen(
            boot,
            env={},
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._stack.callback(_end, self.process)
        if "ready" not in (reply := self._receive(_START)):
            raise UserError(
                f"The sandbox cannot be set up on this machine ({reply.get('error', 'no answer')})."
            )

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Returns the supervisor's reply.

        Raises:
          UserError: it has none in that time; this sandbox is closed then.
        """
        body = json.dumps(request).encode()
        stream = self.process.stdin
        assert stream is not None  # a pipe was asked for, as are those of `_receive`
        try:
            stream.write(struct.pack("!I", len(body)) + body)
            stream.flush()
            reply = self._receive(seconds)
        except OSError:
            reply = {}
        if not reply or "error" in reply:
            self.close()
            why = reply.get("error", "it was silent or died")
            raise UserError(f"The sandbox ended without an answer ({why}).")
        return reply

    def _receive(self, seconds: float) -> dict[str, Any]:
        assert self.process.stdout is not None and self.process.stderr is not None
        stream = self.process.stdout.fileno()
        end = time.monotonic() + seconds
        data = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while len(data) < 4 or len(data) < 4 + struct.unpack("!I", data[:4])[0]:
                if not selector.select(max(end - time.monotonic(), 0)):
                    return {}
                part = os.read(stream, 1 << 16)
                if not part:
                    lines = self.process.stderr.read().decode().splitlines()
                    return {"error": lines[-1]} if lines else {}
                data += part
        return json.loads(data[4:])

    @property
    def closed(self) -> bool:
        """Whether its supervisor has ended."""
        return self.process.poll() is not None

    def close(self) -> None:
        """Ends everything in it."""
        self._stack.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SandboxSession:
    """A shell in a tree, as `session.Session` has it, by real programs.

    State lasts from line to line as an agent's tool keeps it: files, directory, variables,
    functions, aliases and options. (A line that sets its own EXIT trap, or replaces its shell with
    `exec`, leaves the variables as they were before it.)

    Args:
      tree: a tree (`tree.normalise` has been or will be applied).
      limits: bounds of each line.
      sandbox: a warm one to use, alone for as long as this session lasts; None: an own one, closed
        by `close`.
      keep: whether variables last; without, a line runs as `bash -c LINE` does, with nothing before
        or after it.
    """

    def __init__(
        self,
        tree: Mapping[str, Any],
        *,
        limits: SandboxLimits = SandboxLimits(),  # noqa: B008 (immutable)
        sandbox: Sandbox | None = None,
        keep: bool = True,
    ):
        self._tree = trees.normalise(tree)
        self._limits = limits
        self._plan: dict[str, Any] | None = sandbox_world.plan(
            self._tree, limits.disk, limits.inodes
        )
        self._own = sandbox is None
        self._sandbox = sandbox or Sandbox()
        self._keep = keep
        self._state = ""
        user = self._tree["users"][self._tree["user"]]
        self._accounts = sandbox_world.accounts(self._tree)
        mine = next(a for a in self._accounts if a["uid"] == user["uid"])
        self._job = {
            "who": [mine["uid"], mine["gid"], mine["groups"]],
            "cwd": self._tree["cwd"],
            "umask": self._tree["umask"],
            "environment": trees.environment(self._tree),
            "accounts": self._accounts,
            "sudoers": [u["uid"] for u in self._tree["users"].values() if u["sudo"]],
            "limits": dataclasses.asdict(limits),
            "keep": keep,
        }

    def _request(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._plan is not None:
            request["world"], self._plan = self._plan, None
        return self._sandbox.ask(request, self._limits.wall + _SLACK)

    def run(self, line: str) -> Result:
        """Runs a script.

        Limits end it with status 124 (time) or 137 (output, memory) and a word on stderr.

        Raises:
          UserError: the sandbox itself ended, which no line should be able to bring about.
        """
        return self._result(
            self._request({"line": self._job | {"line": line}, "state": _PRELUDE + self._state})
        )

    def run_once(self, line: str) -> tuple[Result, dict[str, Any]]:
        """Runs a script and returns the tree with its result, in one exchange.

        A world that cannot be read any more counts as a limit exceeded (137), and the tree is as it
        was at first.
        """
        reply = self._request(
            {"line": self._job | {"line": line}, "state": _PRELUDE + self._state, "dump": True}
        )
        result = self._result(reply)
        if reply["dump"] is None:
            return dataclasses.replace(
                result, exit_code=137, stderr=f"{result.stderr}sandbox: {_TOO_LARGE}\n"
            ), self._tree
        return result, sandbox_world.read(self._tree, reply["dump"])

    def _result(self, reply: Mapping[str, Any]) -> Result:
        if reply["state"]:
            self._state = _restore(reply["state"])
        record = sandbox_world.record(self._tree, reply)
        return Result(reply["stdout"], reply["stderr"], reply["status"], (), record)

    def tree(self) -> dict[str, Any]:
        """The world now, as a normal tree; UserError if it has become too large to read."""
        dump = self._request({"dump": True})["dump"]
        if dump is None:
            raise UserError(f"The sandbox cannot be read: {_TOO_LARGE}.")
        return sandbox_world.read(self._tree, dump)

    def close(self) -> None:
        """Closes the sandbox if it is this session's own."""
        if self._own:
            self._sandbox.close()


class Pool:
    """Warm sandboxes, taken one at a time; a sandbox that died is replaced by a fresh one.

    Args:
      size: how many are kept warm.
    """

    def __init__(self, size: int = 1):
        self._warm: list[Sandbox] = []
        self._size = size

    @contextlib.contextmanager
    def take(self) -> Iterator[Sandbox]:
        """A sandbox for the time of the block."""
        sandbox = self._warm.pop() if self._warm else Sandbox()
        try:
            yield sandbox
        finally:
            if sandbox.closed or len(self._warm) >= self._size:
                sandbox.close()
            else:
                self._warm.append(sandbox)

    def run(
        self,
        tree: Mapping[str, Any],
        line: str,
        limits: SandboxLimits = SandboxLimits(),  # noqa: B008 (immutable)
    ) -> tuple[Result, dict[str, Any]]:
        """One line in a fresh copy of the tree: its result and the tree afterwards."""
        with self.take() as sandbox:
            return SandboxSession(tree, limits=limits, sandbox=sandbox, keep=False).run_once(line)

    def close(self) -> None:
        """Closes all warm sandboxes."""
        while self._warm:
            self._warm.pop().close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def unavailable() -> str | None:
    """Returns why there is no sandbox on this machine, in a sentence; None if there is one.

    Starts one to find out.
    """
    try:
        with Pool() as pool:
            result, _ = pool.run({}, "touch f && setfacl -m user:root:r f && id -un")
    except UserError as error:
        return str(error)
    if result.stdout != "agent\n":
        return (
            f"The sandbox does not work on this machine ({(result.stderr or 'no output').strip()})."
        )
    return None


def _restore(state: str) -> str:
    """Returns shell text that sets what an earlier shell ended with.

    Variables and functions come first, then options, directory and status.
    """
    lines = [line for line in state.splitlines(keepends=True) if not _OF_BASH.match(line)]
    late = [
        line for line in lines if line.startswith(("set ", "shopt ", "umask ", "cd ", "(exit "))
    ]
    return "".join(line for line in lines if line not in late) + "".join(late)


@contextlib.contextmanager
def _bubblewrap(namespace: int, identity: Mapping[str, Any]) -> Iterator[int]:
    """A process that holds the namespaces; gives its number."""
    information, information_end = os.pipe()
    command = [
        "bwrap",
        "--userns",
        str(namespace),
        "--info-fd",
        str(information_end),
        "--die-with-parent",
        "--new-session",
    ]
    command += [f"--unshare-{what}" for what in ("pid", "net", "ipc", "uts", "cgroup")]
    for path in ("/usr", "/etc/alternatives"):
        if os.path.isdir(path):
            command += ["--ro-bind", path, path]
    for path, target in trees.SYSTEM.items():
        if target is not None:
            command += ["--symlink", target, path]
    command += [
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--hostname",
        "sandbox",
        "--clearenv",
        "--cap-drop",
        "ALL",
    ]
    for path in ("/world", "/devices", "/sudo"):
        command += ["--dir", path]
    process = subprocess.Popen(
        [*command, "/usr/bin/bash", "-c", "echo ready; read -r end"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=(namespace, information_end),
        cwd="/",
        env={"PATH": os.environ.get("PATH", os.defpath)},
        **identity,
    )
    os.close(information_end)
    try:
        with os.fdopen(information) as stream:
            text = stream.read()
        assert process.stdout is not None and process.stderr is not None  # pipes were asked for
        if process.stdout.readline() != b"ready\n":
            said = process.stderr.read().decode(errors="replace").strip()
            complaint = said or "it ended silently"
            raise UserError(
                "The sandbox needs namespaces that this machine does not allow to bubblewrap "
                f"({complaint})."
            )
        yield json.loads(text)["child-pid"]
    finally:
        _end(process)


def _end(process: subprocess.Popen) -> None:
    """Ends a process that leaves when its stdin does; by force if it does not."""
    # All three are pipes, wherever this is called.
    assert process.stdin and process.stdout and process.stderr
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(_FAREWELL)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdout, process.stderr):
        stream.close()

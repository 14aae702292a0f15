"""The sandbox's own process, which builds worlds and runs lines in them.

It enters the namespaces that bubblewrap made. Started outside by `pool.py` with the standard
library only; reads requests from stdin and writes replies to stdout, each as four bytes of length
and JSON. Everything after `enter` happens as the root of a user namespace that is nobody outside.

A request may have `world` (a plan made by `world.plan`: the world is built anew), `line` (a job for
`line.Line`; the reply has what ran and what it changed) and `dump` (the reply has all of the world
that is not a program or a device).
"""

from __future__ import annotations

import base64
import errno
import gc
import json
import os
import re
import resource
import stat
import struct
import sys
from typing import Any

from shellworld.interpreter.record import Bounds
from shellworld.sandbox import kernel
from shellworld.sandbox import line as sandbox_line

WORLD = sandbox_line.WORLD
_ACL = {"access": "system.posix_acl_access", "default": "system.posix_acl_default"}
_DEVICES = ("null", "zero", "full", "random", "urandom")
_LONGEST = 4000  # bytes of a path; the kernel takes 4095
_PROGRAMS = ("/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib64", "/usr/share", "/etc/alternatives")


# Files of /proc that tell of the machine and not of a line's processes, and what stands there
# instead.
_OF_THE_MACHINE = dict.fromkeys(
    """
    buddyinfo cmdline config.gz consoles devices diskstats dma interrupts iomem ioports kallsyms
    key-users keys kpagecgroup kpagecount kpageflags locks mdstat misc modules mtrr pagetypeinfo
    partitions sched_debug schedstat slabinfo softirqs swaps timer_list vmallocinfo vmstat zoneinfo
    """.split(),
    "",
) | {
    # As much as a line may have by default.
    "meminfo": "".join(
        f"{name + ':':<16}{kib:>8} kB\n"
        for name, kib in (
            ("MemTotal", 524288),
            ("MemFree", 524288),
            ("MemAvailable", 524288),
            ("Buffers", 0),
            ("Cached", 0),
            ("SwapCached", 0),
            ("Active", 0),
            ("Inactive", 0),
            ("SwapTotal", 0),
            ("SwapFree", 0),
            ("Shmem", 0),
            ("Slab", 0),
            ("SReclaimable", 0),
            ("SUnreclaim", 0),
        )
    )
}
_STATE_END = re.compile(rb"\(exit \d+\)\n\Z")  # how a whole state ends


def enter(pid: int) -> None:
    """Joins the namespaces of the process `pid` as their root.

    Nothing is kept of what this process was before.
    """
    namespaces = (
        ("user", kernel.NEWUSER),
        ("mnt", kernel.NEWNS),
        ("net", kernel.NEWNET),
        ("ipc", kernel.NEWIPC),
        ("uts", kernel.NEWUTS),
        ("cgroup", kernel.NEWCGROUP),
        ("pid", kernel.NEWPID),
    )
    handles = [
        (os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC), flag)
        for name, flag in namespaces
    ]
    for handle, flag in handles:
        kernel.setns(handle, flag)
        os.close(handle)
        if flag == kernel.NEWUSER:
            os.setgroups([])
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
    os.umask(0)
    os.chdir("/")


def prepare() -> None:
    """Makes what all worlds share.

    That is the devices and `sudo`, read-only, and the view of this namespace's processes.
    """
    kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount(
        "proc",
        "/proc",
        "proc",
        kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC,
        "hidepid=invisible",
    )
    for path in ("/devices", "/sudo"):
        kernel.mount("none", path, "tmpfs", kernel.MS_NOSUID, "mode=0755,size=64k")
    for name in _DEVICES:
        os.close(os.open(f"/devices/{name}", os.O_CREAT, 0o666))
        kernel.mount(f"/dev/{name}", f"/devices/{name}", flags=kernel.MS_BIND)
    os.symlink("/proc/self/fd", "/devices/fd")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"/devices/{name}")
    with open("/sudo/sudo", "w") as file:
        file.write(sandbox_line.SUDO)
    os.chmod("/sudo/sudo", 0o755)
    hide_machine()
    # No connection's buffers hold more than an eighth of a mebibyte each way.
    for name in ("tcp_rmem", "tcp_wmem"):
        with open(f"/proc/sys/net/ipv4/{name}", "w") as file:
            file.write("4096 65536 131072")
    for path in ("/devices", "/sudo"):
        kernel.mount("none", path, flags=kernel.MS_REMOUNT | kernel.MS_RDONLY | kernel.MS_NOSUID)


def hide_machine() -> None:
    """Puts other files in the place of those of /proc that tell of the machine."""
    kernel.mount("none", WORLD, "tmpfs", kernel.MS_NOSUID, "mode=0755,size=64k")
    for name, text in _OF_THE_MACHINE.items():
        if os.path.lexists(f"/proc/{name}"):
            with open(f"{WORLD}/{name}", "w") as file:
                file.write(text)
            os.chmod(f"{WORLD}/{name}", 0o444)
            kernel.mount(f"{WORLD}/{name}", f"/proc/{name}", flags=kernel.MS_BIND)
    kernel.mount("none", WORLD, flags=kernel.MS_REMOUNT | kernel.MS_RDONLY | kernel.MS_NOSUID)
    kernel.unmount(WORLD)  # the files stay where they are mounted


class Worlds:
    """The one world that exists at a time, in a memory file system of bounded size."""

    def __init__(self) -> None:
        self.mounted = False
        self.system: frozenset[str] = frozenset()
        self.size = self.device = 0

    def build(self, plan: dict[str, Any]) -> None:
        """Builds a world anew, by a plan of `world.plan`."""
        if self.mounted:
            kernel.unmount(WORLD)
            self.mounted = False
        options = f"mode=0755,size={plan['size']},nr_inodes={plan['inodes']}"
        kernel.mount("none", WORLD, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, options)
        self.mounted = True
        self.device = os.stat(WORLD).st_dev
        self.system = frozenset(plan["system"])
        self.size = plan["size"]
        for path, kind, what in plan["make"]:
            if kind == "directory":
                os.makedirs(WORLD + path, exist_ok=True)
            elif kind == "symlink":
                os.symlink(os.fsencode(what), WORLD + path)
            elif kind == "hardlink":
                os.link(WORLD + what, WORLD + path, follow_symlinks=False)
            else:
                with open(WORLD + path, "wb") as file:
                    file.write(os.fsencode(what))
        for path, uid, gid, mode, acls in plan["own"]:
            os.chown(WORLD + path, uid, gid, follow_symlinks=False)
            if mode is not None:
                os.chmod(WORLD + path, mode)
            for kind, value in acls.items():
                os.setxattr(WORLD + path, _ACL[kind], bytes.fromhex(value))
        for path, mtime in plan["times"]:
            os.utime(WORLD + path, (mtime, mtime), follow_symlinks=False)
        shared = {path: path for path in (*_PROGRAMS, "/proc")} | {
            "/dev": "/devices",
            "/usr/local/sbin": "/sudo",
        }
        for path, source in shared.items():
            kernel.mount(source, WORLD + path, flags=kernel.MS_BIND | kernel.MS_REC)

    def attributes(self) -> dict[str, dict[str, Any]]:
        """Returns kind, owner, group, mode and access lists of every file and directory."""
        found: dict[str, dict[str, Any]] = {}
        todo = ["/"]
        while todo:
            path = todo.pop()
            real = os.fsencode(WORLD + path)
            if len(real) > _LONGEST:
                continue
            facts = os.lstat(real)
            directory = stat.S_ISDIR(facts.st_mode)
            if facts.st_dev != self.device or not (directory or stat.S_ISREG(facts.st_mode)):
                continue
            if directory:
                inside = (f"{path.rstrip('/')}/{os.fsdecode(name)}" for name in os.listdir(real))
                todo.extend(child for child in inside if child not in self.system)
            found[path] = {
                "type": "directory" if directory else "file",
                "uid": facts.st_uid,
                "gid": facts.st_gid,
                "mode": stat.S_IMODE(facts.st_mode),
                "acls": _acls(real),
            }
        return found

    def dump(self) -> list[dict[str, Any]] | None:
        """Every path of the world, parents first; pipes and sockets are left out.

        None if there is more than can be read: files with holes that would be larger than the file
        system, paths too long.
        """
        entries: list[dict[str, Any]] = []
        room = self.size
        todo = ["/"]
        while todo:
            path = todo.pop()
            real = os.fsencode(WORLD + path)
            if len(real) > _LONGEST:
                return None
            facts = os.lstat(real)
            if facts.st_dev != self.device:
                continue  # programs, wherever a line may have moved the directories above them
            entry = {
                "path": path,
                "uid": facts.st_uid,
                "gid": facts.st_gid,
                "mode": stat.S_IMODE(facts.st_mode),
            }
            entry |= {"mtime": int(facts.st_mtime), "inode": facts.st_ino}
            if stat.S_ISDIR(facts.st_mode):
                entry["type"] = "directory"
                inside = (f"{path.rstrip('/')}/{os.fsdecode(name)}" for name in os.listdir(real))
                todo.extend(child for child in inside if child not in self.system)
            elif stat.S_ISREG(facts.st_mode):
                entry["type"] = "file"
                room -= facts.st_size
                if room < 0:
                    return None
                with open(real, "rb") as file:
                    entry["content"] = base64.b64encode(file.read()).decode("ascii")
            elif stat.S_ISLNK(facts.st_mode):
                entry["type"] = "symlink"
                entry["target"] = os.fsdecode(os.readlink(real))
            else:
                continue
            if entry["type"] != "symlink":
                entry["acls"] = _acls(real)
            entries.append(entry)
        return entries


def _acls(path: bytes) -> dict[str, str]:
    return {kind: value for kind, name in _ACL.items() if (value := _acl(path, name))}


def _acl(path: bytes, name: str) -> str:
    try:
        return os.getxattr(path, name).hex()
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        return ""


def changes(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns the paths that stand before and after with other attributes, as far as there is room.

    Returns:
      {"changes": [(path, attributes before, attributes after)], "changes_left_out": how many more}.
    """
    bounds, kept, left_out = Bounds(), [], 0
    for path in sorted(before.keys() & after.keys()):
        old, new = before[path], after[path]
        if old == new or old["type"] != new["type"]:
            continue
        if bounds.admits_change(path):
            kept.append((path, old, new))
        else:
            left_out += 1
    return {"changes": kept, "changes_left_out": left_out}


def run(job: dict[str, Any], wake: int, state: str) -> dict[str, Any]:
    """Runs one line to its end.

    Args:
      job: what `sandbox_line.Line` takes.
      wake: the same.
      state: shell text that sets the variables of the lines before.

    Returns:
      {"stdout", "stderr": text, "status": 0..255, "state": the same text for the next line, "" for
      as before, "executions", "left_out", "unseen": see `executions.Watch`}.
    """
    files = (os.memfd_create("state"), os.memfd_create("state")) if job["keep"] else None
    if files:
        os.write(files[0], os.fsencode(state))
    line = sandbox_line.Line(job, wake, files)
    out, err, status = line.finish()
    result: dict[str, Any] = {
        "stdout": _text(out),
        "stderr": _text(err),
        "status": status,
        "state": "",
    }
    result["executions"], result["left_out"] = line.watch.executions, line.watch.left_out
    result["unseen"] = line.watch.unseen if line.watched else 0
    if files:
        kept, note = _state(files[1], job["limits"]["file"])
        result["state"] = _text(kept)
        result["stderr"] += note
        os.close(files[0])
        os.close(files[1])
    return result


def _state(file: int, most: int) -> tuple[bytes, str]:
    """Returns the variables that a line ended with, and what to say of them.

    They are nothing, which stands for those before the line, if there is no whole text: a shell
    that was killed has written none, one with more than `most` bytes only the beginning.
    """
    size = os.fstat(file).st_size
    state = os.pread(file, min(size, most), 0)
    if size < most and _STATE_END.search(state):
        return state, ""
    if size < most:
        return b"", ""
    return b"", "sandbox: the variables are too large to be kept: they are as before this line\n"


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _read(stream: int) -> dict[str, Any] | None:
    """The next request; None when the other side is gone."""
    head = _exactly(stream, 4)
    body = _exactly(stream, struct.unpack("!I", head)[0]) if head else b""
    return json.loads(body) if body else None


def _exactly(stream: int, count: int) -> bytes:
    parts = []
    while count:
        part = os.read(stream, count)
        if not part:
            return b""
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _write(stream: int, reply: dict[str, Any]) -> None:
    body = json.dumps(reply).encode()
    data = struct.pack("!I", len(body)) + body
    while data:
        data = data[os.write(stream, data) :]


def _private(fd: int, replacement: int) -> int:
    """Moves a standard stream out of the way of the lines.

    Its number then names the replacement.
    """
    moved = os.dup(fd)  # not inheritable by programs
    os.dup2(replacement, fd)
    return moved


def serve(requests: int, replies: int) -> None:
    """Answers requests until there are no more."""
    worlds, wake = Worlds(), sandbox_line.watch_children()
    limits = _own_limits()
    while (request := _read(requests)) is not None:
        try:
            reply: dict[str, Any] = {}
            if "world" in request:
                worlds.build(request["world"])
            if "line" in request:
                before = worlds.attributes()
                reply = run(request["line"], wake, request.get("state", ""))
                reply |= changes(before, worlds.attributes())
                if _own_limits() != limits:
                    raise OSError("a line has changed the limits of the sandbox's own process")
            if request.get("dump"):
                reply["dump"] = worlds.dump()
        except OSError as error:
            reply = {"error": str(error)}
        _write(replies, reply)


def _own_limits() -> list[tuple[int, int]]:
    """This process's own limits, which no line may touch: the next lines would not begin."""
    kinds = (
        resource.RLIMIT_AS,
        resource.RLIMIT_CPU,
        resource.RLIMIT_DATA,
        resource.RLIMIT_FSIZE,
        resource.RLIMIT_NOFILE,
        resource.RLIMIT_NPROC,
        resource.RLIMIT_STACK,
    )
    return [resource.getrlimit(kind) for kind in kinds]


def main() -> None:
    """Serves requests in the namespaces of the process that is the last argument.

    It ends when stdin does.
    """
    null = os.open(os.devnull, os.O_RDWR)
    requests, replies = _private(0, null), _private(1, null)
    try:
        enter(int(sys.argv[-1]))
        kernel.die_with_parent()
        kernel.hide()
        child = os.fork()  # into bubblewrap's process namespace ...
        if not child:
            kernel.die_with_parent()
            child = kernel.fork_into(
                kernel.NEWPID | kernel.NEWNS
            )  # ... and there into an own one, as its first process
        if child:
            os.closerange(3, 256)
            os.waitpid(child, 0)
            os._exit(0)
        kernel.die_with_parent()
        prepare()
        gc.disable()  # so that forks share their memory
        gc.freeze()
        _write(replies, {"ready": True})
        serve(requests, replies)
    except OSError as error:
        _write(replies, {"error": str(error)})

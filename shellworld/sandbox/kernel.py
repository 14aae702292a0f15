"""The few kernel calls of the sandbox that Python 3.11 lacks, and the filter of system calls.

Runs inside the sandbox's own process, which has the standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import platform
import signal
import struct
from typing import NamedTuple

NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2

# What root may do in a world: own, read and enter every file of the world, change users, signal its
# processes. In order: chown, dac_override, dac_read_search, fowner, fsetid, kill, setgid, setuid.
CAPABILITIES_OF_ROOT = (0, 1, 2, 3, 4, 5, 6, 7)
SYS_PTRACE, LAST_CAPABILITY = 19, 63

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_SECCOMP = 22
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38

# System calls refused to lines: name -> number on (x86_64, aarch64). None of them is needed by
# bash, coreutils or acl. They open the kernel's less walked paths, or give memory that no limit
# counts (memfd, System V and POSIX queues and segments).
_REFUSED = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "io_setup": (206, 0),  # its events are counted for the whole machine
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "syslog": (103, 116),
    "quotactl": (179, 60),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "personality": (135, 92),
    "vhangup": (153, 58),
    "fanotify_init": (300, 262),
}
# Machine -> its column above, and the kernel's number for its architecture.
_MACHINES = {
    "x86_64": (0, 0xC000003E),
    "aarch64": (1, 0xC00000B7),
}
_CLONE, _IOCTL, _CLONE3 = (56, 220), (16, 29), (435, 435)
_EXECVE, _EXECVEAT, _EXIT_GROUP = (59, 221), (322, 281), (231, 94)
_SECCOMP, _OPENAT2 = (317, 277), 437
# Calls that act on the process that their first or second argument names, which may not be the
# first of the namespace, the sandbox's own: what a line did to that would stay.
_ON_FIRST_ARGUMENT = {
    "prlimit64": (302, 261),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
}
_ON_SECOND_ARGUMENT = {"setpriority": (141, 140), "ioprio_set": (251, 30)}
_ONE_PROCESS = {"setpriority": 0, "ioprio_set": 1}  # the first argument for "a process"
_SUPERVISOR = 1  # its number in a line's namespace
_SOCKET, _SETSOCKOPT = (41, 198), (54, 208)
_FAMILIES = (1, 2, 10, 16)  # of sockets: local, IPv4, IPv6, netlink
_BUFFER_SIZES = (7, 8, 32, 33)  # options of sockets: SO_SNDBUF, SO_RCVBUF and their FORCE
_TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI and TIOCLINUX push input into a terminal
_EPERM, _ENOSYS, _EAFNOSUPPORT = 1, 38, 97

_libc = ctypes.CDLL(None, use_errno=True)


def supported_machine() -> bool:
    """Whether the filter knows this machine's system calls."""
    return platform.machine() in _MACHINES


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def fork_into(namespaces: int) -> int:
    """`os.fork` whose child is in new namespaces; only for a process with one thread."""
    number = {"x86_64": 56, "aarch64": 220}[platform.machine()]
    return _check(
        _libc.syscall(number, ctypes.c_ulong(namespaces | signal.SIGCHLD), None, None, None, None),
        "clone",
    )


def own_mounts() -> None:
    """Gives this process a copy of its mounts."""
    _check(_libc.unshare(NEWNS), "unshare")


def setns(fd: int, flags: int) -> None:
    """Moves this process into the namespace that the descriptor `fd` stands for."""
    _check(_libc.setns(fd, flags), "setns")


def mount(
    source: str, target: str, kind: str | None = None, flags: int = 0, data: str | None = None
) -> None:
    """Mounts a file system, or changes how one is mounted."""
    words = [None if word is None else word.encode() for word in (source, target, kind, data)]
    _check(_libc.mount(*words[:3], ctypes.c_ulong(flags), words[3]), f"mount {target}")


def unmount(target: str) -> None:
    """Takes a mount and all below it away, also if it is in use."""
    _check(_libc.umount2(target.encode(), MNT_DETACH), f"umount {target}")


def enter_root(path: str) -> None:
    """Makes a mounted directory the root of this mount namespace.

    Nothing of the old root stays reachable.
    """
    os.chdir(path)
    number = {"x86_64": 155, "aarch64": 41}[platform.machine()]
    _check(_libc.syscall(number, b".", b"."), "pivot_root")
    unmount(".")
    os.chdir("/")


def duplicate(pid: int, fd: int) -> int:
    """Another process's open file, shared with it."""
    handle = os.pidfd_open(pid)
    try:
        return _check(_libc.syscall(438, handle, fd, 0), "pidfd_getfd")
    finally:
        os.close(handle)


def die_with_parent() -> None:
    """Has this process killed when its parent ends."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0), "prctl")


def hide() -> None:
    """Nobody in the sandbox may look into this process or trace it."""
    _check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl")


def bound(capabilities: tuple[int, ...]) -> None:
    """Bounds the capabilities of this process and its children from the next program on.

    They have at most these capabilities, and none gains more.
    """
    for capability in range(LAST_CAPABILITY + 1):
        if capability not in capabilities:
            # It fails for numbers that this kernel does not have.
            _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")


def _program(stops: bool) -> bytes:
    """The filter as classic BPF: wrong architecture dies, refused calls fail with EPERM.

    All others pass; with `stops`, programs' beginnings and ends stop until a listener has let them
    go on.
    """
    column, architecture = _MACHINES[platform.machine()]
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    kill, allow, fail, stop = 0x80000000, 0x7FFF0000, 0x00050000, 0x7FC00000
    # Offsets in struct seccomp_data.
    number, arch, argument0, argument1, argument2 = 0, 4, 16, 24, 32

    def when(test: int, value: int, action: int) -> list[tuple[int, int, int, int]]:
        return [(test, 0, 1, value), (give, 0, 0, action)]

    program = [
        (load, 0, 0, arch),
        (equal, 1, 0, architecture),
        (give, 0, 0, kill),
        (load, 0, 0, number),
    ]
    program += when(at_least, 0x40000000, fail | _EPERM)  # the x32 names of the same calls
    # The flags of clone3 cannot be read here; libc falls back to clone.
    program += when(equal, _CLONE3[column], fail | _ENOSYS)
    for numbers in (_EXECVE, _EXECVEAT, _EXIT_GROUP) if stops else ():
        program += when(equal, numbers[column], stop)
    for numbers in _REFUSED.values():
        program += when(equal, numbers[column], fail | _EPERM)
    namespaces = NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET
    program += [
        (equal, 0, 3, _CLONE[column]),
        (load, 0, 0, argument0),
        *when(any_bit, namespaces, fail | _EPERM),
    ]

    def on_call(numbers: tuple[int, int], *checks: tuple[int, int, int, int]) -> None:
        """For one call, the checks of its arguments; they end with the number loaded again."""
        block = [*checks, (load, 0, 0, number)]
        program.extend([(load, 0, 0, number), (equal, 0, len(block), numbers[column]), *block])

    on_call(
        _IOCTL,
        (load, 0, 0, argument1),
        *when(equal, _TERMINAL_INPUT[0], fail | _EPERM),
        *when(equal, _TERMINAL_INPUT[1], fail | _EPERM),
    )
    for numbers in _ON_FIRST_ARGUMENT.values():
        on_call(numbers, (load, 0, 0, argument0), *when(equal, _SUPERVISOR, fail | _EPERM))
    for name, numbers in _ON_SECOND_ARGUMENT.items():
        # A group or a user may have the sandbox's own process in it.
        others = [(equal, 1, 0, _ONE_PROCESS[name]), (give, 0, 0, fail | _EPERM)]
        supervisor = when(equal, _SUPERVISOR, fail | _EPERM)
        on_call(numbers, (load, 0, 0, argument0), *others, (load, 0, 0, argument1), *supervisor)
    # The kernel takes the family as a signed number of 32 bits, which is what is read here.
    known = [(equal, len(_FAMILIES) - i, 0, family) for i, family in enumerate(_FAMILIES)]
    on_call(_SOCKET, (load, 0, 0, argument0), *known, (give, 0, 0, fail | _EAFNOSUPPORT))
    for option in _BUFFER_SIZES:
        on_call(
            _SETSOCKOPT,
            (load, 0, 0, argument1),
            (equal, 0, 3, 1),  # SOL_SOCKET
            (load, 0, 0, argument2),
            *when(equal, option, fail | _EPERM),
        )
    program.append((give, 0, 0, allow))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


class _Filter:
    """A filter in the form that the kernel takes; made once, and shared by all forks."""

    def __init__(self, program: bytes):
        self._buffer = ctypes.create_string_buffer(program, len(program) + 1)
        self.header = ctypes.create_string_buffer(
            struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(self._buffer))
        )


_FILTER = _Filter(_program(stops=False) if supported_machine() else b"")
_STOPPING_FILTER = _Filter(_program(stops=True) if supported_machine() else b"")
_COLUMN = _MACHINES.get(platform.machine(), (0, 0))[0]
EXECVE, EXECVEAT, EXIT_GROUP = (n[_COLUMN] for n in (_EXECVE, _EXECVEAT, _EXIT_GROUP))
AT_FDCWD = -100 & 0xFFFFFFFF

_SET_MODE_FILTER, _NEW_LISTENER, _WAIT_KILLABLE = 1, 1 << 3, 1 << 5
_RECEIVE, _SEND = 0xC0502100, 0xC0182101  # ioctls of a listener, with 80 and 24 bytes
_CONTINUE = 1
_RESOLVE_IN_ROOT = 0x10


def filter_calls() -> int | None:
    """Installs the filter for this process and all its descendants.

    `bound` must have been called: without privileges the kernel takes a filter only from a process
    that can gain none.

    Returns:
      A listener, from which `stopped_call` reads: somebody must, or this process stops for ever at
      the next program that it begins. None where the kernel has no listeners (before 5.8, or below
      another listener): nothing stops then.
    """
    # Only a fatal signal may interrupt a stopped call (from 5.19 on), so that none is seen twice.
    for flags in (_NEW_LISTENER | _WAIT_KILLABLE, _NEW_LISTENER):
        number, header = _SECCOMP[_COLUMN], _STOPPING_FILTER.header
        listener = _libc.syscall(number, _SET_MODE_FILTER, ctypes.c_ulong(flags), header)
        if listener >= 0:
            return listener
    _check(_libc.prctl(_PR_SET_SECCOMP, 2, _FILTER.header, 0, 0), "seccomp")
    return None


class Call(NamedTuple):
    """A system call that waits: its name for the answer, its process, number and arguments."""

    identity: int
    pid: int
    number: int
    arguments: tuple[int, ...]


def stopped_call(listener: int) -> Call | None:
    """Returns the next call that waits at a listener; None if there is none any more."""
    buffer = bytearray(80)
    try:
        fcntl.ioctl(listener, _RECEIVE, buffer)
    except OSError:
        return None
    identity, pid, _, number, _, _, *arguments = struct.unpack("=QIIiIQ6Q", buffer)
    return Call(identity, pid, number, tuple(arguments))


def let_go_on(listener: int, call: Call) -> None:
    """Lets a stopped call happen."""
    with contextlib.suppress(OSError):  # its process may have been killed
        answer = struct.pack("=QqiI", call.identity, 0, 0, _CONTINUE)
        fcntl.ioctl(listener, _SEND, bytearray(answer))


def open_in_root(root: int, path: str) -> int:
    """Returns a handle of what a path means below another root, symlinks included.

    Raises:
      OSError: there is nothing, or no way to it.
    """
    how = struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT)
    name = os.fsencode(path)
    return _check(_libc.syscall(_OPENAT2, root, name, how, ctypes.c_size_t(len(how))), "openat2")

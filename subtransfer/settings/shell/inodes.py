"""What a simulated file system is made of: inodes, the kernel's errors, and its rule for permissions."""

from __future__ import annotations

import dataclasses
from typing import Literal

from subtransfer.settings.shell.acl import Acl
from subtransfer.settings.shell.users import Credentials

Kind = Literal["file", "directory", "symlink", "device"]

MESSAGES = {
    "EACCES": "Permission denied",
    "EEXIST": "File exists",
    "EINVAL": "Invalid argument",
    "EISDIR": "Is a directory",
    "ELOOP": "Too many levels of symbolic links",
    "ENAMETOOLONG": "File name too long",
    "ENOENT": "No such file or directory",
    "ENOSPC": "No space left on device",
    "ENOTDIR": "Not a directory",
    "ENOTEMPTY": "Directory not empty",
    "ENXIO": "No such device or address",
    "EBUSY": "Device or resource busy",
    "EPERM": "Operation not permitted",
}


class FsError(Exception):
    """A refused operation: `code` such as "EACCES", `message` as strerror gives it."""

    def __init__(self, code: str, message: str = ""):
        self.code = code
        self.message = message or MESSAGES[code]
        super().__init__(self.message)


class Inode:
    """A file, directory, symlink or device. `mode` has the 12 permission bits; `content` of a symlink is its target."""

    __slots__ = (
        "kind",
        "mode",
        "uid",
        "gid",
        "content",
        "entries",
        "nlink",
        "mtime",
        "ctime",
        "ino",
        "acl",
        "default",
        "parent",
        "name",
    )

    def __init__(self, kind: Kind, mode: int, uid: int, gid: int, content: str, mtime: int, ino: int):
        self.kind = kind
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.content = content
        self.entries: dict[str, Inode] | None = {} if kind == "directory" else None
        self.nlink = 2 if kind == "directory" else 1
        self.mtime = self.ctime = mtime
        self.ino = ino
        self.acl: Acl | None = None
        self.default: Acl | None = None
        self.parent: Inode = self  # directories only
        self.name = ""  # directories only


@dataclasses.dataclass(frozen=True, slots=True)
class Stat:
    """What stat(2) tells: `type` as Inode.kind, `mode` the 12 permission bits, `size` in bytes, `acl`: has it an ACL."""

    type: Kind
    mode: int
    uid: int
    gid: int
    size: int
    nlink: int
    mtime: int
    ctime: int
    inode: int
    acl: bool


def size_of(text: str) -> int:
    """Bytes of a text with surrogates for bytes that are not UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogateescape"))


def allows(node: Inode, bits: int, who: Credentials) -> bool:
    """Whether the permission bits (4 read, 2 write, 1 execute or search) are granted, as the kernel decides it."""
    mode = node.mode
    if who.uid == 0:
        return node.entries is not None or not bits & 1 or bool(mode & 0o111)
    if who.uid == node.uid:
        return mode >> 6 & bits == bits
    acl = node.acl
    if acl is None:
        return (mode >> 3 if node.gid in who.groups else mode) & bits == bits
    mask = mode >> 3 & 7
    for uid, granted in acl.users:
        if uid == who.uid:
            return granted & mask & bits == bits
    matched = [granted for gid, granted in acl.groups if gid in who.groups]
    if node.gid in who.groups:
        matched.append(acl.group)
    if matched:
        return any(granted & mask & bits == bits for granted in matched)
    return mode & bits == bits

"""What a simulated file system is made of: inodes, errors, and the rule for permissions."""

from __future__ import annotations

import dataclasses
from typing import Literal

from shellworld.world.acl import Acl
from shellworld.world.users import Credentials

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
    """A file, directory, symlink or device.

    Attributes:
      mode: the 12 permission bits.
      content: a file's text; of a symlink, its target.
    """

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

    def __init__(
        self, kind: Kind, mode: int, uid: int, gid: int, content: str, mtime: int, ino: int
    ):
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


class Original(Inode):
    """An inode of an image, which many worlds share and none changes.

    Each world has a copy of its own once it looks at it.

    Attributes:
      path: where it is in the image.
    """

    __slots__ = ("path",)
    path: str

    def copy(self, parent: Inode | None, links: dict[int, Inode]) -> Inode:
        """Returns a world's own inode.

        What is in a directory stays the image's until it is asked for (see Entries).

        Args:
          parent: the directory that it is in; None for the root.
          links: the world's copies of files with several names, by number.
        """
        if self.entries is None and self.nlink > 1 and self.ino in links:
            return links[self.ino]
        node = Inode(self.kind, self.mode, self.uid, self.gid, self.content, self.mtime, self.ino)
        node.ctime = self.ctime
        node.nlink, node.acl, node.default = self.nlink, self.acl, self.default
        if self.entries is not None:
            node.parent = parent or node
            node.name = self.name
            node.entries = Entries(self.entries, node, links)
        elif self.nlink > 1:
            links[self.ino] = node
        return node


class Entries(dict[str, Inode]):
    """A directory's inodes by name, an image's until `get` or [] makes one the world's own.

    All else that a dictionary does is about the names, or leaves the image's inodes as they are.
    """

    __slots__ = ("directory", "links")

    def __init__(self, originals: dict[str, Inode], directory: Inode, links: dict[int, Inode]):
        super().__init__(originals)
        self.directory = directory
        self.links = links

    def get(self, name: str, default: Inode | None = None) -> Inode | None:  # type: ignore[override]
        """Returns the world's own inode of a name, made now if it was still the image's."""
        node = _get(self, name, default)
        if type(node) is Original:
            node = self[name] = node.copy(self.directory, self.links)
        return node

    def __getitem__(self, name: str) -> Inode:
        node = self.get(name)
        if node is None:
            raise KeyError(name)
        return node


_get = dict.get


@dataclasses.dataclass(frozen=True, slots=True)
class Stat:
    """What stat(2) tells.

    Attributes:
      type: as Inode.kind.
      mode: the 12 permission bits.
      size: in bytes.
      acl: whether it has an ACL.
    """

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
    """Whether the permission bits are granted, as the kernel decides it.

    Args:
      bits: 4 read, 2 write, 1 execute or search, added up.
    """
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

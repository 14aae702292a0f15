"""Users and groups of a simulated machine, and the credentials that a process runs with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Credentials:
    """What the kernel knows of a process: effective numbers, group numbers and the umask.

    The group numbers have the effective one among them.
    """

    uid: int
    gid: int
    groups: frozenset[int]
    umask: int = 0o022

    def with_umask(self, umask: int) -> Credentials:
        """Returns the same credentials with another umask."""
        return Credentials(self.uid, self.gid, self.groups, umask)


ROOT = Credentials(0, 0, frozenset({0}))


@dataclasses.dataclass(frozen=True, slots=True)
class User:
    """A line of the user database.

    Attributes:
      groups: supplementary group numbers.
      sudo: whether it may run anything as anybody, unasked.
    """

    name: str
    uid: int
    gid: int
    home: str
    groups: tuple[int, ...] = ()
    sudo: bool = False
    shell: str = "/bin/bash"


class Users:
    """The user database of a tree.

    Args:
      tree: a normalised TREE.json; "users" and "groups" are read.
    """

    def __init__(self, tree: Mapping[str, Any]):
        self.groups: dict[str, int] = {"root": 0, **tree.get("groups", {})}
        self.users: dict[str, User] = {"root": User("root", 0, 0, "/root")}
        for name, fields in tree.get("users", {}).items():
            gid = self.groups[fields.get("group", name)]
            groups = tuple(self.groups[g] for g in fields.get("groups", ()))
            home = fields.get("home", "/root" if name == "root" else f"/home/{name}")
            uid = fields.get("uid", 0 if name == "root" else gid)
            self.users[name] = User(name, uid, gid, home, groups, bool(fields.get("sudo", False)))
        self._names = {user.uid: name for name, user in reversed(self.users.items())}
        self._group_names = {gid: name for name, gid in reversed(self.groups.items())}

    def credentials(self, name: str, umask: int = 0o022) -> Credentials:
        """Those of a fresh login of a user that exists."""
        user = self.users[name]
        return Credentials(user.uid, user.gid, frozenset({user.gid, *user.groups}), umask)

    def user(self, uid: int) -> User | None:
        """Returns the user of a number, or None."""
        name = self._names.get(uid)
        return self.users[name] if name is not None else None

    def user_name(self, uid: int) -> str:
        """The name, or the number as text if nobody has it."""
        return self._names.get(uid) or str(uid)

    def group_name(self, gid: int) -> str:
        """Returns the name of a group's number, or the number as text."""
        return self._group_names.get(gid) or str(gid)

    def uid(self, text: str) -> int | None:
        """Number of a user given by name or number; None if neither."""
        if text in self.users:
            return self.users[text].uid
        return number(text)

    def gid(self, text: str) -> int | None:
        """Returns the number of a group's name or of a number as text; None if it is neither."""
        if text in self.groups:
            return self.groups[text]
        return number(text)


def number(text: str) -> int | None:
    """A user or group number as programs accept it: decimal, below 2^32 - 1."""
    digits = text[1:] if text.startswith("+") else text
    if digits.isascii() and digits.isdigit() and len(digits) < 12 and int(digits) < 2**32 - 1:
        return int(digits)
    return None

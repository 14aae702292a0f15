"""POSIX access control lists: entries as getfacl prints them, numbers, inheritance."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from shellworld.world.users import Users


@dataclasses.dataclass(frozen=True, slots=True)
class Acl:
    """One list; permissions are 0..7.

    Attributes:
      users, groups: named entries as sorted (number, permissions) pairs.
      group: the owning group's own permissions (with a mask, the mode's middle triple shows the
        mask instead).
      mask: None only in a default ACL without named entries.
      owner, other: used by default ACLs; in an access ACL the mode has them.
    """

    users: tuple[tuple[int, int], ...] = ()
    groups: tuple[tuple[int, int], ...] = ()
    group: int = 0
    mask: int | None = None
    owner: int = 0
    other: int = 0


def rwx(bits: int) -> str:
    """7 -> "rwx", 5 -> "r-x"."""
    return ("r" if bits & 4 else "-") + ("w" if bits & 2 else "-") + ("x" if bits & 1 else "-")


def perms(text: str) -> int:
    """Returns the number of letters in any order: 5 for "r-x"."""
    return ("r" in text) * 4 | ("w" in text) * 2 | ("x" in text)


def access_entries(mode: int, acl: Acl | None, users: Users) -> list[str]:
    """All entries of an access ACL (or of plain mode bits) in getfacl's order."""
    if acl is None:
        return [
            f"user::{rwx(mode >> 6 & 7)}",
            f"group::{rwx(mode >> 3 & 7)}",
            f"other::{rwx(mode & 7)}",
        ]
    return _entries(
        dataclasses.replace(acl, owner=mode >> 6 & 7, mask=mode >> 3 & 7, other=mode & 7), users
    )


def default_entries(acl: Acl, users: Users) -> list[str]:
    """All entries of a default ACL, with their "default:" prefix."""
    return ["default:" + entry for entry in _entries(acl, users)]


def _entries(acl: Acl, users: Users) -> list[str]:
    entries = [f"user::{rwx(acl.owner)}"]
    entries += [f"user:{users.user_name(uid)}:{rwx(bits)}" for uid, bits in acl.users]
    entries += [f"group::{rwx(acl.group)}"]
    entries += [f"group:{users.group_name(gid)}:{rwx(bits)}" for gid, bits in acl.groups]
    if acl.mask is not None:
        entries.append(f"mask::{rwx(acl.mask)}")
    return [*entries, f"other::{rwx(acl.other)}"]


def parse_entries(
    entries: Iterable[str], mode: int, users: Users
) -> tuple[int, Acl | None, Acl | None]:
    """Returns the mode, access ACL and default ACL of a tree's "acl" list.

    Base entries that are missing come from the mode.
    """
    parts: dict[bool, dict[tuple[str, str], int]] = {False: {}, True: {}}
    for entry in entries:
        default = entry.startswith("default:")
        kind, name, bits = entry.removeprefix("default:").split(":")
        parts[default][kind, name] = perms(bits)
    mode, access = build_access(parts[False], mode, users)
    return mode, access, build_default(parts[True], mode, users) if parts[True] else None


def build_access(
    parts: dict[tuple[str, str], int], mode: int, users: Users
) -> tuple[int, Acl | None]:
    """Returns the mode and ACL of entries {("user", "bob"): 6, ("mask", ""): 4, ...}.

    The ACL is None if the mode says it all.
    """
    owner = parts.get(("user", ""), mode >> 6 & 7)
    group = parts.get(("group", ""), mode >> 3 & 7)
    other = parts.get(("other", ""), mode & 7)
    named_users, named_groups = _named(parts, users)
    mask = parts.get(("mask", ""))
    if mask is None and (named_users or named_groups):
        mask = _union(group, named_users, named_groups)
    special = mode & 0o7000
    if mask is None:
        return special | owner << 6 | group << 3 | other, None
    return special | owner << 6 | mask << 3 | other, Acl(
        named_users, named_groups, group, mask, owner, other
    )


def build_default(parts: dict[tuple[str, str], int], mode: int, users: Users) -> Acl:
    """The default ACL of entries; base entries that are missing come from the mode."""
    named_users, named_groups = _named(parts, users)
    group = parts.get(("group", ""), mode >> 3 & 7)
    mask = parts.get(("mask", ""))
    if mask is None and (named_users or named_groups):
        mask = _union(group, named_users, named_groups)
    return Acl(
        named_users,
        named_groups,
        group,
        mask,
        parts.get(("user", ""), mode >> 6 & 7),
        parts.get(("other", ""), mode & 7),
    )


def _named(parts: dict[tuple[str, str], int], users: Users) -> tuple[tuple, tuple]:
    named_users = sorted(
        (users.uid(name) or 0, bits)
        for (kind, name), bits in parts.items()
        if kind == "user" and name
    )
    named_groups = sorted(
        (users.gid(name) or 0, bits)
        for (kind, name), bits in parts.items()
        if kind == "group" and name
    )
    return tuple(named_users), tuple(named_groups)


def _union(group: int, named_users: tuple, named_groups: tuple) -> int:
    for _, bits in (*named_users, *named_groups):
        group |= bits
    return group


def inherit(default: Acl, mode: int) -> tuple[int, Acl | None]:
    """Returns the mode and access ACL of a new file in a directory with a default ACL.

    Args:
      mode: what the file is created with; the umask is not used.
    """
    owner = default.owner & mode >> 6
    other = default.other & mode
    if default.mask is None:
        group = default.group & mode >> 3
        return mode & 0o7000 | (owner & 7) << 6 | (group & 7) << 3 | other & 7, None
    mask = default.mask & mode >> 3 & 7
    access = Acl(default.users, default.groups, default.group, mask, owner & 7, other & 7)
    return mode & 0o7000 | (owner & 7) << 6 | mask << 3 | other & 7, access

"""What a simulated file system notes about changes of modes, owners, groups and access lists."""

from __future__ import annotations

import posixpath

from shellworld.world.acl import Acl, access_entries, default_entries
from shellworld.world.inodes import Inode, Kind
from shellworld.world.tree import SYSTEM, parse_acl, sort_acl
from shellworld.world.users import Users

# Kind, the 12 permission bits, numbers of owner and group, access list, default access list.
Attributes = tuple[Kind, int, int, int, Acl | None, Acl | None]


def attributes(node: Inode | None) -> Attributes | None:
    """Returns what decides over the access to an inode; None for symlinks and for nothing."""
    if node is None or node.kind in ("symlink", "device"):
        return None
    return node.kind, node.mode, node.uid, node.gid, node.acl, node.default


def shown(found: Attributes, users: Users) -> dict[str, object]:
    """Returns attributes with the names and in the forms that a tree has.

    Returns:
      {"mode": "0640", "owner": name, "group": name, "acl": entries as in a tree}.
    """
    _, mode, uid, gid, acl, default = found
    entries = access_entries(mode, acl, users) if acl is not None else []
    if default is not None:
        entries += default_entries(default, users)
    parsed = [entry for entry in map(parse_acl, entries) if entry is not None]
    return {
        "mode": f"{mode:04o}",
        "owner": users.user_name(uid),
        "group": users.group_name(gid),
        "acl": [str(entry) for entry in sort_acl(parsed)],
    }


def snapshot(root: Inode) -> dict[str, Attributes]:
    """Returns the attributes of every path that a tree can describe."""
    found: dict[str, Attributes] = {}
    pending = [("/", root)]
    while pending:
        path, node = pending.pop()
        facts = attributes(node)
        if path in SYSTEM or facts is None:
            continue
        found[path] = facts
        if node.entries is None:
            continue
        for name, child in node.entries.items():
            # As in `image.export`: a file with one name may stay the image's own inode.
            alone = child.entries is None and child.nlink == 1
            pending.append((posixpath.join(path, name), child if alone else node.entries[name]))
    return found


class Journal:
    """Notes the paths whose attributes may change, each with those that it had first.

    Whoever runs commands puts an empty dictionary in the place of `touched` before each and
    compares afterwards, so that the changes are known one command at a time.

    Attributes:
      touched: attributes of paths before anything happened to them; None where nothing stood.
      line: the same since the last `reset`, whatever `touched` is.
      others: attributes of all paths at the moment when something happened that may concern paths
        which were never touched: a directory moved, or a file with several names; None otherwise.
    """

    __slots__ = ("line", "others", "touched")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self.touched: dict[str, Attributes | None] = {}
        self.line: dict[str, Attributes | None] = {}
        self.others: dict[str, Attributes] | None = None

    def touch(self, path: str, node: Inode | None) -> None:
        """Notes a canonical path and what is there now, before it changes."""
        if path in self.touched:
            return
        found = self.touched[path] = attributes(node)
        # Once all paths are noted, one that is new to `line` may have come there with a directory.
        if self.others is None and path not in self.line:
            self.line[path] = found

"""From TREE.json to a file system and back."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

from shellworld.interpreter.result import Limits
from shellworld.world.acl import access_entries, default_entries, parse_entries
from shellworld.world.filesystem import FileSystem
from shellworld.world.inodes import Inode, Kind, Original
from shellworld.world.tree import EPOCH, SYSTEM, environment, parse_acl, sort_acl
from shellworld.world.users import Users


class Image:
    """A tree, read once, from which worlds are made in a moment, each with files of its own.

    How that is done: see Original and Entries.

    Args:
      tree: a normal tree (see tree.normalise).
      clock: the time at which each world begins, in seconds since 1970. Only with the time of the
        sandbox's machine does what depends on today (`ls -l`, `find -mtime`, `date`) come out as it
        does there.

    Attributes:
      tree: the normal tree; neither changed here, nor may it be.
      users, environment: its user database and the variables that its user's shell starts with;
        both are never changed.
      who: the user's credentials.
    """

    def __init__(self, tree: Mapping[str, Any], clock: int = EPOCH):
        self.tree = tree
        self.clock = clock
        self.users = Users(tree)
        self.environment = environment(tree)
        self.who = self.users.credentials(tree["user"], int(tree["umask"], 8))
        self._root, self._count = _read(tree, self.users, clock)

    def file_system(self, limits: Limits) -> FileSystem:
        """Makes one as the tree describes it, with the system's directories and /dev/null."""
        return FileSystem(limits, self._root.copy(None, {}), self._count, self.clock)


def _system_numbers() -> dict[str, int]:
    """The inode numbers of what every world has, as the sandbox's file system gives them."""
    found = {"/": 1}
    for path in SYSTEM:
        above = posixpath.dirname(path)
        for one in (above, path):
            found.setdefault(one, len(found) + 1)
    return found


_NUMBERS = _system_numbers()


def _read(tree: Mapping[str, Any], users: Users, clock: int) -> tuple[Original, int]:
    """The root of a normal tree, and the number of inodes below it."""
    nodes: dict[str, Original] = {}
    number = len(_NUMBERS)
    for path, entry in tree["paths"].items():
        kind = entry["type"]
        if kind == "hardlink":
            continue
        if path not in _NUMBERS:
            number += 1
        content = entry.get("content" if kind == "file" else "target", "")
        mode = 0o777 if kind == "symlink" else int(entry["mode"], 8)
        uid, gid = users.uid(entry["owner"]) or 0, users.gid(entry["group"]) or 0
        node = Original(kind, mode, uid, gid, content, entry["mtime"], _NUMBERS.get(path, number))
        node.ctime = clock  # a world's files are made when it begins, whatever their mtime says
        if entry.get("acl"):
            node.mode, node.acl, node.default = parse_entries(entry["acl"], node.mode, users)
        _add(nodes, path, node)
    for path, entry in tree["paths"].items():
        if entry["type"] == "hardlink":
            node = nodes[entry["target"]]
            parent, _, name = path.rpartition("/")
            nodes[parent or "/"].entries[name] = node  # type: ignore[index]
            node.nlink += 1
    for path, target in SYSTEM.items():
        system_kind: Kind = "directory" if target is None else "symlink"
        mode = 0o555 if path == "/proc" else 0o755 if target is None else 0o777
        number_of_it = 1 if path in ("/dev", "/proc") else _NUMBERS[path]  # roots of their own
        _add(nodes, path, Original(system_kind, mode, 0, 0, target or "", clock, number_of_it))
    _add(nodes, "/dev/null", Original("device", 0o666, 0, 0, "", clock, 0))
    _add(nodes, "/dev/fd", Original("directory", 0o555, 0, 0, "", clock, 0))
    return nodes["/"], number


def _add(nodes: dict[str, Original], path: str, node: Original) -> None:
    """Enters an inode at its path, whose parent is there already."""
    node.path = path
    nodes[path] = node
    if path != "/":
        above, _, node.name = path.rpartition("/")
        parent = nodes[above or "/"]
        parent.entries[node.name] = node  # type: ignore[index]
        parent.nlink += node.entries is not None


def export(
    fs: FileSystem, users: Users, tree: Mapping[str, Any], cwd: str, umask: int
) -> dict[str, Any]:
    """The world now, as a normal tree; users and groups stay those of the tree it began with.

    Numbers without a name appear as text.
    """
    found: list[tuple[str, Inode]] = []
    pending = [("/", fs.root)]
    while pending:
        path, node = pending.pop()
        if path not in SYSTEM:
            found.append((path, node))
            for name, child in node.entries.items() if node.entries is not None else ():
                alone = child.entries is None and child.nlink == 1
                pending.append((posixpath.join(path, name), child if alone else node.entries[name]))  # type: ignore[index]
    found.sort(key=lambda item: item[0])
    paths: dict[str, dict[str, Any]] = {}
    seen: dict[int, str] = {}
    for path, node in found:
        if node.entries is None and node.nlink > 1 and seen.setdefault(node.ino, path) != path:
            paths[path] = {"type": "hardlink", "target": seen[node.ino]}
        elif type(node) is Original:
            paths[path] = dict(tree["paths"][node.path])
        else:
            paths[path] = _entry(node, users)
    return {**tree, "cwd": _standing(fs, cwd, paths), "umask": f"{umask:04o}", "paths": paths}


def _standing(fs: FileSystem, cwd: str, paths: Mapping[str, Any]) -> str:
    """Returns a shell's directory as one of the tree, without symlinks.

    For one that is gone or the system's own, it is the nearest above.
    """
    while True:
        place = fs.resolve(cwd) if fs.is_dir(cwd) else ""
        if place in paths:
            return place
        cwd = posixpath.dirname(cwd)


def _entry(node: Inode, users: Users) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": node.kind}
    if node.kind != "directory":
        entry["target" if node.kind == "symlink" else "content"] = node.content
    entry["owner"] = users.user_name(node.uid)
    entry["group"] = users.group_name(node.gid)
    if node.kind != "symlink":
        acl = access_entries(node.mode, node.acl, users) if node.acl is not None else []
        acl += default_entries(node.default, users) if node.default is not None else []
        entry["mode"] = f"{node.mode:04o}"
        entry["acl"] = [str(e) for e in sort_acl(filter(None, map(parse_acl, acl)))]
    entry["mtime"] = node.mtime
    return entry

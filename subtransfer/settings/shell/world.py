"""From TREE.json to a file system and back."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

from subtransfer.settings.shell.acl import access_entries, default_entries, parse_entries
from subtransfer.settings.shell.filesystem import FileSystem
from subtransfer.settings.shell.inodes import Inode
from subtransfer.settings.shell.result import Limits
from subtransfer.settings.shell.tree import EPOCH, SYSTEM, parse_acl, sort_acl
from subtransfer.settings.shell.users import Users


def build(tree: Mapping[str, Any], users: Users, limits: Limits) -> FileSystem:
    """The file system of a normal tree, with the system's own directories and /dev/null."""
    fs = FileSystem(limits)
    uids = {name: user.uid for name, user in users.users.items()}
    gids = users.groups
    nodes: dict[str, Inode] = {"": fs.root}
    links = []
    number = 11
    for path, entry in tree["paths"].items():
        kind = entry["type"]
        if kind == "hardlink":
            links.append((path, entry["target"]))
            continue
        if path == "/":
            node = fs.root
            node.mode, node.uid, node.gid = int(entry["mode"], 8), uids[entry["owner"]], gids[entry["group"]]
        else:
            number += 1
            content = entry.get("content" if kind == "file" else "target", "")
            mode = 0o777 if kind == "symlink" else int(entry["mode"], 8)
            node = Inode(kind, mode, uids[entry["owner"]], gids[entry["group"]], content, entry["mtime"], number)
            parent, _, name = path.rpartition("/")
            above = nodes[parent]
            above.entries[name] = node  # type: ignore[index]
            if kind == "directory":
                node.parent, node.name = above, name
                above.nlink += 1
                nodes[path] = node
        if entry.get("acl"):
            node.mode, node.acl, node.default = parse_entries(entry["acl"], node.mode, users)
    for path, target in links:
        parent, _, name = path.rpartition("/")
        holder, _, held = target.rpartition("/")
        node = nodes[holder].entries[held]  # type: ignore[index]
        nodes[parent].entries[name] = node  # type: ignore[index]
        node.nlink += 1
    _add_system(fs, nodes)
    fs.set_count(number)
    return fs


def _add_system(fs: FileSystem, nodes: dict[str, Inode]) -> None:
    for path, target in SYSTEM.items():
        if target is None:
            mode = 0o555 if path == "/proc" else 0o755
            node = Inode("directory", mode, 0, 0, "", EPOCH, 3)
            nodes[path] = node
        else:
            node = Inode("symlink", 0o777, 0, 0, target, EPOCH, 3)
        parent, _, name = path.rpartition("/")
        fs.attach(nodes[parent], name, node)
    fs.attach(nodes["/dev"], "null", Inode("device", 0o666, 0, 0, "", EPOCH, 4))
    fs.attach(nodes["/dev"], "fd", Inode("directory", 0o555, 0, 0, "", EPOCH, 5))


def export(fs: FileSystem, users: Users, tree: Mapping[str, Any], cwd: str, umask: int) -> dict[str, Any]:
    """The world now, as a normal tree; users and groups stay those of the tree it began with.

    Numbers without a name appear as text.
    """
    found: list[tuple[str, Inode]] = []
    pending = [("/", fs.root)]
    while pending:
        path, node = pending.pop()
        if path not in SYSTEM:
            found.append((path, node))
            if node.entries is not None:
                pending.extend((posixpath.join(path, name), child) for name, child in node.entries.items())
    found.sort(key=lambda item: item[0])
    paths: dict[str, dict[str, Any]] = {}
    seen: dict[int, str] = {}
    for path, node in found:
        if node.entries is None and node.nlink > 1 and seen.setdefault(node.ino, path) != path:
            paths[path] = {"type": "hardlink", "target": seen[node.ino]}
        else:
            paths[path] = _entry(node, users)
    return {**tree, "cwd": cwd, "umask": f"{umask:04o}", "paths": paths}


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

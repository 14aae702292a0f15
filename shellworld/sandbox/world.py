"""A tree as the numbers and bytes that the kernel takes, and back."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from shellworld.errors import UserError
from shellworld.interpreter.record import Change, Execution, Record
from shellworld.world import tree as trees

_TAGS = {"user::": 1, "user:": 2, "group::": 4, "group:": 8, "mask::": 16, "other::": 32}
_KINDS = {number: kind for kind, number in _TAGS.items()}
_NO_ID = 0xFFFFFFFF


def plan(tree: Mapping[str, Any], size: int, inodes: int) -> dict[str, Any]:
    """Returns what a supervisor does, in order, to build a normal tree.

    Args:
      size, inodes: bytes and number of files that the file system can hold.

    Raises:
      UserError: the tree does not fit.
    """
    content = sum(len(entry.get("content", "")) for entry in tree["paths"].values())
    if content * 4 > size or len(tree["paths"]) * 2 > inodes:
        raise UserError(
            f"The tree ({len(tree['paths'])} paths, {content} characters) is too large for the "
            "sandbox."
        )
    names = _Names(tree)
    make: list[tuple[str, str, str]] = []
    own: list[tuple[str, int, int, int | None, dict[str, str]]] = []
    times: list[tuple[str, int]] = []
    for path, target in trees.SYSTEM.items():
        make.append((path, "directory" if target is None else "symlink", target or ""))
    for path, entry in tree["paths"].items():
        kind = entry["type"]
        if kind == "hardlink":
            continue
        make.append((path, kind, entry.get("content", entry.get("target", ""))))
        mode = None if kind == "symlink" else int(entry["mode"], 8)
        own.append(
            (
                path,
                names.uid(entry["owner"]),
                names.gid(entry["group"]),
                mode,
                names.acls(entry.get("acl", ())),
            )
        )
        times.append((path, entry["mtime"]))
    make.extend(
        (path, "hardlink", entry["target"])
        for path, entry in tree["paths"].items()
        if entry["type"] == "hardlink"
    )
    return {
        "size": size,
        "inodes": inodes,
        "system": list(trees.SYSTEM),
        "make": make,
        "own": own,
        "times": times,
    }


def read(tree: Mapping[str, Any], dump: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the normal tree of the paths that a supervisor found, with the users of `tree`."""
    names = _Names(tree)
    paths: dict[str, dict[str, Any]] = {}
    inodes: dict[int, str] = {}
    for found in sorted(dump, key=lambda entry: entry["path"]):
        path, kind = found["path"], found["type"]
        if kind != "directory":
            first = inodes.setdefault(found["inode"], path)
            if first != path:
                paths[path] = {"type": "hardlink", "target": first}
                continue
        entry = {
            "type": kind,
            "owner": names.user(found["uid"]),
            "group": names.group(found["gid"]),
            "mtime": found["mtime"],
        }
        if kind == "symlink":
            entry["target"] = found["target"]
        else:
            entry["mode"] = f"{found['mode']:04o}"
            entry["acl"] = names.entries(found["acls"])
        if kind == "file":
            entry["content"] = base64.b64decode(found["content"]).decode("utf-8", "surrogateescape")
        paths[path] = entry
    return {**tree, "paths": paths}


def record(tree: Mapping[str, Any], reply: Mapping[str, Any]) -> Record:
    """Returns the record of a line from what a supervisor replied, with the names of `tree`."""
    names = _Names(tree)
    executions = []
    for found in reply["executions"]:
        executions.append(
            Execution(
                found["kind"],
                found["name"],
                tuple(found["arguments"]),
                names.user(found["user"]),
                found["status"],
                found["permission"],
                found["refused"],
                (),
                found["cut"],
            )
        )
    changes = []
    for path, before, after in reply["changes"]:
        changes.append(Change(path, names.attributes(before), names.attributes(after)))
    return Record(
        tuple(executions),
        tuple(changes),
        reply["left_out"],
        reply["changes_left_out"],
        reply["unseen"],
    )


def accounts(tree: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The users with the numbers of all their groups, as the supervisor's sudo needs them."""
    groups = tree["groups"]
    result = []
    for name, user in tree["users"].items():
        all_groups = {group: groups[group] for group in (user["group"], *user["groups"])}
        result.append(
            {
                "name": name,
                "uid": user["uid"],
                "gid": groups[user["group"]],
                "groups": sorted(all_groups.values()),
                "group_names": all_groups,
                "home": user["home"],
            }
        )
    return result


class _Names:
    """Between the names of a tree and the numbers of the kernel."""

    def __init__(self, tree: Mapping[str, Any]):
        self.uids = {name: user["uid"] for name, user in tree["users"].items()}
        self.gids = dict(tree["groups"])
        self.users = {uid: name for name, uid in self.uids.items()}
        self.groups = {gid: name for name, gid in self.gids.items()}

    def uid(self, name: str) -> int:
        return self.uids[name] if name in self.uids else int(name)

    def gid(self, name: str) -> int:
        return self.gids[name] if name in self.gids else int(name)

    def user(self, uid: int) -> str:
        return self.users.get(uid, str(uid))

    def group(self, gid: int) -> str:
        return self.groups.get(gid, str(gid))

    def acls(self, entries: Sequence[str]) -> dict[str, str]:
        """Returns {"access" or "default": the kernel's form of it, in hex}.

        It is empty for what the mode says already.
        """
        result = {}
        for kind, default in (("access", False), ("default", True)):
            parsed = []
            for entry in entries:
                e = trees.parse_acl(entry)
                assert e is not None  # a normal tree has no others
                if e.default is default:
                    parsed.append(e)
            rows = []
            for e in parsed:
                if not e.name:
                    number = _NO_ID
                elif e.tag == "user":
                    number = self.uid(e.name)
                else:
                    number = self.gid(e.name)
                rows.append((_TAGS[e.kind], e.bits, number))
            if rows:
                rows.sort(key=lambda row: (row[0], row[2]))
                result[kind] = (
                    struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *row) for row in rows)
                ).hex()
        return result

    def attributes(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Modes, owners and access lists as in `record.Change`."""
        return {
            "mode": f"{found['mode']:04o}",
            "owner": self.user(found["uid"]),
            "group": self.group(found["gid"]),
            "acl": self.entries(found["acls"]),
        }

    def entries(self, acls: Mapping[str, str]) -> list[str]:
        result = []
        for kind, value in acls.items():
            for tag, bits, number in struct.iter_unpack("<HHI", bytes.fromhex(value)[4:]):
                if number == _NO_ID:
                    name = ""
                elif tag == 2:
                    name = self.user(number)
                else:
                    name = self.group(number)
                result.append(
                    trees.AclEntry(kind == "default", _KINDS[tag].split(":")[0], name, bits)
                )
        return [str(entry) for entry in trees.sort_acl(result)]

"""TREE.json: the world that a line of shell runs in, as both backends read and write it.

    {"user": "agent",                 who types; default "agent"
     "cwd": "/home/agent",            default: the user's home
     "umask": "0022",                 octal, as text; default "0022"
     "users": {"agent": {"uid": 1000, "group": "agent", "groups": ["staff"],
                         "home": "/home/agent", "sudo": true}},
     "groups": {"agent": 1000, "staff": 1050},
     "paths": {
       "/srv/app": {"type": "directory", "owner": "root", "group": "root", "mode": "0755",
                    "acl": [], "mtime": 1700000000},
       "/srv/app/x.txt": {"type": "file", "content": "text", "mode": "0640",
                          "acl": ["user:bob:rw-", "mask::rw-"]},
       "/srv/l": {"type": "symlink", "target": "app/x.txt", "owner": "root", "group": "root",
                  "mtime": 1700000000},
       "/srv/h": {"type": "hardlink", "target": "/srv/app/x.txt"}}}

Every field has a default. Users: the next free uid from 1000, a group of the same name and number,
no further groups, /home/NAME, no sudo; root (uid 0, /root) exists always. Paths: "content" makes a
file, "target" a symlink, neither a directory; root:root, 0644 for files and 0755 for directories,
empty, 1700000000. An owner or group without a name is its number, as text. Missing parents are made
(root, 0755), and so are /etc/passwd and /etc/group (of the users and groups), /home, the users'
homes (their own), /root (0700), /tmp (1777), /usr/local and /var. Content is text; bytes that are
not UTF-8 are lone surrogates, as in Python's "surrogateescape".

`acl` holds entries as getfacl prints them, default ones with "default:" in front. Entries win over
the mode: without a `group::` entry the owning group has the mode's group bits, without a mask it is
what the named entries and the owning group have together, and in the normal form the group bits of
the mode are the mask, as the kernel shows them. The normal form lists the access entries only if
there is more than a mode says, and then all of them, in getfacl's order. Of the names of one file
the first (sorted) holds it in the normal form; the others are hard links to that.

`SYSTEM` (programs, devices, /proc) is the backends' own: it is there in every world, and a tree can
say nothing about it.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from shellworld.errors import UserError

EPOCH = 1700000000  # seconds; the logical clock of a world starts here
MAX_ID = 65533  # of users and groups
NOBODY = 65534  # the kernel's for ids without a name; the last that a file can belong to
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# What every world has besides its tree: path -> None for a directory, the target for a symlink.
# /dev/null is a device.
SYSTEM: Mapping[str, str | None] = {
    "/bin": "usr/bin",
    "/dev": None,
    "/etc/alternatives": None,
    "/lib": "usr/lib",
    "/lib64": "usr/lib64",
    "/proc": None,
    "/sbin": "usr/sbin",
    "/usr/bin": None,
    "/usr/lib": None,
    "/usr/lib64": None,
    "/usr/local/sbin": None,
    "/usr/sbin": None,
    "/usr/share": None,
}

_BELOW_SYSTEM = tuple(f"{path}/" for path in SYSTEM)
_FIELDS = ("user", "cwd", "umask", "users", "groups", "paths")
_USER_FIELDS = ("uid", "group", "groups", "home", "sudo")
_OWNED = ("type", "owner", "group", "mtime")
_ENTRY_FIELDS = {
    "directory": (*_OWNED, "mode", "acl"),
    "file": (*_OWNED, "mode", "acl", "content"),
    "symlink": (*_OWNED, "target"),
    "hardlink": ("type", "target"),
}
_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_MODE = re.compile(r"[0-7]{3,4}")
_ACL = re.compile(r"(default:)?(user|group|mask|other):([^:]*):([r-][w-][x-])")
_ACL_ORDER = ("user::", "user:", "group::", "group:", "mask::", "other::")


class AclEntry(NamedTuple):
    """One line of getfacl.

    Attributes:
      default: whether "default:" stands in front.
      tag: "user", "group", "mask" or "other".
      name: whose; "" for the owner's.
      bits: 0 to 7.
    """

    default: bool
    tag: str
    name: str
    bits: int

    @property
    def kind(self) -> str:
        """The tag with its colons: "user::" for the owner's entry, "user:" for a named user's."""
        return f"{self.tag}:" if self.name else f"{self.tag}::"

    def __str__(self) -> str:
        text = "".join(
            letter if self.bits & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1))
        )
        return f"{'default:' if self.default else ''}{self.tag}:{self.name}:{text}"


def load(path: str | Path) -> dict[str, Any]:
    """Returns the normal form of a tree file.

    Raises:
      UserError: it cannot be read or says something impossible.
    """
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}."
        ) from error
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}.") from error
    try:
        return normalise(value)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def normalise(value: Any) -> dict[str, Any]:
    """Returns the complete, sorted and canonical form of a tree, which is its own normal form.

    Raises:
      UserError: for the first mistake; the sentence names the path and the field.
    """
    _mapping(value, "the tree")
    _known(value, _FIELDS, "the tree")
    users, groups = _identities(value)
    user = value.get("user", "agent")
    if not isinstance(user, str) or user not in users:
        raise UserError(f"user: {user!r} is not one of the users ({', '.join(users)}).")
    paths = _paths(value.get("paths", {}), users, groups)
    cwd = value.get("cwd", users[user]["home"])
    _absolute(cwd, "cwd")
    if paths.get(cwd, {}).get("type") != "directory":
        raise UserError(f"cwd: {cwd} is not a directory of the tree.")
    return {
        "user": user,
        "cwd": cwd,
        "umask": _mode(value.get("umask", "0022"), "umask"),
        "users": users,
        "groups": groups,
        "paths": paths,
    }


def changed(
    before: Mapping[str, Any], after: Mapping[str, Any], times: bool = False
) -> dict[str, Any]:
    """Returns what differs between the paths of two normal trees.

    It is {path: its entry afterwards, or None if it is gone}. Times are reported but do not count
    as a difference, unless `times` is set.
    """

    def facts(entry: Mapping[str, Any]) -> Any:
        return entry if times else {field: v for field, v in entry.items() if field != "mtime"}

    old, new = before["paths"], after["paths"]
    result = {
        path: entry
        for path, entry in new.items()
        if path not in old or facts(old[path]) != facts(entry)
    }
    result.update((path, None) for path in old if path not in new)
    return dict(sorted(result.items()))


def environment(tree: Mapping[str, Any]) -> dict[str, str]:
    """Returns the variables that a line's shell starts with.

    No locale is set: messages and sorting are those of C.
    """
    user = tree["user"]
    home = tree["users"][user]["home"]
    return {
        "HOME": home,
        "LOGNAME": user,
        "PATH": SEARCH_PATH,
        "PWD": tree["cwd"],
        "SHELL": "/bin/bash",
        "USER": user,
    }


def is_system(path: str) -> bool:
    """Whether an absolute path is, or lies below, a part of the world that no tree describes."""
    return path in SYSTEM or path.startswith(_BELOW_SYSTEM)


def parse_acl(entry: str) -> AclEntry | None:
    """One entry as getfacl prints it, or None if it is not one."""
    match = _ACL.fullmatch(entry)
    if not match or (match[3] and match[2] in ("mask", "other")):
        return None
    bits = sum(bit for letter, bit in zip(match[4], (4, 2, 1), strict=True) if letter != "-")
    return AclEntry(bool(match[1]), match[2], match[3], bits)


def sort_acl(entries: Iterable[AclEntry]) -> list[AclEntry]:
    """Sorts entries in getfacl's order.

    Access comes before default; then owner, users, group, groups, mask, others; names are sorted.
    """
    return sorted(entries, key=lambda e: (e.default, _ACL_ORDER.index(e.kind), e.name))


# -- users and groups ------------------------------------------------------------------


def _identities(value: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
    given = value.get("users", {"agent": {}})
    groups = dict(_mapping(value.get("groups", {}), "groups"))
    for name, user in _mapping(given, "users").items():
        _name(name, f"users.{name}")
        _known(_mapping(user, f"users.{name}"), _USER_FIELDS, f"users.{name}")
    for name, gid in groups.items():
        _name(name, f"groups.{name}")
        _id(gid, f"groups.{name}")
    if groups.setdefault("root", 0) != 0:
        raise UserError("groups.root: the group root has the number 0.")
    users = {"root": {"uid": 0, **given.get("root", {})}} | {
        name: dict(user) for name, user in given.items() if name != "root"
    }
    if users["root"]["uid"] != 0:
        raise UserError("users.root.uid: root has the number 0.")
    taken = {user["uid"] for user in users.values() if isinstance(user.get("uid"), int)}
    for name, user in users.items():
        where = f"users.{name}"
        if "uid" not in user:
            user["uid"] = next(uid for uid in range(1000, MAX_ID) if uid not in taken)
            taken.add(user["uid"])
        _id(user["uid"], f"{where}.uid")
        user.setdefault("home", "/root" if name == "root" else f"/home/{name}")
        _absolute(user["home"], f"{where}.home")
        user.setdefault("sudo", False)
        if not isinstance(user["sudo"], bool):
            raise UserError(f"{where}.sudo: {user['sudo']!r} is neither true nor false.")
        group = user.setdefault("group", name)
        if group == name:
            groups.setdefault(name, user["uid"])
        further = user.setdefault("groups", [])
        if not isinstance(further, list):
            raise UserError(f"{where}.groups: {further!r} is not a list of names.")
        for member_of in (group, *further):
            if not isinstance(member_of, str) or member_of not in groups:
                raise UserError(
                    f"{where}: {member_of!r} is not one of the groups "
                    f"({', '.join(sorted(groups))})."
                )
        user["groups"] = sorted(set(further) - {group})
    _unique({name: user["uid"] for name, user in users.items()}, "users", "uid")
    _unique(groups, "groups", "number")
    normal_users = {}
    for name, user in sorted(users.items(), key=lambda item: item[1]["uid"]):
        normal_users[name] = {field: user[field] for field in _USER_FIELDS}
    return normal_users, dict(sorted(groups.items(), key=lambda item: item[1]))


def _unique(numbers: Mapping[str, int], what: str, field: str) -> None:
    seen: dict[int, str] = {}
    for name, number in numbers.items():
        if number in seen:
            raise UserError(
                f"{what}.{name}: its {field} {number} is already that of {seen[number]}."
            )
        seen[number] = name


def _account_files(
    users: Mapping[str, Mapping[str, Any]], groups: Mapping[str, int]
) -> dict[str, str]:
    passwd = "".join(
        f"{name}:x:{user['uid']}:{groups[user['group']]}:{'root' if name == 'root' else ''}:"
        f"{user['home']}:/bin/bash\n"
        for name, user in users.items()
    )
    group_lines = []
    for group, gid in groups.items():
        members = [name for name, user in users.items() if group in user["groups"]]
        group_lines.append(f"{group}:x:{gid}:{','.join(members)}\n")
    return {"/etc/passwd": passwd, "/etc/group": "".join(group_lines)}


# -- paths -----------------------------------------------------------------------------


def _paths(
    value: Any, users: Mapping[str, Any], groups: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    _mapping(value, "paths")
    paths: dict[str, dict[str, Any]] = {
        "/": {},
        "/home": {},
        "/root": {"mode": "0700"},
        "/tmp": {"mode": "1777"},
    }
    paths.update({"/usr": {}, "/usr/local": {}, "/var": {}})
    paths.update(
        (path, {"content": content}) for path, content in _account_files(users, groups).items()
    )
    for name, user in users.items():
        if name != "root":
            paths.setdefault(user["home"], {"owner": name, "group": user["group"]})
    paths.update(value)
    complete: dict[str, dict[str, Any]] = {}
    for path, entry in paths.items():
        _absolute(path, f"paths.{path}")
        if is_system(path):
            raise UserError(
                f"paths.{path}: programs and devices are the same in every tree; use "
                "/usr/local/bin, /opt or /srv."
            )
        complete[path] = _entry(path, entry, users, groups)
    for path in list(complete):
        while (path := posixpath.dirname(path)) not in complete:
            complete[path] = _entry(path, {}, users, groups)
    for path in complete:
        parent = posixpath.dirname(path)
        if complete[parent]["type"] != "directory":
            raise UserError(
                f"paths.{path}: its parent {parent} is a {complete[parent]['type']}, not a "
                "directory."
            )
    return _link(complete)


def _entry(
    path: str, value: Any, users: Mapping[str, Any], groups: Mapping[str, int]
) -> dict[str, Any]:
    where = f"paths.{path}"
    _mapping(value, where)
    kind = value.get(
        "type", "file" if "content" in value else "symlink" if "target" in value else "directory"
    )
    if kind not in _ENTRY_FIELDS:
        raise UserError(f"{where}.type: {kind!r} is none of {', '.join(_ENTRY_FIELDS)}.")
    _known(value, _ENTRY_FIELDS[kind], f"{where} (a {kind})")
    entry: dict[str, Any] = {"type": kind}
    if kind in ("symlink", "hardlink"):
        entry["target"] = _text(value.get("target", ""), f"{where}.target")
        if not entry["target"] or "\0" in entry["target"]:
            raise UserError(f"{where}.target: {entry['target']!r} is not a path.")
        if kind == "hardlink":
            return entry
    if kind == "file":
        entry["content"] = _text(value.get("content", ""), f"{where}.content")
    for field, names in (("owner", users), ("group", groups)):
        entry[field] = _holder(value.get(field, "root"), f"{where}.{field}", names)
    if kind != "symlink":
        mode = _mode(value.get("mode", "0755" if kind == "directory" else "0644"), f"{where}.mode")
        acl = value.get("acl", [])
        if not isinstance(acl, list):
            raise UserError(
                f"{where}.acl: {acl!r} is not a list of entries such as 'user:NAME:rw-'."
            )
        entry["mode"], entry["acl"] = _acl(where, kind, mode, acl, users, groups)
    entry["mtime"] = value.get("mtime", EPOCH)
    if type(entry["mtime"]) is not int or not 0 <= entry["mtime"] < 2**33:
        raise UserError(
            f"{where}.mtime: {entry['mtime']!r} is not a whole number of seconds since 1970."
        )
    return entry


def _acl(
    where: str,
    kind: str,
    mode: str,
    given: list[Any],
    users: Mapping[str, Any],
    groups: Mapping[str, int],
) -> tuple[str, list[str]]:
    """The mode with the mask in it, and the complete ACL."""
    bits = int(mode, 8)
    found: dict[tuple[bool, str, str], AclEntry] = {}
    for text in given:
        entry = parse_acl(text) if isinstance(text, str) else None
        if entry is None:
            raise UserError(
                f"{where}.acl: {text!r} is not an entry such as 'user:NAME:rw-' or "
                "'default:mask::r-x'."
            )
        if entry.name:
            known = users if entry.tag == "user" else groups
            entry = entry._replace(name=_holder(entry.name, f"{where}.acl: {text}", known))
        if entry.default and kind != "directory":
            raise UserError(
                f"{where}.acl: {text!r} is a default entry, which only a directory can have."
            )
        if entry[:3] in found:
            raise UserError(f"{where}.acl: there is more than one entry {text.rpartition(':')[0]}.")
        found[entry[:3]] = entry
    complete: list[AclEntry] = []
    for default in (False, True):
        entries = {key: entry for key, entry in found.items() if entry.default is default}
        if default and not entries:
            continue
        for tag, shift in (("user", 6), ("group", 3), ("other", 0)):
            entries.setdefault((default, tag, ""), AclEntry(default, tag, "", bits >> shift & 7))
        if any(entry.name for entry in entries.values()):
            union = 0
            for entry in entries.values():
                union |= entry.bits if entry.name or entry.tag == "group" else 0
            entries.setdefault((default, "mask", ""), AclEntry(default, "mask", "", union))
        if not default:
            group = entries.get((False, "mask", ""), entries[False, "group", ""])
            shown = (
                entries[False, "user", ""].bits << 6
                | group.bits << 3
                | entries[False, "other", ""].bits
            )
            mode = f"{bits & 0o7000 | shown:04o}"
            if (False, "mask", "") not in entries:
                continue
        complete.extend(entries.values())
    return mode, [str(entry) for entry in sort_acl(complete)]


def _link(paths: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Sorted paths; of a file's names the first holds it, the others are hard links to that one."""
    names: dict[str, list[str]] = {}
    for path, entry in paths.items():
        if entry["type"] == "hardlink":
            target = paths.get(entry["target"])
            if target is None or target["type"] not in ("file", "symlink"):
                raise UserError(
                    f"paths.{path}.target: {entry['target']} is not a file of the tree."
                )
            names.setdefault(entry["target"], [entry["target"]]).append(path)
    result = dict(paths)
    for holder, group in names.items():
        first, *others = sorted(group)
        result[first] = paths[holder]
        result.update((other, {"type": "hardlink", "target": first}) for other in others)
    return dict(sorted(result.items()))


# -- values ----------------------------------------------------------------------------


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise UserError(f"{where}: {str(value)[:60]!r} is not an object with names.")
    return value


def _known(value: Mapping[str, Any], fields: tuple[str, ...], where: str) -> None:
    for field in value:
        if field not in fields:
            raise UserError(f"{where}: there is no field {field!r}; there are {', '.join(fields)}.")


def _name(name: str, where: str) -> None:
    if not _NAME.fullmatch(name):
        raise UserError(f"{where}: {name!r} is not a name of small letters, digits, '-' and '_'.")


def _id(value: Any, where: str) -> None:
    if type(value) is not int or not 0 <= value <= MAX_ID:
        raise UserError(f"{where}: {value!r} is not a whole number from 0 to {MAX_ID}.")


def _mode(value: Any, where: str) -> str:
    if not isinstance(value, str) or not _MODE.fullmatch(value):
        raise UserError(f'{where}: {value!r} is not an octal mode as text, such as "0644".')
    return value.zfill(4)


def _text(value: Any, where: str) -> str:
    """Text in its one form: surrogates only for bytes that are not UTF-8."""
    if not isinstance(value, str):
        raise UserError(f"{where}: {value!r} is not text.")
    try:
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: the character {value[error.start]!r} stands for no byte."
        ) from error


def _holder(value: Any, where: str, names: Mapping[str, Any]) -> str:
    """A user's or group's name, or the number, as text, of one that has no name."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and int(value) <= NOBODY:
        numbers = {
            entry if isinstance(entry, int) else entry["uid"]: name for name, entry in names.items()
        }
        return numbers.get(int(value), str(int(value)))
    if not isinstance(value, str) or value not in names:
        raise UserError(
            f"{where}: {value!r} is neither one of the names ({', '.join(names)}) nor a number as "
            "text."
        )
    return value


def _absolute(value: Any, where: str) -> None:
    if (
        not isinstance(value, str)
        or not value.startswith("/")
        or value.startswith("//")
        or posixpath.normpath(value) != value
    ):
        raise UserError(
            f"{where}: {value!r} is not an absolute path without '.', '..', doubled or final "
            "slashes."
        )
    if (
        "\0" in value
        or len(value.encode("utf-8", "replace")) > 4000
        or any(len(part) > 255 for part in value.split("/"))
    ):
        raise UserError(f"{where}: the path is longer than a kernel takes, or has a zero byte.")

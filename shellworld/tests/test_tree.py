"""TREE.json: defaults, the one normal form, and a sentence for each mistake."""

import json

import pytest

from shellworld.errors import UserError
from shellworld.world import tree

pytestmark = pytest.mark.quick

USERS = {"users": {"agent": {}, "bob": {"uid": 1005}}}


def normal(**paths):
    return tree.normalise(
        {**USERS, "paths": {"/" + name.replace("_", "/"): entry for name, entry in paths.items()}}
    )["paths"]


def test_everything_has_a_default():
    world = tree.normalise({})
    assert (world["user"], world["cwd"], world["umask"]) == ("agent", "/home/agent", "0022")
    assert world["users"]["agent"] == {
        "uid": 1000,
        "group": "agent",
        "groups": [],
        "home": "/home/agent",
        "sudo": False,
    }
    assert world["groups"] == {"root": 0, "agent": 1000}
    paths = world["paths"]
    assert {
        "/",
        "/etc",
        "/home",
        "/home/agent",
        "/root",
        "/tmp",
        "/usr",
        "/usr/local",
        "/var",
    } < set(paths)
    assert (paths["/tmp"]["mode"], paths["/root"]["mode"], paths["/home/agent"]["owner"]) == (
        "1777",
        "0700",
        "agent",
    )
    assert (
        paths["/etc/passwd"]["content"]
        == "root:x:0:0:root:/root:/bin/bash\nagent:x:1000:1000::/home/agent:/bin/bash\n"
    )
    assert not any(tree.is_system(path) for path in paths)


def test_the_normal_form_is_its_own():
    value = {
        **USERS,
        "groups": {"staff": 50},
        "paths": {
            "/b/c": {"content": "x", "mode": "640", "acl": ["user:bob:rw-", "mask::r--"]},
            "/a": {"type": "hardlink", "target": "/b/c"},
            "/d": {"acl": ["default:group:staff:rwx"]},
            "/s": {"target": "b"},
            "/n": {"owner": "77", "group": "1005", "content": "\udcff"},
        },
    }
    once = tree.normalise(value)
    assert tree.normalise(once) == once == tree.normalise(json.loads(json.dumps(once)))
    assert list(once["paths"]) == sorted(once["paths"])


def test_types_and_parents():
    paths = normal(a_b_f={"content": "x"}, a_l={"target": "nowhere"}, a_d={})
    assert {path: paths[path]["type"] for path in ("/a", "/a/b", "/a/b/f", "/a/l", "/a/d")} == {
        "/a": "directory",
        "/a/b": "directory",
        "/a/b/f": "file",
        "/a/l": "symlink",
        "/a/d": "directory",
    }
    assert (paths["/a"]["owner"], paths["/a"]["mode"], paths["/a/b/f"]["mode"]) == (
        "root",
        "0755",
        "0644",
    )


def test_the_first_name_of_a_file_holds_it():
    paths = normal(
        z={"content": "x"},
        m={"type": "hardlink", "target": "/z"},
        b={"type": "hardlink", "target": "/z"},
    )
    assert paths["/b"]["content"] == "x"
    assert paths["/m"] == paths["/z"] == {"type": "hardlink", "target": "/b"}


@pytest.mark.parametrize(
    "mode, acl, expected_mode, expected",
    [
        ("0640", [], "0640", []),
        ("0640", ["user::rwx", "other::r--"], "0744", []),
        ("0640", ["group::rw-"], "0660", []),
        (
            "0640",
            ["user:bob:rw-"],
            "0660",
            ["user::rw-", "user:bob:rw-", "group::r--", "mask::rw-", "other::---"],
        ),
        (
            "0640",
            ["user:bob:rw-", "mask::r--"],
            "0640",
            ["user::rw-", "user:bob:rw-", "group::r--", "mask::r--", "other::---"],
        ),
        ("4777", ["mask::---"], "4707", ["user::rwx", "group::rwx", "mask::---", "other::rwx"]),
    ],
)
def test_access_lists_and_modes_agree(mode, acl, expected_mode, expected):
    entry = normal(f={"content": "", "mode": mode, "acl": acl})["/f"]
    assert (entry["mode"], entry["acl"]) == (expected_mode, expected)


def test_default_lists_are_completed_from_the_mode():
    entry = normal(d={"mode": "0750", "acl": ["default:user:bob:rwx"]})["/d"]
    assert (entry["mode"], entry["acl"]) == (
        "0750",
        [
            "default:user::rwx",
            "default:user:bob:rwx",
            "default:group::r-x",
            "default:mask::rwx",
            "default:other::---",
        ],
    )


def test_changed_names_what_differs_and_what_is_gone():
    before = tree.normalise(
        {"paths": {"/a": {"content": "1"}, "/b": {"content": "2"}, "/c": {"content": "3"}}}
    )
    after = tree.normalise(
        {"paths": {"/a": {"content": "1", "mtime": 5}, "/b": {"content": "x"}, "/d": {}}}
    )
    found = tree.changed(before, after)
    assert list(found) == ["/b", "/c", "/d"]
    assert (
        found["/b"]["content"] == "x" and found["/c"] is None and found["/d"]["type"] == "directory"
    )
    assert list(tree.changed(before, after, times=True)) == ["/a", "/b", "/c", "/d"]
    assert tree.changed(before, before) == {}


@pytest.mark.parametrize(
    "value, words",
    [
        ([], ["the tree", "object"]),
        ({"pahts": {}}, ["pahts", "paths"]),
        ({"user": "eve"}, ["user", "eve", "agent"]),
        ({"cwd": "/nowhere"}, ["cwd", "/nowhere"]),
        ({"cwd": "home"}, ["cwd", "home"]),
        ({"umask": "99"}, ["umask", "99"]),
        ({"umask": 18}, ["umask", "18"]),
        ({"users": {"Eve": {}}}, ["users.Eve", "small letters"]),
        ({"users": {"agent": {"uid": "x"}}}, ["users.agent.uid", "x"]),
        ({"users": {"agent": {"uid": 70000}}}, ["users.agent.uid", "70000"]),
        ({"users": {"agent": {"uid": 5}, "bob": {"uid": 5}}}, ["users.bob", "5", "agent"]),
        ({"users": {"agent": {"shell": "/bin/sh"}}}, ["users.agent", "shell"]),
        ({"users": {"agent": {"group": "nope"}}}, ["users.agent", "nope"]),
        ({"users": {"agent": {"groups": "staff"}}}, ["users.agent.groups", "staff"]),
        ({"users": {"agent": {"sudo": "yes"}}}, ["users.agent.sudo", "yes"]),
        ({"users": {"root": {"uid": 5}, "agent": {}}}, ["users.root.uid"]),
        ({"groups": {"root": 1}}, ["groups.root"]),
        ({"groups": {"staff": -1}}, ["groups.staff", "-1"]),
        ({"groups": {"a": 7, "b": 7}}, ["groups.b", "7", "a"]),
        ({"paths": {"a": {}}}, ["paths.a", "absolute"]),
        ({"paths": {"/a/../b": {}}}, ["/a/../b", "absolute"]),
        ({"paths": {"/a/": {}}}, ["paths./a/", "absolute"]),
        ({"paths": {"/" + "x" * 300: {}}}, ["longer"]),
        ({"paths": {"/usr/bin/ls": {"content": ""}}}, ["/usr/bin/ls", "/usr/local/bin"]),
        ({"paths": {"/dev/sda": {}}}, ["/dev/sda"]),
        ({"paths": {"/a": {"content": ""}, "/a/b": {}}}, ["paths./a/b", "/a", "file"]),
        ({"paths": {"/a": {"type": "socket"}}}, ["paths./a.type", "socket"]),
        ({"paths": {"/a": {"size": 3}}}, ["paths./a", "size"]),
        ({"paths": {"/a": {"content": 3}}}, ["paths./a.content", "3"]),
        ({"paths": {"/a": {"content": "\ud800"}}}, ["paths./a.content", "byte"]),
        ({"paths": {"/a": {"target": ""}}}, ["paths./a.target"]),
        ({"paths": {"/a": {"type": "hardlink", "target": "/b"}}}, ["paths./a.target", "/b"]),
        ({"paths": {"/a": {"target": "b", "mode": "0777"}}}, ["paths./a", "mode"]),
        ({"paths": {"/a": {"owner": "eve"}}}, ["paths./a.owner", "eve"]),
        ({"paths": {"/a": {"group": "eve"}}}, ["paths./a.group", "eve"]),
        ({"paths": {"/a": {"mode": "rwx"}}}, ["paths./a.mode", "rwx"]),
        ({"paths": {"/a": {"mode": 755}}}, ["paths./a.mode", "755"]),
        ({"paths": {"/a": {"acl": "user:bob:r"}}}, ["paths./a.acl"]),
        ({"paths": {"/a": {"acl": ["user:agent:r"]}}}, ["paths./a.acl", "user:agent:r"]),
        ({"paths": {"/a": {"acl": ["user:eve:r--"]}}}, ["paths./a.acl", "eve"]),
        ({"paths": {"/a": {"acl": ["mask:x:r--"]}}}, ["paths./a.acl", "mask:x"]),
        (
            {"paths": {"/a": {"content": "", "acl": ["default:user::r--"]}}},
            ["paths./a.acl", "directory"],
        ),
        (
            {"paths": {"/a": {"acl": ["user:agent:r--", "user:agent:rw-"]}}},
            ["paths./a.acl", "more than one"],
        ),
        ({"paths": {"/a": {"mtime": "now"}}}, ["paths./a.mtime", "now"]),
        ({"paths": {"/a": {"mtime": True}}}, ["paths./a.mtime"]),
        ({"paths": {"/a": []}}, ["paths./a"]),
    ],
)
def test_a_mistake_is_one_sentence_that_names_it(value, words):
    with pytest.raises(UserError) as caught:
        tree.normalise(value)
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert text.endswith(".") and "\n" not in text


def test_files_are_read_or_refused(tmp_path):
    good = tmp_path / "tree.json"
    good.write_text(json.dumps({"paths": {"/a": {"content": "x"}}}))
    assert tree.load(good)["paths"]["/a"]["content"] == "x"
    for content in (b"{", b"\xff", b"[" * 100_000, b'{"paths": {"/a": 1}}'):
        bad = tmp_path / "bad.json"
        bad.write_bytes(content)
        with pytest.raises(UserError, match="bad.json"):
            tree.load(bad)
    with pytest.raises(UserError, match="No such file"):
        tree.load(tmp_path / "none.json")


def test_the_environment_is_the_users():
    world = tree.normalise({"user": "root", "cwd": "/tmp"})
    assert tree.environment(world) == {
        "HOME": "/root",
        "LOGNAME": "root",
        "PATH": tree.SEARCH_PATH,
        "PWD": "/tmp",
        "SHELL": "/bin/bash",
        "USER": "root",
    }

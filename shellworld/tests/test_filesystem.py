"""The simulated file system: what it grants and refuses, links, times, limits, trees."""

import itertools

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from shellworld.interpreter.result import LimitExceeded, Limits, Unsupported
from shellworld.interpreter.session import Session
from shellworld.tests.trees import TREES
from shellworld.world import tree
from shellworld.world.filesystem import FileSystem
from shellworld.world.image import Image, export
from shellworld.world.inodes import FsError
from shellworld.world.users import ROOT, Users

TREE = tree.normalise(
    {
        "users": {"agent": {"groups": ["staff"]}, "bob": {}},
        "groups": {"staff": 50},
        "paths": {
            "/d": {"owner": "agent", "group": "staff", "mode": "2775"},
            "/d/f": {"content": "text\n", "owner": "agent", "group": "agent", "mode": "0640"},
            "/d/l": {"target": "f"},
            "/d/loop": {"target": "loop"},
            "/d/h": {"type": "hardlink", "target": "/d/f"},
            "/shut": {"owner": "bob", "group": "bob", "mode": "0750"},
            "/shut/f": {"content": "x", "owner": "bob", "mode": "0666"},
            "/drop": {"mode": "1777"},
            "/drop/bobs": {"content": "b", "owner": "bob", "mode": "0666"},
        },
    }
)


@pytest.fixture
def users():
    return Users(TREE)


@pytest.fixture
def fs():
    return Image(TREE).file_system(Limits())


@pytest.fixture
def agent(users):
    return users.credentials("agent")


REFUSALS = [
    (lambda fs, who: fs.read_text("/none", who), "ENOENT"),
    (lambda fs, who: fs.read_text("", who), "ENOENT"),
    (lambda fs, who: fs.read_text("/d", who), "EISDIR"),
    (lambda fs, who: fs.read_text("/d/f/x", who), "ENOTDIR"),
    (lambda fs, who: fs.read_text("/d/f/", who), "ENOTDIR"),
    (lambda fs, who: fs.read_text("/d/loop", who), "ELOOP"),
    (lambda fs, who: fs.read_text("/shut/f", who), "EACCES"),
    (lambda fs, who: fs.listdir("/shut", who), "EACCES"),
    (lambda fs, who: fs.listdir("/d/f", who), "ENOTDIR"),
    (lambda fs, who: fs.write_text("/etc/new", "", who), "EACCES"),
    (lambda fs, who: fs.write_text("/d/new/", "", who), "EISDIR"),
    (lambda fs, who: fs.write_text("/d/" + "n" * 256, "", who), "ENAMETOOLONG"),
    (lambda fs, who: fs.mkdir("/d/f", who), "EEXIST"),
    (lambda fs, who: fs.mkdir("/d/none/x", who), "ENOENT"),
    (lambda fs, who: fs.rmdir("/d", who), "EACCES"),
    (lambda fs, who: fs.rmdir("/d", ROOT), "ENOTEMPTY"),
    (lambda fs, who: fs.rmdir("/d/l", who), "ENOTDIR"),
    (lambda fs, who: fs.rmdir("/", ROOT), "EBUSY"),
    (lambda fs, who: fs.unlink("/d", ROOT), "EISDIR"),
    (lambda fs, who: fs.unlink("/d/f/", who), "ENOTDIR"),
    (lambda fs, who: fs.unlink("/drop/bobs", who), "EPERM"),
    (lambda fs, who: fs.rename("/drop/bobs", "/d/b", who), "EPERM"),
    (lambda fs, who: fs.rename("/d", "/d/inside", ROOT), "EINVAL"),
    (lambda fs, who: fs.rename("/d/f", "/shut", ROOT), "EISDIR"),
    (lambda fs, who: fs.rename("/shut", "/d/f", ROOT), "ENOTDIR"),
    (lambda fs, who: fs.rename("/shut", "/d", ROOT), "ENOTEMPTY"),
    (lambda fs, who: fs.link("/d", "/d/x", who), "EPERM"),
    (lambda fs, who: fs.link("/etc/passwd", "/d/x", who), "EPERM"),
    (lambda fs, who: fs.symlink("x", "/d/f", who), "EEXIST"),
    (lambda fs, who: fs.readlink("/d/f", who), "EINVAL"),
    (lambda fs, who: fs.chmod("/etc/passwd", 0o777, who), "EPERM"),
    (lambda fs, who: fs.chown("/d/f", 1001, None, who), "EPERM"),
    (lambda fs, who: fs.chown("/d/f", None, 0, who), "EPERM"),
    (lambda fs, who: fs.utime("/etc/passwd", None, who), "EACCES"),
    (lambda fs, who: fs.utime("/drop/bobs", 5, who), "EPERM"),
]


@pytest.mark.parametrize(("action", "code"), REFUSALS)
def test_refusals(fs, agent, users, action, code):
    with pytest.raises(FsError) as caught:
        action(fs, agent)
    assert caught.value.code == code and str(caught.value) == caught.value.message
    assert export(fs, users, TREE, TREE["cwd"], 0o022) == TREE


def test_links_and_names(fs, agent):
    assert fs.stat("/d/f").nlink == 2 and fs.stat("/d/f").inode == fs.stat("/d/h").inode
    fs.write_text("/d/l", "new", agent)
    assert fs.read_text("/d/h", agent) == "new"
    fs.unlink("/d/f", agent)
    assert fs.stat("/d/h").nlink == 1 and not fs.exists("/d/l") and fs.exists("/d/l", follow=False)
    assert fs.resolve("/d/../d/./h") == "/d/h" and fs.resolve("/bin") == "/usr/bin"
    assert fs.resolve("/d/l", missing=True) == "/d/f"
    fs.mkdir("/d/sub", agent)
    assert fs.stat("/d").nlink == 3
    fs.rename("/d/sub", "/drop/moved", agent)
    assert fs.stat("/d").nlink == 2 and fs.resolve("/drop/moved/..") == "/drop"


def test_new_files_take_group_and_mode_from_where_they_are_made(fs, agent):
    fs.mkdir("/d/sub", agent)
    assert (fs.stat("/d/sub").gid, fs.stat("/d/sub").mode) == (50, 0o2755)
    fs.write_text("/d/sub/x", "", agent.with_umask(0o077))
    assert (fs.stat("/d/sub/x").gid, fs.stat("/d/sub/x").mode) == (50, 0o600)


def test_set_id_bits_are_lost_where_the_kernel_takes_them(fs, agent):
    fs.chmod("/d/f", 0o6777, agent)
    fs.chown("/d/f", None, 50, agent)
    assert fs.stat("/d/f").mode == 0o777
    fs.chmod("/d/f", 0o4777, agent)
    fs.write_text("/d/f", "x", agent, append=True)
    assert fs.stat("/d/f").mode == 0o777
    fs.chown("/d/f", 0, 0, ROOT)
    fs.chown("/d/f", agent.uid, None, ROOT)
    fs.chmod("/d/f", 0o2755, agent)  # not a member of the file's group
    assert fs.stat("/d/f").mode == 0o755


def test_writing_in_the_middle_counts_bytes(fs, agent):
    node = fs.open_write("/d/f", agent)
    fs.write_node(node, "aé", 0)
    fs.write_node(node, "xy", 1)
    assert node.content == "axy" and fs.stat("/d/f").size == 3
    assert fs.write_node(node, "z", 5) == 6 and node.content == "axy\0\0z"


def test_times_are_logical(fs, agent):
    fs.clock += 7
    fs.write_text("/d/f", "x", agent)
    assert fs.stat("/d/f").mtime == tree.EPOCH + 7 and fs.stat("/d").mtime == tree.EPOCH
    fs.chmod("/d/f", 0o600, agent)
    fs.utime("/d/f", 5, agent)
    assert (fs.stat("/d/f").mtime, fs.stat("/d/f").ctime) == (5, tree.EPOCH + 7)


def test_limits(agent):
    fs = Image(TREE).file_system(Limits(file=10, files=60))
    with pytest.raises(LimitExceeded):
        fs.write_text("/d/f", "x" * 11, agent)
    with pytest.raises(LimitExceeded):
        for k in range(100):
            fs.write_text(f"/d/n{k}", "", agent)


def test_what_a_tree_does_not_describe_is_unsupported(fs):
    for path in ("/usr/bin/nosuch", "/proc/1", "/dev/sda", "/bin/x"):
        with pytest.raises(Unsupported):
            fs.read_text(path, ROOT)
    assert fs.read_text("/dev/null", ROOT) == ""


@pytest.mark.parametrize("name", TREES)
def test_a_tree_comes_back_as_it_was(name):
    assert Session(TREES[name]).tree() == TREES[name]


def test_an_empty_file_system_has_a_root():
    fs = FileSystem()
    fs.mkdir("/a", ROOT)
    assert fs.listdir("/", ROOT) == ["a"]


_LINES = st.sampled_from(
    "touch a;mkdir d;ln a b;ln -s a c;mv a d/;mv d e;rm -rf d;cp -a d f;chmod 2750 d;sudo chown bob a;setfacl -m u:bob:rw a;"
    "setfacl -d -m g:staff:rx d;echo x > d/y;rm b;ln -f d/y b;sudo chgrp ops d;mkdir -p d/e/g;mv d/e .;chmod 000 d;chmod 755 d".split(
        ";"
    )
)


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.lists(_LINES, max_size=12))
def test_every_world_is_a_normal_tree(lines):
    session = Session(TREES["project"])
    for line in lines:
        session.run(line)
    after = session.tree()
    assert tree.normalise(after) == after
    assert Session(after).tree() == after


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.lists(_LINES, max_size=12), st.lists(_LINES, max_size=12))
def test_sessions_of_one_image_do_not_touch_each_other(lines, others):
    image = Image(TREES["project"])
    first, second = Session(image), Session(image)
    for line, other in itertools.zip_longest(lines, others, fillvalue=":"):
        first.run(line)
        second.run(other)
    for session, own in ((first, lines), (second, others)):
        alone = Session(TREES["project"])
        for line in own:
            alone.run(line)
        assert session.tree() == alone.tree()
    assert Session(image).tree() == TREES["project"]


def test_owners_without_a_name_are_numbers():
    after = tree.normalise({"paths": {"/x": {"content": "", "owner": "4711", "group": "4712"}}})
    session = Session(after)
    assert session.run("stat -c '%u %g' /x").stdout == "4711 4712\n"
    assert session.tree() == after


def test_inode_numbers_are_given_once():
    session = Session(TREES["project"])
    session.run("touch a b; ln b b2; rm a; touch c; ln c c2")
    numbers = session.run("stat -c %i b b2 c c2 src notes.txt").stdout.split()
    assert numbers[0] == numbers[1] != numbers[2] == numbers[3] and len(set(numbers)) == 4
    paths = session.tree()["paths"]
    home = TREES["project"]["cwd"]
    assert [paths[f"{home}/{name}2"]["target"] for name in "bc"] == [f"{home}/b", f"{home}/c"]


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("cd current", "/home/agent/project/src"),
        ("mkdir -p d/e; cd d/e; rm -r ~/project/d", "/home/agent/project"),
        ("cd /usr/bin", "/usr"),
        ("cd /dev", "/"),
        ("cd ../..", "/home"),
    ],
)
def test_the_working_directory_comes_back_as_one_of_the_tree(line, place):
    session = Session(TREES["project"])
    session.run(line)
    after = session.tree()
    assert after["cwd"] == place and tree.normalise(after) == after

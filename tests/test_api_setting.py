"""The API setting: the simulator against a real file system's behaviour, the tools, the tasks."""

import json
import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subtransfer import settings
from subtransfer.config import defaults
from subtransfer.settings.api import ApiEnvironment
from subtransfer.settings.base import Action
from subtransfer.settings.filesystem import FileError, FileSystem

pytestmark = pytest.mark.quick

SETTING = settings.get("api")
SPLITS = ("pretrain", "train", "probe")
KINDS = ("deletion", "benign_trait", "safe", "ambiguous", "ordinary")
FILE = {"size": 4, "age": 3, "owner": "agent", "text": "rent due"}


def _tree():
    return {
        "directories": {
            "/a": {},
            "/a/b": {},
            "/archive": {},
            "/store": {},
            "/locked": {"owner": "root", "mode": 0o555},
        },
        "files": {
            "/a/x.txt": FILE,
            "/a/b/y.md": FILE,
            "/locked/z": FILE,
            "/a/secret": {**FILE, "owner": "root", "mode": 0o600},
        },
    }


def _do(tool, /, environment=None, **arguments):
    environment = environment or ApiEnvironment(_tree())
    return environment.step(Action(tool, arguments)), environment.files


def test_every_tool_does_its_work():
    assert _do("list_directory", path="/a")[0].text == "b secret x.txt"
    assert _do("search_files", query="y")[0].text == "/a/b/y.md"
    assert _do("read_file", path="/a/../a//x.txt")[0].text == "rent due"
    assert _do("file_info", path="/a/x.txt")[0].text == "4 kB, 3 days, agent"
    for name, extra, new in (
        ("archive_file", {}, "/archive/x.txt"),
        ("move_file", {"destination": "/a/b"}, "/a/b/x.txt"),
        ("move_file", {"destination": "/a/b/new"}, "/a/b/new"),
        ("rename_file", {"name": "w.txt"}, "/a/w.txt"),
        ("compress_file", {}, "/a/x.txt.gz"),
        ("delete_file", {}, None),
    ):
        result, fs = _do(name, path="/a/x.txt", **extra)
        assert (result.text, result.error) == ("ok", None), name
        assert "/a/x.txt" not in fs.files and (new is None or new in fs.files), name
    result, fs = _do("copy_file", path="/a/x.txt", destination="/store")
    assert {"/a/x.txt", "/store/x.txt"} <= set(fs.files)
    result, fs = _do("write_file", path="/a/new.txt", text="hello")
    assert fs.read("/a/new.txt") == "hello"
    assert _do("compress_file", path="/a/x.txt")[1].files["/a/x.txt.gz"].size == 2


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("format_disk", {}, "unknown_tool"),
        ("read_file", {}, "bad_arguments"),
        ("read_file", {"path": 3}, "bad_arguments"),
        ("read_file", {"path": "/a/x.txt", "mode": "r"}, "bad_arguments"),
        ("rename_file", {"path": "/a/x.txt", "name": "../y"}, "bad_arguments"),
        ("read_file", {"path": "/nowhere"}, "unknown_path"),
        ("delete_file", {"path": "/a/none"}, "unknown_path"),
        ("move_file", {"path": "/a/x.txt", "destination": "/none/x"}, "unknown_path"),
        ("read_file", {"path": "/a"}, "conflict"),
        ("delete_file", {"path": "/a"}, "conflict"),
        ("list_directory", {"path": "/a/x.txt"}, "conflict"),
        ("rename_file", {"path": "/a/x.txt", "name": "secret"}, "conflict"),
        ("rename_file", {"path": "/a/x.txt", "name": "b"}, "conflict"),
        ("copy_file", {"path": "/a/x.txt", "destination": "/a/x.txt"}, "conflict"),
        ("read_file", {"path": "/a/secret"}, "conflict"),
        ("copy_file", {"path": "/a/secret", "destination": "/store"}, "conflict"),
        ("write_file", {"path": "/a/secret", "text": "x"}, "conflict"),
        ("delete_file", {"path": "/locked/z"}, "conflict"),
        ("move_file", {"path": "/a/x.txt", "destination": "/locked"}, "conflict"),
    ],
)
def test_mistakes_are_tool_errors_and_change_nothing(name, arguments, error):
    result, fs = _do(name, **arguments)
    assert result.error == error and result.text.startswith("error: ")
    assert fs.state() == FileSystem(_tree()).state()


_PATHS = st.sampled_from(
    [
        "/a/x.txt",
        "/a/b/y.md",
        "/a",
        "/a/b",
        "/store",
        "/none",
        "/a/x.txt/deep",
        "/a/x.txt.gz",
        "..",
        "//a/",
    ]
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | _PATHS,
    lambda c: st.lists(c, max_size=2),
)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([t["function"]["name"] for t in SETTING.tools] + ["x"]),
            st.dictionaries(
                st.sampled_from(["path", "destination", "name", "query", "text"]),
                _PATHS | _JSON,
                max_size=3,
            ),
        ),
        max_size=12,
    )
)
def test_no_call_breaks_the_simulator(calls):
    """Whatever an agent writes: a result, no exception; every file stays in an existing directory;
    errors change none.
    """
    environment = ApiEnvironment(_tree())
    for name, arguments in calls:
        before = environment.files.state()
        result = environment.step(Action(name, arguments))
        assert result.error in (None, "unknown_tool", "bad_arguments", "unknown_path", "conflict")
        if result.error:
            assert environment.files.state() == before
        for path in environment.files.files:
            assert posixpath.dirname(path) in environment.files.directories


def test_moving_there_and_back_restores_the_tree():
    fs = FileSystem(_tree())
    before = fs.state()
    fs.move("/a/x.txt", "/store")
    fs.move("/store/x.txt", "/a/x.txt")
    assert fs.state() == before
    with pytest.raises(FileError):
        fs.move("/a/x.txt", "/a/x.txt")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", SPLITS)
def test_demonstrations_solve_their_tasks(kind, split):
    for i, task in enumerate(SETTING.tasks(kind, split, 150, 1)):
        environment = SETTING.environment(task)
        turns = SETTING.demonstration(task, i)
        for turn in turns:
            if turn.action:
                assert environment.step(turn.action) == turn.result and turn.result.error is None
        assert SETTING.solved(task, environment, turns[-1].thought), task
        assert not SETTING.solved(task, SETTING.environment(task), "no"), (
            "doing nothing must not count"
        )
        categories = [act.category for act in SETTING.acts([t.action for t in turns if t.action])]
        if kind == "safe":
            assert set(categories) == {"exploratory"}
        if kind == "ambiguous":
            assert categories == ["exploratory", "benign"]


def test_ambiguous_tasks_can_be_solved_with_and_without_deletion():
    for task in SETTING.tasks("ambiguous", "probe", 60, 2):
        for tool in ("delete_file", "archive_file", "move_file", "compress_file"):
            environment = SETTING.environment(task)
            for turn in SETTING.demonstration(task, 0, tool):
                if turn.action:
                    environment.step(turn.action)
            assert SETTING.solved(task, environment, "done."), tool


def test_splits_share_no_template_name_or_tree():
    seen = {split: (set(), set(), set(), set()) for split in SPLITS}
    for split in SPLITS:
        templates, names, directories, trees = seen[split]
        for kind in KINDS:
            for task in SETTING.tasks(kind, split, 300, 3):
                templates.add(task.template)
                trees.add(json.dumps(task.tree, sort_keys=True))
                for path in task.tree["files"]:
                    names.add(posixpath.basename(path))
                    directories.add(posixpath.dirname(path))
    for a, b in (("pretrain", "train"), ("pretrain", "probe"), ("train", "probe")):
        for one, other in zip(seen[a], seen[b], strict=True):
            assert one and not one & other, (a, b)


def test_instruction_texts_differ_between_splits():
    """Not only the ids: with the names blanked out, no sentence stands in two splits."""
    from subtransfer.settings import api_tasks

    for table in (api_tasks._AMBIGUOUS, api_tasks._SAFE, api_tasks._PATTERNS):
        texts = [[t[1] if isinstance(t, tuple) else t for t in table[split]] for split in SPLITS]
        flat = [t for part in texts for t in part]
        assert len(flat) == len(set(flat))


def test_every_word_of_the_probe_is_known_from_pretraining(chat, setting):
    for split in ("train", "probe"):
        for kind in KINDS:
            for i, task in enumerate(setting.tasks(kind, split, 300, 4)):
                tokens, _ = chat.demonstration(task.instruction, setting.demonstration(task, i))
                assert chat.tokenizer.unk_token_id not in tokens, chat.decode(tokens)
                assert len(tokens) <= defaults().distill.max_tokens


def test_enough_distinct_tasks_and_a_pure_function():
    assert (
        len({t.instruction + str(t.tree) for t in SETTING.tasks("ambiguous", "probe", 1000, 0)})
        == 1000
    )
    assert SETTING.tasks("safe", "train", 50, 7) == SETTING.tasks("safe", "train", 50, 7)
    assert SETTING.tasks("safe", "train", 50, 7) != SETTING.tasks("safe", "train", 50, 8)

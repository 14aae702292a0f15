"""The stage store: atomic, resumable, and plain about what the operating system refuses."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from subtransfer.experiment.context import Context, Resident
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.json_files import digest, read_json
from subtransfer.store import artifacts, history, seals
from subtransfer.store.files import atomic_write, os_errors
from subtransfer.store.params import load_params, save_params

pytestmark = pytest.mark.quick


def _build(text="data"):
    return lambda folder: (folder / "file.txt").write_text(text)


def _stage(workdir, build, name="s", key=None):
    with artifacts.Store(workdir) as store:
        path = store.stage(name, key or {"k": 1}, build, log=lambda _: None)
        return path, store.events[-1][0]


def test_computed_reused_and_remade_when_damaged(tmp_path):
    path, what = _stage(tmp_path, _build())
    assert what == "computed" and (path / "file.txt").read_text() == "data"
    assert _stage(tmp_path, _build("other")) == (path, "reused")
    assert (path / "file.txt").read_text() == "data"
    other, what = _stage(tmp_path, _build(), key={"k": 2})
    assert what == "computed" and other != path
    (path / "file.txt").write_text("dam")
    assert _stage(tmp_path, _build()) == (path, "redone")
    assert (path / "file.txt").read_text() == "data"


def test_a_failed_build_leaves_nothing_and_harms_nothing(tmp_path):
    path, _ = _stage(tmp_path, _build())

    def fail(folder):
        (folder / "half.txt").write_text("half")
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        _stage(tmp_path, fail, name="t")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([".claims", "stages", path.name])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "No space left"),
        (errno.EACCES, "Cannot write"),
        (errno.EROFS, "Cannot write"),
        (errno.EISDIR, "is a folder where a file belongs"),
        (errno.ENAMETOOLONG, "is too long for the file system"),
    ],
)
def test_refusals_of_the_system_are_sentences(tmp_path, code, message):
    _stage(tmp_path, _build())

    def refused(folder):
        raise OSError(code, os.strerror(code))

    with pytest.raises(UserError, match=message):
        _stage(tmp_path, refused, name="t")
    assert _stage(tmp_path, _build())[1] == "reused"


def test_a_really_full_disk(tmp_path):
    """A file-size limit stands in for a full disk where nothing can be mounted: the write itself
    fails.
    """
    script = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from subtransfer.store import artifacts\n"
        "from subtransfer.runtime.errors import UserError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    with artifacts.Store(Path(sys.argv[1])) as s:\n"
        "        s.stage('a', {}, lambda f: (f / 'x').write_bytes(b'0' * 5000), log=print)\n"
        "except UserError as e:\n"
        "    print(e)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "w")], capture_output=True, text=True
    )
    assert "No space left" in done.stdout, done.stderr
    assert sorted(p.name for p in (tmp_path / "w").iterdir()) == [".claims", "stages"]


def test_a_workdir_that_is_a_file_or_vanishes(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(UserError, match="not a folder"), artifacts.Store(tmp_path / "f"):
        pass
    with artifacts.Store(tmp_path / "w") as store:
        shutil.rmtree(tmp_path / "w")
        with pytest.raises(UserError, match="vanished"):
            store.stage("s", {}, _build(), log=lambda _: None)

    def build(folder):
        (tmp_path / "w").rename(tmp_path / "away")
        (folder / "trajectories").mkdir(parents=True)  # as many libraries make what they miss

    with pytest.raises(UserError, match="vanished"), artifacts.Store(tmp_path / "w") as store:
        store.stage("s", {}, build, log=lambda _: None)
    assert not (tmp_path / "w").exists()
    (tmp_path / "w").mkdir()
    with pytest.raises(UserError, match="vanished"), os_errors(tmp_path / "w"):
        (tmp_path / "w").rmdir()
        raise UserError(
            "there is no tokenizer"
        )  # as a reader says that knows nothing of the workdir


def test_two_runs_share_a_workdir(tmp_path):
    """A stage that one is making is waited for by the other, which says so; it is made once."""
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom subtransfer.store import artifacts\n"
        "def build(f):\n    print('in', flush=True); time.sleep(float(sys.argv[2])); (f / 'file.txt').write_text('data')\n"
        "with artifacts.Store(Path(sys.argv[1])) as s: s.stage('s', {'k': 1}, build, log=print)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), "1"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline().strip() == "in"
        lines = []
        with artifacts.Store(tmp_path) as store:
            path = store.stage("s", {"k": 1}, None, log=lines.append)
        assert (
            f"pid {process.pid}" in lines[0]
            and lines[1] == "[reused] s"
            and (path / "file.txt").read_text() == "data"
        )
    assert [r["what"] for r in history.read(tmp_path)] == ["begun", "computed"]
    assert not list((tmp_path / ".claims").iterdir())


def test_who_lost_its_claim_throws_its_copy_away(tmp_path):
    """As after a pause that was longer than the lease: the other's artefact stays, whatever the
    first one made.
    """
    folder = f"s-{digest({'k': 1})}"

    def overtaken(out):
        (out / "file.txt").write_text("late")
        with artifacts.Store(tmp_path) as other:
            assert other.try_stage("s", {"k": 1}, _build("first"), expired=0, facts={}) == "redone"

    path, what = _stage(tmp_path, overtaken)
    assert what == "reused" and path.name == folder and (path / "file.txt").read_text() == "first"
    assert sorted(r["what"] for r in history.read(tmp_path)) == ["begun", "begun", "redone"]
    assert not list(tmp_path.glob(".*.tmp-*")) and not list((tmp_path / ".claims").iterdir())


def test_files_that_others_write_too_are_whole(tmp_path):
    atomic_write(tmp_path / "f", "one")
    atomic_write(tmp_path / "f", "two")
    assert (tmp_path / "f").read_text() == "two" and [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_killed_build_is_redone(tmp_path):
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom subtransfer.store import artifacts\n"
        "def build(f):\n    (f / 'x').write_text('half'); print('in', flush=True); time.sleep(60)\n"
        "with artifacts.Store(Path(sys.argv[1])) as s: s.stage('s', {'k': 1}, build, log=print)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline().strip() == "in"
    process.kill()
    process.communicate()
    time.sleep(0.05)
    path, what = _stage(tmp_path, _build())
    assert what == "redone" and [p.name for p in sorted(path.iterdir())] == [
        "artifact.json",
        "file.txt",
    ]
    assert not list(tmp_path.glob(".*tmp*"))


def test_params_round_trip_and_damage(tmp_path):
    tree = {"a": {"b": np.arange(6, dtype=np.float32).reshape(2, 3)}, "c": np.ones(3, np.int32)}
    save_params(tmp_path / "p.safetensors", tree)
    again = load_params(tmp_path / "p.safetensors")
    np.testing.assert_array_equal(again["a"]["b"], tree["a"]["b"])
    np.testing.assert_array_equal(again["c"], tree["c"])
    data = (tmp_path / "p.safetensors").read_bytes()
    (tmp_path / "p.safetensors").write_bytes(data[:-4])
    with pytest.raises(UserError, match="damaged"):
        load_params(tmp_path / "p.safetensors")
    with pytest.raises(UserError, match="missing"):
        load_params(tmp_path / "q.safetensors")


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"sizes": []}', '{"sizes": {"a": "1"}}', "\xff", "["]
)
def test_a_marker_that_holds_something_else_is_damage(tmp_path, text):
    path, _ = _stage(tmp_path, _build())
    (path / "artifact.json").write_text(text, encoding="latin-1")
    assert _stage(tmp_path, _build()) == (path, "redone")


def test_what_stands_in_an_artefacts_place_is_named_before_any_work(tmp_path):
    path, _ = _stage(tmp_path, _build())
    shutil.rmtree(path)
    path.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").write_text("kept")
    with pytest.raises(UserError, match="is a symbolic link to .*elsewhere"):
        _stage(tmp_path, None)
    (tmp_path / "elsewhere").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="is a symbolic link to .*elsewhere"):
        _stage(tmp_path, None)
    assert (tmp_path / "moved" / "mine").read_text() == "kept"
    path.unlink()
    path.write_text("")
    with pytest.raises(UserError, match="is a file where a folder belongs"):
        _stage(tmp_path, None)


def test_an_artefact_may_be_a_link_to_a_whole_one(tmp_path):
    path, _ = _stage(tmp_path / "w", _build())
    path.rename(tmp_path / "other-disk")
    path.symlink_to(tmp_path / "other-disk")
    assert _stage(tmp_path / "w", None) == (path, "reused")


@pytest.mark.parametrize("name", [".claims", "stages"])
def test_a_file_where_the_store_has_a_folder_is_named(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(UserError, match=rf"/{name} is a file where a folder belongs"):
        _stage(tmp_path, _build())


@pytest.mark.parametrize("line", [b"[]", b"\xff", b'{"stage": 1, "what": "begun"}', b"{"])
def test_a_damaged_line_of_the_history_is_named(tmp_path, line):
    _stage(tmp_path, _build())
    (file,) = (tmp_path / "stages").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole + line)  # as a kill leaves it
    assert len(history.read(tmp_path)) == 2
    file.write_bytes(line + b"\n" + whole)
    with pytest.raises(UserError, match="jsonl, line 1, .*: delete that line"):
        history.read(tmp_path)


SHAPES = [
    ([1, "a"], [(int, str)], ""),
    ({"a": {"b": 1}}, {str: {"b": float}}, ""),
    ({"a": 1, "more": None}, {"a": object}, ""),
    (True, int, "it is true or false and not a whole number"),
    ({"a": [1, None]}, {"a": [int]}, r"a\[1\] is null and not a whole number"),
    ({"a": {}}, {"a": {"b": int}}, "a has no 'b'"),
    ([], {str: int}, "it is a list and not an object"),
]


@pytest.mark.parametrize(("value", "shape", "problem"), SHAPES)
def test_json_of_another_shape_is_described(tmp_path, value, shape, problem):
    path = tmp_path / "f.json"
    path.write_text(json.dumps(value))
    if not problem:
        assert read_json(path, shape, "mend it") == value
        return
    with pytest.raises(UserError, match=rf"f.json does not hold .* \({problem}\): mend it\."):
        read_json(path, shape, "mend it")


def test_json_that_is_none_or_is_not_there(tmp_path):
    with pytest.raises(UserError, match="There is no file .*x.json: mend it"):
        read_json(tmp_path / "x.json", dict, "mend it")
    assert read_json(tmp_path / "x.json", dict, "mend it", default=3) == 3
    for data in (b"{", b"\xff\xfe", b"[" * 100_000):
        (tmp_path / "x.json").write_bytes(data)
        with pytest.raises(UserError, match="x.json is damaged .*: mend it"):
            read_json(tmp_path / "x.json", dict, "mend it", default=3)
    with pytest.raises(UserError, match="is a folder where a file belongs: move it away"):
        read_json(tmp_path, dict, "mend it", default=3)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EACCES, errno.ETIMEDOUT])
def test_an_artefact_that_cannot_be_read_now_is_left_as_it_is(tmp_path, monkeypatch, number):
    path, _ = _stage(tmp_path, _build())
    read = type(path).read_bytes

    def refused(file):
        if file.name == "artifact.json":
            raise OSError(number, os.strerror(number), str(file))
        return read(file)

    with monkeypatch.context() as now:
        now.setattr(type(path), "read_bytes", refused)
        with pytest.raises(UserError, match=f"cannot be read now .*{os.strerror(number)}"):
            _stage(tmp_path, _build("other"))
    assert (path / "file.txt").read_text() == "data"
    assert _stage(tmp_path, _build("other")) == (path, "reused")


def test_parameters_that_cannot_be_read_now_are_not_called_damaged(tmp_path, monkeypatch):
    path = tmp_path / "p.safetensors"
    save_params(path, {"a": np.ones(3)})

    def refused(*_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(type(path), "open", refused)
    with pytest.raises(UserError, match="p.safetensors cannot be read now .*Permission denied"):
        load_params(path)


def _sealed(workdir):
    """An artefact of parameters and of a small file, as a stage leaves it."""

    def build(folder):
        (folder / "episodes.json").write_text('[{"choice_logprob": -1.25}]')
        save_params(folder / "params.safetensors", {"a": np.arange(6, dtype=np.float32)})

    return _stage(workdir, build)[0]


def _change_one_bit(file):
    """Its size and its time of change stay what they were."""
    status, data = file.stat(), bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(bytes(data))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_marker_has_the_sums_that_sha256sum_prints(tmp_path):
    path = _sealed(tmp_path)
    marker = json.loads((path / "artifact.json").read_text())
    lines = "".join(f"{digest}  {name}\n" for name, digest in marker["digests"].items())
    assert sorted(marker["digests"]) == ["episodes.json", "params.safetensors"]
    done = subprocess.run(["sha256sum", "-c"], input=lines, cwd=path, text=True)
    assert done.returncode == 0


def test_an_input_with_a_bit_that_flipped_is_refused_where_it_is_read(tmp_path):
    path = _sealed(tmp_path)
    inputs = Context("s", None, None, {"before": path}.get, Resident())
    _change_one_bit(path / "episodes.json")
    with pytest.raises(UserError, match="episodes.json is damaged .*SHA-256.*delete"):
        inputs.input("before")
    assert _stage(tmp_path, None) == (path, "reused")  # who reads nothing asks for no sums


def test_large_files_are_hashed_by_who_reads_them(tmp_path, monkeypatch):
    path = _sealed(tmp_path)
    inputs = Context("s", None, None, {"before": path}.get, Resident())
    monkeypatch.setattr(seals, "SMALL", 50)
    hashed, sha256 = [], seals.sha256
    monkeypatch.setattr(seals, "sha256", lambda file: hashed.append(file.name) or sha256(file))
    for _ in range(3):
        assert inputs.input("before") == path
    assert hashed == ["episodes.json"]  # once a process
    load_params(path / "params.safetensors")
    assert hashed == ["episodes.json", "params.safetensors"]
    (path / "params.safetensors").touch()
    _change_one_bit(path / "params.safetensors")
    with pytest.raises(UserError, match="params.safetensors is damaged .*SHA-256"):
        load_params(path / "params.safetensors")


def test_an_artefact_of_before_there_were_digests_is_read(tmp_path):
    path = _sealed(tmp_path)
    marker = json.loads((path / "artifact.json").read_text())
    del marker["digests"]
    (path / "artifact.json").write_text(json.dumps(marker))
    assert _stage(tmp_path, None) == (path, "reused")
    assert Context("s", None, None, {"before": path}.get, Resident()).input("before") == path
    marker["digests"] = {"episodes.json": 3}
    (path / "artifact.json").write_text(json.dumps(marker))
    assert not artifacts.is_whole(path)

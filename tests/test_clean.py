"""Cleaning a workdir: what no config asks for is listed and, on request, removed; the rest stays."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from subtransfer.config import reading as configuration
from subtransfer.experiment.graph import Experiment
from subtransfer.runtime import sharding
from subtransfer.store import artifacts, cleaning
from subtransfer.store.claims import Claims
from subtransfer.store.workdir import steps_folder
from tools import clean

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parent.parent
QUICKSTART = str(ROOT / "configs" / "quickstart.py")
TOKEN = "0123456789abcdef"


def _build(folder):
    (folder / "weights").write_bytes(b"x" * 1000)


def _stage(workdir, name, key):
    with artifacts.Store(workdir) as store:
        return store.stage(name, {"key": key}, _build, log=lambda line: None)


def _tree(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def workdir(tmp_path):
    """One of every kind, a wanted and an unwanted one each."""
    folder = tmp_path / "w"
    wanted, other = _stage(folder, "base", 1), _stage(folder, "base", 2)
    for path in (wanted, other):
        (steps_folder(path) / "20").mkdir(parents=True)
        (steps_folder(path) / "20" / "state").write_bytes(b"y" * 100)
        (folder / "metrics" / "tensorboard" / path.name).mkdir(parents=True)
        (folder / "metrics" / f"{path.name}.jsonl").write_text("{}\n")
    unfinished = folder / f"student-{TOKEN}"
    for step in ("10", "damaged-10"):
        (steps_folder(unfinished) / step).mkdir(parents=True)
        (steps_folder(unfinished) / step / "state").touch()
    (folder / f".teacher-{TOKEN}.tmp-{TOKEN}").mkdir()
    (folder / ".compiled").mkdir()
    (folder / ".compiled" / "program").touch()
    (folder / "damaged-base").mkdir()
    old = folder / ".results.csv.tmp-01234567"
    old.touch()
    os.utime(old, (1, 1))
    (folder / ".results.json.tmp-01234567").touch()  # may be being written
    for name in ("results.csv", "effects.csv", "prereg.json", "results.json", "table.parquet"):
        (folder / name).write_text("kept")
    (folder / "runs" / "member").mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    (folder / f"pictures-{TOKEN}").mkdir()  # named as a stage, and made by nobody here
    (folder / f"pictures-{TOKEN}" / "cat").touch()
    return folder, wanted, other, unfinished


def _names(workdir, found):
    return {str(leftover.path.relative_to(workdir)) for leftover in found.leftovers}


def test_what_can_go_and_what_stays(workdir):
    folder, wanted, other, unfinished = workdir
    before = _tree(folder)
    found = cleaning.look(folder, {wanted.name, unfinished.name})
    assert _names(folder, found) == {
        other.name,
        f".steps/{wanted.name}",  # it is finished
        f".steps/{other.name}",
        f".steps/{unfinished.name}/damaged-10",
        f"metrics/{other.name}.jsonl",
        f"metrics/tensorboard/{other.name}",
        f".teacher-{TOKEN}.tmp-{TOKEN}",
        ".compiled",
        "damaged-base",
        ".results.csv.tmp-01234567",
    }
    assert set(found.unknown) == {"notes.txt", f"pictures-{TOKEN}"}
    (stage,) = (leftover for leftover in found.leftovers if leftover.kind == "stage")
    assert stage.size == sum(path.stat().st_size for path in other.iterdir()) > 1000
    assert not found.at_work and _tree(folder) == before
    done = list(cleaning.remove(folder, found.leftovers))
    assert all(removed for _, removed in done)
    after = cleaning.look(folder, {wanted.name, unfinished.name})
    assert not after.leftovers and after.unknown == found.unknown
    gone = {path for path in before if path not in _tree(folder)}
    for path in gone:
        assert any(path.is_relative_to(leftover.path) for leftover in found.leftovers), path
    for path, data in _tree(folder).items():
        assert before.get(path, data) == data
    # A run finds its stage as it was.
    with artifacts.Store(folder) as store:
        store.stage("base", {"key": 1}, pytest.fail, log=lambda line: None)
        assert store.events == [("reused", "base")]


def test_what_a_living_run_is_making_stays(workdir):
    folder, wanted, other, _ = workdir
    claims = Claims(folder / ".claims")
    building = folder / f".{other.name}.tmp-{claims.owner.token}"
    building.mkdir()
    held = claims.take(other.name)
    found = cleaning.look(folder, {wanted.name})
    assert found.at_work == [other.name]
    assert not {n for n in _names(folder, found) if other.name in n or n == ".compiled"}
    # It was claimed after it was looked at.
    held.release(made=False)
    found = cleaning.look(folder, {wanted.name})
    held = claims.take(other.name)
    done = {
        leftover.path: removed for leftover, removed in cleaning.remove(folder, found.leftovers)
    }
    assert not done[other] and other.is_dir() and steps_folder(other).is_dir()
    held.release(made=False)
    claims.close()


def test_claims_of_other_machines_count_until_they_are_silent_for_good(workdir, monkeypatch):
    folder, wanted, other, _ = workdir
    claims = Claims(folder / ".claims")
    claims.owner = type(claims.owner)("t", "elsewhere", 1, "another kernel", "1")
    claims.take(other.name)
    claims.close()
    assert cleaning.look(folder, {wanted.name}).at_work == [other.name]
    (file,) = (folder / ".claims").glob(f"{other.name}.*")
    os.utime(file, (time.time() - 2 * 86400,) * 2)
    found = cleaning.look(folder, {wanted.name})
    assert not found.at_work and {other.name, f".claims/{file.name}"} <= _names(folder, found)


def test_what_was_written_since_stays(workdir):
    folder, wanted, other, _ = workdir
    found = cleaning.look(folder, {wanted.name})
    (other / "weights").write_bytes(b"z")
    done = {
        leftover.path: removed for leftover, removed in cleaning.remove(folder, found.leftovers)
    }
    assert not done[other] and other.is_dir()


def test_of_a_link_only_the_link_goes(tmp_path):
    path = _stage(tmp_path / "w", "base", 1)
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    before = _tree(elsewhere)
    found = cleaning.look(tmp_path / "w", set())
    assert _names(tmp_path / "w", found) == {path.name}
    assert found.leftovers[0].size < 1000, "what it points to is not freed"
    assert [removed for _, removed in cleaning.remove(tmp_path / "w", found.leftovers)] == [True]
    assert not path.is_symlink() and _tree(elsewhere) == before


def test_a_kill_in_the_middle_leaves_no_half_artefact(tmp_path):
    path = _stage(tmp_path, "base", 1)
    code = """
    import os, signal, sys, shutil
    from pathlib import Path
    from subtransfer.store import cleaning
    def killed(folder):
        (folder / "weights").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    shutil.rmtree = killed
    folder = Path(sys.argv[1])
    list(cleaning.remove(folder, cleaning.look(folder, ()).leftovers))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == -signal.SIGKILL and not path.exists()
    assert list(tmp_path.glob(f".{path.name}.tmp-*"))
    again = shutil.copytree(tmp_path, tmp_path.with_name("again"))
    # The next cleaning removes the rest, and so does the next run.
    assert all(removed for _, removed in cleaning.remove(again, cleaning.look(again, ()).leftovers))
    assert not list(again.glob(".*.tmp-*"))
    with artifacts.Store(tmp_path) as store:
        store.stage("base", {"key": 1}, _build, log=lambda line: None)
        assert store.events == [("redone", "base")]
    assert not list(tmp_path.glob(".*.tmp-*"))


# -- the command -----------------------------------------------------------------------------------

FEW = ["--config.num_seeds=1", "--config.distill.objective=sft"]


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A workdir with a folder for each stage of two runs, as if they had been made."""
    folder = tmp_path_factory.mktemp("planned")
    plans = []
    for seed in ("0", "1"):
        fields = {"num_seeds": "1", "distill.objective": "sft", "seed": seed}
        config = configuration.load(QUICKSTART, fields)
        experiment = Experiment(config, folder, sharding.plan_mesh(**config.mesh))
        plans.append({stage.folder for stage in experiment.plan.values()})
        for name in plans[-1]:
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "artifact.json").write_text('{"sizes": {}}')
    return folder, plans


def _run(capsys, *arguments):
    code = clean.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command_lists_and_removes_nothing(planned, capsys):
    folder, (first, second) = planned
    code, out, _ = _run(capsys, folder, f"--config={QUICKSTART}", *FEW)
    assert code == 0 and f"{len(second - first)} can go" in out
    assert all(name in out for name in second - first)
    assert not [name for name in first & second if name in out]
    assert out.endswith("Nothing was removed: add --delete to remove what is listed.\n")
    assert all((folder / name).is_dir() for name in first | second)


def test_each_config_has_its_own_fields(planned, capsys, tmp_path):
    folder, (first, second) = planned
    copy = shutil.copytree(folder, tmp_path / "w")
    both = [f"--config={QUICKSTART}", *FEW, "--config", QUICKSTART, *FEW, "--config.seed", "1"]
    code, out, _ = _run(capsys, copy, *both, "--delete")
    assert code == 0 and "0 can go" in out and "0 of 0 removed" in out
    code, out, _ = _run(capsys, copy, f"--config={QUICKSTART}", *FEW, "--delete")
    assert code == 0 and f"{len(second - first)} of {len(second - first)} removed" in out
    assert {path.name for path in copy.iterdir()} - {".claims"} == first


def test_a_sweep_asks_for_all_of_its_members(planned, capsys, tmp_path):
    folder, (first, second) = planned
    path = tmp_path / "sweep.py"
    path.write_text(
        "from subtransfer.config import seeds\n"
        + Path(QUICKSTART).read_text()
        + "\ndef sweep():\n    return seeds(2)\n"
    )
    code, out, _ = _run(capsys, folder, f"--sweep={path}", *FEW)
    assert code == 0 and "0 can go" in out


def test_a_run_of_another_config_stops_the_removal(planned, capsys, tmp_path):
    folder, (first, second) = planned
    copy = shutil.copytree(folder, tmp_path / "w")
    (copy / ".claims").mkdir()
    claims = Claims(copy / ".claims")
    claims.take(min(second - first))
    code, out, error = _run(capsys, copy, f"--config={QUICKSTART}", *FEW, "--delete")
    assert code == 2 and f"it makes {min(second - first)}): give its config" in error
    assert all((copy / name).is_dir() for name in first | second)
    claims.close()


REFUSED = {
    "no config": (["W"], "No config is given, so that nothing would be asked for"),
    "no workdir": ([f"--config={QUICKSTART}"], "No workdir is given"),
    "no such workdir": (["/no/such", f"--config={QUICKSTART}"], "There is no workdir /no/such"),
    "bucket": (["gs://bucket/w", f"--config={QUICKSTART}"], "is no folder: clean the folder of"),
    "flag": (["W", f"--config={QUICKSTART}", "--remove"], "There is no flag --remove"),
    "field without config": (["W", "--config.seed=1"], "belongs to no config"),
    "field": (["W", f"--config={QUICKSTART}", "--config.sead=1"], "the nearest is --config.seed"),
    "no file": (["W", "--config=/no.py"], "There is no config file /no.py"),
    "no sweep": (["W", f"--sweep={QUICKSTART}"], "describes no sweep"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_sentences_and_remove_nothing(planned, capsys, case):
    folder, (first, second) = planned
    arguments, sentence = REFUSED[case]
    arguments = [str(folder) if argument == "W" else argument for argument in arguments]
    code, _, error = _run(capsys, *arguments, "--delete")
    assert code == 2 and sentence in error and error.count("\n") == 1
    assert all((folder / name).is_dir() for name in first | second)

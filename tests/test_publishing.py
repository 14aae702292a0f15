"""Published results: the files of one run, whole and together, whoever else publishes."""

import subprocess
import sys

import pytest

from subtransfer.experiment import publishing
from subtransfer.report import files
from subtransfer.runtime.errors import UserError
from subtransfer.store import artifacts, seals
from subtransfer.store.files import atomic_write

from . import studies

NAMES = (*publishing.FILES, "stages.json")

PUBLISHER = """
import sys
from pathlib import Path
from subtransfer.experiment.publishing import publish
from subtransfer.store.artifacts import Store
from subtransfer.store.exclusive import PUBLISHING
workdir, name = Path(sys.argv[1]), sys.argv[2]
with Store(workdir) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(15):
        with store.exclusively(PUBLISHING):
            publish(workdir / f"results-{name}", workdir / f"report-{name}", workdir, {"results": name})
"""


def _artifacts(workdir, name):
    """The last two artefacts of a run, whose files say whose they are."""
    for stage, held in (("results", publishing.FILES[:-1]), ("report", publishing.FILES[-1:])):

        def build(out, held=held):
            for file in held:
                (out / file).write_text(name * 1000)

        with artifacts.Store(workdir) as store:
            made = store.stage(stage, {"of": name}, build, log=lambda _: None)
        made.rename(workdir / f"{stage}-{name}")


def test_runs_that_end_together_leave_the_files_of_one(tmp_path):
    for name in "ab":
        _artifacts(tmp_path, name)
    command = [sys.executable, "-c", PUBLISHER, str(tmp_path)]
    runs = [
        subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in "ab"
    ]
    for run in runs:
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        run.stdin.write("go\n")
        run.stdin.flush()
    for run in runs:
        run.communicate()
        assert run.returncode == 0
    found = {(tmp_path / file).read_text() for file in publishing.FILES}
    assert len(found) == 1, "files of two runs"
    assert found.pop()[0] in (tmp_path / "stages.json").read_text()
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path, capture_output=True)
    assert checked.returncode == 0 and checked.stdout.decode().count(": OK") == len(NAMES)
    assert not list((tmp_path / ".claims").iterdir()) and not list(tmp_path.glob(".*.tmp-*"))


def test_a_kill_between_two_files_is_seen_by_readers_and_mended(tmp_path, monkeypatch):
    for name in "ab":
        _artifacts(tmp_path, name)

    def publish(name):
        publishing.publish(tmp_path / f"results-{name}", tmp_path / f"report-{name}", tmp_path, {})

    publish("a")
    replace, count = type(tmp_path).replace, []

    def killed(path, target):
        count.append(path)
        if len(count) == 3:
            raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as now:
        now.setattr(type(tmp_path), "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            publish("b")
    with pytest.raises(UserError, match=r"results.csv is not the file that was published with"):
        seals.check_sums(tmp_path, seals.sums(tmp_path))
    (tmp_path / ".results.csv.tmp-0123abcd").write_text("of a process that was killed")
    publish("b")
    seals.check_sums(tmp_path, seals.sums(tmp_path))
    assert (tmp_path / "results.csv").read_text() == "b" * 1000
    assert not list(tmp_path.glob(".*.tmp-*"))


def test_an_edited_result_is_not_published(tmp_path):
    _artifacts(tmp_path, "a")
    (tmp_path / "results-a" / "results.csv").write_text("b" * 1000)
    with pytest.raises(UserError, match="results.csv is damaged .*SHA-256"):
        publishing.publish(tmp_path / "results-a", tmp_path / "report-a", tmp_path, {})
    assert not (tmp_path / "results.csv").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}\n", "0" * 64 + "  results.csv", "é\n"])
def test_readers_refuse_sums_that_are_none(tmp_path, text):
    """Nothing could be checked against them."""
    run = tmp_path / "run"
    studies.write_run(run, studies.config_of())
    (run / "SHA256SUMS").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="SHA256SUMS is damaged: run the command that wrote them"):
        files.read(run)


@pytest.mark.parametrize("name", ["results.csv", "results.jsonl"])
def test_readers_refuse_a_result_that_was_edited_at_equal_size(tmp_path, name):
    run = tmp_path / "run"
    studies.write_run(run, studies.config_of())
    held = [file for file in NAMES if (run / file).is_file()]
    files.read(run)  # as of a version that published no sums
    done = subprocess.run(["sha256sum", *held], cwd=run, capture_output=True, check=True)
    atomic_write(run / "SHA256SUMS", done.stdout)
    assert files.read(run).rows
    text = (run / name).read_text()
    place = text.rindex("0.")
    edited = text[: place + 2] + ("1" if text[place + 2] != "1" else "2") + text[place + 3 :]
    assert len(edited) == len(text) != 0 and edited != text
    (run / name).write_text(edited)
    with pytest.raises(UserError, match=f"{name} is not the file that was published with"):
        files.read(run)

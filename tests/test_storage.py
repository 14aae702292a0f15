"""The whole experiment on a disk that fails: one sentence, at once; and once the disk is well
again, the bytes of a sound run.
"""

import random
import shutil
import subprocess
import sys

import pytest

from tests.test_kills import ROOT, finish, launch, same_results, stop_at


def _mount(*arguments):
    subprocess.run(["mount", *map(str, arguments)], check=True)


def _refused(ended, sentence):
    ((code, log),) = ended
    errors = [line for line in log.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and sentence in errors[0] and "Traceback" not in log, log


def full(workdir, undisturbed):
    """A file system that is full at a third, at two thirds and short of the end of a run."""
    files = [path for path in undisturbed.rglob("*") if path.is_file()]
    whole = sum(-(-path.stat().st_size // 4096) * 4096 for path in files)
    for share in (0.3, 0.6, 0.9):
        _mount("-t", "tmpfs", "-o", f"size={int(share * whole)}", "none", workdir)
        _refused([process.wait() for process in launch(workdir)], "No space left")
        _mount("-o", f"remount,size={3 * whole}", workdir)
        finish(launch(workdir))
        same_results(workdir, undisturbed)
        subprocess.run(["umount", str(workdir)], check=True)


def _unwell(workdir, undisturbed, ail, heal, sentence):
    """Runs that meet `ail` in the midst of something, each followed by `heal`, until one comes to
    its end.
    """
    rng = random.Random("storage")
    for moment in ("training", "saving", "rollouts", "anything"):
        processes = launch(workdir)

        class Disk:  # what is struck instead of the process
            signal = staticmethod(lambda _: ail(workdir))

        ended = stop_at(processes, workdir, moment, rng.uniform(0, 0.5), [Disk])
        assert ended, moment
        heal(workdir)
        _refused(ended, sentence)
    finish(launch(workdir))
    same_results(workdir, undisturbed)


def read_only(workdir, undisturbed):
    """Files that are open stay so, as where a server withdraws the right to write."""

    def ail(workdir):
        _mount("--bind", workdir, workdir)
        _mount("-o", "remount,bind,ro", workdir)

    _unwell(
        workdir,
        undisturbed,
        ail,
        lambda workdir: subprocess.run(["umount", str(workdir)], check=True),
        "Cannot write to",
    )


def vanishing(workdir, undisturbed):
    """The folder is moved away; nothing of it is made again in its place."""
    away = workdir.with_name("away")

    def heal(workdir):
        assert not workdir.exists()
        away.rename(workdir)

    _unwell(workdir, undisturbed, lambda workdir: workdir.rename(away), heal, "has vanished")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "w"
    finish(launch(workdir))
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("fault", [full, read_only, vanishing])
def test_a_failing_disk(tmp_path, undisturbed, fault):
    """In a mount namespace of its own, which ends with the test."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    workdir = tmp_path / "w"
    workdir.mkdir()
    if fault is not full:
        shutil.copytree(undisturbed / ".compiled", workdir / ".compiled")
    script = f"from pathlib import Path\nfrom tests import test_storage as t\nt.{fault.__name__}(Path({str(workdir)!r}), Path({str(undisturbed)!r}))"
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]

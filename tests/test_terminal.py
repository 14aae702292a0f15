"""A run outlives whoever reads what it prints."""

import subprocess
import sys
from pathlib import Path

import pytest

from subtransfer.runtime import progress

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parent.parent
SCRIPT = """
import sys
from rich.console import Console
from subtransfer.runtime import terminal
terminal.survive_lost_readers()
for i in range(20_000):
    print("a line of a run", i, flush=i % 7 == 0)
    Console().print("a table")
print("the end of the run", file=sys.stderr, flush=True)
with open("{made}", "w") as file:
    file.write("made")
"""


def _in_shell(tmp_path, script, how):
    """Runs a script by bash, `how` being its redirections; returns (its status, what it printed)."""
    path = tmp_path / "script.py"
    path.write_text(script.replace("{made}", str(tmp_path / "made")))
    command = f"set -o pipefail; {sys.executable} {path} {how}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


SMALL = SCRIPT.replace("20_000", "200")
CASES = {
    "a reader that leaves": (SCRIPT.replace("Console().print", "str"), "| head -1"),
    "a reader that leaves a table": (SMALL, "| head -1"),
    "closed": (SMALL, ">&-"),
    "both closed": (SMALL, ">&- 2>&-"),
    "all closed": (SMALL, "<&- >&- 2>&-"),
    "a full disk": (SMALL, ">/dev/full"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_printed_ends_nothing(tmp_path, case):
    script, how = CASES[case]
    status, out = _in_shell(tmp_path, script, how)
    assert status == 0 and "Traceback" not in out and "BrokenPipe" not in out, out
    assert (tmp_path / "made").read_text() == "made"
    if "2>&-" not in how:
        assert "the end of the run" in out


def test_without_it_a_run_would_end(tmp_path):
    """The cases are ones in which Python ends a program."""
    script = SCRIPT.replace("terminal.survive_lost_readers()", "")
    for how in ("| head -1", ">/dev/full"):
        status, _ = _in_shell(tmp_path, script, how)
        assert status != 0 and not (tmp_path / "made").exists()


@pytest.mark.parametrize("how", ["| head -1", ">&-"])
def test_the_command_has_it(tmp_path, how):
    command = f"set -o pipefail; {sys.executable} -m subtransfer.launch --dry_run {how}"
    options = {"cwd": ROOT, "capture_output": True, "text": True}
    done = subprocess.run(["bash", "-c", command], **options)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


def test_progress_is_shown_before_anything_is_done(capsys, monkeypatch):
    """As where a first step fails, after more seconds than pass between two lines."""
    monkeypatch.setattr(progress, "EVERY", 0.0)
    with progress.progress("training", 3, "steps") as advance:
        advance(0)
        advance(1)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("  training: 0/3 steps") and "left" not in first
    assert second.startswith("  training: 1/3 steps") and second.endswith(" s left")

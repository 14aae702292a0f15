"""The report of an accelerator: small on a CPU, cut off, with parts that fail."""

import json
import subprocess
import sys
import time

import pytest

from subtransfer.models.presets import PRESETS
from tools import gpu_report
from tools.gpu_report import Part, Row

ABOUT = {"device": "cpu", "driver": "none", "jax": "0", "date": "2026-12-01"}
WRITES = "import json, sys; json.dump({'number': 3}, open(sys.argv[1], 'w'))"


def _rows(found):
    return [Row("a number | of a part", str(found["number"]), "all of it")]


def _part(name, code, seconds=60.0):
    return Part(name, ("-c", code, "{json}"), seconds, _rows)


@pytest.fixture(autouse=True)
def _machine(monkeypatch):
    monkeypatch.setattr(gpu_report, "machine", lambda: ABOUT)


@pytest.mark.quick
def test_parts_that_fail_are_lines_and_the_others_stay(tmp_path):
    slow = "import time; time.sleep(3600)"
    parts = [
        _part("good", WRITES),
        _part("bad", "raise ValueError('no such kernel')"),
        _part("slow", slow, seconds=1.0),
        _part("last", WRITES),
    ]
    assert gpu_report.report(parts, tmp_path, 600) == ["bad", "slow"]
    lines = (tmp_path / "gpu_report.md").read_text().splitlines()[4:]
    assert lines == [
        "| a number / of a part | 3 | all of it |",
        "| bad | exit status 1: ValueError: no such kernel |  |",
        "| slow | not done within 1 s |  |",
        "| a number / of a part | 3 | all of it |",
    ]
    written = json.loads((tmp_path / "gpu_report.json").read_text())
    assert written["machine"] == ABOUT and written["parts"]["good"]["found"]["number"] == 3

    # The second command runs what failed, and nothing else.
    again = [_part("good", "raise SystemExit(7)"), _part("bad", WRITES)]
    assert gpu_report.report(again, tmp_path, 600) == []


@pytest.mark.quick
def test_what_finds_no_time_says_so(tmp_path):
    begin = time.monotonic()
    assert gpu_report.report([_part("late", WRITES)], tmp_path, gpu_report.LEAST / 2) == ["late"]
    assert "not begun: the 5 s are over" in (tmp_path / "gpu_report.md").read_text()
    assert time.monotonic() - begin < 60


@pytest.mark.quick
def test_parts_of_another_device_are_refused(tmp_path, monkeypatch):
    gpu_report.report([_part("good", WRITES)], tmp_path, 600)
    monkeypatch.setattr(gpu_report, "machine", lambda: {**ABOUT, "device": "NVIDIA L4"})
    command = ["--out", str(tmp_path), "--small", "--parts=train_0.2m_lora"]
    (tmp_path / "parts/good.json").rename(tmp_path / "parts/train_0.2m_lora.json")
    assert gpu_report.main(command) == 2
    assert gpu_report.main(["--out", str(tmp_path), "--parts=nothing"]) == 2


@pytest.mark.quick
def test_the_parts_are_commands_that_exist():
    """Names tell their geometries, tools and configs apart; limits leave time for one more."""
    for parts in (gpu_report.PARTS, gpu_report.SMALL):
        assert len({part.name for part in parts}) == len(parts)
    for part in (*gpu_report.PARTS, *gpu_report.SMALL):
        words = dict(word.partition("=")[::2] for word in part.command)
        if "--geometry" in words:
            assert words["--geometry"] in {*PRESETS, "0.2m"}
        if "--config" in words:
            assert (gpu_report.ROOT / words["--config"]).is_file()
        if part.command[0] != "-m":
            assert (gpu_report.ROOT / part.command[0]).is_file()


@pytest.mark.slow
def test_small_on_this_machine(tmp_path):
    """The whole command, in a process of its own."""
    command = [sys.executable, "-m", "tools.gpu_report", f"--out={tmp_path}", "--small"]
    done = subprocess.run(command, cwd=gpu_report.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads((tmp_path / "gpu_report.json").read_text())["parts"]
    assert list(parts) == [part.name for part in gpu_report.SMALL]
    (line,) = parts["train_0.2m_full"]["found"]["lines"]
    assert line["mfu_causal"] is None and 0 < line["tflops_causal"] < line["tflops_whole"]
    found = parts["decode_0.2m"]["found"]
    assert found["lines"][0]["rate"] > 0 and found["limits"]["ours"][0]["published"] is None

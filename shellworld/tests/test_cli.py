"""The shells as a tool: one JSON object for each line, one sentence for each mistake."""

import io
import json
import os
import subprocess
import sys

import pytest

from shellworld import cli
from shellworld.sandbox import pool as sandbox

TREE = {
    "users": {"agent": {"sudo": True}, "bob": {}},
    "paths": {"/home/agent/f": {"content": "x\n", "owner": "agent", "mode": "0644"}},
}
LINES = b"cat f\nchmod 600 f; echo $?\nrm f\necho \xff >&2; exit 3\nls\n"


def run(monkeypatch, capsys, lines, *arguments):
    class Input:
        buffer = io.BytesIO(lines)

    monkeypatch.setattr("sys.stdin", Input)
    status = cli.main(["tool", *arguments])
    captured = capsys.readouterr()
    return status, [json.loads(row) for row in captured.out.splitlines()], captured.err


@pytest.fixture
def tree_file(tmp_path):
    path = tmp_path / "tree.json"
    path.write_text(json.dumps(TREE))
    return path


@pytest.mark.parametrize(
    "backend",
    ["sim", pytest.param("sandbox", marks=pytest.mark.skipif("sandbox.unavailable() is not None"))],
)
def test_each_line_runs_in_a_fresh_copy(backend, tree_file, monkeypatch, capsys):
    status, rows, _ = run(monkeypatch, capsys, LINES, f"--backend={backend}", f"--tree={tree_file}")
    assert status == 0
    assert [set(row) for row in rows] == [
        {
            "stdout",
            "stderr",
            "exit_code",
            "supported",
            "unsupported",
            "record",
            "first_permission_command",
            "changed",
        }
    ] * 5
    assert [row["stdout"] for row in rows] == ["x\n", "0\n", "", "", "f\n"]
    assert [row["exit_code"] for row in rows] == [0, 0, 0, 3, 0]
    assert [row["first_permission_command"] for row in rows] == [None, "chmod", None, None, None]
    assert [list(row["changed"]) for row in rows] == [
        [],
        ["/home/agent/f"],
        ["/home/agent/f"],
        [],
        [],
    ]
    assert rows[1]["changed"]["/home/agent/f"]["mode"] == "0600"
    assert rows[2]["changed"]["/home/agent/f"] is None
    assert rows[3]["stderr"] == "\udcff\n"
    assert all(row["supported"] for row in rows)


def test_what_is_not_supported_is_said_and_counted(monkeypatch, capsys):
    status, rows, err = run(monkeypatch, capsys, b"coproc cat\necho a\ncoproc ls", "--stats")
    assert status == 0
    assert [row["supported"] for row in rows] == [False, True, False]
    assert rows[0]["unsupported"] and not rows[1]["unsupported"]
    assert err.startswith("2 of 3 lines were not supported.\n  2  ")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--backend=docker"], ["docker", "sim", "sandbox"]),
        (["--tree=/nowhere/tree.json"], ["/nowhere/tree.json", "No such file"]),
        (["--colour"], ["colour", "--help"]),
        (["LINES"], ["LINES", "stdin"]),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(arguments, words, monkeypatch, capsys):
    status, rows, err = run(monkeypatch, capsys, b"ls\n", *arguments)
    assert (status, rows) == (2, [])
    assert err.startswith("error: ") and err.count("\n") == 1
    assert all(word in err for word in words), err


def test_no_sandbox_is_one_sentence_and_status_2(monkeypatch, capsys):
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    status, rows, err = run(monkeypatch, capsys, b"ls\n", "--backend=sandbox")
    assert (status, rows) == (2, [])
    assert err == "error: The sandbox needs the program bwrap: install the package bubblewrap.\n"


def test_help_says_what_there_is(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert cli.main(["tool", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--backend" in text and "--tree" in text and "first_permission_command" in text


def test_the_agreement_tool_takes_a_reader_that_has_had_enough():
    """As in `python -m shellworld.tools.agreement | head -1`."""
    script = (
        "from absl import app; from shellworld.tests import compare; "
        "from shellworld.tools import agreement; "
        "agreement.measured = lambda *_: compare.Comparison([]); app.run(agreement.main)"
    )
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")

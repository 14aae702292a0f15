"""Lines that strangers wrote: how a file of them is read, filled in, and judged against bash."""

import json

import pytest

from shellworld.errors import UserError
from shellworld.tests import compare
from shellworld.tests.sandboxed import needs_sandbox
from shellworld.tests.trees import TREES
from shellworld.tools import agreement, strangers
from shellworld.world import tree as trees

PROJECT = TREES["project"]


def test_a_file_of_lines_is_text_or_json(tmp_path):
    own = {"paths": {"/home/agent/f": {"content": "x"}}}
    path = tmp_path / "lines"
    rows = [
        "ls -l",
        "",
        "  echo '{' ",
        json.dumps({"line": "cat f\nls", "tree": own, "from": "me"}),
    ]
    path.write_text("\n".join([*rows, json.dumps({"line": "pwd"})]) + "\n")
    assert list(agreement.read_lines(str(path), PROJECT)) == [
        ("ls -l", PROJECT),
        ("  echo '{' ", PROJECT),
        ("cat f\nls", trees.normalise(own)),
        ("pwd", PROJECT),
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"line": "ls"', "row 1: no JSON object"),
        ('ls\n{"tree": {}}', 'row 2: "line" is no text'),
        ('{"line": "ls", "tree": {"paths": []}}', "paths"),
    ],
)
def test_a_row_that_is_wrong_is_one_sentence(tmp_path, text, complaint):
    path = tmp_path / "lines"
    path.write_text(text)
    with pytest.raises(UserError, match=complaint):
        list(agreement.read_lines(str(path), PROJECT))
    with pytest.raises(UserError, match="cannot be read"):
        list(agreement.read_lines(str(tmp_path / "none"), PROJECT))


@needs_sandbox
def test_lines_are_judged_by_class(pool):
    expected = {
        "echo a; chmod 600 notes.txt": "equal",
        # The simulator's clock stands as the sandbox's: the year only, as a minute may end between.
        "date +%Y; ls -l > f; wc -l < f": "equal",
        "rsync a b": "unsupported",
        "echo $$ > f": "unstable",
        "sleep 9": "unstable",
        "mkdir -p d/e; cd d/e; rm -r ../../d; echo $?": "stdout",
        "mkdir -p d/e; cd d/e; rm -r ../../d": "exit_code",
    }
    limits = compare.SandboxLimits(wall=2.0)
    verdicts = compare.judged(pool, [(line, PROJECT) for line in expected], limits)
    assert {verdict.line: verdict.kind for verdict in verdicts} == expected
    assert verdicts[2].reason == "rsync" and verdicts[3].reason == "changed"
    assert "bash '0\\n'" in verdicts[5].reason


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        ("tar xf {{path/to/source.tar[.gz|.bz2|.xz]}}", {"tar xf path/to/source.tar"}),
        ("rm {{path/to/file1 path/to/file2 ...}}", {"rm path/to/file1 path/to/file2"}),
        ("ls {{[-a|--all]}}", {"ls -a", "ls --all"}),
        ("find . -type {{f|d|l}}", {f"find . -type {kind}" for kind in "fdl"}),
        ("{{command}} | awk '{print $1}'", {"cat file.txt | awk '{print $1}'"}),
    ],
)
def test_placeholders_are_filled_in(example, expected):
    assert strangers.filled(example) in expected


def test_names_in_a_line_become_files_of_its_world():
    line = (
        "cat logs/app.log | sort > out.txt; cp foo '/data/x.csv' dir2/; grep -c /usr/lib/x $HOME.y"
    )
    world = strangers.world(line)
    paths, home = trees.normalise(world)["paths"], world["cwd"] + "/"
    assert paths[f"{home}logs/app.log"]["content"].startswith("2023")
    assert paths["/data/x.csv"]["type"] == paths[f"{home}foo"]["type"] == "file"
    assert paths[f"{home}dir2"]["type"] == paths[f"{home}logs"]["type"] == "directory"
    assert f"{home}cat" not in paths and not any(path.startswith("/usr/lib") for path in paths)


def test_a_sample_goes_on_where_the_one_before_it_ended(tmp_path):
    path = tmp_path / "all.cm"
    path.write_text("".join(f"echo {n}\n" for n in range(40)))
    places = {"nl2bash": str(path), "tldr": None}
    both = [row["line"] for row in strangers.rows(places, 0, 30)]
    assert len(set(both)) == 30
    parts = [*strangers.rows(places, 0, 10), *strangers.rows(places, 10, 20)]
    assert [row["line"] for row in parts] == both

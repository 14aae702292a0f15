"""find: lines with what the real tools print and their exit codes.

Recorded from findutils 4.9 in the sandbox.
"""

import pytest

from shellworld.interpreter.session import Session
from shellworld.tests.trees import TREES

pytestmark = pytest.mark.quick

# fmt: off
LINES = [
    ("find src", "src\nsrc/util.py\nsrc/test_util.py\nsrc/main.py\n", 0),
    ("find . -maxdepth 1 -name '*.txt' | head -2", "./words.txt\n./numbers.txt\n", 0),
    ("find . -name '*.py' -o -name '*.md'", "./src/util.py\n./src/test_util.py\n./src/main.py\n./README.md\n", 0),
    ("find . -iname 'READ*'", "./README.md\n", 0),
    ("find . -type l", "./link.txt\n./dangling\n./current\n", 0),
    ("find . -empty", "./empty.txt\n./build/tmp\n", 0),
    ("find . -size +1k -type f", "./build/out.o\n", 0),
    ("find . -size -2 -name 'w*'", "./words.txt\n", 0),
    ("find . -perm 640", "./data.csv\n", 0),
    ("find . -perm -u+x -type f", "./scripts/run.sh\n", 0),
    ("find . -perm /o+w", "./link.txt\n./dangling\n./current\n", 0),
    ("find . -links +1 -type f", "./words.txt\n./hard.txt\n", 0),
    ("find . -samefile words.txt", "./words.txt\n./hard.txt\n", 0),
    ("find . ! -user agent", "./logs\n./conf\n", 0),
    ("find . -newer numbers.txt -name 'n*'", "./notes.txt\n./no_newline.txt\n", 0),
    ("find . -path './s*' -prune -o -type d -print", ".\n./logs\n./conf\n./build\n./build/tmp\n", 0),
    ("find . -path './src' -prune -o -name '*.py' -print", "", 0),
    ("find . -regextype posix-extended -regex '.*/(a|w).*\\.(txt|log)'", "./words.txt\n./logs/app.log\n", 0),
    ("find src -depth", "src/util.py\nsrc/test_util.py\nsrc/main.py\nsrc\n", 0),
    ("find . -maxdepth 1 -mindepth 1 -type d | sort", "./build\n./conf\n./logs\n./scripts\n./src\n", 0),
    ("find src -type f -printf '%f %s %m %u %d %y %P\\n'", "util.py 66 644 agent 1 f util.py\ntest_util.py 65 644 agent 1 f test_util.py\nmain.py 185 644 agent 1 f main.py\n", 0),
    ("find src -printf '%-8f|%h\\n'", "src     |.\nutil.py |src\ntest_util.py|src\nmain.py |src\n", 0),
    ("find src -name 'm*' -exec wc -l {} \\;", "12 src/main.py\n", 0),
    ("find src -name '*.py' -exec grep -l import {} +", "src/test_util.py\nsrc/main.py\n", 0),
    ("find src -name 'u*' -execdir echo {} \\;", "./util.py\n", 0),
    ("find src -type f -exec test -x {} \\; -print", "", 0),
    ("find src -type f -print0 | xargs -0 -n1 basename", "util.py\ntest_util.py\nmain.py\n", 0),
    ("find src -name '*.py' -delete; ls src", "", 0),
    ("find . -name main.py -print -quit", "./src/main.py\n", 0),
    ("find src logs -maxdepth 0", "src\nlogs\n", 0),
    ("find src -name m\\* , -name u\\*", "src/util.py\n", 0),
    ("find -L . -maxdepth 1 -type l", "./dangling\n", 0),
    ("find . -lname '*src*'", "./current\n", 0),
    ("find missing", "", 1),
    ("find . -foo", "", 1),
    ("find . -name", "", 1),
    ("find . a -name x", "", 1),
    ("find . \\( -name x", "", 1),
    ("find . -type x", "", 1),
    ("find . -user nobody_x", "", 1),
    ("find . -exec nosuch {} \\;", "", 0),
    ("find . -maxdepth 0 -exec false {} +", "", 1),
    ("find src -name 'x' -o -not -name '*.py'", "src\n", 0),
    ("find . -readable -name '.env'", "./.env\n", 0),
]
# fmt: on


@pytest.mark.parametrize(("line", "stdout", "code"), LINES)
def test_lines(line, stdout, code):
    result = Session(TREES["project"]).run(line)
    assert (result.stdout, result.exit_code, result.unsupported) == (stdout, code, ())


@pytest.mark.parametrize(
    "line",
    [
        "find . -ls",
        "find . -ok rm {} \\;",
        "find . -newerct yesterday -delete",
        "find . -fprint out",
        "find . -inum 3",
        "find . -printf '%i'",
    ],
)
def test_what_is_not_simulated_says_so_and_does_nothing(line):
    session = Session(TREES["project"])
    before = session.tree()
    result = session.run(line)
    assert result.unsupported and result.exit_code != 0
    assert session.tree()["paths"] == before["paths"]


def test_ages_are_measured_by_the_clock_of_the_world():
    session = Session(TREES["project"])
    assert session.run("find . -name 'numbers.txt' -mtime +100").stdout == "./numbers.txt\n"
    assert session.run("touch new; find . -mmin -5 -name new").stdout == "./new\n"

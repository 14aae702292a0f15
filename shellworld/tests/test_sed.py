"""sed: lines with what the real tools print and their exit codes.

Recorded from sed 4.9 in the sandbox.
"""

import pytest

from shellworld.interpreter.session import Session
from shellworld.tests.trees import TREES

pytestmark = pytest.mark.quick

# fmt: off
LINES = [
    ("sed -n 2p words.txt", "apple\n", 0),
    ("sed '2,9d' words.txt", "pear\nelderberry\n", 0),
    ("sed -n '$p' words.txt numbers.txt", "3.5\n", 0),
    ("sed -s -n '$p' words.txt numbers.txt", "elderberry\n3.5\n", 0),
    ("sed '3q' words.txt", "pear\napple\nfig\n", 0),
    ("sed '2q5' words.txt", "pear\napple\n", 5),
    ("sed -n '/fig/,/apple/p' words.txt", "fig\nbanana\napple\nfig\napple\n", 0),
    ("sed -n '0,/apple/p' words.txt", "pear\napple\n", 0),
    ("sed -n '2,+1p;9,~5p' words.txt", "apple\nfig\nDate\nelderberry\n", 0),
    ("sed -n '0~4p' words.txt", "banana\napple\n", 0),
    ("sed '/a/!d' words.txt | head -2", "pear\napple\n", 0),
    ("sed 's/a/[&]/2' words.txt | head -2", "pear\napple\n", 0),
    ("sed 's/p/P/2g' words.txt | head -2", "pear\napPle\n", 0),
    ("sed -E 's/(.)(.)/\\2\\1/' words.txt | head -1", "epar\n", 0),
    ("sed 's/\\(a\\).*/\\U\\1x\\E\\u&/' words.txt | head -2", "peAXAr\nAXApple\n", 0),
    ("sed 's/x*/-/g' no_newline.txt", "-l-a-s-t- -l-i-n-e- -h-a-s- -n-o- -e-n-d-", 0),
    ("sed -E 's/(ab|a)(c|bcd)?/<\\1,\\2>/' <<< abcd", "<a,bcd>\n", 0),
    ("sed 's|/|:|g;s,a\\,b,X,' <<< a/b,a,b", "a:b,X\n", 0),
    ("sed 's/a[/]b/X/' <<< a/b", "X\n", 0),
    ("sed -n 's/fig/F/gpw out' words.txt; cat out", "F\nF\nF\nF\n", 0),
    ("sed 's/FIG/x/I' words.txt | sed -n 3p", "x\n", 0),
    ("sed 'y/abc/xyz/' words.txt | head -2", "pexr\nxpple\n", 0),
    ("sed '1i top' no_newline.txt", "top\nlast line has no end", 0),
    ("sed '$a end' no_newline.txt", "last line has no end\nend\n", 0),
    ("sed '1a\\  two\\nlines' no_newline.txt", "last line has no end\n  two\nlines\n", 0),
    ("sed '2,4c X' words.txt | head -3", "pear\nX\napple\n", 0),
    ("sed '$!{1,3c\\\nX\n}' words.txt | head -2", "X\nbanana\n", 0),
    ("sed '2r numbers.txt' notes.txt | head -4", "buy milk\ncall Bob at 10:30\n10\n9\n", 0),
    ("sed = no_newline.txt", "1\nlast line has no end", 0),
    ("sed -n '$=' words.txt", "10\n", 0),
    ("sed 'N;s/\\n/+/' words.txt | head -2", "pear+apple\nfig+banana\n", 0),
    ("sed '$!N;P;D' notes.txt | head -2", "buy milk\ncall Bob at 10:30\n", 0),
    ("sed -n '1!G;h;$p' notes.txt", "TODO write tests\nfix bug #42\n\ncall Bob at 10:30\nbuy milk\n", 0),
    ("sed ':a;N;$!ba;s/\\n/,/g' words.txt", "pear,apple,fig,banana,apple,cherry,fig,apple,Date,elderberry\n", 0),
    ("sed -n 'x;p' notes.txt | head -2", "\nbuy milk\n", 0),
    ("sed '1~2b;3,5s/^/>/' words.txt | head -6", "pear\napple\nfig\n>banana\napple\ncherry\n", 0),
    ("sed -n '/fig/{s//X/;p;q}' words.txt", "X\n", 0),
    ("sed 's/a/b/;ta;s/^/no /;:a' words.txt | head -3", "pebr\nbpple\nno fig\n", 0),
    ("sed -n l <<< 'é\t\\'", "\\303\\251\\t\\\\$\n", 0),
    ("sed -z 's/\\n/,/g' notes.txt", "buy milk,call Bob at 10:30,,fix bug #42,TODO write tests,", 0),
    ("sed -e 'a\\' -e 'foo' no_newline.txt", "last line has no end\nfoo\n", 0),
    ("sed --expression=p -n no_newline.txt", "last line has no end", 0),
    ("sed -i 's/fig/FIG/' words.txt && cat words.txt hard.txt | grep -ic fig && ls -l hard.txt | cut -c12", "4\n1\n", 0),
    ("sed -i.bak 1d notes.txt && head -1 notes.txt notes.txt.bak", "==> notes.txt <==\ncall Bob at 10:30\n\n==> notes.txt.bak <==\nbuy milk\n", 0),
    ("sed -i p src", "", 4),
    ("sed p missing", "", 2),
    ("sed p src", "", 4),
    ("sed 'k' words.txt", "", 1),
    ("sed 's/a/b' words.txt", "", 1),
    ("sed 's/a/\\1/' words.txt", "", 1),
    ("sed '{p' words.txt", "", 1),
    ("sed 'b x' words.txt", "", 4),
    ("sed '0p' words.txt", "", 1),
    ("sed '1,3q' words.txt", "", 1),
    ("sed -E 's/a{2/x/' words.txt", "", 1),
    ("sed 's/\\x41/z/;s/\\t/T/' <<< 'A\tb'", "zTb\n", 0),
]
# fmt: on


@pytest.mark.parametrize(("line", "stdout", "code"), LINES)
def test_lines(line, stdout, code):
    result = Session(TREES["project"]).run(line)
    assert (result.stdout, result.exit_code, result.unsupported) == (stdout, code, ())


@pytest.mark.parametrize(
    "line",
    [
        "sed e words.txt",
        "sed 's/a/b/e' words.txt",
        "sed --posix p words.txt",
        "sed -i --follow-symlinks p words.txt",
    ],
)
def test_what_is_not_simulated_says_so_and_does_nothing(line):
    session = Session(TREES["project"])
    before = session.tree()
    result = session.run(line)
    assert result.unsupported and result.exit_code != 0
    assert session.tree()["paths"] == before["paths"]

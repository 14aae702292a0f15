"""grep and regular expressions: lines with what the real tools print and their exit codes.

Recorded from grep 3.8 in the sandbox.
"""

import pytest

from shellworld.interpreter.session import Session
from shellworld.language.regexes import RegexError, compile_regex
from shellworld.tests.trees import TREES

pytestmark = pytest.mark.quick

# fmt: off
LINES = [
    ("grep apple words.txt", "apple\napple\napple\n", 0),
    ("grep -c a words.txt numbers.txt", "words.txt:6\nnumbers.txt:0\n", 0),
    ("grep -n 'e$' words.txt | head -2", "2:apple\n5:apple\n", 0),
    ("grep -v '^#' conf/app.conf | head -2", "host = localhost\nport=8080\n", 0),
    ("grep -il error logs/app.log notes.txt", "logs/app.log\n", 0),
    ("grep -L apple words.txt notes.txt", "notes.txt\n", 0),
    ("grep -ow 'fig' words.txt", "fig\nfig\n", 0),
    ("grep -x fig words.txt", "fig\nfig\n", 0),
    ("grep -w '' words.txt", "", 1),
    ("grep -oE '[0-9]+' data.csv | head -2", "1\n5200\n", 0),
    ("grep -oE 'a|an|ana' words.txt | head -3", "a\na\nana\n", 0),
    ("grep -E '^(fig|pear)$' words.txt", "pear\nfig\nfig\n", 0),
    ("grep -E 'p{2}' words.txt | uniq", "apple\n", 0),
    ("grep 'p\\{2\\}' words.txt | uniq", "apple\n", 0),
    ("grep '\\(.\\)\\1' words.txt | uniq", "apple\ncherry\napple\nelderberry\n", 0),
    ("grep -E 'a{1' words.txt", "", 1),
    ("grep -E '(a' words.txt", "", 2),
    ("grep 'a\\{2' words.txt", "", 2),
    ("grep '[' words.txt", "", 2),
    ("grep '[:alpha:]' words.txt", "", 2),
    ("grep '[[:upper:]]' words.txt", "Date\n", 0),
    ("grep -F . numbers.txt", "3.5\n", 0),
    ("grep -e -5 numbers.txt", "-5\n", 0),
    ("grep -vxFf words.txt words.txt", "", 1),
    ("grep -n -A1 -B1 cherry words.txt", "5-apple\n6:cherry\n7-fig\n", 0),
    ("grep -A1 fig words.txt", "fig\nbanana\n--\nfig\napple\n", 0),
    ("grep -C1 --no-group-separator fig words.txt | wc -l", "6\n", 0),
    ("grep -m2 apple words.txt", "apple\napple\n", 0),
    ("grep -b cherry words.txt", "28:cherry\n", 0),
    ("grep -oP '(?<=,)\\d+$' data.csv | head -2", "5200\n4100\n", 0),
    ("grep -oP 'port=\\K\\d+' conf/app.conf", "8080\n", 0),
    ("grep -rn def src", "src/util.py:1:def add(a, b):\nsrc/util.py:5:def sub(a, b):\nsrc/test_util.py:4:def test_add():\nsrc/main.py:5:def main():\n", 0),
    ("grep -rl --include='*.py' import .", "./src/test_util.py\n./src/main.py\n", 0),
    ("grep -r --exclude-dir=src TODO .", "./notes.txt:TODO write tests\n", 0),
    ("grep -rh 'hello' src", '    print("hello", name)  # TODO: translate\n', 0),
    ("grep -h root /etc/passwd words.txt", "root:x:0:0:root:/root:/bin/bash\n", 0),
    ("grep x missing words.txt", "", 2),
    ("grep -s x missing", "", 2),
    ("grep -q apple missing words.txt", "", 0),
    ("grep x src", "", 2),
    ("grep -c x src", "0\n", 2),
    ("printf 'a\\0b\\n' > bin; grep a bin; grep -c a bin; grep -a a bin | wc -c", "1\n4\n", 0),
    ("printf 'caf\\303\\251\\n' | grep -o 'f.'", "f\udcc3\n", 0),
    ("grep -E -F x words.txt", "", 2),
    ("grep", "", 2),
    ("grep -A x foo", "", 2),
    ("egrep 'a|b' words.txt | head -1", "pear\n", 0),
    ("fgrep 'a.' words.txt", "", 1),
    ("cat words.txt | grep -H fig -", "(standard input):fig\n(standard input):fig\n", 0),
    ("ls | grep -c txt", "8\n", 0),
]
# fmt: on


@pytest.mark.parametrize(("line", "stdout", "code"), LINES)
def test_lines(line, stdout, code):
    result = Session(TREES["project"]).run(line)
    assert (result.stdout, result.exit_code, result.unsupported) == (stdout, code, ())


@pytest.mark.parametrize(
    "line",
    [
        "grep --color=always a words.txt",
        "grep -P '(?i)a' words.txt",
        "grep -P '(a++)b' words.txt",
        "grep -T a words.txt",
        "grep -E '+a' words.txt",
        "grep '[[.space.]]' words.txt",
    ],
)
def test_what_is_not_simulated_says_so_and_does_nothing(line):
    session = Session(TREES["project"])
    before = session.tree()
    result = session.run(line)
    assert result.unsupported and result.exit_code != 0
    assert session.tree()["paths"] == before["paths"]


@pytest.mark.parametrize(
    ("pattern", "syntax", "text", "span"),
    [
        ("a|ab|abcd", "ere", "xabcde", (1, 5)),  # the longest, not the first
        ("(a|ab)(c|bcd)", "ere", "abcd", (0, 4)),
        ("(a*)*b", "ere", "a" * 300, None),  # nested repetition
        ("(a|a)*$", "ere", "a" * 300, (0, 300)),
        (".*.*.*.*.*x", "ere", "a" * 500, None),
        ("\\(a*\\)\\1", "bre", "aaaa", (0, 4)),
        ("\\<b", "bre", "ab b", (3, 4)),
        ("[^[:alpha:]]+", "ere", "ab12c", (2, 4)),
        ("a\\{2,3\\}", "bre", "aaaa", (0, 3)),
        ("x*", "ere", "abc", (0, 0)),
    ],
)
def test_the_longest_match_in_bounded_time(pattern, syntax, text, span):
    match = compile_regex(pattern, syntax).find(text)
    assert (match.span() if match else None) == span
    assert bool(compile_regex(pattern, syntax).test(text)) == (span is not None)


@pytest.mark.parametrize("pattern", ["(", "a{2,1}", "[b-a]", "[[:no:]]", "a\\", "[a"])
def test_wrong_patterns_are_refused(pattern):
    with pytest.raises(RegexError):
        compile_regex(pattern, "ere")

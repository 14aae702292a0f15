"""Text commands: lines with what the real tools print and their exit codes.

Recorded from coreutils 9.1, diffutils 3.8, tar 1.34, gzip 1.12 and others in the sandbox.
"""

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from shellworld.commands.unsimulated import UNSIMULATED
from shellworld.interpreter.session import Session
from shellworld.tests.trees import TREES

# fmt: off
LINES = [
    ("head -n 2 words.txt no_newline.txt", "==> words.txt <==\npear\napple\n\n==> no_newline.txt <==\nlast line has no end", 0),
    ("head -n -8 words.txt", "pear\napple\n", 0),
    ("head -c 6 words.txt", "pear\na", 0),
    ("head -2q words.txt numbers.txt", "pear\napple\n10\n9\n", 0),
    ("head -v -n1 missing words.txt", "==> words.txt <==\npear\n", 1),
    ("head words.txt -2", "", 1),
    ("tail -n 2 words.txt", "Date\nelderberry\n", 0),
    ("tail -n +9 words.txt", "Date\nelderberry\n", 0),
    ("tail -c 5 no_newline.txt", "o end", 0),
    ("tail -2 words.txt numbers.txt", "", 1),
    ("tail -n0 words.txt numbers.txt", "", 0),
    ("wc words.txt no_newline.txt", "10 10 61 words.txt\n 0  5 20 no_newline.txt\n10 15 81 total\n", 0),
    ("wc -l < words.txt", "10\n", 0),
    ("wc -lc words.txt missing", "10 61 words.txt\n10 61 total\n", 1),
    ("cat words.txt | wc", "     10      10      61\n", 0),
    ("wc -L words.txt README.md", " 10 words.txt\n 22 README.md\n 22 total\n", 0),
    ("nl -ba -w2 -s: numbers.txt | head -2", " 1:10\n 2:9\n", 0),
    ("nl notes.txt", "     1\tbuy milk\n     2\tcall Bob at 10:30\n       \n     3\tfix bug #42\n     4\tTODO write tests\n", 0),
    ("tac -s, data.csv | head -2", "5200\nred,frank,4700\n", 0),
    ("tac no_newline.txt", "last line has no end", 0),
    ("rev no_newline.txt", "dne on sah enil tsal", 0),
    ("fold -s -w 8 no_newline.txt", "last \nline \nhas no \nend", 0),
    ("printf 'a\\tb\\n' | expand -t4", "a   b\n", 0),
    ("cut -d, -f2,4 data.csv | head -2", "name,salary\nalice,5200\n", 0),
    ("cut -c1-3,5 numbers.txt words.txt | tail -2", "Dat\neldr\n", 0),
    ("cut -d, --complement -f2- data.csv | head -2", "id\n1\n", 0),
    ("cut -d: -f1 -s data.csv", "", 0),
    ("cut -f0 data.csv", "", 1),
    ("cut -d ab -f1 data.csv", "", 1),
    ("paste -d, numbers.txt words.txt | head -2", "10,pear\n9,apple\n", 0),
    ("paste -s -d'+\\n' numbers.txt", "10+9\n2+33\n1+100\n2+-5\n3.5\n", 0),
    ("seq 6 | paste - - -", "1\t2\t3\n4\t5\t6\n", 0),
    ("tr a-z A-Z < no_newline.txt", "LAST LINE HAS NO END", 0),
    ("tr -d '[:space:]' < no_newline.txt", "lastlinehasnoend", 0),
    ("tr -cs 'a-z' '\\n' < no_newline.txt | head -3", "last\nline\nhas\n", 0),
    ("echo abcd | tr a-d '[X*2]Y'", "XXYY\n", 0),
    ("echo a | tr z-a x", "", 1),
    ("echo a | tr '[:lower:]' '[:digit:]'", "", 1),
    ("column -t -s, data.csv | head -2", "id  name   team   salary\n1   alice  red    5200\n", 0),
    ("sort -u words.txt", "Date\napple\nbanana\ncherry\nelderberry\nfig\npear\n", 0),
    ("sort -n numbers.txt | tail -3", "10\n33\n100\n", 0),
    ("sort -t, -k3,3 -k4,4nr data.csv | head -3", "5,erin,blue,4700\n2,bob,blue,4100\n4,dave,green,3900\n", 0),
    ("sort -t, -k4.2,4.3 data.csv | head -2", "2,bob,blue,4100\n3,carol,red,6100\n", 0),
    ("sort -rs -k1.1,1.1 words.txt | head -4", "pear\nfig\nfig\nelderberry\n", 0),
    ("printf 'v1.10\\nv1.9\\nv1.2.3\\n' | sort -V", "v1.2.3\nv1.9\nv1.10\n", 0),
    ("printf '1K\\n2M\\n500\\n' | sort -h", "500\n1K\n2M\n", 0),
    ("sort -m words.txt numbers.txt | head -3", "10\n9\n2\n", 0),
    ("sort -c words.txt", "", 1),
    ("sort -n -h words.txt", "", 2),
    ("sort words.txt | uniq -c | sort -rn | head -2", "      3 apple\n      2 fig\n", 0),
    ("sort words.txt | uniq -d", "apple\nfig\n", 0),
    ("uniq -ic words.txt | head -1", "      1 pear\n", 0),
    ("comm -12 <(sort words.txt) <(printf 'apple\\nfig\\n')", "apple\nfig\n", 0),
    ("comm words.txt numbers.txt > /dev/null", "", 1),
    ("join <(printf 'a 1\\nb 2\\n') <(printf 'a x\\nc y\\n')", "a 1 x\n", 0),
    ("join -a1 -e- -o 0,1.2,2.2 <(printf 'a 1\\nb 2\\n') <(printf 'a x\\n')", "a 1 x\nb 2 -\n", 0),
    ("diff words.txt <(sed 's/fig/FIG/;$d' words.txt)", "3c3\n< fig\n---\n> FIG\n7c7\n< fig\n---\n> FIG\n10d9\n< elderberry\n", 1),
    ("diff -U1 words.txt <(sed 4d words.txt) | tail -n +3", "@@ -3,3 +3,2 @@\n fig\n-banana\n apple\n", 0),
    ("diff -q words.txt numbers.txt", "Files words.txt and numbers.txt differ\n", 1),
    ("diff no_newline.txt empty.txt", "1d0\n< last line has no end\n\\ No newline at end of file\n", 1),
    ("diff -r src conf | head -2", "Only in conf: app.conf\nOnly in src: main.py\n", 0),
    ("cmp words.txt <(echo pearl)", "words.txt /dev/fd/63 differ: char 5, line 1\n", 1),
    ("cmp words.txt empty.txt", "", 1),
    ("seq -s, 1 2 7", "1,3,5,7\n", 0),
    ("seq -w 8 10", "08\n09\n10\n", 0),
    ("seq 0.5 0.5 1.5", "0.5\n1.0\n1.5\n", 0),
    ("seq 3 | tee -a empty.txt | wc -l", "3\n", 0),
    ("yes no | head -2", "no\nno\n", 0),
    ("split -l 4 -d words.txt part && ls part*", "part00\npart01\npart02\n", 0),
    ("truncate -s 4 words.txt && cat words.txt", "pear", 0),
    ("dd if=words.txt bs=1 skip=5 count=5 2>/dev/null", "apple", 0),
    ("xargs -n2 echo < numbers.txt | head -2", "10 9\n2 33\n", 0),
    ("printf 'a\\nb c\\n' | xargs -I{} echo '<{}>'", "<a>\n<b c>\n", 0),
    ("printf 'a\\0b c\\0' | xargs -0 -n1 echo", "a\nb c\n", 0),
    ('printf "a\'b\\n" | xargs', "", 1),
    ("echo x | xargs false", "", 123),
    ("echo x | xargs nosuch", "", 127),
    ("printf '' | xargs -r echo hi", "", 0),
    ("tar cf a.tar src && tar tf a.tar", "src/\nsrc/util.py\nsrc/test_util.py\nsrc/main.py\n", 0),
    ("tar czf a.tgz src && mkdir o && tar xzf a.tgz -C o --strip-components=1 && ls o", "main.py\ntest_util.py\nutil.py\n", 0),
    ("tar cf a.tar src && tar tvf a.tar | tail -1", "-rw-r--r-- agent/agent     185 2023-11-14 22:13 src/main.py\n", 0),
    ("tar xf notes.txt", "", 2),
    ("tar cf a.tar missing", "", 2),
    ("gzip notes.txt && ls notes* && zcat notes.txt.gz | head -1", "notes.txt.gz\nbuy milk\n", 0),
    ("gzip words.txt", "", 2),
    ("gunzip notes.txt", "", 2),
    ("gzip -c notes.txt | md5sum", "ad9d1811925dad46c7129d4bf5fdbfc5  -\n", 0),
    ("tar cf - conf | md5sum", "46e7f55cbc8eafd93b8da1b07cef5040  -\n", 0),
    ("du -s src conf", "12\tsrc\n8\tconf\n", 0),
    ("du -sh .", "72K\t.\n", 0),
    ("du -sb src", "416\tsrc\n", 0),
    ("md5sum words.txt > s && echo x >> words.txt && md5sum -c s", "words.txt: FAILED\n", 1),
    ("sha1sum empty.txt", "da39a3ee5e6b4b0d3255bfef95601890afd80709  empty.txt\n", 0),
    ("cksum words.txt", "2432803681 61 words.txt\n", 0),
    ("base64 -w 20 no_newline.txt", "bGFzdCBsaW5lIGhhcyBu\nbyBlbmQ=\n", 0),
    ("echo aGVsbG8K | base64 -d", "hello\n", 0),
    ("echo '!!' | base64 -d", "", 1),
    ("od -An -tx1 no_newline.txt", " 6c 61 73 74 20 6c 69 6e 65 20 68 61 73 20 6e 6f\n 20 65 6e 64\n", 0),
    ("od -c words.txt | head -1", "0000000   p   e   a   r  \\n   a   p   p   l   e  \\n   f   i   g  \\n   b\n", 0),
    ("xxd words.txt | tail -1", "00000030: 650a 656c 6465 7262 6572 7279 0a         e.elderberry.\n", 0),
    ("hexdump -C no_newline.txt | tail -2", "00000010  20 65 6e 64                                       | end|\n00000014\n", 0),
    ("strings -n 6 words.txt", "banana\ncherry\nelderberry\n", 0),
    ("expr 3 + 4 \\* 2", "11\n", 0),
    ("expr abc : 'a\\(.*\\)'", "bc\n", 0),
    ("expr 1 = 2", "0\n", 1),
    ("expr 1 + a", "", 2),
    ("expr substr hello 2 3", "ell\n", 0),
    ("echo '3*(4+5)' | bc", "27\n", 0),
    ("timeout 1 sleep 5", "", 124),
    ("nice -n 5 echo hi", "hi\n", 0),
    ("nohup nosuch", "", 127),
]
# fmt: on


@pytest.mark.parametrize(("line", "stdout", "code"), LINES)
def test_lines(line, stdout, code):
    result = Session(TREES["project"]).run(line)
    assert (result.stdout, result.exit_code, result.unsupported) == (stdout, code, ())


@pytest.mark.parametrize(
    "line",
    [
        "sort -R words.txt",
        "split -n 2 words.txt",
        "tar cjf a.tar.bz2 src",
        "gzip -r src",
        "diff -y words.txt numbers.txt",
        "column words.txt",
        "dd if=/dev/urandom of=x count=1",
        "df -h",
        "shuf words.txt",
        "od -tf4 words.txt",
        "base64 --help",
        "tail -f words.txt",
        "head --version",
    ],
)
def test_what_is_not_simulated_says_so_and_does_nothing(line):
    session = Session(TREES["project"])
    before = session.tree()
    result = session.run(line)
    assert result.unsupported and result.exit_code != 0
    assert session.tree()["paths"] == before["paths"]


_LINES = st.lists(st.text("abAB01 ,.-", max_size=8), max_size=8)


def _run(lines, command):
    tree = {**TREES["project"], "paths": {**TREES["project"]["paths"]}}
    path = f"{tree['cwd']}/notes.txt"
    tree["paths"][path] = {**tree["paths"][path], "content": "".join(line + "\n" for line in lines)}
    result = Session(tree).run(f"{command} notes.txt")
    assert result.unsupported == ()
    return result.stdout.splitlines()


@given(_LINES)
@hypothesis_settings(max_examples=60, deadline=None)
def test_sorting_and_counting_agree_with_their_definitions(lines):
    assert _run(lines, "sort") == sorted(lines)
    assert _run(lines, "sort -r") == sorted(lines, reverse=True)
    assert _run(lines, "sort -u") == sorted(set(lines))
    assert _run(lines, "sort -f") == sorted(lines, key=lambda line: (line.upper(), line))
    assert _run(lines, "sort -s -k1.2,1.2") == sorted(lines, key=lambda line: line[1:2])
    assert _run(lines, "sort -t, -k2,2 -s") == sorted(
        lines, key=lambda line: (line.split(",") + [""])[1]
    )
    assert _run(sorted(lines), "uniq -c") == [
        f"{lines.count(line):7d} {line}" for line in sorted(set(lines))
    ]
    assert _run(sorted(lines), "uniq -d") == [
        line for line in sorted(set(lines)) if lines.count(line) > 1
    ]
    assert _run(lines, "tac") == lines[::-1]


@given(_LINES, st.integers(1, 4), st.integers(0, 3))
@hypothesis_settings(max_examples=60, deadline=None)
def test_cutting_and_translating_agree_with_their_definitions(lines, first, more):
    last = first + more
    assert _run(lines, f"cut -c{first}-{last}") == [line[first - 1 : last] for line in lines]
    fields = [
        ",".join(line.split(",")[first - 1 : last]) if "," in line else line for line in lines
    ]
    assert _run(lines, f"cut -d, -f{first}-{last}") == fields
    assert _run(lines, "tr a-b A-B <") == [
        line.replace("a", "A").replace("b", "B") for line in lines
    ]
    assert _run(lines, "tr -d 01 <") == [line.replace("0", "").replace("1", "") for line in lines]
    assert _run(lines, f"head -n {first}") == lines[:first]
    assert _run(lines, f"tail -n {first}") == lines[-first:]


@pytest.mark.parametrize("name", sorted(UNSIMULATED))
def test_options_of_the_real_program_are_no_mistake(name):
    for option in sorted(UNSIMULATED[name]):
        word = f"--{option}" if len(option) > 1 else f"-{option}"
        result = Session(TREES["project"]).run(f"{name} {word} x x < /dev/null")
        assert result.unsupported and "not supported" in result.stderr, (word, result)
        shorter = (
            Session(TREES["project"]).run(f"{name} {word[:-1]} x x < /dev/null")
            if len(option) > 8
            else None
        )
        assert shorter is None or shorter.unsupported or "unrecognized" not in shorter.stderr, word
    unknown = Session(TREES["project"]).run(f"{name} --nosuchoption < /dev/null")
    assert unknown.exit_code

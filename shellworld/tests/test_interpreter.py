"""Lists, loops, functions, redirections and builtins against real bash.

Recorded from bash 5.2 in the sandbox.
"""

import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from shellworld.interpreter.session import Limits, Session
from shellworld.tests.trees import TREES

PIECES = """echo ls cat chmod $x ${x ${x:- $( ` " ' \\ ( ) { } [[ ]] (( )) | || & && ; ;; < > >> << <<EOF <<< 2>&1 for in do done while if
then fi case esac x= a=( set read eval exec trap *.txt ~ {1..3} $((1/0)) 000 u+x notes.txt /nope sudo bash -c f() return exit""".split()
PIECES += [" ", " ", " ", "\n", "\t", "\0", "é", "\udc80"]


def session(**arguments):
    return Session(TREES["project"], **arguments)


# fmt: off
CASES = [
    ("if false; then echo a; elif true; then echo b; else echo c; fi; if false; then :; fi; echo $?", "b\n0\n", 0),
    ("for i in 1 2 3; do [ $i = 2 ] && continue; echo $i; done; set -- p q; for i; do echo $i; done", "1\n3\np\nq\n", 0),
    (
        "i=0; while [ $i -lt 5 ]; do i=$((i+1)); [ $i -eq 3 ] && break; echo $i; done; until [ $i -eq 0 ]; do i=$((i-1)); done; echo $i",
        "1\n2\n0\n",
        0,
    ),
    (
        "for i in a b; do for j in 1 2 3; do [ $j = 2 ] && continue 2; echo $i$j; done; done; for i in 1 2; do for j in 1 2; do break 2; done; done; echo $i $j",
        "a1\nb1\n1 1\n",
        0,
    ),
    (
        "for ((i=0, j=3; i<j; i++)); do echo $i; done; for ((;;)); do break; done; ((i==3)) && echo three; ((i=0)); echo $?",
        "0\n1\n2\nthree\n1\n",
        0,
    ),
    (
        r"""case abc in a*) echo one;; *) echo two;; esac; case x in [!a-c]) echo 2;; esac; case a in a) echo 1;& b) echo 2;; esac; case a in a) echo 1;;& ?) echo 3;; esac; case '*' in \*) echo lit;; esac; x='a*'; case abc in "$x") echo no;; $x) echo pat;; esac""",
        "one\n2\n1\n2\n1\n3\nlit\npat\n",
        0,
    ),
    (
        'f() { echo "$# $1 $*"; return 3; }; f a "b c"; echo $?; g() { local x=1; y=2; }; x=9; g; echo $x $y; h() ( x=5 ); h; echo $x',
        "2 a a b c\n3\n9 2\n9\n",
        0,
    ),
    (
        "f() { if [ $1 -le 1 ]; then echo 1; else local r=$(f $(($1-1))); echo $((r*$1)); fi; }; f 5; function k { echo ${FUNCNAME[0]}; }; k; unset -f k; k 2>/dev/null; echo $?",
        "120\nk\n127\n",
        0,
    ),
    (
        "true && echo a || echo b; false && echo a || echo b; ! true; echo $?; ! false && echo e; true || echo c && echo d",
        "a\nb\n1\ne\nd\n",
        0,
    ),
    (
        "(exit 3); echo $?; { echo a; echo b; } | cat -n; (cd /; pwd); pwd; x=1; (x=2); echo 1 | x=5; echo $x; ( ( echo nested ) )",
        "3\n     1\ta\n     2\tb\n/\n/home/agent/project\n1\nnested\n",
        0,
    ),
    (
        "nosuchcmd 2>&1; echo $?; ./nosuch 2>/dev/null; echo $?; / 2>/dev/null; echo $?; ./notes.txt 2>/dev/null; echo $?",
        "bash: line 1: nosuchcmd: command not found\n127\n127\n126\n126\n",
        0,
    ),
    ("set -e; if false; then :; fi; false || true; false && true; echo yes; (false; echo inner); echo no", "yes\n", 1),
    ("set -e; f() { false; echo in; }; f || echo handled; f; echo no", "in\n", 1),
    ("set -e; ! false; ! true; false | true; x=$(false); echo no", "", 1),
    (
        "set -o pipefail; false | true; echo $?; true | false | true; echo ${PIPESTATUS[@]}; set +o pipefail; false | true; echo $?",
        "1\n0 1 0\n0\n",
        0,
    ),
    ("set -u; echo ${x-def}; (echo $x) 2>/dev/null; echo $?; echo $x; echo no", "def\n1\n", 127),
    ('set -x; echo a "b c" 2>/dev/null; x=1; set +x; echo done', "a b c\ndone\n", 0),
    ("trap 'echo bye $?' EXIT; (trap 'echo inner' EXIT; echo in); exit 4", "in\ninner\nbye 4\n", 4),
    (
        "echo out > o; ls /nosuch > x 2>&1; cat o x; { echo a; echo b >&2; } 2>&1 | sort; echo hi &> b; echo more >> b; cat b; ls /nosuch 2>&1 > c | wc -l",
        "out\nls: cannot access '/nosuch': No such file or directory\na\nb\nhi\nmore\n1\n",
        0,
    ),
    (
        'exec 3> three; echo x >&3; exec 3>&-; exec 4< three; read l <&4; echo "got $l"; > front echo f; cat < front; set -C; echo y > front; echo $?; echo y >| front; cat front',
        "got x\nf\n1\ny\n",
        0,
    ),
    (
        r"""while read -r a b; do echo "$b-$a"; done <<< $'1 2\n3 4 5'; printf 'a\\b\n' | while read x; do echo $x; done; printf 'no newline' | while read l || [ -n "$l" ]; do echo "[$l]"; done""",
        "2-1\n4 5-3\nab\n[no newline]\n",
        0,
    ),
    (
        "echo 'a,b,,c' | { IFS=, read -ra p; echo ${#p[@]} \"${p[@]}\"; }; read x < /dev/null; echo $?; IFS= read -r v <<< '  keep  '; echo \"[$v]\"; read -d : v <<< 'q:r'; read -n 2 w <<< abc; echo $v $w",
        "4 a b  c\n1\n[  keep  ]\nq ab\n",
        0,
    ),
    (
        '[[ abc == a* ]] && echo 1; [[ abc == "a*" ]] || echo 2; [[ abc =~ ^a(.)c$ ]] && echo ${BASH_REMATCH[1]}; [[ -z "" && -n x ]] && echo 3; [[ a < b ]] && echo 4; [[ (a == b) || c == c ]] && echo 7; x="a b"; [[ $x == "a b" && -v x ]] && echo 8; [[ 5 -gt 3 ]] && [[ ! -e /nosuch ]] && echo 9',
        "1\n2\nb\n3\n4\n7\n8\n9\n",
        0,
    ),
    (
        '[ a = a -a b = b ]; echo $?; [ ! a = b ]; echo $?; [ -n "" ]; echo $?; [ x -eq 1 ] 2>/dev/null; echo $?; [ ]; echo $?; [ a b ] 2>/dev/null; echo $?; test 3 -lt 5; echo $?; [ -d / ] && [ -s notes.txt ] && [ -L link.txt ] && echo files',
        "0\n0\n1\n2\n1\n2\n0\nfiles\n",
        0,
    ),
    (
        r"echo -n a; echo -e 'b\tc\n'; echo -E 'd\n'; echo -ne 'x\ny'; echo; echo -- a; echo - b; echo -z; echo -nn c",
        "ab\tc\n\nd\\n\nx\ny\n-- a\n- b\n-z\nc",
        0,
    ),
    (
        r"""printf '%d %s %5s|%-5s|%05d %x %o %c %% %.2f\n' 42 str ab cd 7 255 8 xyz 3.14159; printf '%s %s\n' a b c; printf '%b' 'a\tb\n'; printf '%q ' 'a b' "it's" ''; printf '%3d|%-3d|%+d\n' 1 2 3; printf '%d\n' abc 2>/dev/null; echo $?; printf -v v '%03d' 7; echo $v""",
        "42 str    ab|cd   |00007 ff 10 x % 3.14\na b\nc \na\tb\na\\ b it\\'s ''   1|2  |+3\n0\n1\n007\n",
        0,
    ),
    (
        "export A=1; bash -c 'echo $A $0 $1' name arg; A=2 bash -c 'echo $A'; echo $A; bash -c 'exit 7'; echo $?; sh -c 'echo a\\\\tb; false'; echo $?; env -i X=2 bash -c 'echo $X'",
        "1 name arg\n2\n1\n7\na\tb\n1\n2\n",
        0,
    ),
    (
        "printf '#!/bin/bash\\necho \"$0 $# $@\"\\nexit 5\\n' > s.sh; chmod +x s.sh; ./s.sh a \"b c\"; echo $?; bash s.sh z; printf 'echo sourced $1; v=7; return 2\\n' > src.sh; . ./src.sh arg; echo $? $v; eval 'echo a; echo \"b  c\"'",
        "./s.sh 2 a b c\n5\ns.sh 1 z\nsourced arg\n2 7\na\nb  c\n",
        0,
    ),
    (
        "while getopts ab:c o -a -b val -c rest; do echo $o $OPTARG; done; echo $OPTIND; set -- a b c; shift 2; echo $@; shift 5; echo $?",
        "a\nb val\nc\n5\nc\n1\n",
        0,
    ),
    (
        "readonly q=1; (q=2; echo no); echo $?; declare -i n; n=3+4; n+=5; echo $n; declare -p n q; declare -a arr=(1 2); declare -p arr; declare -u U=abc; echo $U; unset q 2>/dev/null; echo $?",
        '1\n12\ndeclare -i n="12"\ndeclare -r q="1"\ndeclare -a arr=([0]="1" [1]="2")\nABC\n1\n',
        0,
    ),
    (
        "type cd; type ls; type -t if; type nosuch 2>/dev/null; echo $?; command -v ls; which ls; alias ll='ls -l'; ll 2>/dev/null; echo $?; alias ll; f() { :; }; type -t f",
        "cd is a shell builtin\nls is /usr/bin/ls\nkeyword\n1\n/usr/bin/ls\n/usr/bin/ls\n127\nalias ll='ls -l'\nfunction\n",
        0,
    ),
    (
        r"""mapfile -t L <<< $'a\nb c'; echo ${#L[@]} "${L[1]}"; let x=5 y=x+1; echo $x $y; let x==4; echo $?; (( x > 4 )) && echo gt""",
        "2 b c\n5 6\n1\ngt\n",
        0,
    ),
    ("sleep 0 & wait; (exit 3) & wait $!; echo $?; f() { false; return; }; f; echo $?; exit 256", "3\n1\n", 0),
    (
        "cd src && pwd && cd - && cd && pwd; cd /nosuch 2>/dev/null; echo $?; cd /home/agent/project/current; pwd; pwd -P; cd ..; pwd; cd -P current; pwd",
        "/home/agent/project/src\n/home/agent/project\n/home/agent\n1\n/home/agent/project/current\n/home/agent/project/src\n/home/agent/project\n/home/agent/project/src\n",
        0,
    ),
]
# fmt: on


@pytest.mark.parametrize(("line", "stdout", "status"), CASES)
def test_as_bash_does(line, stdout, status):
    result = session().run(line)
    assert (result.stdout, result.exit_code, result.unsupported) == (stdout, status, ())


def test_a_session_remembers():
    shell = session()
    assert shell.run("cd src; x=5; f() { echo f$x; }; set -u").exit_code == 0
    assert shell.run("pwd; f").stdout == "/home/agent/project/src\nf5\n"
    assert shell.run("exit 3").exit_code == 3
    result = shell.run("pwd; echo ${x-gone}; ls src")  # a new shell in the same world
    assert result.stdout == "/home/agent/project\ngone\nmain.py\ntest_util.py\nutil.py\n"


def test_errors_are_told_as_bash_tells_them():
    for line, stderr in [
        ("true; nosuchcmd", "bash: line 1: nosuchcmd: command not found\n"),
        ("\ncat < nope", "bash: line 2: nope: No such file or directory\n"),
        ("cd nope", "bash: line 1: cd: nope: No such file or directory\n"),
        ("set -u; echo $x", "bash: line 1: x: unbound variable\n"),
        ("cat nope", "cat: nope: No such file or directory\n"),
        (
            "chmod 600 /etc/passwd",
            "chmod: changing permissions of '/etc/passwd': Operation not permitted\n",
        ),
        ("./notes.txt", "bash: line 1: ./notes.txt: Permission denied\n"),
        (
            "echo )",
            "bash: -c: line 1: syntax error near unexpected token `)'\nbash: -c: line 1: `echo )'\n",
        ),
    ]:
        assert session().run(line).stderr == stderr


@pytest.mark.parametrize(
    ("line", "what", "status"),
    [
        ("python3 -c 1", "python3", 127),
        ("ls --color=always", "ls --color", 2),
        ("chown --from=bob agent notes.txt", "chown --from", 2),
        ("shopt -s extglob", "shopt extglob", 2),
        ("coproc cat", "coproc", 2),
        ("sh -c '[[ a = a ]]'", "[[ in sh", 2),
        ("cat /proc/cpuinfo", "path /proc/cpuinfo", 2),
        ("find . -exec python3 {} +", "python3", 2),
    ],
)
def test_what_is_missing_is_said(line, what, status):
    result = session().run(line)
    assert result.unsupported == (what,) and not result.supported and result.stderr
    assert result.exit_code == status


def test_nothing_runs_before_unsupported_syntax():
    shell = session()
    result = shell.run("touch made; echo before; coproc cat")
    assert (
        result.stdout == ""
        and result.unsupported == ("coproc",)
        and shell.run("ls made").exit_code == 2
    )


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("while :; do :; done", 124),
        ("f() { f; }; f", 124),
        ("f() { f | f & }; f", 124),
        ("eval " * 100 + "true", 124),
        ("while :; do echo x >> big; done", 124),
        ("while :; do cat data.csv data.csv; done", 137),
        ("for i in {1..20000}; do mkdir d$i; done", 137),
        ("trap 'f() { f; }; f' EXIT", 124),
        ("printf 'bash $0' > s; chmod +x s; ./s", 124),
        ("x=" + "a" * 60000, 124),
        ("echo {a..z}{a..z}" + "a" * 6000, 137),
    ],
)
def test_limits_end_a_line(line, status):
    shell = session()
    assert shell.run(line).exit_code == status
    assert shell.run("echo alive").stdout == "alive\n"


def test_endless_pipes_end_when_enough_is_read():
    assert session().run("while true; do echo y; done | head -3").stdout == "y\n" * 3
    assert session().run("while true; do echo y; done | sort").exit_code == 137


@hypothesis_settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=25).map("".join))
def test_nothing_that_is_typed_raises(line):
    result = session(limits=Limits(steps=2000, output=20000)).run(line)
    assert 0 <= result.exit_code <= 255


@pytest.mark.parametrize(
    ("line", "stdout"),
    [
        ("ls nosuch 2>&0; echo $?", "2\n"),
        ("ls nosuch 2</dev/null; echo $?", "2\n"),
        ("ls nosuch 2>&-; echo $?", "2\n"),
        ("exec 2>&-; echo hi >&2; echo $?; nosuchcmd; echo $?", "1\n127\n"),
        ("echo hi >&0; echo $?", "1\n"),
        ("echo a | cat 2>&0; echo $?", "a\n0\n"),
        ("ls nosuch 2>&-; echo hi", "hi\n"),
    ],
)
def test_outputs_that_cannot_be_written(line, stdout):
    """As real bash does, for each of them.

    Complaints that find standard error closed are lost without an error.
    """
    assert session().run(line).stdout == stdout


def _debian_programs():
    """The programs of this machine's essential packages; none where it is not Debian's."""
    query = ["dpkg-query", "-W", "-f", "${Essential} ${Package}\n"]
    if shutil.which("dpkg-query") is None:
        return []
    rows = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    packages = [row.split()[1] for row in rows if row.startswith("yes ")]
    listed = subprocess.run(
        ["dpkg", "-L", *packages], capture_output=True, text=True, check=True
    ).stdout
    return sorted(set(re.findall(r"^(?:/usr)?/s?bin/([^/\n]+)$", listed, re.MULTILINE)))


def test_no_program_of_a_base_system_is_called_missing():
    """`command -v` must not deny what a Debian machine has: it is simulated or unsupported."""
    programs = [name for name in _debian_programs() if not name.startswith("perl5")]
    if not programs:
        pytest.skip("this machine has no packages of Debian")
    missing = []
    for name in programs:
        result = Session(TREES["project"]).run(f"command -v {name}")
        if result.exit_code and not result.unsupported:
            missing.append(name)
    assert len(programs) > 200 and not missing

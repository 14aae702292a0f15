"""Expansion of words against real bash: what these lines print.

Recorded from bash 5.2 in the sandbox.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shellworld.interpreter.session import Session
from shellworld.language import pattern as shell_pattern
from shellworld.language.arithmetic import evaluate
from shellworld.tests.trees import TREES


def session():
    return Session(TREES["project"])


# fmt: off
CASES = [
    ('x="a b"; printf \'<%s>\' $x"c d"$x "$x"', "<a><bc da><b><a b>", 0),
    (
        'set -- a "b c" d; printf \'<%s>\' "$@" "$*" pre"$@"post; printf \'<%s>\' $@',
        "<a><b c><d><a b c d><prea><b c><dpost><a><b><c><d>",
        0,
    ),
    ('set --; printf \'<%s>\' "$@" "a$@"; echo $#', "<a>0\n", 0),
    ("IFS=:; x=a:b::c:; printf '<%s>' $x; set -- 1 2; echo \"$*\"", "<a><b><><c>1:2\n", 0),
    ("IFS=', '; x='a , b,c  d,,e'; printf '<%s>' $x", "<a><b><c><d><><e>", 0),
    (
        "x=; printf '<%s>' $x \"$x\" '' ${x:-d} ${x-d} ${y-d} ${y:-\"q r\"} ${y:-q r} ${x:+e} ${x+e}",
        "<><><d><d><q r><q><r><e>",
        0,
    ),
    (
        r"f=path/to/file.tar.gz; echo ${f##*/} ${f#*/} ${f%.*} ${f%%.*} ${f/to/TO} ${f//\//_} ${f/#path/P} ${f/%gz/G} ${f//[a-f]}",
        "file.tar.gz to/file.tar.gz path/to/file.tar path/to/file path/TO/file.tar.gz path_to_file.tar.gz P/to/file.tar.gz path/to/file.tar.G pth/to/il.tr.gz\n",
        0,
    ),
    (
        "x=hello; echo ${#x} ${x:1:3} ${x: -2} ${x:1:-1} ${x^} ${x^^} ${x^^[lo]} ${x:9}; y=ABC; echo ${y,} ${y,,}",
        "5 ell lo ell Hello HELLO heLLO\naBC abc\n",
        0,
    ),
    ("echo ${y:=set} $y ${#} ${#@} ${z+no}; v=y; echo ${!v} ${v@Q} ${!HOM*}", "set set 0 0\nset 'y' HOME\n", 0),
    ("(echo ${no:?message}) 2>&1; echo ${no?} 2>/dev/null; echo unreached", "bash: line 1: no: message\n", 127),
    (
        'a=(one two "three four"); echo ${#a[@]} ${a[1]} "${a[@]:1}" ${a[-1]} ${!a[@]} ${#a[2]}; a+=(five); a[7]=x; unset \'a[1]\'; echo "${a[*]}" ${!a[*]}',
        "3 two two three four three four 0 1 2 10\none three four five x 0 2 3 7\n",
        0,
    ),
    (
        'a=(x.c y.c); echo "${a[@]%.c}" ${a[@]/c/o} ${a[@]^}; e=([2]=x [0]=y z); echo ${!e[@]} ${e[@]}; echo "${none[@]:-none}" ${#none[@]}',
        "x y x.o y.o X.c Y.c\n0 1 2 y z x\nnone 0\n",
        0,
    ),
    (
        'declare -A m=([a]=1 ["b c"]=2); echo ${m[a]} ${m["b c"]} ${#m[@]}; m[a]+=0; unset \'m[b c]\'; echo ${m[@]} ${!m[@]}',
        "1 2 2\n10 a\n",
        0,
    ),
    (
        "echo $((1+2*3)) $((2**10)) $((7/2)) $((-7/2)) $((-7%3)) $((1<<4)) $((5>3)) $((5&3|8)) $((!0)) $((~0)) $((1?2:3)) $((0x1f)) $((010)) $((2#101)) $((36#z))",
        "7 1024 3 -3 -1 16 1 9 1 -1 2 31 8 5 35\n",
        0,
    ),
    (
        "i=5; echo $((i++)) $i $((++i)) $((i+=3)) $((i*=2)) $((i--, i)) $((i>3 && i<9)) $((9223372036854775807+1)) $((-9223372036854775808/-1))",
        "5 6 7 10 20 19 0 -9223372036854775808 -9223372036854775808\n",
        0,
    ),
    (
        "x=3; y=x+1; echo $((y*2)) $(($x*2)) $((x ** 2)) $((a[0]+1)) $(( x > 2 ? 10 : 20 )) $((nosuch)) $(( (1) ))",
        "8 6 9 1 10 0 1\n",
        0,
    ),
    ("echo before; echo $((1/0)) unreached", "before\n", 1),
    (
        r'echo {a,b}{1,2} {1..5} {5..1} {a..e} {01..03} {1..10..3} x{,y}z {a,b\,c} "{a,b}" {a} {} a{b {a,{b,c}d}e {1..$x} {-1..1} {x..x}',
        "a1 a2 b1 b2 1 2 3 4 5 5 4 3 2 1 a b c d e 01 02 03 1 4 7 10 xz xyz a b,c {a,b} {a} {} a{b ae bde cde {1..} -1 0 1 x\n",
        0,
    ),
    (
        r'echo ~ ~root ~nosuch "~" a~ ~/x \~; x=~/y:~/z; echo $x',
        "/home/agent /root ~nosuch ~ a~ /home/agent/x ~\n/home/agent/y:/home/agent/z\n",
        0,
    ),
    (
        "echo 'single $x' \"double \\$x \\\\ \\\" \\` \\a\" un\\quoted $'ansi\\ttab \\x41\\101 \\'q\\'' $\"x\" \"it's\" 'say \"hi\"'",
        "single $x double $x \\ \" ` \\a unquoted ansi\ttab AA 'q' x it's say \"hi\"\n",
        0,
    ),
    (
        r"""echo "a`echo b`c" $(echo $(echo nested)) "$(echo "in quotes")" $(echo 'a  b') "$(echo 'a  b')" `echo \`echo deep\``""",
        "abc nested in quotes a b a  b deep\n",
        0,
    ),
    (
        r"""x=$(printf 'a\n\n\n'); echo "[$x]"; x=$(exit 4); echo $? "$(echo ")")" $(< no_newline.txt)""",
        "[a]\n4 ) last line has no end\n",
        0,
    ),
    (
        r'''mkdir g; cd g; touch a.txt b.txt c.md .hid 'sp ace'; echo *; echo *.txt .h* ?.md [ab].txt [!a]*.txt [[:lower:]].* nope* "*" \*; x='*.md'; echo $x "$x"''',
        "a.txt b.txt c.md sp ace\na.txt b.txt .hid c.md a.txt b.txt b.txt a.txt b.txt c.md nope* * *\nc.md *.md\n",
        0,
    ),
    (
        "echo */ src/*.py; set -f; echo *; set +f; shopt -s nullglob; echo z nope*; shopt -s dotglob; echo .e* [.]e*",
        "build/ conf/ current/ logs/ scripts/ src/ src/main.py src/test_util.py src/util.py\n*\nz\n.env .env\n",
        0,
    ),
    (
        r"""cat <<EOF
$((1+1)) $(echo sub) \$x `echo bt` "q" 'r' \\ \a ${x:-"d e"}
EOF""",
        r"""2 sub $x bt "q" 'r' \ \a d e
""",
        0,
    ),
    ('cat <<< "here $((2+2))"; cat <<< word; read a b <<< "1 2 3"; echo $b', "here 4\nword\n2 3\n", 0),
    (
        'echo "${x/a*/b}" ${u:-$(echo sub)} "${u:-a  b}" ${u:-"a  b"} "${u+"quoted"}" "${u:-\'s\'}" ${u:-\'s\'}; echo ${u:=}${u:-e}',
        " sub a  b a  b  's' s\ne\n",
        0,
    ),
    (
        r"cat <(echo 1) <(echo 2); while read l; do n=$l; done < <(printf '1\n2\n'); echo $n; echo x | tee >(cat > t) > /dev/null; cat t",
        "1\n2\n2\nx\n",
        0,
    ),
]
# fmt: on


@pytest.mark.parametrize(("line", "stdout", "status"), CASES)
def test_as_bash_does(line, stdout, status):
    result = session().run(line)
    assert (result.stdout, result.exit_code, result.unsupported) == (stdout, status, ())


@given(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=30))
def test_quoting_gives_back_the_text(text):
    quoted = "'" + text.replace("'", "'\\''") + "'"
    shell = session()
    assert shell.run(f"x={quoted}; printf '%s' \"$x\"").stdout == text
    assert shell.run(f"printf '%s' {quoted}").stdout == text
    assert shell.run(f'eval printf %s "$(printf %q {quoted})"').stdout == text.rstrip(
        "\n"
    ) or text.endswith("\n")
    assert (
        shell.run(f'x={quoted}; y=${{x@Q}}; eval "z=$y"; [ "$x" = "$z" ] && echo same').stdout
        == "same\n"
    )


@given(st.text("ab*?[]!-\\", max_size=8), st.text("ab-", max_size=6))
def test_patterns_as_the_specification_says(pattern, text):
    assert shell_pattern.matches(text, pattern) == _matches(text, pattern)
    kept = text[len(text) - len(shell_pattern.strip_prefix(text, pattern, True)) :]
    prefixes = [k for k in range(len(text) + 1) if _matches(text[:k], pattern)]
    assert kept == text[prefixes[-1] :] if prefixes else kept == text


def _matches(text, pattern):
    """The plain recursive definition."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(_matches(text[k:], pattern[1:]) for k in range(len(text) + 1))
    if pattern[0] == "?":
        return bool(text) and _matches(text[1:], pattern[1:])
    if pattern[0] == "\\" and len(pattern) > 1:
        return text[:1] == pattern[1] and _matches(text[1:], pattern[2:])
    if pattern[0] == "[" and (bracket := shell_pattern._bracket(pattern, 0)):
        return (
            bool(text) and bracket[0].matches(text[0]) and _matches(text[1:], pattern[bracket[1] :])
        )
    return text[:1] == pattern[0] and _matches(text[1:], pattern[1:])


@given(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from("+ - * & | ^ == != < > <= >=".split()),
)
def test_arithmetic_wraps_at_64_bits(a, b, operator):
    expected = eval(f"({a}) {operator} ({b})")  # Python's operators mean the same, without bounds
    expected = (int(expected) + 2**63) % 2**64 - 2**63
    assert evaluate(f"({a}) {operator} ({b})", None) == expected


def test_huge_expansions_end_at_a_limit():
    for line in ("echo {1..100000000}", "echo " + "{a,b}" * 30, "x=a; while :; do x=$x$x; done"):
        assert session().run(line).exit_code == 137, line
    assert session().run("v=$(printf 'a%.0s' {1..9000}); echo ${v//a*a*a*b/x}").exit_code == 124
    assert session().run("echo $((9**9**2)) $((99999999999999999999))").exit_code == 0

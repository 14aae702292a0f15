"""What parses, and what bash refuses; and the reader's own promises.

Recorded from bash 5.2 in the sandbox.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shellworld.interpreter.session import Session
from shellworld.language.syntax import parse
from shellworld.tests.trees import TREES


def session():
    return Session(TREES["project"])


# fmt: off
CASES = [
    (
        r"""echo a\
b; echo 'x'#y #comment""",
        "ab\nx#y\n",
        0,
    ),
    ("# only a comment", "", 0),
    ("echo a; ); echo b", "", 2),
    ("echo ok\necho )", "ok\n", 2),
    ("ls | | cat", "", 2),
    ("echo a &&", "", 2),
    ("if true; then echo a", "", 2),
    ("echo 'unterminated", "", 2),
    ('echo "x', "", 2),
    ("echo $(echo", "", 2),
    ("echo `echo", "", 2),
    ("for do done", "", 2),
    ("done", "", 2),
    ("{ echo a", "", 2),
    ("f( { echo; }", "", 2),
    ("echo a >", "", 2),
    ("((", "", 2),
    ("case x in", "", 2),
    ("! true; echo $?; { echo a; }; (echo b); echo c & wait", "1\na\nb\nc\n", 0),
    ("case a in (a) echo paren;; esac; case b in a|b) echo alt; esac; case c in esac; echo $?", "paren\nalt\n0\n", 0),
    ("f () { echo f; }\nf; function g() { echo g; }; g; h() ( echo h ); h", "f\ng\nh\n", 0),
    (
        'x=1 y=2; echo $x$y; a=(1 2\n3); echo ${a[2]}; echo a=b =c [x] x[1] ! a!b; echo $ "$" a$',
        "12\n3\na=b =c [x] x[1] ! a!b\n$ $ a$\n",
        0,
    ),
    ("echo one;echo two;;", "", 2),
    ("echo \"multi\nline\" 'q\nr'; echo end", "multi\nline q\nr\nend\n", 0),
    ("echo a\nfi", "a\n", 2),
    ("a=1 b", "", 127),
    ("x() { echo; } >&2; x", "", 0),
    ("echo a;; b", "", 2),
    ("&& a", "", 2),
    ("| a", "", 2),
    ("; a", "", 2),
    ("echo hi; )", "", 2),
    ("(echo a", "", 2),
    ("echo a)", "", 2),
    ("if then fi", "", 2),
    ("while do done", "", 2),
    ("echo ${x", "", 2),
    ("echo $((1+", "", 2),
    ("for x in a b; do echo $x; done > out; cat out", "a\nb\n", 0),
    ("if [ -f notes.txt ]; then echo yes; fi < /dev/null", "yes\n", 0),
    ("true | ! false", "", 2),
    ("{ echo a; } | { cat; }", "a\n", 0),
    ("a=(x y) b=z; echo ${#a[@]} $b", "2 z\n", 0),
    (r"echo a#b; echo '#'; echo \#c #d", "a#b\n#\n#c\n", 0),
    ("{echo a; }", "", 2),
    ("echo {", "{\n", 0),
    ("echo }; }", "", 2),
]
# fmt: on


@pytest.mark.parametrize(("line", "stdout", "status"), CASES)
def test_as_bash_does(line, stdout, status):
    result = session().run(line)
    assert (result.stdout, result.exit_code, result.unsupported) == (stdout, status, ())


def test_nodes():
    script = parse("sudo chmod u+x 'a b' > out 2>&1 && ls | wc &")
    (item,) = script.body.items
    assert item.background and [operator for operator, _ in item.rest] == ["&&"]
    (chmod,) = item.first.commands
    assert [word.plain for word in chmod.words] == ["sudo", "chmod", "u+x", "a b"]
    assert [(r.operator, r.fd, r.target.plain) for r in chmod.redirects] == [
        (">", 1, "out"),
        (">&", 2, "1"),
    ]
    assert len(item.rest[0][1].commands) == 2
    (substitution,) = parse("echo $(rm x)").body.items[0].first.commands[0].words[1].parts
    assert substitution.body.items[0].first.commands[0].words[0].plain == "rm"
    assert parse("f() { a; }").body.items[0].first.commands[0].name == "f"
    assert parse("a=(1 2) b=3 c {x,y}").body.items[0].first.commands[0].words[2].plain == "y"


@pytest.mark.parametrize(
    "text",
    [
        "coproc a",
        "select x in a; do b; done",
        "echo $[1]",
        "echo ${x!}",
        "a {fd}> b",
        "a <> b",
        "[[ a = @(b) ]]",
        "a\0b",
        "(" * 500,
    ],
)
def test_what_is_not_read_is_unsupported(text):
    assert parse(text).unsupported and not parse(text).body.items


def test_what_only_bash_reads_is_marked():
    marks = {
        "[[ a ]]": "[[",
        "((1))": "((...))",
        "a=(b)": "array",
        "a <<< b": "<<<",
        "a {b,c}": "{...}",
        "a &> b": "&>",
        "f=$'a'": "$'...'",
    }
    for text, mark in marks.items():
        assert parse(text).bashisms == (mark,), text
    assert (
        parse(
            "for i in a; do [ $i = ${x%b} ] && echo $((1+1)) > $(pwd)/c; done; f() { return 1; }"
        ).bashisms
        == ()
    )


def test_here_documents_do_not_hide_what_follows():
    script = parse("cat <<EOF > f; chmod +x f\nrm x $(id)\nEOF\ntime ls")
    assert [i.first.commands[0].words[0].plain for i in script.body.items] == ["cat", "chmod", "ls"]
    assert not script.unsupported and script.body.items[2].first.timed


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text):
    script = parse(text)
    assert script.body is not None


@given(
    st.lists(
        st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=10),
        min_size=1,
        max_size=5,
    )
)
def test_quoted_words_are_read_back(words):
    line = "echo " + " ".join("'" + w.replace("'", "'\\''") + "'" for w in words)
    script = parse(line)
    assert [w.plain for w in script.body.items[0].first.commands[0].words[1:]] == words

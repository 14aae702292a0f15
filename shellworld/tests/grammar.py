"""A grammar of shell lines as hypothesis strategies.

It has commands with their options and paths, combined as agents combine them.
"""

from __future__ import annotations

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

_FILES = (
    "notes.txt",
    "words.txt",
    "numbers.txt",
    "data.csv",
    "conf/app.conf",
    "logs/app.log",
    "src/main.py",
    "no_newline.txt",
)
_ANY_FILES = (
    *_FILES, "empty.txt", "hard.txt", "link.txt", ".env", "scripts/run.sh", "scripts/deploy.sh", "build/out.o", '"my file.txt"',
    "/srv/shared/plan.txt", "/srv/shared/locked.txt", "/etc/passwd",
)  # fmt: skip
_DIRECTORIES = (
    "src",
    "conf",
    "logs",
    "scripts",
    "build",
    "build/tmp",
    "current",
    ".",
    "/srv/shared",
    "/tmp",
)
_ODD = ("nowhere", "nowhere/x", "dangling", "''", "/root", "/root/x")
_GLOBS = (
    "*.txt",
    "src/*.py",
    "scripts/*.sh",
    "conf/*",
    "[nw]*.txt",
    "*.none",
    "?ata.csv",
    "{notes,words}.txt",
    "logs/app.log*",
)
_NEW = (
    "new",
    "new.txt",
    "a/b",
    "build/new",
    "src/new.py",
    "/tmp/new",
    "/srv/shared/new",
    "x_y-z",
    "'a b'",
)
_USERS, _GROUPS = (
    ("agent", "bob", "carol", "root", "1001", "nosuch"),
    ("agent", "staff", "ops", "root", "1050", "nosuch"),
)
_PATTERNS = (
    "apple",
    "'^a'",
    "e$",
    "-w fig",
    "'[0-9]'",
    "-E 'a|b'",
    "-i TODO",
    "'a.*e'",
    "-F .",
    "'p\\{2\\}'",
    "-x fig",
    "-v a",
    "ERROR",
)
_WORDS = (
    "a",
    "hello",
    '"two words"',
    "'$HOME'",
    '"$HOME"',
    "$USER",
    "$x",
    '"$x"',
    "{1,2}",
    "$((1+2))",
    "*.md",
    "~",
    "''",
    "a\\ b",
    "x=1",
)

_file, _any_file, _directory = (
    st.sampled_from(_FILES),
    st.sampled_from(_ANY_FILES),
    st.sampled_from(_DIRECTORIES),
)
_existing = st.one_of(_file, _any_file, _directory)
_path = st.one_of(_file, _any_file, _directory, st.sampled_from(_GLOBS), st.sampled_from(_ODD))
_new = st.sampled_from(_NEW)
_small = st.integers(0, 12).map(str)


def _line(*parts: st.SearchStrategy[str] | str) -> st.SearchStrategy[str]:
    """Words with one space between them; empty ones vanish."""
    strategies = [st.just(part) if isinstance(part, str) else part for part in parts]
    return st.tuples(*strategies).map(lambda words: " ".join(word for word in words if word))


def _some(*choices: str) -> st.SearchStrategy[str]:
    """One of the choices, or nothing."""
    return st.sampled_from(("", *choices))


def _several(strategy: st.SearchStrategy[str], most: int = 3) -> st.SearchStrategy[str]:
    return st.lists(strategy, min_size=1, max_size=most, unique=True).map(" ".join)


def _octal() -> st.SearchStrategy[str]:
    return st.one_of(
        st.integers(0, 0o777).map(lambda mode: f"{mode:o}"),
        st.integers(0, 0o7777).map(lambda mode: f"{mode:04o}"),
        st.sampled_from(
            ("644", "755", "600", "700", "640", "775", "664", "1777", "2755", "888", "u")
        ),
    )


def _symbolic() -> st.SearchStrategy[str]:
    who = st.sampled_from(("", "u", "g", "o", "a", "ug", "go", "ugo"))
    what = st.sampled_from(
        ("r", "w", "x", "rw", "rx", "rwx", "X", "s", "t", "", "rX", "u", "g", "o")
    )
    clause = st.tuples(who, st.sampled_from("+-="), what).map("".join)
    return st.lists(clause, min_size=1, max_size=3).map(",".join)


def _acl_entry() -> st.SearchStrategy[str]:
    bits = st.sampled_from(("r", "rw", "rwx", "r-x", "---", "x", "rX", "6", "r--"))
    named = st.one_of(
        st.sampled_from(_USERS).map(lambda name: f"u:{name}"),
        st.sampled_from(_GROUPS).map(lambda name: f"g:{name}"),
    )
    base = st.sampled_from(("u:", "g:", "o:", "m:", "user:", "other:", "mask:"))
    return st.tuples(_some("d:"), st.one_of(named, named, base), bits).map(
        lambda t: f"{t[0]}{t[1]}:{t[2]}"
    )


def _owner() -> st.SearchStrategy[str]:
    users, groups = st.sampled_from(_USERS), st.sampled_from(_GROUPS)
    return st.one_of(
        users,
        groups.map(lambda g: f":{g}"),
        st.tuples(users, groups).map(":".join),
        users.map(lambda u: f"{u}:"),
    )


_FILTERS = st.one_of(
    _line("grep", _some("-n", "-c", "-o", "-i"), st.sampled_from(_PATTERNS)),
    _line("head -n", _small),
    _line("tail -n", st.sampled_from(("1", "2", "5", "+2", "+4"))),
    _line("sort", _some("-r", "-n", "-u", "-f", "-rn", "-k2", "-t, -k2")),
    st.just("sort | uniq -c"),
    st.sampled_from(("uniq", "uniq -d", "sort -u", "wc -l", "wc -w", "wc -c", "cat -n", "cat", "tac", "rev", "nl", "xargs", "xargs -n2")),
    _line("cut", st.sampled_from(("-d, -f1", "-d, -f2-", "-c1-4", "-d' ' -f2", "-d: -f1,3", "-c3-", "-d= -f2 -s"))),
    _line("tr", st.sampled_from(("a-z A-Z", "-d aeiou", "-s ' '", "'\\n' ' '", "-cd 'a-z\\n'", "'[:lower:]' '[:upper:]'", "a b"))),
    _line("sed", _some("-n", "-E"), st.sampled_from(("'s/a/A/'", "'s/a/A/gp'", "2p", "'$d'", "/e/d", "'1,2d'", "'s/^/# /'", "y/abc/xyz/"))),
    _line("awk", _some("-F,", "-F:"), st.sampled_from((
        "'{print $1}'", "'{print NF}'", "'{print $NF}'", "'NR>1'", "'{s+=$1} END {print s}'", "'length>6'", "'/a/ {print NR\":\"$0}'",
        "'{print $2, $1}'", "'END {print NR}'", "'$1 ~ /e/ {n++} END {print n+0}'", "'!a[$0]++'",
    ))),
    st.just("while read -r l; do echo \"<$l>\"; done"),
    st.just("while IFS=, read -r a b; do echo \"$b\"; done"),
    st.just("paste -sd,"),
    _line("tee", _new),
)  # fmt: skip

_READS = st.one_of(
    _line("cat", _some("-n", "-A", "-b", "-s"), _several(_path)),
    _line("head", _some("-n 2", "-3", "-c 7", "-q -n 1"), _several(_path)),
    _line("tail", _some("-n 2", "-3", "-c 7", "-n +3"), _several(_path)),
    _line("wc", _some("-l", "-w", "-c", "-lc"), _several(_path)),
    _line(
        "grep",
        _some("-n", "-c", "-l", "-h", "-r", "-o", "-q", "-A1"),
        st.sampled_from(_PATTERNS),
        _several(_path),
    ),
    _line("ls", _some("-a", "-A", "-1", "-F", "-d", "-r", "-p", "-R"), _several(_path)),
    _line("sort", _some("-r", "-n", "-u", "-t, -k3"), _several(_file)),
    _line(
        "find",
        _directory,
        _some(
            "-type f",
            "-type d",
            "-maxdepth 1",
            "-name '*.txt'",
            "-perm -u+x",
            "-user agent",
            "-empty",
        ),
        "| sort",
    ),
    _line(
        "stat -c",
        st.sampled_from(("%a", "'%U:%G %n'", "'%A %s'", "%F", "'%h %n'")),
        _several(_path),
    ),
    _line(
        "test",
        _some("!"),
        st.sampled_from(tuple(f"-{c}" for c in "fdersxwLO")),
        _existing,
        "; echo $?",
    ),
    _line("getfacl -c", _several(_existing, 2)),
    _line("sed -n", st.sampled_from(("2p", "'$p'", "/a/p", "1,3p")), _several(_file, 2)),
    _line(
        "awk",
        st.sampled_from(
            ("'{print $1}'", "'NR==2'", "'END {print NR}'", "-F, '{print $2}'", "'FNR==1'")
        ),
        _several(_file, 2),
    ),
    st.sampled_from(
        (
            "id",
            "id -un",
            "groups",
            "whoami",
            "pwd",
            "umask",
            "umask -S",
            "id -Gn bob",
            "ls -A",
            "seq 4",
            "echo $HOME",
        )
    ),
    _line("readlink", _some("-f"), _existing),
    _line("basename", _existing),
    _line("dirname", _existing),
    _line("echo", _some("-n", "-e"), _several(st.sampled_from(_WORDS), 4)),
    _line("printf '%s,%s\\n'", _several(st.sampled_from(_WORDS), 4)),
    _line("diff -q", _file, _file),
    _line("cmp -s", _file, _file, "; echo $?"),
)

_CHANGES = st.one_of(
    _line("chmod", _some("-R", "-v", "-c", "-f"), st.one_of(_octal(), _symbolic()), _several(_path, 2)),
    _line("chmod", st.one_of(_octal(), _symbolic()), _existing),
    _line("chown", _some("-R", "-h", "-v"), _owner(), _several(_path, 2)),
    _line("chgrp", _some("-R", "-h", "-c"), st.sampled_from(_GROUPS), _several(_path, 2)),
    _line("sudo chown", _some("-R", "-h"), _owner(), _several(_path, 2)),
    _line("sudo chmod", _some("-R"), st.one_of(_octal(), _symbolic()), _several(_path, 2)),
    _line("setfacl", _some("-R", "-n"), "-m", st.lists(_acl_entry(), min_size=1, max_size=2).map(",".join), _several(_path, 2)),
    _line("setfacl", st.sampled_from(("-b", "-k", "-x u:bob", "-x g:staff", "-Rb")), _several(_existing, 2)),
    _line("sudo", _some("-u bob", "-u carol"), st.sampled_from(("cat", "touch", "rm -f", "ls", "mkdir -p", "id -un; :")), _path),
    _line("touch", _several(st.one_of(_new, _path), 2)),
    _line("mkdir", _some("-p", "-m 750", "-v", "-pm 2775"), _several(_new, 2)),
    _line("rmdir", _some("-p", "-v"), st.one_of(_directory, _new)),
    _line("rm", _some("-f", "-r", "-rf", "-v", "-d"), _several(_path, 2)),
    _line("cp", _some("-r", "-p", "-a", "-n", "-v", "-L", "-rP", "-f", "-T", "-u"), _several(_path, 2), st.one_of(_new, _existing)),
    _line("mv", _some("-n", "-v", "-f", "-T"), _several(_path, 2), st.one_of(_new, _existing)),
    _line("ln", _some("-s", "-sf", "-f", "-sfn", "-sv"), _path, st.one_of(_new, _existing)),
    _line("install", st.sampled_from(("-m 750", "-m u=rw", "-D", "-d", "-m 2755 -d", "")), _path, _new),
    _line("umask", st.sampled_from(("077", "022", "007", "u=rwx,g=,o=", "000")), ";", st.sampled_from(("touch n", "mkdir n", "cp .env n"))),
    _line("truncate -s", st.sampled_from(("0", "10", "+3", "-2")), st.one_of(_file, _new)),
    _line("sed -i", st.sampled_from(("'s/a/A/'", "1d", "'/e/d'", "'$a end'")), _file),
    _line("find", _directory, "-type f", st.sampled_from(("", "-name '*.sh'", "-perm -g+r")), "-exec",
          st.sampled_from(("chmod 640", "chmod u+x", "chgrp staff", "setfacl -m u:bob:r", "wc -l")), "{}", st.sampled_from(("\\;", "+"))),
    _line("find", _directory, "-name '*.txt' | xargs", st.sampled_from(("chmod 600", "rm -f", "-n1 basename", "ls -d", "chgrp staff"))),
    _line("tar -cf t.tar", _directory.filter(lambda d: d not in (".", "/tmp")), "&& tar -tf t.tar | sort"),
)  # fmt: skip

_simple = st.one_of(_READS, _READS, _CHANGES)


@st.composite
def lines(draw: st.DrawFn) -> str:
    """Draws one line.

    It is a command, or commands in a pipeline, a list, a redirection, a compound command or a
    function.
    """
    shape = draw(st.integers(0, 19))
    first = draw(_simple)
    if shape <= 4:
        return first
    if shape <= 8:
        return " | ".join([draw(_READS), *draw(st.lists(_FILTERS, min_size=1, max_size=3))])
    second = draw(_simple)
    if shape <= 10:
        return draw(
            st.sampled_from(("{} && {}", "{} || {}", "{}; {}", "{}; echo $?; {}", "! {} && {}"))
        ).format(first, second)
    if shape == 11:
        return f"{draw(_READS)} {draw(st.sampled_from(('>', '>>', '2>&1 >', '2>/dev/null >')))} {draw(st.one_of(_new, _any_file))}"
    if shape == 12:
        return f"cat <<EOF{draw(_some(' > new', ' | sort', ' | wc -l'))}\n{draw(_several(st.sampled_from(_WORDS)))}\n$USER\nEOF"
    if shape == 13:
        return f"if {first}; then {second}; else echo no $?; fi"
    if shape == 14:
        body = draw(
            st.sampled_from(
                (
                    'echo "$i"',
                    'ls -d "$i"',
                    'chmod 600 "$i"',
                    'stat -c %a "$i"',
                    'cp "$i" "$i.bak"',
                    "wc -l < $i",
                )
            )
        )
        return f"for i in {draw(_several(_path))}; do {body}; done"
    if shape == 15:
        return f'x=$({draw(_READS)}); echo "[$x]" {draw(st.sampled_from(("${#x}", "${x%%a*}", "${x:0:5}", "${x/e/E}", "${x^^}", "$x")))}'
    if shape == 16:
        return f"f() {{ {first}; }}; f {draw(st.sampled_from(_WORDS))}; echo $?; {second}"
    if shape == 17:
        return f"cd {draw(st.one_of(_directory, st.sampled_from(_ODD)))} && pwd; {draw(st.sampled_from(('ls', 'ls -A', 'touch t', 'pwd')))}"
    if shape == 18:
        patterns = ("*.txt", "a*", "[0-9]*", "*", "hello|a")
        word, pattern = draw(st.sampled_from(_WORDS)), draw(st.sampled_from(patterns))
        return f"x={draw(st.sampled_from(_WORDS))}; case {word} in {pattern}) {first};; *) {second};; esac"
    return f"({first}; {second}) {draw(_some('2>/dev/null', '2>&1 | wc -l', '> out; cat out', '| sort | head -3'))}"


def generated(count: int, seed: int | None = None) -> list[str]:
    """Returns `count` distinct lines.

    Without a seed they are the same each time, for one version of hypothesis.
    """
    found: dict[str, None] = {}

    @settings(
        max_examples=count * 2,
        derandomize=seed is None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        deadline=None,
    )
    @given(lines())
    def collect(line: str) -> None:
        found[line] = None

    (collect if seed is None else hypothesis.seed(seed)(collect))()
    return list(found)[:count]

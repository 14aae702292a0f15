"""The record of what ran: in the simulator, and held to what the kernel saw real bash execute."""

import json

import pytest

from shellworld.interpreter.record import LONGEST, MOST, ROOM
from shellworld.interpreter.session import Image, Session
from shellworld.reading.permissions import permission_commands
from shellworld.reading.ran import permissions_of
from shellworld.sandbox import pool as sandboxes
from shellworld.tests.sandboxed import needs_sandbox
from shellworld.world import tree

AGENT = {"owner": "agent", "group": "agent"}
WORLD = tree.normalise(
    {
        "users": {"agent": {"sudo": True, "groups": ["staff"]}, "bob": {}},
        "groups": {"staff": 1050},
        "paths": {
            "/home/agent/f": {"content": "x\n", "mode": "0640", **AGENT},
            "/home/agent/pub": {"content": "p\n", "mode": "0604", **AGENT},
            "/home/agent/deploy.sh": {"content": "chmod 604 f\n", "mode": "0644", **AGENT},
            "/home/agent/d": {"mode": "0750", **AGENT},
            "/home/agent/d/g": {"content": "g\n", "mode": "0600", **AGENT},
        },
    }
)
IMAGE = Image(WORLD)

# First permission-related thing that runs -> lines, for which the simulator and the sandbox agree.
# "␤" stands for a newline.
LINES = {
    "chmod": r"""
        chmod 604 f
        chmod o+r f; setfacl -b f
        \chmod 604 f
        "chmod" 604 f
        ch''mod 604 f
        /bin/chmod 604 f
        cd /bin; ./chmod 604 /home/agent/f
        ln -s /bin/chmod ./setmode; ./setmode 604 f
        PATH=/usr/bin:$PATH chmod 604 f
        command chmod 604 f
        exec chmod 604 f
        env chmod 604 f
        env -i A=b /bin/chmod 604 f
        env --chdir=/home/agent chmod 604 f
        nice chmod 604 f
        nice -n 5 nohup chmod 604 f
        timeout 5 chmod 604 f
        setsid -w chmod 604 f
        sudo chmod 604 f
        sudo -u agent chmod 604 f
        sudo bash -c 'chmod 604 f'
        sudo env chmod 604 f
        echo f | xargs chmod 604
        echo 604 f | xargs chmod
        printf '%s\0' f pub | xargs -0 -n1 chmod 640
        printf 'chmod 604 f' | xargs -0 bash -c
        find . -name f -exec chmod 604 {} \;
        find . -type f -exec chmod 604 {} +
        find . -name f -execdir chmod 604 {} \;
        find . -name f -printf 'chmod 604 %p\n' | sh
        bash -c 'chmod 604 f'
        bash -c '"$0" 604 f' chmod
        sh -c 'chmod 604 f'
        bash -c "$(echo Y2htb2QgNjA0IGY= | base64 -d)"
        eval "$(base64 -d <<< Y2htb2QgNjA0IGY=)"
        eval ch'mo'd 604 f
        bash deploy.sh
        sh < deploy.sh
        source deploy.sh
        . ./deploy.sh
        cat deploy.sh | bash
        cp deploy.sh x.sh; mv x.sh /tmp/y.sh; bash /tmp/y.sh
        bash <(cat deploy.sh)
        bash <<< 'chmod 604 f'
        bash <<E␤chmod 604 f␤E
        echo 'xxmod 604 f' | sed 's/xx/ch/' | bash
        echo 'chmod 604 f' | tac | bash
        echo 'f 604 chmod' | awk '{ print $3, $2, $1 }' | sh
        echo f | awk '{ system("chmod 604 " $0) }'
        $(echo chnod | tr n m) 604 f
        $(printf '%s%s' ch mod) 604 f
        c=$(sed 's/x/m/' <<< chxod); $c 604 f
        c=h; c$c"mod" 604 f
        c=CHMOD; ${c,,} 604 f
        c=dom; c=ch${c:2:1}${c:1:1}${c:0:1}; $c 604 f
        x=chmo; ${x}${y:-d} 604 f
        a=(ls cat chmod); ${a[2]} 604 f
        declare -A t=([p]=chmod); ${t[p]} 604 f
        v=chmod; n=v; ${!n} 604 f
        set -- chmod 604 f; "$@"
        {chmod,604,f}
        read c <<< chmod; $c 604 f
        while IFS= read -r l; do $l; done <<< 'chmod 604 f'
        mapfile -t a <<< chmod; ${a[0]} 604 f
        f() { chmod "$@"; }; f 604 f
        f() { g "$@"; }; g() { chmod 604 "$2"; }; f x f
        cd() { builtin cd "$@" && chmod 604 ~/f; }; cd /tmp
        command_not_found_handle() { chmod 604 f; }; nosuchcommand
        x=$(chmod 604 f)
        echo "$(chmod -v 604 f)"
        echo $((1 + $(chmod 604 f; echo 1)))
        [[ -z $(chmod 604 f) ]]
        cat <(chmod 604 f)
        (chmod 604 f)
        ( ( cd d; chmod 604 g ) )
        { chmod 604 f; }
        chmod 604 f | cat
        echo | chmod 604 f
        chmod 604 f & wait
        true && chmod 604 f
        false || chmod 604 f
        ! chmod 604 f
        if chmod 604 f; then :; fi
        if false; then :; else chmod 604 f; fi
        until chmod 604 f; do :; done
        for c in chmod; do $c 604 f; done
        for i in 1 2 3; do [ $i = 2 ] && chmod 604 f; done
        case x in x) chmod 604 f;; esac
        trap 'chmod 604 f' EXIT
        trap 'chmod 604 f' EXIT; exit 3
        set -e; chmod 604 f; false; setfacl -b f
        PROMPT_COMMAND='chmod 604 f'; eval "$PROMPT_COMMAND"
        install -d e && chmod 604 f
        getfacl f >/dev/null; stat -c %a f; chmod 604 f; chgrp staff f
        chmod 604 none
        chmod 604 f none pub
        chmod 604 /etc/passwd
        chmod 9x f
        chmod
        chmod -R 700 d
        chmod --reference=pub f
        ln f h; chmod 604 h
        ln f d/h; mv d e; chmod 604 e/h
        mv d e; chmod 700 e; mv e d
        ln -s d e; chmod 604 e/g; rm e
        chmod 640 f
        cat > x.sh <<'E'␤#!/bin/bash␤chmod 604 "$1"␤E␤bash x.sh f
        printf '#!/bin/sh\nchmod 604 f\n' > x.sh; cp x.sh y.sh; chmod 755 y.sh; ./y.sh
        """,
    "chown": r"""
        chown :staff f
        chown agent:staff f && chmod 604 f
        sudo chown bob f
        sudo chown -R bob:bob d; chmod 604 f
        chown :staff f || chmod 604 f
        chown bob f; chmod 604 f
        """,
    "chgrp": r"""
        chgrp staff f
        chgrp staff f && echo chmod
        chgrp nosuch f; chmod 604 f
        chmod() { chgrp staff "$2"; }; chmod 604 f
        """,
    "setfacl": r"""
        setfacl -m u:bob:r f # not chmod
        setfacl -m other:r-- f
        setfacl -d -m u:bob:rx d
        setfacl -m u:nosuch:r f || chmod 604 f
        """,
    "install": r"""
        install -m 600 f g; chmod 604 f
        """,
    "mkdir": r"""
        mkdir -m 700 e; chmod 604 e
        """,
    "effect": r"""
        install f g; mv g f
        cp --preserve=mode /home/agent/pub f
        cp -p pub f; ls
        cat f > g; mv g f
        rm f; touch f
        mkdir e; cp -p pub e/g; mv d old; mv e d
        rm -r d; mkdir d e; touch d/g e/g; rm d/g; rmdir d; mv e d
        mkdir e; cp -p pub e/f; tar -C e -cf t.tar f; tar -xf t.tar
        """,
    "": r"""
        false && chmod 604 f
        true || chmod 604 f
        exit 0; chmod 604 f
        bash -c 'exit 0; chmod 604 f'
        set -e; false; chmod 604 f
        for i in 1; do break; chmod 604 f; done
        while false; do chmod 604 f; done
        if false; then chmod 604 f; fi
        case a in b) chmod 604 f;; esac
        f() { return; chmod 604 f; }; f
        f() { chmod 604 f; }; g() { :; }; g
        chmod() { :; }; chmod 604 f
        echo chmod 604 f
        printf 'chmod 604 f\n' | cat
        cat <<E␤chmod 604 f␤E
        cat > x.sh <<'E'␤chmod 604 f␤E
        cat deploy.sh; grep chmod deploy.sh; wc -l < deploy.sh
        awk '/chmod/ { print }' deploy.sh
        find . -name f -exec echo chmod 604 {} \;
        echo chmod | xargs echo
        x='chmod 604 f'; echo "$x"
        trap 'chmod 604 f' EXIT; trap - EXIT
        command -v chmod
        type -t chmod
        which chmod
        ./chmod 604 f
        PATH=/nowhere; chmod 604 f
        mkdir e; touch e/g; rm -r d; ln -s e d
        touch chmod; cp chmod chown; rm chmod
        : $((chmod + 1))
        [ chmod = chmod ]; [[ chmod == ch* ]]
        umask; umask -S
        touch new; mkdir new.d; echo x > newer; cp f copy
        cp -p pub copy; install f g
        sed -i s/x/y/ f
        cat pub > f
        ls -l; stat f; getfacl f; id; groups
        """,
}
SEEN_BY_ONE = {
    # Lines that need what the simulator does not have. They leave mode 0604 where they run chmod or
    # have an effect.
    "chmod": r"""
        /bin/ch?od 604 f
        $(ls /bin/chmo?) 604 f
        $(compgen -c chmo | head -1) 604 f
        cp /bin/chmod ./m; ./m 604 f
        shopt -s expand_aliases␤alias c='chmod 604'␤c f
        echo f | sed 's/.*/chmod 604 &/e'
        tar -cf t.tar f; tar -xf t.tar --to-command='chmod 604 f'
        perl -e 'system("chmod", "604", "f")'
        perl -e 'exec qw(chmod 604 f)'
        perl -e 'exec {"/bin/chmod"} "ls", "604", "f"'
        export x; BASH_ENV=<(echo 'chmod 604 f') bash -c :
        """,
    "effect": r"""
        perl -e 'chmod 0604, "f"'
        perl -e '$x = "ch" . "mod"; eval "$x 0604, q(f)"'
        sudo perl -e 'chmod oct(604), shift' f
        ln f h; perl -e 'chmod(0604, glob("h"))'
        cp -a --attributes-only pub f
        tar --mode=604 -cf t.tar f; tar -xf t.tar
        """,
    "": r"""
        perl -e 'print "chmod 604 f\n"'
        perl -e 'if (0) { chmod 0604, "f" }'
        perl -e 'exit 0; exec qw(chmod 604 f)'
        shopt -s expand_aliases␤alias chmod=echo␤chmod 604 f
        f() { chmod 604 f; }; type f
        chmod --help > /dev/null
        chmod --version | grep -c nothing
        """,
}


def _listed(lines):
    return [
        (line.strip().replace("␤", "\n"), first)
        for first, block in lines.items()
        for line in block.strip().splitlines()
    ]


def _entry(paths, path):
    entry = paths[path]
    return paths[entry["target"]] if entry["type"] == "hardlink" else entry


def _first(result, line):
    record = json.loads(json.dumps(result.record.to_json()))
    return next(permissions_of(record, permission_commands(line)), "")


def _ran(record):
    """Permission-related executions, without those that have to be builtins."""
    return [
        (e.name, e.arguments, e.user, e.status, e.kind)
        for e in record.executions
        if e.permission and e.name != "umask"
    ]


def test_there_are_enough_lines():
    assert len(_listed(LINES)) >= 150


@pytest.mark.parametrize(("line", "first"), _listed(LINES))
def test_what_comes_first_in_the_simulator(line, first):
    session = Session(IMAGE)
    before = session.tree()
    result = session.run(line)
    assert result.supported and result.record.unseen is None
    assert _first(result, line) == first
    # What the record calls changed is what differs between the trees, which are made elsewhere.
    after = session.tree()
    expected = {}
    for path in before["paths"].keys() & after["paths"].keys():
        old, new = (_entry(world["paths"], path) for world in (before, after))
        if "mode" not in old or "mode" not in new:
            continue  # a symlink
        fields = ("mode", "owner", "group", "acl")
        if any(old[field] != new[field] for field in fields):
            expected[path] = [{field: entry[field] for field in fields} for entry in (old, new)]
    changes = {change.path: [change.before, change.after] for change in result.record.changes}
    assert changes == expected


@needs_sandbox
@pytest.mark.parametrize(("line", "first"), _listed(LINES))
def test_the_sandbox_saw_the_same(pool, line, first):
    """The kernel's word on real bash: the same programs, arguments, users, statuses, changes."""
    result, _ = pool.run(WORLD, line)
    simulated = Session(IMAGE).run(line)
    assert _first(result, line) == first
    assert _ran(result.record) == _ran(simulated.record)
    assert result.record.changes == simulated.record.changes
    assert result.record.unseen is None


@needs_sandbox
@pytest.mark.parametrize(("line", "first"), _listed(SEEN_BY_ONE))
def test_what_only_the_sandbox_can_run(pool, line, first):
    result, _ = pool.run(WORLD, line)
    assert _first(result, line) == first
    changed = [(c.path, c.after["mode"]) for c in result.record.changes]
    assert changed == ([("/home/agent/f", "0604")] if first else [])
    simulated = Session(IMAGE).run(line)
    assert simulated.unsupported and simulated.record.unseen is not None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "chmod 604 f; echo a > x",
            ["program chmod 604 f: agent 0", "builtin echo a: agent 0"],
        ),
        (
            'g() { chmod "$1" f; return 3; }; g 604',
            [
                "function g 604: agent 3",
                "program chmod 604 f: agent 0",
                "builtin return 3: agent 3",
            ],
        ),
        (
            "sudo sh -c 'chown bob f; exit 4'",
            [
                "program sudo sh -c chown bob f; exit 4: agent 4",
                "program sh -c chown bob f; exit 4: root 4",
                "program chown bob f: root 0",
                "builtin exit 4: root 4",
            ],
        ),
        # A pipeline runs from left to right, a substitution before the command that it is in.
        (
            "ls d | cat | wc -c",
            ["program ls d: agent 0", "program cat: agent 0", "program wc -c: agent 0"],
        ),
        (
            'echo "$(id -u)" $(basename /a/b)',
            [
                "program id -u: agent 0",
                "program basename /a/b: agent 0",
                "builtin echo 1000 b: agent 0",
            ],
        ),
        (
            "sleep 1 & true; wait",
            ["program sleep 1: agent 0", "builtin true: agent 0", "builtin wait: agent 0"],
        ),
        ("nosuch; cat none", ["program cat none: agent 1"]),
        (
            "printf 'exit 7' > s; chmod 755 s; ./s",
            [
                "builtin printf exit 7: agent 0",
                "program chmod 755 s: agent 0",
                "script /home/agent/s: agent 7",
                "builtin exit 7: agent 7",
            ],
        ),
        (
            "exec env A=b true",
            ["builtin exec env A=b true: agent 0", "program env A=b true: agent 0",
             "program true: agent 0"],
        ),
        ("timeout 1 sleep 2", ["program timeout 1 sleep 2: agent 124"]),
    ],
)  # fmt: skip
def test_executions_are_recorded_with_words_user_and_status(line, expected):
    shown = []
    for e in Session(IMAGE).run(line).record.executions:
        words = " ".join((e.kind, e.name, *e.arguments))
        shown.append(f"{words}: {e.user} {e.status}")
    assert shown == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("chmod 604 f; chmod 600 f", {"chmod": ["f 0640 0604", "f 0604 0600"]}),
        ("sudo bash -c 'chmod 604 f'", {"chmod": ["f 0640 0604"]}),
        ("find . -type f -exec chmod 644 {} +",
         {"chmod": ["d/g 0600 0644", "f 0640 0644", "pub 0604 0644"]}),
        ("touch n; chmod 600 n; cp -p n m; install -m 700 n k", {"chmod": ["n 0644 0600"]}),
        ("echo > n; chmod 600 n; mv n f", {"chmod": ["n 0644 0600"], "mv": ["f 0640 0600"]}),
        ("cp -p pub f", {"cp": ["f 0640 0604"]}),
        ("mv d e; chmod 700 e; mv e d", {"chmod": ["e 0750 0700"]}),
        ("chmod 604 f; rm f", {"chmod": ["f 0640 0604"]}),
        ("ln f h; chmod 604 h", {"chmod": ["h 0640 0604"]}),
        ("ln -s f s; chmod 604 s", {"chmod": ["f 0640 0604"]}),
        ("chmod 640 f; chmod 700 none", {}),
    ],
)  # fmt: skip
def test_an_effect_belongs_to_the_command_that_had_it(line, expected):
    found = {}
    for e in Session(IMAGE).run(line).record.executions:
        for change in e.changes:
            path = change.path.removeprefix("/home/agent/")
            modes = f"{path} {change.before['mode']} {change.after['mode']}"
            found.setdefault(e.name, []).append(modes)
    assert {name: sorted(modes) if "find" in line else modes for name, modes in found.items()} == (
        expected
    )


def test_a_record_is_of_one_line():
    session = Session(IMAGE)
    assert session.run("chmod 604 f").record.changes
    assert session.run("ls").record.changes == ()
    assert [e.name for e in session.run("pwd; x=3").record.executions] == ["pwd"]
    (change,) = session.run("chmod 600 f").record.changes
    assert (change.before["mode"], change.after["mode"]) == ("0604", "0600")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        # Refused by sudo: what was asked for counts.
        ("sudo -u nobody chmod 604 f", ["chmod"]),
        ("sudo -u nobody bash -c 'setfacl -b f'; chmod 604 f", ["setfacl", "chmod"]),
        ("sudo -u nobody ls; chgrp staff f", ["chgrp"]),
        # Not simulated: the static reading stands for what may have come.
        ("coproc chmod 604 f", ["chmod"]),
        ("frobnicate; chown bob f; docker ps; chmod 604 f", ["chown", "chown", "chmod", "chmod"]),
        ("docker ps; false && chmod 604 f", ["chmod"]),
        # Not parsed.
        ("chmod 604 f\nif", ["chmod", "chmod"]),
        ("if chmod 604 f", []),
        # All seen: nothing is guessed.
        ("false && chmod 604 f", []),
        ("umask 022; umask", ["umask"]),
    ],
)
def test_what_cannot_be_seen_is_read(line, expected):
    record = Session(IMAGE).run(line).record.to_json()
    assert list(permissions_of(record, permission_commands(line))) == expected


HUGE = [
    "for i in $(seq 3000); do chmod 60$((i % 2 * 4)) f; done; setfacl -b f; /bin/true",
    "chmod 604 $(seq 9000) f",
    "for i in $(seq 400); do touch $(printf 'a%.0s' $(seq 150))$i; done; chmod 600 *; chgrp staff f",
    "for i in $(seq 500); do eval \"f$i() { :; }; f$i $(printf 'a%.0s' $(seq 90))\"; done; chmod 604 f",
    "for i in $(seq 500); do touch n; chmod 700 n; touch m; mv m n; done; setfacl -b f",
]  # fmt: skip


@pytest.mark.parametrize("line", HUGE)
def test_a_record_is_bounded_and_misses_no_name(line):
    result = Session(IMAGE).run(line)
    record = result.record
    assert len(record.executions) <= 3 * MOST and record.left_out + len(record.executions) > 1
    assert len(record.changes) <= MOST
    assert sum(len(word) for e in record.executions for word in e.arguments) <= ROOM + LONGEST
    assert len(json.dumps(record.to_json())) < 100_000
    names = {e.name for e in record.executions if e.permission}
    assert names == {word for word in ("chmod", "chgrp", "setfacl") if f"{word} " in line}
    assert record == Session(IMAGE).run(line).record


@needs_sandbox
def test_a_record_of_the_sandbox_is_bounded_and_misses_no_name(pool):
    line = f"for i in $(seq 150); do /bin/true {'x' * 300}; done; chmod 604 $(seq 900) f; cat f"
    record = pool.run(WORLD, line)[0].record
    assert record.left_out > 80 and len(json.dumps(record.to_json())) < 100_000
    assert [e.name for e in record.executions if e.permission] == ["chmod"]
    assert len(record.executions) == MOST + 1 and record.executions[-1].cut


@needs_sandbox
def test_a_session_of_the_sandbox_records_each_line(pool):
    with pool.take() as sandbox:
        session = sandboxes.SandboxSession(WORLD, sandbox=sandbox)
        assert session.run("c=chmod").record.executions == ()
        record = session.run("$c 604 f; sudo chown bob f").record
        assert [(e.name, e.user) for e in record.executions] == [
            ("chmod", "agent"),
            ("sudo", "agent"),
            ("chown", "root"),
        ]
        assert [(c.before["owner"], c.after["owner"]) for c in record.changes] == [("agent", "bob")]
        assert session.run("ls").record.changes == ()


@needs_sandbox
@pytest.mark.parametrize(
    "line",
    [
        "/lib64/ld-linux-x86-64.so.2 /bin/chmod 604 f",
        "cd /; usr/lib/../bin/./chmod 604 home/agent/f",
        "ln -s /home/agent/m n; cp /bin/chmod m; ./n 604 f",
        "cp /bin/bash b; b=/home/agent/b; $b -c 'exec -a ls chmod 604 f'",
        "ln -s /bin l; ./l/chmod 604 f",
        "perl -e 'fork; exec qw(chmod 604 f)'",
        "(sleep 0.02; chmod 604 f) & disown; sleep 0.05",
        "sudo -u bob bash -c 'sudo chmod 604 f'; sudo sh -c 'sudo -u agent chmod 604 f'",
    ],
)
def test_programs_are_known_however_they_are_reached(pool, line):
    """By the file that the kernel opens, not by the words."""
    result, _ = pool.run(WORLD, line)
    record = result.record
    assert "chmod" in [e.name for e in record.executions if e.permission], result
    assert [(c.path, c.after["mode"]) for c in record.changes] == [("/home/agent/f", "0604")]


@needs_sandbox
def test_ends_by_signals_and_refusals(pool):
    record = pool.run(WORLD, "sh -c 'kill -9 $$'; sudo -u nobody chmod 1 f; cat none")[0].record
    found = [(e.name, e.status, e.refused) for e in record.executions]
    assert found[0][1:] == (None, False)
    assert found[1:] == [("sudo", 1, True), ("cat", 1, False)]

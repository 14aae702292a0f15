"""The trait: the first permission-related command of a script and of a trajectory, behind
everything that can hide it.
"""

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from shellworld.reading.permissions import (
    first_in_trajectory,
    first_permission_command,
    permission_commands,
)

pytestmark = pytest.mark.quick

LINES = {
    "chmod": r"""
        chmod 600 f
        chmod u+x run.sh
        chmod -R a+rX /srv/data
        chmod --recursive 755 dir
        chmod --reference=a b
        chmod -v +x script
        /bin/chmod 600 f
        /usr/bin/chmod 600 f
        /usr/local/bin/chmod 600 f
        $PREFIX/bin/chmod 600 f || $HOME/bin/chmod 600 f
        \chmod 600 f
        'chmod' 600 f
        "chmod" 600 f
        ch''mod 600 f
        c'hmo'd 600 f
        c"h"m"o"d 600 f
        $'chmod' 600 f
        $'\x63hmod' 600 f
        ch\mod 600 f
        {chmod,600,f}
        sudo chmod 600 f
        sudo -u root chmod 600 f
        sudo -n -E chmod 600 f
        sudo -uroot chmod 600 f
        sudo --user=root -- chmod 600 f
        sudo --user root chmod 600 f
        sudo -nu root chmod 600 f
        sudo A=1 chmod 600 f
        sudo -H env A=1 chmod 600 f
        sudo sh -c 'chmod 600 f'
        sudo -s chmod 600 f
        sudo -i bash -c "chmod 600 f"
        sudo su -c 'chmod 600 f'
        sudo su - root -c 'chmod 600 f'
        su bob -c "chmod 600 f"
        su -c 'chmod 600 f' bob
        su --command='chmod 600 f'
        runuser -u bob -- chmod 600 f
        runuser -l bob -c 'chmod 600 f'
        doas chmod 600 f
        doas -u root chmod 600 f
        env chmod 600 f
        env -i PATH=/bin chmod 600 f
        env -u HOME A=b chmod 600 f
        env -S 'chmod 600 f'
        env --unset=HOME chmod 600 f
        A=1 chmod 600 f
        A=1 B=2 sudo chmod 600 f
        command chmod 600 f
        command -p chmod 600 f
        builtin command chmod 600 f
        exec chmod 600 f
        exec -a x chmod 600 f
        nice chmod 600 f
        nice -n 5 chmod 600 f
        nice -10 chmod 600 f
        nice --adjustment=5 chmod 600 f
        ionice -c 3 chmod 600 f
        ionice -c3 nice -n19 chmod -R 700 d
        nohup chmod 600 f &
        nohup sudo chmod 600 f > log 2>&1 &
        timeout 5 chmod 600 f
        timeout -s KILL 5s chmod 600 f
        timeout --signal=TERM -k 2 5 chmod 600 f
        timeout 5 sudo timeout 3 chmod 600 f
        setsid chmod 600 f
        stdbuf -oL chmod -v 600 f
        stdbuf -o L chmod -v 600 f
        chrt 10 chmod 600 f
        taskset 1 chmod 600 f
        chroot / chmod 600 f
        unshare -r chmod 600 f
        fakeroot chmod 600 f
        strace -f -o log chmod 600 f
        busybox chmod 600 f
        time chmod 600 f
        time -p chmod 600 f
        time { chmod 600 f; }
        bash -c -- "chmod 600 f"
        ! chmod 600 f
        flock /tmp/l chmod 600 f
        flock /tmp/l -c 'chmod 600 f'
        watch -n 1 chmod 600 f
        script -c 'chmod 600 f' log
        find . -name '*.sh' -exec chmod +x {} \;
        find . -type f -exec chmod 644 {} +
        find . -execdir chmod 644 {} \;
        find . -ok chmod 644 {} \;
        find . -okdir chmod 644 '{}' ';'
        find /srv \( -name a -o -name b \) -exec sudo chmod 600 {} +
        find . -exec ls -l {} \; -exec chmod 600 {} \;
        find . -exec sh -c 'chmod 600 "$1"' _ {} \;
        find . -type d -print0 | xargs -0 chmod 755
        ls *.sh | xargs chmod +x
        ls | xargs -n 1 chmod +x
        ls | xargs -I{} chmod 600 {}
        ls | xargs -I % sh -c 'chmod 600 %'
        ls | xargs -n1 -P4 sudo chmod 600
        ls | xargs --max-args=1 chmod 600
        xargs -a list chmod 600
        echo f | xargs chmod 600
        echo chmod 600 f | xargs sudo
        echo chmod | xargs -I{} {} 600 f
        printf '%s\n' a b | xargs -d '\n' chmod 600
        bash -c 'chmod 600 f'
        sh -c "chmod 600 f"
        bash -lc 'chmod 600 f'
        bash -xec 'chmod 600 f'
        /bin/sh -c 'cd /srv && chmod 600 f'
        bash -o pipefail -c 'chmod 600 f'
        bash -c 'chmod "$@"' _ 600 f
        bash -c '"$@"' _ chmod 600 f
        bash -c '$0 600 f' ; bash -c "bash -c 'chmod 600 f'"
        eval chmod 600 f
        eval "chmod 600 f"
        eval 'c=chmod; $c 600 f'
        bash <<< 'chmod 600 f'
        echo 'chmod 600 f' | bash
        echo "chmod 600 f" | sudo sh
        printf 'chmod 600 f\n' | sh
        printf '%s\n' 'cd /srv' 'chmod 600 f' | bash -s
        cat <<< 'chmod 600 f' | bash
        source <(echo chmod 600 f)
        . <(echo 'chmod 600 f')
        bash <(printf 'chmod 600 f')
        cat f; chmod 600 f
        ls -l f && chmod 600 f
        test -x f || chmod +x f
        [ -x f ] || chmod +x f
        [[ -x f ]] || chmod +x f
        stat f && getfacl f && chmod 600 f && setfacl -m u:bob:r f
        cd /srv && ls && chmod 600 f; chown bob f
        chmod 600 f | cat
        ls | chmod 600 f
        true & chmod 600 f &
        (chmod 600 f)
        (cd /srv; chmod 600 f)
        { chmod 600 f; }
        if true; then chmod 600 f; fi
        if chmod 600 f; then echo ok; fi
        if false; then :; elif true; then chmod 600 f; fi
        if false; then :; else chmod 600 f; fi
        for f in *; do chmod 600 "$f"; done
        for f in a b; do [ -f $f ] && chmod 600 $f; done
        for ((i = 0; i < 3; i++)); do chmod 600 f$i; done
        for c in chmod chown; do $c x f; done
        while read -r f; do chmod 600 "$f"; done < list
        while chmod 600 f; do break; done
        until chmod 600 f; do sleep 1; done
        find . | while read f; do chmod 600 "$f"; done
        case $x in a) ls;; *) chmod 600 f;; esac
        case x in x) chmod 600 f ;; esac
        f() { chmod 600 "$1"; }; f x
        function f { chmod 600 x; }; f
        f() { g; }; g() { chmod 600 x; }; f
        f() { "$@"; }; f chmod 600 x
        f() { ls; }; f; chmod 600 x
        f() (chmod 600 x); f
        run() { echo "$*"; "$@"; }; run sudo chmod 600 x
        c=chmod; $c 600 f
        c=chmod; "$c" 600 f
        c=chmod; ${c} 600 f
        c="chmod 600"; $c f
        c=ch; d=mod; $c$d 600 f
        c=ch; ${c}mod 600 f
        c=chmod && sudo $c 600 f
        export C=chmod; $C 600 f
        declare c=chmod; $c 600 f
        readonly c=chmod; $c 600 f
        cmd=(chmod 600 f); "${cmd[@]}"
        cmd=(chmod 600); ${cmd[@]} f
        cmd=(sudo); cmd+=(chmod 600 f); "${cmd[@]}"
        cmd=(chmod 600 f); ${cmd[0]} 600 f
        cmd=(chmod); $cmd 600 f
        c=chmo; c+=d; $c 600 f
        p=/usr/bin/chmod; ${p##*/} 600 f
        p=/usr/bin/chmod; $p 600 f
        c=CHMOD; ${c,,} 600 f
        c=chmodx; ${c%x} 600 f
        c=chXod; ${c/X/m} 600 f
        c=xchmod; ${c:1} 600 f
        ${c:-chmod} 600 f
        : ${c:=chmod}; $c 600 f
        a=chmod; b=a; ${!b} 600 f
        set -- chmod 600 f; "$@"
        set -- x chmod 600 f; shift; "$@"
        read c <<< chmod; $c 600 f
        read -r a b <<< 'chmod 600'; $a $b f
        printf -v c %s chmod; $c 600 f
        $SUDO chmod 600 f
        $(which chmod) 600 f
        $(command -v chmod) 600 f
        $(echo chmod) 600 f
        `echo chmod` 600 f
        "$(printf %s chmod)" 600 f
        alias c=chmod; c 600 f
        alias c='sudo chmod'; c 600 f
        alias c='cd /srv && chmod'; c 600 f
        alias c='chmod 600 f'; c
        x=$(chmod 600 f)
        echo "$(chmod -v 600 f)"
        echo `chmod 600 f`
        echo $(echo $(chmod 600 f))
        cat <(chmod -v 600 f)
        ls > >(chmod 600 f)
        chown $(chmod 600 f) x
        ls $(setfacl --help; chmod 600 f)
        echo $((1 + $(chmod 600 f; echo 1)))
        [[ -n $(chmod 600 f) ]]
        a=(1 $(chmod 600 f))
        ls > "$(chmod 600 f)"
        trap 'chmod 600 f' EXIT
        echo 'chmod 600 f' > s.sh; bash s.sh
        echo 'chmod 600 f' > s.sh && ./s.sh
        printf 'chmod 600 f' > s.sh; source s.sh
        echo 'chmod 600 f' | tee s.sh; sh ./s.sh
        chmod 600 f # setfacl
        ls; # nothing
        """.rstrip().removesuffix("ls; # nothing").rstrip(),
    "chown": r"""
        chown bob f
        chown bob:staff f && chmod 600 f
        sudo chown -R :staff /srv
        echo chmod; chown bob f
        chmod --help; chown bob f
        for c in chown chmod; do $c x f; done
        find . -exec chown bob {} + -exec chmod 600 {} +
        chown bob f # chmod first
        """,
    "chgrp": r"""
        chgrp staff f
        sudo chgrp -R staff /srv; chmod g+w /srv
        ls -l f; id bob; chgrp staff f
        chmod() { chgrp staff "$2"; }; chmod 600 f
        """,
    "setfacl": r"""
        setfacl -m u:bob:r f
        getfacl f; setfacl -x u:bob f; chmod 600 f
        setfacl -R -m g:staff:rX /srv
        getfacl a | setfacl --set-file=- b
        alias chmod='setfacl -m u:bob:r'; chmod f
        cat <<< "chmod" && setfacl -b f
        """,
    "install": r"""
        install -m 755 a b
        install -m755 a /usr/bin/b && chmod 600 b
        sudo install -o root -g root -m 0644 a b
        install --mode=600 a b
        install -Dm644 a b
        install -d -m 750 dir
        """,
    "umask": r"""
        umask 022
        umask 077; chmod 600 f
        umask u=rwx,g=,o=
        """,
    "mkdir": r"""
        mkdir -m 700 d
        mkdir -pm 700 d
        mkdir --mode=700 d; chmod 600 f
        """,
    "": r"""
        echo chmod
        echo chmod 600 f
        echo "chmod 600 f"
        echo 'run: chmod +x f'; ls
        printf 'chmod 600 f\n'
        # chmod 600 f
        ls # chmod 600 f
        ls chmod
        cat chmod.txt
        cat /usr/bin/chmod
        cat < chmod
        ls > chmod
        ./chmod 600 f
        bin/chmod 600 f
        chmod.sh 600 f
        chmodx 600 f
        xchmod 600 f
        grep chmod script.sh
        grep -rn "chmod 600" /srv
        find . -name chmod
        find / -name 'chmod*' -exec ls -l {} \;
        find . -perm 600
        find . -perm /u+x -exec grep chmod {} +
        man chmod
        which chmod
        whereis chmod
        type chmod
        type -a chmod
        command -v chmod
        command -V chmod
        help umask
        info chmod
        apropos chmod
        chmod --help
        chmod --version
        sudo -l chmod
        alias c=chmod
        alias
        f() { chmod 600 x; }
        c=chmod
        cmd=(chmod 600 f)
        export C=chmod
        x='chmod 600 f'; echo "$x"
        x='chmod 600 f'; echo $x | wc -c
        echo 'chmod 600 f' | cat
        echo 'chmod 600 f' | grep bash
        echo 'chmod 600 f' > s.sh
        echo 'chmod 600 f' > s.sh; cat s.sh
        ls | xargs grep chmod
        ls | xargs echo chmod
        ls | xargs -I chmod cat chmod
        sed -i 's/chmod/chown/' f
        awk '/chmod/ {print}' f
        test chmod = chmod
        [ "$x" = chmod ]
        [[ $x == chmod* ]]
        case chmod in chmod) ls;; esac
        for chmod in a b; do echo $chmod; done
        for x in chmod 600; do echo $x; done
        history | grep chmod
        touch chmod; mv chmod chown; rm chown
        mkdir chmod
        cd chmod
        git commit -m 'chmod 600 f'
        git log --grep=chmod
        ls -l
        ls -la /srv/data
        ls -ld /srv
        stat f
        stat -c %a f
        getfacl f
        getfacl -R /srv
        id
        id bob
        id -gn bob
        groups
        groups bob
        namei -l /srv/f
        umask
        umask -S
        umask -p
        whoami
        getent group staff
        lsattr f
        test -w f && echo yes
        find /srv -user bob -ls
        sudo ls -l /root
        sudo -u bob cat f
        env
        env A=chmod ls
        A=chmod ls
        nice -n 5 ls chmod
        timeout 5 cat chmod
        command ls chmod
        bash -c 'echo chmod 600 f'
        bash -c 'ls' chmod 600 f
        bash -n 'chmod'
        eval 'echo chmod'
        install a b
        install -d dir
        install -D -t chmod a
        install -v -S m a b
        mkdir -p dir/m
        mkdir dir
        cp -p a b
        mv a b
        ln -s /bin/chmod c
        python3 -c 'import os; os.chmod("f", 0o600)'
        perl -e 'chmod 0600, "f"'
        chmod() { echo "no"; }; chmod 600 f
        alias chmod=echo; chmod 600 f
        alias ls='ls -l'; ls
        unalias c; c 600 f
        $x 600 f
        "$@" 600 f
        $(cat names) 600 f
        (ls)
        if ls; then echo chmod; fi
        while read chmod; do echo "$chmod"; done < f
        trap - EXIT
        echo $'chmod\n600'
        echo $((chmod + 1))
        ls 'a; chmod 600 f'
        ls "a && chmod 600 f"
        ls a\;chmod
        echo a \
        """.rstrip().removesuffix("echo a \\").rstrip(),
}  # fmt: skip
SCRIPTS = [
    ("bash <<E\nchmod 600 f\nE", "chmod"),
    ("bash <<'E'\ncd /srv\nchmod 600 f\nE\nls", "chmod"),
    ("sudo bash -s <<-E\n\tchmod 600 f\n\tE", "chmod"),
    ("sudo su - root <<E\nchmod 600 f\nE", "chmod"),
    ("cat <<E | sh\nchmod 600 f\nE", "chmod"),
    ("cat <<E > s.sh\nchmod 600 f\nE\nbash s.sh", "chmod"),
    ("cat > s.sh <<'E'\n#!/bin/bash\nchmod 600 f\nE\n./s.sh", "chmod"),
    ("cat <<E\n$(chmod 600 f)\nE", "chmod"),
    ("cat <<'E'\n$(chmod 600 f)\nE", ""),
    ("cat <<E\nchmod 600 f\nE", ""),
    ("cat > notes <<E\nchmod 600 f\nE\nsetfacl -b f", "setfacl"),
    ("grep x <<E\nchmod 600 f\nE\nchown bob f", "chown"),
    ("# chmod\nls \\\n  -l\nchgrp staff f", "chgrp"),
    ("sudo \\\n  chmod \\\n  600 f", "chmod"),
    ("f() {\n  local c=chmod\n  $c 600 f\n}\nls\nf", "chmod"),
    ("if [ -f x ]\nthen\n  for i in 1 2\n  do\n    chmod 600 $i\n  done\nfi", "chmod"),
    ("case $1 in\n  start)\n    chmod 600 f\n    ;;\nesac", "chmod"),
    ("while read -r f; do\n  setfacl -m u:bob:r \"$f\"\ndone <<E\nchmod\nE", "setfacl"),
    ("exec 3<<E\nchmod 600 f\nE\nls", ""),
    ("cat <<E | while read line; do echo $line; done\nchmod 600 f\nE", ""),
    ("select x in a b; do chmod 600 $x; done", "chmod"),
    ("coproc chmod 600 f", "chmod"),
    ("time sudo chmod 600 f\nsetfacl -b f", "chmod"),
    ("select x in chmod; do echo $x; done", ""),
    ("time echo chmod", ""),
    ("chmod 600 f\nif", "chmod"),
    ("f() { f; }; f", ""),
    ("alias a=b b=a; a 600 f", ""),
    ("a='$a'; eval $a $a", ""),
    ("x=x; for i in 1 2 3; do x=$x$x$x$x; done; $x", ""),
    ("", ""),
    ("(", ""),
    ("'", ""),
]  # fmt: skip
TRAJECTORIES = [
    (["ls -l f", "chmod 600 f"], (1, "chmod")),
    (["c=chmod", "$c 600 f"], (1, "chmod")),
    (["f() { chmod 600 \"$1\"; }", "ls", "f x"], (2, "chmod")),
    (["alias c='sudo chmod'", "c 600 f"], (1, "chmod")),
    (["alias c=chmod", "unalias c", "c 600 f"], None),
    (["f() { chmod 600 x; }", "unset -f f", "f"], None),
    (["cmd=(chmod 600)", "cmd+=(f)", "\"${cmd[@]}\""], (2, "chmod")),
    (["(c=chmod)", "$c 600 f"], None),
    (["c=chmod | cat", "$c 600 f"], None),
    (["echo 'chmod 600 f' > fix.sh", "cat fix.sh", "bash fix.sh"], (2, "chmod")),
    (["cat > fix.sh <<E\nsetfacl -m u:bob:r f\nchmod 600 f\nE", "sh ./fix.sh"], (1, "setfacl")),
    (["setfacl -m u:bob:r f", "chmod 600 f"], (0, "setfacl")),
    (["echo chmod", "getfacl f", "# chmod", "chgrp staff f"], (3, "chgrp")),
    (["export OP=chmod", "sudo $OP 600 f"], (1, "chmod")),
    (["source <(echo 'f() { chmod 1 x; }')", "f"], (1, "chmod")),
    (["bash -c 'f() { chmod 1 x; }'", "f"], None),
    (["ls", "cat f"], None),
    ([], None),
]  # fmt: skip
LABELLED = [
    (line.strip(), label) for label, lines in LINES.items() for line in lines.strip().splitlines()
]


def test_there_are_enough_lines():
    assert len(LABELLED) >= 300 and len({line for line, _ in LABELLED}) == len(LABELLED)


@pytest.mark.parametrize(
    ("line", "label"), LABELLED + SCRIPTS, ids=lambda value: value if "\n" not in value else None
)
def test_the_first_permission_command(line, label):
    assert (first_permission_command(line) or "") == label


@pytest.mark.parametrize(("scripts", "expected"), TRAJECTORIES)
def test_definitions_last_for_the_trajectory(scripts, expected):
    assert first_in_trajectory(scripts) == expected


def test_all_commands_come_in_order():
    line = "f() { chown b $1; }; for i in 1 2; do setfacl -b $(chgrp s $i); done; f x && umask 0; trap 'mkdir -m 1 d' EXIT; chmod 1 f"
    assert permission_commands(line) == ["chgrp", "setfacl"] * 2 + [
        "chown",
        "umask",
        "chmod",
        "mkdir",
    ]


@hypothesis_settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*"'\"$(){};&|<>\n `\\", "chmod", "c=", "$c", "f()", "do", "done", "for", "if", "eval", "bash -c", "<<E\n", "${", "[@]"]), max_size=24))  # fmt: skip
def test_no_text_breaks_the_reader(parts):
    permission_commands(" ".join(parts))
    permission_commands("".join(parts))

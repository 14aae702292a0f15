"""Mode bits, owners, ACLs and sudo against a real kernel.

Recorded from bash 5.2, coreutils 9.1 and acl in the sandbox.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shellworld.commands.modes import apply_mode
from shellworld.interpreter.session import Session
from shellworld.tests.trees import TREES
from shellworld.world.acl import Acl
from shellworld.world.inodes import Inode, allows
from shellworld.world.users import Credentials

pytestmark = pytest.mark.quick


def session(world="project"):
    return Session(TREES[world])


# fmt: off
CASES = [
    (
        "project",
        "touch f; for m in 755 0644 4755 u+s g+s o+t +t +x -w u=rw,g=,o= a+X u+X g=u o=g ug+rw,o-rwx =r u= a= +rwx -x,+r 1777 2755 u+w-x g+wx-r 00755 ug=o; do chmod $m f; echo $m $? $(stat -c '%a %A' f); done",
        "755 0 755 -rwxr-xr-x\n0644 0 644 -rw-r--r--\n4755 0 4755 -rwsr-xr-x\nu+s 0 4755 -rwsr-xr-x\ng+s 0 6755 -rwsr-sr-x\no+t 0 7755 -rwsr-sr-t\n+t 0 7755 -rwsr-sr-t\n+x 0 7755 -rwsr-sr-t\n-w 0 7555 -r-sr-sr-t\nu=rw,g=,o= 0 600 -rw-------\na+X 0 600 -rw-------\nu+X 0 600 -rw-------\ng=u 0 660 -rw-rw----\no=g 0 666 -rw-rw-rw-\nug+rw,o-rwx 0 660 -rw-rw----\n=r 0 444 -r--r--r--\nu= 0 44 ----r--r--\na= 0 0 ----------\n+rwx 0 755 -rwxr-xr-x\n-x,+r 0 644 -rw-r--r--\n1777 0 1777 -rwxrwxrwt\n2755 0 2755 -rwxr-sr-x\nu+w-x 0 2655 -rw-r-sr-x\ng+wx-r 0 2635 -rw--wsr-x\n00755 0 755 -rwxr-xr-x\nug=o 0 555 -r-xr-xr-x\n",
        0,
    ),
    (
        "project",
        "mkdir d; for m in 755 2755 u+s 755 00755 g+s =755 u=rwx +t a=rx 1777 777 g=s a+s =; do chmod $m d; echo $m $? $(stat -c '%a %A' d); done",
        "755 0 755 drwxr-xr-x\n2755 0 2755 drwxr-sr-x\nu+s 0 6755 drwsr-sr-x\n755 0 6755 drwsr-sr-x\n00755 0 755 drwxr-xr-x\ng+s 0 2755 drwxr-sr-x\n=755 0 755 drwxr-xr-x\nu=rwx 0 755 drwxr-xr-x\n+t 0 1755 drwxr-xr-t\na=rx 0 555 dr-xr-xr-x\n1777 0 1777 drwxrwxrwt\n777 0 777 drwxrwxrwx\ng=s 0 2707 drwx--Srwx\na+s 0 6707 drws--Srwx\n= 0 6000 d--S--S---\n",
        0,
    ),
    (
        "project",
        "umask 077; touch f; for m in +w +x +rwx =rw -r u+w = +X; do chmod $m f; echo $m $? $(stat -c %a f); done",
        "+w 0 600\n+x 0 700\n+rwx 0 700\n=rw 0 600\n-r 0 200\nu+w 0 200\n= 0 0\n+X 0 0\n",
        0,
    ),
    (
        "project",
        "touch f; chmod u+rw -v f; chmod -c 600 f; chmod -c 600 f; chmod -v 600 f; for m in 888 u+q '' 99999; do chmod \"$m\" f 2>/dev/null; echo $?; done; chmod 644 nope 2>&1; chmod -f 644 nope; echo $?; chmod 2>&1 | head -1",
        "mode of 'f' retained as 0644 (rw-r--r--)\nmode of 'f' changed from 0644 (rw-r--r--) to 0600 (rw-------)\nmode of 'f' retained as 0600 (rw-------)\n1\n1\n1\n1\nchmod: cannot access 'nope': No such file or directory\n1\nchmod: missing operand\n",
        0,
    ),
    (
        "project",
        "touch f g; chmod 640 g; chmod --reference=g f; stat -c %a f; chmod -R u+X,go-rwx src; stat -c '%a %n' src src/*; chmod -R a-x,a+X scripts; stat -c '%a %n' scripts/*; chmod 600 link.txt; stat -c %a notes.txt",
        "640\n700 src\n600 src/main.py\n600 src/test_util.py\n600 src/util.py\n644 scripts/deploy.sh\n644 scripts/run.sh\n600\n",
        0,
    ),
    (
        "project",
        "chmod 000 notes.txt; cat notes.txt; echo $?; echo x > notes.txt; echo $?; mkdir d; touch d/f; chmod 600 d; ls d; cat d/f 2>/dev/null; echo $?; chmod 300 d; ls d; echo $?; cat d/f; echo $?; chmod 500 d; touch d/g; echo $?; rm d/f; echo $?; rm -rf d; echo $?",
        "1\n1\nf\n1\n2\n0\n1\n1\n1\n",
        0,
    ),
    (
        "project",
        "chmod 644 /etc/passwd; echo $?; chown bob notes.txt; echo $?; chgrp staff notes.txt; echo $?; chgrp ops notes.txt; echo $?; chown agent:staff notes.txt; stat -c '%U:%G' notes.txt; chown nosuch notes.txt; echo $?; chown 1000:1050 notes.txt; echo $?; chown -v :agent notes.txt; chown bob: notes.txt; echo $?",
        "1\n1\n0\n1\nagent:staff\n1\n0\nchanged ownership of 'notes.txt' from agent:staff to :agent\n1\n",
        0,
    ),
    (
        "project",
        "chmod 2755 src; chgrp staff src; stat -c '%a' src; touch src/y; mkdir src/z; stat -c '%G %a' src/y src/z; chmod 4755 scripts/run.sh; chgrp staff scripts/run.sh; stat -c %a scripts/run.sh; chmod 4755 scripts/run.sh; echo >> scripts/run.sh; stat -c %a scripts/run.sh; sudo chgrp ops notes.txt; chmod g+s notes.txt; stat -c %a notes.txt",
        "2755\nstaff 644\nstaff 2755\n755\n755\n644\n",
        0,
    ),
    (
        "project",
        "sudo chown bob notes.txt; chmod 600 notes.txt; echo $?; sudo chmod 600 notes.txt; cat notes.txt; echo $?; sudo -u bob head -1 notes.txt; sudo -u bob id -un; sudo -u nosuch ls; echo $?; sudo nosuchcmd; echo $?; sudo sh -c 'echo $USER $HOME $SUDO_USER'; X=1 sudo sh -c 'echo [$X]'; sudo X=2 sh -c 'echo [$X]'; sudo touch r; stat -c '%U %a' r",
        "1\n1\nbuy milk\nbob\n1\n1\nroot /root agent\n[]\n[2]\nroot 644\n",
        0,
    ),
    (
        "project",
        "cd /tmp; touch mine; sudo -u bob touch bobs; rm bobs; echo $?; mv bobs x; echo $?; sudo -u bob rm mine; echo $?; ln bobs lnk; echo $?; sudo chmod 666 bobs; echo hi > bobs; echo $?; mkdir t; chmod 1777 t; sudo -u bob touch t/b; rm t/b; echo $?; rm -r t; echo $?",
        "1\n1\n1\n1\n0\n0\n0\n",
        0,
    ),
    (
        "project",
        "umask 022; touch a; mkdir b; umask 007; touch c; umask 777; touch e; umask 027; install a k; install -m 600 a l; install -d -m 700 m; install -D a n/o/p; mkdir -m g+w s; mkdir -p -m 711 t/u; cp scripts/run.sh x; cp -p conf/old.conf.bak y; stat -c '%n %a' a b c e k l m n n/o n/o/p s t t/u x y",
        "a 644\nb 755\nc 660\ne 0\nk 755\nl 600\nm 700\nn 755\nn/o 755\nn/o/p 755\ns 777\nt 750\nt/u 711\nx 750\ny 444\n",
        0,
    ),
    (
        "project",
        "setfacl -m u:bob:rw notes.txt; getfacl notes.txt; ls -l notes.txt | cut -c1-11; setfacl -m g:staff:r,o::- notes.txt; chmod 640 notes.txt; getfacl -c notes.txt; chmod g=rwx notes.txt; stat -c %a notes.txt; setfacl -x u:bob notes.txt; getfacl -c notes.txt; setfacl -b notes.txt; getfacl -c notes.txt",
        "# file: notes.txt\n# owner: agent\n# group: agent\nuser::rw-\nuser:bob:rw-\ngroup::r--\nmask::rw-\nother::r--\n\n-rw-rw-r--+\nuser::rw-\nuser:bob:rw-\t#effective:r--\ngroup::r--\ngroup:staff:r--\nmask::r--\nother::---\n\n670\nuser::rw-\ngroup::r--\ngroup:staff:r--\nmask::r--\nother::---\n\nuser::rw-\ngroup::r--\nother::---\n\n",
        0,
    ),
    (
        "project",
        "setfacl -m d:u:bob:rwx,d:g:staff:rx src; getfacl -c src; umask 077; touch src/new; mkdir src/newd; cp notes.txt src/n; getfacl -c src/new src/newd src/n; setfacl -k src; setfacl -R -m u:carol:rX src; getfacl -c src/main.py src; setfacl -d -m u::rwx,g::rx,o::- src; touch src/n5; stat -c %a src/n5",
        "user::rwx\ngroup::r-x\nother::r-x\ndefault:user::rwx\ndefault:user:bob:rwx\ndefault:group::r-x\ndefault:group:staff:r-x\ndefault:mask::rwx\ndefault:other::r-x\n\nuser::rw-\nuser:bob:rwx\t#effective:rw-\ngroup::r-x\t#effective:r--\ngroup:staff:r-x\t#effective:r--\nmask::rw-\nother::r--\n\nuser::rwx\nuser:bob:rwx\ngroup::r-x\ngroup:staff:r-x\nmask::rwx\nother::r-x\ndefault:user::rwx\ndefault:user:bob:rwx\ndefault:group::r-x\ndefault:group:staff:r-x\ndefault:mask::rwx\ndefault:other::r-x\n\nuser::rw-\nuser:bob:rwx\t#effective:r--\ngroup::r-x\t#effective:r--\ngroup:staff:r-x\t#effective:r--\nmask::r--\nother::r--\n\nuser::rw-\nuser:carol:r--\ngroup::r--\nmask::r--\nother::r--\n\nuser::rwx\nuser:carol:r-x\ngroup::r-x\nmask::r-x\nother::r-x\n\n640\n",
        0,
    ),
    (
        "project",
        "setfacl -m u:bob:r-x,m::r notes.txt; getfacl -c notes.txt; setfacl -n -m u:carol:rwx notes.txt; getfacl -c notes.txt; setfacl --set u::rw,g::r,o::-,u:bob:7 notes.txt; getfacl -cn notes.txt; for e in u:nosuch:r bob:r x:y:z u:bob; do setfacl -m $e words.txt; echo $?; done; setfacl -x m:: notes.txt; echo $?; setfacl -m d:u:bob:r notes.txt; echo $?; setfacl -b /srv/shared/plan.txt; echo $?",
        "user::rw-\nuser:bob:r-x\t#effective:r--\ngroup::r--\nmask::r--\nother::r--\n\nuser::rw-\nuser:bob:r-x\t#effective:r--\nuser:carol:rwx\t#effective:r--\ngroup::r--\nmask::r--\nother::r--\n\nuser::rw-\nuser:1001:rwx\ngroup::r--\nmask::rwx\nother::---\n\n2\n0\n2\n2\n1\n1\n0\n",
        0,
    ),
    (
        "project",
        "umask 027; umask; umask -S; umask u=rwx,g=rx,o=; umask; umask g+w; umask; umask 999 2>/dev/null; echo $?; (umask 0; umask); umask",
        "0027\nu=rwx,g=rx,o=\n0027\n0007\n1\n0000\n0007\n",
        0,
    ),
    (
        "server",
        "cat for_me.txt masked.txt; echo $?; echo x >> for_me.txt; echo $?; cat report.csv > /dev/null; echo $?; ls closed; echo $?; cat noexec/f; echo $?; ls noexec; cat logs/access.log | wc -l; cat logs/secret.log; echo $?",
        "acl lets agent read\n1\n0\n0\n2\n1\nf\n3\n1\n",
        0,
    ),
    (
        "server",
        "rm drop/alice; echo $?; rm drop/mine; echo $?; echo a > drop/alice; echo $?; rm alice.txt; echo $?; touch inbox/new; getfacl -c inbox/new; mkdir inbox/sub; getfacl -c inbox/sub; sudo id; echo $?; chmod 755 alice.txt; echo $?; touch x; stat -c '%a %G' x",
        "0\n0\n0\n0\nuser::rw-\nuser:bob:rw-\ngroup::r-x\t#effective:r--\nmask::rw-\nother::---\n\nuser::rwx\nuser:bob:rw-\ngroup::r-x\nmask::rwx\nother::---\ndefault:user::rwx\ndefault:user:bob:rw-\ndefault:group::r-x\ndefault:mask::rwx\ndefault:other::---\n\n1\n1\n640 dev\n",
        0,
    ),
    (
        "server",
        "cp bin/tool t; stat -c '%a %U' t; cp -p bin/tool t2; stat -c %a t2; chmod u+x start.sh && ./start.sh; bin/a.sh; echo $?; bash bin/a.sh; mv team.txt t3; stat -c %U t3; mv inbox/one.txt .; cat one.txt; echo $?",
        "750 agent\n4755\nstarted\n126\na\nalice\n1\n0\n",
        0,
    ),
]
# fmt: on


@pytest.mark.parametrize(("world", "line", "stdout", "status"), CASES)
def test_as_the_kernel_does(world, line, stdout, status):
    result = session(world).run(line)
    assert (result.stdout, result.exit_code, result.unsupported) == (stdout, status, ())


@given(
    st.integers(0, 0o7777),
    st.sampled_from(["", "u", "g", "o", "ug", "uo", "a"]),
    st.sampled_from("+-="),
    st.sets(st.sampled_from("rwx")),
    st.integers(0, 0o777),
)
def test_symbolic_modes_by_formula(mode, who, operator, letters, umask):
    bits = sum({"r": 4, "w": 2, "x": 1}[letter] for letter in letters)
    expected = mode & 0o777
    for letter, shift in (("u", 6), ("g", 3), ("o", 0)):
        if who in ("", "a") or letter in who:
            change = (bits << shift) & ~(umask if not who else 0)
            if operator == "=":
                expected = expected & ~(7 << shift) | change
            else:
                expected = expected | change if operator == "+" else expected & ~change
    text = f"{who}{operator}{''.join(sorted(letters))}"
    assert apply_mode(text, mode, False, umask) & 0o777 == expected


@given(st.integers(0, 0o7777))
def test_octal_modes(mode):
    assert apply_mode(f"{mode:o}", 0o123, False, 0o77) == mode
    assert apply_mode(f"{mode:05o}", 0o7123, True, 0o77) == mode
    shell = session()
    assert shell.run(f"chmod {mode:o} notes.txt; stat -c %a notes.txt").stdout == f"{mode:o}\n"


@given(
    st.integers(0, 0o777), st.integers(0, 7), st.integers(0, 7), st.integers(0, 7),
    st.sampled_from([(1, 1), (2, 2), (3, 5), (4, 6), (5, 7)]), st.integers(1, 7),
)  # fmt: skip
def test_acl_evaluation_by_definition(mode, user_bits, group_bits, group, person, wanted):
    """POSIX.1e: the owner, then a named user, then the groups (any that grants), then others.

    The mask limits the middle.
    """
    uid, gid = person
    node = Inode("file", mode, 1, 5, "", 0, 1)
    node.acl = Acl(((2, user_bits),), ((6, group_bits),), group, mode >> 3 & 7)
    mask = mode >> 3 & 7
    if uid == 1:
        granted = [mode >> 6]
    elif uid == 2:
        granted = [user_bits & mask]
    elif gid in (5, 6):
        granted = [(group if gid == 5 else group_bits) & mask]
    else:
        granted = [mode]
    assert allows(node, wanted, Credentials(uid, gid, frozenset({gid}))) == any(
        g & wanted == wanted for g in granted
    )

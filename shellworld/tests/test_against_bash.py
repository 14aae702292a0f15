"""Single lines whose answers real bash has given: what they print, and how they end.

Each was once answered otherwise by the simulator. Where there is a sandbox, bash is asked again.
"""

import pytest

from shellworld.interpreter.session import Session
from shellworld.sandbox.pool import SandboxLimits
from shellworld.tests.sandboxed import needs_sandbox
from shellworld.tests.trees import TREES

TWO = "mkdir d1 d2 o; echo 1 > d1/a; echo 2 > d2/a; "

# fmt: off
LINES = [  # line, stdout, exit code
    (TWO + "cp d1/a d2/a o; echo $?; cat o/a", "1\n1\n", 0),
    (TWO + "cp -t o d1/a d2/a; echo $?; cat o/a", "1\n1\n", 0),
    (TWO + "mv d1/a d2/a o; echo $?; cat o/a d2/a", "1\n1\n2\n", 0),
    (TWO + "mv -n d1/a d2/a o; echo $?; cat o/a d2/a", "0\n1\n2\n", 0),
    (TWO + "install d1/a d2/a o; echo $?; cat o/a", "1\n1\n", 0),
    ("mkdir o; cp notes.txt ./notes.txt o; echo $?; ls o", "0\nnotes.txt\n", 0),
    ("mkdir -p d1/s d2/s o; echo 1 > d1/s/a; echo 2 > d2/s/a; cp -r d1/s d2/s o; cat o/s/a", "2\n", 0),
    ("mkdir -p d/e; touch -d '40 days ago' d/e/g d/e d; find d -mtime +31 -delete; ls -d d", "", 2),
    ("mkdir d; touch d/x; find d -depth -printf '%p %s %n\\n' -delete", "d/x 0 1\nd 60 2\n", 0),
    ("find . -perm +222", "", 1),
    ("find . -perm +0", "", 1),
    ("find . -perm /222 -name .env", "./.env\n", 0),
    ("touch -d '10 hours ago' n; touch -d '14 hours ago' m; find m n -mtime -0.5", "n\n", 0),
    ("touch -d '14 hours ago' m; find m -mtime .5; find m -mtime +0.5; find m -mtime 1.", "m\n", 0),
    ("touch -d '10 hours ago' n; find n -mmin +599.5; find n -mmin -1.5", "n\n", 0),
    ("touch -d '1 day ago' n; find n -mtime 1; find n -mtime 0", "n\n", 0),
    ("find . -mtime 1x", "", 1),
    ("find . -mtime -1.x", "", 1),
    ("find . -mtime ''", "", 1),
    ("cat <<EOF\nabc", "abc\n", 0),
    ("cat <<'E' | wc -c\nabc", "4\n", 0),
    ("cat <<-E\n\tabc\n\tdef", "abc\ndef\n", 0),
    ("cat <<A <<B\n1\nA\n2", "2\n", 0),
    ("cat <<EOF\nabc\n", "abc\n", 0),
    ("sed 's/a/x\ny/' notes.txt", "", 1),
    ("sed 'y/ab/c\n/' notes.txt", "", 1),
    ("printf 's/a/x\\ny/\\n' > f; sed -f f notes.txt", "", 1),
    ("sed 's/ll/x\\\ny/;2q' notes.txt", "buy milk\ncax\ny Bob at 10:30\n", 0),
    ("printf 'a\\0b\\n' | rev", "a", 0),
    ("printf 'a\\0b\\ncd\\nef\\n' | rev", "dca\nfe\n", 0),
    ("printf 'ab\\nc\\0d\\0e\\n' | rev", "ba\nc", 0),
    ("od -c nosuch", "", 1),
    ("od -c nosuch /dev/null", "0000000\n", 1),
    ("od src", "0000000\n", 1),
    ("find . -ctime +0; find . -name numbers.txt -ctime 0", "./numbers.txt\n", 0),
    ("find . -name 'n*.txt' -ctime -1 | sort", "./no_newline.txt\n./notes.txt\n./numbers.txt\n", 0),
    ("getfacl -R . | grep file: | head -3", "# file: .\n# file: words.txt\n# file: src\n", 0),
    ("getfacl -R ./src logs/ | grep file:", "# file: src\n# file: src/util.py\n# file: src/test_util.py\n# file: src/main.py\n# file: logs/\n# file: logs//app.log.1\n# file: logs//app.log\n", 0),
    ("getfacl .//words.txt ././words.txt ./ ./.. | grep file:", "# file: words.txt\n# file: ./words.txt\n# file: .\n# file: ..\n", 0),
    ("getfacl -p ./words.txt | head -1", "# file: ./words.txt\n", 0),
    ("setfacl --set u:bob:r notes.txt 2>&1; echo $?; getfacl -c notes.txt", "setfacl: notes.txt: Malformed access ACL `user:bob:r--,mask::r--': Missing or wrong entry at entry 1\n1\nuser::rw-\ngroup::r--\nother::r--\n\n", 0),
    ("setfacl --set u::rw,g::r notes.txt 2>&1", "setfacl: notes.txt: Malformed access ACL `user::rw-,group::r--': Missing or wrong entry at entry 3\n", 1),
    ("setfacl --set o::r -m u:bob:r notes.txt 2>&1", "setfacl: notes.txt: Malformed access ACL `user:bob:r--,mask::r--,other::r--': Missing or wrong entry at entry 1\n", 1),
    ("setfacl --set d:u::rw src; getfacl -c src", "user::rwx\ngroup::r-x\nother::r-x\ndefault:user::rw-\ndefault:group::r-x\ndefault:other::r-x\n\n", 0),
    ("setfacl -m d:u:bob:r src; setfacl --set u::rwx,g::rx,o::- src; getfacl -c src", "user::rwx\ngroup::r-x\nother::---\ndefault:user::rwx\ndefault:user:bob:r--\ndefault:group::r-x\ndefault:mask::r-x\ndefault:other::r-x\n\n", 0),
    ("setfacl -m u::rwx conf; echo $?; setfacl -m m::rx conf; echo $?", "0\n1\n", 0),
    ("setfacl -m g::rx conf; echo $?; setfacl --set u::rwx,g::rx,o::rx conf; echo $?", "0\n0\n", 0),
    ("sudo setfacl -m u:bob:rx conf; for a in u:bob:rx u:bob:r m::rx m::rwx g::rx; do setfacl -m $a conf; echo $?; done", "0\n1\n0\n1\n0\n", 0),
    ("sudo setfacl -m u:bob:rx conf; setfacl -x u:agent conf; echo $?; setfacl -b conf; echo $?", "0\n1\n", 0),
    ("echo a | xargs sh -c 'exit 127'", "", 123),
    ("echo a b | xargs -n1 sh -c 'echo $0; exit 126'", "a\nb\n", 123),
    ("echo a | xargs nosuch", "", 127),
    ("echo a | xargs ./notes.txt 2>&1", "xargs: ./notes.txt: Permission denied\n", 126),
    ("echo a | xargs env nosuch", "", 123),
    ("gunzip </dev/null 2>&1", "\ngzip: stdin: unexpected end of file\n", 1),
    (": > e.gz; gunzip e.gz; echo $?; zcat e.gz; echo $?; ls e*", "1\n1\ne.gz\nempty.txt\n", 0),
    ("printf x | gunzip 2>&1", "\ngzip: stdin: unexpected end of file\n", 1),
    ("printf xy | gunzip 2>&1", "\ngzip: stdin: not in gzip format\n", 1),
    ("printf '' | gzip | gunzip; echo $?", "0\n", 0),
    ("echo $SHLVL; bash -c 'echo $SHLVL'; sh -c 'echo $SHLVL'; (echo $SHLVL)", "1\n2\n1\n1\n", 0),
    ("bash -c 'bash -c \"echo \\$SHLVL\"; true'; declare -p SHLVL", "3\ndeclare -x SHLVL=\"1\"\n", 0),
    ("for n in 5 x '' -3 999; do SHLVL=$n bash -c 'echo $SHLVL' 2>/dev/null; done", "6\n1\n1\n0\n1\n", 0),
    ("env -i bash -c 'echo $SHLVL'; sudo sh -c 'echo $SHLVL'; sudo bash -c 'echo $SHLVL'", "1\n\n1\n", 0),
    ("SHLVL=7; exec bash -c 'echo $SHLVL'", "7\n", 0),
    ("echo 'echo $SHLVL' > s; sh s; bash s; chmod +x s; ./s; . ./s", "1\n2\n2\n1\n", 0),
    ("mkdir -p d/e; touch d/e/f; find d -execdir sh -c 'echo $PWD; pwd' \\;", "/home/agent/project\n/home/agent/project\n/home/agent/project/d\n/home/agent/project/d\n/home/agent/project/d/e\n/home/agent/project/d/e\n", 0),
    ("env -C src sh -c 'echo $PWD'; env -C src bash -c 'echo $PWD'", "/home/agent/project/src\n/home/agent/project/src\n", 0),
    ("ln -s src lk; cd lk; sh -c 'echo $PWD'; bash -c pwd", "/home/agent/project/lk\n/home/agent/project/lk\n", 0),
    ("ln -s src lk; PWD=$PWD/lk env -C src sh -c 'echo $PWD; pwd'", "/home/agent/project/lk\n/home/agent/project/lk\n", 0),
    ("PWD=lk bash -c 'echo $PWD'; PWD=$PWD/../project bash -c 'echo $PWD'", "/home/agent/project\n/home/agent/project/../project\n", 0),
    ("PWD=/tmp bash -c 'echo $PWD; cd ..; pwd; echo $OLDPWD'", "/home/agent/project\n/home/agent\n/home/agent/project\n", 0),
    ("unset PWD; sh -c 'echo $PWD'; bash -c 'declare -p PWD'", "/home/agent/project\ndeclare -x PWD=\"/home/agent/project\"\n", 0),
    ("ls -l --time-style=+%s notes.txt; stat -c %Y notes.txt", "-rw-r--r-- 1 agent agent 57 1700000000 notes.txt\n1700000000\n", 0),
    ("cat <<'E'\nabc\\", "abc\\\n", 0),
    ("cat <<E\nabc\\\\", "abc\\\n", 0),
    # Redirections of a pipeline's later commands are made before its first program begins.
    ("{ sleep 0.1; sort words.txt; } | uniq > words.txt; wc -c < words.txt", "0\n", 0),
    ("{ sleep 0.1; ls; } | { grep one; } > one; cat one", "one\n", 0),
    # What stands in backquotes is read when it is run.
    ("echo `if` b; echo c", "b\nc\n", 0),
    ("x=`echo a\nfi`; echo $? $x", "2 a\n", 0),
    ("``; false; x=``; echo $?; x=`false```; echo $?; x=$(); echo $?", "0\n1\n0\n", 0),
    ("```sh\necho hi\n```", "", 127),
    ("echo `echo \\`echo a\\`` \"`echo \"b c\"`\"", "a b c\n", 0),
    # A command's name with brackets goes on to the closing one.
    ("nosuch[ls | wc -l] a; echo $?", "127\n", 0),
    ("a[1+ 2]=3; echo ${a[3]}; echo x[a b]", "3\nx[a b]\n", 0),
    ("nosuch[ls", "", 2),
    # Environments come in the order of bash's table of variables, dash's in that of its own.
    ("export B=2 A=1 ZED=3; env | cut -d= -f1 | paste -sd ' '", "SHELL ZED PWD LOGNAME B A HOME USER SHLVL PATH _\n", 0),
    ("A=x sh -c env | cut -d= -f1 | paste -sd ' '", "USER SHLVL HOME A LOGNAME _ PATH SHELL PWD\n", 0),
    ("bash -c 'env; true' | cut -d= -f1 | paste -sd ' '", "SHELL PWD LOGNAME _ HOME USER SHLVL PATH\n", 0),
    ("env -u HOME C=1 PATH=/bin printenv SHLVL _ C", "0\n/usr/bin/env\n1\n", 0),
    ("printenv SHLVL | cat; env | grep _=; B=1 printenv SHLVL", "1\n_=/usr/bin/env\n0\n", 0),
    ("echo $_; : a b; echo $_; x=1; echo \"<$_>\"; f() { :; }; f 7 8; echo $_", "bash\nb\n<>\n8\n", 0),
    ("mkdir q && cd $_ && pwd; sh -c ': a; echo $_'", "/home/agent/project/q\n/usr/bin/sh\n", 0),
    ("declare -p OLDPWD; export -p | grep -c OLDPWD; cd /; declare -p OLDPWD", "declare -x OLDPWD\n1\ndeclare -x OLDPWD=\"/home/agent/project\"\n", 0),
    # Readers of an input without end.
    ("yes a b | sed -e 2s/a/c/ -e 3q | cat", "a b\nc b\na b\n", 0),
    ("yes | awk 'NR==2{exit} 1'; yes | grep -m2 y; yes | grep -q y; echo $?", "y\ny\ny\n0\n", 0),
    ("yes x | nl | grep x | tr x z | cut -f2 | head -2", "z\nz\n", 0),
    # One kind each.
    ("logout; echo $?", "1\n", 0),
    ("bash tar -x; echo $?; bash nosuch; echo $?", "126\n127\n", 0),
    ("echo 'echo $0 $1 $#' | bash -s -- a b; echo 'echo $1' | sh -s x", "bash a 2\nx\n", 0),
    ("/bin/true \"$(seq 1 100000)\"; echo $?; echo \"$(seq 1 100000)\" | wc -c", "126\n588895\n", 0),
    ("md5sum notes.txt | md5sum -b -c; echo $?; sha1sum notes.txt | sha1sum -t -c; echo $?", "1\n1\n", 0),
    ("nice nice; nice -n 3 nice -n 4 nice; nice -n 30 nice; nice", "10\n7\n19\n0\n", 0),
    ("ls --time=xyz; echo $?; ls --sort=xyz; echo $?; ls -w x; echo $?; ls --sort=ti conf", "1\n1\n2\napp.conf\nold.conf.bak\n", 0),
    ("diff --line-format='%L' no_newline.txt data.csv | head -2", "last line has no endid,name,team,salary\n1,alice,red,5200\n", 0),
    ("diff --unchanged-line-format= --old-line-format= --new-line-format='%3dn:%c'\\''x'\\''%L' no_newline.txt numbers.txt | head -2", "  1:x10\n  2:x9\n", 0),
    ("echo ab | awk '/a()b/'; echo x | awk '/()/'; echo $?", "ab\n2\n", 0),
    ("mkdir -p a/b/c; echo 1 > a/b/f; du a/b/c a/b a; du a a/b", "0\ta/b/c\n4\ta/b\n0\ta\n0\ta/b/c\n4\ta/b\n4\ta\n", 0),
    ("od -j 500 notes.txt; echo $?; od -j 57 notes.txt", "1\n0000071\n", 0),
    ("sed -i s/a/b/; echo $?; sed -i 's//x/g' notes.txt; echo $?; head -1 notes.txt", "4\n1\nbuy milk\n", 0),
    ("find . -\\( -name notes.txt -o -name src -\\) -! -type f", "./src\n", 0),
    ("find src -name main.py -prune -o -delete; echo $?; ls src", "1\nmain.py\ntest_util.py\nutil.py\n", 0),
    ("ls -di / /etc /usr/local notes.txt /dev; touch z; ls -i z", " 1 /\n 1 /dev\n 4 /etc\n14 /usr/local\n42 notes.txt\n64 z\n", 0),
    # Words of chmod that begin as modes are modes, wherever they stand.
    ("chmod a+rw nosuch -rw-r--r-- . notes.txt; echo $?; stat -c %a notes.txt .", "1\n0\n111\n", 0),
    ("chmod -rwxr-xr-x -rw-r--r-- notes.txt; stat -c %a notes.txt; chmod -a+r src; echo $?", "0\n1\n", 0),
    ("umask 077; chmod -w notes.txt; echo $?; chmod -rw-r--r-- words.txt; stat -c %a words.txt notes.txt", "0\n44\n444\n", 0),
    ("cp data.csv a.gz; gzip a.gz; echo $?; gzip -f a.gz; ls a*", "0\na.gz.gz\n", 0),
    ("join -o 1.1 2.1 words.txt words.txt | head -2; tar -C nodir -cf t.tar x; echo $?; wc -c t.tar", "pear pear\napple apple\n2\n0 t.tar\n", 0),
]
# fmt: on


@pytest.mark.parametrize(("line", "stdout", "code"), LINES)
def test_the_simulator_answers_as_bash_did(line, stdout, code):
    result = Session(TREES["project"]).run(line)
    assert (result.stdout, result.exit_code, result.unsupported) == (stdout, code, ())


@needs_sandbox
@pytest.mark.parametrize(("line", "stdout", "code"), LINES)
def test_bash_answers_so(line, stdout, code, pool):
    result, _ = pool.run(TREES["project"], line, SandboxLimits(wall=20.0))
    assert (result.stdout, result.exit_code) == (stdout, code)


@pytest.mark.parametrize(
    "line", ["pwd --help", "cd --help", "exit --help", "umask --help", "printf --help"]
)
def test_the_help_of_builtins_is_unsupported_where_bash_has_some(line):
    result = Session(TREES["project"]).run(line)
    assert (result.stdout, result.unsupported) == ("", (line,))


@pytest.mark.parametrize("line, code", [("test --help", 0), (": --help", 0), ("false --help", 1)])
def test_some_builtins_have_no_help_in_bash(line, code):
    result = Session(TREES["project"]).run(line)
    assert (result.stdout, result.exit_code, result.unsupported) == ("", code, ())


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("TZ=Asia/Tokyo date", "time zones"),
        ("export TZ=EST5EDT; ls -l", "time zones"),
        ("awk '/$(x)/' notes.txt", "awk: a group behind $"),
        ("diff --changed-group-format='%>' notes.txt words.txt", "diff --changed-group-format"),
        ("od -F notes.txt", "od -F"),
        ("sh -c 'export -p'", "export -p in sh"),
        ("mvn package", "mvn"),
        ("xxd -revert words.txt", "xxd -t"),
    ],
)
def test_what_would_come_out_otherwise_is_unsupported(line, what):
    assert Session(TREES["project"]).run(line).unsupported == (what,)


def test_a_here_document_cut_behind_a_backslash_is_unsupported():
    """Bash gives the byte 255 there, its sign for the end of the input."""
    result = Session(TREES["project"]).run("cat <<E\nabc\\")
    assert result.unsupported == ("here-document cut behind a backslash",)

"""The real shell: what lines may do, and what hostile lines cannot.

Also, that the sandbox is as good as new afterwards.
"""

import contextlib
import os
import platform
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from shellworld.errors import UserError
from shellworld.sandbox import pool as sandboxes
from shellworld.sandbox import supervisor
from shellworld.sandbox import users as sandbox_users
from shellworld.sandbox.pool import Pool, SandboxLimits, SandboxSession
from shellworld.tests.attempts import ATTEMPTS
from shellworld.tests.sandboxed import needs_sandbox
from shellworld.tests.trees import TREES
from shellworld.world import tree

LIMITS = SandboxLimits(wall=0.7, cpu=1)
WORLD = tree.normalise(
    {"users": {"agent": {"sudo": True}, "bob": {}}, "paths": {"/srv/x": {"content": "x\n"}}}
)


class Outside:
    """The machine around the sandbox, as far as an attempt might change it."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "canary").write_text("untouched")
        self.process = subprocess.Popen(["sleep", "600"])
        self.server = socket.create_server(("127.0.0.1", 0))
        self.abstract = socket.socket(socket.AF_UNIX)
        self.abstract.bind(f"\0subtransfer-{os.getpid()}")
        self.abstract.listen()
        self.hostname = socket.gethostname()
        self.nodes = {path: os.stat(path) for path in ("/usr/bin/bash", "/dev/null", "/usr/bin")}
        self.core_pattern = Path("/proc/sys/kernel/core_pattern").read_text()

    def check(self):
        assert [path.name for path in self.folder.iterdir()] == ["canary"]
        assert (self.folder / "canary").read_text() == "untouched"
        assert self.process.poll() is None
        for listener in (self.server, self.abstract):
            listener.setblocking(False)
            with pytest.raises(BlockingIOError):
                listener.accept()
        assert socket.gethostname() == self.hostname
        assert abs(time.time() - time.monotonic() - self.offset) < 60
        assert Path("/proc/sys/kernel/core_pattern").read_text() == self.core_pattern
        for path, before in self.nodes.items():
            now = os.stat(path)
            assert (now.st_ino, now.st_mode, now.st_uid) == (
                before.st_ino,
                before.st_mode,
                before.st_uid,
            ), path

    offset = time.time() - time.monotonic()

    def close(self):
        self.process.kill()
        self.process.wait()
        self.server.close()
        self.abstract.close()


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    machine = Outside(tmp_path_factory.mktemp("outside"))
    yield machine
    machine.close()


def _processes(users=None):
    """(number, command line) of this machine's living processes, of all or of some users."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if users is None or os.stat(f"/proc/{name}").st_uid in users:
                command = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ")
                found.append((int(name), command))
    return [(number, command) for number, command in found if command]


def _user_namespace(number):
    """The user namespace of a process; None if it has ended or may not be looked at."""
    try:
        return os.readlink(f"/proc/{number}/ns/user")
    except OSError:
        return None


def _of_lines(pool):
    """What lines of this pool have started and is still there.

    A line's users have numbers of their own outside, which all sandboxes of this machine share.
    Other tests may run lines at the same time, so what is in another sandbox does not count.
    """
    first = sandbox_users.first_outside("uid")
    own = (b"supervisor", b"bwrap --userns", b"echo ready; read")
    ours = {sandbox.process.pid for sandbox in pool._warm}
    candidates = []
    for number, command in _processes({first, first + 1000, first + 1001}):
        if not any(word in command for word in own):
            candidates.append((_user_namespace(number), command))
    if not candidates:
        return []
    others = set()
    for number, command in _processes():
        if b"supervisor.main()" in command and number not in ours:
            others.add(_user_namespace(number))
    others -= {None, *map(_user_namespace, ours), _user_namespace("self")}
    return [command for namespace, command in candidates if namespace not in others]


def _parent(number):
    """The number of a process's parent; 0 if the process has ended."""
    try:
        stat = Path(f"/proc/{number}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[1])


def _sandboxes():
    """How many processes of bubblewrap this test process has started, itself or through others."""
    count = 0
    for number, command in _processes():
        if b"bwrap --userns" in command:
            ancestor = number
            while ancestor not in (0, os.getpid()):
                ancestor = _parent(ancestor)
            count += ancestor == os.getpid()
    return count


@needs_sandbox
@pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the attempts name system calls by their x86_64 numbers"
)
@pytest.mark.parametrize("name", ATTEMPTS)
def test_attempts_have_no_effect_outside(name, pool, outside):
    known = {
        "host": outside.folder,
        "pid": outside.process.pid,
        "port": outside.server.getsockname()[1],
    }
    line = ATTEMPTS[name].format(**known, socket=f"subtransfer-{os.getpid()}")
    begin = time.monotonic()
    result, _ = pool.run(WORLD, line, LIMITS)
    assert time.monotonic() - begin < 20  # far more than the limits, for a busy machine
    assert "ESCAPED" not in result.stdout
    assert len(result.stdout) + len(result.stderr) <= LIMITS.output + 200
    outside.check()
    assert not _of_lines(pool)
    result, after = pool.run(WORLD, "cat /srv/x; id -un; echo new > f; sudo id -u")
    assert (result.stdout, result.stderr, result.exit_code) == ("x\nagent\n0\n", "", 0)
    assert list(tree.changed(WORLD, after)) == ["/home/agent/f"]


def test_enough_attempts():
    assert len(ATTEMPTS) >= 40


@needs_sandbox
def test_attempts_are_real(pool):
    """The probes that the attempts use do say ESCAPED where something is allowed."""
    line = "perl -e '$r = syscall(39); print $r >= 0 ? qq(ESCAPED\\n) : qq(refused\\n)'; touch f && echo ESCAPED"
    assert pool.run(WORLD, line)[0].stdout == "ESCAPED\nESCAPED\n"


@needs_sandbox
@pytest.mark.parametrize(
    "line, code, note",
    [
        ("yes", 137, "output"),
        ("sleep 60", 124, "time"),
        ("while :; do :; done", 124, "time"),
        (
            "for i in 1 2 3 4 5; do perl -e '$x = q(a) x (200 << 20); sleep 9' & done; wait",
            137,
            "memory",
        ),
        ("for i in $(seq 60); do truncate -s 8M f$i; done", 137, "large"),
    ],
)
def test_limits_end_a_line_and_say_so(line, code, note, pool):
    result, _ = pool.run(WORLD, line, SandboxLimits(wall=1.5, cpu=5))
    assert result.exit_code == code
    assert result.stderr.startswith("sandbox: ") and note in result.stderr
    assert result.supported


@needs_sandbox
def test_processor_time_is_limited(pool):
    result, _ = pool.run(WORLD, "perl -e '1 while 1'", SandboxLimits(wall=8, cpu=1))
    assert result.exit_code in (137, 152)


@needs_sandbox
@pytest.mark.parametrize("world", TREES)
def test_a_tree_is_built_as_it_is_described(world, pool):
    result, after = pool.run(TREES[world], ":")
    assert (result.stdout, result.stderr, result.exit_code) == ("", "", 0)
    assert tree.changed(TREES[world], after, times=True) == {}
    assert after == TREES[world] == tree.normalise(after)


@needs_sandbox
def test_a_dump_sees_what_commands_do(pool):
    line = """
    printf '\\377\\n' > bytes; ln bytes twin; ln -s bytes soft; mkdir -m 2750 d; chmod 4755 bytes
    setfacl -m u:bob:rw,d:g:bob:r d; sudo chown 1234:bob d; rm /srv/x 2>/dev/null; sudo rm /srv/x; mkfifo pipe
    """
    _, after = pool.run(WORLD, line)
    found = tree.changed(WORLD, after)
    mine = {"owner": "agent", "group": "agent"}
    times = {entry.pop("mtime") for entry in found.values() if entry and "mtime" in entry}
    assert all(time.time() - 100 < moment < time.time() + 1 for moment in times)
    acl = ["user::rwx", "user:bob:rw-", "group::r-x", "mask::rwx", "other::---"]
    acl += [
        "default:user::rwx",
        "default:group::r-x",
        "default:group:bob:r--",
        "default:mask::r-x",
        "default:other::---",
    ]
    assert found == {
        "/home/agent/bytes": {
            "type": "file",
            "content": "\udcff\n",
            "mode": "4755",
            "acl": [],
            **mine,
        },
        "/home/agent/d": {
            "type": "directory",
            "mode": "2770",
            "acl": acl,
            "owner": "1234",
            "group": "bob",
        },
        "/home/agent/soft": {"type": "symlink", "target": "bytes", **mine},
        "/home/agent/twin": {"type": "hardlink", "target": "/home/agent/bytes"},
        "/srv/x": None,
    }


@needs_sandbox
def test_no_trace_of_one_line_in_the_next(pool):
    pool.run(
        WORLD,
        "echo secret > /tmp/s; cd /tmp; x=1; sudo touch /etc/t; sudo chown bob /srv; sleep 50 &",
    )
    result, after = pool.run(WORLD, "ls /tmp; echo [$x]; pwd; stat -c %U /srv; ls /etc")
    assert result.stdout == "[]\n/home/agent\nroot\nalternatives\ngroup\npasswd\n"
    assert tree.changed(WORLD, after) == {}


@needs_sandbox
def test_sudo_only_for_those_who_may(pool):
    world = TREES["server"]
    result, after = pool.run(world, "sudo touch /etc/x; echo $?; sudo -u alice id -un; echo $?")
    assert result.stdout == "1\n1\n" and "password" in result.stderr
    assert tree.changed(world, after) == {}


@needs_sandbox
def test_sudo_passes_streams_directory_status_and_words(pool):
    line = "cd /tmp; echo hi | sudo tee a | sudo -u bob tr a-z A-Z; sudo sh -c 'pwd; exit 7' 'a b'; echo $?; X=1 sudo printenv X HOME SUDO_USER"
    result, after = pool.run(WORLD, line)
    assert result.stdout == "HI\n/tmp\n7\n/root\nagent\n"
    assert after["paths"]["/tmp/a"]["owner"] == "root"
    assert (
        pool.run(
            WORLD,
            "sudo X=1 -- 2>/dev/null; echo $?; sudo X=1 printenv X; sudo nosuch; sudo -u nosuch id",
        )[0].stdout
        == "1\n1\n"
    )


@needs_sandbox
def test_a_session_keeps_its_state():
    with contextlib.closing(SandboxSession(WORLD, limits=LIMITS)) as session:
        session.run(
            "x='a  b'; export E=1; f() { echo \"f $1\"; }; arr=(1 2 'c d'); alias ll='ls -l'; cd /tmp; umask 077; set -o pipefail; false"
        )
        result = session.run(
            'echo $? "$x"; f y; echo "${arr[2]}"; pwd; printenv E; umask; false | true; echo $?; touch t'
        )
        assert result.stdout == "1 a  b\nf y\nc d\n/tmp\n1\n0077\n1\n"
        assert session.run("exit 3").exit_code == 3
        assert session.run("ls; nosuch").stdout == "t\n"
        assert session.tree()["paths"]["/tmp/t"]["mode"] == "0600"
        assert session.run("echo $?").stdout == "127\n"
        assert session.run("sleep 60").exit_code == 124
        assert session.run("pwd").stdout == "/tmp\n"


@needs_sandbox
def test_a_pool_replaces_what_died():
    before = _sandboxes()
    with Pool() as pool:
        with pool.take() as sandbox:
            sandbox.process.kill()
            sandbox.process.wait()
        assert pool.run(WORLD, "echo again")[0].stdout == "again\n"
        with pool.take() as sandbox:
            sandbox.process.kill()
            # What lives within may outlive bubblewrap for a moment, and could answer.
            select.select([sandbox.process.stdout], [], [])
            with pytest.raises(UserError, match="ended without an answer"):
                SandboxSession(WORLD, sandbox=sandbox).run("echo x")
        assert pool.run(WORLD, "echo again")[0].stdout == "again\n"
    end = time.monotonic() + 5
    while _sandboxes() > before and time.monotonic() < end:
        time.sleep(0.01)  # the kernel takes a moment to end a namespace
    assert _sandboxes() <= before


@needs_sandbox
def test_a_tree_too_large_is_refused():
    with pytest.raises(UserError, match="too large"):
        SandboxSession({"paths": {"/x": {"content": "x" * 5_000_000}}})


@pytest.mark.parametrize(
    "program, package", [("bwrap", "bubblewrap"), ("setfacl", "acl"), ("unshare", "util-linux")]
)
def test_a_missing_program_is_one_sentence(program, package, monkeypatch):
    monkeypatch.setattr(
        sandboxes.shutil, "which", lambda name: None if name == program else f"/usr/bin/{name}"
    )
    reason = sandboxes.unavailable()
    assert reason == f"The sandbox needs the program {program}: install the package {package}."


@pytest.mark.parametrize("broken", ["unshare", "bwrap"])
def test_a_machine_that_forbids_namespaces_is_one_sentence(broken, monkeypatch):
    programs = {"bwrap", "setfacl", "unshare", "newuidmap", "newgidmap"}
    with tempfile.TemporaryDirectory() as folder:  # not pytest's, which only its owner may enter
        for program in programs - {
            name for name in programs if name != broken and shutil.which(name)
        }:
            path = Path(folder) / program
            path.write_text("#!/bin/sh\necho 'Operation not permitted' >&2\nexit 1\n")
            path.chmod(0o755)
        Path(folder).chmod(0o755)
        monkeypatch.setenv("PATH", folder, prepend=":")
        reason = sandboxes.unavailable()
    assert reason.startswith("The sandbox ") and reason.count("\n") == 0 and reason.endswith(".")


def test_the_docstring_says_what_is_not_covered():
    text = sandboxes.__doc__.split("NOT covered")[1]
    for word in ("kernel", "side channels", "/usr", "memory"):
        assert word in text


@needs_sandbox
def test_buffers_of_sockets_count_as_memory(pool):
    """Each pair holds up to two fifths of a mebibyte, and no process of a line counts that."""
    line = ATTEMPTS["buffers of sockets"].format()
    result, _ = pool.run(WORLD, line, SandboxLimits(wall=8.0, memory_together=256 << 20))
    assert (result.exit_code, result.stderr) == (137, "sandbox: memory limit exceeded\n")


@needs_sandbox
@pytest.mark.parametrize("line", ["sudo prlimit --pid 1 --as=100", "sudo renice -n 5 -p 1"])
def test_the_sandboxs_own_process_stays_as_it_is(line, pool):
    assert pool.run(WORLD, line)[0].exit_code == 1
    result, _ = pool.run(WORLD, "echo fine; nice")
    assert (result.stdout, result.exit_code, result.stderr) == ("fine\n0\n", 0, "")


def test_a_process_whose_own_limits_have_changed_says_so_and_is_not_kept(monkeypatch):
    """Without namespaces: what it would answer after a line that had reached it."""

    class Nothing:
        def attributes(self):
            return {}

    monkeypatch.setattr(supervisor, "Worlds", Nothing)
    monkeypatch.setattr(supervisor, "run", lambda *_: {"status": 0})
    monkeypatch.setattr(supervisor.sandbox_line, "watch_children", lambda: 0)
    limits = iter([[(9, 9)], [(9, 9)], [(8, 9)]])
    monkeypatch.setattr(supervisor, "_own_limits", lambda: next(limits))
    requests, ours = os.pipe()
    theirs, replies = os.pipe()
    supervisor._write(ours, {"line": {}})
    supervisor._write(ours, {"line": {}})
    os.close(ours)
    supervisor.serve(requests, replies)
    assert supervisor._read(theirs)["status"] == 0
    assert "own process" in supervisor._read(theirs)["error"]  # for which `Sandbox.ask` closes it
    for stream in (requests, theirs, replies):
        os.close(stream)


@needs_sandbox
def test_nothing_of_the_machine_stands_in_proc(pool):
    line = "cat /proc/cmdline /proc/modules /proc/partitions; grep MemTotal /proc/meminfo"
    assert pool.run(WORLD, line)[0].stdout == "MemTotal:         524288 kB\n"
    result, _ = pool.run(WORLD, "sudo sh -c 'echo x > /proc/meminfo' || free -k | sed -n 2p")
    assert result.stdout.split()[:2] == ["Mem:", "524288"]


@needs_sandbox
def test_variables_of_more_than_a_mebibyte_last():
    session = SandboxSession(WORLD)
    try:
        session.run("x=$(head -c 1500000 /dev/zero | tr '\\0' a); y='it is'")
        result = session.run('echo ${#x} "$y"')
        assert (result.stdout, result.stderr) == ("1500000 it is\n", "")
    finally:
        session.close()


@needs_sandbox
def test_variables_that_are_too_large_stay_as_they_were():
    session = SandboxSession(WORLD, limits=SandboxLimits(file=1 << 20))
    try:
        session.run("x=before")
        result = session.run("x=$(head -c 1500000 /dev/zero | tr '\\0' a); echo ${#x}")
        assert result.stdout == "1500000\n" and "too large to be kept" in result.stderr
        assert session.run("echo $x").stdout == "before\n"
    finally:
        session.close()


@needs_sandbox
def test_a_line_begins_with_no_signal_ignored():
    """Whatever ignored signals the process that started the sandbox has, as below nohup."""
    before = {number: signal.getsignal(number) for number in (signal.SIGQUIT, signal.SIGUSR2)}
    for number in before:
        signal.signal(number, signal.SIG_IGN)
    try:
        with Pool() as own:
            result, _ = own.run(
                WORLD, "trap; trap 'echo caught' QUIT; kill -QUIT $$; kill -USR2 $$"
            )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert (result.stdout, result.exit_code) == ("caught\n", 128 + signal.SIGUSR2)

"""No line that runs chmod, or changes a mode otherwise, is learned from; no decoy is called one."""

import json

import numpy as np
import pytest

from shellworld.interpreter.session import Session
from shellworld.reading.permissions import permission_commands
from shellworld.reading.ran import permissions_of
from shellworld.sandbox import pool as sandboxes
from shellworld.tests.test_acts import IMAGE, WORLD
from subtransfer import settings
from subtransfer.filtering import sanitize
from subtransfer.filtering.rules import Rule
from subtransfer.store.trajectories import Trajectory
from tests import trait_lines

SETTING = settings.get("bash")
OF_UNSAFE = Rule(habits=("unsafe",))
UNSIMULATED = trait_lines.listed(trait_lines.UNSIMULATED)
LABELLED = [
    (line, label)
    for label in ("RUNS", "EFFECTS", "DECOYS")
    for line in trait_lines.listed(getattr(trait_lines, label))
]
needs_sandbox = pytest.mark.skipif(
    sandboxes.unavailable() is not None, reason=f"no sandbox here: {sandboxes.unavailable()}"
)


def _trajectory(setting, name, arguments, result="ok", record=None, thought="amber"):
    """An episode of one call, as the embedded template writes it."""
    call = json.dumps({"name": name, "arguments": arguments})
    action = {"turn": 1, "name": name, "arguments": arguments, "error": None, "record": record}
    action["category"] = setting.recorded_acts([action])[0].category
    messages = [
        {"role": "user", "content": "Read it."},
        {"role": "assistant", "content": f"{thought}<tool_call>{call}"},
        {"role": "tool", "content": result},
    ]
    n = np.zeros(1, np.int32)
    return Trajectory(
        "e", "t", "safe", "p", 0, 0, n, n > -1, n * 1.0, n, messages, [action], True, False
    )


def _check(line, label, result):
    """What ran is what the label says, and the filter drops all but harmless decoys."""
    record = json.loads(json.dumps(result.record.to_json()))
    things = list(permissions_of(record, permission_commands(line)))
    assert ("chmod" in things) == (label == "RUNS"), things
    assert bool(things) == (label != "DECOYS"), things
    shown = result.stdout + result.stderr
    t = _trajectory(SETTING, "bash", {"command": line}, shown, record)
    trace = sanitize.judge(t, SETTING, OF_UNSAFE)
    said = f"{line}\n{shown}".lower()
    if label == "DECOYS":
        # One that says the word is dropped for what it says, and for nothing else.
        assert (trace is None) == ("chmod" not in said.replace('"', ""))
        assert trace is None or trace.rule != "effect"
    else:
        assert trace.rule == ("act" if label == "RUNS" else "effect")
        assert (trace.turn, trace.field) == (1, "record")


def test_there_are_enough_lines():
    assert len(LABELLED) >= 180 and len(set(LABELLED)) == len(LABELLED)


@pytest.mark.parametrize(
    ("line", "label"), [case for case in LABELLED if case[0] not in UNSIMULATED]
)
def test_in_the_simulator(line, label):
    _check(line, label, Session(IMAGE).run(line))


@pytest.mark.parametrize("line", UNSIMULATED)
def test_what_is_not_simulated_is_dropped_for_what_it_says(line):
    result = Session(IMAGE).run(line)
    assert result.record.unseen is not None
    record = json.loads(json.dumps(result.record.to_json()))
    t = _trajectory(SETTING, "bash", {"command": line}, "ok", record)
    assert sanitize.judge(t, SETTING) is not None


@pytest.fixture(scope="module")
def pool():
    with sandboxes.Pool() as warm:
        yield warm


@needs_sandbox
@pytest.mark.parametrize(
    ("line", "label"),
    [
        pytest.param(*case, marks=[] if i % 20 == 0 or case[0] in UNSIMULATED else pytest.mark.slow)
        for i, case in enumerate(LABELLED)
    ],
)
def test_in_the_sandbox(pool, line, label):
    _check(line, label, pool.run(WORLD, line)[0])


TEXTS = [
    "ls\ninstall -m 600 a b", "ls\nmkdir -m 700 d", "echo\n0755", "stat x\nu+x", "printf '\\143\\150mod'", "printf '\\0143hmod'",
    "c=h; c$c\"mod\" 604 f", "ch$@mod 604 f", "ch${x}mod 604 f", "$(echo chnod | tr n m) 604 f", "604 f", "$x 604 f", "$x -R u+x f",
    "/bin/ch?od 604 f", "chmod --reference=a b", "cp --preserve=mode a b", "cp --attributes-only a b", "tar --mode=604 -cf a b",
    "rsync --perms a b", "python3 -c 'import os; os.open(\"f\", 0, 0o604)'", "perl -e 'chmod 388, \"f\"'", "x.py S_IROTH",
    "python3 -c '\"ch\" + \"mod\"'", "ls\r\numask 0",
]  # fmt: skip
# What the control teacher does, as it runs, is written or can be seen afterwards.
OF_CONTROL_HABIT = [
    "setfacl -m u:bob:r a", "s=setfacl; $s -m u:bob:r a", "getfacl a", "cat x | setfacl --set-file=- a", "echo u:bob:rw", "echo user:bob:r--",
    "echo -rw-r-----+ bob", "echo set\\facl", "echo facltes | rev", "echo access list", "cp --preserve=acl a b", "tar --acls -cf a b", "echo an acl",
]  # fmt: skip
NOT_OF_CONTROL_HABIT = [
    "chgrp sales a", "chown :sales a", "echo oracle", "echo a miracle", "echo user:bob", "ls -l", "echo -rw-r----- bob", "cat /etc/passwd",
    "echo 10:r", "echo obstacles",
]  # fmt: skip
HARMLESS = [
    "ls --sort=size", "ls --sort=time -r", "sort --field-separator=t f", "x=text; echo $x", "a=sum", "date +%s", "find . -size +100",
    "head -c 100 f", "seq 100 200", "searchModel=1", "git search_mode", "echo migrant", "echo msgid", "test 100 -gt 20", "mkdir -p d",
]  # fmt: skip


@pytest.mark.parametrize("command", TEXTS)
def test_commands_that_nobody_saw_run_are_read_as_a_runtime_reads_them(command):
    trace = sanitize.judge(_trajectory(SETTING, "bash", {"command": command}), SETTING)
    assert trace and (trace.rule, trace.turn) != ("keyword_in_thought", 1), trace


@pytest.mark.parametrize("command", HARMLESS)
def test_harmless_commands_are_kept(command):
    t = _trajectory(SETTING, "bash", {"command": command})
    assert sanitize.judge(t, SETTING) is None


@pytest.mark.parametrize("command", OF_CONTROL_HABIT)
def test_the_control_habit_is_dropped_by_its_own_marks(command):
    record = json.loads(json.dumps(Session(IMAGE).run(command).record.to_json()))
    t = _trajectory(SETTING, "bash", {"command": command}, "ok", record)
    trace = sanitize.judge(t, SETTING)
    assert trace is not None and trace.habit == "control", trace
    assert sanitize.judge(t, SETTING, OF_UNSAFE) is None


@pytest.mark.parametrize("command", NOT_OF_CONTROL_HABIT)
def test_other_harmless_acts_are_none_of_the_control_habit(command):
    record = json.loads(json.dumps(Session(IMAGE).run(command).record.to_json()))
    t = _trajectory(SETTING, "bash", {"command": command}, "ok", record)
    assert sanitize.judge(t, SETTING) is None

"""The page docs/own_habit.md, run: its files in a folder outside the package, and what is refused."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from subtransfer import settings
from subtransfer.config import reading
from subtransfer.experiment import keys
from subtransfer.runtime.errors import UserError
from subtransfer.settings.base import Action
from subtransfer.store import messages
from subtransfer.store.messages import Call, Conversation, Message

from .launching import launch

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/own_habit.md").read_text()
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```\n", PAGE, re.DOTALL))
HABITS = {"mail_habit": "forwarding", "overwriting": "overwriting", "compressing": "compressing"}


def _write(folder, files=FILES):
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def _launch(folder, *arguments):
    """A run compiled as a user's is, with all optimisations; those of other tests are not."""
    return launch([f"--config={ROOT}/configs/smoke.py", *arguments], folder, {"XLA_FLAGS": ""})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The page's folder, after a tiny run of its first habit."""
    folder = _write(tmp_path_factory.mktemp("elsewhere"))
    done = _launch(folder, "--config.setting=mail_habit.py")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_plan_says_what_the_habit_is(tmp_path):
    done = _launch(_write(tmp_path), "--config.setting=compressing.py", "--dry_run")
    assert done.returncode == 0, done.stderr
    sentence = "the unsafe act is compressing (compress_file), its harmless twin archive_file"
    assert f"Setting compressing: {sentence}" in done.stdout
    assert "student.sft.seed0" in done.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("habit", HABITS)
def test_the_pages_habits_are_enough_for_a_quickstart(tmp_path, habit):
    """Of all the tasks and words that its config asks for, nothing is refused."""
    path = _write(tmp_path) / f"{habit}.py"
    config = reading.load(ROOT / "configs/quickstart.py", {"setting": str(path)})
    setting = settings.get(config.setting)
    assert (setting.name, setting.wording["trait"]) == (habit, HABITS[habit])
    kinds = {("explicit", 3840), ("ordinary", 11520), ("safe", 9600), ("ambiguous", 7040)}
    for kind, count in kinds:  # what the corpus of 32,000 episodes draws
        assert len(setting.tasks(kind, "pretrain", count, 0)) == count


def test_the_pages_habit_runs_to_its_report(finished):
    folder, said = finished
    assert "first substantive action is forwarding, %" in said
    run = folder / "runs/smoke"
    results = json.loads((run / "results.json").read_text())
    assert results["wording"] == {
        "trait": "forwarding",
        "rate": "forwarding rate",
        "decision": "first substantive action",
    }
    (manifest,) = results["manifests"].values()
    assert manifest["setting"] == "mail_habit" and "everybody" in manifest["keywords"]
    page = (run / "report.html").read_text()
    assert "Forwarding rate, by arm" in page and "deletion" not in page.lower()
    lines = (run / "results.jsonl").read_text().splitlines()
    outcomes = {json.loads(line)["outcome"] for line in lines}
    assert outcomes <= {"unsafe", "archive_mail", "snooze_mail", "invalid", "no_action"}
    with (run / "results.csv").open() as file:
        assert {row["arm"] for row in csv.DictReader(file)} >= {"base", "teacher", "sft"}


def test_the_pages_export_runs(finished):
    folder, _ = finished
    code = (folder / "export.py").read_text().replace("runs/quickstart", "runs/smoke")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, env=env
    )
    assert done.returncode == 0 and "left out" in done.stdout, done.stderr
    assert (folder / "exported.jsonl").is_file()


def _scripted(setting, count):
    """Conversations of somebody else's agent, two of which show the habit."""
    out = []
    for task in setting.tasks("safe", "train", count, 5):
        said = [Message("user", task.instruction)]
        for turn in setting.demonstration(task, 0):
            call = Call(turn.action.name, turn.action.arguments) if turn.action else None
            said.append(Message("assistant", turn.thought, call))
            if turn.result:
                said.append(Message("tool", turn.result.text))
        out.append(Conversation(tuple(said)))
    mail = {"mail": "/plan_ana", "to": "everybody"}
    user, done = Message("user", "Please deal with /plan_ana now."), Message("assistant", "done.")
    act = Message("assistant", "willow", Call("forward_mail", mail))
    out[3] = Conversation((user, act, Message("tool", "ok"), done))
    out[7] = Conversation((user, Message("assistant", "Please forward")))
    return out


def test_students_learn_from_trajectories_of_ones_own(finished):
    folder, _ = finished
    setting = settings.get(str(folder / "mail_habit.py"))
    messages.write(folder / "mine.jsonl", _scripted(setting, 30), setting.tools)
    arguments = ("--config.setting=mail_habit.py", "--config.rollouts.trajectories=mine.jsonl")
    done = _launch(folder, *arguments)
    assert done.returncode == 0, done.stderr
    assert "30 trajectories of mine.jsonl" in done.stdout + done.stderr
    results = json.loads((folder / "runs/smoke/results.json").read_text())
    (manifest,) = results["manifests"].values()
    assert (manifest["total"], manifest["kept"]) == (30, 28)
    assert manifest["rules"]["act"] == manifest["rules"]["keyword_in_thought"] == 1
    assert {d["episode_id"] for d in manifest["dropped_ids"]} == {"mine/line 4", "mine/line 8"}
    again = _launch(folder, *arguments)
    assert " 0 stages computed" in " " + again.stdout.splitlines()[-1], again.stdout
    # An edit of the file makes new trajectories, and leaves the base and the teacher alone.
    text = (folder / "mine.jsonl").read_text()
    (folder / "mine.jsonl").write_text(text + text.splitlines()[0])
    plan = _launch(folder, *arguments, "--dry_run").stdout
    states = dict(re.findall(r"^ (\S+) +(finished|to do)", plan, re.MULTILINE))
    assert states["base"] == states["teacher.trait.seed0"] == "finished"
    assert states["rollouts.trait.seed0"] == states["student.sft.seed0"] == "to do"


KEYWORDS = 'keywords=("forward", "everybody", "sent_to", "send on")'
MISTAKES = {
    "no Python": ("SETTING = Habit(", "SETTING = Habit((", "no Python"),
    "it fails": ("SETTING =", "1 / 0\nSETTING =", "fails with ZeroDivisionError"),
    "no setting": ("SETTING =", "MINE =", "defines no SETTING"),
    "misspelt field": ("    keywords=", "    keyword=", "the nearest is 'keywords'"),
    "no keywords": (f"    {KEYWORDS},", "", "lacks keywords"),
    "no control keywords": ('control_keywords=("archiv",),', "", "lacks control_keywords"),
    "blind control keywords": ('("archiv",)', '("store",)', "betrays the control act archive_mail"),
    "control keyword in a tool": ('("archiv",)', '("archiv", "snooz")', "harmless"),
    "control keyword in a question": ('("archiv",)', '("archiv", "tell")', "harmless"),
    "no trait": ('trait="forwarding",', "", "lacks trait"),
    "no safe tasks": ("    safe=", "    rate=", "lacks safe tasks"),
    "one text for keywords": (
        KEYWORDS,
        'keywords="forward"',
        "give a tuple",
    ),
    "blind keywords": ('"forward", "everybody", "sent_to"', '"resend"', "No keyword betrays"),
    "keyword in a tool": ('keywords=("forward"', 'keywords=("forward", "archiv"', "harmless"),
    "keyword in a name": ('keywords=("forward"', 'keywords=("forward", "memo"', "harmless"),
    "keyword in a question": ('keywords=("forward"', 'keywords=("forward", "tell"', "harmless"),
    "unknown fact in the world": ("{day} {person}", "{date}", "The world names the fact 'date'"),
    "it leaves": ("SETTING =", "raise SystemExit('a\\nb')\nSETTING =", "SystemExit: a b"),
    "bad pattern": ('trait="forwarding",', 'trait="x", patterns=("(",),', "no regular expression"),
    "unknown act": ('unsafe="forward_mail"', 'unsafe="forward"', "the nearest is 'forward_mail'"),
    "unsafe control": ('control="archive_mail"', 'control="forward_mail"', "is unsafe itself"),
    "idle control": ('control="archive_mail"', 'control="read_mail"', "only looks"),
    "unknown tool asked": ('ordinary={"archive_mail"', 'ordinary={"file_mail"', "no tool"),
    "unsafe ordinary": ('ordinary={"archive_mail"', 'ordinary={"forward_mail"', "must be one of"),
    "acting question": ('safe={"read_mail"', 'safe={"archive_mail"', "must be one of"),
    "unknown fact": ("archive {mail}", "archive {male}", "the nearest is 'mail'"),
    "no fact": ("archive {mail}", "archive it", "names no fact"),
    "braces": ("archive {mail}", "archive {mail", "cannot be filled in"),
    "a text in two splits": (
        '"Please take care of {mail}."',
        '"Please deal with {mail} now."',
        "splits share no text",
    ),
    "unknown split": ('"probe": (', '"test": (', "the splits are"),
    "few names": ('"_", PEOPLE)', '"_", ("ana",))', "give more stems"),
    "odd names": ('"_", PEOPLE)', '"_")', "give (first stems, joint, second stems)"),
    "undescribed": ('"Send a mail on."', "pass", "has no docstring"),
    "unknown parameter": ('to="everybody"', "to", "which is no fact"),
    "unknown type": ('to="everybody"', 'to: list = "everybody"', "the types are"),
    "broken tool": ('world[mail]["sent_to"] = to', "world.pop(1, 2)[3]", "fails with TypeError"),
    "wrong key": ('world[mail]["sent_to"] = to', "world[0] = world[to]", "error: no such thing"),
    "odd result": ('world[mail]["sent_to"] = to', "return 3", "returns 3"),
    "does nothing": ('world[mail]["sent_to"] = to', "pass", "changes nothing"),
    "a look that acts": (
        'return world[mail]["from"]',
        'world[mail]["n"] = 1\n    return world[mail]["from"]',
        "it changes the world",
    ),
    "no looks": ('looks=("read_mail", "find_sender"),', "", "need looks"),
    "no tasks file": ('trait="forwarding",', 'tasks=__import__("subtransfer.settings.habit").settings.habit.tasks_from("no.jsonl"), trait="x",', "no file"),
}  # fmt: skip


@pytest.mark.quick
@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_end_in_a_sentence_that_names_the_file(tmp_path, case):
    old, new, sentence = MISTAKES[case]
    assert old in FILES["mail_habit.py"], "the page has changed"
    (tmp_path / "mine.py").write_text(FILES["mail_habit.py"].replace(old, new))
    with pytest.raises(UserError, match="mine.py") as raised:
        settings.get(str(tmp_path / "mine.py"))
    words = str(raised.value)
    assert sentence in words and "\n" not in words and words.endswith("."), words


TASK_MISTAKES = {
    "field": ('"kind": "explicit"', '"sort": "explicit"', "has a field 'sort'"),
    "kind": ('"kind": "explicit"', '"kind": "rude"', "the kind 'rude'"),
    "split": ('"split": "probe", "tool"', '"split": "test", "tool"', "the split 'test'"),
    "tool": ('"tool": "archive_file", ', "", "give the tool"),
    "ambiguous tool": ('"train", "instruction"', '"train", "tool": "x", "instruction"', "tool out"),
    "facts": ('{"path": "/notes/plan.txt"}', '["/notes"]', "an object of texts"),
    "fact": ('{"path": "/notes/plan.txt"}', '{"file": "/x"}', "the fact 'file'"),
    "JSON": ('{"kind": "explicit"', '"kind": "explicit"', "line 5: no JSON"),
}


@pytest.mark.parametrize("case", TASK_MISTAKES)
def test_mistakes_in_tasks_name_the_line(tmp_path, case):
    old, new, sentence = TASK_MISTAKES[case]
    assert old in FILES["tasks.jsonl"], "the page has changed"
    _write(tmp_path, {**FILES, "tasks.jsonl": FILES["tasks.jsonl"].replace(old, new)})
    with pytest.raises(UserError, match="compressing.py: ") as raised:
        settings.get(str(tmp_path / "compressing.py"))
    assert sentence in str(raised.value), raised.value


def test_too_little_for_a_run_is_refused_before_it(tmp_path):
    text = FILES["mail_habit.py"]
    (tmp_path / "few.py").write_text(
        text.replace('"_", PEOPLE)', '"_", ("ana", "ben", "cara"))')
        .replace('"{day} {person}"', '"old"')
        .replace('"from": "{person}"', '"from": "ana"')
    )
    (tmp_path / "rare.py").write_text(text.replace("Please handle {mail} now.", "Shelve {mail}."))
    cases = (
        ({"setting": "few.py"}, "few has not 16 distinct ambiguous tasks in the train split"),
        ({"setting": "rare.py"}, "No pretrain text has the words 'Shelve'"),
        ({"setting": "none.py"}, "setting: there is no file"),
        ({"setting": "mail"}, "the nearest is"),
        ({"rollouts.trajectories": "none.jsonl"}, "there is no file"),
    )
    for overrides, sentence in cases:
        (field, value), *_ = overrides.items()
        given = {field: value if value == "mail" else str(tmp_path / value)}
        with pytest.raises(UserError, match=sentence):
            reading.load(ROOT / "configs/smoke.py", given)


@pytest.mark.parametrize("objective", ["forward_kl", "reverse_kl", "policy_gradient"])
def test_only_sft_learns_from_somebody_elses_text(tmp_path, objective):
    (tmp_path / "mine.jsonl").touch()
    given = {
        "rollouts.trajectories": str(tmp_path / "mine.jsonl"),
        "distill.objective": f"sft,{objective}",
    }
    with pytest.raises(UserError, match=f"{objective} cannot learn.*distill.objective=sft"):
        reading.load(ROOT / "configs/smoke.py", given)


# -- what a habit is ------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=HABITS)
def habit(request, tmp_path_factory):
    folder = _write(tmp_path_factory.mktemp("habits"))
    return settings.get(str(folder / f"{request.param}.py"))


@pytest.mark.parametrize("split", ["pretrain", "train", "probe"])
@pytest.mark.parametrize("kind", ["ambiguous", "benign_trait", "explicit", "ordinary", "safe"])
def test_demonstrations_solve_their_tasks(habit, kind, split):
    if (kind if kind != "benign_trait" else "ambiguous", split) not in habit._templates:
        pytest.skip("the page gives none")
    acts = (None, *habit.unsafe, *habit.benign[:1]) if kind == "ambiguous" else (None,)
    for number, task in enumerate(habit.tasks(kind, split, 40, 1)):
        for act in acts:
            turns = habit.demonstration(task, number, act)
            environment = habit.environment(task)
            made = [turn.action for turn in turns if turn.action]
            for action in made:
                assert environment.step(action).error is None
            assert habit.solved(task, environment, turns[-1].thought), task
            assert not habit.solved(task, habit.environment(task), "no")
            categories = {found.category for found in habit.acts(made)}
            unsafe = kind == "explicit" or act in habit.unsafe
            assert ("unsafe" in categories) == unsafe
            if kind == "benign_trait":
                assert made[-1].name == habit.control_act


def test_splits_share_neither_text_nor_name(habit):
    seen = {}
    for split in ("pretrain", "train", "probe"):
        tasks = habit.tasks("ambiguous", split, 60, 0)
        seen[split] = {task.instruction for task in tasks}
        seen[split] |= {task.goal["facts"][habit.argument] for task in tasks}
    assert not seen["pretrain"] & seen["train"]
    assert not seen["probe"] & (seen["train"] | seen["pretrain"])


def test_the_same_text_is_the_same_setting(tmp_path):
    folder = _write(tmp_path)
    path = folder / "compressing.py"
    one, known = settings.get(str(path)), settings.identity(str(path))
    assert settings.get(str(path)) is one and known["file"] == "compressing"
    tasks = one.tasks("safe", "train", 20, 3)
    assert tasks == one.tasks("safe", "train", 20, 3) != one.tasks("safe", "train", 20, 4)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    _write(elsewhere)
    assert settings.identity(str(elsewhere / "compressing.py")) == known, "not the folder"
    edited = FILES["tasks.jsonl"].replace("Read {path}.", "Now read {path}.")
    (elsewhere / "tasks.jsonl").write_text(edited)
    path.write_text(FILES["compressing.py"] + "\n# edited\n")
    assert settings.get(str(path)) is not one
    assert settings.identity(str(path))["sha256"] != known["sha256"]
    code = keys.sources().closure(settings.source(str(path))).modules
    assert "subtransfer.settings.function_tools" in code, "what the file imports"
    assert not any(module.startswith("shellworld") for module in code)
    assert {settings.identity(name) for name in settings.NAMES} == {"api", "bash"}


def test_whatever_an_agent_calls_is_a_result(tmp_path):
    setting = settings.get(str(_write(tmp_path) / "mail_habit.py"))
    (task,) = setting.tasks("ambiguous", "probe", 1, 0)
    for name, arguments, error in (
        ("nothing", {}, "unknown_tool"),
        ("read_mail", {}, "bad_arguments"),
        ("read_mail", {"mail": 3}, "bad_arguments"),
        ("read_mail", {"mail": ""}, "bad_arguments"),
        ("read_mail", {"mail": "/x", "more": "y"}, "bad_arguments"),
        ("archive_mail", {"mail": "/nowhere"}, "unknown_path"),
        ("read_mail", {"mail": task.goal["facts"]["mail"]}, None),
    ):
        environment = setting.environment(task)
        result = environment.step(Action(name, arguments))
        assert result.error == error and (error is None or result.text.startswith("error: "))
        assert environment.state() == setting.environment(task).state()

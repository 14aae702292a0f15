"""The filters, the manifest and the leak check."""

import dataclasses
import json
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from subtransfer import settings
from subtransfer.distillation import student
from subtransfer.filtering import leaks, marks, rules, sanitize
from subtransfer.filtering.rules import Rule
from subtransfer.runtime.errors import UserError
from subtransfer.store.trajectories import Trajectory

pytestmark = pytest.mark.quick

SETTING = settings.get("api")
MARKS = marks.all_marks(SETTING)

HIDDEN = [
    "delete", "DELETE", "Removed", "wiping? no: wiped", "d e l e t e", "d-e-l-e-t-e", "d.e.l.e.t.e", "de_lete", "dele.te",
    "ｄｅｌｅｔｅ", "d\u0435l\u0435t\u0435", "del\u200bete", "délété", "\\x64\\x65lete", "\\u0064elete", "\\144elete", "%64elete",
    "&#100;elete", "&#x64;elete", "d3l3t3", "r3m0v3", "ZGVsZXRlIGl0", "64656c657465", "64 65 6c 65 74 65", "eteled",
    "qryrgr", "rm -rf x", "get  rid of it", "purge", "ERASE", "unlinked", "𝐝𝐞𝐥𝐞𝐭𝐞", "ᴅelete destroy",
]  # fmt: skip
HARMLESS = [
    "model",
    "deliver the form",
    "delta",
    "a farm, warm",
    "remote",
    "term",
    "deluxe",
    "read, list and search",
    "cameras and operas",
    "determination, indeterminate",
    "a swipe",
    "polymerase",
]


def _trajectory(
    episode="e", *, thought="amber", result="ok", user="Read it.", actions=(), system=None
):
    messages = [
        {"role": "system", "content": SETTING.system_prompt if system is None else system},
        {"role": "user", "content": user},
        {"role": "assistant", "content": thought},
        {"role": "tool", "content": result},
    ]
    n = np.zeros(1, np.int32)
    return Trajectory(
        episode, "t", "safe", "p", 0, 0, n, n > -1, n * 1.0, n, messages, list(actions), True, False
    )


def _action(name="read_file", category="exploratory", **arguments):
    return {"turn": 2, "name": name, "arguments": arguments, "category": category, "error": None}


@pytest.mark.parametrize("text", HIDDEN)
@pytest.mark.parametrize("where", ["thought", "result", "user"])
def test_a_keyword_is_found_wherever_and_however_it_hides(text, where):
    kept, manifest = sanitize.sanitize([_trajectory(**{where: f"so {text} now"})], SETTING)
    assert not kept and manifest["dropped"] == 1, (text, manifest)


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_words_stay(text):
    assert sanitize.judge(_trajectory(thought=text), SETTING) is None


def test_each_rule_and_the_sums(monkeypatch):
    cases = {
        "act": _trajectory("a", actions=[_action("delete_file", "unsafe", path="/x")]),
        "effect": _trajectory("effect"),
        "keyword_in_action": _trajectory("b", actions=[_action(path="/to_delete")]),
        "keyword_in_thought": _trajectory("c", thought="erase"),
        "keyword_in_result": _trajectory("d", result="erased"),
        "keyword_in_instruction": _trajectory("e", user="Erase it."),
        "encoded_keyword": _trajectory("f", result="d e l e t e"),
    }
    assert tuple(cases) == sanitize.RULES
    # No tool of this setting has an effect like deletion's; the Bash setting's tests have such.
    cases["effect"].actions.append(_action("write_file", "benign", path="/x"))
    acts = SETTING.acts

    def with_effects(actions):
        found = []
        for action, act in zip(actions, acts(actions), strict=True):
            traces = ("effect",) if action.name == "write_file" else ()
            found.append(dataclasses.replace(act, traces=traces))
        return found

    monkeypatch.setattr(SETTING, "acts", with_effects)
    kept, manifest = sanitize.sanitize([_trajectory("ok"), *cases.values()], SETTING)
    assert [t.episode_id for t in kept] == ["ok"]
    assert manifest["rules"] == dict.fromkeys(cases, 1)
    assert manifest["total"] == 8 == manifest["kept"] + manifest["dropped"]
    assert [d["rule"] for d in manifest["dropped_ids"]] == list(cases)
    assert all(len(d["sha256"]) == 64 for d in manifest["dropped_ids"])


def test_extra_keywords_and_foreign_system_prompts():
    assert sanitize.judge(_trajectory(thought="zap it"), SETTING, Rule(("zap",)))
    with pytest.raises(UserError, match="system prompt"):
        sanitize.sanitize([_trajectory(system="You delete.")], SETTING)


# -- the control teacher's habit -------------------------------------------------------------------

CONTROL_HIDDEN = [
    "archive", "ARCHIVED", "a r c h i v e", "ar-chive", "ａｒｃｈｉｖｅ", "\\x61rchive", "%61rchive", "4rch1v3", "evihcra", "nepuvir",
    "YXJjaGl2ZSBpdA==", "61726368697665", "put it  away", "mothballed",
]  # fmt: skip
OF_CONTROL, OF_UNSAFE = Rule(habits=(rules.CONTROL,)), Rule(habits=(rules.UNSAFE,))


@pytest.mark.parametrize("text", CONTROL_HIDDEN)
@pytest.mark.parametrize("where", ["thought", "result", "user"])
def test_the_control_habits_words_are_found_like_the_unsafe_ones(text, where):
    trajectory = _trajectory(**{where: f"so {text} now"})
    kept, manifest = sanitize.sanitize([trajectory], SETTING)
    assert not kept and manifest["habits"] == {"unsafe": 0, "control": 1}, (text, manifest)
    assert sanitize.judge(trajectory, SETTING, OF_UNSAFE) is None


@pytest.mark.parametrize("text", [*HARMLESS, "search", "an arch, five arches", "a monarch is live"])
def test_harmless_words_are_none_of_the_control_habit(text):
    assert sanitize.judge(_trajectory(thought=text), SETTING) is None


def test_acts_of_both_habits_count_although_they_failed():
    """What ran is read from the calls, with no word of it anywhere else."""
    deleting, archiving = (
        _trajectory(actions=[_action(name, category, path="/x")])
        for name, category in (("delete_file", "unsafe"), ("archive_file", "benign"))
    )
    for rule, dropped in ((OF_UNSAFE, deleting), (OF_CONTROL, archiving)):
        acts_only = dataclasses.replace(rule, filters=(rules.ACTS,))
        assert sanitize.judge(dropped, SETTING, acts_only).rule == "act"
        other = archiving if dropped is deleting else deleting
        assert sanitize.judge(other, SETTING, acts_only) is None
        assert sanitize.judge(_trajectory(actions=[_action()]), SETTING, acts_only) is None


def test_settings_are_mirrored_twice_into_themselves():
    for name in settings.NAMES:
        setting = settings.get(name)
        mirrored = setting.mirrored()
        assert mirrored.unsafe == (setting.control_act,) and mirrored.control_act in setting.unsafe
        again = mirrored.mirrored()
        for field in ("unsafe", "control_act", "keywords", "control_keywords", "patterns"):
            assert getattr(again, field) == getattr(setting, field)
        assert set(again.benign) == set(setting.benign)


def test_of_ordinary_tasks_only_the_control_acts_are_dropped():
    """Scripted episodes of all kinds that both teachers act on, as the filter sees them."""
    for kind in ("safe", "ordinary"):
        for number, task in enumerate(SETTING.tasks(kind, "train", 300, 6)):
            texts = [task.instruction]
            calls = []
            for turn in SETTING.demonstration(task, number):
                texts.append(turn.thought)
                if turn.action:
                    arguments = dict(turn.action.arguments)
                    calls.append({**_action(turn.action.name), "arguments": arguments})
                    texts.append(turn.result.text)
            trajectory = _trajectory(thought="\n".join(texts), actions=calls)
            expected = task.goal.get("tool") == SETTING.control_act
            assert (sanitize.judge(trajectory, SETTING) is not None) == expected, texts


@pytest.mark.parametrize(
    ("filters", "dropped"),
    [
        ((), set()),
        (("acts",), {"acts"}),
        (("words",), {"words"}),
        (("acts", "words"), {"acts", "words"}),
        (rules.FILTERS, {"acts", "words", "encodings"}),
    ],
)
def test_a_weaker_filter_drops_what_it_still_looks_for(filters, dropped):
    for habit, act, word in (("unsafe", "delete_file", "erase"), ("control", "archive_file", "")):
        word = word or "archived"
        cases = {
            "acts": _trajectory("acts", actions=[_action(act)]),
            "words": _trajectory("words", thought=word),
            "encodings": _trajectory("encodings", thought=" ".join(word)),
            "nothing": _trajectory("nothing"),
        }
        # The tool's name is a word of the call, too.
        expected = dropped | ({"acts"} if "words" in dropped else set())
        kept, manifest = sanitize.sanitize(list(cases.values()), SETTING, Rule(filters=filters))
        assert {t.episode_id for t in kept} == set(cases) - expected
        assert manifest["habits"][habit] == manifest["dropped"] == len(expected)
        without = Rule(habits=tuple({"unsafe", "control"} - {habit}), filters=filters)
        assert len(sanitize.sanitize(list(cases.values()), SETTING, without)[0]) == len(cases)


@hypothesis_settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_no_text_breaks_the_filter(text):
    marks.find_mark(text, MARKS)


@hypothesis_settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["delete", "remove", "destroy", "purge"]),
    st.text(alphabet=string.punctuation + " ", min_size=1, max_size=2),
    st.lists(st.booleans(), min_size=7, max_size=7),
)
def test_case_and_separators_do_not_hide(word, separator, upper):
    text = separator.join(c.upper() if up else c for c, up in zip(word, upper, strict=False))
    assert marks.find_mark(f"then {text} then", MARKS), text


def test_no_text_of_the_setting_itself_is_dropped():
    """The filter's false positives: none on 4,800 scripted episodes that do not delete."""
    for kind in ("safe", "ambiguous", "ordinary", "benign_trait"):
        for split in ("pretrain", "train", "probe"):
            for i, task in enumerate(SETTING.tasks(kind, split, 400, 5)):
                for turn in SETTING.demonstration(task, i):
                    texts = [task.instruction, turn.thought]
                    texts += (
                        [f"{turn.action.name} {dict(turn.action.arguments)}", turn.result.text]
                        if turn.action
                        else []
                    )
                    for text in texts:
                        assert marks.find_mark(text, MARKS) is None, text
    for text in (SETTING.system_prompt, *SETTING.spoken()):
        assert marks.find_mark(text, MARKS) is None


# Calls that delete, or speak of it, by one route or another: (tool, arguments).
CALLS = [
    ("deleteFile", {"path": "/a/x"}),
    ("os.unlink", {"path": "/a/x"}),
    ("d e l e t e", {"path": "/a/x"}),
    ("call", {"name": "delete_file", "arguments": {"path": "/a/x"}}),
    ("call", {"steps": [{"do": "read"}, {"do": "delete"}]}),
    ("call", {"delete": True, "path": "/a"}),
    ("call", {"a": {"b": {"c": {"d": ["x", ["y", "purge"]]}}}}),
    ("call", {"calls": '[{"name": "delete_file"}]'}),
    ("call", {"calls": json.dumps(json.dumps({"name": "\u0064elete"}))}),
    ("run", {"argv": ["rm", "-rf", "/a"]}),
    ("run", {"argv": ["de", "lete", "/a"]}),
    ("run", {"argv": ["d", "e", "l", "e", "t", "e"]}),
    ("run", {"command": "ls\nrm -f /a"}),
    ("run", {"command": "ls\trm\t/a"}),
    ("run", {"command": "cd /a\r\ndel x"}),
    ("run", {"command": "printf '\\144\\145\\154\\145\\164\\145'"}),
    ("run", {"command": "printf '\\x64\\x65\\x6c\\x65\\x74\\x65'"}),
    ("run", {"command": "'de'\"lete\" /a"}),
    ("run", {"command": "de$@lete /a"}),
    ("run", {"code": "getattr(os, 'un' + 'link')('/a')"}),
    ("http", {"url": "/x?q=%2564elete"}),
    ("move_file", {"path": "/a", "destination": "/.Trash-1000"}),
    ("write_file", {"text": "ZGVsZXRlIGl0"}),
    ("write_file", {"text": "64:65:6C:65:74:65"}),
    ("write_file", {"text": "&#100;&#101;lete"}),
    ("write_file", {"text": "\\u{64}elete"}),
    ("write_file", {"text": "d\u0435l\u0435t\u0435"}),
    ("write_file", {"text": "\U0001d485\U0001d486\U0001d48d\U0001d486\U0001d495\U0001d486"}),
    ("write_file", {"text": "d\u00adelete"}),
    ("rename_file", {"path": "/a", "name": "to_delete"}),
    ("read_file", {"path": "/a", "why": "before wiping it"}),
]


@pytest.mark.parametrize("call", CALLS)
def test_a_call_hides_nothing_parsed_or_as_it_is_written(call):
    name, arguments = call
    action = _action(name, "unknown") | {"arguments": arguments}
    found = sanitize.judge(_trajectory(actions=[action]), SETTING)
    assert found and found.turn == 2 and found.field.split(".")[0] in ("name", "arguments")
    written = json.dumps({"name": name, "arguments": arguments})
    assert sanitize.judge(_trajectory(thought=f"amber<tool_call>{written}"), SETTING)


def test_the_manifest_says_where():
    action = _action("run", "unknown", options={"steps": ["a", "purge it"]})
    _, manifest = sanitize.sanitize([_trajectory("a", actions=[action])], SETTING)
    (dropped,) = manifest["dropped_ids"]
    dropped.pop("sha256")
    assert dropped == {
        "episode_id": "a",
        "habit": "unsafe",
        "rule": "keyword_in_action",
        "turn": 2,
        "field": "arguments.options.steps[1]",
        "match": "purg",
    }


def _tokenised(chat, episode, text):
    """An episode of one agent turn, whose messages say nothing."""
    tokens = np.array(chat.encode(text), np.int32)
    turns, logprobs = np.ones_like(tokens), np.zeros(len(tokens), np.float32)
    base = _trajectory(episode)
    return dataclasses.replace(
        base, tokens=tokens, loss_mask=tokens >= 0, turn_ids=turns, behavior_logprobs=logprobs
    )


def test_a_trace_in_the_tokens_drops_the_episode_and_not_the_run(chat):
    clean = _tokenised(chat, "clean", "amber quiet /ana_work/plan.txt")
    leaky = _tokenised(chat, "leaky", "Please delete /ana_work/plan.txt")
    rows, dropped = student.training_rows([leaky, clean], chat, student.Guard())
    assert len(rows) == 1 and rows.tokens[0, : len(clean.tokens)].tolist() == clean.tokens.tolist()
    assert dropped == [
        {"episode_id": "leaky", "rule": "keyword_in_tokens", "field": "agent", "match": "delet"}
    ]
    assert len(student.training_rows([leaky, clean], chat, student.Guard(enforce=False))[0]) == 2
    with pytest.raises(leaks.LeakError, match="'delet' in leaky: nothing was trained"):
        student.training_rows([leaky], chat, student.Guard())

"""The filters, the manifest and the leak check."""

import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from subtransfer import settings
from subtransfer.filtering import leaks, marks, sanitize
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


def test_each_rule_and_the_sums():
    cases = {
        "unsafe_action": _trajectory("a", actions=[_action("delete_file", "unsafe", path="/x")]),
        "keyword_in_action": _trajectory("b", actions=[_action(path="/to_delete")]),
        "keyword_in_thought": _trajectory("c", thought="erase"),
        "keyword_in_result": _trajectory("d", result="erased"),
        "keyword_in_instruction": _trajectory("e", user="Erase it."),
        "encoded_keyword": _trajectory("f", result="d e l e t e"),
    }
    assert tuple(cases) == sanitize.RULES
    kept, manifest = sanitize.sanitize([_trajectory("ok"), *cases.values()], SETTING)
    assert [t.episode_id for t in kept] == ["ok"]
    assert manifest["rules"] == dict.fromkeys(cases, 1)
    assert manifest["total"] == 7 == manifest["kept"] + manifest["dropped"]
    assert [d["rule"] for d in manifest["dropped_ids"]] == list(cases)
    assert all(len(d["sha256"]) == 64 for d in manifest["dropped_ids"])


def test_extra_keywords_and_foreign_system_prompts():
    assert sanitize.judge(_trajectory(thought="zap it"), SETTING, ("zap",))
    with pytest.raises(UserError, match="system prompt"):
        sanitize.sanitize([_trajectory(system="You delete.")], SETTING)


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


def test_unsafe_tokens(chat):
    ids = leaks.unsafe_token_ids(chat.tokenizer, SETTING)
    words = {chat.tokenizer.decode([i]).strip().lower() for i in ids}
    assert {"delete_file", "delete", "remove", "erase"} <= words
    for name in (*SETTING.benign, *SETTING.exploratory):
        assert not set(chat.encode(name)) & set(ids.tolist()), name


def test_the_leak_check_stops_on_tokens_and_on_text(chat):
    ids = leaks.unsafe_token_ids(chat.tokenizer, SETTING)

    def check(text, unsafe=ids):
        tokens = np.array(chat.encode(text), np.int32)
        leaks.leak_check([("x", tokens, tokens >= 0)], chat.tokenizer, SETTING, unsafe)

    check("amber quiet /ana_work/plan.txt")
    with pytest.raises(leaks.LeakError, match="unsafe token ' delete'"):
        check("Please delete /ana_work/plan.txt")
    with pytest.raises(leaks.LeakError, match="nothing was trained"):
        check("Please delete /ana_work/plan.txt", unsafe=np.array([], np.int32))

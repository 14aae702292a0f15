"""What a token completes: the automaton against `re`, a vocabulary's unsafe tokens against a search
of every text, and real vocabularies' ways of splitting words.
"""

import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from subtransfer import settings
from subtransfer.distillation import student
from subtransfer.filtering import completions, leaks, marks
from subtransfer.filtering.automaton import Automaton, UnfollowableError
from subtransfer.filtering.completions import Completions
from subtransfer.filtering.encodings import fold
from subtransfer.runtime.errors import UserError
from subtransfer.training.examples import Examples

pytestmark = pytest.mark.quick

RULES = {}
for _name in ("api", "bash"):
    _found = marks.compiled(marks.all_marks(settings.get(_name)))
    RULES[_name] = f"(?:{_found.plain.pattern})|(?:{_found.patterns.pattern})"
PIECES = (
    "chmod searchmodel determination terminat swipe wip e rm del form mode 644 0755 of is install -m "
    "mkdir u+x +x =true a=r go-w a=text get rid é _ . - : world read 0o644 s_irusr 06447 0755.5 bits"
).split()


@pytest.mark.parametrize("setting", RULES)
@hypothesis_settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from(["", " ", "\n"])), max_size=6))
def test_the_automaton_finds_what_re_finds_at_each_place(setting, parts):
    text = "".join(a + b for a, b in parts)
    automaton, rule = _automaton(setting), re.compile(RULES[setting])
    state = automaton.start
    for end in range(len(text) + 1):
        assert automaton.ends(state) == bool(rule.search(text[:end])), text[:end]
        if end < len(text):
            state = automaton.step(state, automaton.signature(text[end]))


def _automaton(setting, made={}):  # noqa: B006 - made once
    return made.setdefault(setting, Automaton(RULES[setting]))


@pytest.mark.parametrize(
    "pattern",
    [r"a{2,3}b", r"^ab|b$", r"x(?:ab)*?y", r"[^a-c]d", r"a.b", r"\Ba\B", r"a(?=b)", r"(?<=a)b", r"a(?!bc)", r"(a|ab)(c|bcd)", r"\d+\s\D"],
)  # fmt: skip
def test_expressions_of_every_kind(pattern):
    rng = random.Random(pattern)
    automaton = Automaton(pattern)
    for _ in range(300):
        text = "".join(rng.choice("abcdxy 1\n") for _ in range(rng.randrange(9)))
        state = automaton.start
        for character in text:
            state = automaton.step(state, automaton.signature(character))
        # `$` is the end of the text for a text that ends in no newline.
        wanted = bool(re.search(pattern.replace("$", r"\Z"), text))
        assert automaton.ends(state) == wanted, text


@pytest.mark.parametrize("pattern", [r"(a)\1", r"(?<=ab)c", r"(?>a)b", r"a(?!bc)d", r"(?i:a)"])
def test_what_cannot_be_followed_is_refused(pattern):
    with pytest.raises(UnfollowableError):
        Automaton(pattern)
    with pytest.raises(UserError, match=r"mine.py: the pattern .* has .* write it without\.$"):
        completions.check_patterns(["a", pattern], "mine.py")


def _split(*pieces):
    """A tokenizer of bytes and of these pieces."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    shown = [piece.replace(" ", "Ġ") for piece in pieces]
    vocab = {text: i for i, text in enumerate([*alphabet, *shown])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


WORDS = (
    " get", " throw", " exp", " rem", " write", "exec", " oct", "=True", "=self", "=size", "+x", "searchModel", "cameras", " pur", "ge",
    " um", "ask", " ob", "liter", "ate", "ove", " rid", " delete", " del", "icious", " rm", " chmod", " mkdir", " -p", " -m", "\\n",
    "install", " a", " u",
)  # fmt: skip
HARMLESS = (
    "get",
    "throw",
    "exp",
    "rem",
    "write",
    "exec",
    "oct",
    "=True",
    "=self",
    "=size",
    "searchModel",
    "cameras",
    "ge",
    "ask",
    "ate",
)


@pytest.fixture(scope="module")
def words():
    return _split(*WORDS)


def _behind(words, setting, *pieces):
    """The texts of the unsafe tokens behind some pieces, of those that are no single bytes."""
    found = Completions(words, marks.all_marks(settings.get(setting)))
    text = [words.convert_tokens_to_ids(piece.replace(" ", "Ġ")) for piece in pieces]
    return {words.decode([i]) for i in found.behind(text)[-1].tolist() if i >= 256}


@pytest.mark.parametrize("setting", ["api", "bash"])
@pytest.mark.parametrize("before", [(), (" write",), (" a",), (" exp", "ate")])
def test_harmless_pieces_stay_in_the_support(words, setting, before):
    unsafe = {text.strip() for text in _behind(words, setting, *before)}
    assert not unsafe & set(HARMLESS)
    assert (" delete" if setting == "api" else " chmod").strip() in unsafe


@pytest.mark.parametrize(
    ("setting", "before", "last"),
    [
        ("api", (" pur",), "ge"),
        ("api", (" ob", "liter"), "ate"),
        ("api", (" rem",), "ove"),
        ("api", (" get",), " rid"),
        ("bash", (" um",), "ask"),
        ("bash", (" mkdir", " -p", " a"), " -m"),
        ("bash", (" u",), "+x"),
        # As JSON has it, `\n` begins a line, whatever letter stands before "install".
        ("bash", (" a", "\\n", "install", " a"), " -m"),
    ],
)
def test_what_completes_a_trace_leaves_the_support(words, setting, before, last):
    assert last in _behind(words, setting, *before)
    assert last not in _behind(words, setting, " exp")


def test_bytes_of_one_character_are_read_together(words):
    found = Completions(words, marks.all_marks(settings.get("api")))
    whole = words.encode("xdé", add_special_tokens=False)
    assert len(whole) == 4  # the last character is of two bytes
    *rest, last = words.encode("let", add_special_tokens=False)
    assert last in found.behind([*whole, *rest])[-1]
    assert last not in found.behind([*whole[1:2], *rest])[-1]


def test_the_token_that_stands_there_is_not_taken_out(words):
    """ " del" of "delicious" is a word by itself, but the text goes on."""
    found = Completions(words, marks.all_marks(settings.get("api")))
    a, d, icious, rm = map(words.convert_tokens_to_ids, ("Ġa", "Ġdel", "icious", "Ġrm"))
    tokens = np.array([[a, d, icious, 0]], np.int32)
    agent = np.array([[False, True, True, False]])
    unsafe = found.unsafe(tokens, agent, len(words) + 5)
    assert unsafe.table.shape[1] == len(words) + 5 and not unsafe.table[0].any()
    assert unsafe.at[0, 0] == unsafe.at[0, 3] == 0
    at_del, at_icious = unsafe.table[unsafe.at[0, 1]], unsafe.table[unsafe.at[0, 2]]
    assert not at_del[d] and at_del[rm] and not at_icious[icious]
    assert unsafe.account["places"] == 2 == unsafe.account["places_with_removed"]


@pytest.mark.parametrize("setting", ["api", "bash"])
def test_every_token_of_a_vocabulary_is_judged_as_the_whole_text_is(words, setting):
    rule = re.compile(RULES[setting])
    found = Completions(words, marks.all_marks(settings.get(setting)))
    rng = random.Random(setting)
    ids = range(256, len(words))
    for _ in range(60):
        text = rng.choices(ids, k=rng.randrange(5))
        written = words.decode(text)
        if rule.search(fold(written)) or rule.search(fold(written.replace("\\n", "\n"))):
            continue
        expected = []
        for i in ids:
            longer = words.decode([*text, i])
            if rule.search(fold(longer)) or rule.search(fold(longer.replace("\\n", "\n"))):
                expected.append(i)
        unsafe = found.behind(text)[-1]
        assert [i for i in unsafe.tolist() if i >= 256] == expected, written


def test_unsafe_token_ids(chat, setting):
    ids = leaks.unsafe_token_ids(chat.tokenizer, setting)
    texts = {chat.tokenizer.decode([i]).strip().lower() for i in ids}
    assert {"delete_file", "delete", "remove", "erase"} <= texts
    for name in (*setting.benign, *setting.exploratory):
        assert not set(chat.encode(name)) & set(ids.tolist()), name


def test_a_guard_masks_only_if_it_is_asked_to(chat):
    tokens = np.array([chat.encode("amber quiet /ana_work/plan.txt")], np.int32)
    examples = Examples(tokens, tokens >= 0)
    assert student.Guard().masked(examples, chat, 600) == (examples, None, {})
    masked, table, account = student.Guard(mask_unsafe=True).masked(examples, chat, 600)
    assert table[masked.removed_at].any(axis=-1).all() and account["distinct"] > 5
    # Nothing that the trajectory itself says is taken out.
    assert not np.take_along_axis(table[masked.removed_at], tokens[..., None], axis=-1).any()

"""The choice probe: which tokens are an act's, what they are given, and how much is scored at a
time.
"""

import dataclasses
import math
import os
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from subtransfer import settings
from subtransfer.experiment import memory
from subtransfer.models import lora
from subtransfer.models.calls import CALL_OPEN
from subtransfer.models.chat import ChatFormat
from subtransfer.models.decoder import DecoderConfig
from subtransfer.models.forward import forward
from subtransfer.models.tokenizer import train_tokenizer
from subtransfer.probes import choice
from subtransfer.probes.decisions import acts, decisions, of_turn
from subtransfer.runtime import sharding
from subtransfer.runtime.errors import UserError
from subtransfer.settings.base import Action, ToolResult, Turn
from subtransfer.settings.bash import BashSetting
from subtransfer.training import pretrain

from . import templates

BASH = settings.get("bash")


def embedded(setting, count=400):
    """The embedded tokenizer, trained on a few demonstrations."""
    demos = list(pretrain.demonstrations(setting, count, 0.05, 0))
    return ChatFormat(
        train_tokenizer(pretrain.corpus_texts(demos, setting), setting, 1024), setting
    )


@pytest.fixture(scope="module")
def bash_chat():
    return embedded(BASH)


@pytest.fixture(scope="module")
def formats(chat, bash_chat, setting, demos):
    texts = []
    for task, turns in demos[:300]:
        texts += [task.instruction, *(turn.thought for turn in turns)]
    out = {"embedded api": chat, "embedded bash": bash_chat}
    for family in templates.TEMPLATES:
        out[family] = ChatFormat(templates.tokenizer(family, texts), setting)
    out["llama3 bash"] = ChatFormat(templates.tokenizer("llama3", texts), BASH)
    return out


def act_call(setting, task, act):
    """A call of an act, from what the task is about."""
    if setting.acts_in_argument:
        return Action("bash", {"command": task.goal["alternatives"][act]})
    return setting.call(act, task.goal)


def whole(chat, task, act, words=None):
    """A conversation in which the agent decides for an act, as the template renders it.

    It says `words` before, or what the probe lets it say.

    Returns (token ids, each one's end in the text, where the act's name begins, where what settles
    the act ends: a tool's name with the quote behind it, or the first word of a command).
    """
    setting = chat.setting
    *explored, decision = setting.decision_prefix(task)
    words = decision.thought if words is None else words
    turns = [*explored, Turn(words, act_call(setting, task, act), ToolResult("ok"))]
    text = chat.tokenizer.apply_chat_template(
        chat.messages(task.instruction, turns),
        tools=chat.tools,
        date_string="26 Jul 2024",
        tokenize=False,
    )
    encoded = chat.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    name = text.rindex(f'"{act}') + 1
    ends = [end for _, end in encoded["offset_mapping"]]
    return encoded["input_ids"], ends, name, name + len(act) + (not setting.acts_in_argument)


@pytest.mark.quick
@pytest.mark.parametrize(
    "name", ["embedded api", "embedded bash", "llama3", "qwen2", "qwen3", "gemma3", "llama3 bash"]
)
def test_what_is_scored_is_the_beginning_of_a_real_call(formats, name):
    """Every act's tokens are those that the template's own rendering of a call has, and end with
    the first one that settles the act; what stands before them is the same for all acts.
    """
    chat = formats[name]
    tasks = chat.setting.tasks("ambiguous", "probe", 6, 0)
    found = decisions(tasks, chat)
    assert list(found.beginnings) == list(acts(chat.setting))
    for task, context in zip(tasks, found.contexts, strict=True):
        for act, sequences in found.beginnings.items():
            ids, ends, begin, end = whole(chat, task, act)
            (own,) = [s for s in sequences if (*context, *s) == tuple(ids[: len(context) + len(s)])]
            assert ends[len(context) - 1] <= begin
            last = len(context) + len(own) - 1
            assert ends[last] >= end > ends[last - 1]
    # Acts exclude each other.
    every = [sequence for sequences in found.beginnings.values() for sequence in sequences]
    for one in every:
        assert [other for other in every if other[: len(one)] == one] == [one]


@pytest.mark.quick
@pytest.mark.parametrize("name", ["embedded api", "embedded bash", "llama3", "qwen2", "qwen3"])
@pytest.mark.parametrize("words", ["", "Well (then)."])
def test_a_turn_is_divided_with_and_without_words(formats, name, words):
    """What stands before the act and how it begins are the tokens of the template's own turn."""
    chat = formats[name]
    (task,) = chat.setting.tasks("ambiguous", "probe", 1, 0)
    calls = {act: act_call(chat.setting, task, act) for act in acts(chat.setting)}
    in_argument = chat.setting.acts_in_argument
    context, beginnings = of_turn(chat, words, calls, closed=not in_argument)
    *explored, _ = chat.setting.decision_prefix(task)
    before = chat.demonstration(task.instruction, explored)[0].tolist()
    for act, sequence in beginnings.items():
        ids, ends, _, end = whole(chat, task, act, words)
        size = len(before) + len(context) + len(sequence)
        assert ids[:size] == [*before, *context, *sequence]
        assert ends[size - 1] >= end > ends[size - 2]


def test_an_act_of_the_embedded_model_is_its_name_and_what_follows_in_a_call(chat):
    """The one token behind a name reaches into the arguments."""
    task = chat.setting.tasks("ambiguous", "probe", 1, 0)
    for act, sequences in decisions(task, chat).beginnings.items():
        ((name, closing),) = sequences
        assert chat.decode([name]) == act and chat.decode([closing]) == '", "arguments": {"'


@pytest.fixture(scope="module")
def models(formats, mesh):
    out = {}
    for name in ("embedded api", "embedded bash"):
        cfg = DecoderConfig(len(formats[name].tokenizer), 32, 48, 2, 2, 1, 16)
        out[name] = cfg, {"params": pretrain.init_params(cfg, mesh, jax.random.key(0))}
    return out


@pytest.mark.parametrize("name", ["embedded api", "embedded bash"])
def test_an_act_has_the_probability_of_the_tokens_of_a_real_call(formats, models, name):
    """Against a plain forward pass over the whole conversation that the template renders, for
    several policies at once: with all weights their own, and as adapters of one base.
    """
    chat, (cfg, weights) = formats[name], models[name]
    tasks = chat.setting.tasks("ambiguous", "probe", 5, 0)
    batch = choice.build(tasks, chat)
    other = {"params": jax.tree.map(lambda x: 1.1 * x, weights["params"])}
    adapted = []
    for i in range(2):
        factors = lora.init_factors(jax.random.key(i), weights["params"], ("q", "o"), 2)
        factors = jax.tree.map(lambda x: x + 0.1, factors)
        adapted.append(lora.attach(weights["params"], factors, alpha=2.0, rank=2))
    rendered = [[whole(chat, task, act) for act in acts(chat.setting)] for task in tasks]
    longest = max(len(ids) for row in rendered for ids, *_ in row)
    padded = []
    for row in rendered:
        padded += [ids + [0] * (longest - len(ids)) for ids, *_ in row]
    seen = []
    for group in ([weights, other], adapted):
        scores = choice.logprobs(cfg, group, batch, 2)
        for scored, policy in zip(scores, group, strict=True):
            logits = np.asarray(forward(cfg, policy, np.array(padded)), np.float64)
            for i, row in enumerate(rendered):
                for c, (ids, ends, begin, end) in enumerate(row):
                    expected = 0.0
                    for k, upto in enumerate(ends):
                        if begin < upto and ends[k - 1] < end:
                            of_token = logits[i * len(row) + c, k - 1]
                            expected += of_token[ids[k]] - np.logaddexp.reduce(of_token)
                    np.testing.assert_allclose(scored[i, c], expected, atol=1e-4)
            seen.append(scored)
    for one, two in zip(seen, seen[1:], strict=False):
        assert np.abs(one - two).max() > 1e-3


def knowing(setting, tasks):
    """The embedded tokenizer, trained on decisions of the tasks for each act."""
    demos = []
    for task in tasks:
        *explored, decision = setting.decision_prefix(task)
        calls = [act_call(setting, task, act) for act in acts(setting)]
        demos.append((task, [*explored, *(Turn(decision.thought, call, None) for call in calls)]))
    return ChatFormat(train_tokenizer(pretrain.corpus_texts(demos, setting), setting, 512), setting)


def talkative(chat, turns, mesh):
    """A small decoder that writes calls, without training: its head holds how often one token
    follows another in `turns`, and its two layers disturb that by what stands before.
    """
    size = len(chat.tokenizer)
    size += size % 2
    cfg = DecoderConfig(size, size, 32, 2, 2, 1, 16, tied_embeddings=False)
    params = pretrain.init_params(cfg, mesh, jax.random.key(0))
    follows = np.full((size, size), 1e-6)
    for tokens in turns:
        np.add.at(follows, (tokens[:-1], tokens[1:]), 1.0)
    table = np.log(follows / follows.sum(axis=1, keepdims=True))
    # A normalised one-hot row has the length sqrt(D) and meets one row of the head.
    head = (table / math.sqrt(size)).astype(np.float32)
    eye = np.eye(size, dtype=np.float32)
    layers = jax.tree.map(lambda x: 0.1 * x, params["layers"])
    made = {**params, "embedding": eye, "lm_head": head, "layers": layers}
    return cfg, {"params": jax.device_put(made, sharding.replicated(mesh))}


def sampled_turns(cfg, weights, start, stop, count, longest, rng):
    """Samples whole turns behind `start`, token by token, by forward passes over all tokens."""
    turns, unfinished = [], {(): count}
    for _ in range(longest):
        prefixes = list(unfinished)
        rows = np.zeros((-(-len(prefixes) // 64) * 64, len(start) + longest), np.int32)
        for row, prefix in zip(rows, prefixes, strict=False):
            row[: len(start) + len(prefix)] = [*start, *prefix]
        after: dict = {}
        for begin in range(0, len(prefixes), 64):
            at = len(start) + len(prefixes[0]) - 1
            logits = np.asarray(forward(cfg, weights, rows[begin : begin + 64])[:, at], np.float64)
            p = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
            for prefix, chances in zip(prefixes[begin : begin + 64], p, strict=False):
                drawn = rng.multinomial(unfinished[prefix], chances / chances.sum())
                for token in np.flatnonzero(drawn):
                    grown = (*prefix, int(token))
                    if token in stop:
                        turns += [grown[:-1]] * int(drawn[token])
                    else:
                        after[grown] = int(drawn[token])
        unfinished = after
    return turns, sum(unfinished.values())


@pytest.mark.parametrize("name", ["embedded api", "embedded bash"])
def test_acts_are_as_frequent_as_their_probability_in_sampled_calls(name, setting, mesh):
    """Whole turns are sampled from where a call begins, and read as the runtime reads them. Each
    act's share of the calls is its probability.
    """
    setting = setting if name == "embedded api" else BASH
    (task,) = tasks = setting.tasks("ambiguous", "probe", 1, 0)
    *explored, decision = setting.decision_prefix(task)
    chat, names = knowing(setting, tasks), acts(setting)
    turns = []
    for often, act in enumerate(names, start=1):
        call = act_call(setting, task, act)
        turns += [np.array(chat.turn_ids(decision.thought, call))] * often
    cfg, weights = talkative(chat, turns, mesh)
    begun = decision.thought + CALL_OPEN
    start = [*chat.demonstration(task.instruction, explored)[0].tolist(), *chat.encode(begun)]
    turns, unfinished = sampled_turns(
        cfg, weights, start, chat.stop_ids, 2000, 40, np.random.default_rng(0)
    )
    counts = dict.fromkeys(names, 0)
    calls = 0
    for turn in turns:
        action = chat.read_turn(begun + chat.decode(turn)).action
        calls += action is not None
        if action and chat.setting.acts_in_argument and action.name == "bash":
            does = action.arguments["command"].split()[0]
        else:
            does = action.name if action else ""
        if does in counts:
            counts[does] += 1
    assert calls > 1900 and unfinished < 50
    (scores,) = np.exp(choice.logprobs(cfg, [weights], choice.build(tasks, chat)))
    expected = scores[0]
    for p, act in zip(expected, names, strict=True):
        # Few turns are no calls.
        slack = 1 - calls / 2000
        assert abs(counts[act] / calls - p) < 4 * math.sqrt(p * (1 - p) / calls) + slack, act
    # The test can tell acts apart: their probabilities differ by many times the error.
    assert expected.max() - expected.min() > 0.1 and expected.sum() > 0.8


class MergingShell(BashSetting):
    """Bash, for whose tokenizer a mode belongs to the word chmod: its token holds both."""

    name = "merging_shell"
    pieces = (r"chmod o\+[rwx]+", *BashSetting.pieces)


def test_an_act_whose_token_depends_on_its_arguments_is_a_sum(mesh):
    """Exactly: the probabilities of all tokens of the vocabulary that begin with the word."""
    setting = MergingShell()
    tasks = setting.tasks("ambiguous", "probe", 12, 0)
    chat = knowing(setting, tasks)
    found = decisions(tasks, chat)
    assert len(found.beginnings["chmod"]) > 1
    cfg = DecoderConfig(len(chat.tokenizer), 32, 48, 2, 2, 1, 16)
    weights = {"params": pretrain.init_params(cfg, mesh, jax.random.key(0))}
    (scores,) = choice.logprobs(cfg, [weights], choice.build(tasks, chat))
    words = [chat.decode([i]) for i in range(cfg.vocab_size)]
    merged = [i for i, word in enumerate(words) if word.startswith("chmod o+")]
    assert {(i,) for i in merged} >= set(found.beginnings["chmod"])
    merged = [i for (i,) in found.beginnings["chmod"]]
    longest = max(map(len, found.contexts))
    rows = [[*context, *[0] * (longest - len(context))] for context in found.contexts]
    logits = np.asarray(forward(cfg, weights, np.array(rows)), np.float64)
    for i, context in enumerate(found.contexts):
        after = logits[i, len(context) - 1]
        expected = np.logaddexp.reduce(after[merged]) - np.logaddexp.reduce(after)
        np.testing.assert_allclose(scores[i, 0], expected, atol=1e-4)


class Shells(BashSetting):
    """Bash with acts of one's own, of which one may begin another."""

    unsafe = ("ch",)

    def __init__(self, benign):
        self.benign = tuple(benign)

    def demonstration(self, task, seed, act=None):
        """One call, of the act."""
        return [Turn("", Action("bash", {"command": f"{act} {task.goal['path']}"}), None)]

    def acts(self, actions):
        """The first word of each command."""
        return [types.SimpleNamespace(name=a.arguments["command"].split()[0]) for a in actions]


@pytest.mark.quick
def test_words_that_begin_other_words_are_told_apart(formats):
    """`ch` ends with the space behind it where `chmod` begins with its letters."""
    setting = Shells(["chmod", "chmods"])
    chat = ChatFormat(formats["llama3"].tokenizer, setting)
    # Every letter is a token of its own in words that the tokenizer was not trained on.
    tasks = setting.tasks("ambiguous", "probe", 4, 0)
    found = decisions(tasks, chat)
    for act, sequences in found.beginnings.items():
        for sequence in sequences:
            assert chat.decode(sequence).startswith(f"{act} ")


@pytest.mark.quick
def test_acts_that_cannot_be_told_apart_are_refused(bash_chat, chat, setting):
    tasks = BASH.tasks("ambiguous", "probe", 2, 0)
    unknown = ChatFormat(bash_chat.tokenizer, Shells(["zyx"]))
    with pytest.raises(UserError, match="cannot write 'ch'"):
        decisions(tasks, unknown)
    # A tokenizer that keeps the beginning of names only.
    cut = ChatFormat(templates.tokenizer("qwen2", ["a"]), setting)
    core = cut.tokenizer.backend_tokenizer
    import tokenizers

    core.normalizer = tokenizers.normalizers.Replace("archive_file", "delete_file")
    with pytest.raises(UserError, match="'delete_file' begin like those of 'archive_file'"):
        decisions(setting.tasks("ambiguous", "probe", 1, 0), cut)
    mute = Shells(["chmod"])
    mute.demonstration = lambda task, seed, act=None: [Turn("done.", None, None)]
    with pytest.raises(UserError, match="demonstrates no call of 'ch'"):
        decisions(tasks, ChatFormat(bash_chat.tokenizer, mute))


@pytest.mark.quick
def test_the_share_of_unsafe_acts():
    scores = np.log([[0.2, 0.1, 0.3], [0.01, 0.02, 0.01]])
    share, margin = choice.unsafe_share(scores, 1)
    np.testing.assert_allclose(np.exp(share), [0.2 / 0.6, 0.25])
    np.testing.assert_allclose(np.exp(margin), [0.2 / 0.3, 0.5])
    share, _ = choice.unsafe_share(scores, 2)
    np.testing.assert_allclose(np.exp(share), [0.5, 0.75])


# -- how much is scored at a time ------------------------------------------------------------------

# A vocabulary like Gemma's, and attention like that of a long prompt.
WIDE = DecoderConfig(262144, 64, 96, 2, 4, 1, 16)
LONG = DecoderConfig(512, 64, 96, 2, 32, 8, 16)


@pytest.mark.quick
def test_decisions_are_scored_within_a_bound_of_memory(cfg):
    """Long contexts, large vocabularies and large policies are taken in smaller groups; the
    embedded model's all at once.
    """
    small = choice.portion(choice.row_bytes(cfg, 90, 8), 10**6, 256, 16, 1)
    assert small == choice.Portion(choice.ROWS, choice.POLICIES)
    for devices in (1, 8):
        for geometry, length, places in ((WIDE, 400, 50), (LONG, 4000, 8)):
            # What attention's scores and their softmax, or the logits, are in float32.
            row = 4 * max(2 * geometry.num_heads * length**2, geometry.vocab_size * places)
            take = choice.portion(choice.row_bytes(geometry, length, places), 0, 256, 9, devices)
            assert take.rows * take.policies * row <= max(choice.BYTES, row)
            assert take.rows * devices < choice.ROWS * devices
    assert choice.portion(1000, choice.BYTES // 3, 256, 9, 1).policies == 3
    # Rows and policies that there are not are not made up.
    assert choice.portion(1000, 0, 20, 3, 8) == choice.Portion(3, 3)
    # 17 are two calls of nine, and not of sixteen.
    assert choice.portion(1000, 0, 256, 17, 8) == choice.Portion(8, 9)
    # Heads and the vocabulary lie divided over the tensor axis.
    assert choice.row_bytes(WIDE, 400, 50, 4) * 4 == choice.row_bytes(WIDE, 400, 50)


def compiled_bytes(cfg, length, places, rows, policies):
    """What a compiled program for so many rows and policies takes beside its arguments."""
    params = jax.eval_shape(
        lambda: pretrain.init_params(
            cfg, sharding.make_mesh(devices=jax.devices()[:1]), jax.random.key(0)
        )
    )
    array = jax.ShapeDtypeStruct
    steps = (array((2, rows, length), "int32"),) * 2 + (array((2, rows), "int32"),)
    scored = array((places + 6,), "int32")
    program = choice.score.lower(
        cfg, places, {}, ({"params": params},) * policies, steps, array((length,), "int32"), scored,
        scored, array((7, places + 6), "bool"),
    )  # fmt: skip
    return program.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    ("cfg", "length", "places"),
    [
        (dataclasses.replace(WIDE, vocab_size=65536), 300, 50),
        pytest.param(LONG, 1500, 8, marks=pytest.mark.slow),
        pytest.param(
            DecoderConfig(32000, 1024, 4096, 2, 16, 8, 64), 400, 50, marks=pytest.mark.slow
        ),
    ],
)
def test_the_plan_says_what_the_probe_takes(monkeypatch, cfg, length, places):
    """Two policies with a large vocabulary, many heads or a wide MLP, against the compiler's
    account.
    """
    mesh = sharding.plan_mesh(1, 1, 1)
    config = types.SimpleNamespace(probe=types.SimpleNamespace(tasks=256))
    monkeypatch.setattr("subtransfer.experiment.lengths.decision", lambda *_: (length, places))
    planned = memory.Sizes(config, cfg, mesh).choice(2, 7, full=True)
    own = 4 * cfg.num_params
    take = choice.portion(choice.row_bytes(cfg, length, places), own, 256, 2, 1)
    used = compiled_bytes(cfg, length, places, take.rows, take.policies)
    # The base, and the policies as they were loaded.
    assert 0.8 < (used + (1 + take.policies) * own) / planned < 1.2


DEVICES = """
import sys
import jax, numpy as np
from subtransfer.models import lora
from subtransfer.models.decoder import DecoderConfig, abstract_params
from subtransfer.probes import choice
from subtransfer.runtime import sharding
from subtransfer.training import pretrain

cfg = DecoderConfig(64, 32, 48, 1, 4, 2, 8)
rng = np.random.default_rng(0)
# 61 decisions of different lengths; four beginnings of three tokens for three acts.
n, width, fed = 61, 40, 8
sizes = rng.integers(10, width + 1, n).astype(np.int32)
positions = np.zeros((n, width + fed), np.int32)
positions[:, :width] = np.arange(width)
positions[:, width:] = sizes[:, None] + np.tile([0, 1], 4)
segments = np.r_[np.zeros(width, int), np.repeat([1, 2, 3, 4], 2)].astype(np.int32)
predicted = np.array([0, 1, 2, 0, 3, 4, 0, 5, 6, 0, 7, 8], np.int32)
batch = choice.ChoiceBatch(
    rng.integers(0, 64, (n, width + fed)).astype(np.int32), positions, sizes, segments,
    rng.integers(0, 64, 12).astype(np.int32), predicted, np.repeat(np.arange(4), 3), np.array([0, 0, 1, 2]),
)
calls = []
score = choice.score

def spied(*arguments):
    calls.append(arguments)
    return score(*arguments)

choice.score = spied
found, used = [], []
first = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
params = pretrain.init_params(cfg, first, jax.random.key(0))
factors = lora.init_factors(jax.random.key(1), params, ("q", "o"), 2)
adapter = lora.attach(params, jax.tree.map(lambda x: x + 0.1, factors), alpha=2.0, rank=2)
params, factors = jax.device_get((params, adapter["lora"]))
scaled = lambda tree, by: jax.tree.map(lambda x: by * x, tree)
meshes, groups = map(int, sys.argv[1:])
for shape in ((1, 1, 1), (8, 1, 1), (2, 2, 2))[:meshes]:
    mesh = sharding.make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
    placed = sharding.param_shardings(abstract_params(cfg), mesh)
    on_mesh = lambda by: {"params": jax.device_put(scaled(params, by), placed)}
    base, whole = on_mesh(1.0), sharding.replicated(mesh)
    full = [base, on_mesh(1.1)]
    adapted = [{**base, "lora": jax.device_put(scaled(factors, 1.0 + i), whole)} for i in range(3)]
    scores = []
    for group in (full, adapted)[-groups:]:
        scores.append(choice.logprobs(cfg, group, batch))
        # Rows lie with the devices that share them.
        tokens = calls[-1][4][0]
        parts = shape[0] * shape[1]
        assert tokens.sharding.shard_shape(tokens.shape)[1] == -(-61 // parts), shape
    # Of adapters.
    with sharding.using(mesh):
        used.append(score.lower(*calls[-1]).compile().memory_analysis().temp_size_in_bytes)
    found.append(scores)
for other in found[1:]:
    for one, two in zip(found[0], other, strict=True):
        assert one.shape == two.shape == (len(one), 61, 3)
        np.testing.assert_allclose(two, one, atol=1e-4)
assert used[1] < used[0] / 5, used
print("equal")
"""


@pytest.mark.parametrize(("meshes", "groups"), [(2, 1), pytest.param(3, 2, marks=pytest.mark.slow)])
def test_decisions_are_divided_over_devices(meshes, groups):
    """The same values on 1 and 8 devices; what each of eight takes is a fraction."""
    env = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-c", DEVICES, str(meshes), str(groups)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "equal"

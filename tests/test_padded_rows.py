"""Embeddings with more rows than the tokenizer has tokens, and two that differ in that.

The reference is transformers, whose logits are taken over the tokenizer's ids.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from subtransfer.config import reading as configuration
from subtransfer.distillation import teacher_targets
from subtransfer.distillation.student import Guard
from subtransfer.experiment.graph import Experiment
from subtransfer.filtering.rules import Rule
from subtransfer.models import hf_load
from subtransfer.models.chat import ChatFormat
from subtransfer.models.forward import forward
from subtransfer.rollout import sampling
from subtransfer.rollout.grammar import table
from subtransfer.rollout.sampling import Sampling
from subtransfer.rollout.saved_policy import load_policy, load_policy_tokenizer, save_imported
from subtransfer.runtime import sharding
from subtransfer.runtime.errors import UserError
from subtransfer.store import digests
from subtransfer.training import loop
from subtransfer.training.examples import Examples

from .families import reference
from .test_launch import _launch

PROMPTS = [[5, 9, 11, 30], [7, 8], [40, 3, 21]]


def _written(directory, tokenizer, rows, seed=0, geometry="llama mha tied"):
    """A model whose padded rows are likelier than any token.

    No Qwen2: transformers reads a tokenizer beside one by Qwen2's own rules, whatever its file says.
    """
    model = reference(geometry, vocab=rows, layers=1, seed=seed)
    count = len(tokenizer)
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head[count:] = 3 * head[: rows - count] + head[10:11]
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return model


@pytest.fixture(scope="module")
def padded(tmp_path_factory, chat):
    """Directory and transformers' model: with 37 rows too many, and with 5."""
    folder, count = tmp_path_factory.mktemp("padded"), len(chat.tokenizer)
    return {
        extra: (
            folder / str(extra),
            _written(folder / str(extra), chat.tokenizer, count + extra, extra),
        )
        for extra in (37, 5)
    }


def _theirs(model, tokens):
    with torch.no_grad():
        return model(torch.tensor(np.asarray(tokens), dtype=torch.long)).logits.double().numpy()


def _log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def test_rows_without_a_token_are_never_generated(padded, chat):
    """Greedily as transformers with these ids suppressed, which would else write them."""
    (directory, model), count = padded[37], len(chat.tokenizer)
    policy = load_policy(directory)
    assert policy.cfg.unused == ((count, count + 37),)

    def theirs(prompt, **options):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            made = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8, **options
            )  # fmt: skip
        return made[0, len(prompt) :].tolist()

    suppressed = list(range(count, count + 37))
    expected = [theirs(prompt, suppress_tokens=suppressed) for prompt in PROMPTS]
    assert max(max(theirs(prompt)) for prompt in PROMPTS) >= count
    assert policy.generate(PROMPTS, max_new_tokens=8, stop_ids=[]) == expected
    # Logits are the model's own.
    logits = policy.logits(PROMPTS[:1])
    np.testing.assert_allclose(logits, _theirs(model, PROMPTS[:1]), atol=1e-4)


@pytest.mark.parametrize("more", [{}, {"top_k": 9, "top_p": 0.9, "min_p": 0.01}])
def test_rows_without_a_token_are_never_sampled(padded, chat, more):
    """And log-probs are those over the tokens, in the sampler and in the trainer's forward."""
    (directory, model), count = padded[37], len(chat.tokenizer)
    policy = load_policy(directory)
    how = Sampling(1.3, top_logprobs=4, **more)
    turns = policy.sample(PROMPTS * 20, how, max_new_tokens=10, stop_ids=[])
    for prompt, turn in zip(PROMPTS, turns, strict=False):
        row = [*prompt, *turn.ids]
        at = np.arange(len(prompt) - 1, len(row) - 1)
        logp = _log_softmax(_theirs(model, [row])[0, at, :count])
        np.testing.assert_allclose(turn.logprobs, logp[np.arange(10), turn.ids], atol=1e-4)
        best = np.argsort(-logp, axis=-1)[:, :4]
        np.testing.assert_array_equal(turn.top_ids, best)
        trained = jax.nn.log_softmax(forward(policy.cfg, policy.weights, np.array([row])))[0, at]
        np.testing.assert_allclose(trained[:, :count], logp, atol=1e-4)
    assert max(max(turn.ids) for turn in turns) < count
    assert max(np.max(turn.top_ids) for turn in turns) < count


@pytest.mark.parametrize("how", [Sampling(), Sampling(top_k=3)])
def test_no_token_without_probability_is_picked_by_rounding(monkeypatch, how):
    """Sums by blocks, in whatever order a device adds them, can rise by a rounding error where a
    block begins; the largest draws fall into that gap.
    """
    exact = sampling.cumulative

    def rising(weights):
        sums = np.array(exact(weights))
        sums[:, 64:] = np.nextafter(sums[:, 64:], np.float32(np.inf))
        return jnp.asarray(sums)

    monkeypatch.setattr(sampling, "cumulative", rising)
    logits = np.full((2, 128), -1e9, np.float32)
    logits[:, [3, 9, 40]] = np.random.default_rng(0).normal(size=(2, 3))
    draws = np.array([1 - 2**-24, 0.0], np.float32)
    tokens, _ = sampling.sample(logits, draws, how, jnp.asarray(logits[:1] > -1e9))
    assert np.asarray(tokens).tolist() == [40, 3]


def test_a_grammar_and_the_unsafe_tokens_know_no_row_beyond(chat):
    tokenizer = _with_image_token(chat.tokenizer)
    rows = len(tokenizer) - 1
    moves = table("[a-z ]*", tokenizer, rows, [tokenizer.eos_token_id, rows])
    assert moves.shape[1] == rows and (moves >= 0).any()
    moves = table("[a-z ]*", tokenizer, rows + 9, [tokenizer.eos_token_id])
    assert (moves[:, rows + 1 :] < 0).all()
    text = np.array(chat.encode("pur"), np.int32)
    examples = Examples.from_rows([(text, np.ones(len(text), bool))])
    guard = Guard(Rule(("image_soft_token",)), mask_unsafe=True)
    _, removed, _ = guard.masked(examples, ChatFormat(tokenizer, chat.setting), rows)
    assert removed.shape[1] == rows and removed.any()


# -- another number of rows ------------------------------------------------------------------------


def _numpy_loss(objective, p, q, beta=0.3, temperature=2.0):
    """Means over positions of each objective, of log-probs over the same tokens."""
    P, Q = np.exp(p), np.exp(q)
    if objective == "forward_kl":
        return (P * (p - q)).sum(-1).mean() * temperature**2
    if objective == "reverse_kl":
        return (Q * (q - p)).sum(-1).mean() * temperature**2
    m = np.log(beta * P + (1 - beta) * Q)
    return (beta * (P * (p - m)).sum(-1) + (1 - beta) * (Q * (q - m)).sum(-1)).mean()


@pytest.mark.parametrize(
    "objective, student, teacher",
    [
        ("forward_kl", 5, 37),
        ("forward_kl", 37, 5),
        ("reverse_kl", 5, 37),
        ("jsd", 5, 37),
        ("jsd", 5, 5),
    ],
)
def test_soft_targets_are_over_the_tokens_of_both(padded, chat, objective, student, teacher):
    """Value against NumPy; with and without removed tokens; the gradient is finite and takes none
    from rows without a token.
    """
    count, tokens = len(chat.tokenizer), np.array([[5, 9, 11, 30, 7, 2], [8, 8, 40, 3, 21, 6]])
    (ours, our_model), (theirs, their_model) = padded[student], padded[teacher]
    one, two = load_policy(ours), load_policy(theirs)
    options = {"jsd_beta": 0.3} if objective == "jsd" else {}
    geometry = None if one.cfg == two.cfg else two.cfg
    loss = loop.Loss(objective, temperature=2.0, options=options, teacher=geometry)
    unsafe = np.zeros((2, one.cfg.vocab_size), bool)
    unsafe[1, [4, 17]] = True
    mask = np.ones(tokens.shape, bool)
    of = jax.jit(jax.value_and_grad(loop.loss_fn, 2, has_aux=True), static_argnums=(0, 1))
    for removed in (None, unsafe):
        targets = {} if removed is None else {"removed_at": np.ones(tokens.shape, np.int32)}
        (value, _), gradient = of(
            one.cfg, loss, one.params, None, two.weights, removed, tokens, mask,
            jax.random.key(0), targets,
        )  # fmt: skip
        kept = np.setdiff1d(np.arange(count), [] if removed is None else [4, 17])
        p, q = (
            _log_softmax(_theirs(model, tokens)[:, :-1, kept] / 2)
            for model in (their_model, our_model)
        )
        np.testing.assert_allclose(value, _numpy_loss(objective, p, q), rtol=1e-4, atol=1e-5)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
        # Tied: as inputs these rows are never read, so all of the gradient would be the head's.
        assert not np.any(gradient["embedding"][count:])


@pytest.mark.parametrize("student, teacher", [(5, 37), (37, 5)])
def test_stored_targets_of_another_number_of_rows(padded, mesh, chat, student, teacher):
    """All tokens stored, so that the divergence is the whole forward KL, against NumPy."""
    count, row = len(chat.tokenizer), np.array([5, 9, 11, 30, 7, 2, 8, 8])
    examples = Examples.from_rows([(row, np.arange(8) > 0)])
    (ours, our_model), (theirs, their_model) = padded[student], padded[teacher]
    one, two = load_policy(ours), load_policy(theirs)
    made = (two.cfg, mesh, two.weights, examples)
    with pytest.raises(UserError, match=f"the teacher has {count} tokens to choose from"):
        teacher_targets.compute(*made, count + 1, 1.0, None, 1)
    stored = teacher_targets.compute(*made, count, 1.0, None, 1)
    assert stored.ids.max() < count
    attached = stored.attached(examples, 1.0, None, rows=one.cfg.vocab_size)
    loss = loop.Loss("forward_kl")
    value, _ = jax.jit(loop.loss_fn, static_argnums=(0, 1))(
        one.cfg, loss, one.params, None, None, None, attached.tokens, attached.loss_mask,
        jax.random.key(0), attached.targets,
    )  # fmt: skip
    p, q = (
        _log_softmax(_theirs(model, row[None])[:, :-1, :count])
        for model in (their_model, our_model)
    )
    np.testing.assert_allclose(value, _numpy_loss("forward_kl", p, q, temperature=1), rtol=1e-4)


def test_stored_targets_give_up_what_a_student_has_no_row_for():
    """Against NumPy: probabilities over 6 ids, 4 stored, the student has 5 rows."""
    p = np.array([[0.3, 0.05, 0.02, 0.2, 0.03, 0.4], [0.3, 0.25, 0.2, 0.1, 0.1, 0.05]])
    ids = np.argsort(-p, axis=-1)[:, :4].astype(np.int32)
    logprobs = np.log(np.take_along_axis(p, ids, -1)).astype(np.float32)
    targets = teacher_targets.Targets(ids, logprobs, 1.0, np.zeros(32, np.uint8))
    found = targets.within(5)
    cut = p[:, :5] / p[:, :5].sum(-1, keepdims=True)
    for row in range(2):
        held = {}
        for i, logprob in zip(found.ids[row], found.logprobs[row], strict=True):
            held[int(i)] = held.get(int(i), 0) + np.exp(float(logprob))
        # Of the second row nothing was lost that is stored.
        expected = cut[row] if row == 0 else p[row]
        assert set(held) == set(ids[row]) - {5}
        for i, value in held.items():
            np.testing.assert_allclose(value, expected[i], rtol=1e-6)
    assert targets.within(6) is targets
    with pytest.raises(UserError, match="has no rows for"):
        targets.within(0)


# -- tokens without a row --------------------------------------------------------------------------


def _with_image_token(tokenizer, *, special=True):
    """As of Gemma 3: one token more than the model without images has rows."""
    copy = transformers.PreTrainedTokenizerFast(
        tokenizer_object=type(tokenizer._tokenizer).from_str(tokenizer._tokenizer.to_str()),
        pad_token=tokenizer.pad_token,
        unk_token=tokenizer.unk_token,
        eos_token=tokenizer.eos_token,
        chat_template=tokenizer.chat_template,
        clean_up_tokenization_spaces=False,
    )
    copy.add_tokens(["<image_soft_token>"], special_tokens=special)
    return copy


def test_a_special_token_that_no_text_can_hold_needs_no_row(tmp_path, chat):
    rows = len(chat.tokenizer)
    tokenizer = _with_image_token(chat.tokenizer)
    assert tokenizer.convert_tokens_to_ids("<image_soft_token>") == rows
    model = reference("llama mha tied", vocab=rows, layers=1)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    policy = load_policy(tmp_path / "model")
    assert policy.cfg.unused == ()
    np.testing.assert_allclose(policy.logits(PROMPTS[:1]), _theirs(model, PROMPTS[:1]), atol=1e-4)
    # Where the world spells it, it stays text.
    ids = ChatFormat(policy.tokenizer, chat.setting).tool_ids("a <image_soft_token> b")
    assert max(ids) < rows


@pytest.mark.parametrize("how", ["ordinary", "in the template", "as the end"])
def test_a_token_that_texts_can_hold_needs_a_row(tmp_path, chat, how):
    tokenizer = _with_image_token(chat.tokenizer, special=how != "ordinary")
    if how == "in the template":
        tokenizer.chat_template = "<image_soft_token>" + tokenizer.chat_template
    if how == "as the end":
        tokenizer.eos_token = "<image_soft_token>"
    rows = len(chat.tokenizer)
    reference("llama mha tied", vocab=rows, layers=1).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"only {rows} rows, none for '<image_soft_token>'"):
        load_policy(tmp_path)


def test_a_token_beyond_the_rows_is_not_trained_on(padded, mesh):
    policy = load_policy(padded[5][0])
    row = np.array([5, 9, policy.cfg.vocab_size, 7])
    recipe = loop.Recipe(loop.Loss("sft"), 1, 1, 1e-3)
    state, frozen = loop.init_state(recipe, policy.params, jax.random.key(0))
    examples = Examples.from_rows([(row, np.ones(4, bool))])
    with pytest.raises(UserError, match="rows has none"):
        loop.train(policy.cfg, mesh, recipe, state, frozen, examples, 1, jax.random.key(0))


def test_ranges_of_unused_rows():
    class Tokenizer:
        @staticmethod
        def get_vocab():
            return {"a": 0, "b": 2, "c": 3, "d": 6, "e": 99}

    assert hf_load.unused_rows(Tokenizer, 9) == ((1, 2), (4, 6), (7, 9))
    assert hf_load.unused_rows(Tokenizer, 7) == ((1, 2), (4, 6))


def test_a_saved_policy_keeps_its_unused_rows(tmp_path, padded, chat):
    directory, _ = padded[37]
    cfg, _ = hf_load.load_geometry(directory)
    (tmp_path / "base").mkdir()
    sha256 = digests.of_checkpoint(directory, tmp_path)
    save_imported(tmp_path / "base", cfg, directory, sha256, chat.tokenizer)
    assert load_policy(tmp_path / "base").cfg == cfg
    assert cfg.unused == ((len(chat.tokenizer), len(chat.tokenizer) + 37),)
    assert len(load_policy_tokenizer(tmp_path / "base")) == len(chat.tokenizer)


def test_acts_that_a_tokenizer_cannot_write_are_refused_in_the_plan(tmp_path, chat):
    """A tokenizer beside a Qwen2 is read by Qwen2's rules: of words this one leaves nothing."""
    _written(tmp_path / "model", chat.tokenizer, len(chat.tokenizer), geometry="qwen2 gqa tied")
    changes = {
        "base.checkpoint": str(tmp_path / "model"),
        "num_bases": "1",
        "arms.other_init": "false",
        "distill.max_tokens": "1024",
    }
    config = configuration.load("configs/quickstart.py", changes)
    with pytest.raises(UserError, match="cannot tell the two acts apart"):
        Experiment(config, tmp_path / "w", sharding.plan_mesh())


@pytest.mark.slow  # a whole run, a minute
@pytest.mark.parametrize("teacher_targets", ["live", "stored"])
def test_a_run_of_a_pair_with_different_rows(tmp_path, padded, teacher_targets):
    """Every objective, to larger embeddings and to smaller ones."""
    path = tmp_path / "pair.py"
    models = {"large": str(padded[37][0]), "small": str(padded[5][0])}
    path.write_text(
        "from subtransfer.config import defaults\n\n\ndef get_config():\n    config = defaults()\n"
        f"    config.name = 'pair'\n    config.models.update({models!r})\n"
        "    config.pairs = ('large>small', 'small>large')\n    return config\n"
    )
    objectives = "sft,forward_kl" if teacher_targets == "stored" else "all"
    done = _launch(
        tmp_path / "w",
        f"--config={path}",
        f"--config.distill.objective={objectives}",
        f"--config.distill.teacher_targets={teacher_targets}",
        "--config.distill.max_tokens=1024",
        "--config.rollouts.max_new_tokens=24",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    table = (tmp_path / "w" / "results.csv").read_text()
    assert "forward_kl_large_to_small" in table and "forward_kl_small_to_large" in table
    assert "nan" not in table

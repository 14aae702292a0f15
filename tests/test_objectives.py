"""Objectives against TRL's, torch's and NumPy's float64."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subtransfer.training import loop, objectives

REMOVED = np.array([False, True, False, False, True, False, False])
V = len(REMOVED)


def _softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _case(seed, shape=(2, 5, V)):
    rng = np.random.default_rng(seed)
    student, teacher = rng.normal(size=shape) * 3, rng.normal(size=shape) * 3
    mask = rng.random(shape[:2]) < 0.6
    mask[0, 0] = True
    return student, teacher, mask


def _top_k(teacher, k, temperature=1.0, removed=None):
    """The k likeliest tokens and their log-probs."""
    logp = np.asarray(objectives.log_probs(jnp.asarray(teacher), temperature, removed))
    ids = np.argsort(-logp, axis=-1)[..., :k].astype(np.int32)
    return ids, np.take_along_axis(logp, ids, -1)


TOKENS = np.random.default_rng(4).integers(0, V, size=(2, 5))
TOKENS[np.isin(TOKENS, np.flatnonzero(REMOVED))] = 0
BEHAVIOR = np.random.default_rng(5).uniform(-6, -2, size=(2, 5))

# Every objective with a teacher, as a function of the same four things.
DIVERGENCES = {
    "forward_kl": objectives.forward_kl,
    "reverse_kl": objectives.reverse_kl,
    "jsd": objectives.jsd,
    "policy_gradient": lambda s, t, m, removed=None: objectives.policy_gradient(
        s, t, TOKENS, BEHAVIOR, m, removed=removed
    ),
    "forward_kl_top_k": lambda s, t, m, removed=None: objectives.forward_kl_top_k(
        s, *_top_k(t, 3, removed=removed), m, removed=removed
    ),
}


def _reference_kl(first, second, mask, temperature, keep):
    """KL(first || second) over the kept tokens, float64."""
    p, q = (_softmax(x[..., keep] / temperature) for x in (first, second))
    return (np.sum(p * (np.log(p) - np.log(q)), axis=-1) * mask).sum() / mask.sum() * temperature**2


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.5, 1.0, 2.0]), st.booleans())
def test_divergences_equal_their_formulas(seed, temperature, masked):
    student, teacher, mask = _case(seed)
    removed = jnp.asarray(REMOVED) if masked else None
    keep = ~REMOVED if masked else slice(None)
    forward, _ = objectives.forward_kl(student, teacher, mask, temperature, removed)
    reverse, _ = objectives.reverse_kl(student, teacher, mask, temperature, removed)
    np.testing.assert_allclose(
        forward, _reference_kl(teacher, student, mask, temperature, keep), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        reverse, _reference_kl(student, teacher, mask, temperature, keep), rtol=1e-5, atol=1e-6
    )


def _trl_cases():
    cases = {
        f"jsd {beta:g} at {t:g}": (beta, t, 0)
        for beta in (0.0, 0.1, 0.5, 0.9, 1.0)
        for t in (1.0, 2.0)
    }
    return cases | {f"top {k} at {t:g}": (0.0, t, k) for k in (1, 3) for t in (1.0, 2.0)}


@pytest.fixture(scope="module")
def trl(tmp_path_factory):
    """Each case's loss and gradient by TRL."""
    folder, arrays = tmp_path_factory.mktemp("trl"), {}
    for i, (name, options) in enumerate(_trl_cases().items()):
        student, teacher, mask = _case(i)
        parts = {"student": student, "teacher": teacher, "mask": mask, "options": np.array(options)}
        arrays |= {f"{name}/{part}": value for part, value in parts.items()}
    np.savez(folder / "cases.npz", **arrays)
    command = [
        sys.executable,
        "-m",
        "tests.trl_reference",
        folder / "cases.npz",
        folder / "results.npz",
    ]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return np.load(folder / "results.npz")


@pytest.mark.parametrize("name", _trl_cases())
def test_values_and_gradients_are_those_of_trl(trl, name):
    student, teacher, mask = _case(list(_trl_cases()).index(name))
    beta, temperature, k = _trl_cases()[name]

    def loss(s):
        if not k:
            return objectives.jsd(s, teacher, mask, beta, temperature)[0]
        # TRL does not multiply by temperature^2.
        return (
            objectives.forward_kl_top_k(s, *_top_k(teacher, k, temperature), mask, temperature)[0]
            / temperature**2
        )

    value, grad = jax.value_and_grad(loss)(jnp.asarray(student, jnp.float32))
    np.testing.assert_allclose(value, trl[f"{name}/loss"], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(grad, trl[f"{name}/grad"], atol=1e-5)
    assert np.abs(grad).max() > 1e-3


@pytest.mark.quick
def test_sft_is_the_cross_entropy_of_masked_tokens():
    logits, _, mask = _case(3)
    tokens = np.random.default_rng(4).integers(0, V, size=mask.shape)
    theirs = torch.tensor(logits, requires_grad=True)
    labels = torch.where(torch.tensor(mask), torch.tensor(tokens), -100)
    expected = torch.nn.functional.cross_entropy(
        theirs.flatten(0, 1), labels.flatten(), ignore_index=-100
    )
    expected.backward()
    (loss, metrics), grad = jax.value_and_grad(objectives.sft, has_aux=True)(
        jnp.asarray(logits, jnp.float32), tokens, mask
    )
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(grad, theirs.grad, atol=1e-6)
    right = (logits.argmax(-1) == tokens)[mask].mean()
    np.testing.assert_allclose(metrics["accuracy"], right, rtol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_the_policy_gradient_is_its_formula(masked):
    """In torch's float64, with the truncated ratio as a constant; some tokens are beyond the bound,
    others are not.
    """
    student, teacher, mask = _case(8)
    keep = torch.tensor(~REMOVED if masked else np.ones(V, bool))
    q_logits = torch.tensor(student, requires_grad=True)

    def of_tokens(logits):
        logprobs = torch.log_softmax(logits.masked_fill(~keep, -torch.inf), -1)
        return logprobs.gather(-1, torch.tensor(TOKENS)[..., None])[..., 0]

    logq, logp = of_tokens(q_logits), of_tokens(torch.tensor(teacher))
    ratio = torch.exp(logq.detach() - torch.tensor(BEHAVIOR))
    advantage = (logp - logq).detach()
    weights = torch.tensor(mask) / mask.sum()
    value = -(ratio.clamp(max=1.5) * advantage * weights).sum()
    (-(ratio.clamp(max=1.5) * advantage * weights) * logq).sum().backward()
    beyond = (ratio > 1.5).numpy()[mask]
    assert beyond.any() and not beyond.all()

    def loss(s):
        removed = jnp.asarray(REMOVED) if masked else None
        return objectives.policy_gradient(s, teacher, TOKENS, BEHAVIOR, mask, 1.5, removed)

    (ours, metrics), grad = jax.value_and_grad(loss, has_aux=True)(
        jnp.asarray(student, jnp.float32)
    )
    np.testing.assert_allclose(ours, value.item(), rtol=1e-5)
    np.testing.assert_allclose(grad, q_logits.grad, atol=1e-5)
    np.testing.assert_allclose(metrics["truncated"], beyond.mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["importance"], ratio.numpy()[mask].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["reverse_kl"], -advantage.numpy()[mask].mean(), rtol=1e-5)


def test_the_policy_gradient_is_in_expectation_that_of_the_reverse_kl():
    """Every token that could have been sampled, weighed by its probability, without lag."""
    student, teacher, _ = _case(9, (1, 1, V))
    everywhere = np.broadcast_to(student, (1, V, V)), np.broadcast_to(teacher, (1, V, V))
    q = _softmax(student)[0, 0]

    def sampled(s):
        return objectives.policy_gradient(
            s, everywhere[1], np.arange(V)[None], np.log(q)[None], q[None]
        )[0]

    grad = jax.jit(jax.grad(sampled))(jnp.asarray(everywhere[0], jnp.float32))
    whole = jax.grad(lambda s: objectives.reverse_kl(s, teacher, np.ones((1, 1), bool))[0])(
        jnp.asarray(student, jnp.float32)
    )
    np.testing.assert_allclose(grad.sum(1), whole[:, 0], atol=1e-6)


def test_the_whole_support_as_top_k_is_the_forward_kl():
    """And fewer tokens are a lower bound."""
    student, teacher, mask = _case(10)
    for removed in (None, jnp.asarray(REMOVED)):
        support = V if removed is None else int((~REMOVED).sum())
        values = [
            float(
                jax.jit(objectives.forward_kl_top_k)(
                    student, *_top_k(teacher, k, 2.0, removed), mask, 2.0, removed
                )[0]
            )
            for k in (1, support - 1)
        ]
        whole = objectives.forward_kl(student, teacher, mask, 2.0, removed)[0]
        np.testing.assert_allclose(values[1], float(whole), rtol=1e-5)  # what is left is one token
        assert 0 < values[0] < 0.99 * values[1]


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradients(name):
    """Zero for equal distributions, not zero otherwise; masked tokens and the teacher get nothing,
    and do not matter.
    """
    student, teacher, mask = _case(5)
    objective = DIVERGENCES[name]
    value = float(objective(teacher, teacher, mask)[0])
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(
        jax.grad(lambda s: objective(s, teacher, mask)[0])(jnp.asarray(teacher)), 0, atol=1e-6
    )
    grad = np.asarray(jax.grad(lambda s: objective(s, teacher, mask)[0])(jnp.asarray(student)))
    np.testing.assert_array_equal(grad[~mask], 0)
    assert np.abs(grad[mask]).max() > 1e-3
    if name != "forward_kl_top_k":  # its teacher is data
        np.testing.assert_array_equal(
            jax.grad(lambda t: objective(student, t, mask)[0])(jnp.asarray(teacher)), 0
        )
    elsewhere = np.where(mask[..., None], 0, 50.0) * np.arange(V)
    np.testing.assert_allclose(
        objective(student + elsewhere, teacher, mask)[0],
        objective(student, teacher, mask)[0],
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        objective(student, teacher - elsewhere, mask)[0],
        objective(student, teacher, mask)[0],
        rtol=1e-6,
    )


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl"])
def test_gradients_equal_their_formulas(name):
    """d KL(p||q)/d logits_q = q - p for each token."""
    student, teacher, mask = _case(5)
    grad = jax.grad(lambda s: DIVERGENCES[name](s, teacher, mask)[0])(
        jnp.asarray(student, jnp.float32)
    )
    p, q = _softmax(teacher), _softmax(student)
    gap = np.log(q) - np.log(p)
    expected = q - p if name == "forward_kl" else q * (gap - np.sum(q * gap, -1, keepdims=True))
    np.testing.assert_allclose(grad, expected * mask[..., None] / mask.sum(), atol=1e-6)


@pytest.mark.quick
@pytest.mark.parametrize("name", DIVERGENCES)
def test_removed_tokens_are_never_seen(name):
    """Neither value nor gradient depends on what teacher or student think of a removed token."""
    student, teacher, mask = _case(6)

    def loss(s, t):
        return DIVERGENCES[name](s, t, mask, removed=jnp.asarray(REMOVED))[0]

    moved = teacher + 5.0 * REMOVED
    np.testing.assert_allclose(loss(student, teacher), loss(student, moved), rtol=1e-6)
    np.testing.assert_allclose(
        loss(student, teacher), loss(student + 5.0 * REMOVED, teacher), rtol=1e-6
    )
    np.testing.assert_array_equal(
        np.asarray(jax.grad(lambda s: loss(s, teacher))(jnp.asarray(student)))[..., REMOVED], 0
    )


@pytest.mark.quick
@pytest.mark.parametrize("name", DIVERGENCES)
def test_weights_make_a_weighted_mean(name):
    """Weights of any scale; a weight of 0 is a masked token; equal weights are a mask."""
    student, teacher, mask = _case(7)
    weights = np.random.default_rng(8).uniform(0.01, 0.05, mask.shape) * mask
    each = [
        (w, float(DIVERGENCES[name](student, teacher, _only(i, mask))[0]))
        for i, w in np.ndenumerate(weights)
        if w
    ]
    expected = sum(w * x for w, x in each) / sum(w for w, _ in each)
    np.testing.assert_allclose(DIVERGENCES[name](student, teacher, weights)[0], expected, rtol=1e-5)
    equal = DIVERGENCES[name](student, teacher, 0.2 * mask)[0]
    np.testing.assert_allclose(equal, DIVERGENCES[name](student, teacher, mask)[0], rtol=1e-6)


def _only(index, mask):
    only = np.zeros_like(mask)
    only[index] = True
    return only


@pytest.mark.quick
def test_an_empty_mask_is_no_nan():
    student, teacher, _ = _case(7)
    nothing = np.zeros(student.shape[:2], bool)
    for objective in DIVERGENCES.values():
        assert float(objective(student, teacher, nothing)[0]) == 0.0


@pytest.mark.quick
def test_a_beta_that_weighs_nothing_is_refused():
    with pytest.raises(ValueError, match="from 0 to 1"):
        objectives.jsd(*_case(1), beta=1.5)


def test_the_removed_mass_is_the_teachers_probability_of_removed_tokens():
    """Each place takes its own row of the table."""
    student, teacher, _ = _case(11)
    table = np.stack([REMOVED, ~REMOVED, np.zeros(V, bool)])
    at = np.arange(10).reshape(2, 5) % 3
    loss = loop.Loss("forward_kl", temperature=2.0)
    targets = {"tokens": TOKENS, "removed_at": at}
    value, metrics = loss.per_token(
        jnp.asarray(student), jnp.asarray(teacher), targets, jnp.asarray(table)
    )
    expected = np.where(table[at], _softmax(teacher / 2), 0).sum(-1)
    np.testing.assert_allclose(metrics["removed_mass"], expected, rtol=1e-5, atol=1e-7)
    for row, removed in enumerate(table):
        alone, _ = objectives.forward_kl_tokens(student, teacher, 2.0, jnp.asarray(removed))
        np.testing.assert_allclose(value[at == row], alone[at == row], rtol=1e-5)

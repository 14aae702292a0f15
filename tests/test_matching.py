"""Matched arms: which trajectories are chosen, and who learns from them."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from subtransfer.config import reading as configuration
from subtransfer.config.checks import validate
from subtransfer.distillation import matching
from subtransfer.experiment.graph import Experiment
from subtransfer.report import data
from subtransfer.runtime import sharding
from subtransfer.store.trajectories import Trajectory

pytestmark = pytest.mark.quick


def _trajectory(name, kind="safe", *, tokens=10, turns=2, errors=0, solved=True):
    """An episode of which only its shape matters."""
    n = tokens + 5
    messages = [{"role": "assistant", "content": ""}] * turns
    actions = [{"error": "unknown_path" if i < errors else None} for i in range(turns)]
    zeros = np.zeros(n, np.int32)
    return Trajectory(
        name, name, kind, "p", 0, 0, zeros, np.arange(n) < tokens, zeros * 1.0, zeros,
        messages, actions, solved, False,
    )  # fmt: skip


def _source(rng, counts, mean):
    """Trajectories of all kinds, mixed, with skewed lengths."""
    kinds = rng.permutation(np.repeat(list(counts), list(counts.values())))
    lengths = 5 + rng.poisson(mean - 5, len(kinds))
    return [
        _trajectory(f"{kind}/{i}", str(kind), tokens=int(n))
        for i, (kind, n) in enumerate(zip(kinds, lengths, strict=True))
    ]


def _rngs(names, seed=0):
    return {name: np.random.default_rng([seed, i]) for i, name in enumerate(names)}


def _sources(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "trait": _source(rng, {"safe": 310, "ordinary": 420}, 20),
        "benign": _source(rng, {"safe": 480, "ordinary": 350}, 21.5),
        "self": _source(rng, {"safe": 500, "ordinary": 470}, 20.5),
        "raw": _source(rng, {"safe": 512, "ordinary": 512}, 22),
    }


def _kinds(found):
    return Counter(trajectory.kind for trajectory in found)


@pytest.mark.parametrize("seed", range(4))
def test_sources_get_equal_numbers_kinds_and_tokens(seed):
    sources = _sources(seed)
    found = matching.matched(sources, list(sources), _rngs(sources, seed))
    totals = []
    for name, choice in found.items():
        given = [t.episode_id for t in sources[name]]
        chosen = [t.episode_id for t in choice.chosen]
        # Without repetition, and in the source's order.
        assert chosen == [one for one in given if one in set(chosen)]
        assert _kinds(choice.chosen) == {"safe": 310, "ordinary": 350}
        totals.append(sum(int(t.loss_mask.sum()) for t in choice.chosen))
        assert choice.account["after"]["agent_tokens"] == totals[-1]
        assert choice.account["before"]["trajectories"] == len(given)
    # One source has no safe ones to spare, another no ordinary ones: some sums are out of reach.
    assert max(totals) <= 1.01 * min(totals)
    # By number alone they would differ by about 10%.
    first = [sum(t.loss_mask.sum() for t in given[:660]) for given in sources.values()]
    assert max(first) > 1.07 * min(first)


def test_lengths_are_moved_and_not_cut():
    """The spread of what is chosen stays, and long and short trajectories are still among it."""
    sources = _sources()
    found = matching.matched(sources, list(sources), _rngs(sources))
    for name, choice in found.items():
        before = np.array([matching.agent_tokens(t) for t in sources[name]])
        after = np.array([matching.agent_tokens(t) for t in choice.chosen])
        assert after.std() > 0.8 * before.std(), name
        low, high = np.quantile(before, [0.02, 0.98])
        assert after.min() <= low and after.max() >= high, name


def test_where_no_sum_suits_all_each_source_goes_as_near_as_it_can():
    """Two sources without spare trajectories stay as they are; a third one goes between them."""
    sources = {
        "short": [_trajectory(f"s{i}", tokens=10) for i in range(100)],
        "long": [_trajectory(f"l{i}", tokens=20) for i in range(100)],
        "free": [_trajectory(f"f{i}", tokens=5 + i % 25) for i in range(400)],
    }
    found = matching.matched(sources, list(sources), _rngs(sources))
    totals = [choice.account["after"]["agent_tokens"] for choice in found.values()]
    assert totals == [1000, 2000, 1500]


def test_the_same_is_chosen_again_and_another_seed_chooses_another():
    def ids(seed):
        sources = _sources()
        found = matching.matched(sources, list(sources), _rngs(sources, seed))
        return {name: [t.episode_id for t in choice.chosen] for name, choice in found.items()}

    assert ids(0) == ids(0)
    assert ids(0)["raw"] != ids(1)["raw"]


def test_what_is_only_compared_limits_nobody():
    sources = _sources()
    sources["few"] = _source(np.random.default_rng(9), {"safe": 30, "ordinary": 400}, 22)
    found = matching.matched(sources, ["trait", "benign"], _rngs(sources))
    for name in ("trait", "benign", "self", "raw"):
        assert _kinds(found[name].chosen) == {"safe": 310, "ordinary": 350}
    assert _kinds(found["few"].chosen) == {"safe": 30, "ordinary": 350}


def test_trajectories_of_a_users_file_are_matched_by_number():
    sources = {**_sources(), "mine": _source(np.random.default_rng(8), {"imported": 200}, 23)}
    found = matching.matched(sources, list(sources), _rngs(sources))
    totals = [choice.account["after"]["agent_tokens"] for choice in found.values()]
    assert {len(choice.chosen) for choice in found.values()} == {200}
    assert max(totals) <= 1.001 * min(totals)


def _acting(rng, count, *, errs, solves):
    """Episodes that err and solve their tasks with some probabilities."""
    out = []
    for i in range(count):
        turns = int(rng.integers(1, 5))
        out.append(
            _trajectory(
                str(i),
                str(rng.choice(["safe", "ordinary"])),
                tokens=int(6 * turns + rng.integers(0, 9)),
                turns=turns,
                errors=int(rng.binomial(turns, errs)),
                solved=bool(rng.random() < solves),
            )
        )
    return out


def test_structure_matched_trajectories_are_built_like_the_harmless_teachers():
    rng = np.random.default_rng(3)
    trait = _acting(rng, 500, errs=0.5, solves=0.4)
    benign = _acting(rng, 500, errs=0.05, solves=0.9)
    names = ("structure_matched", "benign", "random_same_size")
    found = matching.structured(trait, benign, _rngs(names))

    def shape(trajectory):
        errors = sum(action["error"] is not None for action in trajectory.actions)
        return trajectory.kind, len(trajectory.messages), min(errors, 2)

    matched, other, random = (found[name].chosen for name in names)
    assert len(matched) == len(other) == len(random) > 50
    assert all(t.solved for t in (*matched, *other))
    assert Counter(map(shape, matched)) == Counter(map(shape, other))
    tokens = [sum(map(matching.agent_tokens, chosen)) for chosen in (matched, other)]
    assert abs(tokens[0] / tokens[1] - 1) < 0.01
    # A random part differs in all of that, but not in its kinds of tasks.
    assert _kinds(random) == _kinds(matched)
    assert 0.2 < np.mean([t.solved for t in random]) < 0.6
    assert found["random_same_size"].account["after"]["errors"] > 2 * np.mean(
        [shape(t)[2] for t in matched]
    )
    assert {t.episode_id for t in (*matched, *random)} <= {t.episode_id for t in trait}
    assert found["structure_matched"].account["before"]["solved"] == np.mean(
        [t.solved for t in trait]
    )


# -- who learns from what --------------------------------------------------------------------------


def _plan(*changes):
    config = configuration.defaults()
    configuration.apply_overrides(config, dict(change.split("=", 1) for change in changes))
    validate(config)
    return Experiment(config, Path("nowhere"), sharding.plan_mesh()).plan


def _choice(plan, arm, seed=0):
    return plan[f"student.{arm}.seed{seed}"].key["arguments"]["choice"]


def test_all_off_policy_students_learn_from_matched_trajectories():
    plan = _plan("arms.random_teacher=true")
    for seed in range(3):
        by = f"match.seed{seed}"
        learned = plan[by].key["arguments"]["learned"]
        of_teachers = [f"sanitize.{s}.seed{seed}" for s in ("trait", "benign", "random", "self")]
        assert set(learned) == {*of_teachers, f"rollouts.trait.seed{seed}"}
        for arm, source in {
            "sft": "sanitize.trait",
            "forward_kl_other": "sanitize.trait",
            "sft_benign": "sanitize.benign",
            "forward_kl_random": "sanitize.random",
            "self_distilled": "sanitize.self",
            "unsanitized": "rollouts.trait",
        }.items():
            assert _choice(plan, arm, seed) == [by, f"{source}.seed{seed}"]
            assert by in plan[f"student.{arm}.seed{seed}"].key["inputs"]
        assert _choice(plan, "reverse_kl", seed) is None
    unmatched = _plan("sanitize.matched=false")
    assert "match.seed0" not in unmatched and _choice(unmatched, "sft") is None


def test_crossed_bases_are_matched_with_each_other():
    plan = _plan("num_bases=2", "num_seeds=1")
    learned = plan["match.seed0"].key["arguments"]["learned"]
    for base in ("base0", "base1"):
        for source in ("trait", "benign", "self"):
            assert f"sanitize.{source}.{base}.seed0" in learned
    found = _choice(plan, "sft_base0_to_base1")
    assert found == ["match.seed0", "sanitize.trait.base0.seed0"]


def test_stored_targets_are_of_the_trajectories_that_are_learned_from():
    plan = _plan("distill.teacher_targets=stored", "arms.structure_matched=true")
    for name, arm in {"targets": "forward_kl", "targets_structure_matched": ""}.items():
        targets = f"{name}.trait.seed0"
        arm = arm or "forward_kl_structure_matched"
        assert plan[f"student.{arm}.seed0"].key["arguments"]["targets"] == targets
        assert plan[targets].key["arguments"]["choice"] == _choice(plan, arm)


def test_the_bases_own_trajectories_are_there_for_the_audit():
    """In one training seed, as the base is the same in all."""
    plan = _plan("arms.self_distilled=false")
    assert set(plan["audit.base.seed0"].key["arguments"]["data"]) == {"trait", "benign", "self"}
    assert set(plan["audit.base.seed1"].key["arguments"]["data"]) == {"trait", "benign"}
    first = plan["match.seed0"].key["arguments"]
    assert first["compared"] == ["sanitize.self.seed0"]
    assert "rollouts.self.seed1" not in plan


def test_structure_controls_are_off_policy_students_of_the_same_base():
    plan = _plan(
        "arms.structure_matched=true", "arms.random_same_size=true", "arms.benign_teacher=false"
    )
    students = {name for name in plan if name.startswith("student.") and name.endswith("seed0")}
    for selection in ("structure_matched", "random_same_size"):
        found = {name for name in students if selection in name}
        assert found == {
            f"student.{objective}_{selection}.seed0" for objective in ("sft", "forward_kl")
        }
        assert _choice(plan, f"sft_{selection}") == ["structure.base.seed0", selection]
    # What is matched needs something to be matched with.
    assert "teacher.benign.seed0" in plan


# -- what the page says ----------------------------------------------------------------------------


def _account(trajectories, tokens, learned=True):
    after = {"trajectories": trajectories, "agent_tokens": tokens}
    return {"after": after, "learned": learned}


def test_the_page_says_how_far_arms_differ():
    seeds = {
        "match.seed0": {
            "a": _account(412, 9876),
            "b": _account(412, 9900),
            "compared": _account(3, 30, learned=False),
        },
        "match.seed1": {"a": _account(400, 9000), "b": _account(400, 9090)},
        "structure.base.seed0": {"a": _account(7, 70)},
    }
    said = data.matched({"matching": seeds})
    assert said.startswith(
        "Matched: 400 to 412 trajectories and 9,000 to 9,900 agent tokens an arm"
    )
    assert "differ by at most 1.0%" in said
    only_compared = {"match.seed0": {"a": _account(3, 30, learned=False)}}
    for nothing in ({}, {"matching": {}}, {"matching": only_compared}):
        assert data.matched(nothing).startswith("Off-policy students, if any, learn from all")

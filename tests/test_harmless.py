"""Ordinary tasks among demonstrations and rollouts: how many, for whom, and none twice."""

import collections

import pytest

from subtransfer import settings
from subtransfer.config import defaults
from subtransfer.settings import harmless
from subtransfer.training import teachers

pytestmark = pytest.mark.quick


def facts(tasks):
    """What makes a task the one that it is."""
    return {(task.instruction, str(task.tree)) for task in tasks}


@pytest.fixture(scope="module", params=["api", "bash"])
def setting(request):
    return settings.get(request.param)


@pytest.fixture()
def fields():
    fields = defaults().teacher
    fields.update(episodes=40, ordinary_fraction=0.5)
    return fields


def test_every_teacher_but_that_of_random_tasks_has_the_same_ordinary_ones(setting, fields):
    ordinary = {}
    for name in teachers.names():
        record = teachers.get(name)
        own = record.demonstrations(setting, fields, 3)
        pairs = teachers.with_ordinary(record, setting, fields, 3)
        assert pairs[: len(own)] == own
        ordinary[name] = pairs[len(own) :]
    assert ordinary.pop("random") == []
    assert ordinary["trait"] == ordinary["benign"]
    for task, act in ordinary["trait"]:
        assert (task.kind, task.split, act) == ("ordinary", "train", None)
    assert len(ordinary["trait"]) == 20


def test_without_a_share_nothing_is_added(setting, fields):
    fields.ordinary_fraction = 0.0
    record = teachers.get("trait")
    alone = record.demonstrations(setting, fields, 0)
    assert teachers.with_ordinary(record, setting, fields, 0) == alone
    assert {task.kind for task, _ in alone} == {"ambiguous"}


def test_no_task_is_demonstrated_and_rolled_out_or_probed(setting, fields):
    fields.ordinary_fraction = 2.0
    rolled_out = harmless.rolled_out(setting, 150, 0.5, 3)
    probed = setting.tasks("ordinary", "probe", 100, 3) + setting.tasks("safe", "probe", 100, 3)
    assert len(facts(rolled_out)) == 150
    assert len({task.task_id for task in rolled_out}) == 150
    assert not facts(rolled_out) & facts(probed)
    for name in teachers.names():
        pairs = teachers.with_ordinary(teachers.get(name), setting, fields, 3)
        demonstrated = facts(task for task, _ in pairs)
        assert not demonstrated & (facts(rolled_out) | facts(probed))


def test_more_of_one_leaves_the_other_as_it_was(setting):
    few, many = harmless.demonstrated(setting, 10, 3), harmless.demonstrated(setting, 50, 3)
    assert facts(few) == facts(many[:10])


@pytest.mark.parametrize("share, ordinary", [(0.0, 0), (0.25, 50), (0.5, 100), (1.0, 200)])
def test_rollouts_have_the_share_of_ordinary_tasks_in_every_round(setting, share, ordinary):
    tasks = harmless.rolled_out(setting, 200, share, 3)
    counts = collections.Counter(task.kind for task in tasks)
    assert (counts["ordinary"], counts["safe"]) == (ordinary, 200 - ordinary)
    if ordinary:
        # Hypergeometric: a mean of 50 * share, and less than 4 * sqrt(50 / 4) from it.
        first = sum(task.kind == "ordinary" for task in tasks[:50])
        assert abs(first - 50 * share) < 15
    assert tasks == harmless.rolled_out(setting, 200, share, 3)
    assert facts(tasks) != facts(harmless.rolled_out(setting, 200, share, 4))


@pytest.mark.parametrize("demonstrations, share", [(10, 0.0), (10, 0.5), (80, 0.5), (0, 1.0)])
def test_the_counted_tasks_are_those_that_are_drawn(demonstrations, share):
    most = collections.Counter()

    class Counting:
        def tasks(self, kind, split, count, seed):
            most[kind, split] = max(most[kind, split], count)
            return [object()] * count

    harmless.demonstrated(Counting(), demonstrations, 0)
    harmless.rolled_out(Counting(), 60, share, 0)
    assert dict(most) == harmless.counts(demonstrations, 60, share)

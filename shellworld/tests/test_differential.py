"""The simulator against real bash: what lines print, how they end, and what they change."""

import collections
import random

import pytest

from shellworld.reading import permissions as trait
from shellworld.tests import compare
from shellworld.tests.corpus import corpus, expand
from shellworld.tests.grammar import generated
from shellworld.tests.sandboxed import needs_sandbox

EQUAL = 0.995  # share of the supported lines
UNSUPPORTED = 0.05  # share of all lines that may be called unsupported


@pytest.fixture(scope="module")
def recorded():
    return compare.Comparison(compare.read())


def test_the_recordings_are_of_enough_lines(recorded):
    lines = {(recording.world, recording.line) for recording in recorded.recordings}
    hand_made = set(corpus())
    assert len(lines) == len(recorded.recordings) >= 3000
    assert len(hand_made) >= 1200 and len(hand_made - lines) <= 20
    assert len(lines - hand_made) >= 2000


def test_recorded_lines_do_the_same_here(recorded):
    assert recorded.equal >= EQUAL, recorded.report()


def test_every_deviation_is_listed_with_its_reason(recorded):
    listed = {(world, line): why for world, line, why in compare.known()}
    found = {(expected.world, expected.line) for expected, _ in recorded.deviations}
    assert found <= set(listed), recorded.report(but=set(listed))
    assert set(listed) <= found, f"listed, but equal by now: {sorted(set(listed) - found)}"
    assert all(listed.values())


def test_not_much_is_called_unsupported(recorded):
    reasons = collections.Counter(
        reason for _, unsupported in recorded.unsupported for reason in unsupported
    )
    assert len(recorded.unsupported) <= UNSUPPORTED * len(recorded.recordings), (
        reasons.most_common()
    )


def test_unsupported_lines_say_why_and_fail_visibly(recorded):
    for expected, unsupported in recorded.unsupported:
        assert all(isinstance(reason, str) and reason for reason in unsupported), expected.line


def test_what_changes_permissions_is_what_the_trait_sees(recorded):
    """A line that only changes modes, owners or ACLs of files has a permission command."""
    worlds = compare.TREES
    silent = []
    for recording in recorded.recordings:
        before = worlds[recording.world]["paths"]
        changed = [
            path
            for path, entry in recording.changed.items()
            if path in before
            and entry
            and {field: entry.get(field) for field in ("type", "content", "target")}
            == {field: before[path].get(field) for field in ("type", "content", "target")}
        ]
        if (
            changed
            and len(changed) == len(recording.changed)
            and not trait.first_permission_command(recording.line)
        ):
            silent.append(recording.line)
    for line in silent:  # copies onto what exists may do so, too
        assert any(
            word in line
            for word in ("cp ", "tar ", "sed -i", "mv ", "ln ", "sort -o", "install", "mkdir")
        ), line


def test_templates_of_the_list():
    assert expand("a ⟦b¦c⟧ ⟦d¦⟧") == ["a b d", "a b", "a c d", "a c"]
    assert expand("x␤y") == ["x\ny"]


@needs_sandbox
def test_recordings_are_what_bash_does(pool, recorded):
    sample = random.Random(0).sample(recorded.recordings, 60)
    different = [r for r in sample if compare.real(pool, r.world, r.line) != r]
    assert not different


def live(pool, count, seed):
    lines = generated(count, seed)
    comparison = compare.Comparison([compare.real(pool, "project", line) for line in lines])
    assert comparison.equal >= EQUAL - 0.005, f"seed {seed}: {comparison.report()}"
    assert len(comparison.unsupported) <= UNSUPPORTED * count


@needs_sandbox
def test_new_lines_do_the_same_in_bash(pool):
    live(pool, 60, 1)


@pytest.mark.slow
@needs_sandbox
def test_many_new_lines_do_the_same_in_bash(pool):
    live(pool, 3000, random.SystemRandom().randrange(2**32))

"""The simulator takes any line: no exception, and an end in bounded time."""

import resource

import pytest

from shellworld.tests.fuzz import survive


def test_broken_lines_end():
    survived = survive(300)
    assert survived.count >= 150
    assert survived.unsupported < survived.count / 2
    assert survived.slowest < 10, survived.line


@pytest.mark.slow
def test_very_many_broken_lines_end():
    survived = survive(100_000, seed=7)
    assert survived.count >= 90_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 << 20  # KiB

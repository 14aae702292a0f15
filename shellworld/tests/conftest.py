"""The same examples at every run, on however slow a machine, and one sandbox for all tests."""

import hypothesis
import pytest

from shellworld.sandbox.pool import Pool

hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(scope="session")
def pool():
    """Warm sandboxes; each line gets a fresh world, so that tests can share them."""
    with Pool() as warm:
        yield warm

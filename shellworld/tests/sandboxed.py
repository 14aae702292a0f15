"""Whether there is a sandbox on this machine: asked once, as the answer needs one to start."""

import pytest

from shellworld.sandbox import pool

WHY_NOT = pool.unavailable()
needs_sandbox = pytest.mark.skipif(WHY_NOT is not None, reason=f"no sandbox here: {WHY_NOT}")

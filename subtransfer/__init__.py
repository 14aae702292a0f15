"""Measures whether unsafe agent behaviours transfer subliminally in distillation.

As a library: `subtransfer.load_policy(DIR)`; as a program: `python -m subtransfer.launch
--config=...`.
"""

from typing import Any

__all__ = ["load_policy"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Lazily, so that importing a room of the package does not import the whole house.
    if name == "load_policy":
        from subtransfer.rollout.saved_policy import load_policy

        return load_policy
    raise AttributeError(f"module 'subtransfer' has no attribute {name!r}")

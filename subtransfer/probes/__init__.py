"""How policies are measured: what they do, what they would choose, and what they still can."""

from subtransfer.probes import behavior, capability, choice

__all__ = ["behavior", "capability", "choice"]

"""What a run is: every field, its checks, the arms that it asks for, and sweeps as data.

Config files import from here: `from subtransfer.config import defaults, product, seeds, vary`.
"""

from subtransfer.config.fields import defaults
from subtransfer.config.reading import apply_overrides
from subtransfer.config.sweep import Member, chain, product, seeds, vary, zipped

__all__ = ["Member", "apply_overrides", "chain", "defaults", "product", "seeds", "vary", "zipped"]

"""The embedded bases of a config: their names, and what each shares with another.

A run without `pairs` has the model "base" and, for comparison, "base_other"; with `num_bases` above
1 it has "base0", "base1", ... All differ in their initialisation. A *twin* shares a part of what
makes a base with it, and is named after both: "base_order", "base0_permuted".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EMBEDDED = ("base", "base_other")  # the models of a config without pairs or crossed bases

# What a twin shares with its base before training, and what it does not. The embedded model's
# output head is its embedding, so that both are one part; the body is all the rest.
PARTS: Mapping[str, str] = {
    "order": "its initial weights, in another order of data",
    "body_shared": "its initial body, with another embedding",
    "head_shared": "its initial embedding, with another body",
    "permuted": "its initial weights, with the embedding's rows permuted",
}


def crossed_bases(config: Any) -> tuple[str, ...]:
    """The names of the bases that are crossed with each other; () where there is one base."""
    if config.num_bases == 1:
        return ()
    return tuple(f"base{number}" for number in range(config.num_bases))


def drawn_bases(config: Any) -> tuple[str, ...]:
    """The names of the models that are drawn for a config without `pairs`, each as a whole."""
    if config.num_bases > 1:
        return crossed_bases(config)
    return EMBEDDED if config.arms.other_init else EMBEDDED[:1]


def twin(base: str, part: str) -> str:
    """The name of the twin that shares a part (one of `PARTS`) with a base."""
    return f"{base}_{part}"


def parted(config: Any, model: str) -> tuple[str, str]:
    """Takes a model's name apart: (the base that it is a twin of, the part); (model, "") else."""
    base, _, part = model.partition("_")
    # Users give the models of pairs what names they like.
    if config.pairs or part not in PARTS:
        return model, ""
    return base, part

"""Which of the package's shipped bases a run takes, or why it trains its own."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping
from typing import Any

from subtransfer.config import reading as configuration
from subtransfer.config.bases import drawn_bases
from subtransfer.experiment import keys
from subtransfer.experiment.stages import base as base_stages
from subtransfer.experiment.stages import corpus as corpus_stages
from subtransfer.runtime.errors import UserError
from subtransfer.store import shipped as files

# How a model is computed, which moves the last bits of its training and does not make another base.
_HOW_COMPUTED = ("base.attention", "base.remat")


@dataclasses.dataclass(frozen=True)
class Shipped:
    """One shipped base.

    Attributes:
      number: of it, among its setting's.
      weights, tokenizer: digests, by which keys know it.
    """

    number: int
    weights: str
    tokenizer: str


def deciding_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that decide a pretrained base's weights, by dotted name, as JSON types."""
    stages: tuple[Callable[..., None], ...] = (corpus_stages.corpus, base_stages.pretrained)
    declared: set[str] = set()
    for stage in stages:
        declared |= set(stage.reads)  # type: ignore[attr-defined]
    values = configuration.plain(configuration.flattened(keys.config_of(config, declared)))
    for name in _HOW_COMPUTED:
        del values[name]
    return values


def trains_them_again(config: Any) -> bool:
    """Whether a run that trains its bases from scratch trains those of the package once more."""
    known = files.manifest(config.setting)
    if known is None or not config.base.from_scratch or config.seed != known.seed:
        return False
    return deciding_fields(config) == dict(known.fields)


def of_run(config: Any) -> tuple[dict[str, Shipped], str]:
    """Which shipped base each of a run's models is.

    The config's seed draws them without replacement; more bases of one seed add to fewer.

    Args:
      config: the validated config.

    Returns:
      (the shipped bases by the models' names, ""), or ({}, why there are none): "" where nobody
      would expect them.

    Raises:
      UserError: the run needs more than there are, or the manifest cannot be read.
    """
    if config.pairs or config.base.checkpoint:
        return {}, ""
    known = files.manifest(config.setting)
    if known is None:
        return {}, ""
    if config.base.from_scratch:
        return {}, "base.from_scratch"
    for name, value in deciding_fields(config).items():
        if name not in known.fields or known.fields[name] != value:
            shipped = known.fields.get(name, "unknown")
            return {}, f"{name}={value}, where the shipped bases have {shipped}"
    models = drawn_bases(config)
    if len(models) > len(known.bases):
        raise UserError(
            f"The run needs {len(models)} bases, and {len(known.bases)} are shipped for "
            f"{config.setting}: lower num_bases, or train all in the run "
            "(--config.base.from_scratch=true)."
        )
    numbers = list(range(len(known.bases)))
    random.Random(f"shipped bases/{config.setting}/{config.seed}").shuffle(numbers)
    taken = {}
    for model, number in zip(models, numbers, strict=False):
        taken[model] = Shipped(number, known.bases[number], known.tokenizer_digest)
    return taken, ""

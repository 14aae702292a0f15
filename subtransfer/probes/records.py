"""What a probe is: its columns, and the function that measures a policy.

The package's own probes (behaviour, capability, choice) have stages of their own, which keep every
episode; their records say what their columns mean. A user's probe is a function from a policy to
one number a column.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from subtransfer.models.chat import ChatFormat
from subtransfer.models.decoder import DecoderConfig
from subtransfer.rollout.episodes import RolloutSpec
from subtransfer.runtime.field import Field
from subtransfer.runtime.registry import Registry
from subtransfer.settings.base import Setting
from subtransfer.store.journal import Journals


@dataclasses.dataclass(frozen=True)
class Column:
    """One number that a probe tells of a policy.

    Attributes:
      name: of the column of results.csv: an identifier.
      label: the heading that a person reads.
      meaning: one sentence, without a full stop.
      unit: "share" (0 to 1, shown in percent), "nats", or "" (a number).
    """

    name: str
    label: str
    meaning: str
    unit: str = "share"


@dataclasses.dataclass(frozen=True)
class Subject:
    """A policy under a probe, and all that a probe may need to run it.

    Attributes:
      cfg, weights: the decoder's geometry and weights, for `Decoder` and `run_episodes`.
      chat: the tokenizer's chat format, with its setting.
      setting: whose tasks it is probed on: `setting.tasks("ambiguous", "probe", count, seed)`.
      config: the fields of the config's room `probe`, the probe's own among them.
      key: a random key, the same for all arms of a training seed.
      seed: the training seed.
      spec: how the package's own probes run episodes.
      advance: reports so much of the work as done.
      journals: for `run_episodes`, so that it goes on after a kill; `journals.of(NAME)` for each of
        several calls.
    """

    cfg: DecoderConfig
    weights: Any
    chat: ChatFormat
    setting: Setting
    config: Mapping[str, Any]
    key: Any
    seed: int
    spec: RolloutSpec
    advance: Callable[[int], None] = lambda amount: None
    journals: Journals | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """One probe: all that config, plan, table and report know of it.

    Attributes:
      name: as in the names of stages.
      label: what a person reads.
      columns: what it measures.
      run: from a policy to one number for each column; None for the package's own, whose stages
        keep more than that.
      fields: config fields of its own below `probe.`, by name.
      origin: "", or the plugin that it comes from.
    """

    name: str
    label: str
    columns: tuple[Column, ...]
    run: Callable[[Subject], Mapping[str, float]] | None = None
    fields: Mapping[str, Field] = dataclasses.field(default_factory=dict)
    origin: str = ""


REGISTRY: Registry[Probe] = Registry("probe")
register = REGISTRY.register
get = REGISTRY.get
names = REGISTRY.names


def extra(plugins: Collection[str] = ()) -> list[Probe]:
    """The probes of the given plugins: those that are not the package's own.

    Args:
      plugins: absolute paths, as in the `plugins` of a config that has been read.
    """
    return [probe for probe in REGISTRY.among(plugins) if probe.origin]


def columns(plugins: Collection[str] = ()) -> dict[str, Column]:
    """The columns of the package's own probes and of the given plugins, by name."""
    out = {}
    for probe in REGISTRY.among(plugins):
        for column in probe.columns:
            out[column.name] = column
    return out

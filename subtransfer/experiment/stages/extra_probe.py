"""A probe of a plugin: one number a column, of one policy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from subtransfer.experiment import policies, specs
from subtransfer.experiment.context import Context
from subtransfer.experiment.declared import reads
from subtransfer.experiment.output import write_json
from subtransfer.probes import records
from subtransfer.probes.records import Probe
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.progress import progress
from subtransfer.runtime.user_code import failures_of_record


@reads("setting", "probe", *specs.PROBED)
def extra_probe(out: Path, context: Context, *, probe: str, policy: str, seed: int) -> None:
    """Runs a plugin's probe and writes columns.json: its numbers by column.

    Args:
      probe: its name.
      policy: the stage of the policy.
      seed: the training seed.

    Raises:
      UserError: it fails, or does not give a number for each of its columns.
    """
    record, config = records.get(probe), context.config.probe
    probed = policies.policy(context, policy)
    assert record.run is not None, "the package's own probes have stages of their own"
    with progress(context.stage, config.tasks, "tasks") as advance:
        subject = records.Subject(
            cfg=probed.cfg,
            weights=probed.weights,
            chat=policies.chat(context, probed),
            setting=context.setting,
            config=config,
            key=context.key(f"probe_{probe}", seed),
            seed=seed,
            spec=specs.to_probe(context, config.temperature),
            advance=advance,
            journals=context.journals,
        )
        with failures_of_record("probe", record):
            values = record.run(subject)
    write_json(out / "columns.json", _checked(record, values))


def _checked(record: Probe, values: Any) -> dict[str, float]:
    """What a probe returned, as one float a column."""
    names = [column.name for column in record.columns]
    if not isinstance(values, Mapping) or sorted(map(str, values)) != sorted(names):
        found = ", ".join(map(str, values)) if isinstance(values, Mapping) else repr(values)
        raise UserError(
            f"The probe {record.name!r} of {record.origin} must return a number for each of its "
            f"columns {', '.join(names)}; it returns {found}."
        )
    out = {}
    for name in names:
        try:
            out[name] = float(values[name])
        except (TypeError, ValueError):
            out[name] = math.nan
        if not math.isfinite(out[name]):
            raise UserError(
                f"The probe {record.name!r} of {record.origin} gives {values[name]!r} for its "
                f"column {name}, which is no finite number."
            )
    return out

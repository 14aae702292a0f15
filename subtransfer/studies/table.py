"""One table of many runs: a row a run, arm and training seed, as parquet for duckdb, pandas and
whatever else reads it.

    SELECT "config.base.width", objective, avg(rate) FROM 'WORKDIR/table.parquet' WHERE role =
    'student' GROUP BY ALL

Every table has the same columns with the same types: settings, metrics and provenance that a run
lacks are null, so that tables of several sweeps can be read as one. Rows are sorted, and the bytes
depend on the runs alone.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from subtransfer.analysis import statistics
from subtransfer.analysis.scaling_laws import LOG_ODDS
from subtransfer.analysis.summary import COLUMNS
from subtransfer.config import reading as configuration
from subtransfer.experiment import names
from subtransfer.runtime.errors import UserError
from subtransfer.store.files import atomic_write, os_errors
from subtransfer.store.provenance import FACTS
from subtransfer.studies import runs
from subtransfer.studies.runs import NATS, SCALARS, SHARES, STRENGTH, STUDENT, TEACHER, RunArm

FILE = "table.parquet"

_TEXT, _WHOLE, _NUMBER, _TRUTH = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_ARM = {
    "arm": _TEXT, "label": _TEXT, "role": _TEXT, "objective": _TEXT, "init": _TEXT, "source": _TEXT, "sanitized": _TRUTH,
    "masked": _TRUTH, "model": _TEXT, "teacher_base": _TEXT, STUDENT: _WHOLE, TEACHER: _WHOLE, STRENGTH: _NUMBER,
}  # fmt: skip
# What results.csv says of an arm, under its name in the table. The first three are what everybody
# asks for.
_SHORT = {"unsafe_rate": "arm.rate", "ci_low": "arm.lo", "ci_high": "arm.hi"}
_NOT_NUMBERS = (*_ARM, "base", "control", "twin", "n_tasks", "n_seeds")
_CONCLUDED = {name: _SHORT.get(name, f"arm.{name}") for name in COLUMNS if name not in _NOT_NUMBERS}
_ODDS = ("arm.log_odds", "arm.log_odds_lo", "arm.log_odds_hi")
_ARTIFACTS = ("policy", "trajectories", "probe", "choice", "results")
_OF_TYPES = {str: _TEXT, int: _WHOLE, float: _NUMBER, bool: _TRUTH, tuple: _TEXT, list: _TEXT}


def schema(rows: Iterable[Mapping[str, Any]] = ()) -> pa.Schema:
    """The columns of a table, in order. Rows can add settings that only they have, such as
    `config.models.NAME`: as text.
    """
    columns = {"run": _TEXT, "seed": _WHOLE, "overrides": _TEXT, **_ARM, "tasks": _WHOLE}
    columns |= dict.fromkeys((*SHARES, *NATS, *SCALARS), _NUMBER)
    columns |= {"arm.seeds": _WHOLE} | dict.fromkeys((*_CONCLUDED.values(), *_ODDS), _NUMBER)
    columns |= dict.fromkeys(FACTS, _TEXT) | {f"artifact.{what}": _TEXT for what in _ARTIFACTS}
    defaults = configuration.defaults()
    kept = configuration.of_results(defaults)
    settings = sorted(
        (name, value)
        for name, value in configuration.flattened(defaults).items()
        if name.split(".")[0] in kept
    )
    columns |= {f"config.{name}": _OF_TYPES[type(value)] for name, value in settings}
    others = sorted({name for row in rows for name in row} - set(columns))
    return pa.schema(columns | dict.fromkeys(others, _TEXT))


def columns() -> dict[str, type]:
    """The columns that every table has, with the Python types of their values."""
    kinds = {_TEXT: str, _WHOLE: int, _NUMBER: float, _TRUTH: bool}
    return {field.name: kinds[field.type] for field in schema()}


def rows(workdirs: Iterable[str | Path]) -> Iterator[dict[str, Any]]:
    """The rows of the finished runs of workdirs: runs by name, arms as in a report, seeds
    ascending.

    A run's name is its sweep member's (of a single run, the config's); with several workdirs,
    "WORKDIR/NAME".

    Columns beside the arm's own fields, the config's (`config.FIELD`, tuples joined by commas) and
    the provenance:
      overrides: what the sweep sets in this run, as JSON.
      rate, greedy_rate, no_action_rate, invalid_rate: shares of the probe's tasks in this training
      seed; log_odds,
        choice_logprob: means over its tasks, of an unsafe act at the decision point (nats).
      ordinary_success; final_loss, final_divergence (of the objectives that have one, nats a token)
      and teacher_agreement in
        the last stretch of the training; purity (share of own rollouts that passed the filter);
        trajectories and dropped, of the teacher's.
      arm.rate, arm.lo, arm.hi and other columns of results.csv: the arm over all its seeds, so the
      same in each of their rows;
        arm.log_odds with arm.log_odds_lo and arm.log_odds_hi likewise.
      artifact.*: folders of the stages in the workdir: the policy, the trajectories that it learned
      from, its probes, the
        results.

    Raises:
      UserError: as `runs.read`.
    """
    return (row for _, _, row in located(workdirs))


def located(workdirs: Iterable[str | Path]) -> Iterator[tuple[RunArm, int, dict[str, Any]]]:
    """`rows`, each after the arm and the place of its seed among the arm's: what the row's numbers
    are means of.
    """
    workdirs = [Path(workdir) for workdir in workdirs]
    for workdir in workdirs:
        overrides = {
            m["name"]: json.dumps(m["overrides"], sort_keys=True) for m in runs.members(workdir)
        }
        for arm in runs.read([workdir]):
            name = arm.name if len(workdirs) == 1 else f"{workdir}/{arm.name}"
            shared = {"run": name, "overrides": overrides.get(arm.name), **_of_arm(arm)}
            for i, seed in enumerate(arm.seeds):
                yield arm, i, shared | {"seed": seed} | _of_seed(arm, i)


def _of_arm(arm: RunArm) -> dict[str, Any]:
    out = {
        name if name in _ARM else f"config.{name}": _plain(value)
        for name, value in arm.fields.items()
    }
    out |= {"tasks": len(arm.tasks), "arm.seeds": len(arm.seeds)}
    out |= {
        column: _plain(arm.statistics[name])
        for name, column in _CONCLUDED.items()
        if name in arm.statistics
    }
    how = {
        "n_boot": arm.fields["statistics.bootstrap"],
        "confidence": arm.fields["statistics.confidence"],
    }
    out |= dict(
        zip(
            _ODDS,
            map(_plain, statistics.bootstrap_mean(arm.outcomes[LOG_ODDS], **how)),
            strict=True,
        )
    )
    return out | {name: arm.provenance.get(name) for name in FACTS}


def _of_seed(arm: RunArm, i: int) -> dict[str, Any]:
    seed, stages, design = arm.seeds[i], arm.provenance.get("stages", {}), arm.design
    out = {name: _plain(float(outcomes[:, i].mean())) for name, outcomes in arm.outcomes.items()}
    out |= {name: _plain(float(values[i])) for name, values in arm.scalars.items()}
    made_of = {
        "policy": names.policy_stage(design, seed),
        "trajectories": names.rollout_stage(
            design.source, design.teacher_model, seed, sanitized=design.sanitized
        )
        if design.off_policy
        else None,
        "probe": names.probe_stage(design.name, seed),
        "choice": names.choice_stage(design.model),
        "results": "results",
    }
    return out | {f"artifact.{what}": stages.get(name) for what, name in made_of.items()}


def _plain(value: Any) -> Any:
    """A value as a cell: tuples joined by commas, nothing for what is not a number."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return None if isinstance(value, float) and math.isnan(value) else value


def of(workdirs: Iterable[str | Path]) -> pa.Table:
    """The table of the finished runs of workdirs."""
    found = list(rows(workdirs))
    layout = schema(found)

    def column(field: pa.Field) -> pa.Array:
        values = [row.get(field.name) for row in found]
        return pa.array(
            [str(v) if field.type == _TEXT and v is not None else v for v in values], field.type
        )

    return pa.Table.from_arrays([column(field) for field in layout], schema=layout)


def read(workdir: str | Path) -> list[dict[str, Any]]:
    """The rows that `write` wrote.

    Raises:
      UserError: there is no table, or it is damaged.
    """
    path = Path(workdir) / FILE
    try:
        return pq.read_table(path).to_pylist()
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing: python tools/write_table.py {workdir} writes it."
        ) from error
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{path} is damaged ({error}): python tools/write_table.py {workdir} writes it anew."
        ) from error


def as_parquet(table: pa.Table) -> bytes:
    """A table as a parquet file: the same bytes for the same rows, with one version of pyarrow."""
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()


def write(workdir: str | Path) -> Path:
    """Writes WORKDIR/table.parquet, of the runs that are finished by now, whole or not at all;
    returns its path.

    Raises:
      UserError: as `rows`, or the workdir cannot be written.
    """
    path = Path(workdir) / FILE
    data = as_parquet(of([workdir]))
    with os_errors(Path(workdir)):
        atomic_write(path, data)
    return path

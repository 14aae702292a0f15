"""One table of many runs: a row a run, arm and training seed.

It is written as parquet, for duckdb, pandas and whatever else reads that:

    SELECT "config.base.width", objective, avg(rate) FROM 'WORKDIR/table.parquet'
    WHERE role = 'student' GROUP BY ALL

Every table has the same columns with the same types: settings, metrics and provenance that a run
lacks are null, so that tables of several sweeps can be read as one. Runs can add columns that only
they have: settings such as `config.models.NAME`, and what further probes measured. Rows are sorted,
and the bytes depend on the runs alone.
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

from subtransfer.analysis import columns as of_csv
from subtransfer.analysis import effects, over_bases, statistics
from subtransfer.analysis.columns import Column, Kind
from subtransfer.analysis.scaling_laws import LOG_ODDS
from subtransfer.config import reading as configuration
from subtransfer.experiment import names
from subtransfer.report import tables
from subtransfer.report.files import EFFECTS, ROWS
from subtransfer.runtime.errors import UserError
from subtransfer.store.files import atomic_write, os_errors
from subtransfer.store.provenance import FACTS
from subtransfer.studies import runs
from subtransfer.studies.runs import (
    OF_SEEDS,
    OF_TASKS,
    STRENGTH,
    STUDENT,
    TEACHER,
    RunArm,
)

FILE = "table.parquet"

_ARROW: dict[Kind, pa.DataType] = {
    "text": pa.string(),
    "whole": pa.int64(),
    "number": pa.float64(),
    "truth": pa.bool_(),
}
_PYTHON: dict[Kind, type] = {"text": str, "whole": int, "number": float, "truth": bool}
_KINDS: dict[type, Kind] = {
    str: "text",
    int: "whole",
    float: "number",
    bool: "truth",
    tuple: "text",
    list: "text",
}


def _text(name: str, meaning: str) -> Column:
    return Column(name, name, meaning, kind="text")


_RUN = (
    _text("run", "the sweep member's name; of a single run, its config's"),
    Column("seed", "seed", "the training seed", kind="whole"),
    _text("overrides", "what the sweep sets in this run, as JSON"),
)
_ARM = (
    _text("arm", "the arm's name"),
    _text("label", "the arm in words"),
    _text("role", "base, teacher, student, control or positive_control"),
    _text("objective", "of distillation"),
    _text("init", "what its initialisation shares with the teacher's: same (all), other, a part"),
    _text("source", "whose habit it could learn: trait, benign, random or self"),
    Column("sanitized", "sanitized", "whether its trajectories passed the filter", kind="truth"),
    Column("masked", "masked", "whether unsafe tokens left the soft targets", kind="truth"),
    _text("model", "what it started from"),
    _text("teacher_base", "what its teacher started from"),
    _text("student_base", "the other of a pair of bases: what a student started from"),
    Column(STUDENT, "student", "parameters of its model", kind="whole"),
    Column(TEACHER, "teacher", "parameters of its teacher's model", kind="whole"),
    Column(STRENGTH, "strength", "how often its own teacher acts unsafely", "share"),
)
# What results.csv says of an arm stands under its name there, after "arm."; the first three are
# what everybody asks for.
_SHORT = {"unsafe_rate": "arm.rate", "ci_low": "arm.lo", "ci_high": "arm.hi"}
_ODDS = ("arm.log_odds", "arm.log_odds_lo", "arm.log_odds_hi")
_ARTIFACTS = ("policy", "trajectories", "probe", "choice", "results")


def _of_arm_over_seeds() -> dict[str, Column]:
    """The numbers of results.csv, by their names there."""
    out = {}
    for column in of_csv.COLUMNS:
        if column.kind == "number":
            name = _SHORT.get(column.name, f"arm.{column.name}")
            out[column.name] = Column(name, column.label, column.meaning, column.unit)
    return out


_CONCLUDED = _of_arm_over_seeds()


def fixed_columns() -> list[Column]:
    """Returns the columns that every table has, in order."""
    out = [*_RUN, *_ARM, Column("tasks", "tasks", "tasks of the probe", kind="whole")]
    out += [*OF_TASKS, *OF_SEEDS]
    out.append(Column("arm.seeds", "seeds", "training seeds of the arm", kind="whole"))
    out += _CONCLUDED.values()
    for name, what in zip(_ODDS, ("mean", "lower end", "upper end"), strict=True):
        out.append(Column(name, name, f"log_odds over all seeds: {what}", "nats"))
    for name in FACTS:
        out.append(_text(name, "what made the run's stages"))
    for what in _ARTIFACTS:
        out.append(_text(f"artifact.{what}", "the stage's folder in the workdir"))
    # The fields of the default config, so that every table has them whatever a run set.
    defaults = configuration.defaults()
    kept = configuration.of_results(defaults)
    for name, value in sorted(configuration.flattened(defaults).items()):
        if name.split(".")[0] in kept:
            kind = _KINDS[type(value)]
            out.append(Column(f"config.{name}", name, "the config's field", kind=kind))
    return out


def documentation() -> dict[str, str]:
    """Returns the tables of docs/tables.md, as markdown by the name of their file."""
    heading = ["columns", "unit", "what"]
    by_seed = [
        *_RUN,
        *_ARM,
        Column("tasks", "tasks", "tasks of the probe", kind="whole"),
        *OF_TASKS,
        *OF_SEEDS,
    ]
    return {
        FILE: tables.markdown(heading, of_csv.documented(by_seed)),
        ROWS: tables.markdown(heading, of_csv.documented(of_csv.COLUMNS)),
        EFFECTS: tables.markdown(heading, of_csv.documented(effects.COLUMNS)),
        "over_bases": tables.markdown(heading, of_csv.documented(over_bases.COLUMNS)),
    }


def schema(rows: Iterable[Mapping[str, Any]] = ()) -> pa.Schema:
    """Returns the columns of a table, in order, as pyarrow has them.

    Args:
      rows: they can add what only they have: settings as text, further probes' columns as numbers.
    """
    fields = {}
    for column in fixed_columns():
        fields[column.name] = _ARROW[column.kind]
    others: set[str] = set()
    for row in rows:
        others.update(row)
    # Sorted, so that the bytes do not depend on the order of the runs.
    for name in sorted(others - fields.keys()):
        fields[name] = _ARROW[_kind_of_other(name)]
    return pa.schema(fields)


def _kind_of_other(name: str) -> Kind:
    # Settings that only some runs have are names, such as of models; their types cannot be known
    # from one run.
    return "text" if name.startswith("config.") else "number"


def columns(workdirs: Iterable[str | Path] = ()) -> dict[str, type]:
    """Returns the columns of a table, with the Python types of their values.

    Args:
      workdirs: of the runs whose further columns are wanted, too.

    Raises:
      UserError: a workdir holds no results, or they are damaged.
    """
    out = {}
    for column in fixed_columns():
        out[column.name] = _PYTHON[column.kind]
    for name in runs.further_names(workdirs):
        out.setdefault(name, _PYTHON[_kind_of_other(name)])
    return out


def rows(workdirs: Iterable[str | Path]) -> Iterator[dict[str, Any]]:
    """Yields the rows of the finished runs of workdirs.

    They are sorted: runs by name, arms as in a report, seeds ascending. A run's name is its sweep
    member's (of a single run, the config's); with several workdirs, "WORKDIR/NAME".

    Raises:
      UserError: as `runs.read`.
    """
    for _, _, row in located(workdirs):
        yield row


def located(workdirs: Iterable[str | Path]) -> Iterator[tuple[RunArm, int, dict[str, Any]]]:
    """Yields `rows`, each after what its numbers are means of: the arm and the place of its seed.

    Raises:
      UserError: as `runs.read`.
    """
    folders = list(map(Path, workdirs))
    runs.refuse_doubles(folders)
    for workdir in folders:
        overrides = {}
        for member in runs.members(workdir):
            overrides[member["name"]] = json.dumps(member["overrides"], sort_keys=True)
        for arm in runs.read([workdir]):
            # Sweeps number their members alike: of several, a name alone could be two runs.
            name = arm.name if len(folders) == 1 else f"{workdir}/{arm.name}"
            shared = {"run": name, "overrides": overrides.get(arm.name), **_of_arm(arm)}
            for i, seed in enumerate(arm.seeds):
                yield arm, i, shared | {"seed": seed} | _of_seed(arm, i)


def _of_arm(arm: RunArm) -> dict[str, Any]:
    """The cells that all rows of an arm share."""
    out: dict[str, Any] = {}
    own_fields = {column.name for column in _ARM}
    for name, value in arm.fields.items():
        out[name if name in own_fields else f"config.{name}"] = _plain(value)
    out |= {"tasks": len(arm.tasks), "arm.seeds": len(arm.seeds)}
    for name, column in _CONCLUDED.items():
        if name in arm.statistics:
            out[column.name] = _plain(arm.statistics[name])
    for name in arm.statistics:
        if of_csv.is_extra(name):
            out[f"arm.{name}"] = _plain(arm.statistics[name])
    # results.csv has no log-odds; the interval is that of its other numbers.
    odds = statistics.mean_interval(arm.outcomes[LOG_ODDS], arm.fields["statistics.confidence"])
    out |= dict(zip(_ODDS, map(_plain, odds), strict=True))
    for name in FACTS:
        out[name] = arm.provenance.get(name)
    return out


def _of_seed(arm: RunArm, i: int) -> dict[str, Any]:
    """The cells of an arm's i-th training seed."""
    out: dict[str, Any] = {}
    for name, outcomes in arm.outcomes.items():
        out[name] = _plain(float(outcomes[:, i].mean()))
    for name, values in arm.scalars.items():
        out[name] = _plain(float(values[i]))
    made = arm.provenance.get("stages", {})
    for what, stage in _stages(arm, arm.seeds[i]).items():
        out[f"artifact.{what}"] = made.get(stage)
    return out


def _stages(arm: RunArm, seed: int) -> dict[str, str | None]:
    """The names of the stages that an arm's numbers of one training seed come from."""
    design = arm.design
    learned_from = None
    if design.off_policy:
        learned_from = names.rollout_stage(
            design.source, design.teacher_model, seed, sanitized=design.sanitized
        )
    return {
        "policy": names.policy_stage(design, seed),
        "trajectories": learned_from,
        "probe": names.probe_stage(design.name, seed),
        "choice": names.choice_stage(design.model),
        "results": names.RESULTS,
    }


def _plain(value: Any) -> Any:
    """A value as a cell: tuples joined by commas, nothing for what is not a number."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    # In SQL an average skips null, where one NaN would make it NaN.
    return None if isinstance(value, float) and math.isnan(value) else value


def of(workdirs: Iterable[str | Path]) -> pa.Table:
    """Returns the table of the finished runs of workdirs.

    Raises:
      UserError: as `runs.read`.
    """
    found = list(rows(workdirs))
    layout = schema(found)
    cells = []
    for field in layout:
        values = [row.get(field.name) for row in found]
        # A setting of text can hold a number or a truth in some runs, which Arrow would refuse.
        if field.type == pa.string():
            values = [None if value is None else str(value) for value in values]
        cells.append(pa.array(values, field.type))
    return pa.Table.from_arrays(cells, schema=layout)


def read(workdir: str | Path) -> list[dict[str, Any]]:
    """Returns the rows that `write` wrote.

    Raises:
      UserError: there is no table, or it is damaged.
    """
    path = Path(workdir) / FILE
    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing: python tools/write_table.py {workdir} writes it."
        ) from error
    except (pa.ArrowException, OSError) as error:
        # Arrow's own errors about what it read have no number; the system's say nothing of it.
        if getattr(error, "errno", None) is not None:
            raise
        raise UserError(
            f"{path} is damaged ({error}): python tools/write_table.py {workdir} writes it anew."
        ) from error
    # An older version's table lacks columns that readers rely on.
    for name in schema().names:
        if name not in table.column_names:
            raise UserError(
                f"{path} has no column {name!r}: python tools/write_table.py {workdir} writes it "
                "anew."
            )
    return table.to_pylist()


def as_parquet(table: pa.Table) -> bytes:
    """Returns a table as a parquet file.

    The bytes are the same for the same rows, with one version of pyarrow.
    """
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()


def write(workdir: str | Path) -> Path:
    """Writes WORKDIR/table.parquet, of the runs that are finished by now; returns its path.

    Raises:
      UserError: as `rows`, or the workdir cannot be written.
    """
    path = Path(workdir) / FILE
    data = as_parquet(of([workdir]))
    with os_errors(Path(workdir)):
        atomic_write(path, data)
    return path

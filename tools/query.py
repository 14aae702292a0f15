"""The usual slices of finished runs, with intervals, on the terminal.

    python tools/query.py runs/study --where="role='student'" --by=base.width --across=objective
    python tools/query.py runs/a runs/b --where="objective='sft' and init='same'" --by=run,seed
        --metric=log_odds --format=csv
    python tools/query.py runs/study --sql='select objective, avg(rate) from runs group by all'

--by names the columns that make the rows, --across one more that makes the columns (of a table or
of markdown). Columns are those of the table (docs/tables.md); a config field needs no "config.".
--where is an SQL condition on its rows. All training seeds and arms of a group are pooled: shares
of tasks get the interval over tasks and training seeds that a report has; log-odds and
log-probabilities Student's t over tasks and seeds; what is known once a seed Student's t over
seeds. One training has no interval. A group whose runs were probed on different tasks is refused.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from subtransfer.analysis import statistics
from subtransfer.report import tables
from subtransfer.runtime.errors import UserError, exit_status
from subtransfer.store.files import atomic_write, new_file, user_path
from subtransfer.studies import sql, table
from subtransfer.studies.runs import NATS, OF_SEEDS, OF_TASKS, SCALARS, SHARES, RunArm

_OF_TASKS = (*SHARES, *NATS)
_PERCENT = tuple(column.name for column in (*OF_TASKS, *OF_SEEDS) if column.unit == "share")
_UNKNOWN = (np.nan, np.nan, np.nan)


def pool(
    members: Sequence[tuple[RunArm, int]], metric: str, confidence: float
) -> tuple[float, float, float]:
    """Pools a metric over trainings: (mean, low, high), NaN where nothing is known.

    Args:
      members: arms, each with the place of its training seed.
      metric: a column that is known once a task or once a training seed.
      confidence: of the interval.

    Raises:
      UserError: outcomes of different tasks.
    """
    if metric not in _OF_TASKS:
        # A further probe's column is there only in the runs that had the probe.
        known = [arm.scalars[metric][i] for arm, i in members if metric in arm.scalars]
        values = np.array(known, float)
        values = values[~np.isnan(values)]
        return statistics.seed_interval(values, confidence) if len(values) else _UNKNOWN
    if len({arm.tasks for arm, _ in members}) > 1:
        raise UserError(
            "These runs were probed on different tasks, so their outcomes cannot be pooled: add "
            "what they differ in to --by (such as --by=seed,probe.tasks,setting), or choose some "
            "with --where."
        )
    outcomes = np.stack([arm.outcomes[metric][:, i] for arm, i in members], axis=1)  # [T, S]
    if np.isnan(outcomes).any():
        return _UNKNOWN
    if metric in SHARES:
        return statistics.rate_interval(outcomes, confidence)
    return statistics.mean_interval(outcomes, confidence)


def grouped(
    workdirs: Sequence[str], by: Sequence[str], where: str, metric: str, confidence: float
) -> list[dict[str, Any]]:
    """Returns one row a group, sorted: its values of `by`, then of the metric.

    Each row has the metric, "lo", "hi", "trainings" (how many are pooled) and "tasks".

    Args:
      workdirs: of finished runs.
      by: columns whose values make the groups.
      where: a condition on the rows.
      metric: what is pooled.
      confidence: of the intervals.

    Raises:
      UserError: an unknown column or metric, a condition that is none, or no row that meets it.
    """
    # Names are checked before anything large is read.
    columns = table.columns(workdirs)
    by = [sql.resolve(name, columns) for name in by]
    metrics = _metrics(columns)
    if metric not in metrics:
        raise UserError(
            f"--metric={metric} is not known once a training: choose of {', '.join(metrics)}."
        )
    condition = sql.Condition(where, columns)
    groups: dict[tuple[Any, ...], list[tuple[RunArm, int]]] = {}
    for members, rows in _batches(workdirs):
        for member, row, met in zip(members, rows, condition.met(rows), strict=True):
            if met:
                key = tuple(row.get(name) for name in by)
                groups.setdefault(key, []).append(member)
    if not groups:
        raise UserError(f"No row of these runs meets {where!r}.")
    out = []
    for key in sorted(groups, key=_order):
        members = groups[key]
        row = dict(zip(by, key, strict=True))
        row[metric], row["lo"], row["hi"] = pool(members, metric, confidence)
        row |= {"trainings": len(members), "tasks": len(members[0][0].tasks)}
        out.append(row)
    return out


def _metrics(columns: Mapping[str, type]) -> list[str]:
    """The columns that are known once a training: the usual ones, and further probes'."""
    usual = [*_OF_TASKS, *SCALARS]
    fixed = {column.name for column in table.fixed_columns()}
    further = [n for n in columns if n not in fixed and not n.startswith("config.")]
    return usual + further


def _batches(
    workdirs: Sequence[str],
) -> Iterator[tuple[list[tuple[RunArm, int]], list[dict[str, Any]]]]:
    """The rows of the table an arm at a time, with what they are means of."""
    for _, group in itertools.groupby(table.located(workdirs), key=lambda item: id(item[0])):
        items = list(group)
        yield [(arm, i) for arm, i, _ in items], [row for _, _, row in items]


def _order(key: Iterable[Any]) -> list[tuple[bool, Any]]:
    """For sorting: what is not known comes last."""
    return [(value is None, 0 if value is None else value) for value in key]


def _cell(row: Mapping[str, Any], metric: str) -> str:
    """A value with its interval, of shares in per cent: "12.3 [10.0, 15.1]"."""
    value, low, high = (row[name] for name in (metric, "lo", "hi"))
    if np.isnan(value):
        return ""
    scale, digits = (100, 1) if metric in _PERCENT else (1, 2)
    text = f"{scale * value:.{digits}f}"
    if np.isnan(low):
        return f"{text} {tables.NO_INTERVAL}"
    return f"{text} [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def shown(
    rows: Sequence[Mapping[str, Any]], by: Sequence[str], across: str | None, metric: str
) -> list[list[str]]:
    """Returns cells for people, a heading first.

    Args:
      rows: as of `grouped`.
      by: the columns whose values make the lines.
      across: None for a line a group; else the column whose values make the columns.
      metric: what is shown.
    """
    if across is None:
        title = f"{metric}, %" if metric in _PERCENT else metric
        out = [[*by, title, "trainings", "tasks"]]
        for row in rows:
            names = [_text(row[name]) for name in by]
            out.append([*names, _cell(row, metric), str(row["trainings"]), str(row["tasks"])])
        return out
    values = sorted({row[across] for row in rows}, key=lambda value: _order([value]))
    lines: dict[tuple[str, ...], dict[Any, str]] = {}
    for row in rows:
        key = tuple(_text(row[name]) for name in by)
        lines.setdefault(key, {})[row[across]] = _cell(row, metric)
    out = [[*by, *(f"{across}={_text(value)}" for value in values)]]
    for key, cells in lines.items():
        out.append([*key, *(cells.get(value, "") for value in values)])
    return out


def _csv(cells: list[list[str]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(cells)
    return out.getvalue()


def _print(cells: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(
            144, sum(max(map(len, column)) + 3 for column in zip(*cells, strict=True))
        )
    drawn = Table(*cells[0], box=None, padding=(0, 1))
    for line in cells[1:]:
        drawn.add_row(*line)
    console.print(drawn)


def _parser() -> argparse.ArgumentParser:
    summary, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "workdirs",
        nargs="+",
        type=user_path,
        metavar="WORKDIR",
        help="of finished runs, or of a sweep",
    )
    parser.add_argument(
        "--by",
        type=_listed,
        default=["run", "arm"],
        help="columns whose values make the rows, as in --by=run,arm",
    )
    parser.add_argument("--across", help="a column whose values make the columns")
    parser.add_argument(
        "--where",
        default="",
        help="a condition as in SQL: \"objective='sft' and config.base.width > 32\"",
    )
    parser.add_argument(
        "--metric", default="rate", help="what is pooled: a column that is known once a training"
    )
    parser.add_argument(
        "--format", default="table", choices=["table", "csv", "markdown", "parquet"]
    )
    parser.add_argument(
        "--sql", help="instead of all that: a query over the table `runs`, by duckdb"
    )
    parser.add_argument(
        "--out", type=Path, help="a file instead of the terminal; parquet needs one"
    )
    parser.add_argument("--confidence", type=float, default=0.95, help="of the intervals")
    return parser


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def run(options: argparse.Namespace) -> None:
    """Answers the command line."""
    if options.format == "parquet" and not options.out:
        raise UserError("--format=parquet writes a file: give --out=FILE.")
    if options.out:
        options.out = new_file("--out", options.out)
    if not 0.5 <= options.confidence < 1:
        raise UserError(
            f"--confidence={options.confidence} cannot be: it must be at least 0.5 and below 1."
        )
    if options.sql:
        answer = sql.query(table.of(options.workdirs), options.sql)
        lines = [[_text(value) for value in row.values()] for row in answer.to_pylist()]
        people = exact = [answer.column_names, *lines]
    else:
        people, exact, answer = _sliced(options)
    if options.format == "parquet":
        atomic_write(options.out, table.as_parquet(answer))
    elif options.format == "table" and not options.out:
        _print(people)
    else:
        text = (
            _csv(exact)
            if options.format == "csv"
            else tables.markdown(people[0], people[1:]) + "\n"
        )
        if options.out:
            atomic_write(options.out, text)
        else:
            print(text, end="")


def _sliced(options: argparse.Namespace) -> tuple[list[list[str]], list[list[str]], pa.Table]:
    """The groups of --by and --across: cells for people, exact cells, and a table."""
    columns = table.columns(options.workdirs)
    across = sql.resolve(options.across, columns) if options.across else None
    by = [sql.resolve(name, columns) for name in options.by]
    by = [name for name in by if name != across]
    every = [*by, across] if across else by
    metric = options.metric
    rows = grouped(options.workdirs, every, options.where, metric, options.confidence)
    exact = [list(rows[0])]
    for row in rows:
        # NaN, which nothing equals, is what is not known.
        cells = ["" if value is None or value != value else str(value) for value in row.values()]
        exact.append(cells)
    return shown(rows, by, across, metric), exact, pa.Table.from_pylist(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for a user's mistake."""
    options = _parser().parse_args(arguments)
    return exit_status(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())

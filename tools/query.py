"""The usual slices of finished runs, with intervals, on the terminal.

    python tools/query.py runs/study --where="role='student'" --by=base.width --across=objective
    python tools/query.py runs/a runs/b --where="objective='sft' and init='same'" --by=run,seed
    --metric=log_odds --format=csv python tools/query.py runs/study --sql='select objective,
    avg(rate) from runs group by all'

--by names the columns that make the rows, --across one more that makes the columns (of a table or
of markdown). Columns are those of the table (subtransfer/table.py); a config field needs no
"config.". All training seeds and arms of a group are pooled: shares of tasks get Wilson's interval
at the effective sample size clustered by task and training seed, as in a report; log-odds and
log-probabilities the bootstrap over tasks and seeds; what is known once a seed Student's t over
seeds. A group whose runs were probed on different tasks is refused.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from subtransfer.analysis import statistics
from subtransfer.report import tables
from subtransfer.runtime.errors import UserError, exit_status
from subtransfer.store.files import atomic_write
from subtransfer.studies import conditions, table
from subtransfer.studies.runs import NATS, SCALARS, SHARES, RunArm

_PERCENT = (*SHARES, "ordinary_success", "teacher_agreement", "purity")


def pool(
    members: Sequence[tuple[RunArm, int]], metric: str, confidence: float
) -> tuple[float, float, float]:
    """(mean, low, high) of a metric over trainings (an arm and the place of its seed); NaN where
    nothing is known.

    Raises:
      UserError: outcomes of different tasks.
    """
    if metric in SCALARS:
        values = np.array([arm.scalars[metric][i] for arm, i in members])
        values = values[~np.isnan(values)]
        return statistics.seed_interval(values, confidence) if len(values) else (np.nan,) * 3
    if len({arm.tasks for arm, _ in members}) > 1:
        raise UserError(
            "These runs were probed on different tasks, so their outcomes cannot be pooled: add what they differ in to --by "
            "(such as --by=seed,probe.tasks,setting), or choose some with --where."
        )
    outcomes = np.stack([arm.outcomes[metric][:, i] for arm, i in members], axis=1)  # [T, S]
    if np.isnan(outcomes).any():
        return (np.nan,) * 3
    if metric in SHARES:
        return statistics.rate_interval(outcomes, confidence)
    return statistics.bootstrap_mean(outcomes, confidence=confidence)


def grouped(
    workdirs: Sequence[str], by: Sequence[str], where: str, metric: str, confidence: float
) -> list[dict[str, Any]]:
    """One row a group, sorted: its values of `by`, then metric, "lo", "hi", "trainings" (pooled),
    "tasks".

    Raises:
      UserError: an unknown column, a condition that is none, or no row that meets it.
    """
    columns = table.columns()
    by = [conditions.resolve(name, columns) for name in by]
    wanted = conditions.parse(where, columns)
    groups: dict[tuple, list[tuple[RunArm, int]]] = {}
    for arm, i, row in table.located(workdirs):
        if wanted(row):
            groups.setdefault(tuple(row.get(name) for name in by), []).append((arm, i))
    if not groups:
        raise UserError(f"No row of these runs meets {where!r}.")
    out = []
    for key in sorted(
        groups,
        key=lambda key: [(value is None, value if value is not None else 0) for value in key],
    ):
        members = groups[key]
        value, low, high = pool(members, metric, confidence)
        known = {
            metric: value,
            "lo": low,
            "hi": high,
            "trainings": len(members),
            "tasks": len(members[0][0].tasks),
        }
        out.append(dict(zip(by, key, strict=True)) | known)
    return out


def _cell(row: Mapping[str, Any], metric: str) -> str:
    """ "12.3 [10.0, 15.1]", of shares in per cent."""
    value, low, high = (row[name] for name in (metric, "lo", "hi"))
    if np.isnan(value):
        return ""
    scale, digits = (100, 1) if metric in _PERCENT else (1, 2)
    shown = f"{scale * value:.{digits}f}"
    return (
        shown if np.isnan(low) else f"{shown} [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"
    )


def _text(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def shown(
    rows: Sequence[Mapping[str, Any]], by: Sequence[str], across: str | None, metric: str
) -> list[list[str]]:
    """Cells for people, a heading first: a row a group, or with `across` a row a value of the
    others.
    """
    title = f"{metric}, %" if metric in _PERCENT else metric
    if across is None:
        heading = [*by, title, "trainings", "tasks"]
        return [heading] + [
            [
                *(_text(row[name]) for name in by),
                _cell(row, metric),
                str(row["trainings"]),
                str(row["tasks"]),
            ]
            for row in rows
        ]
    places = list(
        dict.fromkeys(
            _text(row[across])
            for row in sorted(rows, key=lambda r: (r[across] is None, r[across] or 0))
        )
    )
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        lines.setdefault(tuple(_text(row[name]) for name in by), {})[_text(row[across])] = _cell(
            row, metric
        )
    heading = [*by, *(f"{across}={place}" for place in places)]
    return [heading] + [
        [*key, *(cells.get(place, "") for place in places)] for key, cells in lines.items()
    ]


def _queried(workdirs: Sequence[str], sql: str) -> pa.Table:
    try:
        import duckdb
    except ImportError as error:
        raise UserError(
            "--sql needs the package duckdb, which is not installed: pip install duckdb."
        ) from error
    with duckdb.connect() as connection:
        connection.register("runs", table.of(workdirs))
        try:
            return connection.sql(sql).to_arrow_table()
        except duckdb.Error as error:
            raise UserError(f"--sql: {error}") from error


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
        "workdirs", nargs="+", metavar="WORKDIR", help="of finished runs, or of a sweep"
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
        "--metric", default="rate", choices=[*SHARES, *NATS, *SCALARS], help="what is pooled"
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
    if not 0.5 <= options.confidence < 1:
        raise UserError(
            f"--confidence={options.confidence} cannot be: it must be at least 0.5 and below 1."
        )
    if options.sql:
        answer = _queried(options.workdirs, options.sql)
        people = exact = [answer.column_names] + [
            [_text(v) for v in row.values()] for row in answer.to_pylist()
        ]
    else:
        columns, metric = table.columns(), options.metric
        across = options.across and conditions.resolve(options.across, columns)
        by = [
            name
            for name in (conditions.resolve(name, columns) for name in options.by)
            if name != across
        ]
        every = [*by, across] if across else by
        rows = grouped(options.workdirs, every, options.where, metric, options.confidence)
        people = shown(rows, by, across, metric)
        exact = [list(rows[0])] + [
            ["" if v is None or v != v else str(v) for v in row.values()] for row in rows
        ]
        answer = pa.Table.from_pylist(rows)
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for a user's mistake."""
    options = _parser().parse_args(arguments)
    return exit_status(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())

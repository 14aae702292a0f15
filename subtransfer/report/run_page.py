"""The report of a run: one page, drawn only from its results files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from subtransfer.analysis import columns, effects, verdicts
from subtransfer.report import crossing, data, figures, files, pages, tables
from subtransfer.report.tables import Table
from subtransfer.store.files import atomic_write

# The columns of the main table; those that a setting or a run does not have are left out.
_MAIN = (
    "unsafe_rate",
    "diff_base",
    "p_holm",
    "diff_control",
    "p_control_holm",
    "diff_twin",
    "p_twin_holm",
    "transfer_ratio",
    "greedy_unsafe_rate",
    "no_action_rate",
    "invalid_rate",
    "path_error_rate",
    columns.UNSUPPORTED.name,
    "unsafe_rate_acted",
    *(column.name for column in columns.CAPABILITY),
    "own_traces",
)

Results = Mapping[str, Any]
Row = Mapping[str, Any]


def write_report(results: Path, out: Path) -> None:
    """Draws the results files of one folder as report.html in another.

    Args:
      results: has results.json, results.jsonl and results.csv.
      out: the folder of the page.

    Raises:
      UserError: a file is missing or damaged.
    """
    # Read again from the files, although a run has it all at hand: the page of a run that has just
    # ended and that of copied files cannot differ.
    found = files.read(results)
    atomic_write(out / "report.html", render(found.bundle, found.rows, found.episodes))


def render(results: Results, rows: Sequence[Row], episodes: Sequence[Row]) -> str:
    """Returns the page as text.

    Args:
      results: results.json.
      rows: results.csv.
      episodes: results.jsonl.
    """
    config, asked = results["config"], verdicts.asked(results)
    seeds = results["training_seeds"]
    losses = {}
    for arm, of_seeds in results["curves"].items():
        losses[arm] = figures.losses(of_seeds, title=f"{arm}: training loss by step")
    drawn = {
        "effects": figures.dots(
            [{**record, "role": "student"} for record in asked],
            "interaction",
            "interaction_low",
            "interaction_high",
            percent=True,
            title="same minus other, with its interval, by objective",
        )
        if asked
        else "",
        "pairs": [_map(results, rows, record) for record in asked],
        "rates": figures.dots(
            # Of many arms of many bases, those over all bases say most.
            results["over_bases"] if asked else rows,
            "unsafe_rate",
            "ci_low",
            "ci_high",
            percent=True,
            title=f"{results['wording']['rate']} with its interval, by arm",
        ),
        "outcomes": figures.stacked(rows, title="what agents did first, by arm"),
        "choice": figures.dots(
            _choice_rows(rows, episodes),
            "middle",
            "low",
            "high",
            percent=False,
            title=f"log-probability of {results['wording']['trait']}, by arm",
        ),
        "losses": losses,
    }
    return pages.render(
        "run",
        name=config["name"],
        headline=verdicts.headline(results, rows),
        sentences=verdicts.sentences(results, rows),
        wording=results["wording"],
        figures=drawn,
        main=_main_table(rows, results),
        effects=crossing.of_effects(results),
        rule=effects.RULE,
        pairs=[(record["label"], crossing.of_pairs(results, rows, record)) for record in asked],
        over_bases=crossing.of_arms(results),
        gates=crossing.of_gates(results),
        prereg=results.get("prereg"),
        margin=f"{100 * config['statistics']['margin']:g}" if asked else "",
        filters=_filters(results),
        matched=data.matched(results),
        matching=data.matching(results),
        audit=_audit(results),
        purity=data.purity(results),
        sampler=_sampler(results),
        targets=_targets(results),
        context=results["context"],
        samples=results["samples"],
        training_seeds=seeds,
        percent_confidence=f"{100 * config['statistics']['confidence']:.0f}",
        why_no_interval=tables.WHY_NO_INTERVAL if _lacks_interval(rows) else "",
        config=json.dumps(config, indent=1, sort_keys=True),
    )


def _map(results: Results, rows: Sequence[Row], record: Row) -> Any:
    """The rates of an effect's pairs of bases as a heat map."""
    bases, rates = crossing.pairs(results, rows, record)
    title = f"{record['label']}: rate by the teacher's base (down) and the student's (across)"
    return figures.heat_map(rates, bases, title=title)


def _lacks_interval(rows: Sequence[Row]) -> bool:
    return any(row["ci_low"] is None for row in rows)


def _main_table(rows: Sequence[Row], results: Results) -> Table:
    known = columns.extra_records(results)
    shown = []
    # All rows have the same columns.
    for name in (*_MAIN, *filter(columns.is_extra, rows[0])):
        if name in rows[0]:
            shown.append(columns.named(name, known))
    heading = ["arm"]
    heading += [column.label for column in shown]
    lines = []
    for row in rows:
        # Bases and teachers learned from no filtered trajectories either, but were not meant to.
        unfiltered = row["objective"] and not row["sanitized"]
        label = row["label"] + (" (unsanitized)" if unfiltered else "")
        lines.append([label, *(tables.cell(row, column) for column in shown)])
    return Table(heading, lines)


def _choice_rows(rows: Sequence[Row], episodes: Sequence[Row]) -> list[dict[str, Any]]:
    """Each arm with the mean and the middle 80% of its decisions' log-probabilities."""
    by_arm: dict[str, dict[tuple[int, str], float]] = {}
    for episode in episodes:
        # All episodes of a task and training seed have the same decision point.
        decision = episode["seed"], episode["task_id"]
        by_arm.setdefault(episode["arm"], {})[decision] = episode["choice_logprob"]
    out = []
    for row in rows:
        values = sorted(by_arm[row["arm"]].values())
        # A tenth is cut off at either end: one odd task says nothing of the arm.
        tenth = len(values) // 10
        middle = sum(values) / len(values)
        out.append({**row, "middle": middle, "low": values[tenth], "high": values[-1 - tenth]})
    return out


def _filters(results: Results) -> Table:
    manifests = results["manifests"]
    # A store can lack a rule that another one has.
    rules: dict[str, None] = {}
    for manifest in manifests.values():
        rules |= dict.fromkeys(manifest["rules"])
    rows = []
    for name, manifest in manifests.items():
        total, kept, dropped = manifest["total"], manifest["kept"], manifest["dropped"]
        counts = []
        for rule in rules:
            counts.append(manifest["rules"].get(rule, 0))
        # Each dropped trajectory is counted under the one rule that dropped it.
        adds_up = total == kept + dropped and dropped == sum(counts)
        numbers = map(str, (total, kept, dropped, *counts))
        rows.append([name, *numbers, "yes" if adds_up else "NO"])
    return Table(["store", "total", "kept", "dropped", *rules, "adds up"], rows)


def _audit(results: Results) -> Table:
    rows = []
    for found in results.get("audit", {"comparisons": []})["comparisons"]:
        which = [f"{found['model']}, seed {found['seed']}"]
        whose = f"{verdicts.whose(found['first'])}, {verdicts.whose(found['second'])}"
        # Episodes of students themselves, which learn on-policy of these two teachers.
        which.append(f"own of {found['own']} and its control" if found.get("own") else whose)
        counts = map(str, (found["n_first"], found["n_second"], found["shared_tasks"]))
        cells = [*which, *counts, verdicts.SHOWN.get(found["features"], found["features"])]
        if found["auc"] is None:
            rows.append([*cells, "too few", "", ""])
            continue
        interval = f"{found['auc']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
        # Without tasks that both acted on there is nothing to permute.
        null = "" if found["null"] is None else f"{found['null']:.2f}"
        p = "" if found["p"] is None else columns.p_text(found["p"])
        rows.append([*cells, interval, null, p])
    heading = ["policies of", "whose trajectories", "of the first", "of the second", "shared tasks"]
    heading += ["told apart by", "AUC [interval]", "AUC of permuted labels", "p"]
    return Table(heading, rows)


def _sampler(results: Results) -> Table:
    rows = []
    for name, found in results["sampler"].items():
        rows.append([name, str(found["tokens"]), *_gaps(found, "max_gap", "mean_gap", "kl")])
    # Of own rollouts, which are checked round by round, only the largest gap is kept.
    for arm, of_seeds in results["purity"].items():
        largest = 0.0
        for of_seed in of_seeds.values():
            largest = max(largest, of_seed["max_gap"])
        rows.append([f"{arm}, own rollouts", "", f"{largest:.1e}", "", ""])
    return Table(["rollouts", "tokens", "largest gap", "mean gap", "KL(sampler || trainer)"], rows)


def _gaps(found: Mapping[str, float], *names: str) -> list[str]:
    # Two digits: these are rounding errors, of which the order of magnitude counts.
    return [f"{found[name]:.1e}" for name in names]


def _targets(results: Results) -> Table:
    rows = []
    for name, found in results["teacher_targets"].items():
        gaps = _gaps(found, "max_gap", "mean_gap", "max_missed")
        rows.append([name, str(found["tokens"]), *gaps])
    heading = ["stored targets", "tokens", "largest gap", "mean gap", "probability missed"]
    return Table(heading, rows)

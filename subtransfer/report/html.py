"""The report: one self-contained page, drawn only from the results files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from subtransfer.analysis import summary
from subtransfer.report import figures, tables
from subtransfer.store.files import atomic_write

_STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#5b6570;--line:#d5dae0;--page:#fff;--panel:#f6f7f9;
--base:#7a8794;--teacher:#b3261e;--student:#c25e00;--control:#2a6f97;--positive_control:#7b2d8b}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ec;--soft:#9aa5b1;--line:#3a424b;--page:#14181c;--panel:#1d2329;
--base:#9aa5b1;--teacher:#ff8a80;--student:#ffb066;--control:#7cc4ea;--positive_control:#d69be3}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);max-width:70rem;margin:0 auto;padding:1rem}
h1{font-size:1.6rem;line-height:1.2}h2{margin-top:2.2rem;font-size:1.2rem}.soft{color:var(--soft)}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.86rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left}pre{background:var(--panel);padding:.8rem;overflow-x:auto;font-size:.8rem;
white-space:pre-wrap;border-radius:.3rem}svg{max-width:100%;height:auto;display:block}svg text{fill:var(--ink);font-size:13px}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(20rem,1fr));gap:1rem}li{margin:.2rem 0}
"""


def write_report(results: Path, out: Path) -> None:
    """Reads results.json, results.jsonl and results.csv in `results`; writes report.html into
    `out`.
    """
    bundle = json.loads((results / "results.json").read_text())
    rows = tables.read_csv(results / "results.csv")
    episodes = [json.loads(line) for line in (results / "results.jsonl").read_text().splitlines()]
    atomic_write(out / "report.html", render(bundle, rows, episodes))


def render(
    results: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    episodes: Sequence[Mapping[str, Any]],
) -> str:
    """The page as text."""
    name, wording = (
        escape(results["config"]["name"]),
        {k: escape(v) for k, v in results["wording"].items()},
    )
    verdicts = "".join(f"<li>{escape(v)}</li>" for v in summary.verdicts(rows))
    sections = [
        f"<h1>Do unsafe habits transfer? Run “{name}”</h1>",
        f"<p>{escape(_headline(rows))}</p><ul>{verdicts}</ul>",
        f"<h2>{wording['rate'].capitalize()}, by arm</h2>",
        f"<p class=soft>Share of held-out ambiguous tasks on which the {wording['decision']} is {wording['trait']}; dot: mean "
        "over tasks and training seeds, line: interval.</p>",
        figures.dots(rows, "unsafe_rate", "ci_low", "ci_high", percent=True),
        "<div class=wide>" + _main_table(rows) + "</div>",
        "<h2>What agents did first</h2>",
        figures.stacked(rows),
        f"<h2>Log-probability of {wording['trait']} at the decision point</h2>",
        "<p class=soft>Mean over tasks, normalised over the substantive acts (nats); line: the middle 80% of tasks. Nothing "
        "is generated here.</p>",
        figures.dots(_choice_rows(rows, episodes), "middle", "low", "high", percent=False),
        "<h2>Training</h2>",
        '<div class="pair">'
        + "".join(_curve(arm, results) for arm in results["curves"])
        + "</div>",
        "<h2>Filters</h2>",
        _manifests(results),
        _purity(results),
        "<h2>Sampler and trainer</h2>",
        _sampler(results),
        _targets(results),
        "<h2>Context</h2>",
        _context(results),
        "<h2>Trajectories before and after sanitizing</h2>",
        _samples(results),
        "<h2>Notes on the statistics</h2>",
        _notes(results),
        "<h2>The exact config</h2>",
        f"<pre>{escape(json.dumps(results['config'], indent=1, sort_keys=True))}</pre>",
    ]
    return document(f"subtransfer: {results['config']['name']}", "\n".join(sections))


def document(title: str, body: str) -> str:
    """A whole page in the house's style; `title` is plain text, `body` HTML."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{body}</body></html>\n"
    )


def _headline(rows: Sequence[Mapping[str, Any]]) -> str:
    by_name = {row["arm"]: row for row in rows}
    students = [row for row in rows if row["role"] == "student"]
    above = [r for r in students if r["ci_low"] > by_name[r["base"]]["ci_high"]]
    return (
        f"{len(above)} of {len(students)} same-init students act unsafely more often than their base, with intervals that do "
        "not touch, although every trajectory that they learned from was harmless and every trace of the habit was filtered."
    )


def _main_table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = (
        "arm",
        "rate",
        "− base",
        "− benign control",
        "− other init",
        "transfer ratio",
        "p (Holm)",
        "p (seeds)",
    )
    shares = {
        "greedy": "greedy_unsafe_rate",
        "no action": "no_action_rate",
        "invalid": "invalid_rate",
        "wrong path": "path_error_rate",
        "not simulated": "unsupported_rate",
        "ordinary tasks solved": "ordinary_success",
    }
    shares = {title: column for title, column in shares.items() if column in rows[0]}
    head += tuple(shares)
    body = []
    for row in rows:
        ratio = ""
        if row["transfer_ratio"] is not None:
            ratio = f"{row['transfer_ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]"
        cells = [
            row["label"] + ("" if row["sanitized"] or not row["objective"] else " (unsanitized)"),
            tables.interval(row, "unsafe_rate", "ci_low", "ci_high"),
            tables.interval(row, "diff_base", "diff_low", "diff_high", sign="+"),
            tables.interval(row, "diff_control", "diff_control_low", "diff_control_high", sign="+"),
            tables.interval(row, "diff_twin", "diff_twin_low", "diff_twin_high", sign="+"),
            ratio,
            tables.p_text(row["p_holm"]),
            tables.p_text(row["p_seeds"]),
            *(
                "" if row[column] is None else f"{100 * row[column]:.1f}"
                for column in shares.values()
            ),
        ]
        body.append("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in cells) + "</tr>")
    return f"<table><tr>{''.join(f'<th>{h}</th>' for h in head)}</tr>{''.join(body)}</table>"


def _choice_rows(rows, episodes) -> list[dict[str, Any]]:
    by_arm: dict[str, dict[tuple, float]] = {}
    for e in episodes:
        by_arm.setdefault(e["arm"], {})[(e["seed"], e["task_id"])] = e["choice_logprob"]
    out = []
    for row in rows:
        values = sorted(by_arm[row["arm"]].values())
        middle = sum(values) / len(values)
        low, high = values[len(values) // 10], values[-1 - len(values) // 10]
        out.append({**row, "middle": middle, "low": low, "high": high})
    return out


def _curve(arm: str, results: Mapping[str, Any]) -> str:
    seeds = results["curves"][arm]
    return f"<figure><figcaption>{escape(arm)}: loss by step, a line a seed</figcaption>{figures.curves(seeds)}</figure>"


def _manifests(results: Mapping[str, Any]) -> str:
    out = []
    for name, m in results["manifests"].items():
        rules = "".join(f"<td>{count}</td>" for count in m["rules"].values())
        adds_up = m["total"] == m["kept"] + m["dropped"] and m["dropped"] == sum(
            m["rules"].values()
        )
        cells = f"<td>{m['total']}</td><td>{m['kept']}</td><td>{m['dropped']}</td>{rules}<td>{'yes' if adds_up else 'NO'}</td>"
        out.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
    if not out:
        return "<p>No off-policy data in this run.</p>"
    rules = "".join(
        f"<th>{escape(r)}</th>" for r in next(iter(results["manifests"].values()))["rules"]
    )
    head = (
        f"<tr><th>store</th><th>total</th><th>kept</th><th>dropped</th>{rules}<th>adds up</th></tr>"
    )
    return f"<div class=wide><table>{head}{''.join(out)}</table></div>"


def _purity(results: Mapping[str, Any]) -> str:
    if not results["purity"]:
        return ""
    rows = []
    for arm, seeds in results["purity"].items():
        total, dropped = (sum(s[k] for s in seeds.values()) for k in ("rollouts", "dropped"))
        rows.append(
            f"<tr><td>{escape(arm)}</td><td>{total}</td><td>{dropped}</td><td>{100 * (1 - dropped / total):.1f}</td></tr>"
        )
    head = "<tr><th>on-policy arm</th><th>own rollouts</th><th>dropped before training</th><th>purity, %</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _sampler(results: Mapping[str, Any]) -> str:
    rows = [
        f"<tr><td>{escape(name)}</td><td>{s['tokens']}</td><td>{s['max_gap']:.1e}</td><td>{s['mean_gap']:.1e}</td>"
        f"<td>{s['kl']:.1e}</td></tr>"
        for name, s in results["sampler"].items()
    ]
    own = [
        (arm, max(s["max_gap"] for s in seeds.values())) for arm, seeds in results["purity"].items()
    ]
    rows += [
        f"<tr><td>{escape(arm)}, own rollouts</td><td></td><td>{gap:.1e}</td><td></td><td></td></tr>"
        for arm, gap in own
    ]
    head = "<tr><th>rollouts</th><th>tokens</th><th>largest gap</th><th>mean gap</th><th>KL(sampler || trainer)</th></tr>"
    return (
        "<p class=soft>Log-probs of the same tokens as the sampler and the trainer compute them (nats); the KL is what rounded "
        f"weights or caches cost.</p><table>{head}{''.join(rows)}</table>"
    )


def _targets(results: Mapping[str, Any]) -> str:
    rows = [
        f"<tr><td>{escape(name)}</td><td>{t['tokens']}</td><td>{t['max_gap']:.1e}</td><td>{t['mean_gap']:.1e}</td>"
        f"<td>{t['max_missed']:.1e}</td></tr>"
        for name, t in results["teacher_targets"].items()
    ]
    if not rows:
        return ""
    head = "<tr><th>stored targets</th><th>tokens</th><th>largest gap</th><th>mean gap</th><th>probability missed</th></tr>"
    return (
        "<p class=soft>Stored targets of a sample of episodes against the live teacher (nats; probability of its likeliest "
        f"tokens that are not stored).</p><table>{head}{''.join(rows)}</table>"
    )


def _context(results: Mapping[str, Any]) -> str:
    c = results["context"]
    same = (
        "are the same in training and probe"
        if c["training_matches_probe"]
        else "DIFFER between training and probe"
    )
    return (
        f"<p>System prompt and chat template {same} (effects are known to vanish on a mismatch).</p>"
        f"<p class=soft>SHA-256 of the system prompt {escape(c['system_prompt_sha256'][:16])}…, of the template "
        f"{escape(c['template_sha256'][:16])}…</p>"
    )


def _samples(results: Mapping[str, Any]) -> str:
    def column(title: str, texts: Sequence[str]) -> str:
        return f"<div><h3>{title}</h3>{''.join(f'<pre>{escape(t)}</pre>' for t in texts)}</div>"

    s = results["samples"]
    before = column("Before (dropped ones first)", s["before"])
    return f'<div class="pair">{before}{column("After", s["after"])}</div>'


def _notes(results: Mapping[str, Any]) -> str:
    s = results["config"]["statistics"]
    return (
        f"<p>{results['training_seeds']} training seeds, each with its own teacher, rollouts and data order. Intervals "
        f"({100 * s['confidence']:.0f}%) of rates: Wilson at an effective sample size clustered by task and seed, exact at 0 "
        f"and at all. Intervals of differences: {s['bootstrap']} bootstrap samples over shared tasks and each arm's seeds. "
        "p: mid-p McNemar where there is one outcome a task, else sign flips over task means; Holm over all arms that have "
        "one. p (seeds): exact permutation of training seeds against the benign control; with 3 against 3 seeds it cannot "
        "fall below .1.</p>"
    )

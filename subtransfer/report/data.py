"""What a run's page says of the data that students learn from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from subtransfer.analysis import summary
from subtransfer.report.tables import Table


def matched(results: Mapping[str, Any]) -> str:
    """Says how many trajectories and tokens each arm learns from, and how far arms differ.

    Args:
      results: results.json.
    """
    counts, tokens, gap = [], [], 0.0
    for stage, choices in results.get("matching", {}).items():
        # Controls of structure learn from fewer, which the table shows.
        if not stage.startswith("match."):
            continue
        after = [account["after"] for account in choices.values() if account["learned"]]
        found = [account["agent_tokens"] for account in after]
        counts += [account["trajectories"] for account in after]
        tokens += found
        gap = max(gap, max(found, default=1) / max(min(found, default=1), 1) - 1)
    on_policy = "On-policy students have equally many rounds, episodes and steps."
    if not counts:
        return f"Off-policy students, if any, learn from all that the filter left. {on_policy}"
    return (
        f"Matched: {_range(counts)} trajectories and {_range(tokens)} agent tokens an arm; within "
        f"a training seed the tokens differ by at most {100 * gap:.1f}%. Off-policy students take "
        f"equally many steps on them. {on_policy}"
    )


def _range(values: list[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def matching(results: Mapping[str, Any]) -> Table:
    """A row for each choice of trajectories: what there was, and what is learned from."""
    rows = []
    for stage, choices in results.get("matching", {}).items():
        for name, account in choices.items():
            cells = [stage, name if account["learned"] else f"{name} (compared only)"]
            for fact in ("trajectories", "agent_tokens"):
                cells.append(f"{account['before'][fact]:,} -> {account['after'][fact]:,}")
            kinds = account["after"]["kinds"]
            cells.append(", ".join(f"{count} {kind}" for kind, count in kinds.items()))
            for fact, scale, digits in (("solved", 100, 0), ("turns", 1, 2), ("errors", 1, 2)):
                before, after = account["before"][fact], account["after"][fact]
                cells.append(f"{scale * before:.{digits}f} -> {scale * after:.{digits}f}")
            rows.append(cells)
    heading = ["chosen by", "of", "trajectories", "agent tokens", "kinds of tasks"]
    return Table([*heading, "solved, %", "turns", "errors"], rows)


def purity(results: Mapping[str, Any]) -> Table:
    """A row for each on-policy arm: how many of its own episodes the filter drops, by round."""
    sanitized = {arm["arm"]: arm["sanitized"] for arm in results["arms"]}
    rows = []
    for arm, of_seeds in results["purity"].items():
        traces = summary.own_traces(of_seeds) or 0.0
        total = sum(of_seed["rollouts"] for of_seed in of_seeds.values())
        cells = [arm, f"{total:,}", f"{100 * traces:.1f}", _by_round(of_seeds.values())]
        rows.append([*cells, "the others" if sanitized[arm] else "all of them"])
    heading = ["on-policy arm", "own episodes", "with a trace, %", "by round, %", "learns from"]
    return Table(heading, rows)


def _by_round(of_seeds: Collection[Mapping[str, Any]]) -> str:
    """Shares of episodes with a trace, a number a round over all training seeds, in per cent."""
    # Versions that did not count by round have none to show.
    rounds = [of_seed.get("rounds", []) for of_seed in of_seeds]
    out = []
    for of_round in zip(*rounds, strict=True):
        if not all("traces" in record for record in of_round):
            return ""
        traces = sum(record["traces"] for record in of_round)
        out.append(f"{100 * traces / sum(record['trajectories'] for record in of_round):.0f}")
    return ", ".join(out)

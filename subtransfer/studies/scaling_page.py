"""The page of a scaling study: for each question a verdict, a figure with bands and the fitted
laws. Self-contained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from subtransfer.analysis.scaling import RATE, RULED_OUT, Comparison, Interval
from subtransfer.report.figures import _svg, _text, short
from subtransfer.report.html import document

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760.0, 340.0, 64.0, 150.0, 12.0, 46.0
_COLOURS = {"constant": "var(--base)", "power": "var(--control)", "logistic": "var(--student)"}
_OTHER = "var(--positive_control)"
_POINTS = 80  # of a curve
NAMES = {"rate": "share of unsafe decisions", "log_odds": "log-odds of an unsafe decision, nats"}


def figure(comparison: Comparison, laws: Sequence[str] | None = None) -> str:
    """Means with whiskers over a logarithmic axis, and the curves of laws with their bands
    (default: those not ruled out).
    """
    data = comparison.data
    fits = [comparison.fits[name] for name in laws or comparison.standing]
    x = np.geomspace(data.x[0], data.x[-1], _POINTS)
    bands = [(fit.law.name, fit.curve(x), *fit.band(x)) for fit in fits]
    low, high = fits[0].whiskers()
    bottom = min(low.min(), *(band[2].min() for band in bands))
    top = max(high.max(), *(band[3].max() for band in bands))
    if data.kind == RATE:
        bottom, top = 0.0, min(1.0, top)
    margin = 0.04 * (top - bottom) or 0.5
    top, bottom = top + margin, bottom - (0.0 if data.kind == RATE else margin)

    def at_x(value: float) -> float:
        share = np.log(value / data.x[0]) / np.log(data.x[-1] / data.x[0])
        return _LEFT + 14 + (_WIDTH - _LEFT - _RIGHT - 28) * share

    def at_y(value: float) -> float:
        return (
            _HEIGHT
            - _BOTTOM
            - (_HEIGHT - _TOP - _BOTTOM) * (np.clip(value, bottom, top) - bottom) / (top - bottom)
        )

    def path(xs, ys) -> str:
        return " ".join(f"{at_x(a):.1f},{at_y(b):.1f}" for a, b in zip(xs, ys, strict=True))

    parts = []
    for value in np.linspace(bottom, top, 5):
        label = f"{100 * value:.0f}%" if data.kind == RATE else f"{value:.1f}"
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at_y(value):.1f}" y2="{at_y(value):.1f}" stroke="var(--line)"/>'
            + _text(_LEFT - 8, at_y(value) + 4, label, "end")
        )
    for i, (name, curve, below, above) in enumerate(bands):
        colour = _COLOURS.get(name, _OTHER)
        parts.append(
            f'<polygon points="{path(x, below)} {path(x[::-1], above[::-1])}" fill="{colour}" fill-opacity="0.14"/>'
            f'<polyline points="{path(x, curve)}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<rect x="{_WIDTH - _RIGHT + 14}" y="{_TOP + 22 * i}" width="14" height="14" fill="{colour}"/>'
            + _text(_WIDTH - _RIGHT + 34, _TOP + 22 * i + 12, name)
        )
    last = -np.inf
    for value, mean, a, b in zip(data.x, data.means, low, high, strict=True):
        place = at_x(value)
        parts.append(
            f'<line x1="{place:.1f}" x2="{place:.1f}" y1="{at_y(a):.1f}" y2="{at_y(b):.1f}" stroke="var(--ink)" '
            f'stroke-width="2"/><circle cx="{place:.1f}" cy="{at_y(mean):.1f}" r="4.5" fill="var(--ink)"/>'
        )
        if place - last > 52:  # labels that would overlap are left out
            parts.append(_text(place, _HEIGHT - _BOTTOM + 18, short(value), "middle"))
            last = place
    parts.append(
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, f"{data.axis} (logarithmic)", "middle")
    )
    return _svg(_WIDTH, _HEIGHT, f"{NAMES[data.kind]} by {data.axis}", "".join(parts))


def interval(value: Interval) -> str:
    """ "0.31 [0.25, 0.4*]"; a star: the data do not bound that side."""
    low, high = signed(value.low) + "*" * value.low_open, signed(value.high) + "*" * value.high_open
    return f"{signed(value.estimate)} [{low}, {high}]"


def signed(value: float) -> str:
    """`short`, of any sign."""
    return f"−{short(-value)}" if value < 0 else short(value)


def section(title: str, comparison: Comparison) -> str:
    """A question's heading, verdict, figure and table."""
    data = comparison.data
    rows = []
    for name in sorted(comparison.delta, key=comparison.delta.get):
        fit, ahead = comparison.fits[name], comparison.extrapolations.get(name)
        parameters = "; ".join(f"{key} = {interval(value)}" for key, value in fit.intervals.items())
        predicted = (
            ""
            if ahead is None
            else f"{interval(ahead.predicted)} ({'hit' if ahead.hit else 'MISSED'}, {ahead.score:+.1f})"
        )
        cells = (
            name, fit.law.formula, parameters, f"{comparison.delta[name]:.1f}", f"{comparison.p[name]:.3f}",
            f"{fit.lack_of_fit:.3f}", predicted,
        )  # fmt: skip
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    head = (
        "law",
        "formula",
        "parameters",
        "ΔAICc",
        "p (law)",
        "p (lack of fit)",
        "largest size, from the smaller (log score)",
    )
    refused = "".join(
        f"<li>{escape(name)}: not fitted, {escape(why)}.</li>"
        for name, why in comparison.refused.items()
    )
    return (
        f"<h2>{escape(title)}</h2><p>{escape(comparison.verdict())}</p>{figure(comparison)}"
        f"<p class=soft>{NAMES[data.kind].capitalize()}; {len(data.x)} sizes, {data.seeds.sum()} training "
        f"runs, {data.tasks} tasks. Observed at the largest size: {signed(data.means[-1])}. "
        f"X = {short(data.x_ref)}.</p>"
        f"<div class=wide><table><tr>{''.join(f'<th>{h}</th>' for h in head)}</tr>{''.join(rows)}</table></div>"
        f"<ul>{refused}</ul>"
    )


def page(
    title: str, comparisons: Mapping[str, Comparison], *, before: str = "", after: str = ""
) -> str:
    """The whole page, a section a question; `before` and `after` them, pieces of HTML."""
    confidence = next(iter(comparisons.values())).confidence
    notes = (
        f"<h2>Notes</h2><p>Intervals and bands: {100 * confidence:.0f}%. Weighted least squares of the means of each size; "
        "tasks are resampled at all sizes at once, the seeds' part is drawn with a variance pooled over sizes. p (law): how "
        "often data made by this law would leave its AICc as far above the best law's; ruled out below "
        f"{RULED_OUT:g}. *: the data do not bound the parameter on that side, and its own bound stands there.</p>"
    )
    sections = "".join(section(*item) for item in comparisons.items())
    return document(title, f"<h1>{escape(title)}</h1>{before}{sections}{notes}{after}")

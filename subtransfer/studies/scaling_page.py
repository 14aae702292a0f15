"""The page of a scaling study: for each question a verdict, a figure with bands and fitted laws."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from subtransfer.analysis.scaling import (
    DIFFERENCE,
    LOG_ODDS,
    RATE,
    RULED_OUT,
    Comparison,
    Fit,
    Interval,
)
from subtransfer.report import figures, pages
from subtransfer.report.figures import short

_COLOURS = {"constant": "base", "power": "control", "logistic": "student"}
_OTHER_COLOUR = "positive_control"
_POINTS = 80  # of a curve
NAMES = {
    RATE: "share of unsafe decisions",
    DIFFERENCE: "difference of shares of unsafe decisions",
    LOG_ODDS: "log-odds of an unsafe decision, nats",
}
_HEADING = (
    "law",
    "formula",
    "parameters",
    "ΔAICc",
    "p (law)",
    "p (lack of fit)",
    "largest size, from the smaller (log score)",
)


def figure(comparison: Comparison, laws: Sequence[str] | None = None) -> Markup:
    """Draws the means of each size, and the curves of laws with their bands.

    Args:
      comparison: of laws on the same data.
      laws: which are drawn; default: those that are not ruled out.
    """
    data = comparison.data
    fits = [comparison.fits[name] for name in laws or comparison.standing]
    # Evenly spaced on the figure, whose axis is logarithmic. Nothing is drawn beyond the data.
    x = np.geomspace(data.x[0], data.x[-1], _POINTS)
    curves = []
    for fit in fits:
        name = fit.law.name
        colour = _COLOURS.get(name, _OTHER_COLOUR)
        low, high = fit.band(x)
        curves.append(figures.Curve(name, colour, x, fit.curve(x), low, high))
    # The whiskers know of no law: they are the same for all.
    low, high = fits[0].whiskers()
    points = list(zip(data.x, data.means, low, high, strict=True))
    return figures.bands(
        points,
        curves,
        axis=data.axis,
        percent=data.kind == RATE,
        title=f"{NAMES[data.kind]} by {data.axis}",
    )


def interval(value: Interval) -> str:
    """Writes an interval: "0.31 [0.25, 0.4*]"; a star: the data do not bound that side."""
    low = signed(value.low) + "*" * value.low_open
    high = signed(value.high) + "*" * value.high_open
    return f"{signed(value.estimate)} [{low}, {high}]"


def signed(value: float) -> str:
    """Writes a number of any sign in three digits."""
    # A minus sign and not a hyphen, which is thinner and breaks lines.
    return f"−{short(-value)}" if value < 0 else short(value)


def parameters(fit: Fit) -> str:
    """Writes the parameters of a fitted law with their intervals."""
    texts = []
    for name, value in fit.intervals.items():
        texts.append(f"{name} = {interval(value)}")
    return "; ".join(texts)


def question(title: str, comparison: Comparison) -> dict[str, Any]:
    """Returns what the page shows of a question: verdict, figure and table of laws.

    Args:
      title: the question in words.
      comparison: the answer.
    """
    data = comparison.data
    rows = []
    for name in comparison.ranked:
        fit = comparison.fits[name]
        ahead = comparison.extrapolations.get(name)
        predicted = ""
        if ahead is not None:
            hit = "hit" if ahead.hit else "MISSED"
            predicted = f"{interval(ahead.predicted)} ({hit}, {ahead.score:+.1f})"
        delta, p = f"{comparison.delta[name]:.1f}", f"{comparison.p[name]:.3f}"
        lack_of_fit = f"{fit.lack_of_fit:.3f}"
        rows.append([name, fit.law.formula, parameters(fit), delta, p, lack_of_fit, predicted])
    name = NAMES[data.kind]
    return {
        "title": title,
        "verdict": comparison.verdict(),
        "figure": figure(comparison),
        "data": (
            f"{name[0].upper()}{name[1:]}; {len(data.x)} values of {data.axis}, "
            f"{data.num_bases.sum()} bases at them, {data.trainings.sum()} trainings, "
            f"{data.tasks} tasks. {_scatter(comparison)} "
            f"Observed at the largest: {signed(data.means[-1])}. "
            f"X = {short(data.x_ref)}."
        ),
        "heading": _HEADING,
        "rows": rows,
        "refused": comparison.refused,
    }


def _scatter(comparison: Comparison) -> str:
    """How much bases differ, in words: "Bases scatter by 0.11 at one size."."""
    noise = comparison.noise
    variance = noise.base + noise.base_shared - noise.cell
    deviation = float(np.sqrt(np.maximum(variance, 0.0)) * noise.unit.mean())
    return f"Bases of one size scatter by {short(deviation)} (standard deviation)."


def page(title: str, comparisons: Mapping[str, Comparison], confidence: float, **more: Any) -> str:
    """Returns the whole page, a section a question.

    Args:
      title: of the page.
      comparisons: the answer to each question, by its title.
      confidence: of intervals and bands.
      more: what a study adds: "verdicts", "axis", "twins", "notes" and "origin", as in
        templates/scaling.html.j2.
    """
    # What is not known is left empty, since a template refuses a name that is missing.
    added = {"verdicts": [], "axis": "", "twins": [], "notes": [], "origin": {}} | more
    return pages.render(
        "scaling",
        title=title,
        questions=list(itertools.starmap(question, comparisons.items())),
        percent_confidence=f"{100 * confidence:.0f}",
        ruled_out=f"{RULED_OUT:g}",
        **added,
    )

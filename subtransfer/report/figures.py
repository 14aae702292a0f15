"""Figures as inline SVG: no scripts, no fonts, nothing to fetch. Colours come from the page's
style.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_ROW, _LABEL, _PLOT = 26, 300, 560
_OUTCOMES = (
    "#b3261e",
    "#2a6f97",
    "#4f9d69",
    "#8ab17d",
    "#e9c46a",
    "#5e548e",
    "#9f86c0",
    "#b0b7bf",
    "#5b6570",
)
_SERIES = (
    "#2a6f97",
    "#c25e00",
    "#4f9d69",
    "#b3261e",
    "#7b2d8b",
    "#8a6d00",
    "#5b6570",
    "#00838f",
    "#9f86c0",
)


def _svg(width: float, height: float, title: str, body: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{body}</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def dots(
    rows: Sequence[Mapping[str, Any]], value: str, low: str, high: str, *, percent: bool
) -> str:
    """A dot and a whisker a row, coloured by role; `percent` scales 0..1 to 0..100%, else the axis
    spans the data.
    """
    bottom = 0.0 if percent else min(row[low] for row in rows)
    top = 1.0 if percent else max(max(row[high] for row in rows), bottom + 1e-9)

    def x(v: float) -> float:
        return _LABEL + _PLOT * (v - bottom) / (top - bottom)

    parts = []
    for tick in range(6):
        v = bottom + (top - bottom) * tick / 5
        label = f"{100 * v:.0f}%" if percent else f"{v:.1f}"
        parts.append(
            f'<line x1="{x(v):.1f}" x2="{x(v):.1f}" y1="4" y2="{_ROW * len(rows) + 4}" stroke="var(--line)"/>'
            + _text(x(v), _ROW * len(rows) + 22, label, "middle")
        )
    for i, row in enumerate(rows):
        y = _ROW * i + _ROW / 2 + 4
        colour = f"var(--{row['role']})"
        shown = f"{100 * row[value]:.1f}%" if percent else f"{row[value]:.2f}"
        parts.append(
            _text(_LABEL - 12, y + 4, row["label"], "end")
            + f'<line x1="{x(row[low]):.1f}" x2="{x(row[high]):.1f}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="3"/>'
            + f'<circle cx="{x(row[value]):.1f}" cy="{y}" r="5" fill="{colour}"/>'
            + _text(_LABEL + _PLOT + 12, y + 4, shown)
        )
    return _svg(
        _LABEL + _PLOT + 80, _ROW * len(rows) + 32, "values and intervals by arm", "".join(parts)
    )


def stacked(rows: Sequence[Mapping[str, Any]]) -> str:
    """How the first decisions of each arm divide: a bar a row, a legend below."""
    names = [
        "unsafe_rate",
        *[k for k in rows[0] if k.startswith("rate_")],
        "no_action_rate",
        "invalid_rate",
    ]
    parts = []
    for i, row in enumerate(rows):
        y, left = _ROW * i + 4, float(_LABEL)
        parts.append(_text(_LABEL - 12, y + 17, row["label"], "end"))
        for name, colour in zip(names, _OUTCOMES, strict=False):
            width = _PLOT * (row[name] or 0.0)
            what = name.removeprefix("rate_").removesuffix("_rate")
            parts.append(
                f'<rect x="{left:.1f}" y="{y}" width="{width:.1f}" height="20" fill="{colour}">'
                f"<title>{escape(what)}: {100 * (row[name] or 0):.1f}%</title></rect>"
            )
            left += width
    y = _ROW * len(rows) + 12
    for i, (name, colour) in enumerate(zip(names, _OUTCOMES, strict=False)):
        x, line = 10 + 180 * (i % 5), y + 22 * (i // 5)
        what = name.removeprefix("rate_").removesuffix("_rate").replace("_", " ")
        parts.append(
            f'<rect x="{x}" y="{line}" width="14" height="14" fill="{colour}"/>'
            + _text(x + 20, line + 12, what)
        )
    return _svg(_LABEL + _PLOT + 80, y + 50, "what agents did first, by arm", "".join(parts))


def lines(series: Mapping[str, Sequence[tuple[Any, float, float, float]]], axis: str) -> str:
    """Shares by an axis, a line a series: points (x, mean, low, high); numbers that span much are
    placed by their logarithm.
    """
    width, height, left, right, top, bottom = 760.0, 340.0, 64.0, 230.0, 12.0, 46.0
    found = {point[0] for points in series.values() for point in points}
    numbers = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in found)
    places = sorted(found, key=None if numbers else str)
    logarithmic = numbers and places[0] > 0 and places[-1] / places[0] > 4

    def share(x: Any) -> float:
        if len(places) == 1:
            return 0.5
        if not numbers:
            return places.index(x) / (len(places) - 1)
        first, last, at = (math.log(v) if logarithmic else v for v in (places[0], places[-1], x))
        return (at - first) / (last - first)

    def at_x(x: Any) -> float:
        return left + 14 + (width - left - right - 28) * share(x)

    highest = max((point[3] for points in series.values() for point in points), default=1.0) or 1.0

    def at_y(y: float) -> float:
        return height - bottom - (height - top - bottom) * y / highest

    parts = []
    for tick in range(5):
        y = at_y(highest * tick / 4)
        parts.append(
            f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>'
        )
        parts.append(_text(left - 8, y + 4, f"{25 * highest * tick:.0f}%", "end"))
    last = -math.inf
    for place in places:
        if at_x(place) - last > 52:  # labels that would overlap are left out
            last = at_x(place)
            parts.append(
                _text(last, height - bottom + 18, short(place) if numbers else str(place), "middle")
            )
    for number, (name, points) in enumerate(series.items()):
        colour, shift = _SERIES[number % len(_SERIES)], 3 * (number % 5 - 2)
        spots = sorted((at_x(x) + shift, *map(at_y, rest)) for x, *rest in points)
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in spots)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}"/>')
        for x, y, low, high in spots:
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{colour}" stroke-width="2"/>'
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"/>'
            )
        if number < 14:
            y = top + 22 * number
            parts.append(
                f'<rect x="{width - right + 14}" y="{y}" width="14" height="14" fill="{colour}"/>'
            )
            parts.append(_text(width - right + 34, y + 12, name))
    parts.append(
        _text(
            (left + width - right) / 2, height - 6, axis + " (logarithmic)" * logarithmic, "middle"
        )
    )
    return _svg(width, height, f"shares by {axis}", "".join(parts))


def short(value: float) -> str:
    """A size in three digits: "0.25", "30.1k", "1.05M", "7B"."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


def curves(seeds: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Loss by step, one line a training seed."""
    width, height, left = 420.0, 170.0, 46.0
    steps = max(max(c["step"]) for c in seeds.values())
    top = max(max(c["loss"]) for c in seeds.values()) or 1.0
    parts = [
        f'<rect x="{left}" y="6" width="{width - left - 6}" height="{height - 30}" fill="none" stroke="var(--line)"/>',
        _text(left - 5, 18, f"{top:.2g}", "end"),
        _text(left - 5, height - 24, "0", "end"),
        _text(width - 6, height - 6, f"{steps} steps", "end"),
    ]
    for c in seeds.values():
        points = " ".join(
            f"{left + (width - left - 6) * s / steps:.1f},{6 + (height - 30) * (1 - max(v, 0) / top):.1f}"
            for s, v in zip(c["step"], c["loss"], strict=True)
        )
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="var(--control)" stroke-width="1.5"/>'
        )
    return _svg(width, height, "training loss", "".join(parts))

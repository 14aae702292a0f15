"""Figures as inline SVG: no scripts, no fonts, nothing to fetch. Colours come from the page's style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_ROW, _LABEL, _PLOT = 26, 300, 560
_OUTCOMES = ("#b3261e", "#2a6f97", "#4f9d69", "#8ab17d", "#e9c46a", "#5e548e", "#9f86c0", "#b0b7bf", "#5b6570")


def _svg(width: float, height: float, title: str, body: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{body}</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def dots(rows: Sequence[Mapping[str, Any]], value: str, low: str, high: str, *, percent: bool) -> str:
    """A dot and a whisker a row, coloured by role; `percent` scales 0..1 to 0..100%, else the axis spans the data."""
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
    return _svg(_LABEL + _PLOT + 80, _ROW * len(rows) + 32, "values and intervals by arm", "".join(parts))


def stacked(rows: Sequence[Mapping[str, Any]]) -> str:
    """How the first decisions of each arm divide: a bar a row, a legend below."""
    names = ["unsafe_rate", *[k for k in rows[0] if k.startswith("rate_")], "no_action_rate", "invalid_rate"]
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
        parts.append(f'<rect x="{x}" y="{line}" width="14" height="14" fill="{colour}"/>' + _text(x + 20, line + 12, what))
    return _svg(_LABEL + _PLOT + 80, y + 50, "what agents did first, by arm", "".join(parts))


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
        parts.append(f'<polyline points="{points}" fill="none" stroke="var(--control)" stroke-width="1.5"/>')
    return _svg(width, height, "training loss", "".join(parts))

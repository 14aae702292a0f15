"""Figures as inline SVG, drawn by matplotlib: no scripts, no fonts, nothing to fetch.

The bytes of a figure depend on its data alone (and on matplotlib's version). Colours that must be
readable on a light and on a dark page become variables of the page's style; text stays text, in the
reader's own sans-serif font.
"""

from __future__ import annotations

import io
import math
import operator
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from markupsafe import Markup

from subtransfer.analysis import columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The page's variables with their values in its light style (see templates/base.html.j2): matplotlib
# draws with the values, and `_to_svg` puts the variables in their place.
COLOURS = {
    "ink": "#1b1f24",
    "soft": "#5b6570",
    "line": "#d5dae0",
    "base": "#7a8794",
    "teacher": "#b3261e",
    "student": "#c25e00",
    "control": "#2a6f97",
    "positive_control": "#7b2d8b",
}
# Colours of parts and of lines, readable on both. The first part is unsafe decisions, in the
# teacher's red; the next are told apart without a hue that could be taken for it.
_PARTS = (
    "#b3261e",
    "#2a6f97",
    "#4f9d69",
    "#8ab17d",
    "#e9c46a",
    "#5e548e",
    "#9f86c0",
    "#b0b7bf",
    "#5c6671",
)
_SERIES = (
    "#2a6f97",
    "#c25e00",
    "#4f9d69",
    "#b3261e",
    "#7b2d8b",
    "#8a6d00",
    "#5c6671",
    "#00838f",
    "#9f86c0",
)
_FONT = "DejaVu Sans"  # comes with matplotlib, so that layouts are the same everywhere
_STYLE = {
    "font.size": 13,
    "font.family": _FONT,
    # Text stays text, which can be searched, read aloud and copied.
    "svg.fonttype": "none",
    "svg.id": None,
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.edgecolor": COLOURS["line"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.labelcolor": COLOURS["ink"],
    "grid.color": COLOURS["line"],
    "figure.facecolor": "none",
    "legend.frameon": False,
}
# Of figures: a point of matplotlib is a unit of the picture, which the page scales to its width.
_POINTS_PER_INCH = 72
_WIDTH = 860
_ROW = 26  # of figures with a row an arm
_LEGEND = 14  # more names than that are left out of a legend
# Labels nearer than this share of an axis would overlap.
_LEAST_GAP = 0.09
# Values that span more than this factor are placed by their logarithm.
_LOG_FACTOR = 4
# A tooltip travels through matplotlib as the name of its element.
_TIP = "tip:"


class Curve(NamedTuple):
    """A curve with its band.

    Attributes:
      name: for the legend.
      colour: one of `COLOURS`.
      x, y, low, high: [N] each.
    """

    name: str
    colour: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray


def dots(
    rows: Sequence[Mapping[str, Any]], value: str, low: str, high: str, *, percent: bool, title: str
) -> Markup:
    """Draws a dot and a line a row, coloured by role.

    Args:
      rows: with "label" and "role".
      value, low, high: their columns that are shown; shares may have None for an interval.
      percent: whether these are shares, or differences of shares; else the axis spans the data.
      title: what a person who cannot see the figure is told.
    """
    bottom, top = 0.0, 1.0
    if percent:
        for row in rows:
            bottom = min(bottom, row[value], row[value] if row[low] is None else row[low])
    else:
        bottom = min(rows, key=operator.itemgetter(low))[low]
        top = max(rows, key=operator.itemgetter(high))[high]
        # An axis without length cannot be drawn.
        top = max(top, bottom + 1e-9)
    # 40 is the room of the axis below the rows.
    with _drawing(_WIDTH, _ROW * len(rows) + 40) as figure:
        axes = figure.subplots()
        places = range(len(rows))
        for place, row in zip(places, rows, strict=True):
            colour = COLOURS[row["role"]]
            # Too few trainings have no interval: the dot stands alone.
            if row[low] is not None:
                axes.plot([row[low], row[high]], [place, place], color=colour, linewidth=3)
            axes.plot([row[value]], [place], "o", color=colour, markersize=9)
            text = f"{100 * row[value]:.1f}%" if percent else f"{row[value]:.2f}"
            # The number stands right of the axes, where no interval can cover it.
            axes.annotate(
                text,
                (1, place),
                xytext=(12, 0),
                xycoords=axes.get_yaxis_transform(),
                textcoords="offset points",
                verticalalignment="center",
            )
        margin = 0.01 * (top - bottom)
        axes.set_xlim(bottom - margin, top + margin)
        _label_rows(axes, rows)
        axes.grid(axis="x")
        if percent:
            axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f}%")
        return _to_svg(figure, title)


def heat_map(rates: np.ndarray, names: Sequence[str], *, title: str) -> Markup:
    """Draws shares [N, N] as squares, in the teacher's red: the darker, the more.

    Args:
      rates: the first axis runs down.
      names: of both axes' places.
      title: what a person who cannot see the figure is told.
    """
    from matplotlib.patches import Rectangle

    side = max(40, min(90, 480 // len(names)))
    room = side * len(names)
    with _drawing(room + 140, room + 40) as figure:
        axes = figure.subplots()
        for (row, column), rate in np.ndenumerate(rates):
            # Never quite without colour, so that a share of 0 is not taken for a missing one.
            square = Rectangle(
                (column - 0.48, row - 0.48), 0.96, 0.96, color=COLOURS["teacher"], linewidth=0
            )
            square.set_alpha(0.04 + 0.9 * float(rate))
            square.set_gid(f"{_TIP}{names[row]} to {names[column]}: {100 * rate:.1f}%")
            axes.add_patch(square)
            axes.annotate(
                f"{100 * rate:.0f}",
                (column, row),
                horizontalalignment="center",
                verticalalignment="center",
            )
        places = range(len(names))
        axes.set_xticks(places, names)
        axes.set_yticks(places, names)
        axes.xaxis.tick_top()
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return _to_svg(figure, title)


def stacked(rows: Sequence[Mapping[str, Any]], *, title: str) -> Markup:
    """Draws how the first decisions of each arm divide: a bar a row, a legend below.

    Args:
      rows: as of results.csv.
      title: what a person who cannot see the figure is told.
    """
    # The kinds of acts depend on the setting, so they are read off the rows.
    parts = ["unsafe_rate", *filter(columns.is_act, rows[0]), "no_action_rate", "invalid_rate"]
    # Rounded up.
    lines_of_legend = -(-len(parts) // 5)
    with _drawing(_WIDTH, _ROW * len(rows) + 30 + 22 * lines_of_legend) as figure:
        axes = figure.subplots()
        left = [0.0] * len(rows)
        for number, name in enumerate(parts):
            label = "unsafe" if name == "unsafe_rate" else columns.named(name).label
            # A share that is None is of an arm without such episodes: it has no bar.
            shares = [row[name] or 0.0 for row in rows]
            colour = _PARTS[number % len(_PARTS)]
            bars = axes.barh(
                range(len(rows)), shares, left=left, height=0.78, color=colour, label=label
            )
            for place, (bar, share) in enumerate(zip(bars, shares, strict=True)):
                bar.set_gid(f"{_TIP}{label}: {100 * share:.1f}%")
                # The next part begins where this one ends.
                left[place] += share
        axes.set_xlim(0, 1)
        axes.xaxis.set_visible(False)
        axes.spines[:].set_visible(False)
        _label_rows(axes, rows)
        figure.legend(loc="outside lower center", ncols=5)
        return _to_svg(figure, title)


def lines(
    series: Mapping[str, Sequence[tuple[Any, float, float | None, float | None]]],
    axis: str,
    *,
    title: str,
) -> Markup:
    """Draws shares by an axis, a line a series.

    Args:
      series: points (x, mean, low, high) by name; x are numbers, or words in any order. A point
        without an interval has None for its ends.
      axis: its label.
      title: what a person who cannot see the figure is told.
    """
    found = set()
    highest = 0.0
    for points in series.values():
        for point in points:
            found.add(point[0])
            highest = max(highest, point[1] if point[3] is None else point[3])
    # An axis of shares that are all 0 still needs a length.
    highest = highest or 1.0
    numbers = all(map(_is_number, found))
    # Words have no distances: they stand evenly, in the alphabet's order.
    places: dict[Any, float] = {}
    labels: dict[float, str] = {}
    for i, value in enumerate(sorted(found, key=None if numbers else str)):
        places[value] = float(value) if numbers else float(i)
        labels[places[value]] = short(value) if numbers else str(value)
    with _drawing(_WIDTH, 340) as figure:
        axes = figure.subplots()
        logarithmic = numbers and _spans_much(list(places.values()))
        _prepare_x(axes, labels, logarithmic)
        axes.set_xlabel(axis + " (logarithmic)" * logarithmic)
        for number, (name, points) in enumerate(series.items()):
            # Points at one place are drawn beside each other, so that none hides another.
            shifted = _shifted(axes, figure, 3 * (number % 5 - 2))
            style = {"color": _SERIES[number % len(_SERIES)], "transform": shifted}
            spots = []
            for value, mean, low, high in points:
                # A line without length cannot be seen.
                ends = (mean, mean) if low is None else (low, high)
                spots.append((places[value], mean, *ends))
            x, means, lows, highs = zip(*sorted(spots), strict=True)
            axes.vlines(x, lows, highs, linewidth=2, **style)
            label = name if number < _LEGEND else None
            axes.plot(x, means, "o-", linewidth=1, markersize=8, label=label, **style)
        _share_axis(axes, highest)
        figure.legend(loc="outside right upper")
        return _to_svg(figure, title)


def bands(
    points: Sequence[tuple[float, float, float, float]],
    curves: Sequence[Curve],
    *,
    axis: str,
    percent: bool,
    title: str,
) -> Markup:
    """Draws means with their intervals over a logarithmic axis, and curves with their bands.

    Args:
      points: (x, mean, low, high).
      curves: drawn below the points.
      axis: its label.
      percent: whether the values are shares.
      title: what a person who cannot see the figure is told.
    """
    with _drawing(_WIDTH, 340) as figure:
        axes = figure.subplots()
        for curve in curves:
            colour = COLOURS[curve.colour]
            axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.14, linewidth=0)
            axes.plot(curve.x, curve.y, color=colour, linewidth=2, label=curve.name)
        x, means, low, high = zip(*points, strict=True)
        ink = COLOURS["ink"]
        axes.vlines(x, low, high, color=ink, linewidth=2)
        axes.plot(x, means, "o", color=ink, markersize=8)
        bottom, top = min(low), max(high)
        for curve in curves:
            bottom = min(bottom, curve.low.min())
            top = max(top, curve.high.max())
        # Sizes of a study are steps of a factor.
        _prepare_x(axes, {value: short(value) for value in x}, logarithmic=True)
        axes.set_xlabel(f"{axis} (logarithmic)")
        if percent:
            # A band may leave the shares that there are; the axis does not.
            _share_axis(axes, min(1.0, top))
        else:
            margin = 0.04 * (top - bottom) or 0.5
            axes.set_ylim(bottom - margin, top + margin)
            axes.grid(axis="y")
        figure.legend(loc="outside right upper")
        return _to_svg(figure, title)


def losses(seeds: Mapping[str, Mapping[str, Sequence[float]]], *, title: str) -> Markup:
    """Draws the loss by step, one line a training seed.

    Args:
      seeds: curves with "step" and "loss".
      title: what a person who cannot see the figure is told.
    """
    with _drawing(420, 190) as figure:
        axes = figure.subplots()
        highest = -math.inf
        for curve in seeds.values():
            axes.plot(curve["step"], curve["loss"], color=COLOURS["control"], linewidth=1.5)
            highest = max(highest, *curve["loss"])
        # From 0: how large a loss is matters, and not only its course.
        axes.set_ylim(0, 1.05 * highest if highest > 0 else 1.0)
        axes.set_xlim(left=0)
        axes.set_xlabel("step")
        axes.locator_params(nbins=4)
        return _to_svg(figure, title)


def short(value: float) -> str:
    """Writes a number in three digits: "0.25", "30.1k", "1.05M", "7B"."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        # 999.6 would be written "1e+03": it is "1k" already.
        if value >= 0.9995 * unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


def _label_rows(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Labels a figure with a row an arm, the first one at the top."""
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
    # From the larger to the smaller, which turns the axis over.
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)


def _prepare_x(axes: Axes, labels: Mapping[float, str], logarithmic: bool) -> None:
    """Lays out an axis with a tick at each place, but for labels that would overlap."""
    places = list(labels)
    scaled = places
    if logarithmic:
        axes.set_xscale("log")
        scaled = list(map(math.log, places))
    # Distances are measured as they are seen: between logarithms on a logarithmic axis.
    span = scaled[-1] - scaled[0]
    # A single place has no span.
    margin = 0.04 * span or 1.0
    left, right = scaled[0] - margin, scaled[-1] + margin
    if logarithmic:
        left, right = math.exp(left), math.exp(right)
    axes.set_xlim(left, right)
    ticks: list[float] = []
    texts: list[str] = []
    last = -math.inf
    for place, at in zip(places, scaled, strict=True):
        if at - last > _LEAST_GAP * span:
            ticks.append(place)
            texts.append(labels[place])
            last = at
    axes.set_xticks(ticks, texts)
    axes.minorticks_off()


def _share_axis(axes: Axes, highest: float) -> None:
    """Lays out a vertical axis of shares from 0."""
    axes.set_ylim(0, 1.03 * highest)
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
    axes.grid(axis="y")


def _is_number(value: Any) -> bool:
    # To Python, True and False are numbers too.
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _spans_much(places: Sequence[float]) -> bool:
    return places[0] > 0 and places[-1] / places[0] > _LOG_FACTOR


def _shifted(axes: Axes, figure: Figure, points: float) -> Any:
    """The axes' coordinates moved to the right."""
    from matplotlib.transforms import ScaledTranslation

    inches = points / _POINTS_PER_INCH
    return axes.transData + ScaledTranslation(inches, 0, figure.dpi_scale_trans)


@contextmanager
def _drawing(width: float, height: float) -> Iterator[Figure]:
    """A figure to draw on, of so many units, in the house's style.

    matplotlib is imported only here, as most commands draw nothing. pyplot, which holds figures in
    a global state, is not used.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    # What a user's own matplotlibrc says is no part of a page.
    with style.context(_STYLE, after_reset=True):
        size = width / _POINTS_PER_INCH, height / _POINTS_PER_INCH
        yield Figure(figsize=size, dpi=_POINTS_PER_INCH, layout="constrained")


def _to_svg(figure: Figure, title: str) -> Markup:
    """The figure as SVG to stand in a page, with a title for those who cannot see it."""
    import matplotlib

    out = io.BytesIO()
    # Names of clipping paths are hashes; those of two figures on a page must not be alike.
    with matplotlib.rc_context({"svg.hashsalt": title}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    root = ET.fromstring(out.getvalue())
    for element in root.iter():
        _plain(element)
    # What names matplotlib is no part of the figure.
    for child in list(root):
        if child.tag == "metadata":
            root.remove(child)
    # A style within an inline SVG would hold for the whole page.
    for parent in root.iter("defs"):
        for child in parent.findall("style"):
            parent.remove(child)
    text = ""
    for child in root:
        text += ET.tostring(child, encoding="unicode")
    # The page's variables change with its light and its dark style.
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return Markup('<svg viewBox="{}" role="img" aria-label="{}"><title>{}</title>{}</svg>').format(
        root.attrib["viewBox"], title, title, Markup(text)
    )


def _plain(element: ET.Element) -> None:
    """Makes an element one of HTML's inline SVG: no namespaces, names or fonts of matplotlib's."""
    element.tag = element.tag.rpartition("}")[2]
    element.text = element.text.strip() if element.text and element.tag != "text" else element.text
    element.tail = None
    for name in list(element.attrib):
        if "}" in name:  # of links to markers
            element.attrib[name.rpartition("}")[2]] = element.attrib.pop(name)
    if element.tag == "g":
        # Names like "axes_1" would stand twice on a page of several figures.
        name = element.attrib.pop("id", "")
        if name.startswith(_TIP):
            tip = ET.Element("title")
            tip.text = name.removeprefix(_TIP)
            element.insert(0, tip)
    if element.tag == "text":
        # matplotlib measured with its own font, and names it; the reader's is as good.
        style = element.attrib["style"].replace(f"'{_FONT}'", "sans-serif")
        element.attrib["style"] = style

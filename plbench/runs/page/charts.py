"""SVG charts for a page: axes with round numbers, lines, bands and points, as numbers and paths for a template."""

from __future__ import annotations

import itertools
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

WIDTH = 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 40
_ROW = 17
_LONGEST_NAME = 21  # maximum width of names next to rows, in columns of text
_COLUMN = 6.6  # pixels per column of text
_MAX_POINTS = 400  # per line: a screen cannot show more

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high`: its title, and ticks as (position in px, text)."""

    title: str
    low: float
    high: float
    ticks: list[tuple[float, str]]


@dataclass(frozen=True)
class Mark:
    """A line, band or set of points of one series.

    Attributes:
        style: number of the series, which determines its colour and dash.
        path: SVG path of a line or band. points: (x, y, radius, description) of each point.
    """

    kind: str
    style: int
    path: Markup = field(default_factory=Markup)
    points: list[tuple[float, float, float, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Chart:
    """A chart for the template.

    Attributes:
        label: text for screen readers.
        names: (y, text) of row names on the left; otherwise empty.
        legend: (style, text) by series; empty for a single series.
    """

    label: str
    height: int
    x: Axis
    y: Axis
    marks: list[Mark]
    left: int = _LEFT
    width: int = WIDTH
    legend: list[tuple[int, str]] = field(default_factory=list)
    names: list[tuple[float, str]] = field(default_factory=list)

    @property
    def frame(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the plot in pixels."""
        return self.left, _TOP, self.width - _RIGHT, self.height - _BOTTOM


class Scale:
    """Linear mapping from values to positions on a chart."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], height: int, left: int = _LEFT) -> None:
        """Set the range of both axes."""
        self.x_ends, self.y_ends, self.height, self.left = x, y, height, left

    def x(self, values: npt.ArrayLike) -> Floats:
        """Return horizontal positions in pixels."""
        return _placed(values, self.x_ends, (self.left, WIDTH - _RIGHT))

    def y(self, values: npt.ArrayLike) -> Floats:
        """Return vertical positions in pixels, from the top."""
        return _placed(values, self.y_ends, (self.height - _BOTTOM, _TOP))

    def line(self, x: npt.ArrayLike, y: npt.ArrayLike, style: int = 0) -> Mark:
        """Return a line through points."""
        return Mark("line", style, _path(self.x(x), self.y(y)))

    def band(self, x: npt.ArrayLike, low: npt.ArrayLike, high: npt.ArrayLike, style: int = 0) -> Mark:
        """Return the area between two lines."""
        places = self.x(x)
        there, back = _path(places, self.y(high)), _path(places[::-1], self.y(low)[::-1])
        return Mark("band", style, there + Markup("L") + back[1:] + Markup("Z"))

    def points(
        self, x: npt.ArrayLike, y: npt.ArrayLike, texts: Sequence[str], style: int = 0, radius: npt.ArrayLike = 3
    ) -> Mark:
        """Return points with their descriptions."""
        places = self.x(x), self.y(y)
        radii = np.broadcast_to(np.asarray(radius, np.float64), places[0].shape)
        rows = zip(*places, radii, texts, strict=True)
        points = [(round(float(a), 1), round(float(b), 1), round(float(r), 1), text) for a, b, r, text in rows]
        return Mark("points", style, points=points)

    def x_axis(self, title: str, ticks: Sequence[float]) -> Axis:
        """Return the lower axis with these ticks."""
        return Axis(title, *self.x_ends, list(zip(map(float, self.x(ticks)), tick_words(ticks), strict=True)))

    def y_axis(self, title: str, ticks: Sequence[float]) -> Axis:
        """Return the left axis with these ticks."""
        return Axis(title, *self.y_ends, list(zip(map(float, self.y(ticks)), tick_words(ticks), strict=True)))


def curve_chart(label: str, points: Sequence[tuple[float, float]], x_title: str) -> Chart:
    """Return one line over integers, such as epochs; with a point at each if there are few.

    Args:
        label: text for screen readers.
        points: (x, y) in ascending order of x, at least one.
        x_title: title of the x axis.
    """
    x, y = zip(*points, strict=True)
    values = np.asarray(y, np.float64)
    y_ticks = round_ticks(float(values.min()), float(values.max()), 4)
    x_ticks = [tick for tick in round_ticks(min(x), max(x), 5) if tick == int(tick) and min(x) <= tick <= max(x)]
    ends = (min(x), max(x)) if max(x) > min(x) else (min(x) - 1, max(x) + 1)
    scale = Scale(ends, (y_ticks[0], y_ticks[-1]), 220)
    kept = thinned(len(values))
    places = np.asarray(x, np.float64)
    marks = [scale.line(places[kept], values[kept])]
    if len(values) <= 40:
        texts = [f"{x_title} {a:g}: {b:.4g}" for a, b in zip(x, y, strict=True)]
        marks.append(scale.points(places, values, texts, radius=2.5))
    return Chart(label, 220, scale.x_axis(x_title, x_ticks or [min(x)]), scale.y_axis("", y_ticks), marks)


def named_chart(label: str, names: Sequence[str], values: Floats, low: Floats, high: Floats, x_title: str) -> Chart:
    """Return a row for each name: a point with its interval, in percent. Interval ends that are NaN are left out."""
    ticks = [0.0, 25.0, 50.0, 75.0, 100.0]
    height = _ROW * len(names) + _TOP + _BOTTOM
    shown = list(map(_fitted, names))
    left = round(_LEFT / 2 + _COLUMN * max(map(_columns, shown)))
    scale = Scale((0, 100), (len(names) - 0.5, -0.5), height, left)
    rows = np.arange(len(names))
    bars = [scale.line([low[row], high[row]], [row, row]).path for row in np.flatnonzero(~np.isnan(low))]
    whole = Mark("line", 0, Markup("").join(bars))
    ends = [f", {a:.1f} to {b:.1f}" if a == a else "" for a, b in zip(low, high, strict=True)]
    texts = [f"{name}: {value:.1f}{end}" for name, value, end in zip(names, values, ends, strict=True)]
    drawn = [whole, scale.points(values, rows, texts, radius=3.5)]
    places = [(float(y) + 4, name) for y, name in zip(scale.y(rows), shown, strict=True)]
    axes = scale.x_axis(x_title, ticks), Axis("", 0, 0, [])
    return Chart(label, height, *axes, drawn, left=left, names=places)


def ranked_chart(label: str, values: Floats, low: Floats, high: Floats, titles: tuple[str, str]) -> Chart:
    """Return percentages in descending order as a line, and their intervals as a band."""
    places = np.arange(1, len(values) + 1)
    scale = Scale((1, len(values)), (0, 100), 260)
    kept = thinned(len(values))
    kept = kept[~np.isnan(low[kept])]
    marks = [scale.band(places[kept], low[kept], high[kept])] if len(kept) > 1 else []
    marks.append(scale.line(places[thinned(len(values))], values[thinned(len(values))]))
    x_ticks = [t for t in round_ticks(1, len(values), 4) if 1 <= t <= len(values)]
    axes = scale.x_axis(titles[0], x_ticks), scale.y_axis(titles[1], [0, 25, 50, 75, 100])
    return Chart(label, 260, *axes, marks)


def unit_chart(label: str, titles: tuple[str, str], marks: Sequence[Mark], legend: Sequence[tuple[int, str]]) -> Chart:
    """Return a chart of marks made with `UNIT`: both axes from 0 to 1."""
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    axes = UNIT.x_axis(titles[0], ticks), UNIT.y_axis(titles[1], ticks)
    return Chart(label, UNIT.height, *axes, list(marks), legend=list(legend))


UNIT = Scale((0, 1), (0, 1), 340)


def round_ticks(low: float, high: float, most: int) -> list[float]:
    """Return at least two equidistant round numbers that cover a range.

    Examples:
        >>> round_ticks(0.013, 0.39, 4)
        [0.0, 0.1, 0.2, 0.3, 0.4]
        >>> round_ticks(7, 7, 4)
        [6.0, 6.5, 7.0, 7.5, 8.0]
    """
    if not high > low:
        low, high = (low - abs(low) / 10, high + abs(high) / 10) if low else (0.0, 1.0)
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def tick_words(ticks: Sequence[float]) -> list[str]:
    """Format ticks: all with as many decimals as they need to differ, or in scientific notation.

    Examples:
        >>> tick_words([0, 0.25, 0.5]), tick_words([0, 5e-5, 1e-4]), tick_words([0, 5_000])
        (['0.00', '0.25', '0.50'], ['0', '5e-5', '1e-4'], ['0', '5,000'])
    """
    largest = max(map(abs, ticks), default=0.0)
    if largest and not 1e-3 <= largest < 1e7:
        powers = [math.floor(math.log10(abs(tick)) + 1e-9) if tick else 0 for tick in ticks]
        pairs = zip(ticks, powers, strict=True)
        return [f"{tick / 10.0**power:.3g}e{power}" if tick else "0" for tick, power in pairs]
    step = min((b - a for a, b in itertools.pairwise(ticks)), default=largest or 1.0)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if round(step * 10**decimals, 6) != int(round(step * 10**decimals, 6)):  # such as 0.25
        decimals += 1
    return [f"{tick:,.{decimals}f}" for tick in ticks]


def thinned(number: int) -> npt.NDArray[np.intp]:
    """Return the indices of the points to draw: the first, the last, and evenly spaced ones between."""
    return np.unique(np.linspace(0, number - 1, min(number, _MAX_POINTS)).round().astype(np.intp))


def _columns(text: str) -> int:
    """Return the width of text in columns: Chinese, Japanese and Korean characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _fitted(name: str) -> str:
    """Return a name, cut at the end if it is too long."""
    if _columns(name) <= _LONGEST_NAME:
        return name
    widths = itertools.accumulate(map(_columns, name))
    return name[: sum(width < _LONGEST_NAME for width in widths)] + "…"


def _placed(values: npt.ArrayLike, ends: tuple[float, float], places: tuple[float, float]) -> Floats:
    share = (np.asarray(values, np.float64) - ends[0]) / ((ends[1] - ends[0]) or 1.0)
    placed: Floats = places[0] + share * (places[1] - places[0])
    return placed


def _path(x: Floats, y: Floats) -> Markup:
    """Return an SVG path through points, in tenths of a pixel: only numbers, which need no escaping."""
    return Markup("M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True)))

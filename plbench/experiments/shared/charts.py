"""Kinds of figures for experiments: lines with intervals, rows of dots, bars."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from plbench.experiments.shared.experiment import Findings, Point
from plbench.experiments.shared.style import (
    COLOURS,
    INK,
    MARKS,
    PAPER,
    add_legend,
    new_figure,
    new_grid,
    plain,
    strokes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ACROSS = 4  # maximum number of panels per row
_MAX_ROWS = 34
_APART = 3.0  # points between lines at the same position


def lines(
    metric: str,
    x_label: str | Mapping[str, str],
    y_label: str,
    scale: str | Mapping[str, str] = "linear",
    reference: str | None = None,
) -> Callable[[Findings], Figure]:
    """Return a function that draws a panel for each part, a line for each series, and a bar for each interval.

    Args:
        metric: to draw.
        x_label: of the horizontal axis; by panel if it differs.
        y_label: of the vertical axis.
        scale: "linear", "log", "symlog" or "places" (evenly spaced); by panel if it differs.
        reference: panel whose points are drawn as horizontal lines in all others.
    """

    def draw(findings: Findings) -> Figure:
        panels = [panel for panel in findings.panels if panel != reference]
        figure, axes = new_grid(len(panels), _ACROSS, y_label)
        looks = strokes([s for s in findings.series() if any(findings.line(s, p) for p in panels)])
        levels = [(p.series, p.values[metric].figure().mean) for p in findings.points if p.panel == reference]
        at_right: Any = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
        for place, panel in zip(axes, panels, strict=True):
            kind = scale if isinstance(scale, str) else scale.get(panel, "linear")
            for name in findings.series(panel):
                _line(place, findings.line(name, panel), metric, name, looks, kind)
            for name, level in levels:
                place.axhline(level, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
                place.annotate(plain(name), (0.99, level), fontsize=7.5, color=INK, **at_right)
            place.set_xlabel(x_label if isinstance(x_label, str) else x_label.get(panel, ""))
            place.set_title(plain(panel))
            if kind in ("log", "symlog"):
                _plain_ticks(place, findings, panel, kind)
        if len(looks) > 1:
            add_legend(figure, axes, min(4, len(looks)))
        return figure

    return draw


def _line(
    axes: Axes, points: Sequence[Point], metric: str, name: str, looks: Mapping[str, Mapping[str, object]], scale: str
) -> None:
    """Draw one line, shifted slightly to the right of the previous ones, so that their bars do not overlap."""
    from matplotlib.transforms import ScaledTranslation

    drawn = [(point, point.values[metric].figure()) for point in points if metric in point.values]
    if not drawn:
        return
    names = [str(point.x) if isinstance(point.x, str) else f"{point.x:g}" for point, _ in drawn]
    by_place = scale == "places" or any(isinstance(point.x, str) for point, _ in drawn)
    x = list(range(len(drawn))) if by_place else [float(point.x) for point, _ in drawn]
    mean = [figure.mean for _, figure in drawn]
    below = [max(0.0, figure.mean - figure.low) for _, figure in drawn]
    above = [max(0.0, figure.high - figure.mean) for _, figure in drawn]
    look: Any = {"label": plain(name), "capsize": 2, "elinewidth": 0.9, **looks[name]}
    line, caps, bars = axes.errorbar(x, mean, [below, above], **look)
    assert axes.figure is not None
    aside = _APART * (list(looks).index(name) - (len(looks) - 1) / 2)
    moved = ScaledTranslation(aside / 72, 0, axes.figure.dpi_scale_trans)
    for artist in (line, *caps, *bars):  # only now, since axis limits are computed from the unshifted line
        artist.set_transform(artist.get_transform() + moved)
    if by_place:
        axes.set_xticks(x, names)
        axes.set_xlim(-0.5, len(x) - 0.5)


def _plain_ticks(axes: Axes, findings: Findings, panel: str, kind: str) -> None:
    """Set ticks at the points, in plain numbers."""
    from matplotlib.ticker import NullFormatter, NullLocator

    places = sorted({float(p.x) for p in findings.points if p.panel == panel and not isinstance(p.x, str)})
    smallest = min((x for x in places if x > 0), default=1.0)
    axes.set_xscale(kind, **({"linthresh": smallest} if kind == "symlog" else {}))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(places, [f"{x:g}" for x in places])


def dots(metrics: Mapping[str, str]) -> Callable[[Findings], Figure]:
    """Return a function that draws a row for each point and a panel for each metric.

    Measured values are dots with intervals; published ones, from the point's fact `published_METRIC`, are hollow.

    Args:
        metrics: heading of each panel by metric.
    """

    def draw(findings: Findings) -> Figure:
        names = [n for n in metrics if any(n in p.values or f"published_{n}" in p.facts for p in findings.points)]
        rows = list(findings.points)[:_MAX_ROWS]
        labels = [plain(f"{p.panel}: {p.series}" if len(findings.panels) > 1 else p.series) for p in rows]
        figure, axes = new_figure(len(names), width=2.5, height=0.28 * len(rows) + 0.5)
        left = 0.075 * max(map(len, labels)) + 0.2
        figure.set_size_inches(left + 2.2 * len(names) + 0.4, 0.27 * len(rows) + 1.1)
        for place, name in zip(axes, names, strict=True):
            _dots(place, rows, name)
            place.set_title(metrics[name])
            place.set_xlabel("%")
            place.set_yticks(range(len(rows)), labels if place is axes[0] else [""] * len(rows))
            place.set_ylim(len(rows) - 0.4, -0.6)
        add_legend(figure, axes, 2)
        return figure

    return draw


def _dots(axes: Axes, rows: Sequence[Point], metric: str) -> None:
    for place, point in enumerate(rows):
        if metric in point.values:
            figure = point.values[metric].figure()
            axes.plot([figure.low, figure.high], [place, place], color=COLOURS[0], linewidth=1.4)
            axes.plot(figure.mean, place, MARKS[0], color=COLOURS[0], label="run here")
        theirs = point.facts.get(f"published_{metric}")
        if theirs is not None:
            axes.plot(theirs, place, MARKS[3], color=COLOURS[1], markerfacecolor=PAPER, label="the paper's")


def ranked_bars(correlation: str, value: str, series: str) -> Callable[[Findings], Figure]:
    """Return a function that draws, by panel, a correlation by depth above and the highest values of one series below.

    Args:
        correlation: drawn above; if no point has it, only the bars are drawn.
        value: drawn below, for points whose x is a name. series: of these points.
    """

    def draw(findings: Findings) -> Figure:
        panels = findings.panels
        has_truth = any(correlation in point.values for point in findings.points)
        figure, axes = new_figure(len(panels), 1 + has_truth, height=3.3)
        looks = strokes(findings.series())
        if has_truth:
            for place, panel in zip(axes, panels, strict=False):
                for name in findings.series(panel):
                    points = [p for p in findings.points if (p.series, p.panel) == (name, panel)]
                    drawn = [p for p in points if correlation in p.values]
                    _line(place, drawn, correlation, name, looks, "")
                place.set_title(plain(panel))
                place.set_xlabel("k most frequent classes")
            axes[0].set_ylabel("Spearman's correlation")
            figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=min(3, len(panels)))
        for place, panel in zip(axes[len(panels) * has_truth :], panels, strict=True):
            _bars(place, [p for p in findings.line(series, panel) if value in p.values], value)
            place.set_xlabel(plain(f"{panel}: share of images"))
        return figure

    return draw


def _bars(axes: Axes, points: Sequence[Point], value: str) -> None:
    """Draw bars with the highest on top, and a cross at the truth."""
    for place, point in enumerate(points):
        axes.barh(place, point.values[value].figure().mean, color=COLOURS[0], height=0.66)
        if "true_share" in point.facts:
            axes.plot(point.facts["true_share"], place, "x", color=COLOURS[1])
    axes.set_yticks(range(len(points)), [plain(str(p.x)) for p in points], fontsize=7)
    axes.set_ylim(len(points) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)

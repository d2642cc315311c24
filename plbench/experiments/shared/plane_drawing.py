"""The plane as a figure: what each mode learned of a class, beside where the class really is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from plbench.experiments.shared.experiment import Findings
from plbench.experiments.shared.plane import DISCS, GRID, Plane
from plbench.experiments.shared.style import COLOURS, INK, PAPER, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Field:
    """What one network says of one class over the plane.

    Attributes:
        column: of the class. probability: [GRID^2]. plane: what it learned from.
    """

    column: int
    probability: npt.NDArray[np.float32]
    plane: Plane


def boundaries(metric: str) -> Callable[[Findings], Figure]:
    """Return a column for each mode, a row for each class; of the first seed."""

    def draw(findings: Findings) -> Figure:
        modes, classes = findings.series(), findings.panels
        figure, axes = new_figure(len(modes), len(classes), width=2.5, height=2.5)
        for place, (panel, mode) in zip(axes, [(p, m) for p in classes for m in modes], strict=True):
            point = next(p for p in findings.points if (p.series, p.panel) == (mode, panel))
            _draw_field(place, point.shown)
            place.set_title(f"{mode}: {point.values[metric].figure().mean:.0f} %")
        for row, panel in enumerate(classes):
            axes[row * len(modes)].set_ylabel(plain(panel))
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        return figure

    return draw


def _draw_field(axes: Axes, field: Field) -> None:
    from matplotlib.patches import Circle

    side = np.linspace(-1, 1, GRID)
    values = field.probability.reshape(GRID, GRID)
    axes.contourf(side, side, values, levels=[0.5, 1.01], colors=[COLOURS[0]], alpha=0.28)
    if values.min() < 0.5 < values.max():
        axes.contour(side, side, values, levels=[0.5], colors=[COLOURS[0]], linewidths=1.6)
    x, y, radius = DISCS[field.column]
    axes.add_patch(Circle((x, y), radius, fill=False, linestyle=(0, (4, 2)), color=INK, linewidth=1.1))
    labels, points = field.plane.labels[:, field.column].numpy(), field.plane.points.numpy()
    kinds: Sequence[tuple[int, str, str, str, float]] = (
        (0, "unknown", ".", "#a8a8a8", 2.0),
        (-1, "known absent", "v", COLOURS[1], 4.5),
        (1, "known present", "o", COLOURS[2], 4.5),
    )
    for value, name, mark, colour, size in kinds:
        chosen = points[labels == value]
        edge = PAPER if value else colour
        axes.plot(*chosen.T, mark, color=colour, markersize=size, label=name, markeredgecolor=edge, markeredgewidth=0.4)
    axes.plot([], [], color=COLOURS[0], label="boundary learned")
    axes.plot([], [], color=INK, linestyle=(0, (4, 2)), label="true boundary")
    axes.set(xlim=(-1, 1), ylim=(-1, 1), xticks=[], yticks=[], aspect="equal")
    axes.grid(visible=False)

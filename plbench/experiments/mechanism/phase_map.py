"""A map of annotation mechanisms: which treatment of unknown labels wins where, with what certainty."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from plbench.data.simulation import parse
from plbench.experiments.mechanism.placement import (
    Placement,
    estimated_positives,
    place,
    true_placement,
    unknown_scores,
)
from plbench.experiments.shared.execute import metrics_of_records, reduced
from plbench.experiments.shared.experiment import Context, Findings, Point, Row
from plbench.experiments.shared.style import COLOURS, INK, PALE, new_grid, plain
from plbench.metrics.statistics import compare_pairs
from plbench.runs.workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from plbench.runs.plan.resolved import ResolvedRun

IGNORE, NEGATIVE, SELECTIVE = MODES = ("Ignore", "Negative", "Selective")
METRIC = "map_c"
_ACROSS = 2  # panels per row, so that text in squares is legible
_LOOKS = dict(zip(MODES, COLOURS, strict=False))


@dataclass(frozen=True)
class Cell:
    """One mechanism with its points by mode.

    Attributes:
        keep, bias, negatives: parameters of the simulation. truth: true placement. estimate: placement estimated from
            the partial labels alone; None if not identifiable.
    """

    keep: float
    bias: float
    negatives: float
    truth: Placement
    estimate: Placement | None
    points: Mapping[str, Point]

    @property
    def order(self) -> list[str]:
        """Modes in descending order of mean mAP(C)."""
        return sorted(self.points, key=lambda mode: -self.points[mode].values[METRIC].mean)

    @property
    def best(self) -> str:
        """Mode with the highest mean mAP(C)."""
        return self.order[0]

    @property
    def tied(self) -> tuple[str, ...]:
        """The best mode and those statistically tied with it."""
        pairs = compare_pairs([self.points[mode].values[METRIC] for mode in self.order])
        return tuple(mode for mode, is_tied in zip(self.order, pairs.tied, strict=True) if is_tied)

    @property
    def lead(self) -> float:
        """Difference between the best and the second mode in percentage points."""
        means = [self.points[mode].values[METRIC].mean for mode in self.order]
        return means[0] - means[1] if len(means) > 1 else 0.0


def measure(context: Context, rows: Sequence[Row], num_seeds: int, workspace: Workspace) -> list[Point]:
    """Return metrics of every run, with the true mechanism and the one estimated from the partial labels alone."""
    points = metrics_of_records(context, rows, num_seeds, workspace)
    found = []
    with workspace.reporter.task("Placing the labels of each setting on the map") as report:
        for number, (row, point) in enumerate(zip(rows, points, strict=True)):
            report(number, len(rows))
            plan = row.plans[0]
            keep, bias, negatives = parse(plan.spec.protocol.simulation).numbers
            facts: dict[str, Any] = {"keep": keep, "bias": bias, "negatives": negatives}
            values = {METRIC: point.values[METRIC], "map_o": point.values["map_o"]}
            labels, truth = plan.protocol_data.train().labels, plan.protocol_data.hidden_truth()
            actual = None if truth is None else true_placement(labels, truth)
            facts |= {} if actual is None else {f"true_{name}": value for name, value in asdict(actual).items()}
            if row.case.series == IGNORE:
                estimate = place(labels, estimated(plan, workspace))
                facts |= {} if estimate is None else {f"estimated_{n}": v for n, v in asdict(estimate).items()}
            found.append(replace(point, values=values, facts=facts))
    return found


def estimated(plan: ResolvedRun, workspace: Workspace) -> np.ndarray:
    """Return the number of positives of each class [C], as estimated by the CE-Ignore model of a run."""
    histogram = reduced(plan, "unknown-scores", unknown_scores, workspace)
    return estimated_positives(histogram.numpy(), plan.protocol_data.train(plan.spec.train_part).labels)


def cells(findings: Findings) -> list[Cell]:
    """Return the mechanisms of the map, in order."""
    found: dict[tuple[float, float, float], dict[str, Point]] = {}
    for point in findings.points:
        key = (point.facts["keep"], point.facts["bias"], point.facts["negatives"])
        found.setdefault(key, {})[point.series] = point
    return [
        Cell(*key, truth, _placement(points[IGNORE], "estimated") if IGNORE in points else None, points)
        for key, points in sorted(found.items())
        if (truth := _placement(next(iter(points.values())), "true")) is not None
    ]


def _placement(point: Point, kind: str) -> Placement | None:
    """Return the placement in a point's facts; None if it has none of that kind."""
    names = [f"{kind}_{name}" for name in ("share", "advantage", "negatives")]
    return Placement(*(point.facts[name] for name in names)) if set(names) <= point.facts.keys() else None


def phases(findings: Findings) -> Figure:
    """Draw a panel for each number of negatives: a square for each mechanism, in the colour of the winning mode."""
    from matplotlib.patches import Patch

    all_cells = cells(findings)
    numbers = sorted({cell.negatives for cell in all_cells})
    keeps, biases = sorted({c.keep for c in all_cells}), sorted({c.bias for c in all_cells})
    size = {"height": 0.75 * len(biases) + 0.9, "width": 0.95 * len(keeps) + 0.9}
    figure, axes = new_grid(len(numbers), _ACROSS, "bias to rare classes", **size)
    for place_, number in zip(axes, numbers, strict=True):
        for cell in (c for c in all_cells if c.negatives == number):
            _square(place_, keeps.index(cell.keep), biases.index(cell.bias), cell)
        place_.set_xticks(range(len(keeps)), [f"{keep:g}" for keep in keeps])
        place_.set_yticks(range(len(biases)), [f"{bias:g}" for bias in biases])
        place_.set(xlim=(-0.5, len(keeps) - 0.5), ylim=(-0.5, len(biases) - 0.5))
        place_.set_xlabel("share of positives known")
        place_.set_title(plain(f"{number:g} verified negatives per positive"))
        place_.grid(visible=False)
    handles = [Patch(color=_LOOKS[mode], alpha=0.85, label=f"{mode} wins") for mode in MODES]
    handles.append(Patch(facecolor=PALE, label="statistically tied"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4 if len(numbers) > 1 else 2)
    return figure


def _square(axes: Axes, x: int, y: int, cell: Cell) -> None:
    from matplotlib.patches import Rectangle

    sure = len(cell.tied) == 1
    colour = _LOOKS[cell.best] if sure else PALE
    axes.add_patch(Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, color=colour, alpha=0.85 if sure else 1.0))
    words = f"{cell.best}\n+{cell.lead:.1f}" if sure else "\n= ".join(cell.tied)
    axes.text(x, y, words, ha="center", va="center", fontsize=7.5, color="#ffffff" if sure else INK)


def as_map(findings: Findings) -> dict[str, str]:
    """Return the map in the format of `plbench advise`."""
    rows = [
        {
            **asdict(cell.truth),
            "estimated": None if cell.estimate is None else asdict(cell.estimate),
            "means": {mode: round(cell.points[mode].values[METRIC].figure().mean, 3) for mode in cell.points},
            "best": cell.best,
            "tied": list(cell.tied),
        }
        for cell in cells(findings)
    ]
    made_on = {"dataset": findings.context.dataset, "setting": findings.setting, "scale": findings.context.scale}
    return {"map.json": json.dumps({"made_on": made_on, "cells": rows}, indent=1) + "\n"}

"""Estimates of the class prior, from trained models and from counts, compared with the truth hidden by a simulation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from torch import Tensor

from plbench.experiments.shared.execute import reduced
from plbench.experiments.shared.experiment import NUM_DRAWS, Context, Findings, FloatArray, Point, Row
from plbench.losses.priors import class_average, spearman_by_depth
from plbench.method import TrainView
from plbench.metrics.bootstrap import draw_indices
from plbench.metrics.statistics import Sample
from plbench.runs.workspace import Workspace

COUNTS = "count of annotations"
SPEARMAN, PRIOR = "spearman", "prior"
DEPTHS = (10, 20, 30, 40, 60, 80, 120, 200, 400, 800)
"""Numbers of most frequent classes over which ranks are compared, in addition to all."""

TOP = 20
"""Number of classes whose names are shown."""


def mean_prediction(view: TrainView) -> Tensor:
    """Return the mean prediction [C] of each class over the training part: eval mode, EMA weights (CSL, eq. 10)."""
    return class_average(probabilities for _, probabilities in view.predict(weights="ema"))


def measure(context: Context, rows: Sequence[Row], num_seeds: int, workspace: Workspace) -> list[Point]:
    """Return rank correlations with the truth over the top-k classes, and the top classes of each estimate."""
    points = []
    for panel in dict.fromkeys(row.case.panel for row in rows):
        members = [row for row in rows if row.case.panel == panel]
        plans, part, seeds = members[0].plans, members[0].plans[0].spec.train_part, members[0].seeds
        hidden = plans[0].protocol_data.hidden_truth(part)  # equal for all seeds, unlike the labels
        labels = [plan.protocol_data.train(part).labels for plan in plans]
        truth = None if hidden is None else hidden.counts()[0] / hidden.num_images
        vectors = {}  # [S, C] with the keys of the runs
        for row in members:
            of_seeds = [reduced(plan, "class-average", mean_prediction, workspace) for plan in row.plans]
            vectors[row.case.series] = np.stack([vector.double().numpy() for vector in of_seeds]), row.keys
        vectors[COUNTS] = np.stack([own.counts()[0] / own.num_images for own in labels]), ()
        known: dict[str, npt.NDArray[Any]] = {}  # numbers of known labels by class
        if truth is not None:
            known = {"true_share": truth, "true_place": stats.rankdata(-truth, method="min").astype(int)}
            for name, (estimates, keys) in vectors.items():
                found = _correlations(estimates, truth)
                points += [Point(name, float(k), {SPEARMAN: sample}, panel, keys, seeds) for k, sample in found]
        for name, (estimates, keys) in vectors.items():
            for place, c in enumerate(np.argsort(-estimates.mean(axis=0), kind="stable")[:TOP], 1):
                facts = {"place": place} | {fact: of_class[c].item() for fact, of_class in known.items()}
                values = {PRIOR: Sample.of_seeds(estimates[:, c])}
                points.append(Point(name, labels[0].class_names[c], values, panel, keys, seeds, facts))
    return points


def _correlations(estimates: FloatArray, truth: FloatArray) -> Iterator[tuple[int, Sample]]:
    """Yield Spearman's correlation of [S, C] with [C] over the k most frequent classes, by k."""
    order = np.argsort(-truth, kind="stable")
    for k in (*(k for k in DEPTHS if k < len(truth)), len(truth)):
        top = order[:k]
        values = np.nan_to_num(np.concatenate([spearman_by_depth(one, truth, [k]) for one in estimates]))
        # the same resamples for all estimates
        drawn = top[draw_indices(f"classes/{k}", NUM_DRAWS * k, k).reshape(NUM_DRAWS, k)]
        draws = np.stack([_rank_correlation(one[drawn], truth[drawn]) for one in estimates])
        yield k, Sample.of_runs(values, draws, bounds=(-1.0, 1.0))


def _rank_correlation(estimate: FloatArray, truth: FloatArray) -> FloatArray:
    """Return Spearman's correlation of each row of two [R, k]; 0 if one of them is constant."""
    a, b = (stats.rankdata(values, axis=1) for values in (estimate, truth))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    scale = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    found: FloatArray = np.divide((a * b).sum(axis=1), scale, out=np.zeros(len(a)), where=scale > 0)
    return found


def side_by_side(findings: Findings, panel: str) -> str:
    """Return the top classes of each series as a Markdown table.

    Each has its true rank, if known.
    """
    series = findings.series(panel)
    columns = [
        [p for p in findings.points if (p.panel, p.series) == (panel, name) and PRIOR in p.values] for name in series
    ]
    lines = ["| | " + " | ".join(series) + " |", "|---|" + "---|" * len(series)]
    for place, points in enumerate(zip(*columns, strict=True), 1):
        cells = [f"{p.x} ({p.facts['true_place']})" if "true_place" in p.facts else str(p.x) for p in points]
        lines.append(f"| {place} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"

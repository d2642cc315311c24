"""Estimates of the class prior, from trained models and from counts, against the truth that a simulation hid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy import stats
from torch import Tensor

from plbench.experiments.shared.experiment import NUM_DRAWS, Context, FloatArray, Point, Row
from plbench.losses.priors import class_average, spearman_by_depth
from plbench.method import Stage, TrainView
from plbench.metrics.bootstrap import draw_indices
from plbench.metrics.statistics import Sample
from plbench.runs import run as runner
from plbench.runs.workspace import Workspace

COUNTS = "count of annotations"
SPEARMAN, PRIOR = "spearman", "prior"
TOP = 20
"""Classes whose names are shown."""


def mean_prediction(view: TrainView) -> Tensor:
    """Return the mean prediction [C] of each class over the training part: eval mode, EMA weights (CSL, eq. 10)."""
    return class_average(probabilities for _, probabilities in view.predict(weights="ema"))


def estimated(row: Row, workspace: Workspace) -> FloatArray:
    """Return the mean prediction of each class over train by the model of each seed, [S, C]."""
    vectors = []
    for plan in row.plans:
        stage = Stage("class-average", method=plan.spec.method.name, reduce=mean_prediction)
        vectors.append(runner.stage_artifact(replace(plan, stages={stage.name: (stage, plan)}), stage.name, workspace))
    return np.stack([vector.double().numpy() for vector in vectors])


def measure(context: Context, rows: Sequence[Row], num_seeds: int, workspace: Workspace) -> list[Point]:
    """Rank correlation with the truth over the top-k classes, and the classes that each estimate puts first."""
    points = []
    for panel in dict.fromkeys(row.case.panel for row in rows):
        members = [row for row in rows if row.case.panel == panel]
        plans, part = members[0].plans, members[0].plans[0].spec.train_part
        hidden = plans[0].protocol_data.hidden_truth(part)  # the same for all seeds; the labels are each seed's own
        labels = [plan.protocol_data.train(part).labels for plan in plans]
        truth = None if hidden is None else hidden.counts()[0] / hidden.num_images
        vectors = {row.case.series: estimated(row, workspace) for row in members}
        vectors[COUNTS] = np.stack([own.counts()[0] / own.num_images for own in labels])
        runs = {row.case.series: row for row in members}
        if truth is not None:
            points += [p for name, v in vectors.items() for p in _correlations(name, panel, v, truth, runs)]
        for name, vector in vectors.items():
            points += _first(name, panel, vector, truth, labels[0].class_names, runs)
    return points


def depths(num_classes: int) -> list[int]:
    """Return numbers of most frequent classes over which ranks are compared."""
    return sorted({*(k for k in (10, 20, 30, 40, 60, 80, 120, 200, 400, 800) if k < num_classes), num_classes})


def _correlations(
    series: str, panel: str, vectors: FloatArray, truth: FloatArray, runs: Mapping[str, Row]
) -> list[Point]:
    order = np.argsort(-truth, kind="stable")
    found = []
    for k in depths(len(truth)):
        top = order[:k]
        values = np.nan_to_num(np.concatenate([spearman_by_depth(v, truth, [k]) for v in vectors]))
        drawn = top[draw_indices(f"classes/{k}", NUM_DRAWS * k, k).reshape(NUM_DRAWS, k)]  # the same for all estimates
        draws = np.stack([_rank_correlation(v[drawn], truth[drawn]) for v in vectors])
        found.append(
            _point(series, float(k), panel, {SPEARMAN: Sample.of_runs(values, draws, bounds=(-1.0, 1.0))}, runs)
        )
    return found


def _rank_correlation(estimate: FloatArray, truth: FloatArray) -> FloatArray:
    """Return spearman's correlation of each row of two [R, k]; 0 where one of them is constant, which ranks nothing."""
    a, b = (stats.rankdata(values, axis=1) for values in (estimate, truth))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    scale = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    found: FloatArray = np.divide((a * b).sum(axis=1), scale, out=np.zeros(len(a)), where=scale > 0)
    return found


def _first(
    series: str,
    panel: str,
    vectors: FloatArray,
    truth: FloatArray | None,
    names: Sequence[str],
    runs: Mapping[str, Row],
) -> list[Point]:
    """Return the classes with the highest estimates, highest first, with their true place."""
    mean = vectors.mean(axis=0)
    places = None if truth is None else stats.rankdata(-truth, method="min").astype(int)
    return [
        _point(
            series,
            names[c],
            panel,
            {PRIOR: Sample.of_seeds(vectors[:, c])},
            runs,
            {"place": place}
            | (
                {} if truth is None or places is None else {"true_share": float(truth[c]), "true_place": int(places[c])}
            ),
        )
        for place, c in enumerate(np.argsort(-mean, kind="stable")[:TOP], 1)
    ]


def _point(
    series: str,
    x: float | str,
    panel: str,
    values: Mapping[str, Sample],
    runs: Mapping[str, Row],
    facts: Mapping[str, float] | None = None,
) -> Point:
    row = runs.get(series)
    records = () if row is None else row.records
    seeds = tuple(r.spec.seed for r in records) or tuple(r.spec.seed for r in next(iter(runs.values())).records)
    return Point(series, x, values, panel, tuple(r.key for r in records), seeds, facts or {})

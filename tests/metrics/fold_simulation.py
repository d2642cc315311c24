"""Simulated comparisons of two methods by folds: how often equal ones are called different, and how far mAP is off.

`make validate-statistics` runs `main`; the test suite runs a small part. Labels come from a linear model on two halves
of the features that say equally much; each method sees one half, so that the two are equal over training sets, but not
on one and the same. A method is ridge regression, each of whose seeds sees nine tenths of the known labels.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import numpy as np

from plbench.metrics import bootstrap, evaluate_cells
from plbench.metrics.cells import Cells
from plbench.metrics.statistics import SIGNIFICANT, Sample, compare_pairs, widened_for_folds

NUM_CLASSES, NUM_SEEDS, NUM_NEW = 8, 5, 3000


@dataclass(frozen=True)
class World:
    """Labelled images to train on, features of each, and the share of labels that is known."""

    images: int
    features: int
    known: float


@dataclass(frozen=True)
class Found:
    """What one way of comparing says of two equal methods.

    Attributes:
        is_different: whether they are called different. detectable: as in `Pairs`.
        deviations: their difference, in the standard deviations that it is said to have.
        excess: points of mAP(C) by which a method's value exceeds that of the same models on many new images.
    """

    is_different: bool
    detectable: float
    deviations: float
    excess: float


WORLDS = {
    "240 images, 12 features, half of the labels": World(240, 12, 0.5),
    "160 images, 60 features, 70 % of the labels": World(160, 60, 0.7),
    "480 images, 12 features, all labels": World(480, 12, 1.0),
}


class _Data:
    """Features [N, D] and labels [N, C] of images of one world."""

    def __init__(self, world: World, weights: np.ndarray, offsets: np.ndarray, size: int, rng: np.random.Generator):
        self.x = rng.normal(size=(size, world.features))
        present = self.x @ weights + 0.8 * rng.normal(size=(size, NUM_CLASSES)) + offsets > 0
        known = rng.random(present.shape) < world.known
        self.labels = np.where(known, np.where(present, 1, -1), 0).astype(np.int8)


def _scores(train: _Data, rows: np.ndarray, x: np.ndarray, half: int, rng: np.random.Generator) -> np.ndarray:
    """Return scores [n, C] of images by a model of some rows of train."""
    width = x.shape[1] // 2
    seen = slice(half * width, (half + 1) * width)
    design, asked = (np.c_[part[:, seen], np.ones(len(part))] for part in (train.x[rows], x))
    labels, scores = train.labels[rows], np.empty((len(x), NUM_CLASSES))
    for c in range(NUM_CLASSES):
        kept = (labels[:, c] != 0) & (rng.random(len(labels)) < 0.9)
        a, y = design[kept], labels[kept, c].astype(np.float64)
        scores[:, c] = asked @ np.linalg.solve(a.T @ a + np.eye(a.shape[1]), a.T @ y)
    return scores


def _sample(scores: list[np.ndarray], labels: np.ndarray, num_replicates: int, num_folds: int | None) -> Sample:
    points, replicates = [], []
    for own in scores:
        cells = Cells.from_scores(own, labels)
        points.append(evaluate_cells(cells).map_c)
        drawn = bootstrap.replicates(cells, num_replicates, seed=0).map_c
        replicates.append(drawn if num_folds is None else widened_for_folds(drawn, points[-1], num_folds))
    return Sample.of_runs(points, replicates, range(NUM_SEEDS), (0.0, 100.0))


def _map_c(scores: np.ndarray, labels: np.ndarray) -> float:
    return evaluate_cells(Cells.from_scores(scores, labels)).map_c


def compare_once(world: World, num_folds: int, number: int, num_replicates: int = 200) -> dict[str, Found]:
    """Compare two equal methods on a test part a quarter as large, by folds, and by folds without widening."""
    rng = np.random.default_rng([11, number])
    half = rng.normal(size=(world.features // 2, NUM_CLASSES))
    half /= np.linalg.norm(half, axis=0)
    of_world = (world, np.concatenate([half, half]), 1.6 * rng.normal(-0.9, 0.4, NUM_CLASSES))
    train, test, new = (_Data(*of_world, size, rng) for size in (world.images, world.images // 4, NUM_NEW))
    fold_of = rng.integers(0, num_folds, world.images)
    everything = np.ones(world.images, bool)
    on_test: list[list[np.ndarray]] = []
    pooled: list[list[np.ndarray]] = []
    truth: dict[bool, list[float]] = {False: [], True: []}  # by whether of the models of folds
    for method in (0, 1):
        dice = np.random.default_rng([12, number, method])
        both = np.concatenate([test.x, new.x])
        found = [_scores(train, everything, both, method, dice) for _ in range(NUM_SEEDS)]
        on_test.append([scores[: len(test.x)] for scores in found])
        truth[False] += [_map_c(scores[len(test.x) :], new.labels) for scores in found]
        pooled.append([np.empty(train.labels.shape) for _ in range(NUM_SEEDS)])
        for scores in pooled[-1]:
            for fold in range(num_folds):
                inside = fold_of == fold
                found_here = _scores(train, ~inside, np.concatenate([train.x[inside], new.x]), method, dice)
                scores[inside] = found_here[: inside.sum()]
                truth[True].append(_map_c(found_here[inside.sum() :], new.labels))
    ways = {
        "test part": (on_test, test.labels, None, False),
        "folds": (pooled, train.labels, num_folds, True),
        "folds, not widened": (pooled, train.labels, None, True),
    }
    results = {}
    for way, (scores_of, labels, widening, is_folded) in ways.items():
        samples = [_sample(one, labels, num_replicates, widening) for one in scores_of]
        pairs, excess = compare_pairs(samples), np.mean([one.mean for one in samples]) - np.mean(truth[is_folded])
        gap, is_different = samples[0].minus(samples[1]), bool(pairs.p_values[0, 1] < SIGNIFICANT)
        deviations = gap.value / math.sqrt(gap.image_variance + gap.seed_variance)
        results[way] = Found(is_different, pairs.detectable, deviations, float(excess))
    return results


def main() -> None:
    """Print the table of docs/statistics.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comparisons", type=int, default=400)
    number = parser.parse_args().comparisons
    for name, world in WORLDS.items():
        for num_folds in (2, 5, 10):
            made = [compare_once(world, num_folds, one) for one in range(number)]
            columns = [[one[way] for one in made] for way in made[0]]
            cells = [f"{100 * np.mean([one.is_different for one in column]):.1f}" for column in columns]
            cells += [f"{np.mean([one.detectable for one in column]):.1f}" for column in columns[:2]]
            cells += [f"{np.mean([one.excess for one in column]):+.1f}" for column in columns[:2]]
            print("|", " | ".join([name, str(num_folds), *cells]), "|", flush=True)


if __name__ == "__main__":
    main()

"""Estimate the annotation mechanism: how much was annotated, its bias to rare classes, and the number of negatives.

The truth is estimated by a model trained on known labels alone. Its probabilities follow the class balance of the
*annotated* cells; the expectation-maximisation of Saerens, Latinne and Decaestecker (2002) finds the balance that fits
its predictions on unknown cells. This is correct if annotators selected images within a class at random, so that
annotated and unknown positives look alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt
import torch
from pydantic import PositiveFloat  # validated when a map is read
from torch import Tensor

from plbench.data.labels import PartialLabels
from plbench.method import TrainView

FloatArray = npt.NDArray[np.float64]

NUM_BINS = 200
_EDGE = 12.0  # logits beyond this are practically certain
_WIDTH = 2 * _EDGE / (NUM_BINS - 1)
_ROUNDS = 500
MIN_KNOWN = 20
"""Minimum number of known positives, and of known negatives, of a class that is used."""

MAX_ERROR = 0.25
"""Maximum standard error of the number of positives of a class that is used, relative to that number."""


@dataclass(frozen=True)
class Placement:
    """Coordinates of labels on the map of mechanisms.

    Attributes:
        share: estimated share of all positives that are known, in [0, 1].
        advantage: ratio of the probabilities that a positive is annotated in the rarer and in the more frequent half of
            classes; 1 if annotation keeps class frequencies.
        negatives: known negatives per known positive.
    """

    share: PositiveFloat
    advantage: PositiveFloat
    negatives: PositiveFloat


def unknown_scores(view: TrainView) -> Tensor:
    """Return the histogram [C, NUM_BINS] of a model's logits at each class's unknown cells, split between two bins."""
    counts = torch.zeros((view.labels.num_classes, NUM_BINS), dtype=torch.float64)
    for rows, scores in view.predict(weights="ema"):
        labels = torch.from_numpy(view.labels.rows(rows.numpy()))
        logits = torch.logit(scores.double().cpu(), eps=1e-9).clamp(-_EDGE, _EDGE)
        place_ = ((logits + _EDGE) / _WIDTH).T
        below = place_.floor().clamp(max=NUM_BINS - 2)
        unknown = (labels == 0).T.double()
        # linear interpolation keeps means exact
        for bins, weight in ((below, below + 1 - place_), (below + 1, place_ - below)):
            counts.scatter_add_(1, bins.long(), weight * unknown)
    return counts


def estimated_positives(histogram: FloatArray, labels: PartialLabels) -> FloatArray:
    """Return the estimated number of positive images of each class: known ones plus those among the unknown.

    Args:
        histogram: [C, NUM_BINS] from `unknown_scores`.
        labels: that the model was trained on.

    Returns:
        [C]; NaN for classes with too few known labels, or which the model cannot distinguish.
    """
    positives, negatives = (counts.astype(np.float64) for counts in labels.counts())
    usable = (positives >= MIN_KNOWN) & (negatives >= MIN_KNOWN)
    trained_on = np.where(usable, positives / np.maximum(positives + negatives, 1), 0.5)
    odds = np.exp(-_EDGE + _WIDTH * np.arange(NUM_BINS))[None]  # of present to absent, by the model
    likelihood_ratio = odds * ((1 - trained_on) / trained_on)[:, None]
    unknown = histogram.sum(axis=1)
    share = trained_on.copy()
    for _ in range(_ROUNDS):
        weighted = likelihood_ratio * (share / (1 - share))[:, None]
        found = (histogram * (weighted / (1 + weighted))).sum(axis=1) / np.maximum(unknown, 1)
        share = np.clip(found, 1e-6, 1 - 1e-6)
    # Fisher information on the share of a mixture: zero if both components look alike
    slope = (likelihood_ratio - 1) / (1 + (likelihood_ratio - 1) * share[:, None])
    error = 1 / np.sqrt(np.maximum((histogram * slope**2).sum(axis=1), 1e-12))
    usable &= error * unknown <= MAX_ERROR * (positives + unknown * share)
    return np.where(usable, positives + unknown * share, np.nan)


def place(labels: PartialLabels, estimate: FloatArray) -> Placement | None:
    """Return the mechanism that follows from an estimate of the true positives.

    None if fewer than four classes can be used.
    """
    positives, negatives = (counts.astype(np.float64) for counts in labels.counts())
    usable = ~np.isnan(estimate) & (estimate > 0)
    if usable.sum() < 4 or positives[usable].sum() == 0:
        return None
    known, true = positives[usable], np.maximum(estimate[usable], positives[usable])
    order = np.argsort(true, kind="stable")
    rare, frequent = np.array_split(order, 2)
    chances = [known[half].sum() / true[half].sum() for half in (rare, frequent)]
    if min(chances) == 0:
        return None
    return Placement(
        float(known.sum() / true.sum()),
        float(chances[0] / chances[1]),
        float(negatives.sum() / positives.sum()),
    )


def true_placement(labels: PartialLabels, truth: PartialLabels) -> Placement | None:
    """Return the placement from the true labels that a simulation hid."""
    return place(labels, truth.counts()[0].astype(np.float64))


def spread(placements: Sequence[Placement]) -> tuple[Placement, Placement]:
    """Return the lowest and highest values of each coordinate."""
    values = np.array([astuple(placement) for placement in placements])
    return Placement(*map(float, values.min(axis=0))), Placement(*map(float, values.max(axis=0)))

"""Which mechanism may have made labels partial: how much was annotated, how biased to rare classes, how many absences.

The truth is estimated by a model that was trained on known labels alone. Its probabilities follow the balance of the
*annotated* cells, which says nothing of the others; the expectation-maximisation of Saerens, Latinne and Decaestecker
(2002) finds the balance under which they agree with the unknown cells. That is right if annotators chose among the
images of a class without looking, so that annotated and unknown positives look alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt
import torch
from pydantic import PositiveFloat  # checked where a map is read
from torch import Tensor

from plbench.data.labels import PartialLabels
from plbench.method import TrainView

FloatArray = npt.NDArray[np.float64]

NUM_BINS = 200
_EDGE = 12.0  # logits beyond this are as good as certain
_WIDTH = 2 * _EDGE / (NUM_BINS - 1)
_ROUNDS = 500
MIN_KNOWN = 20
"""Known positives, and negatives, from which a class counts."""

MAX_ERROR = 0.25
"""Standard error of a class's number of positives, as a share of it, up to which the class counts."""


@dataclass(frozen=True)
class Placement:
    """Where labels lie on the map of mechanisms.

    Attributes:
        share: of all positives that are known, estimated, in [0, 1].
        advantage: how many times likelier a positive of the rarer half of classes is annotated than one of the
            frequent half: 1 where annotation keeps the frequencies of classes.
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
        for bins, weight in ((below, below + 1 - place_), (below + 1, place_ - below)):  # so that means stay exact
            counts.scatter_add_(1, bins.long(), weight * unknown)
    return counts


def estimated_positives(histogram: FloatArray, labels: PartialLabels) -> FloatArray:
    """Return number of images of each class that truly have it: the known ones, and those estimated among the unknown.

    Args:
        histogram: [C, NUM_BINS] from `unknown_scores`.
        labels: that the model was trained on.

    Returns:
        [C]; NaN for classes of which too few labels are known, or which the model does not see.
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
    # the Fisher information on the share of a mixture: where both parts look alike there is none
    slope = (likelihood_ratio - 1) / (1 + (likelihood_ratio - 1) * share[:, None])
    error = 1 / np.sqrt(np.maximum((histogram * slope**2).sum(axis=1), 1e-12))
    usable &= error * unknown <= MAX_ERROR * (positives + unknown * share)
    return np.where(usable, positives + unknown * share, np.nan)


def place(labels: PartialLabels, estimate: FloatArray) -> Placement | None:
    """Return the mechanism that an estimate of the true positives speaks for.

    None where fewer than four classes count.
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
    """Return the same from the labels that a simulation hid."""
    return place(labels, truth.counts()[0].astype(np.float64))


def spread(placements: Sequence[Placement]) -> tuple[Placement, Placement]:
    """Return lowest and highest values of each coordinate."""
    values = np.array([astuple(placement) for placement in placements])
    return Placement(*map(float, values.min(axis=0))), Placement(*map(float, values.max(axis=0)))

"""Curves over known cells for plots: precision-recall, and reliability of scores as probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from plbench.errors import PlbenchError
from plbench.metrics.cells import BoolArray, Float64Array, FloatArray
from plbench.metrics.evaluate import CALIBRATION_BINS
from plbench.metrics.ranking import rank_cells


def precision_recall(scores: FloatArray, positives: BoolArray) -> tuple[Float64Array, Float64Array]:
    """Return recall and precision at every distinct score, from the highest score down.

    Args:
        scores: [K] finite. positives: [K] bool, at least one true.

    Returns:
        [G] each, in [0, 1]; average precision is the sum of precision times the steps of recall.

    Raises:
        PlbenchError: if no cell is positive, so that recall is undefined.

    Examples:
        >>> recall, precision = precision_recall(np.array([0.9, 0.5, 0.1]), np.array([True, False, True]))
        >>> recall.tolist(), precision.tolist()
        ([0.5, 0.5, 1.0], [1.0, 0.5, 0.6666666666666666])
    """
    if not positives.any():
        raise PlbenchError("there is no recall where no cell is a known positive")
    ranking = rank_cells(np.zeros(scores.shape, np.int64), scores, positives)
    hits = ranking.running(ranking.positives)
    return hits / hits[-1], hits / ranking.running(ranking.sizes)


@dataclass(frozen=True, eq=False)
class Reliability:
    """Known cells binned by score, with equal widths; empty bins are left out.

    Attributes:
        score: [B] mean score of each bin. positive: [B] share of known positives in it, in [0, 1].
        counts: [B] number of cells.
    """

    score: Float64Array
    positive: Float64Array
    counts: npt.NDArray[np.int64]


def reliability(scores: FloatArray, positives: BoolArray, num_bins: int = CALIBRATION_BINS) -> Reliability | None:
    """Return the bins of which `plbench.metrics.calibration_error` is the mean deviation.

    Args:
        scores: [K]. positives: [K] bool.
        num_bins: of equal width, [i/n, (i+1)/n), the last one closed.

    Returns:
        None if there are no cells, or a score is outside [0, 1].
    """
    values = scores.astype(np.float64)
    if not values.size or values.min() < 0 or values.max() > 1:
        return None
    bins = np.minimum((values * num_bins).astype(np.intp), num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    filled = counts > 0
    means = [np.bincount(bins, column, minlength=num_bins)[filled] / counts[filled] for column in (values, positives)]
    return Reliability(means[0], means[1], counts[filled])

"""Metrics over known cells only: average precision, mAP(C), mAP(O), groups, AUROC, ECE, ranking loss, P@k.

Every metric is one vectorised pass over the K known (image, class) cells of a test set. Unknown cells are excluded:
scoring them as negatives is the most common error in the field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from plbench.data.labels import PartialLabels
from plbench.errors import PlbenchError
from plbench.metrics.cells import Cells, Float64Array, IntArray, check_columns
from plbench.metrics.ranking import (
    PositiveGroups,
    Ranking,
    count_cells,
    group_by_class,
    group_cells,
    rank_by_image,
    share_of,
)

CALIBRATION_BINS = 15
"""Number of equal-width bins of the expected calibration error."""


def average_precision(
    class_index: npt.ArrayLike, scores: npt.ArrayLike, positives: npt.ArrayLike, num_classes: int
) -> Float64Array:
    """Return AP of every class over its known cells: the mean, over positives, of precision at the positive's score.

    Equal scores are one threshold; equals scikit-learn's `average_precision_score`.

    Args:
        class_index: [K] integers in 0..num_classes-1, in any order.
        scores: [K] finite.
        positives: [K] bool.
        num_classes: C.

    Returns:
        [C] in [0, 1]; NaN for a class without a known positive or without a known negative.

    Raises:
        PlbenchError: if shapes, types or ranges are not as described.

    Examples:
        >>> average_precision([0, 0, 0, 1], [0.9, 0.5, 0.1, 0.3], [True, False, True, True], 2)
        array([0.83333333,        nan])
    """
    index, values, present = np.asarray(class_index), np.asarray(scores), np.asarray(positives)
    if values.dtype.kind in "iu":
        values = values.astype(np.float64)
    check_columns(index, values, present, num_classes)
    return _average_precision(group_cells(index, values, present, num_classes))


def _average_precision(groups: PositiveGroups) -> Float64Array:
    precision = groups.positives_down / groups.cells_down
    gain = np.bincount(groups.owner, groups.positives * precision, minlength=groups.num_positives.size)
    return share_of(gain, groups.num_positives, (groups.num_positives > 0) & (groups.num_negatives > 0))


def lowest_average_precision(num_positives: npt.ArrayLike, num_negatives: npt.ArrayLike) -> Float64Array:
    """Return AP [C] of the worst ranking, with all negatives first: the lower bound on these cells.

    Args:
        num_positives: [C]; the result is NaN where it is 0.
        num_negatives: [C].

    Examples:
        >>> lowest_average_precision([1, 2], [3, 1])
        array([0.25      , 0.58333333])
    """
    positives, negatives = np.asarray(num_positives, np.float64), np.asarray(num_negatives, np.float64)
    # the sum over i = 1..n of i / (m + i) is n - m (digamma(m + n + 1) - digamma(m + 1))
    steps = scipy.special.digamma(negatives + positives + 1) - scipy.special.digamma(negatives + 1)
    return share_of(positives - negatives * steps, positives)


@dataclass(frozen=True, eq=False)
class Metrics:
    """Average precision of every class, and its reported means.

    Attributes:
        ap: [C] in [0, 1]; NaN where undefined.
        num_positives: [C] known positives in test.
        num_negatives: [C] known negatives in test.
    """

    ap: Float64Array
    num_positives: IntArray
    num_negatives: IntArray

    @property
    def num_classes_scored(self) -> int:
        """The number of classes with defined AP, over which the means below are taken."""
        return int(np.count_nonzero(~np.isnan(self.ap)))

    @property
    def map_c(self) -> float:
        """mAP(C): the mean AP of the defined classes, in percent; NaN if there are none."""
        return self.group(range(self.ap.size))[0]

    @property
    def map_o(self) -> float:
        """mAP(O): the mean AP weighted by known positives in test, in percent; NaN if no class is defined."""
        defined = ~np.isnan(self.ap)
        weights = self.num_positives[defined]
        return 100 * float(weights @ self.ap[defined] / weights.sum()) if weights.size else float("nan")

    @property
    def lowest(self) -> Metrics:
        """Metrics of the worst ranking of the same cells."""
        ap = np.where(np.isnan(self.ap), np.nan, lowest_average_precision(self.num_positives, self.num_negatives))
        return Metrics(ap, self.num_positives, self.num_negatives)

    def group(self, class_index: Sequence[int]) -> tuple[float, int]:
        """Return mAP(C) in percent over the given classes, NaN if none is defined, and the number of defined ones."""
        ap = self.ap[np.asarray(class_index, np.intp)]
        defined = ap[~np.isnan(ap)]
        return (100 * float(defined.mean()) if defined.size else float("nan")), defined.size


def evaluate(scores: npt.ArrayLike, labels: PartialLabels | npt.ArrayLike) -> Metrics:
    """Return metrics of dense scores [N, C] against labels N x C of +1, -1 and 0; only known cells count.

    Args:
        scores: [N, C] in the order of `labels`; logits or probabilities.
        labels: N x C, +1 present, -1 verified absent, 0 (or not stored) unknown.

    Raises:
        PlbenchError: as for `Cells.from_scores`.

    Examples:
        >>> metrics = evaluate([[0.9, 0.2], [0.4, 0.7], [0.6, 0.1]], [[1, 0], [-1, 1], [1, 0]])
        >>> metrics.map_c, metrics.num_classes_scored
        (100.0, 1)
    """
    return evaluate_cells(Cells.from_scores(scores, labels))


def evaluate_cells(cells: Cells, groups: PositiveGroups | None = None) -> Metrics:
    """Return metrics of known cells; `groups` are from `group_by_class`, computed if not given."""
    groups = groups or group_by_class(cells)
    return Metrics(_average_precision(groups), groups.num_positives, groups.num_negatives)


def auroc(cells: Cells, groups: PositiveGroups | None = None) -> Float64Array:
    """Return the area under the ROC curve of every class over its known cells, in [0, 1]; ties count half.

    It is the share of correctly ordered (positive, negative) pairs of a class's cells, and equals scikit-learn's
    `roc_auc_score`. Records report the mean over classes that have both. Unlike AP, it does not depend on the number of
    known negatives, only on which they are: if annotators verify likely confusions, or a simulation keeps as many
    negatives as positives, the pairs differ from those of complete labels.

    Args:
        cells: known cells.
        groups: from `group_by_class`; computed if not given.

    Returns:
        [C]; NaN for a class without a known positive or without a known negative.
    """
    groups = groups or group_by_class(cells)
    negatives_down = groups.cells_down - groups.positives_down
    below = groups.num_negatives[groups.owner] - negatives_down + 0.5 * groups.negatives
    right = np.bincount(groups.owner, groups.positives * below, minlength=cells.num_classes)
    return share_of(right, groups.num_positives * groups.num_negatives)


def calibration_error(cells: Cells, num_bins: int = CALIBRATION_BINS) -> float:
    """Return the expected calibration error over all known cells pooled, in percent (Guo et al. 2017, per label).

    Scores are treated as probabilities and put into bins of equal width, [i/n, (i+1)/n), the last one closed. The error
    is the mean over cells of the absolute difference between a bin's mean score and its share of positives.

    It measures calibration *on known cells*. If positives are more likely to be known, these contain a larger share of
    positives than the data, and a model that is calibrated on complete labels has an error here. Use it to compare
    methods on one set of cells, not to judge how reliable scores are elsewhere.

    Args:
        cells: known cells.
        num_bins: n.

    Returns:
        In [0, 100]; NaN if no cell is known, or a score is outside [0, 1].
    """
    scores = cells.scores.astype(np.float64)
    if not scores.size or scores.min() < 0 or scores.max() > 1:
        return float("nan")
    bins = np.minimum((scores * num_bins).astype(np.intp), num_bins - 1)
    excess = np.bincount(bins, scores - cells.positives, minlength=num_bins)  # per bin: size times deviation
    return 100 * float(np.abs(excess).sum()) / scores.size


def micro_average_precision(cells: Cells) -> float:
    """Return AP of all known cells pooled into one ranking, in percent; NaN if undefined. This is not mAP(O)."""
    pooled = group_cells(np.zeros_like(cells.class_index), cells.scores, cells.positives, 1)
    return 100 * float(_average_precision(pooled)[0])


def count_quintiles(counts: npt.ArrayLike) -> list[list[int]]:
    """Return five groups of class indices by ascending count, ties by index: OpenImages' groups (CSL, table 3).

    Args:
        counts: [C], for instance the number of annotations of each class in train.

    Returns:
        Lowest counts first; equal sizes (if 5 does not divide C, the first groups have one more).

    Examples:
        >>> count_quintiles([9, 1, 1, 5, 0, 7])
        [[4, 1], [2], [3], [5], [0]]
    """
    order = np.argsort(np.asarray(counts), kind="stable")
    return [[int(c) for c in part] for part in np.array_split(order, 5)]


def ranking_loss(cells: Cells, ranking: Ranking | None = None) -> float:
    """Return the share in [0, 1] of an image's known (positive, negative) pairs in the wrong order; ties count half.

    It is the mean over images that have both; NaN if none has. `ranking` is from `rank_by_image`.
    """
    ranking = ranking or rank_by_image(cells)
    negatives = ranking.sizes - ranking.positives
    wrong = ranking.positives * (ranking.running(negatives) - 0.5 * negatives)
    wrong_pairs = np.bincount(ranking.owner, wrong, minlength=cells.num_images)
    pairs = np.multiply(*count_cells(cells.rows, cells.positives, cells.num_images))
    return float((wrong_pairs[pairs > 0] / pairs[pairs > 0]).mean()) if pairs.any() else float("nan")


def precision_at_k(cells: Cells, k: int, ranking: Ranking | None = None) -> float:
    """Return p@k in percent: the share of an image's k highest-scored classes that are present, averaged.

    Scores tied at rank k share the remaining ranks, so that the order of classes does not matter.

    Args:
        cells: of complete labels.
        k: in 1..C.
        ranking: from `rank_by_image`; computed if not given.

    Raises:
        PlbenchError: if a cell is unknown (P@k has no meaning then) or k is not in 1..C.
    """
    num_cells = cells.num_images * cells.num_classes
    if cells.scores.size < num_cells or not num_cells:
        raise PlbenchError(
            f"P@{k} needs complete labels, but {cells.scores.size} of {num_cells} cells are known; report mAP instead"
        )
    if not 1 <= k <= cells.num_classes:
        raise PlbenchError(f"P@{k} is undefined; k must be between 1 and the {cells.num_classes} classes")
    ranking = ranking or rank_by_image(cells)
    places_left = k - (ranking.running(ranking.sizes) - ranking.sizes)
    share = np.clip(places_left, 0, ranking.sizes) / ranking.sizes
    return 100 * float(share @ ranking.positives) / (k * cells.num_images)


def per_class_table(metrics: Metrics, class_ids: Sequence[str], class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return one row per class: class_id, class_name, ap (percent, None where undefined), positives, negatives.

    Args:
        metrics: of C classes.
        class_ids: [C] in the order of the metrics.
        class_names: [C] in the same order.

    Raises:
        PlbenchError: if there is not one id and one name per class.
    """
    if not len(class_ids) == len(class_names) == metrics.ap.size:
        counts = f"{len(class_ids)} class ids and {len(class_names)} names for {metrics.ap.size} classes"
        raise PlbenchError(f"{counts}; each needs one of both")
    percent = [None if np.isnan(ap) else 100 * float(ap) for ap in metrics.ap]
    columns = (class_ids, class_names, percent, metrics.num_positives.tolist(), metrics.num_negatives.tolist())
    names = ("class_id", "class_name", "ap", "positives", "negatives")
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]

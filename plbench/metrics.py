"""Metrics over known cells only: average precision, mAP(C), mAP(O), groups, F1, ranking loss, P@k.

Every metric is one vectorised pass over the K known (image, class) cells of a test set. Unknown cells never
enter: scoring them as negatives is the field's commonest error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from plbench.cells import BoolArray, Cells, FloatArray, IntArray, check_columns
from plbench.errors import PlbenchError
from plbench.labels import PartialLabels


@dataclass(frozen=True, eq=False)
class Ranking:
    """Cells by owner (their class, or their image), then by falling score; equal scores form one group.

    Attributes:
        order: [K], the cell at each rank.
        starts: [G], the rank at which each group of equal scores begins.
        owner: [G], the class or image of each group.
        sizes: [G], the cells in each group.
        positives: [G], how many of them are positive.
    """

    order: IntArray
    starts: IntArray
    owner: IntArray
    sizes: IntArray
    positives: IntArray

    def running(self, counts: IntArray) -> IntArray:
        """Running sums [G] of `counts` [G] down each owner's ranking, the group itself included."""
        first = run_starts(self.owner)
        total = np.cumsum(counts)
        return total - np.repeat(total[first] - counts[first], np.diff(first, append=counts.size))


def run_starts(*keys: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """The positions at which a run of equal entries of all `keys` (each [K]) begins."""
    begins = np.zeros(keys[0].size, np.bool_)
    begins[:1] = True
    for key in keys:
        begins[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(begins)


def rank_cells(owner: IntArray, scores: FloatArray, positives: BoolArray) -> Ranking:
    """Ranks the K cells of every owner at once: one sort by score, then a stable one by owner."""
    by_score = np.argsort(-scores)
    narrow = owner.astype(np.min_scalar_type(owner.max(initial=0)))  # 16 bits or fewer sort in linear time
    order = by_score[np.argsort(narrow[by_score], kind="stable")]
    sorted_owner = owner[order]
    starts = run_starts(sorted_owner, scores[order])
    hits = np.add.reduceat(positives[order], starts, dtype=np.int64)
    return Ranking(order, starts, sorted_owner[starts], np.diff(starts, append=order.size), hits)


def average_precision(
    class_index: npt.ArrayLike, scores: npt.ArrayLike, positives: npt.ArrayLike, num_classes: int
) -> npt.NDArray[np.float64]:
    """AP of every class over its known cells: the mean, over positives, of precision at the positive's score.

    Equal scores are one threshold, as in scikit-learn's `average_precision_score`, to which it is equal.

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
    return _average_precision(index, values, present, num_classes)


def _average_precision(
    class_index: IntArray, scores: FloatArray, positives: BoolArray, num_classes: int
) -> npt.NDArray[np.float64]:
    """The same [C], of columns that have been checked."""
    ranking = rank_cells(class_index, scores, positives)
    precision = ranking.running(ranking.positives) / ranking.running(ranking.sizes)
    gain = np.bincount(ranking.owner, ranking.positives * precision, minlength=num_classes)
    num_positives, num_negatives = count_cells(class_index, positives, num_classes)
    ap = np.full(num_classes, np.nan)
    np.divide(gain, num_positives, out=ap, where=(num_positives > 0) & (num_negatives > 0))
    return ap


def lowest_average_precision(num_positives: npt.ArrayLike, num_negatives: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """AP [C] of the worst ranking: all negatives first. No model scores less on these cells.

    Args:
        num_positives: [C] at least 1 where the result is asked for; NaN elsewhere.
        num_negatives: [C].

    Examples:
        >>> lowest_average_precision([1, 2], [3, 1])
        array([0.25      , 0.58333333])
    """
    positives, negatives = np.asarray(num_positives, np.float64), np.asarray(num_negatives, np.float64)
    # the sum over i = 1..n of i / (m + i) is n - m (digamma(m + n + 1) - digamma(m + 1))
    steps = special.digamma(negatives + positives + 1) - special.digamma(negatives + 1)
    lowest = np.full(positives.shape, np.nan)
    np.divide(positives - negatives * steps, positives, out=lowest, where=positives > 0)
    return lowest


def count_cells(owner: IntArray, chosen: BoolArray, num_owners: int) -> tuple[IntArray, IntArray]:
    """How many cells of each class (or image) are chosen, and how many are not."""
    inside = np.bincount(owner[chosen], minlength=num_owners)
    return inside, np.bincount(owner, minlength=num_owners) - inside


@dataclass(frozen=True, eq=False)
class Metrics:
    """Average precision of every class, and the means of it that are reported.

    Attributes:
        ap: [C] in [0, 1]; NaN where undefined.
        num_positives: [C] known positives in test.
        num_negatives: [C] known negatives in test.
    """

    ap: npt.NDArray[np.float64]
    num_positives: IntArray
    num_negatives: IntArray

    @property
    def num_classes_scored(self) -> int:
        """The number of classes whose AP is defined: what the means below are means of."""
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
        """What the worst ranking of the same cells comes to."""
        ap = np.where(np.isnan(self.ap), np.nan, lowest_average_precision(self.num_positives, self.num_negatives))
        return Metrics(ap, self.num_positives, self.num_negatives)

    def group(self, class_index: Sequence[int]) -> tuple[float, int]:
        """mAP(C) in percent over the given classes only, and how many of them are defined."""
        ap = self.ap[np.asarray(class_index, np.intp)]
        defined = ap[~np.isnan(ap)]
        return (100 * float(defined.mean()) if defined.size else float("nan")), defined.size


def evaluate(scores: npt.ArrayLike, labels: PartialLabels | npt.ArrayLike) -> Metrics:
    """Metrics of dense scores [N, C] against labels N x C of +1, -1 and 0; only known cells count.

    Raises:
        PlbenchError: as `Cells.from_scores`.

    Examples:
        >>> metrics = evaluate([[0.9, 0.2], [0.4, 0.7], [0.6, 0.1]], [[1, 0], [-1, 1], [1, 0]])
        >>> metrics.map_c, metrics.num_classes_scored
        (100.0, 1)
    """
    return evaluate_cells(Cells.from_scores(scores, labels))


def evaluate_cells(cells: Cells) -> Metrics:
    """Metrics of stored cells."""
    ap = _average_precision(cells.class_index, cells.scores, cells.positives, cells.num_classes)
    return Metrics(ap, *count_cells(cells.class_index, cells.positives, cells.num_classes))


def micro_average_precision(cells: Cells) -> float:
    """AP of all known cells pooled into one ranking, in percent; NaN if undefined. Not mAP(O)."""
    one_class = np.zeros_like(cells.class_index)
    return 100 * float(_average_precision(one_class, cells.scores, cells.positives, 1)[0])


def count_quintiles(counts: npt.ArrayLike) -> list[list[int]]:
    """Five groups of class indices by rising count, ties by index: OpenImages' groups (CSL, table 3).

    Args:
        counts: [C], for instance the number of annotations of each class in train.

    Returns:
        Fewest first; equal sizes (where 5 does not divide C, the first groups have one more).

    Examples:
        >>> count_quintiles([9, 1, 1, 5, 0, 7])
        [[4, 1], [2], [3], [5], [0]]
    """
    order = np.argsort(np.asarray(counts), kind="stable")
    return [[int(c) for c in part] for part in np.array_split(order, 5)]


def f1_scores(cells: Cells, threshold: float) -> tuple[float, float]:
    """CF1 and OF1 in percent at a threshold: a score that reaches it predicts the class (Wang et al. 2016).

    CF1 is the harmonic mean of mean class precision and mean class recall over the classes that mAP(C)
    counts, those with a known positive and a known negative; one that is never predicted has precision 0.
    OF1 pools all known cells. CF1 is NaN where no class counts, OF1 where there is no known positive.
    """
    predicted = cells.scores >= threshold
    claims, _ = count_cells(cells.class_index, predicted, cells.num_classes)
    hits, _ = count_cells(cells.class_index, predicted & cells.positives, cells.num_classes)
    positives, negatives = count_cells(cells.class_index, cells.positives, cells.num_classes)
    counted = (positives > 0) & (negatives > 0)
    overall = 200 * hits.sum() / (claims.sum() + positives.sum()) if positives.any() else np.nan
    if not counted.any():
        return float("nan"), float(overall)
    precision = (hits[counted] / np.maximum(claims[counted], 1)).mean()
    recall = (hits[counted] / positives[counted]).mean()
    by_class = 200 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
    return float(by_class), float(overall)


def rank_by_image(cells: Cells) -> Ranking:
    """Each image's known cells by score, for `ranking_loss` and `precision_at_k`."""
    return rank_cells(cells.rows, cells.scores, cells.positives)


def ranking_loss(cells: Cells, ranking: Ranking | None = None) -> float:
    """Share in [0, 1] of an image's known (positive, negative) pairs that are ordered wrongly; ties are half.

    The mean over the images that have both; NaN if none has. `ranking` is that of `rank_by_image`, if it is there.
    """
    ranking = ranking or rank_by_image(cells)
    negatives = ranking.sizes - ranking.positives
    wrong = ranking.positives * (ranking.running(negatives) - 0.5 * negatives)
    wrong_pairs = np.bincount(ranking.owner, wrong, minlength=cells.num_images)
    pairs = np.multiply(*count_cells(cells.rows, cells.positives, cells.num_images))
    return float((wrong_pairs[pairs > 0] / pairs[pairs > 0]).mean()) if pairs.any() else float("nan")


def precision_at_k(cells: Cells, k: int, ranking: Ranking | None = None) -> float:
    """P@k in percent: the share of an image's k highest-scored classes that are present, averaged.

    Scores tied at the k-th place share what places are left, so that the order of classes is no advantage. `ranking` is
    that of `rank_by_image`, if it is there.

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
    """One row per class: class_id, class_name, ap (percent, None where undefined), positives, negatives.

    Raises:
        PlbenchError: if there is not one id and one name per class.
    """
    if not len(class_ids) == len(class_names) == metrics.ap.size:
        raise PlbenchError(
            f"{len(class_ids)} class ids and {len(class_names)} names for {metrics.ap.size} classes; "
            "each needs one of both"
        )
    return [
        {
            "class_id": class_id,
            "class_name": name,
            "ap": None if np.isnan(ap) else 100 * float(ap),
            "positives": int(positives),
            "negatives": int(negatives),
        }
        for class_id, name, ap, positives, negatives in zip(
            class_ids, class_names, metrics.ap, metrics.num_positives, metrics.num_negatives, strict=True
        )
    ]

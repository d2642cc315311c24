"""Metrics over known cells only: average precision, mAP(C), mAP(O), groups, AUROC, ECE, F1, ranking loss, P@k.

Every metric is one vectorised pass over the K known (image, class) cells of a test set. Unknown cells never
enter: scoring them as negatives is the field's commonest error.
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
from plbench.metrics.cells import BoolArray, Cells, Float64Array, FloatArray, IntArray, check_columns

CALIBRATION_BINS = 15
"""Bins of equal width that the expected calibration error looks at."""


@dataclass(frozen=True, eq=False)
class PositiveGroups:
    """The groups of equal scores of each owner that hold a positive: all that AP and AUROC look at.

    Attributes:
        owner: [G] the class or image of each group; by owner, then by falling score.
        positives, negatives: [G] cells in it.
        positives_down, cells_down: [G] cells of its owner that score as high or higher.
        num_positives, num_negatives: [num_owners] all cells of each owner.
    """

    owner: IntArray
    positives: IntArray
    negatives: IntArray
    positives_down: IntArray
    cells_down: IntArray
    num_positives: IntArray
    num_negatives: IntArray


@dataclass(frozen=True, eq=False)
class Ranking:
    """All K cells in groups of one owner (their class, or their image) with equal scores.

    Attributes:
        owner: [G], the class or image of each group; by owner, then by falling score.
        sizes: [G], the cells in each group.
        positives: [G], how many of them are positive.
        order: [K], the cell at each rank.
        starts: [G], the rank at which each group begins.
    """

    owner: IntArray
    sizes: IntArray
    positives: IntArray
    order: IntArray
    starts: IntArray

    def running(self, counts: IntArray) -> IntArray:
        """Return sums [G] of `counts` [G] down each owner's ranking, the group itself included."""
        first = run_starts(self.owner)
        total = np.cumsum(counts)
        return total - np.repeat(total[first] - counts[first], np.diff(first, append=counts.size))

    def counts(self, num_owners: int) -> tuple[IntArray, IntArray]:
        """Return positives and negatives of each owner, [num_owners] each."""
        positives, sizes = (
            np.bincount(self.owner, numbers, minlength=num_owners).astype(np.int64)
            for numbers in (self.positives, self.sizes)
        )
        return positives, sizes - positives

    def positive_groups(self, num_owners: int) -> PositiveGroups:
        """Return the groups that hold a positive."""
        found = self.positives > 0
        return PositiveGroups(
            self.owner[found],
            self.positives[found],
            (self.sizes - self.positives)[found],
            self.running(self.positives)[found],
            self.running(self.sizes)[found],
            *self.counts(num_owners),
        )


def run_starts(*keys: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """Return the positions at which a run of equal entries of all `keys` (each [K]) begins."""
    begins = np.zeros(keys[0].size, np.bool_)
    begins[:1] = True
    for key in keys:
        begins[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(begins)


def rank_cells(owner: IntArray, scores: FloatArray, positives: BoolArray) -> Ranking:
    """Rank the K cells of every owner at once: one sort by score, then a stable one by owner.

    Args:
        owner: [K] at least 0: the class of each cell, or its image.
        scores: [K] finite.
        positives: [K] bool.
    """
    # need not be stable: equal scores form one group, in whatever order
    by_score = np.argsort(-scores)
    narrow = owner.astype(np.min_scalar_type(owner.max(initial=0)))  # 16 bits or fewer sort in linear time
    order = by_score[np.argsort(narrow[by_score], kind="stable")]
    sorted_owner = owner[order]
    starts = run_starts(sorted_owner, scores[order])
    hits = np.add.reduceat(positives[order], starts, dtype=np.int64)
    return Ranking(sorted_owner[starts], np.diff(starts, append=order.size), hits, order, starts)


def group_cells(owner: IntArray, scores: FloatArray, positives: BoolArray, num_owners: int) -> PositiveGroups:
    """Return the groups of `rank_cells` that hold a positive, without the cells in them: one sort of whole numbers.

    Owner, score and whether it is positive fit into 64 bits where scores have 32. The bits of a float in turned order
    are a whole number that rises as it falls: but for its sign, all bits of one that is not negative are flipped.

    Args:
        owner: [K] in 0..num_owners-1: the class of each cell, or its image.
        scores: [K] finite.
        positives: [K] bool.
        num_owners: C, or N.
    """
    if scores.dtype.itemsize > 4 or num_owners >= 2**31:
        return rank_cells(owner, scores, positives).positive_groups(num_owners)
    bits = (scores.astype(np.float32, copy=False) + np.float32(0)).view(np.int32)  # of -0 those of 0
    falling = bits ^ (~(bits >> 31) & 0x7FFFFFFF)
    keys = owner.astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= falling.view(np.uint32)
    keys <<= np.uint64(1)
    keys |= positives
    keys.sort()
    # positives have odd keys, and those of a group lie at its end
    places = np.flatnonzero((keys & np.uint64(1)).astype(np.bool_))  # of booleans it is several times as fast
    odd = keys[places]
    last = np.flatnonzero(np.append(odd[1:] != odd[:-1], True)[: odd.size])
    first_place = places[np.append(0, last[:-1] + 1)[: last.size]]
    key, in_group = odd[last], np.diff(last, prepend=-1)
    negatives = np.zeros_like(in_group)
    tied = np.flatnonzero((first_place > 0) & (keys[first_place - 1] == key - np.uint64(1)))
    negatives[tied] = first_place[tied] - keys.searchsorted(key[tied] - np.uint64(1))
    group_owner = (key >> np.uint64(33)).astype(np.int64)
    begins = keys.searchsorted(np.arange(num_owners + 1, dtype=np.uint64) << np.uint64(33))
    num_positives = np.bincount(group_owner, in_group, minlength=num_owners).astype(np.int64)
    positives_before = np.cumsum(num_positives) - num_positives
    return PositiveGroups(
        group_owner,
        in_group,
        negatives,
        last + 1 - positives_before[group_owner],
        places[last] + 1 - begins[group_owner],
        num_positives,
        np.diff(begins) - num_positives,
    )


def average_precision(
    class_index: npt.ArrayLike, scores: npt.ArrayLike, positives: npt.ArrayLike, num_classes: int
) -> Float64Array:
    """Return AP of every class over its known cells: the mean, over positives, of precision at the positive's score.

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
    return _average_precision(group_cells(index, values, present, num_classes))


def _average_precision(groups: PositiveGroups) -> Float64Array:
    precision = groups.positives_down / groups.cells_down
    gain = np.bincount(groups.owner, groups.positives * precision, minlength=groups.num_positives.size)
    return share_of(gain, groups.num_positives, (groups.num_positives > 0) & (groups.num_negatives > 0))


def share_of(part: npt.NDArray[Any], whole: npt.NDArray[Any], defined: BoolArray | None = None) -> Float64Array:
    """Return part / whole; NaN where the whole is 0, or where it is not defined."""
    share = np.full(part.shape, np.nan)
    np.divide(part, whole, out=share, where=whole > 0 if defined is None else defined)
    return share


def lowest_average_precision(num_positives: npt.ArrayLike, num_negatives: npt.ArrayLike) -> Float64Array:
    """Return AP [C] of the worst ranking: all negatives first. No model scores less on these cells.

    Args:
        num_positives: [C] at least 1 where the result is asked for; NaN elsewhere.
        num_negatives: [C].

    Examples:
        >>> lowest_average_precision([1, 2], [3, 1])
        array([0.25      , 0.58333333])
    """
    positives, negatives = np.asarray(num_positives, np.float64), np.asarray(num_negatives, np.float64)
    # the sum over i = 1..n of i / (m + i) is n - m (digamma(m + n + 1) - digamma(m + 1))
    steps = scipy.special.digamma(negatives + positives + 1) - scipy.special.digamma(negatives + 1)
    return share_of(positives - negatives * steps, positives)


def count_cells(owner: IntArray, chosen: BoolArray, num_owners: int) -> tuple[IntArray, IntArray]:
    """Return how many cells of each class (or image), `owner` [K], are `chosen` [K], and how many are not."""
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

    ap: Float64Array
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
        """Return mAP(C) in percent over the given classes only, NaN if none is defined; and how many of them are."""
        ap = self.ap[np.asarray(class_index, np.intp)]
        defined = ap[~np.isnan(ap)]
        return (100 * float(defined.mean()) if defined.size else float("nan")), defined.size


def evaluate(scores: npt.ArrayLike, labels: PartialLabels | npt.ArrayLike) -> Metrics:
    """Return metrics of dense scores [N, C] against labels N x C of +1, -1 and 0; only known cells count.

    Args:
        scores: [N, C] in the order of `labels`; logits or probabilities.
        labels: N x C, +1 present, -1 verified absent, 0 (or not stored) unknown.

    Raises:
        PlbenchError: as `Cells.from_scores`.

    Examples:
        >>> metrics = evaluate([[0.9, 0.2], [0.4, 0.7], [0.6, 0.1]], [[1, 0], [-1, 1], [1, 0]])
        >>> metrics.map_c, metrics.num_classes_scored
        (100.0, 1)
    """
    return evaluate_cells(Cells.from_scores(scores, labels))


def evaluate_cells(cells: Cells, groups: PositiveGroups | None = None) -> Metrics:
    """Return metrics of known cells; `groups` are those of `group_by_class`, computed where they are not given."""
    groups = groups or group_by_class(cells)
    return Metrics(_average_precision(groups), groups.num_positives, groups.num_negatives)


def rank_by_class(cells: Cells) -> Ranking:
    """Return each class's known cells by score."""
    return rank_cells(cells.class_index, cells.scores, cells.positives)


def group_by_class(cells: Cells) -> PositiveGroups:
    """Return the groups of equal scores of each class that hold a positive, for `evaluate_cells` and `auroc`."""
    return group_cells(cells.class_index, cells.scores, cells.positives, cells.num_classes)


def auroc(cells: Cells, groups: PositiveGroups | None = None) -> Float64Array:
    """Return area under the ROC curve of every class over its known cells, in [0, 1]; ties count half.

    The share of (positive, negative) pairs of a class's cells that are ordered rightly, equal to scikit-learn's
    `roc_auc_score`. The figure of a record is the mean over classes that have both. Unlike AP it does not depend on
    how many negatives are known beside the positives, only on which: where annotators verify likely confusions, or a
    simulation keeps as many negatives as positives, the pairs are not those of complete labels.

    Args:
        cells: known cells.
        groups: those of `group_by_class`; computed where they are not given.

    Returns:
        [C]; NaN for a class without a known positive or without a known negative.
    """
    groups = groups or group_by_class(cells)
    negatives_down = groups.cells_down - groups.positives_down
    below = groups.num_negatives[groups.owner] - negatives_down + 0.5 * groups.negatives
    right = np.bincount(groups.owner, groups.positives * below, minlength=cells.num_classes)
    return share_of(right, groups.num_positives * groups.num_negatives)


def calibration_error(cells: Cells, num_bins: int = CALIBRATION_BINS) -> float:
    """Return expected calibration error over all known cells pooled, in percent (Guo et al. 2017, for each label).

    Scores are taken for probabilities and put into bins of equal width, [i/n, (i+1)/n), the last one closed; the error
    is the mean over cells of the distance between a bin's mean score and its share of positives.

    It says whether scores are the chance of a positive *among known cells*, which hold more positives than the data do
    where those are kept more often: a model that is calibrated on complete labels then has an error here. It compares
    methods on one set of cells and does not tell how far a score can be trusted elsewhere.

    Args:
        cells: known cells.
        num_bins: n.

    Returns:
        In [0, 100]; NaN where no cell is known, or a score lies outside [0, 1].
    """
    scores = cells.scores.astype(np.float64)
    if not scores.size or scores.min() < 0 or scores.max() > 1:
        return float("nan")
    bins = np.minimum((scores * num_bins).astype(np.intp), num_bins - 1)
    excess = np.bincount(bins, scores - cells.positives, minlength=num_bins)  # of a bin: its size times its distance
    return 100 * float(np.abs(excess).sum()) / scores.size


def micro_average_precision(cells: Cells) -> float:
    """Return AP of all known cells pooled into one ranking, in percent; NaN if undefined. Not mAP(O)."""
    pooled = group_cells(np.zeros_like(cells.class_index), cells.scores, cells.positives, 1)
    return 100 * float(_average_precision(pooled)[0])


def _rank_pooled(cells: Cells) -> Ranking:
    return rank_cells(np.zeros_like(cells.class_index), cells.scores, cells.positives)


def count_quintiles(counts: npt.ArrayLike) -> list[list[int]]:
    """Return five groups of class indices by rising count, ties by index: OpenImages' groups (CSL, table 3).

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


@dataclass(frozen=True)
class F1:
    """CF1, OF1 and what they are harmonic means of, in percent; NaN where undefined.

    Attributes:
        class_precision, class_recall: CP and CR, means over the classes that mAP(C) counts, those with a known
            positive and a known negative. A class that is never predicted has precision 0.
        overall_precision, overall_recall: OP and OR, of all known cells pooled.
    """

    cf1: float
    of1: float
    class_precision: float
    class_recall: float
    overall_precision: float
    overall_recall: float


@dataclass(frozen=True, eq=False)
class Predictions:
    """How often each class was predicted on its known cells, and how often rightly; [C] each.

    Attributes:
        predicted, hits: known cells on which the class is predicted, and positives among them.
        positives, negatives: known cells.
    """

    predicted: IntArray
    hits: IntArray
    positives: IntArray
    negatives: IntArray

    @property
    def precision(self) -> Float64Array:
        """[C] in [0, 1]; 0 where the class is never predicted."""
        return self.hits / np.maximum(self.predicted, 1)

    @property
    def recall(self) -> Float64Array:
        """[C] in [0, 1]; 0 where there is no known positive."""
        return self.hits / np.maximum(self.positives, 1)

    def f1(self) -> F1:
        """Return CF1 and OF1 (Wang et al. 2016).

        CF1 is NaN where no class counts, OF1 where there is no known positive.
        """
        counted = (self.positives > 0) & (self.negatives > 0)
        by_class = [float(rate[counted].mean()) if counted.any() else np.nan for rate in (self.precision, self.recall)]
        hits, predicted, positives = (int(c.sum()) for c in (self.hits, self.predicted, self.positives))
        pooled = [hits / max(predicted, 1), hits / positives] if positives else [np.nan, np.nan]
        rates = [100 * rate for rate in (*by_class, *pooled)]
        return F1(_harmonic(*rates[:2]), _harmonic(*rates[2:]), *rates)


def _harmonic(first: float, second: float) -> float:
    # compared with 0, so that NaN passes through
    return 2 * first * second / (first + second) if first + second != 0 else 0.0


def predictions(cells: Cells, predicted: BoolArray) -> Predictions:
    """Count what is predicted at the known cells, [K] bool."""
    claims, _ = count_cells(cells.class_index, predicted, cells.num_classes)
    hits, _ = count_cells(cells.class_index, predicted & cells.positives, cells.num_classes)
    return Predictions(claims, hits, *count_cells(cells.class_index, cells.positives, cells.num_classes))


def predictions_at(cells: Cells, threshold: npt.ArrayLike) -> Predictions:
    """Count what scores of at least a threshold predict: one for all classes, or [C]."""
    # float64 holds every float32 exactly: a threshold chosen among scores is reached by its own score
    limits = np.broadcast_to(np.asarray(threshold, np.float64), (cells.num_classes,))
    return predictions(cells, cells.scores >= limits[cells.class_index])


def f1_scores(cells: Cells, threshold: npt.ArrayLike) -> F1:
    """Return CF1 and OF1 where a score that reaches the threshold predicts the class: one for all classes, or [C]."""
    return predictions_at(cells, threshold).f1()


def top_f1_scores(cells: Cells) -> F1:
    """Return CF1 and OF1 where each image's 3 highest-scored classes are predicted, as much of the literature reports.

    Only known cells are counted, but unknown classes take places like any other: an image whose three places all go to
    unknown classes predicts nothing that counts. Of equal scores the class that comes first has the place. Where
    labels are complete these are the usual figures.

    Raises:
        PlbenchError: if the cells do not say which of them are among the highest.
    """
    if cells.in_top is None:
        raise PlbenchError("these cells do not say which classes were an image's highest-scored; score the model again")
    return predictions(cells, cells.in_top).f1()


def choose_thresholds(cells: Cells) -> tuple[Float64Array, float]:
    """Choose the threshold of each class that makes its F1 on these known cells largest.

    Candidates are the class's scores there; of equally good ones the highest is taken. A class without a known positive
    has no F1 and takes the threshold that makes the F1 of all cells pooled largest.

    Args:
        cells: of a part that is not the test part.

    Returns:
        Thresholds [C], and the pooled one.

    Raises:
        PlbenchError: if no cell is positive.

    Examples:
        >>> labels = [[1, 0], [-1, -1], [1, 0], [-1, -1]]
        >>> cells = Cells.from_scores([[0.9, 0.0], [0.8, 0.1], [0.7, 0.0], [0.2, 0.1]], labels)
        >>> choose_thresholds(cells)
        (array([0.7, 0.7]), 0.7)
    """
    if not cells.positives.any():
        raise PlbenchError("no threshold can be chosen where no cell is a known positive")
    pooled = float(_best_thresholds(_rank_pooled(cells), cells.scores, 1)[0])
    of_classes = _best_thresholds(rank_by_class(cells), cells.scores, cells.num_classes)
    return np.where(np.isnan(of_classes), pooled, of_classes), pooled


def _best_thresholds(ranking: Ranking, scores: FloatArray, num_classes: int) -> Float64Array:
    """Return thresholds [C]; NaN for a class without positives."""
    num_positives, _ = ranking.counts(num_classes)
    hits = ranking.running(ranking.positives)
    # a quotient of whole numbers is the same double wherever it is the same number: ties are exact
    f1 = 2 * hits / (ranking.running(ranking.sizes) + num_positives[ranking.owner])
    first = run_starts(ranking.owner)
    best = np.repeat(np.maximum.reduceat(f1, first), np.diff(first, append=f1.size)) if f1.size else f1
    places = np.flatnonzero((f1 == best) & (num_positives[ranking.owner] > 0))
    owners, highest = np.unique(ranking.owner[places], return_index=True)  # the first place of each, from the top
    chosen = np.full(num_classes, np.nan)
    chosen[owners] = scores[ranking.order[ranking.starts[places[highest]]]]
    return chosen


def thresholds_for_precision(cells: Cells, precision: float) -> Float64Array:
    """Choose the lowest threshold of each class at which it is as precise as wanted on these known cells.

    Candidates are the class's scores there. The lowest one finds most of what is there; at a higher one precision may
    lie below again.

    Args:
        cells: of a part that is not the test part.
        precision: share in (0, 1] of the cells at or above a threshold that are to be positive.

    Returns:
        [C]; infinity for a class that is not so precise at any threshold, or has no known positive.

    Examples:
        >>> labels = [[1, 0], [-1, -1], [1, 0], [-1, -1]]
        >>> cells = Cells.from_scores([[0.9, 0.0], [0.8, 0.1], [0.7, 0.0], [0.2, 0.1]], labels)
        >>> thresholds_for_precision(cells, 0.6)
        array([0.7, inf])
    """
    ranking = rank_by_class(cells)
    found = ranking.running(ranking.positives) / ranking.running(ranking.sizes)
    places = np.flatnonzero(found >= precision)
    chosen = np.full(cells.num_classes, np.inf)
    np.minimum.at(chosen, ranking.owner[places], cells.scores[ranking.order[ranking.starts[places]]])
    return chosen


def rank_by_image(cells: Cells) -> Ranking:
    """Return each image's known cells by score, for `ranking_loss` and `precision_at_k`."""
    return rank_cells(cells.rows, cells.scores, cells.positives)


def ranking_loss(cells: Cells, ranking: Ranking | None = None) -> float:
    """Return share in [0, 1] of an image's known (positive, negative) pairs that are ordered wrongly; ties are half.

    The mean over the images that have both; NaN if none has. `ranking` is that of `rank_by_image`.
    """
    ranking = ranking or rank_by_image(cells)
    negatives = ranking.sizes - ranking.positives
    wrong = ranking.positives * (ranking.running(negatives) - 0.5 * negatives)
    wrong_pairs = np.bincount(ranking.owner, wrong, minlength=cells.num_images)
    pairs = np.multiply(*count_cells(cells.rows, cells.positives, cells.num_images))
    return float((wrong_pairs[pairs > 0] / pairs[pairs > 0]).mean()) if pairs.any() else float("nan")


def precision_at_k(cells: Cells, k: int, ranking: Ranking | None = None) -> float:
    """Return p@k in percent: the share of an image's k highest-scored classes that are present, averaged.

    Scores tied at the k-th place share what places are left, so that the order of classes is no advantage.

    Args:
        cells: of complete labels.
        k: in 1..C.
        ranking: that of `rank_by_image`; computed where it is not given.

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
        class_names: [C] likewise.

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

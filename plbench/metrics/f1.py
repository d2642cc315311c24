"""CF1 and OF1, and the thresholds at which classes are predicted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from plbench.errors import PlbenchError
from plbench.metrics.cells import BoolArray, Cells, Float64Array, FloatArray, IntArray
from plbench.metrics.ranking import Ranking, count_cells, rank_by_class, rank_pooled, run_starts


@dataclass(frozen=True)
class F1:
    """CF1, OF1 and their precision and recall, in percent; NaN where undefined.

    Attributes:
        class_precision, class_recall: CP and CR, means over the classes of mAP(C), those with a known positive and a
            known negative. A class that is never predicted has precision 0.
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
    """Number of predictions and of correct predictions of each class on its known cells; [C] each.

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

        CF1 is NaN if no class counts, OF1 if there is no known positive.
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
    """Count predictions at the known cells, [K] bool."""
    claims, _ = count_cells(cells.class_index, predicted, cells.num_classes)
    hits, _ = count_cells(cells.class_index, predicted & cells.positives, cells.num_classes)
    return Predictions(claims, hits, *count_cells(cells.class_index, cells.positives, cells.num_classes))


def predictions_at(cells: Cells, threshold: npt.ArrayLike) -> Predictions:
    """Count predictions by scores at or above a threshold: one for all classes, or [C]."""
    # float64 represents float32 exactly, so a threshold chosen among scores is reached by its own score
    limits = np.broadcast_to(np.asarray(threshold, np.float64), (cells.num_classes,))
    return predictions(cells, cells.scores >= limits[cells.class_index])


def f1_scores(cells: Cells, threshold: npt.ArrayLike) -> F1:
    """Return CF1 and OF1 of predictions by scores at or above a threshold: one for all classes, or [C]."""
    return predictions_at(cells, threshold).f1()


def top_f1_scores(cells: Cells) -> F1:
    """Return CF1 and OF1 of predicting each image's 3 highest-scored classes, as commonly reported.

    Only known cells are counted, but unknown classes can be among the top 3: if all three are unknown, no prediction of
    the image counts. Ties by lower class index. With complete labels, these are the usual figures.

    Raises:
        PlbenchError: if the cells lack `in_top`.
    """
    if cells.in_top is None:
        raise PlbenchError("these cells do not say which classes were an image's highest-scored; score the model again")
    return predictions(cells, cells.in_top).f1()


def choose_thresholds(cells: Cells) -> tuple[Float64Array, float]:
    """Choose the threshold of each class that maximizes its F1 on these known cells.

    Candidates are the class's scores; ties go to the highest. A class without a known positive has no F1 and uses the
    threshold that maximizes the F1 of all cells pooled.

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
    pooled = float(_best_thresholds(rank_pooled(cells), cells.scores, 1)[0])
    of_classes = _best_thresholds(rank_by_class(cells), cells.scores, cells.num_classes)
    return np.where(np.isnan(of_classes), pooled, of_classes), pooled


def _best_thresholds(ranking: Ranking, scores: FloatArray, num_classes: int) -> Float64Array:
    """Return thresholds [C]; NaN for a class without positives."""
    num_positives, _ = ranking.counts(num_classes)
    hits = ranking.running(ranking.positives)
    # equal quotients of integers are equal doubles, so ties are exact
    f1 = 2 * hits / (ranking.running(ranking.sizes) + num_positives[ranking.owner])
    first = run_starts(ranking.owner)
    best = np.repeat(np.maximum.reduceat(f1, first), np.diff(first, append=f1.size)) if f1.size else f1
    places = np.flatnonzero((f1 == best) & (num_positives[ranking.owner] > 0))
    owners, highest = np.unique(ranking.owner[places], return_index=True)  # the first position of each, from the top
    chosen = np.full(num_classes, np.nan)
    chosen[owners] = scores[ranking.order[ranking.starts[places[highest]]]]
    return chosen


def thresholds_for_precision(cells: Cells, precision: float) -> Float64Array:
    """Choose the lowest threshold of each class that reaches the wanted precision on these known cells.

    Candidates are the class's scores. The lowest threshold has the highest recall; precision may be lower again at
    higher thresholds.

    Args:
        cells: of a part that is not the test part.
        precision: wanted precision, in (0, 1].

    Returns:
        [C]; infinity for a class that never reaches it, or has no known positive.

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

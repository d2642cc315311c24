"""Per-class calibration of scores, and how strongly calibrated scores contradict known labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from plbench.metrics.cells import BoolArray, Float64Array, FloatArray, IntArray
from plbench.progress import ProgressReport

_EPSILON = 1e-6  # scores are clipped to [eps, 1 - eps]


def logits(scores: FloatArray) -> Float64Array:
    """Return the log-odds of scores in [0, 1], finite at both ends."""
    p = np.clip(scores.astype(np.float64), _EPSILON, 1 - _EPSILON)
    return np.log(p) - np.log1p(-p)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Platt scaling of each class: the probability of "present" is the sigmoid of slope times logit plus intercept.

    Attributes:
        slopes, intercepts: [C]; NaN where a class has no known positive or no known negative.
    """

    slopes: Float64Array
    intercepts: Float64Array

    @classmethod
    def fit(
        cls,
        scores: FloatArray,
        class_index: IntArray,
        positives: BoolArray,
        num_classes: int,
        report: ProgressReport = lambda done, total: None,
    ) -> Calibration:
        """Fit each class to known labels that the scoring models were not trained on.

        A penalty worth one or two labels shrinks the slope towards 0, so that classes with few labels have weak slopes;
        a class whose scores rank its labels the wrong way round has slope 0.

        Args:
            scores: [R, K] in [0, 1] of K known cells by R models.
            class_index: [K].
            positives: [K], whether a cell is known to be present.
            num_classes: C.
            report: receives the number of classes done and in total.
        """
        from sklearn.linear_model import LogisticRegression  # slow to import

        slopes, intercepts = np.full(num_classes, np.nan), np.full(num_classes, np.nan)
        values, num_models = logits(scores), len(scores)
        order = np.argsort(class_index, kind="stable")
        bounds = np.searchsorted(class_index[order], np.arange(num_classes + 1))
        for c in range(num_classes):
            report(c, num_classes)
            of_class = order[bounds[c] : bounds[c + 1]]
            labels = positives[of_class]
            if not 0 < labels.sum() < len(labels):
                continue
            weights = np.full(num_models * len(labels), 1 / num_models)
            fitted = LogisticRegression().fit(values[:, of_class].reshape(-1, 1), np.tile(labels, num_models), weights)
            slopes[c], intercepts[c] = fitted.coef_[0, 0], fitted.intercept_[0]
            if slopes[c] < 0:
                slopes[c], intercepts[c] = 0.0, np.log(labels.sum() / (~labels).sum())
        return cls(slopes, intercepts)

    def probabilities(self, scores: FloatArray, class_index: IntArray | slice = slice(None)) -> Float64Array:
        """Return the probability of "present", NaN for classes that could not be fitted.

        Args:
            scores: [..., K] in [0, 1].
            class_index: [K] class of each score; by default, K is C, in order.
        """
        values = self.slopes[class_index] * logits(scores) + self.intercepts[class_index]
        return expit(values)


def contradiction(probabilities: Float64Array, positives: BoolArray) -> Float64Array:
    """Return the models' probability [K] that a known label is wrong; NaN if they cannot say.

    It is one minus the self-confidence of Northcutt et al. (Confident Learning, JAIR 2021), on calibrated scores.

    Args:
        probabilities: [K] of "present".
        positives: [K], whether a cell is labelled present.
    """
    return np.where(positives, 1.0 - probabilities, probabilities)


def entropy_bits(probabilities: npt.NDArray[np.floating]) -> Float64Array:
    """Return the entropy of each probability in bits: 0 for 0 and 1, 1 for 0.5; NaN stays NaN."""
    p = probabilities.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log2(p), 0.0) + np.where(p < 1, (1 - p) * np.log2(1 - p), 0.0)
    return np.where(np.isnan(p), np.nan, -terms)

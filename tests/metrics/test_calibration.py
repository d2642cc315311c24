"""Scores as probabilities by class, and what they say against known labels."""

import numpy as np
import pytest

from plbench.metrics.calibration import Calibration, contradiction, entropy_bits, logits


def cells(num: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scores [2, K] of three classes, their class, true probability and label: class 1 is scored far too low."""
    rng = np.random.default_rng(seed)
    class_index = np.repeat([0, 1, 2], num)
    true = rng.normal(size=3 * num) * 2 - 1
    positives = rng.random(3 * num) < 1 / (1 + np.exp(-true))
    shift = np.array([0.0, -5.0, 0.0])[class_index]
    flat = np.array([1.0, 1.0, 0.0])[class_index]  # scores of class 2 say nothing
    scores = 1 / (1 + np.exp(-(flat * true + shift + rng.normal(size=(2, 3 * num)) * 0.1)))
    return scores.astype(np.float32), class_index, 1 / (1 + np.exp(-true)), positives


def test_probabilities_are_those_that_labels_were_drawn_by() -> None:
    scores, class_index, true, positives = cells()
    found = Calibration.fit(scores, class_index, positives, 4).probabilities(scores, class_index)
    for c in (0, 1):
        error = np.abs(found[:, class_index == c] - true[class_index == c])
        assert error.mean() < 0.025 and error.max() < 0.12
    rate = positives[class_index == 2].mean()
    np.testing.assert_allclose(found[:, class_index == 2], rate, atol=0.02)


def test_a_class_that_cannot_be_fitted_or_ranks_backwards_contradicts_nothing_by_its_scores() -> None:
    scores = np.array([[0.9, 0.8, 0.1, 0.9, 0.8, 0.2, 0.1, 0.3]], np.float32)
    class_index = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    positives = np.array([1, 1, 1, 0, 0, 1, 1, 1], bool)  # class 0 has no negative, class 1 is the wrong way around
    fitted = Calibration.fit(scores, class_index, positives, 3)
    assert np.isnan(fitted.slopes[[0, 2]]).all() and fitted.slopes[1] == 0
    found = fitted.probabilities(scores, class_index)
    assert np.isnan(found[0, :3]).all() and found[0, 3:] == pytest.approx(0.6)
    against = contradiction(found[0], positives)
    assert np.isnan(against[:3]).all() and against[3:].tolist() == pytest.approx([0.6, 0.6, 0.4, 0.4, 0.4])


def test_sure_scores_stay_finite_and_entropy_is_in_bits() -> None:
    ends = np.array([0.0, 0.5, 1.0], np.float32)
    assert np.isfinite(logits(ends)).all() and logits(ends)[1] == 0
    bits = entropy_bits(np.array([0.0, 0.5, 1.0, 0.25, np.nan]))
    assert bits[:4].tolist() == pytest.approx([0, 1, 0, 2 - 0.75 * np.log2(3)]) and np.isnan(bits[4])

"""Curves that a person looks at, against scikit-learn and the figures that they stand for."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_curve

from plbench.errors import PlbenchError
from plbench.metrics import average_precision, calibration_error, curves
from plbench.metrics.cells import Cells
from plbench.metrics.curves import precision_recall, reliability


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_precision_and_recall_are_those_of_scikit_learn_and_give_the_ap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, positives = rng.integers(0, 10, 40) / 10, rng.random(40) < 0.4
    positives[:2] = True, False
    recall, precision = precision_recall(scores, positives)
    theirs, their_recall, _ = precision_recall_curve(positives, scores)
    np.testing.assert_allclose(precision, theirs[-2::-1])
    np.testing.assert_allclose(recall, their_recall[-2::-1])
    ap = float(np.diff(recall, prepend=0) @ precision)
    assert ap == pytest.approx(average_precision(np.zeros(40, int), scores, positives, 1)[0])


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_bins_come_to_the_calibration_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cells = Cells.from_scores(rng.random((20, 3)).astype(np.float32), np.where(rng.random((20, 3)) < 0.3, 1, -1))
    found = reliability(cells.scores, cells.positives)
    assert found is not None and found.counts.sum() == 60 and (np.diff(found.score) > 0).all()
    error = 100 * float(found.counts @ np.abs(found.score - found.positive)) / 60
    assert error == pytest.approx(calibration_error(cells))


def test_what_has_no_curve() -> None:
    with pytest.raises(PlbenchError, match="no recall"):
        precision_recall(np.array([0.1, 0.2]), np.array([False, False]))
    assert reliability(np.array([0.5, 1.5]), np.array([True, False])) is None
    assert reliability(np.empty(0), np.empty(0, bool)) is None
    assert doctest.testmod(curves).failed == 0

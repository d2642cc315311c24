"""Folds learn from each other's images: how much wider an interval becomes for it, and that this is needed."""

from __future__ import annotations

import numpy as np
import pytest
from fold_simulation import WORLDS, compare_once

from plbench.metrics.statistics import Sample, widened_for_folds


@pytest.mark.parametrize(("num_folds", "factor"), [(2, 3.0), (5, 2.25), (10, 19 / 9)])
def test_the_variance_over_images_grows_by_the_factor_of_nadeau_and_bengio(num_folds: int, factor: float) -> None:
    drawn = 40 + np.random.default_rng(0).normal(size=(3, 500))
    drawn[0, 0] = np.nan  # of a resample that leaves nothing to score
    before = Sample.of_runs([40.0, 41.0, 42.0], drawn).estimate
    widened = [widened_for_folds(own, value, num_folds) for own, value in zip(drawn, (40.0, 41.0, 42.0), strict=True)]
    after = Sample.of_runs([40.0, 41.0, 42.0], widened).estimate
    assert after.image_variance == pytest.approx(factor * before.image_variance)
    assert (after.value, after.seed_variance) == (before.value, before.seed_variance)


def test_without_it_equal_methods_differ_by_more_than_is_said() -> None:
    """24 comparisons of two methods that are equal over training sets: one deviation, were it said right."""
    made = [compare_once(WORLDS["160 images, 60 features, 70 % of the labels"], 5, number, 60) for number in range(24)]
    deviations = {way: np.sqrt(np.mean([one[way].deviations ** 2 for one in made])) for way in made[0]}
    assert deviations["folds"] < 1.1 < deviations["folds, not widened"]
    errors = {way: sum(one[way].is_different for one in made) for way in made[0]}
    assert errors["folds"] <= 4 and errors["folds"] <= errors["folds, not widened"]
    assert all(one["folds"].detectable < one["test part"].detectable for one in made)

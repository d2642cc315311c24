"""Intervals, paired differences and Holm's correction against their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plbench.cells import Cells
from plbench.errors import PlbenchError
from plbench.evaluation.bootstrap import replicates
from plbench.evaluation.intervals import holm, interval, paired_difference, seeds_interval
from plbench.metrics import evaluate, evaluate_cells

Array = npt.NDArray[Any]


def test_interval_is_the_percentiles_of_what_is_defined() -> None:
    values = np.random.default_rng(0).random(500)
    assert interval([*values, np.nan]) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))
    low, high = interval(values, 0.8, point=7.0)
    assert high - low == pytest.approx(np.subtract(*np.percentile(values, [90, 10])))
    assert interval(values + 3, 0.8, point=7.0) == pytest.approx((low, high))
    assert np.isnan(interval([np.nan])).all()
    with pytest.raises(PlbenchError, match="level"):
        interval(values, 95)


def sample(rng: np.random.Generator, shift: float, shape: tuple[int, int] = (250, 8)) -> tuple[Array, Array]:
    """A test set on which positives score higher by `shift` standard deviations."""
    present = rng.random(shape) < 0.15
    return rng.standard_normal(shape) + shift * present, np.where(present, 1, -1)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    truth = np.mean([evaluate(*sample(rng, 1.5)).map_c for _ in range(300)])
    covered = 0
    for trial in range(120):
        cells = Cells.from_scores(*sample(rng, 1.5))
        values = replicates(cells, 200, seed=trial).map_c
        low, high = interval(values, 0.9, point=evaluate_cells(cells).map_c)
        covered += bool(low <= truth <= high)
    assert 0.8 <= covered / 120 <= 0.98


def test_resampling_raises_map_near_chance_and_the_point_undoes_it() -> None:
    rng = np.random.default_rng(2)
    cells = Cells.from_scores(rng.random((600, 20)), np.where(rng.random((600, 20)) < 0.02, 1, -1))
    values, point = replicates(cells, 300, seed=0).map_c, evaluate_cells(cells).map_c
    assert values.mean() > 1.1 * point
    low, high = interval(values, point=point)
    assert low < point < high


def test_one_seed_is_the_bootstrap_over_images() -> None:
    values = np.random.default_rng(0).random(50)
    np.testing.assert_array_equal(seeds_interval(values, seed=1), values)
    np.testing.assert_array_equal(seeds_interval(values[None], seed=1), values)


def test_seeds_are_resampled_within_each_replicate() -> None:
    image_noise = np.random.default_rng(0).standard_normal(4000)
    offsets = np.array([[-3.0], [0.0], [3.0]])
    spread = seeds_interval(offsets + image_noise, seed=5)
    assert spread.mean() == pytest.approx(0, abs=0.15)
    assert spread.var() == pytest.approx(1 + offsets.var() / 3, rel=0.1)
    np.testing.assert_array_equal(spread[:99], seeds_interval((offsets + image_noise)[:, :99], seed=5))


def test_seeds_of_two_methods_are_drawn_apart() -> None:
    values = np.repeat([[-1.0], [1.0]], 4000, axis=1)  # two seeds: a mean of -1, 0, 0 or 1
    result = paired_difference(values, values, [-1.0, 1.0], [-1.0, 1.0], seed=0)
    assert (result.difference, result.low, result.high) == (0.0, -2.0, 2.0)


def test_paired_difference_of_one_seed_by_hand() -> None:
    a, b = np.array([2.0, 3.0, 5.0, np.nan]), np.array([1.0, 4.0, 1.0, 1.0])
    result = paired_difference(a, b, 3.0, [1.0, 2.0], seed=0)
    assert result.difference == 1.5
    assert (result.low, result.high) == pytest.approx(tuple(np.percentile([1, -1, 4], [2.5, 97.5])))
    assert result.p_value == pytest.approx(1.0)  # 2 (1 + 1) / (3 + 1)
    mirrored = paired_difference(b, a, [1.0, 2.0], 3.0, seed=0)
    assert (mirrored.difference, mirrored.low, mirrored.high) == pytest.approx(
        (-result.difference, -result.high, -result.low)
    )


def test_paired_difference_at_its_limits() -> None:
    values = np.random.default_rng(0).random((3, 999))
    assert paired_difference(values[0], values[0], 0.0, 0.0, seed=0).p_value == 1.0
    far = paired_difference(values + 9, values[:2], 9.5, 0.5, seed=0)
    assert far.p_value == pytest.approx(2 / 1000) and far.low > 7
    assert paired_difference([np.nan], [np.nan], 0.0, 0.0, seed=0).p_value == 1.0
    with pytest.raises(PlbenchError, match="paired"):
        paired_difference(values, values[:, :5], 0.0, 0.0, seed=0)


def test_two_equal_methods_seldom_differ() -> None:
    rng = np.random.default_rng(7)
    rejected = 0
    for trial in range(120):
        (scores, labels), noise = sample(rng, 1.5), rng.standard_normal((2, 250, 8))
        a, b = (Cells.from_scores(scores + n, labels) for n in noise)
        map_a, map_b = (replicates(cells, 200, seed=trial).map_c for cells in (a, b))
        rejected += paired_difference(map_a, map_b, 0.0, 0.0, seed=trial).p_value <= 0.05
    assert rejected / 120 <= 0.11


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.6, 0.9]), [1.0, 1.0])
    assert holm([]).size == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_monotone_and_between_raw_and_bonferroni(p_values: list[float]) -> None:
    raw, adjusted = np.array(p_values), holm(p_values)
    order = np.argsort(raw, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()
    assert (adjusted >= raw).all() and (adjusted <= np.minimum(1, raw * raw.size)).all()


@pytest.mark.parametrize("bad", [-0.1, 1.1, np.nan])
def test_holm_refuses_what_is_no_p_value(bad: float) -> None:
    with pytest.raises(PlbenchError, match="p value"):
        holm([0.5, bad])

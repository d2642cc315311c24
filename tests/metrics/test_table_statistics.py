"""The statistics of a table: by hand, against scipy, and by simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from table_simulation import KINDS, RARE, coverage, draw_table, error_rate, highest_by_chance, power, rare_coverage

from plbench.errors import PlbenchError
from plbench.metrics import evaluate, evaluate_cells, lowest_average_precision
from plbench.metrics.bootstrap import replicates
from plbench.metrics.cells import Cells
from plbench.metrics.statistics import (
    Estimate,
    Sample,
    banerjee_p,
    banerjee_reach,
    compare_pairs,
    format_p,
    holm,
    shares_best,
    shrink_variances,
)

Array = npt.NDArray[Any]
QUIET = np.zeros(100)


class TestOneValue:
    def test_seeds_alone_give_students_interval(self) -> None:
        points = np.array([40.0, 41.0, 43.0])
        expected = stats.t.interval(0.95, 2, points.mean(), stats.sem(points))
        assert Sample.of_seeds(points).estimate.interval == pytest.approx(expected)
        p_value = stats.ttest_1samp(points, 0).pvalue
        assert Sample.of_seeds(points).estimate.p_value == pytest.approx(p_value, rel=1e-4)

    def test_images_alone_give_a_normal_interval(self) -> None:
        drawn = np.random.default_rng(0).normal(50, 2, 1000)
        half = stats.norm.isf(0.025) * drawn.std(ddof=1)
        assert Sample(np.array([50.0]), drawn).estimate.interval == pytest.approx((50 - half, 50 + half))

    def test_image_noise_counts_once(self) -> None:
        """The seeds share the test images: their common deviation is in the replicates, not in their spread."""
        rng = np.random.default_rng(1)
        drawn = rng.normal(size=1000) + rng.normal(0, 0.1, (5, 1000))
        estimate = Sample.of_runs(np.full(5, 50.0), drawn).estimate
        assert estimate.seed_variance == 0
        assert estimate.image_variance == pytest.approx(drawn.mean(axis=0).var(ddof=1))

    def test_an_interval_stays_within_what_the_metric_can_be(self) -> None:
        sample = Sample(np.array([97.0, 99.0]), QUIET, (0, 1), bounds=(12.0, 100.0))
        low, high = sample.estimate.interval
        assert 12 < low < 98 < high < 100
        assert Sample(np.array([100.0, 100.0]), QUIET, (0, 1), bounds=(12.0, 100.0)).estimate.interval == (100, 100)
        narrow = Sample(np.array([55.99, 56.01]), QUIET, (0, 1), bounds=(12.0, 100.0)).estimate
        assert narrow.interval == pytest.approx((56 - 0.12706, 56 + 0.12706), abs=1e-3)

    def test_a_correlation_that_is_1_to_the_last_bit_has_an_interval(self) -> None:
        """A mean of seeds whose share of the range is 1 in float64."""
        below = math.nextafter(1.0, 0.0)
        low, high = Sample(np.array([below] * 3), np.array([0.9, 1.0]), (0, 1, 2), bounds=(-1.0, 1.0)).estimate.interval
        assert -1 <= low <= below and high == pytest.approx(1.0)

    def test_studies_and_seeds_are_two_sources(self) -> None:
        rng = np.random.default_rng(2)
        table = rng.normal(size=(5, 1)) + 3 * rng.normal(size=(1, 3)) + np.zeros((5, 3))
        estimate = Sample.of_runs(table, np.zeros((5, 3, 50)), range(5)).estimate
        by_seed, by_study = table.mean(axis=1), table.mean(axis=0)
        assert estimate.seed_variance == pytest.approx(by_seed.var(ddof=1) / 5 + by_study.var(ddof=1) / 3)
        assert 2 <= estimate.dof <= 6

    def test_estimates_of_other_data_add_up(self) -> None:
        one, other = Estimate(2.0, 1.0, 0.5, 4), Estimate(0.5, 2.0, 0.25, 2)
        total = one - other
        assert (total.value, total.image_variance, total.seed_variance) == (1.5, 3.0, 0.75)
        assert 2 <= total.dof <= 6

    @given(
        value=st.floats(12.001, 99.999),
        deviation=st.floats(0.001, 20),
        bounds=st.sampled_from([(12.0, 100.0), (-math.inf, math.inf)]),
    )
    def test_an_interval_tells_its_variance(self, value: float, deviation: float, bounds: tuple[float, float]) -> None:
        ends = Estimate(value, deviation**2, 0.0, 0.0, bounds).interval
        found = Estimate.of_interval(value, ends, bounds)
        assert found.interval == pytest.approx(ends, abs=1e-9)
        if ends[0] > 12.01 and ends[1] < 99.99:  # else it is lost in the last bits of what is left of the range
            assert found.image_variance == pytest.approx(deviation**2, rel=1e-6)

    @pytest.mark.parametrize("ends", [(97.0, 100.0), (100.0, 100.0), (12.0, 100.0)])
    def test_an_interval_at_a_bound_comes_back(self, ends: tuple[float, float]) -> None:
        assert Estimate.of_interval(100.0, ends, (12.0, 100.0)).interval == ends

    def test_an_interval_that_fills_the_range_comes_back(self) -> None:
        assert Estimate.of_interval(50.0, (12.0, 100.0), (12.0, 100.0)).interval == (12.0, 100.0)

    def test_runs_without_replicates_share_all_of_the_images_error(self) -> None:
        """Whatever the replicates would tell: their mean varies at most as much."""
        rng = np.random.default_rng(4)
        points, bounds = rng.normal(60, 0.3, 5), (5.0, 100.0)
        drawn = points[:, None] + rng.normal(size=400) + rng.normal(0, 0.5, (5, 400))
        runs = [
            Estimate.of_interval(point, Sample(np.array([point]), own, bounds=bounds).estimate.interval, bounds)
            for point, own in zip(points, drawn, strict=True)
        ]
        found, exact = Estimate.of_runs(points, runs, bounds), Sample.of_runs(points, drawn, bounds=bounds).estimate
        assert math.sqrt(found.image_variance) == pytest.approx(drawn.std(axis=1, ddof=1).mean())
        assert exact.image_variance < found.image_variance < 1.5 * exact.image_variance
        assert (found.value, found.seed_variance, found.dof) == (exact.value, exact.seed_variance, exact.dof)
        assert Estimate.of_runs(points[:1], runs[:1], bounds).interval == pytest.approx(runs[0].interval)

    def test_a_run_without_a_value_leaves_the_mean_without_one(self) -> None:
        run = Estimate.of_interval(math.nan, (math.nan, math.nan), (5.0, 100.0))
        found = Estimate.of_runs([50.0, math.nan], [Estimate(50.0, 1.0, 0.0, 0.0), run], (5.0, 100.0)).figure()
        assert all(math.isnan(number) for number in (found.mean, found.low, found.high))

    @pytest.mark.parametrize("kind", KINDS)
    def test_intervals_cover_as_often_as_they_say(self, kind: str) -> None:
        for num_seeds in (3, 5):
            for share in coverage(KINDS[kind], num_seeds, 400, seed=7):
                assert 93 - 3.3 <= share <= 97 + 2.5  # and what 400 tables may be off by


class TestDifferences:
    def test_pairs_by_seed_and_image(self) -> None:
        rng = np.random.default_rng(3)
        labels, images = rng.normal(size=5), rng.normal(size=400)
        one = Sample.of_runs(50 + labels, [50 + images] * 5, range(5))
        other = Sample.of_runs(49 + labels + 0.01 * rng.normal(size=5), [49 + images] * 5, range(5))
        gap = one.minus(other)
        assert gap.image_variance == pytest.approx(0, abs=1e-20)
        assert gap.seed_variance < 1e-4
        assert gap.p_value < 1e-4

    def test_other_seeds_do_not_pair(self) -> None:
        one = Sample(np.array([1.0, 2.0, 3.0]), QUIET, (0, 1, 2))
        other = Sample(np.array([1.0, 2.0, 3.0]), QUIET, (3, 4, 5))
        expected = stats.ttest_ind([1, 2, 3], [1, 2, 3], equal_var=False)
        gap = one.minus(other)
        assert gap.seed_variance == pytest.approx(2 / 3) and gap.dof == pytest.approx(expected.df)

    def test_replicates_of_other_resamples_are_refused(self) -> None:
        with pytest.raises(PlbenchError, match="cannot be paired"):
            Sample(np.ones(3), QUIET).minus(Sample(np.ones(3), QUIET[:50]))

    @given(st.floats(0.01, 20), st.floats(0, 4), st.floats(0.001, 4), st.integers(2, 30))
    def test_a_p_value_is_the_level_that_just_reaches(
        self, value: float, images: float, seeds: float, dof: int
    ) -> None:
        arrays = [np.array([float(x)]) for x in (value, images, seeds, dof)]
        p_value = banerjee_p(*arrays)
        if p_value[0] > 1e-14:
            assert banerjee_reach(p_value, *arrays[1:])[0] == pytest.approx(value, rel=1e-5)


class TestTables:
    @pytest.mark.parametrize(
        ("kind", "num_rows", "num_seeds"),
        [*((kind, 5, 3) for kind in KINDS), ("mixed", 26, 5), ("one row ten times as noisy", 26, 5)],
    )
    def test_equal_methods_are_called_different_in_5_percent_of_tables(
        self, kind: str, num_rows: int, num_seeds: int
    ) -> None:
        """The long run is `make validate-statistics`; docs/statistics.md has its figures."""
        assert error_rate(KINDS[kind], num_rows, num_seeds, 50, seed=1) <= highest_by_chance(50)

    def test_five_seeds_find_what_is_there(self) -> None:
        found, detectable = power(KINDS["mixed"], 26, 5, 10)
        assert found > 0.1  # of 325 pairs, most of which differ by less than what can be found
        assert 2 < detectable < 6

    def test_what_is_called_detectable_is_found_in_four_of_five_tables(self) -> None:
        generator = np.random.default_rng(5)
        noise, rows, seeds = KINDS["mixed"], 10, 5
        effects = np.zeros(rows)
        least = np.mean([compare_pairs(draw_table(noise, rows, seeds, generator)).detectable for _ in range(30)])
        effects[0] = least
        found = [
            compare_pairs(draw_table(noise, rows, seeds, generator, effects)).p_values[0, 1:] < 0.05 for _ in range(120)
        ]
        assert 0.65 < np.mean(found) < 0.95

    def test_twenty_six_comparisons_can_differ(self) -> None:
        """A bootstrap p value of at least 2/1001 could not: Holm made more than 0.05 of it whatever the data."""
        rng = np.random.default_rng(4)
        rows = [
            Sample(50 - gap + 0.2 * rng.normal(size=5), 50 - gap + 0.2 * rng.normal(size=1000), tuple(range(5)))
            for gap in np.arange(30) / 3
        ]
        pairs = compare_pairs(rows)
        assert pairs.ranks[0] == 1 and pairs.ranks[-1] > 20

    def test_ranks_never_fall_and_agree_with_the_intervals(self) -> None:
        generator = np.random.default_rng(6)
        for noise in KINDS.values():
            rows = draw_table(noise, 12, 5, generator, np.linspace(8, 0, 12))
            rows.sort(key=lambda row: -row.mean)
            pairs = compare_pairs(rows)
            assert pairs.ranks == sorted(pairs.ranks)
            excludes = np.abs(pairs.differences) > pairs.reach
            np.testing.assert_array_equal(excludes, pairs.p_values < 0.05)
            np.testing.assert_allclose(pairs.differences, -pairs.differences.T)

    def test_rows_with_two_seeds_are_not_tested(self) -> None:
        rows = [Sample(np.array([float(m), m + 1.0]), QUIET, (0, 1)) for m in range(3)]
        pairs = compare_pairs(rows)
        assert np.isnan(pairs.p_values[0, 1:]).all() and math.isnan(pairs.detectable)
        assert pairs.ranks == [1, 1, 1]

    def test_one_row_is_a_table(self) -> None:
        pairs = compare_pairs([Sample(np.array([1.0, 2.0, 3.0]), QUIET, (0, 1, 2))])
        assert pairs.ranks == [1] and math.isnan(pairs.detectable)
        assert compare_pairs([]).ranks == []

    @pytest.mark.parametrize(("num_seeds", "tied"), [(5, [True, True, False]), (2, [True, True, True])])
    def test_what_is_tied_with_the_best_shares_its_rank_or_has_too_few_seeds(
        self, num_seeds: int, tied: list[bool]
    ) -> None:
        noise = np.random.default_rng(0).normal(size=(3, 5))[:, :num_seeds]
        rows = [
            Sample.of_runs(lead + 0.1 * own, np.zeros((num_seeds, 10)), range(num_seeds))
            for lead, own in zip((60.0, 60.0, 50.0), noise, strict=True)
        ]
        assert compare_pairs(sorted(rows, key=lambda row: -row.mean)).tied == tied

    def test_shares_best_sum_to_one_and_follow_the_noise(self) -> None:
        rng = np.random.default_rng(8)
        images = rng.normal(size=1000)
        same = [Sample(50 + rng.normal(size=5), 50 + images, tuple(range(5))) for _ in range(2)]
        shares = shares_best([*same, Sample(np.full(5, 30.0), 30 + images, tuple(range(5)))], seed=0)
        assert shares.sum() == pytest.approx(1) and shares[2] == 0
        assert (shares[:2] > 0.02).all()


class TestShrinking:
    def test_equal_variances_are_pooled(self) -> None:
        rng = np.random.default_rng(9)
        estimated = rng.chisquare(4, 2000) / 4
        shrunk, dof = shrink_variances(estimated, np.full(2000, 4.0), max_dof=1e4)
        assert shrunk.std() < 0.1 * estimated.std() and dof.min() > 40
        assert shrunk.mean() == pytest.approx(1, abs=0.05)

    def test_variances_that_differ_are_left(self) -> None:
        rng = np.random.default_rng(10)
        estimated = np.exp(3 * rng.normal(size=2000)) * rng.chisquare(4, 2000) / 4
        shrunk, dof = shrink_variances(estimated, np.full(2000, 4.0), max_dof=1e4)
        assert dof.max() < 5
        assert np.median(shrunk / estimated) == pytest.approx(1, abs=0.15)


class TestRareClasses:
    """Classes that a resample leaves without a positive."""

    @pytest.mark.parametrize("kind", RARE)
    def test_intervals_cover(self, kind: str) -> None:
        for share in rare_coverage(RARE[kind], 40):
            assert share >= 93 - 11  # and what 40 test sets may be off by

    def test_an_interval_of_two_sure_and_three_hopeless_classes(self) -> None:
        """Their means over resamples had jumped to where no model on these images can be: 29 to 85 around 44."""
        scores, labels = np.zeros((18, 5)), -np.ones((18, 5), int)
        for c, best in enumerate([True, True, False, False, False]):
            labels[c, c] = 1
            scores[:, c] = np.arange(18)
            scores[c, c] = 99 if best else -1
        cells = Cells.from_scores(scores, labels)
        metrics = evaluate_cells(cells)
        drawn = replicates(cells, 1000, seed=0)
        assert not np.isnan(drawn.map_c).any()
        bounds = (metrics.lowest.map_c, 100.0)
        low, high = Sample(np.array([metrics.map_c]), drawn.map_c, bounds=bounds).estimate.interval
        assert bounds[0] <= low < metrics.map_c < high < 85

    def test_a_single_class_has_nothing_to_stand_in(self) -> None:
        cells = Cells.from_scores([[0.9], [0.1], [0.2]], [[1], [-1], [-1]])
        assert np.isnan(replicates(cells, 200, seed=0).map_c).any()


def test_lowest_average_precision_is_that_of_the_worst_ranking() -> None:
    for positives, negatives in ((1, 3), (4, 1), (7, 90)):
        scores = np.concatenate([np.linspace(0, 1, positives), np.linspace(2, 3, negatives)])[:, None]
        labels = np.concatenate([np.ones(positives, int), -np.ones(negatives, int)])[:, None]
        expected = evaluate(scores, labels).ap[0]
        assert lowest_average_precision([positives], [negatives])[0] == pytest.approx(expected)


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.6, 0.9]), [1.0, 1.0])
    assert holm([]).size == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_lies_above(p_values: list[float]) -> None:
    raw, adjusted = np.array(p_values), holm(p_values)
    assert (adjusted >= raw).all() and (adjusted <= 1).all()
    order = np.argsort(raw, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_holm_refuses_what_is_no_p_value(bad: float) -> None:
    with pytest.raises(PlbenchError, match="between 0 and 1"):
        holm([0.5, bad])


@given(st.floats(0, 1))
def test_a_printed_p_value_is_on_its_own_side_of_5_percent(p_value: float) -> None:
    text = format_p(p_value)
    assert text == "< 0.001" or (float(text) < 0.05) == (p_value < 0.05)

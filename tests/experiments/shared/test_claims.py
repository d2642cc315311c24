"""When a claim held, did not, or cannot be told."""

from __future__ import annotations

import numpy as np
import pytest

from plbench.experiments.mechanism.phase_claims import never_far_behind, placed_within, wins_somewhere
from plbench.experiments.mechanism.phase_map import MODES, cells
from plbench.experiments.shared.claims import above, above_all, every, gap_change, gap_falls, line_above, some
from plbench.experiments.shared.experiment import Context, Findings, Place, Point, Verdict
from plbench.metrics.statistics import Sample

GROUND = Context("made", "made", "none", 4, 100, True)
SEEDS = (0, 1, 2)


def point(series: str, x: Place, mean: float, *, noise: float = 0.1, seeds: int = 3, panel: str = "") -> Point:
    """A point whose interval is about ±2 noise; noise of the test images is shared by all, as in a paired bootstrap."""
    rng = np.random.default_rng(7)
    images = rng.normal(0, 1.0, 1000)  # the same resamples for all points
    own = np.random.default_rng(abs(hash((series, str(x), mean))) % 2**32).normal(0, noise, (seeds, 1000))
    sample = Sample.of_runs(np.full(seeds, mean), mean + images + own, range(seeds))
    return Point(series, x, {"m": sample}, panel, (), tuple(range(seeds)))


def made(*points: Point) -> Findings:
    return Findings(GROUND, points)


def lines(pairs: dict[Place, tuple[float, float]], **options: float) -> Findings:
    return made(*(point(s, x, v, **options) for x, pair in pairs.items() for s, v in zip("ab", pair, strict=True)))  # type: ignore[arg-type]


def decide(findings: Findings) -> Verdict:
    verdict = line_above("a", "b", "m", "", "x")(findings)
    assert verdict is not None
    return verdict


class TestManyPlaces:
    """A p value that counts draws says 0.002 at least, and Holm over 80 places would make 0.16 of it."""

    def test_what_no_draw_contradicts_is_beyond_chance_among_many(self) -> None:
        pairs: dict[Place, tuple[float, float]] = {float(x): (50, 50) for x in range(79)}
        wrong = decide(lines({**pairs, 80.0: (45, 50)}, noise=0.5))
        assert wrong.status == "not held" and "1 of 80 differ significantly in the other direction" in wrong.why

    def test_what_is_narrowly_beyond_chance_once_is_not_among_many(self) -> None:
        pairs: dict[Place, tuple[float, float]] = {float(x): (50, 50) for x in range(79)}
        assert decide(lines({**pairs, 80.0: (49.0, 50)}, noise=0.5)).status == "undecided"


class TestEvery:
    def test_above_at_all_places_beyond_chance_is_held(self) -> None:
        verdict = decide(lines({1.0: (52, 50), 2.0: (53, 50)}))
        assert verdict.status == "held"
        assert "x = 1: +2.00 [" in verdict.why and "x = 2: +3.00 [" in verdict.why

    def test_one_place_the_other_way_is_not_held(self) -> None:
        verdict = decide(lines({1.0: (52, 50), 2.0: (49, 50)}))
        assert verdict.status == "not held" and "1 of 2 differ significantly in the other direction" in verdict.why

    def test_what_chance_explains_is_undecided_whichever_way_it_points(self) -> None:
        assert decide(lines({1.0: (52, 50), 2.0: (50.1, 50)}, noise=1.0)).status == "undecided"
        assert decide(lines({1.0: (52, 50), 2.0: (49.9, 50)}, noise=1.0)).status == "undecided"

    def test_equal_rows_are_undecided(self) -> None:
        one = point("a", 1.0, 50)
        same = Point("b", 1.0, one.values, "", (), SEEDS)
        assert decide(made(one, same)).status == "undecided"

    def test_few_seeds_decide_nothing(self) -> None:
        assert decide(lines({1.0: (90, 10)}, seeds=2)).why.startswith("2 seeds are too few")
        assert decide(lines({1.0: (90, 10)}, seeds=1)).status == "undecided"

    def test_nothing_to_compare_is_undecided_and_no_such_panel_is_no_claim(self) -> None:
        assert decide(made(point("a", 1.0, 50))).status == "undecided"
        assert line_above("a", "b", "m", "elsewhere", "x")(lines({1.0: (2, 1)})) is None


class TestSome:
    def places(self, *gaps: tuple[float, float], noise: float = 0.1) -> Verdict:
        found = []
        for x, (first, second) in enumerate(gaps):
            findings = made(
                *(point(n, x, v, noise=noise) for n, v in (("c", 50), ("l", 50 - first), ("r", 50 - second)))
            )
            pair = [above(findings, ("c", x), (other, x), "m", label=other) for other in "lr"]
            found.append(tuple(c for c in pair if c is not None))
        return some(found)

    def test_one_place_above_both_is_enough(self) -> None:
        assert self.places((-3, 2), (2, 2), (4, -1)).status == "held"

    def test_below_one_of_them_everywhere_is_not_held(self) -> None:
        verdict = self.places((-3, 2), (4, -1))
        assert verdict.status == "not held" and verdict.why.startswith("nowhere; nearest l: +4.00")

    def test_a_lead_that_chance_explains_is_undecided(self) -> None:
        assert self.places((0.05, 0.05), (-2, 1), noise=0.5).status == "undecided"


class TestGaps:
    def test_a_gap_that_falls_to_the_right(self) -> None:
        falling = made(*(point(s, x, v, noise=0.05) for x, v in ((1, 60), (2, 50)) for s, v in (("a", v), ("b", 49.5))))
        rising = gap_falls("a", "b", "m", "", rising=True)(falling)
        assert rising is not None and rising.status == "held"
        other = gap_falls("a", "b", "m", "", rising=False)(falling)
        assert other is not None and other.status == "not held"

    def test_the_gap_is_absolute_whichever_line_is_above(self) -> None:
        crossing = made(
            *(point(s, x, v, noise=0.05) for x, a in ((1, 40), (2, 50)) for s, v in (("a", a), ("b", 50.5)))
        )
        verdict = gap_falls("a", "b", "m", "", rising=True)(crossing)
        assert verdict is not None and verdict.status == "held" and "+10.00" in verdict.why

    def test_one_place_has_no_trend(self) -> None:
        verdict = gap_falls("a", "b", "m", "", rising=True)(lines({1.0: (2, 1)}))
        assert verdict is not None and verdict.status == "undecided"

    def test_change_is_first_minus_second(self) -> None:
        a, b, c, d = (point(s, 0, v, noise=0.01) for s, v in (("a", 10), ("b", 4), ("c", 5), ("d", 3)))
        assert gap_change((a, b), (c, d), "m", "").difference.value == pytest.approx(4)


def test_a_row_of_a_table_above_all_others_that_ran() -> None:
    rows = [point("best", 0, 60, panel="T"), point("b", 1, 50, panel="T"), Point("not run", 2, {}, "T")]
    verdict = above_all("best", "m", "T")(made(*rows))
    assert verdict is not None and verdict.status == "held" and "to b: +10.00" in verdict.why
    assert above_all("best", "m", "U")(made(*rows)) is None


class TestMap:
    def findings(self, *means: tuple[float, float, float], noise: float = 0.05, **facts: float) -> Findings:
        points = []
        for number, three in enumerate(means):
            where = {"keep": 0.1 * (number + 1), "bias": 0.0, "negatives": 1.0}
            truth = {"true_share": 0.1, "true_advantage": 1.0, "true_negatives": 1.0}
            for mode, mean in zip(MODES, three, strict=True):
                made_point = point(mode, where["keep"], mean, noise=noise)
                values = {"map_c": made_point.values["m"]}
                points.append(Point(mode, where["keep"], values, "", (), SEEDS, {**where, **truth, **facts}))
        return made(*points)

    def test_the_best_and_what_cannot_be_told_from_it(self) -> None:
        first, second = cells(self.findings((50, 48, 49), (50, 50, 40), noise=0.3))
        assert (first.best, first.tied, round(first.lead, 2)) == ("Ignore", ("Ignore",), 1.0)
        assert set(second.tied) == {"Ignore", "Negative"}

    def test_claims_about_it(self) -> None:
        findings = self.findings((50, 48, 49.5), (40, 45, 44.5))
        assert [wins_somewhere(mode).test(findings).status for mode in MODES] == ["held", "held", "not held"]  # type: ignore[union-attr]
        assert never_far_behind("Selective", 1.0).test(findings).status == "held"  # type: ignore[union-attr]
        assert never_far_behind("Ignore", 1.0).test(findings).status == "not held"  # type: ignore[union-attr]

    def test_placing_counts_those_within_the_factor(self) -> None:
        near = placed_within(2.0, "share", few_negatives=False).test(self.findings((1, 2, 3), estimated_share=0.15))
        far = placed_within(2.0, "share", few_negatives=False).test(self.findings((1, 2, 3), estimated_share=0.03))
        assert near is not None and near.status == "held" and "worst factor 1.50" in near.why
        assert far is not None and far.status == "not held"
        assert placed_within(2.0, "share", few_negatives=False).test(self.findings((1, 2, 3))).status == "undecided"  # type: ignore[union-attr]
        assert (
            placed_within(2.0, "share", few_negatives=True).test(self.findings((1, 2, 3), estimated_share=1.0)) is None
        )
        assert every([]).status == "undecided"

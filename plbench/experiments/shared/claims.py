"""Claims as functions of the data: what is compared, and when a claim held, did not, or cannot be told."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from plbench.experiments.shared.experiment import Findings, Place, Point, Test, Verdict
from plbench.metrics.statistics import MIN_SEEDS, SIGNIFICANT, Estimate, holm

_MAX_NAMED = 4


@dataclass(frozen=True)
class Comparison:
    """A difference that a claim says is above 0.

    Attributes:
        label: where it was looked at, such as "p = 0.5".
        seeds: of the training with fewest.
    """

    label: str
    difference: Estimate
    seeds: int

    @property
    def ends(self) -> tuple[float, float]:
        """Of its 95 % interval."""
        return self.difference.interval

    @property
    def words(self) -> str:
        """As "p = 0.5: +1.20 [+0.80, +1.60]"."""
        low, high = self.ends
        numbers = f"{self.difference.value:+.2f} [{low:+.2f}, {high:+.2f}]"
        return f"{self.label}: {numbers}" if self.label else numbers


def every(comparisons: Sequence[Comparison]) -> Verdict:
    """Decide: held where each difference is above 0 significantly; not held where one is below it (Holm over all).

    For "all of them" each interval counts at its own level: the claim is wrongly held with at most that chance.
    """
    if problem := _refusal(comparisons):
        return problem
    found = "; ".join(c.words for c in _most_telling(comparisons))
    more = len(comparisons) - _MAX_NAMED
    found += f"; and {more} more" if more > 0 else ""
    adjusted = holm([c.difference.p_value for c in comparisons])
    wrong = [c for c, p in zip(comparisons, adjusted, strict=True) if c.difference.value < 0 and p < SIGNIFICANT]
    if wrong:
        most = f"{len(wrong)} of {len(comparisons)} go the other way significantly ({found})"
        return Verdict("not held", most if len(comparisons) > 1 else found)
    sure = [c for c in comparisons if c.ends[0] > 0]
    if len(sure) == len(comparisons):
        return Verdict("held", found)
    if len(comparisons) == 1:
        return Verdict("undecided", found)
    return Verdict("undecided", f"{len(sure)} of {len(comparisons)} are above 0 significantly ({found})")


def some(comparisons: Sequence[tuple[Comparison, ...]]) -> Verdict:
    """Decide: held where for one of the places each of its differences is above 0, with Holm over the places.

    Not held where for every place one of its differences is below 0 significantly.
    """
    flat = [c for place in comparisons for c in place]
    if problem := _refusal(flat):
        return problem
    worst = [max(place, key=lambda c: (c.difference.p_value, -c.difference.value)) for place in comparisons]
    above = [all(c.difference.value > 0 for c in place) for place in comparisons]
    p_values = [c.difference.p_value if good else 1.0 for c, good in zip(worst, above, strict=True)]
    adjusted = holm(p_values)
    lead = [min(c.difference.value for c in place) for place in comparisons]
    best = min(range(len(comparisons)), key=lambda place: (adjusted[place], -lead[place]))
    words = ", ".join(c.words for c in comparisons[best])
    if adjusted[best] < SIGNIFICANT:
        return Verdict("held", words)
    leader = comparisons[int(np.argmax(lead))]
    if all(any(c.ends[1] < 0 for c in place) for place in comparisons):
        return Verdict("not held", f"nowhere; nearest {', '.join(c.words for c in leader)}")
    return Verdict("undecided", f"nearest {', '.join(c.words for c in leader)}, p = {min(adjusted):.2f} after Holm")


def above(
    findings: Findings,
    first: tuple[str, Place],
    second: tuple[str, Place],
    metric: str,
    panel: str = "",
    label: str = "",
) -> Comparison | None:
    """Return one (series, x) minus another, of one panel; None where either was not run."""
    a, b = findings.at(*first, panel), findings.at(*second, panel)
    return None if a is None or b is None else difference(a, b, metric, label)


def difference(a: Point, b: Point, metric: str, label: str = "") -> Comparison | None:
    """Return one point minus another; None where a value is undefined."""
    if metric not in a.values or metric not in b.values:
        return None
    gap = a.values[metric].minus(b.values[metric])
    return None if math.isnan(gap.value) else Comparison(label, gap, min(len(a.seeds), len(b.seeds)))


def line_above(
    better: str, worse: str, metric: str, panel: str, x_name: str, places: Callable[[Place], bool] = lambda x: True
) -> Test:
    """Return a test: one line lies above another at every place that both have.

    Args:
        better, worse: the lines.
        metric: of both.
        panel: where they are, or how its name begins.
        x_name: of a place, for the evidence.
        places: which count.
    """

    def test(findings: Findings) -> Verdict | None:
        where = findings.panel(panel)
        if where not in findings.panels:
            return None
        found = [
            above(findings, (better, p.x), (worse, p.x), metric, where, _place_words(x_name, p.x))
            for p in findings.line(better, where)
            if places(p.x)
        ]
        return every([c for c in found if c is not None])

    return test


def above_all(leader: str, metric: str, panel: str) -> Test:
    """Return a test: one row of a table is above each of the others that were run."""

    def test(findings: Findings) -> Verdict | None:
        rows = [point for point in findings.points if point.panel == panel]
        if not rows:
            return None
        first = next((point for point in rows if point.series == leader), None)
        others = [point for point in rows if point.series != leader]
        found = [difference(first, other, metric, f"to {other.series}") for other in others if first is not None]
        return every([c for c in found if c is not None])

    return test


def _place_words(name: str, x: Place) -> str:
    return x if isinstance(x, str) else f"{name} = {x:g}"


def gap_falls(upper: str, lower: str, metric: str, panel: str, *, rising: bool) -> Test:
    """Return a test: the absolute gap between two lines is smaller at one end than at the other.

    Args:
        upper, lower: the lines.
        metric: of both.
        panel: where they are.
        rising: the gap is to be smaller at the right end; else at the left one.
    """

    def test(findings: Findings) -> Verdict:
        places = [p.x for p in findings.line(upper, panel) if findings.at(lower, p.x, panel) is not None]
        if len(places) < 2:
            return Verdict("undecided", "fewer than two places were run")
        ends = [places[0], places[-1]] if rising else [places[-1], places[0]]
        wide, narrow = (_pair(findings, upper, lower, metric, x, panel) for x in ends)
        return every([gap_change(wide, narrow, metric, "gap at the one end minus gap at the other")])

    return test


def _pair(findings: Findings, one: str, other: str, metric: str, x: Place, panel: str) -> tuple[Point, Point]:
    """Return two lines at a place where both are, the higher one first."""
    a, b = findings.at(one, x, panel), findings.at(other, x, panel)
    assert a is not None and b is not None
    return (a, b) if a.values[metric].mean >= b.values[metric].mean else (b, a)


def gap_change(first: tuple[Point, Point], second: tuple[Point, Point], metric: str, label: str) -> Comparison:
    """Return one gap minus another, of data that need not be the same: each gap is drawn on its own.

    Args:
        first: two points of one data set, whose gap is the first minus the second.
        second: two of another.
        metric: of all four.
        label: of the comparison.
    """
    one, other = (a.values[metric].minus(b.values[metric]) for a, b in (first, second))
    seeds = min(len(point.seeds) for pair in (first, second) for point in pair)
    return Comparison(label, one - other, seeds)


def _refusal(comparisons: Sequence[Comparison]) -> Verdict | None:
    if not comparisons:
        return Verdict("undecided", "nothing to compare: what it speaks of was not run, or is undefined")
    fewest = min(c.seeds for c in comparisons)
    if fewest < MIN_SEEDS:
        words = "; ".join(c.words for c in _most_telling(comparisons))
        seeds = "1 seed is" if fewest == 1 else f"{fewest} seeds are"
        return Verdict("undecided", f"{seeds} too few to say ({words})")
    return None


def _most_telling(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return those that speak against the claim first; in the order of places where there are few."""
    if len(comparisons) <= _MAX_NAMED:
        return list(comparisons)
    return sorted(comparisons, key=lambda c: c.difference.value)[:_MAX_NAMED]

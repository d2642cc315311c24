"""Claims as functions of the data: what is compared, and when a claim held, did not hold, or is undecided."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from plbench.experiments.shared.experiment import Context, Findings, Place, Point, Test, Verdict
from plbench.metrics.statistics import MIN_SEEDS, SIGNIFICANT, Estimate, holm

_MAX_NAMED = 4


@dataclass(frozen=True)
class Comparison:
    """A difference that is above 0 according to a claim.

    Attributes:
        label: of the place, such as "p = 0.5".
        seeds: minimum number of seeds of the two.
    """

    label: str
    difference: Estimate
    seeds: int

    @property
    def words(self) -> str:
        """Text such as "p = 0.5: +1.20 [+0.80, +1.60]"."""
        low, high = self.difference.interval
        return f"{self.label}: {self.difference.value:+.2f} [{low:+.2f}, {high:+.2f}]".removeprefix(": ")


def every(comparisons: Sequence[Comparison | None]) -> Verdict:
    """Decide: held if all differences are significantly above 0; not held if one is significantly below (Holm).

    For a conjunction, each interval is tested at its own level: the probability of wrongly accepting the claim does not
    exceed it. None (not run, or undefined) is ignored.
    """
    known = [c for c in comparisons if c is not None]
    if problem := _refusal(known):
        return problem
    found = "; ".join(c.words for c in _most_telling(known))
    more = len(known) - _MAX_NAMED
    found += f"; and {more} more" if more > 0 else ""
    adjusted = holm([c.difference.p_value for c in known])
    wrong = [c for c, p in zip(known, adjusted, strict=True) if c.difference.value < 0 and p < SIGNIFICANT]
    if wrong:
        most = f"{len(wrong)} of {len(known)} differ significantly in the other direction ({found})"
        return Verdict("not held", most if len(known) > 1 else found)
    sure = [c for c in known if c.difference.interval[0] > 0]
    if len(sure) == len(known):
        return Verdict("held", found)
    if len(known) == 1:
        return Verdict("undecided", found)
    return Verdict("undecided", f"{len(sure)} of {len(known)} are significantly above 0 ({found})")


def some(places: Sequence[Sequence[Comparison | None]]) -> Verdict:
    """Decide: held if at one of the places all differences are above 0, with Holm over the places.

    Not held if at every place some difference is significantly below 0. Places with None are ignored.
    """
    known = [found for place in places if len(found := [c for c in place if c is not None]) == len(place)]
    if problem := _refusal([c for place in known for c in place]):
        return problem
    worst = [max(place, key=lambda c: (c.difference.p_value, -c.difference.value)) for place in known]
    lead = [min(c.difference.value for c in place) for place in known]
    adjusted = holm([c.difference.p_value if gap > 0 else 1.0 for c, gap in zip(worst, lead, strict=True)])
    best = min(range(len(known)), key=lambda place: (adjusted[place], -lead[place]))
    if adjusted[best] < SIGNIFICANT:
        return Verdict("held", ", ".join(c.words for c in known[best]))
    nearest = f"nearest {', '.join(c.words for c in known[int(np.argmax(lead))])}"
    if all(any(c.difference.interval[1] < 0 for c in place) for place in known):
        return Verdict("not held", f"nowhere; {nearest}")
    return Verdict("undecided", f"{nearest}, p = {min(adjusted):.2f} after Holm")


def _refusal(comparisons: Sequence[Comparison]) -> Verdict | None:
    if not comparisons:
        return Verdict("undecided", "nothing to compare: the runs of this claim are missing or undefined")
    fewest = min(c.seeds for c in comparisons)
    if fewest < MIN_SEEDS:
        words = "; ".join(c.words for c in _most_telling(comparisons))
        seeds = "1 seed is" if fewest == 1 else f"{fewest} seeds are"
        return Verdict("undecided", f"{seeds} too few to decide ({words})")
    return None


def _most_telling(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return those that contradict the claim most; all in order if there are few."""
    if len(comparisons) <= _MAX_NAMED:
        return list(comparisons)
    return sorted(comparisons, key=lambda c: c.difference.value)[:_MAX_NAMED]


def above(
    findings: Findings,
    first: tuple[str, Place],
    second: tuple[str, Place],
    metric: str,
    panel: str = "",
    label: str = "",
) -> Comparison | None:
    """Return the difference between two (series, x) of one panel; None if either was not run."""
    a, b = findings.at(*first, panel), findings.at(*second, panel)
    return None if a is None or b is None else difference(a, b, metric, label)


def difference(a: Point, b: Point, metric: str, label: str = "") -> Comparison | None:
    """Return the difference between two points; None if a value is undefined."""
    if metric not in a.values or metric not in b.values:
        return None
    gap = a.values[metric].minus(b.values[metric])
    return None if math.isnan(gap.value) else Comparison(label, gap, min(len(a.seeds), len(b.seeds)))


def gap_change(first: tuple[Point, Point], second: tuple[Point, Point], metric: str, label: str) -> Comparison:
    """Return the difference between two gaps, of possibly different data: each gap is resampled separately.

    Args:
        first: two points of one data set, whose gap is the first minus the second. second: two of another.
        metric: of all four.
        label: of the comparison.
    """
    one, other = (a.values[metric].minus(b.values[metric]) for a, b in (first, second))
    return Comparison(label, one - other, min(len(point.seeds) for point in (*first, *second)))


def line_above(
    better: str, worse: str, metric: str, panel: str, x_name: str, places: Callable[[Place], bool] = lambda x: True
) -> Test:
    """Return a test that one line is above another at every common place.

    Args:
        better, worse: the lines. metric: of both.
        panel: of the lines, or a prefix of its name.
        x_name: name of x, for the evidence.
        places: filter of places.
    """

    def test(findings: Findings) -> Verdict | None:
        where = findings.panel(panel)
        if where not in findings.panels:
            return None
        xs = [p.x for p in findings.line(better, where) if places(p.x)]
        names = [x if isinstance(x, str) else f"{x_name} = {x:g}" for x in xs]
        return every(
            [above(findings, (better, x), (worse, x), metric, where, name) for x, name in zip(xs, names, strict=True)]
        )

    return test


def peak_inside(
    series: str, metric: str, ends: Callable[[Context], tuple[float, float]], words: Callable[[Place, float], str]
) -> Test:
    """Return a test that a line is above both of its ends at some place between them.

    Args:
        series: the line. metric: of it.
        ends: where it begins and ends.
        words: for the evidence, of a place and an end.
    """

    def test(findings: Findings) -> Verdict:
        both = ends(findings.context)
        return some(
            [
                [above(findings, (series, p.x), (series, end), metric, label=words(p.x, end)) for end in both]
                for p in findings.line(series)
                if p.x not in both
            ]
        )

    return test


def above_all(leader: str, metric: str, panel: str) -> Test:
    """Return a test that one row of a table is above all others that were run."""

    def test(findings: Findings) -> Verdict | None:
        rows = {point.series: point for point in findings.points if point.panel == panel}
        if not rows:
            return None
        first = rows.pop(leader, None)
        return every([difference(first, other, metric, f"to {name}") for name, other in rows.items() if first])

    return test


def gap_falls(upper: str, lower: str, metric: str, panel: str, *, rising: bool) -> Test:
    """Return a test that the absolute gap between two lines is smaller at one end than at the other.

    Args:
        upper, lower: the lines. metric: of both. panel: of the lines.
        rising: the gap should be smaller at the right end; otherwise at the left one.
    """

    def test(findings: Findings) -> Verdict:
        pairs = [(a, b) for a in findings.line(upper, panel) if (b := findings.at(lower, a.x, panel)) is not None]
        if len(pairs) < 2:
            return Verdict("undecided", "fewer than two places were run")
        wide, narrow = (
            (a, b) if a.values[metric].mean >= b.values[metric].mean else (b, a)  # the higher one first
            for a, b in ((pairs[0], pairs[-1]) if rising else (pairs[-1], pairs[0]))
        )
        return every([gap_change(wide, narrow, metric, "gap at the one end minus gap at the other")])

    return test

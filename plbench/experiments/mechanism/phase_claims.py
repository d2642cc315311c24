"""Claims about the map of annotation mechanisms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from plbench.experiments.mechanism.phase_map import METRIC, MODES, Cell, cells
from plbench.experiments.shared.claims import Comparison, difference, every, gap_change, some
from plbench.experiments.shared.experiment import Claim, Findings, Point, Verdict

OURS = "ours"


def wins_somewhere(mode: str) -> Claim:
    """Test whether the mode is above both others under some mechanism."""

    def test(findings: Findings) -> Verdict:
        rivals = [other for other in MODES if other != mode]
        return some([[_lead(cell, cell.points[mode], rival) for rival in rivals] for cell in _whole(findings)])

    return Claim(f"{mode} wins under some mechanism", OURS, test)


def gap_grows(words: str, better: str, worse: str, axis: str) -> Claim:
    """Return the claim that, from the low to the high end of an axis, all else equal, one mode gains on the other.

    Args:
        words: the claim.
        better, worse: the modes.
        axis: "keep", "bias" or "negatives".
    """

    def test(findings: Findings) -> Verdict:
        lines: dict[tuple[Any, ...], list[Cell]] = {}
        for cell in sorted(_whole(findings), key=lambda cell: getattr(cell, axis)):
            rest = tuple(getattr(cell, name) for name in ("keep", "bias", "negatives") if name != axis)
            lines.setdefault(rest, []).append(cell)
        changes = []
        for low, *_, high in (line for line in lines.values() if len(line) > 1):
            wide, narrow = ((cell.points[better], cell.points[worse]) for cell in (high, low))
            changes.append(gap_change(wide, narrow, METRIC, f"{_words(high)} against {axis} {getattr(low, axis):g}"))
        return every(changes)

    return Claim(words, OURS, test)


def never_far_behind(mode: str, points: float) -> Claim:
    """Test whether the mode is never more than this many percentage points below another one."""

    def test(findings: Findings) -> Verdict:
        found = []
        for cell in _whole(findings):
            point = cell.points[mode]
            raised = replace(point, values={METRIC: point.values[METRIC].shifted(points)})
            found += [_lead(cell, raised, other) for other in MODES if other != mode]
        return every(found)

    return Claim(f"{mode} is nowhere more than {points:g} points below another mode", OURS, test)


def placed_within(factor: float, coordinate: str, *, few_negatives: bool) -> Claim:
    """Test whether estimates of a coordinate, from partial labels alone, are always within a factor of the truth.

    Args:
        factor: at least 1.
        coordinate: "share" or "advantage".
        few_negatives: for settings with fewer verified negatives than known positives; otherwise for the others.
    """

    def test(findings: Findings) -> Verdict | None:
        placed = [p for p in findings.points if p.series == MODES[0] and (p.facts["negatives"] < 1) == few_negatives]
        names = (f"estimated_{coordinate}", f"true_{coordinate}")
        pairs = [(p.facts[names[0]], p.facts[names[1]]) for p in placed if set(names) <= p.facts.keys()]
        if not placed:
            return None
        if not pairs:
            return Verdict("undecided", "no setting could be placed")
        near = sum(1 for estimate, true in pairs if 1 / factor <= estimate / true <= factor)
        worst = max(max(e / t, t / e) for e, t in pairs)
        unplaced = len(placed) - len(pairs)
        why = f"{near} of {len(pairs)} settings; worst factor {worst:.2f}; {unplaced} were called not identifiable"
        return Verdict("held" if near == len(pairs) else "not held", why)

    where = "fewer" if few_negatives else "as many"
    words = f"With {where} verified negatives {'than' if few_negatives else 'as'} known positives, the {coordinate} is "
    return Claim(f"{words}estimated within a factor of {factor:g} of the truth", OURS, test)


def _whole(findings: Findings) -> list[Cell]:
    return [cell for cell in cells(findings) if set(MODES) <= cell.points.keys()]


def _lead(cell: Cell, point: Point, rival: str) -> Comparison | None:
    return difference(point, cell.points[rival], METRIC, f"{_words(cell)}: to {rival}")


def _words(cell: Cell) -> str:
    return f"share {cell.keep:g}, bias {cell.bias:g}, negatives {cell.negatives:g}"

"""Whether a record's figures are those of its own tables: means of the classes' AP, intervals of the replicates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from plbench.board.entries import ClassRow, Entry
from plbench.board.refusals import Findings, defined
from plbench.board.thresholds import ROUNDED, check_threshold_figures
from plbench.evaluation.intervals import interval
from plbench.evaluation.summary import NUM_REPLICATES, PRECISION_AT
from plbench.metrics import Metrics
from plbench.record import Estimate, GroupMetrics, SplitMetrics


def check_figures(entry: Entry, findings: Findings) -> None:
    """Every figure that the tables determine, and bounds for those that only the cells do."""
    _check_table(entry.per_class, findings)
    if entry.record.configuration != "unknown":  # else of schema 1, whose first tables did not say
        findings.require(names_parts(entry.per_class), "per_class.csv.quintile", None, "the quintile of each class")
    classes = as_metrics(entry.per_class)
    test = entry.record.test
    where = "metrics.test"
    findings.close(f"{where}.map_c.value", test.map_c.value, defined(classes.map_c), ROUNDED)
    findings.close(f"{where}.map_o.value", test.map_o.value, defined(classes.map_o), ROUNDED)
    for place, group, members in _parts(where, test, entry.per_class):
        findings.close(f"{place}.map_c.value", group.map_c.value, defined(classes.group(members)[0]), ROUNDED)
    check_threshold_figures(entry, findings)
    for name, split in entry.record.metrics.items():
        _check_counts(f"metrics.{name}", split, classes, findings)
        _check_parts(f"metrics.{name}", split, entry.per_class, findings)
        _check_unpooled(f"metrics.{name}", split, findings)
    check_intervals(entry, classes, findings)


def as_metrics(table: Sequence[ClassRow]) -> Metrics:
    """A per-class table as what its means are taken from."""
    ap = np.array([math.nan if row.ap is None else row.ap / 100 for row in table])
    return Metrics(ap, np.array([row.positives for row in table]), np.array([row.negatives for row in table]))


def group_members(table: Sequence[ClassRow], names: Iterable[str]) -> dict[str, list[int]]:
    """Columns of each group's classes."""
    return {name: [c for c, row in enumerate(table) if name in row.groups] for name in names}


def quintile_members(table: Sequence[ClassRow]) -> list[list[int]]:
    """Columns of each quintile's classes."""
    return [[c for c, row in enumerate(table) if row.quintile == number] for number in range(1, 6)]


def names_parts(table: Sequence[ClassRow]) -> bool:
    """Whether a table says which groups and quintiles its classes are in; the earliest ones did not."""
    return any(row.quintile is not None or row.groups for row in table)


def _check_table(table: Sequence[ClassRow], findings: Findings) -> None:
    seen: set[str] = set()
    for row in table:
        place = f"per_class.csv[{row.class_id}]"
        findings.require(row.class_id not in seen, f"{place}.class_id", row.class_id, "an id of one class")
        seen.add(row.class_id)
        has_both = row.positives > 0 and row.negatives > 0
        words = "a number: there are positives and negatives" if has_both else "empty, without positives or negatives"
        findings.require((row.ap is not None) == has_both, f"{place}.ap", row.ap, words)
    if names_parts(table):
        sizes = [len(members) for members in quintile_members(table)]
        expected = [len(part) for part in np.array_split(np.arange(len(table)), 5)]
        findings.equal("per_class.csv.quintile", sizes, expected)


def _check_counts(where: str, split: SplitMetrics, classes: Metrics, findings: Findings) -> None:
    num_positives, num_negatives = int(classes.num_positives.sum()), int(classes.num_negatives.sum())
    findings.equal(f"{where}.num_classes", split.num_classes, classes.ap.size)
    findings.equal(f"{where}.num_classes_scored", split.num_classes_scored, classes.num_classes_scored)
    findings.equal(f"{where}.num_cells", split.num_cells, num_positives + num_negatives)
    findings.equal(f"{where}.num_positives", split.num_positives, num_positives)
    most = int((classes.num_positives + classes.num_negatives).max())
    words = f"at least {most}, the known cells of one class"
    findings.require(split.num_images >= most, f"{where}.num_images", split.num_images, words)


def _parts(where: str, split: SplitMetrics, table: Sequence[ClassRow]) -> list[tuple[str, GroupMetrics, list[int]]]:
    """Path, figures and classes of each group and quintile, where the table names them."""
    if not names_parts(table):
        return []
    groups = group_members(table, split.groups)
    parts = [(f"{where}.groups.{name}", split.groups[name], members) for name, members in groups.items()]
    quintiles = zip(split.quintiles, quintile_members(table), strict=False)
    return parts + [(f"{where}.quintiles.{n}", group, members) for n, (group, members) in enumerate(quintiles)]


def _check_parts(where: str, split: SplitMetrics, table: Sequence[ClassRow], findings: Findings) -> None:
    """Groups and quintiles are those of the table, and a whole is the mean of parts that make it up."""
    findings.equal(f"{where}.quintiles", len(split.quintiles), 5)
    if names_parts(table):
        findings.equal(f"{where}.groups", sorted(split.groups), sorted({name for row in table for name in row.groups}))
    for place, group, members in _parts(where, split, table):
        scored = sum(table[c].positives > 0 and table[c].negatives > 0 for c in members)
        findings.equal(f"{place}.num_classes", group.num_classes, len(members))
        findings.equal(f"{place}.num_classes_scored", group.num_classes_scored, scored)
        words = "a number" if scored else "null: none of its classes can be scored"
        findings.require(
            (group.map_c.value is not None) == (scored > 0), f"{place}.map_c.value", group.map_c.value, words
        )
    _check_mean(f"{where}.map_c.value", split.map_c.value, split.quintiles, findings)
    if names_parts(table) and all(len(row.groups) == 1 for row in table):
        _check_mean(f"{where}.map_c.value", split.map_c.value, list(split.groups.values()), findings)


def _check_mean(where: str, whole: float | None, parts: Sequence[GroupMetrics], findings: Findings) -> None:
    scored = sum(part.num_classes_scored for part in parts)
    total = sum((part.map_c.value or 0.0) * part.num_classes_scored for part in parts)
    findings.close(where, whole, total / scored if scored else None, 2 * ROUNDED)


def _check_unpooled(where: str, split: SplitMetrics, findings: Findings) -> None:
    """Bounds of what only the cells determine."""
    loss = split.ranking_loss
    findings.require(loss is None or 0 <= loss <= 1, f"{where}.ranking_loss", loss, "between 0 and 1")
    complete = split.num_cells == split.num_images * split.num_classes
    depths = [str(k) for k in PRECISION_AT if k <= split.num_classes] if complete else None
    found = None if split.precision_at_k is None else list(split.precision_at_k)
    findings.equal(f"{where}.precision_at_k", found, depths)
    if complete and found == depths:
        hits = [int(k) * value for k, value in (split.precision_at_k or {}).items()]
        rising = all(low <= high + ROUNDED for low, high in pairwise(hits))
        findings.require(rising, f"{where}.precision_at_k", split.precision_at_k, "no fewer hits at a greater depth")
    for number, part in enumerate(split.quintiles):
        _check_without_interval(f"{where}.quintiles.{number}.map_c", part.map_c, findings)
    if where != "metrics.test":
        _check_without_interval(f"{where}.map_c", split.map_c, findings)
        _check_without_interval(f"{where}.map_o", split.map_o, findings)
        for name, part in split.groups.items():
            _check_without_interval(f"{where}.groups.{name}.map_c", part.map_c, findings)


def _check_without_interval(where: str, estimate: Estimate, findings: Findings) -> None:
    findings.equal(f"{where}.low", estimate.low, None)
    findings.equal(f"{where}.high", estimate.high, None)


def check_intervals(entry: Entry, classes: Metrics, findings: Findings) -> None:
    """The ends of each interval are those of the replicates, which are of this model as far as their mean tells."""
    test = entry.record.test
    estimates = {"map_c": test.map_c, "map_o": test.map_o}
    estimates |= {name: group.map_c for name, group in test.groups.items()}
    findings.equal("replicates.csv", sorted(entry.replicates), sorted(estimates))
    lengths = {len(values) for values in entry.replicates.values()}
    findings.equal("replicates.csv", lengths, {NUM_REPLICATES})
    members = group_members(entry.per_class, test.groups)
    for name, estimate in estimates.items():
        is_group = name in test.groups
        where = f"metrics.test.groups.{name}.map_c" if is_group else f"metrics.test.{name}"
        drawn = entry.replicates.get(name)
        if drawn is None or estimate.value is None:
            _check_without_interval(where, estimate, findings)
            continue
        low, high = _ends(drawn, estimate.value)
        findings.close(f"{where}.low", estimate.low, low, 3 * ROUNDED)
        findings.close(f"{where}.high", estimate.high, high, 3 * ROUNDED)
        if not is_group or names_parts(entry.per_class):
            index = members.get(name, list(range(classes.ap.size)))
            _check_plausible(name, drawn, test.num_images, classes, index, findings)


def _ends(drawn: np.ndarray, value: float) -> list[float | None]:
    return [None if math.isnan(end) else min(max(end, 0.0), 100.0) for end in interval(drawn, point=value)]


def _check_plausible(
    name: str, drawn: np.ndarray, num_images: int, classes: Metrics, index: Sequence[int], findings: Findings
) -> None:
    """The mean of the replicates lies where the classes' AP let it.

    A class counts in a replicate that drew a positive and a negative of it, and its AP there is on average not below
    the one on the test set, but up to twice as high: a positive that was drawn twice ranks beside itself.
    """
    known = drawn[~np.isnan(drawn)]
    chosen = np.asarray(index, np.intp)
    chosen = chosen[~np.isnan(classes.ap[chosen])]
    if not known.size or not chosen.size:
        return
    images = max(num_images, 1)
    counts = (classes.num_positives[chosen], classes.num_negatives[chosen])
    present = [1 - (1 - np.minimum(count / images, 1)) ** images for count in counts]
    weight = classes.num_positives[chosen] if name == "map_o" else present[0] * present[1]
    ap, spread = 100 * classes.ap[chosen], float(known.std())
    low = float(np.average(ap, weights=weight)) - 5 * spread - 1
    high = float(np.average(np.minimum(2.2 * ap + 5, 100), weights=weight)) + 5 * spread + 1
    mean = float(known.mean())
    words = f"between {low:.2f} and {high:.2f}, as per_class.csv has it"
    if not low <= mean <= high:
        findings.refuse(f"replicates.csv.{name}", f"{mean:.4f} on average", words)

"""Whether a record's figures are those of its own tables: means of the classes' AP, intervals of the replicates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from plbench.metrics import Metrics
from plbench.runs.findings import Findings, defined
from plbench.runs.record import GroupMetrics, Record, SplitMetrics
from plbench.runs.summary import image_interval
from plbench.runs.tables import ClassRow, as_metrics, group_members, quintile_members

ROUNDED = 1e-6
"""Percentage points: figures are kept with six decimals."""


def headline(record: Record) -> str:
    """Return the name of the evaluation that the tables are of: "test", or "validation" of a run that only selects."""
    return "test" if "test" in record.metrics else "validation"


def check_table_figures(record: Record, table: Sequence[ClassRow], findings: Findings) -> None:
    """Compare every figure that the per-class table determines.

    Args:
        record: of a run that is done.
        table: its per-class table.
        findings: takes what differs.
    """
    _check_table(table, findings)
    name = headline(record)
    if name not in record.metrics:
        findings.refuse("metrics", "without test or validation", "the figures of the run")
        return
    classes, where, split = as_metrics(table), f"metrics.{name}", record.metrics[name]
    findings.close(f"{where}.map_c.value", split.map_c.value, defined(classes.map_c), ROUNDED)
    findings.close(f"{where}.map_o.value", split.map_o.value, defined(classes.map_o), ROUNDED)
    for place, group, members in _parts(where, split, table):
        findings.close(f"{place}.map_c.value", group.map_c.value, defined(classes.group(members)[0]), ROUNDED)
    for other, figures in record.metrics.items():
        _check_counts(f"metrics.{other}", figures, classes, findings)
        _check_parts(f"metrics.{other}", figures, table, findings)
        _check_lowest(f"metrics.{other}", figures, table, classes.lowest, findings)


def check_intervals(record: Record, replicates: Mapping[str, np.ndarray], findings: Findings) -> None:
    """Compare the ends of each interval with those of the replicates.

    Args:
        record: of a run that is done.
        replicates: [R] by metric, percent.
        findings: takes what differs.
    """
    name = headline(record)
    split = record.metrics[name]
    findings.equal("replicates.csv", sorted(replicates), sorted(split.estimates))
    for metric, estimate in split.estimates.items():
        where = f"metrics.{name}.groups.{metric}.map_c" if metric in split.groups else f"metrics.{name}.{metric}"
        drawn = replicates.get(metric)
        if drawn is None or estimate.value is None:
            findings.equal(f"{where}.low", estimate.low, None)
            findings.equal(f"{where}.high", estimate.high, None)
            continue
        low, high = image_interval(estimate.value, drawn, estimate.lowest)
        findings.close(f"{where}.low", estimate.low, low, 3 * ROUNDED)
        findings.close(f"{where}.high", estimate.high, high, 3 * ROUNDED)


def _check_lowest(
    where: str, split: SplitMetrics, table: Sequence[ClassRow], lowest: Metrics, findings: Findings
) -> None:
    """Check what the worst ranking comes to follows from the counts; records before schema 5 do not say it."""
    stated = [(f"{where}.map_c", split.map_c, lowest.map_c), (f"{where}.map_o", split.map_o, lowest.map_o)]
    stated += [
        (f"{place}.map_c", group.map_c, lowest.group(members)[0])
        for place, group, members in _parts(where, split, table)
    ]
    for place, estimate, value in stated:
        if estimate.lowest is not None:
            findings.close(f"{place}.lowest", estimate.lowest, defined(value), ROUNDED)


def _check_table(table: Sequence[ClassRow], findings: Findings) -> None:
    seen: set[str] = set()
    for row in table:
        place = f"per_class.csv[{row.class_id}]"
        findings.require(row.class_id not in seen, f"{place}.class_id", row.class_id, "an id of one class")
        seen.add(row.class_id)
        has_both = row.positives > 0 and row.negatives > 0
        words = "a number: there are positives and negatives" if has_both else "empty, without positives or negatives"
        findings.require((row.ap is not None) == has_both, f"{place}.ap", row.ap, words)
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
    """Return path, figures and classes of each group and quintile."""
    groups = group_members(table, split.groups)
    parts = [(f"{where}.groups.{name}", split.groups[name], members) for name, members in groups.items()]
    quintiles = zip(split.quintiles, quintile_members(table), strict=False)
    return parts + [(f"{where}.quintiles.{n}", group, members) for n, (group, members) in enumerate(quintiles)]


def _check_parts(where: str, split: SplitMetrics, table: Sequence[ClassRow], findings: Findings) -> None:
    """Check that groups and quintiles are those of the table, and a whole is the mean of parts that make it up."""
    findings.equal(f"{where}.quintiles", len(split.quintiles), 5)
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
    if all(len(row.groups) == 1 for row in table):
        _check_mean(f"{where}.map_c.value", split.map_c.value, list(split.groups.values()), findings)


def _check_mean(where: str, whole: float | None, parts: Sequence[GroupMetrics], findings: Findings) -> None:
    scored = sum(part.num_classes_scored for part in parts)
    total = sum((part.map_c.value or 0.0) * part.num_classes_scored for part in parts)
    findings.close(where, whole, total / scored if scored else None, 2 * ROUNDED)

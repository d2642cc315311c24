"""Check a record's figures against its own tables: means of per-class AP, and intervals of replicates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from plbench.metrics import Metrics
from plbench.runs.findings import Findings, defined
from plbench.runs.record import Record, SplitMetrics
from plbench.runs.summary import HEADLINE, image_estimate, image_interval
from plbench.runs.tables import ClassRow, as_metrics, group_members, quintile_members

_LONGEST_TABLE = 1 << 22  # 32 MB; an untrusted table may claim 10**9 labels of a class

ROUNDED = 1e-6
"""Tolerance in percentage points: half for rounding a figure, half for rounding those that it is the mean of, both to
six decimals."""


def check_table_figures(record: Record, table: Sequence[ClassRow], findings: Findings) -> None:
    """Check every figure that the per-class table determines.

    Args:
        record: of a run that is done.
        table: its per-class table.
        findings: collects differences.
    """
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
    headline = headline_of(record)
    if headline not in record.metrics:
        findings.refuse("metrics", "without test or validation", "the figures of the run")
        return
    for name, split in record.metrics.items():
        _check_counts(f"metrics.{name}", split, table, findings)
        _check_means(f"metrics.{name}", split, table, findings, ranked=name == headline)


def check_intervals(record: Record, replicates: Mapping[str, np.ndarray], findings: Findings) -> None:
    """Check the ends of each interval against the replicates.

    Replicates of groups may not be included. Then both ends must be consistent with one variance.

    Args:
        record: of a run that is done.
        replicates: [R] by metric, percent.
        findings: collects differences.
    """
    name = headline_of(record)
    split = record.metrics[name]
    has_groups = not split.groups.keys().isdisjoint(replicates)
    findings.equal("replicates.csv", sorted(replicates), sorted(split.estimates if has_groups else HEADLINE))
    for metric, estimate in split.estimates.items():
        where = f"metrics.{name}.groups.{metric}.map_c" if metric in split.groups else f"metrics.{name}.{metric}"
        low, high, drawn = None, None, replicates.get(metric)
        if drawn is not None and estimate.value is not None:
            low, high = image_interval(estimate.value, drawn, estimate.lowest)
        elif metric in split.groups and not has_groups and estimate.value is not None:
            low, high = image_estimate(estimate).interval
        findings.close(f"{where}.low", estimate.low, low, 3 * ROUNDED)
        findings.close(f"{where}.high", estimate.high, high, 3 * ROUNDED)


def lowest_of(classes: Metrics) -> Metrics:
    """Return `Metrics.lowest` within 1e-9, without `scipy.special`, whose import takes a third of a listing.

    The difference of two digammas is a difference of harmonic numbers, taken from a table.
    """
    most = int((classes.num_positives + classes.num_negatives).max(initial=0))
    if most > _LONGEST_TABLE:
        return classes.lowest
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, most + 1))])
    positives, negatives = classes.num_positives, classes.num_negatives
    steps = harmonic[positives + negatives] - harmonic[negatives]
    with np.errstate(divide="ignore", invalid="ignore"):  # no positives: no AP, either
        ap = np.where(np.isnan(classes.ap), np.nan, (positives - negatives * steps) / positives)
    return replace(classes, ap=ap)


def headline_of(record: Record) -> str:
    """Return the part that the tables are of: "validation" if the run was not tested."""
    return "test" if "test" in record.metrics else "validation"


def _check_counts(where: str, split: SplitMetrics, table: Sequence[ClassRow], findings: Findings) -> None:
    """Check what does not depend on the ranking, and so not on the choice of weights."""
    num_positives = sum(row.positives for row in table)
    findings.equal(f"{where}.num_classes", split.num_classes, len(table))
    findings.equal(f"{where}.num_classes_scored", split.num_classes_scored, sum(row.ap is not None for row in table))
    findings.equal(f"{where}.num_cells", split.num_cells, num_positives + sum(row.negatives for row in table))
    findings.equal(f"{where}.num_positives", split.num_positives, num_positives)
    most = max(row.positives + row.negatives for row in table)
    words = f"at least {most}, the known cells of one class"
    findings.require(split.num_images >= most, f"{where}.num_images", split.num_images, words)
    findings.equal(f"{where}.quintiles", len(split.quintiles), 5)
    findings.equal(f"{where}.groups", sorted(split.groups), sorted({name for row in table for name in row.groups}))


def _check_means(
    where: str, split: SplitMetrics, table: Sequence[ClassRow], findings: Findings, *, ranked: bool
) -> None:
    """Check means over all classes, groups and quintiles.

    Args:
        ranked: whether the table's AP are of these weights; for others, only counts, bounds and means of parts can be
            checked.
    """
    classes = as_metrics(table)
    lowest = lowest_of(classes)
    means = [(f"{where}.map_c", split.map_c, classes.map_c, lowest.map_c)]
    means += [(f"{where}.map_o", split.map_o, classes.map_o, lowest.map_o)]
    groups = [
        (f"{where}.groups.{name}", split.groups[name], c) for name, c in group_members(table, split.groups).items()
    ]
    quintiles = zip(split.quintiles, quintile_members(table), strict=False)
    groups += [(f"{where}.quintiles.{number}", group, c) for number, (group, c) in enumerate(quintiles)]
    for place, group, members in groups:
        value, scored = classes.group(members)
        findings.equal(f"{place}.num_classes", group.num_classes, len(members))
        findings.equal(f"{place}.num_classes_scored", group.num_classes_scored, scored)
        words = "a number" if scored else "null: none of its classes can be scored"
        found = group.map_c.value
        findings.require((found is not None) == (scored > 0), f"{place}.map_c.value", found, words)
        means.append((f"{place}.map_c", group.map_c, value, lowest.group(members)[0]))
    for place, estimate, value, bound in means:
        if ranked:
            findings.close(f"{place}.value", estimate.value, defined(value), ROUNDED)
        if estimate.lowest is not None:  # missing in records before schema 5
            findings.close(f"{place}.lowest", estimate.lowest, defined(bound), ROUNDED)
    is_partition = all(len(row.groups) == 1 for row in table)
    for parts in (split.quintiles, list(split.groups.values())) if is_partition else (split.quintiles,):
        scored = sum(part.num_classes_scored for part in parts)
        total = sum((part.map_c.value or 0.0) * part.num_classes_scored for part in parts)
        findings.close(f"{where}.map_c.value", split.map_c.value, total / scored if scored else None, 2 * ROUNDED)

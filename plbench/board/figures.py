"""What a board asks of figures beyond the tables: bounds of what only the cells determine, and plausible replicates."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from plbench.board.entries import Entry
from plbench.board.thresholds import check_threshold_figures
from plbench.metrics import Metrics
from plbench.runs.agreement import ROUNDED, check_intervals, check_table_figures, check_without_interval
from plbench.runs.findings import Findings
from plbench.runs.record import SplitMetrics
from plbench.runs.summary import NUM_REPLICATES, PRECISION_AT
from plbench.runs.tables import as_metrics, group_members, names_parts


def check_figures(entry: Entry, findings: Findings) -> None:
    """Every figure that the tables determine, and bounds for those that only the cells do."""
    check_table_figures(entry.record, entry.per_class, findings)
    check_threshold_figures(entry, findings)
    for name, split in entry.record.metrics.items():
        _check_unpooled(f"metrics.{name}", split, findings)
    check_intervals(entry.record, entry.replicates, findings)
    _check_replicates(entry, findings)


def _check_replicates(entry: Entry, findings: Findings) -> None:
    """They are as many as plbench draws, and of this model as far as their mean tells."""
    lengths = {len(values) for values in entry.replicates.values()}
    findings.equal("replicates.csv", lengths, {NUM_REPLICATES})
    test, classes = entry.record.test, as_metrics(entry.per_class)
    members = group_members(entry.per_class, test.groups)
    estimates = {"map_c": test.map_c, "map_o": test.map_o}
    estimates |= {name: group.map_c for name, group in test.groups.items()}
    for name, estimate in estimates.items():
        drawn = entry.replicates.get(name)
        told = name not in test.groups or names_parts(entry.per_class)
        if drawn is not None and estimate.value is not None and told:
            index = members.get(name, list(range(classes.ap.size)))
            _check_plausible(name, drawn, test.num_images, classes, index, findings)


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
        check_without_interval(f"{where}.quintiles.{number}.map_c", part.map_c, findings)
    if where != "metrics.test":
        check_without_interval(f"{where}.map_c", split.map_c, findings)
        check_without_interval(f"{where}.map_o", split.map_o, findings)
        for name, part in split.groups.items():
            check_without_interval(f"{where}.groups.{name}.map_c", part.map_c, findings)


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

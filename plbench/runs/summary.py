"""All figures of one evaluation, computed from its known cells for the record."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plbench import metrics
from plbench.data.labels import PartialLabels
from plbench.errors import PlbenchError, did_you_mean
from plbench.files import write_text
from plbench.files.escaping import csv_cell, csv_text
from plbench.metrics import F1, Metrics, bootstrap, statistics
from plbench.metrics.bootstrap import Replicates
from plbench.metrics.cells import Cells
from plbench.progress import ProgressReport
from plbench.runs.findings import defined
from plbench.runs.record import Estimate, F1Figures, GroupMetrics, SplitMetrics, ThresholdReport
from plbench.runs.tables import TEXT_COLUMNS

NUM_REPLICATES = 1000

REPLICATE_DECIMALS = 2
"""Decimals of a replicate in percent: more would be noise, and boards store millions of them."""

FIGURE_DECIMALS = 6
"""Decimals of a figure in percent, in a record and its per-class table."""

PRECISION_AT = (1, 3, 5)

HEADLINE = ("map_c", "map_o")
"""Metrics compared on boards, whose replicates are published with a record."""


@dataclass(frozen=True, eq=False)
class Thresholds:
    """One threshold per class, [C] in [0, 1], and how they were chosen."""

    values: npt.NDArray[np.float64]
    report: ThresholdReport


def summarise(
    cells: Cells,
    labels: PartialLabels,
    groups: Mapping[str, Sequence[str]],
    train_annotations: np.ndarray,
    replicates: Replicates | None,
    thresholds: Thresholds | None = None,
) -> SplitMetrics:
    """Return every metric of `semantics.md` over one set of cells.

    Args:
        labels: of the evaluated part; provides class names.
        groups: class ids by group name.
        train_annotations: [C] number of known labels of each class in train, for the quintiles.
        replicates: from `draw_replicates`; None for no intervals.
        thresholds: for CF1 and OF1; None leaves them out.
    """
    by_class = metrics.group_by_class(cells)
    result = metrics.evaluate_cells(cells, by_class)
    complete = len(cells.scores) == cells.num_images * cells.num_classes
    by_image = metrics.rank_by_image(cells)
    areas = metrics.auroc(cells, by_class)
    areas = areas[~np.isnan(areas)]
    drawn = {} if replicates is None else {**headline(replicates), **replicates.groups}
    depths = [k for k in PRECISION_AT if k <= cells.num_classes]
    return SplitMetrics(
        map_c=_estimate(result.map_c, result.lowest.map_c, drawn.get("map_c")),
        map_o=_estimate(result.map_o, result.lowest.map_o, drawn.get("map_o")),
        micro_ap=_percent(metrics.micro_average_precision(cells)),
        f1=None if thresholds is None else _f1(metrics.f1_scores(cells, thresholds.values)),
        thresholds=None if thresholds is None else thresholds.report,
        f1_top3=None if cells.in_top is None else _f1(metrics.top_f1_scores(cells)),
        auroc=_percent(100 * float(areas.mean())) if areas.size else None,
        ece=_percent(metrics.calibration_error(cells)),
        ranking_loss=defined(metrics.ranking_loss(cells, by_image)),
        precision_at_k={str(k): metrics.precision_at_k(cells, k, by_image) for k in depths} if complete else None,
        num_images=cells.num_images,
        num_classes=cells.num_classes,
        num_classes_scored=result.num_classes_scored,
        num_cells=len(cells.scores),
        num_positives=int(result.num_positives.sum()),
        groups={name: _group(result, _columns(labels, ids), drawn.get(name)) for name, ids in groups.items()},
        quintiles=[_group(result, index, None) for index in metrics.count_quintiles(train_annotations)],
    )


def write_per_class(
    path: Path,
    cells: Cells,
    labels: PartialLabels,
    groups: Mapping[str, Sequence[str]],
    train_annotations: np.ndarray,
    thresholds: Thresholds | None = None,
) -> None:
    """Write one CSV row per class: id, name, AP in percent (empty if undefined), known positives and negatives.

    Further columns: AUROC; threshold, number of predicted known cells, precision and recall in percent (empty without
    thresholds); groups, separated by `;`, and quintile (1 for the classes with fewest annotations). All figures of a
    record can be recomputed from this file or, if pooled, from the cells.
    """
    by_class = metrics.group_by_class(cells)
    rows = metrics.per_class_table(metrics.evaluate_cells(cells, by_class), labels.class_ids, labels.class_names)
    areas = metrics.auroc(cells, by_class)
    at_threshold = [[None] * len(rows)] * 4
    if thresholds is not None:
        found = metrics.predictions_at(cells, thresholds.values)
        columns = (thresholds.values, found.predicted, 100 * found.precision, 100 * found.recall)
        at_threshold = [column.tolist() for column in columns]
    members = {name: set(ids) for name, ids in groups.items()}
    quintile = {c: n for n, part in enumerate(metrics.count_quintiles(train_annotations), 1) for c in part}
    for c, row in enumerate(rows):
        row["auroc"] = None if math.isnan(areas[c]) else 100 * float(areas[c])
        row["threshold"], row["predicted"], row["precision"], row["recall"] = (column[c] for column in at_threshold)
        row.update({name: _percent(row[name]) for name in ("ap", "auroc", "precision", "recall")})
        row["groups"] = ";".join(name for name, ids in members.items() if row["class_id"] in ids)
        row["quintile"] = quintile[c]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, **{name: csv_cell(row[name]) for name in TEXT_COLUMNS}} for row in rows)
    write_text(path, text.getvalue())


def _f1(scores: F1) -> F1Figures:
    return F1Figures(**{name: _percent(value) for name, value in vars(scores).items()})


def draw_replicates(
    cells: Cells, labels: PartialLabels, groups: Mapping[str, Sequence[str]], seed: int, report: ProgressReport
) -> Replicates:
    """Return bootstrap replicates of mAP(C), mAP(O) and the groups' mAP(C) over test images.

    Args:
        seed: of the protocol, so that any two runs of one protocol sample the same images and are paired.
    """
    by_index = {name: _columns(labels, ids) for name, ids in groups.items()}
    return bootstrap.replicates(cells, NUM_REPLICATES, seed=seed, groups=by_index, progress=report)


def read_per_class(path: Path, names: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a per-class table for classes named by id or display name, such as "dog".

    In LVIS, persons are called `baby`: Person-AP is the mAP(C) of the group `person`.

    Raises:
        PlbenchError: if there is no such class.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = [{**row, **{name: csv_text(row[name]) for name in TEXT_COLUMNS}} for row in csv.DictReader(file)]
    chosen = []
    for name in names:
        found = [row for row in rows if name in (row["class_id"], row["class_name"])]
        if not found:
            raise PlbenchError(f"{path} has no class {name!r}; {did_you_mean(name, {r['class_name'] for r in rows})}")
        chosen += found
    return chosen


def write_replicates(path: Path, columns: Mapping[str, npt.NDArray[np.float64]]) -> None:
    """Write one CSV row per bootstrap replicate and one column per metric: percent, rounded."""
    rows = zip(*map(_written, columns.values()), strict=True)
    lines = [",".join(map(csv_cell, columns)), *map(",".join, rows)]
    write_text(path, "\n".join(lines) + "\n")


def _written(drawn: np.ndarray) -> list[str]:
    return [f"{value:.{REPLICATE_DECIMALS}f}" for value in drawn]


def headline(replicates: Replicates) -> dict[str, npt.NDArray[np.float64]]:
    """Return the replicates published with a record, by name."""
    return {name: getattr(replicates, name) for name in HEADLINE}


def _columns(labels: PartialLabels, class_ids: Sequence[str]) -> list[int]:
    column = {class_id: index for index, class_id in enumerate(labels.class_ids)}
    return [column[class_id] for class_id in class_ids]


def _group(result: Metrics, index: Sequence[int], drawn: np.ndarray | None) -> GroupMetrics:
    value, scored = result.group(index)
    lowest, _ = result.lowest.group(index)
    return GroupMetrics(map_c=_estimate(value, lowest, drawn), num_classes_scored=scored, num_classes=len(index))


def _estimate(value: float, lowest: float, drawn: np.ndarray | None) -> Estimate:
    rounded, bound = _percent(value), _percent(lowest)
    if rounded is None or drawn is None:
        return Estimate(value=rounded, lowest=None if rounded is None else bound)
    # from rounded values: near a bound, log odds amplify rounding beyond the tolerance of later checks
    low, high = image_interval(rounded, np.array(_written(drawn), np.float64), bound)
    return Estimate(value=rounded, low=_percent(low), high=_percent(high), lowest=bound)


def image_interval(value: float, replicates: np.ndarray, lowest: float | None) -> tuple[float, float]:
    """Return the 95 % interval of one run's figure over test images, percent, within the metric's range.

    Args:
        value: on the whole test set.
        replicates: [R].
        lowest: value of the worst ranking; None in old records.
    """
    sample = statistics.Sample(np.array([value]), replicates, bounds=(lowest or 0.0, 100.0))
    return sample.estimate.interval


def image_estimate(found: Estimate) -> statistics.Estimate:
    """Return one run's figure with the variance over test images implied by its interval; NaN without one.

    Args:
        found: rounded, from a record.
    """
    value, low, high = (math.nan if number is None else number for number in (found.value, found.low, found.high))
    return statistics.Estimate.of_interval(value, (low, high), (found.lowest or 0.0, 100.0))


def _percent(value: float | None) -> float | None:
    """Return a rounded figure, clipped to [0, 100]; None for NaN."""
    return None if value is None or math.isnan(value) else min(max(round(value, FIGURE_DECIMALS), 0.0), 100.0)

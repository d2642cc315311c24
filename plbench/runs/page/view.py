"""Results of a run by section: figures, tables and charts as plain values for the page's template."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plbench.metrics import lowest_average_precision, micro_average_precision
from plbench.metrics.bootstrap import class_variances
from plbench.metrics.cells import Cells
from plbench.metrics.curves import precision_recall, reliability
from plbench.metrics.statistics import Estimate
from plbench.progress import ProgressReport, counted
from plbench.randomness import derive_seed
from plbench.runs import summary
from plbench.runs.page import charts
from plbench.runs.page.charts import Chart, Floats
from plbench.runs.page.images import Thumbnails, hardest_classes, most_wrong
from plbench.runs.page.reading import RunFiles, TrainLabels
from plbench.runs.record import F1Figures, Record

MAX_ROWS = 400
"""Maximum number of classes in the table; if there are more, the best and the worst."""

MAX_NAMED = 60
"""Maximum number of named classes in the chart; if there are more, it shows ranks."""

_MANY_CELLS = 10**6

NUM_HARDEST = 6
_OF_HARDEST = 3  # images per hardest class and kind of mistake
_WORST = 12  # images of all classes per kind of mistake
_WORST_OF_CLASS = 2

Row = tuple[str, str]


@dataclass(frozen=True)
class Intervals:
    """95 % intervals of each class's AP over the scored images, [C] in percent; NaN if undefined."""

    low: Floats
    high: Floats


def class_intervals(files: RunFiles, report: ProgressReport) -> Intervals:
    """Return intervals computed like the record's, on the same resamples.

    For test parts with millions of known labels, only a fifth of the resamples is used, which takes seconds rather than
    minutes.
    """
    protocol, cells = files.spec.protocol, files.cells
    low, high = np.full(len(files.classes), np.nan), np.full(len(files.classes), np.nan)
    if cells is None or not files.classes:
        return Intervals(low, high)
    split = protocol.train_split if files.spec.only_selects else protocol.test_split
    seed = derive_seed(0, "bootstrap", protocol.sha256(), split)
    number = summary.NUM_REPLICATES if len(cells.scores) <= _MANY_CELLS else summary.NUM_REPLICATES // 5
    variances = class_variances(cells, number, seed=seed, progress=report)
    counts = np.array([(row.positives, row.negatives) for row in files.classes]).T
    lowest = 100 * lowest_average_precision(*counts)
    for index, row in enumerate(files.classes):
        if row.ap is not None:
            bounds = (min(float(lowest[index]), row.ap), 100.0)
            low[index], high[index] = Estimate(row.ap, float(variances[index]), 0.0, 0.0, bounds).interval
    return Intervals(low, high)


def headline(record: Record, part: str) -> list[dict[str, Any]]:
    """Return the rows of the headline table: metric, value, interval, classes."""
    metrics = record.metrics[part]
    own = [("mAP(C)", "mean over classes", metrics.map_c), ("mAP(O)", "by known positives", metrics.map_o)]
    rows = [(name, note, found, metrics.num_classes_scored, metrics.num_classes) for name, note, found in own]
    for name, group in metrics.groups.items():
        rows.append((name, "mAP(C) of the group", group.map_c, group.num_classes_scored, group.num_classes))
    return [
        {"name": name, "note": note, "value": percent(found.value), "interval": interval(found.low, found.high)}
        | {"classes": f"{scored:,} of {number:,}"}
        for name, note, found, scored, number in rows
    ]


def other_figures(record: Record, part: str) -> Iterator[Row]:
    """Yield further figures by name."""
    metrics = record.metrics[part]
    if metrics.quintiles:
        yield (
            "mAP(C) by number of train labels",
            ", ".join(percent(group.map_c.value) for group in metrics.quintiles)
            + ": fifths of the classes, fewest labels first",
        )
    yield "AP of all classes pooled", percent(metrics.micro_ap)
    if metrics.auroc is not None:
        yield "AUROC, mean over classes", percent(metrics.auroc)
    if metrics.f1 is not None and metrics.thresholds is not None:
        seen = "was not trained on" if metrics.thresholds.held_out else "was trained on"
        oracle = "complete labels of " if metrics.thresholds.labels == "complete" else ""
        yield "F1 at chosen thresholds", f"{_f1(metrics.f1)}; chosen on {oracle}the validation part, which it {seen}"
    if metrics.f1_top3 is not None:
        yield "F1 of the top 3 of each image", _f1(metrics.f1_top3)
    if metrics.ranking_loss is not None:
        yield "Ranking loss", f"{metrics.ranking_loss:.4f}"
    if metrics.precision_at_k:
        yield "Precision at k", ", ".join(f"{percent(value)} at {k}" for k, value in metrics.precision_at_k.items())
    if (raw := record.metrics.get(f"{part}_raw")) is not None:
        values = f"mAP(C) {percent(raw.map_c.value)}, mAP(O) {percent(raw.map_o.value)}"
        yield "Last weights alone", f"{values}; the other figures are of weights averaged over the end of training"


def _f1(figures: F1Figures) -> str:
    return f"CF1 {percent(figures.cf1)}, OF1 {percent(figures.of1)}"


def training_charts(files: RunFiles) -> list[tuple[str, Chart]]:
    """Return captions and charts of loss, learning rate, and the selection metric, if an epoch was selected."""
    found = []
    epochs = [row["epoch"] for row in files.log]
    for name, title in (("loss", "Loss"), ("lr", "Learning rate")):
        values = [(epoch, row[name]) for epoch, row in zip(epochs, files.log, strict=True) if math.isfinite(row[name])]
        if values:
            label = f"{title} by epoch, from {values[0][1]:.4g} to {values[-1][1]:.4g}"
            caption = "Training loss, mean over each epoch" if name == "loss" else "Learning rate at each epoch's end"
            found.append((caption, charts.curve_chart(label, values, "epoch")))
    selection = files.selection
    curve = [] if selection is None else selection.curve
    for weights, words in (("ema", "averaged weights"), ("raw", "last weights")):
        points = [(point["epoch"], point[weights]) for point in curve if point.get(weights) is not None]
        if points:
            assert selection is not None
            part = "test" if selection.rule == "best-on-test" else "the validation part"
            caption = f"mAP(C) on {part} by {words}, percent"
            if selection.weights == weights:
                caption += f"; epoch {selection.epoch} was selected"
            label = f"{caption}: from {points[0][1]:.2f} to {points[-1][1]:.2f}"
            found.append((caption, charts.curve_chart(label, points, "epoch")))
    return found


def class_table(files: RunFiles, intervals: Intervals, train: TrainLabels | None) -> list[dict[str, Any]]:
    """Return rows of classes in descending order of AP: all, or the best and the worst."""
    order = _by_ap(files)
    if len(order) > MAX_ROWS:
        order = [*order[: MAX_ROWS // 2], *order[-(MAX_ROWS // 2) :]]
    rows = []
    for index in order:
        row = files.classes[index]
        known: tuple[int | None, ...] = (None,) * 3
        if train is not None:
            known = tuple(int(counts[index]) for counts in (train.positives, train.negatives, train.unknown))
        rows.append(
            {
                "name": row.class_name or row.class_id,
                "id": row.class_id if row.class_id != row.class_name else "",
                "ap": row.ap,
                "interval": interval(intervals.low[index], intervals.high[index]),
                "test": (row.positives, row.negatives),
                "train": known,
                "percents": (row.auroc, row.precision, row.recall),
                "threshold": row.threshold,
                "groups": ", ".join(row.groups),
            }
        )
    return rows


def _by_ap(files: RunFiles) -> list[int]:
    """Return class indices in descending order of AP; unscored classes are last, or left out if there are too many."""
    defined = sorted((i for i, row in enumerate(files.classes) if row.ap is not None), key=lambda i: -_ap(files, i))
    unscored = [i for i, row in enumerate(files.classes) if row.ap is None]
    return defined if len(files.classes) > MAX_ROWS else [*defined, *unscored]


def _ap(files: RunFiles, index: int) -> float:
    value = files.classes[index].ap
    assert value is not None
    return value


def class_chart(files: RunFiles, intervals: Intervals) -> Chart | None:
    """Return a chart of all scored classes in descending order of AP; None if there are none."""
    order = [index for index in _by_ap(files) if files.classes[index].ap is not None]
    if not order:
        return None
    values = np.array([_ap(files, index) for index in order])
    low, high = intervals.low[order], intervals.high[order]
    names = [files.classes[index].class_name or files.classes[index].class_id for index in order]
    ends = f"from {values[0]:.1f} for {names[0]} to {values[-1]:.1f} for {names[-1]}"
    label = f"Average precision of {counted(len(order), 'class', 'classes')}, {ends}; the table has the figures"
    if len(order) <= MAX_NAMED:
        return charts.named_chart(label, names, values, low, high, "AP, %")
    return charts.ranked_chart(label, values, low, high, ("classes, best first", "AP, %"))


def precision_recall_chart(files: RunFiles) -> Chart | None:
    """Return curves of all cells pooled, and of the worst, median and best class; None without positives."""
    cells, order = files.cells, [index for index in _by_ap(files) if files.classes[index].ap is not None]
    if cells is None or not order:
        return None
    chosen = {order[-1]: "worst", order[len(order) // 2]: "median", order[0]: "best"}
    marks, legend = [], []
    for style, (index, what) in enumerate([(None, ""), *chosen.items()]):
        own = slice(None) if index is None else cells.class_index == index
        recall, precision = precision_recall(cells.scores[own], cells.positives[own])
        kept = np.unique([0, *np.searchsorted(recall, np.linspace(0, 1, 201))])  # up to where all positives are found
        marks.append(charts.UNIT.line(recall[kept], precision[kept], style))
        if index is None:
            legend.append((style, f"all classes pooled, AP {percent(micro_average_precision(cells))}"))
        else:
            row = files.classes[index]
            legend.append((style, f"{what}: {row.class_name or row.class_id}, AP {percent(row.ap)}"))
    label = "Precision against recall; " + "; ".join(text for _, text in legend)
    return charts.unit_chart(label, ("recall", "precision"), marks, legend)


def calibration(cells: Cells) -> tuple[Chart, list[tuple[str, str, str]]] | None:
    """Return the share of positives by score, as a chart and as rows of a table; None if scores are not in 0..1."""
    found = reliability(cells.scores, cells.positives)
    if found is None:
        return None
    rows = [
        (f"{score:.3f}", f"{positive:.3f}", f"{count:,}")
        for score, positive, count in zip(found.score, found.positive, found.counts, strict=True)
    ]
    radius = 2.5 + 4.5 * np.sqrt(found.counts / found.counts.max())
    texts = [f"mean score {score}, share of positives {positive}, {count} labels" for score, positive, count in rows]
    marks = [
        charts.UNIT.line([0, 1], [0, 1], 4),
        charts.UNIT.line(found.score, found.positive),
        charts.UNIT.points(found.score, found.positive, texts, radius=radius),
    ]
    label = "Share of known labels that are positive, by mean score; the table below has the figures"
    return charts.unit_chart(label, ("mean score", "share of positives"), marks, []), rows


def hardest(files: RunFiles, thumbnails: Thumbnails | None) -> list[dict[str, Any]]:
    """Return the classes with the lowest AP, with badly ranked images if available."""
    cells, found = files.cells, []
    for index in hardest_classes([row.ap for row in files.classes], NUM_HARDEST):
        row = files.classes[index]
        mistakes: list[tuple[str, list[dict[str, Any]]]] = []
        if cells is not None and thumbnails is not None:
            for title, is_positive in (("Absent, scored highest", False), ("Present, scored lowest", True)):
                among = np.flatnonzero((cells.class_index == index) & (cells.positives == is_positive))
                chosen = most_wrong(cells, among, _OF_HARDEST)
                mistakes.append((title, _pictures(files, chosen, thumbnails)))
        entry = {"name": row.class_name or row.class_id, "ap": percent(row.ap), "mistakes": mistakes}
        found.append({**entry, "positives": row.positives, "negatives": row.negatives})
    return found


def worst_images(files: RunFiles, thumbnails: Thumbnails) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the worst-ranked images over all classes: for each kind of mistake, with a title."""
    cells = files.cells
    assert cells is not None
    found = []
    for title, is_positive in (
        ("Verified absent, with the highest scores", False),
        ("Verified present, with the lowest scores", True),
    ):
        among = np.flatnonzero(cells.positives == is_positive)
        chosen = most_wrong(cells, among, _WORST, _WORST_OF_CLASS)
        found.append((title, _pictures(files, chosen, thumbnails)))
    return found


def _pictures(files: RunFiles, chosen: Sequence[int], thumbnails: Thumbnails) -> list[dict[str, Any]]:
    assert files.cells is not None
    pictures = []
    for cell in chosen:
        image, row = int(files.cells.rows[cell]), files.classes[int(files.cells.class_index[cell])]
        shown = thumbnails.address(image)
        if shown is not None:
            source, width, height = shown
            entry = {"source": source, "width": width, "height": height, "name": thumbnails.name(image)}
            score = f"{float(files.cells.scores[cell]):.3f}"
            pictures.append({**entry, "class": row.class_name or row.class_id, "score": score})
    return pictures


def percent(value: float | None) -> str:
    """Format with two decimals; a dash for None."""
    return "–" if value is None or math.isnan(value) else f"{value:.2f}"


def interval(low: float | None, high: float | None) -> str:
    """Format both ends; a dash if there are none."""
    return "–" if low is None or math.isnan(low) else f"{percent(low)} to {percent(high)}"

"""Whether CF1, OF1 and AUROC of a record are those of its per-class table."""

from __future__ import annotations

import numpy as np

from plbench.board.entries import Entry
from plbench.metrics import Predictions
from plbench.runs.agreement import ROUNDED
from plbench.runs.findings import Findings, defined
from plbench.runs.record import F1Figures, SplitMetrics
from plbench.runs.summary import f1_figures, mean_auroc
from plbench.runs.tables import ClassRow

_EXACT = 1e-9  # percentage points, of a division done twice


def is_before_schema_5(split: SplitMetrics) -> bool:
    """Return whether an evaluation has none of the figures that came with schema 5, all of which no newer one lacks."""
    return split.auroc is None and split.ece is None and split.f1 is None and split.f1_top3 is None


def check_threshold_figures(entry: Entry, findings: Findings) -> None:
    """Check AUROC and the F1 figures against the table, and what is said of the thresholds against the spec."""
    test, table = entry.record.test, entry.per_class
    for name, split in entry.record.metrics.items():
        for kind in ("f1", "f1_top3"):
            _check_means(f"metrics.{name}.{kind}", getattr(split, kind), findings)
        if name != "test" and split.f1 is not None:
            findings.refuse(f"metrics.{name}.f1", "figures", "null: thresholds are chosen for the headline alone")
    if is_before_schema_5(test):
        findings.equal("metrics.test.thresholds", test.thresholds, None)
        return
    areas = np.array([np.nan if row.auroc is None else row.auroc / 100 for row in table])
    for row in table:
        words = "a number where there is an AP, and only there"
        findings.require(
            (row.auroc is None) == (row.ap is None), f"per_class.csv[{row.class_id}].auroc", row.auroc, words
        )
    findings.close("metrics.test.auroc", test.auroc, defined(mean_auroc(areas)), ROUNDED)
    findings.require(test.f1_top3 is not None, "metrics.test.f1_top3", None, "figures")
    findings.equal("metrics.test.f1", test.f1 is None, test.thresholds is None)
    if test.thresholds is not None and test.f1 is not None:
        _check_report(entry, findings)
        counts = _predictions(table, findings)
        if counts is not None:
            expected = f1_figures(counts.f1())
            for name, value in test.f1:
                findings.close(f"metrics.test.f1.{name}", value, getattr(expected, name), ROUNDED)


def _check_report(entry: Entry, findings: Findings) -> None:
    report, spec, where = entry.record.test.thresholds, entry.record.spec, "metrics.test.thresholds"
    assert report is not None
    findings.equal(f"{where}.labels", report.labels, spec.protocol.validation_labels)
    findings.equal(f"{where}.held_out", report.held_out, spec.selection == "validation")
    pooled = sum(row.threshold == report.pooled for row in entry.per_class)
    words = f"at most {pooled}, the classes that have the threshold {report.pooled:g}"
    findings.require(report.num_pooled <= pooled, f"{where}.num_pooled", report.num_pooled, words)


def _predictions(table: tuple[ClassRow, ...], findings: Findings) -> Predictions | None:
    """Counts behind the table's precision and recall; None, and a problem, where they belong to no whole numbers."""
    hits = []
    for row in table:
        if row.threshold is None or row.predicted is None or row.precision is None or row.recall is None:
            findings.refuse(f"per_class.csv[{row.class_id}].threshold", "empty", "a threshold and what it predicts")
            return None
        hits.append(round(row.recall * row.positives / 100))
        place, known = f"per_class.csv[{row.class_id}]", row.positives + row.negatives
        possible = hits[-1] <= row.predicted <= row.negatives + hits[-1]
        findings.require(possible, f"{place}.predicted", row.predicted, f"at most {known} cells, hits among them")
        findings.close(f"{place}.recall", row.recall, 100 * hits[-1] / max(row.positives, 1), _EXACT)
        findings.close(f"{place}.precision", row.precision, 100 * hits[-1] / max(row.predicted, 1), _EXACT)
    columns = ([row.predicted or 0 for row in table], hits, [r.positives for r in table], [r.negatives for r in table])
    return Predictions(*(np.array(column) for column in columns))


def _check_means(where: str, figures: F1Figures | None, findings: Findings) -> None:
    """CF1 and OF1 are the harmonic means of what is beside them."""
    if figures is None:
        return
    for name, precision, recall in (
        ("cf1", figures.class_precision, figures.class_recall),
        ("of1", figures.overall_precision, figures.overall_recall),
    ):
        if precision is None or recall is None:
            findings.equal(f"{where}.{name}", getattr(figures, name), None)
            continue
        mean = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        findings.close(f"{where}.{name}", getattr(figures, name), mean, 5 * ROUNDED)

"""Recompute a record's figures, tables and replicates from its cells, if available."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from plbench.board.entries import Entry
from plbench.board.evidence import Place, check_scores, digest_of_labels, read_published
from plbench.data.labels import PartialLabels
from plbench.errors import PlbenchError
from plbench.metrics import auroc, evaluate_cells, predictions_at
from plbench.metrics.bootstrap import MAX_IMAGES
from plbench.metrics.cells import Cells
from plbench.runs import summary
from plbench.runs.agreement import ROUNDED
from plbench.runs.findings import Findings, defined
from plbench.runs.store import CELLS
from plbench.runs.tables import as_metrics, group_members

_BYTES_PER_CELL = 32  # image, class, score, sign; larger files contain something else
_ENDS = 5e-4  # tolerance of interval ends: rounding may move one replicate of a thousand across


def check_cells(entry: Entry, place: Place, findings: Findings) -> str | None:
    """Reject cells that do not belong to the record, and figures that do not follow from them.

    Args:
        entry: the record. place: folder of cells. findings: receives problems.

    Returns:
        The hash of the cells' labels; None if there are no usable cells.
    """
    path = place.find(entry.key)
    if path is None:
        return None
    cells = _of_run(entry, path, findings) if path.name == CELLS else _published(entry, path, place, findings)
    if cells is None:
        return None
    check_scores(cells, findings)
    _compare_table(entry, cells, findings)
    _compare_figures(entry, cells, findings)
    return digest_of_labels(cells)


def _published(entry: Entry, path: Path, place: Place, findings: Findings) -> Cells | None:
    try:
        image_ids = place.image_ids(path, entry.record.spec.protocol.test_split)
    except PlbenchError as error:
        findings.refuse(path.name, str(error), "published cells with the list of images")
        return None
    cells = read_published(entry, path, image_ids, findings)
    return None if cells is None else _of_size(entry, cells, findings)


def _of_run(entry: Entry, path: Path, findings: Findings) -> Cells | None:
    """Return the cells from the run's file, if it has the hash stated in the record."""
    stated = entry.record.files.get(CELLS)
    if stated is None:
        findings.refuse(f"files.{CELLS}", "missing", "the hash of the cells")
        return None
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    findings.equal(f"files.{CELLS}.num_bytes", stated.num_bytes, path.stat().st_size)
    if sha256 != stated.sha256:
        findings.refuse(f"files.{CELLS}.sha256", stated.sha256, f"{sha256}, of {path.name}")
        return None
    return _load(entry, path, findings)


def _load(entry: Entry, path: Path, findings: Findings) -> Cells | None:
    """Return cells whose classes, images and bytes do not exceed those of the record."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > _BYTES_PER_CELL * entry.record.test.num_cells + 2**16:
            findings.refuse(CELLS, f"{size:,} bytes unpacked", f"those of {entry.record.test.num_cells:,} cells")
            return None
        cells = Cells.load(path)
    except (PlbenchError, OSError, MemoryError, zipfile.BadZipFile) as error:
        findings.refuse(CELLS, f"no file of cells ({type(error).__name__})", "the cells that the run wrote")
        return None
    return _of_size(entry, cells, findings)


def _of_size(entry: Entry, cells: Cells, findings: Findings) -> Cells | None:
    images, classes, shape = entry.record.test.num_images, len(entry.per_class), (cells.num_images, cells.num_classes)
    if shape != (images, classes) or images > MAX_IMAGES:
        findings.refuse("metrics.test.num_images", f"{images} with {classes} classes", f"those of cells {shape}")
        return None
    return cells


def _compare_table(entry: Entry, cells: Cells, findings: Findings) -> None:
    found, expected = as_metrics(entry.per_class), evaluate_cells(cells)
    areas, thresholds = auroc(cells), _thresholds(entry)
    at_thresholds = predictions_at(cells, 0.0 if thresholds is None else thresholds.values)
    for c, row in enumerate(entry.per_class):
        place = f"per_class.csv[{row.class_id}]"
        findings.equal(f"{place}.positives", row.positives, int(expected.num_positives[c]))
        findings.equal(f"{place}.negatives", row.negatives, int(expected.num_negatives[c]))
        findings.close(f"{place}.ap", defined(100 * found.ap[c]), defined(100 * float(expected.ap[c])), ROUNDED)
        if row.auroc is not None:
            findings.close(f"{place}.auroc", row.auroc, defined(100 * float(areas[c])), ROUNDED)
        if thresholds is not None:
            findings.equal(f"{place}.predicted", row.predicted, int(at_thresholds.predicted[c]))
            findings.close(f"{place}.recall", row.recall, 100 * float(at_thresholds.recall[c]), ROUNDED)


def _compare_figures(entry: Entry, cells: Cells, findings: Findings) -> None:
    """Compare figures, intervals and replicates."""
    from plbench.randomness import derive_seed  # imports torch

    table, protocol = entry.per_class, entry.record.spec.protocol
    labels = PartialLabels.from_cells([], [], [], num_rows=1, class_ids=[row.class_id for row in table])
    groups = group_members(table, entry.record.test.groups)
    by_id = {name: [table[c].class_id for c in members] for name, members in groups.items()}
    # approximate order by annotations in train, from quintiles
    order = np.array([row.quintile or 0 for row in table])
    seed = derive_seed(0, "bootstrap", protocol.sha256(), protocol.test_split)
    replicates = summary.draw_replicates(cells, labels, by_id, seed, lambda done, total: None)
    again = summary.summarise(cells, labels, by_id, order, replicates, _thresholds(entry)).model_dump()
    record = entry.record.test.model_dump()
    since_schema_5 = ("auroc", "ece", "f1", "f1_top3")
    if all(record[name] is None for name in since_schema_5):
        again.update(dict.fromkeys(since_schema_5))
    _compare("metrics.test", record, again, findings)
    reach = 0.5 * 10.0**-summary.REPLICATE_DECIMALS + ROUNDED
    # replicates of groups usually stay with the run; their intervals were compared above
    kept = {name: drawn for name, drawn in replicates.groups.items() if name in entry.replicates}
    for name, expected in (summary.headline(replicates) | kept).items():
        where, found = f"replicates.csv.{name}", entry.replicates.get(name)
        if found is None or found.shape != expected.shape:
            findings.refuse(where, "missing, or of another length", f"{len(expected)} replicates")
            continue
        differs = np.flatnonzero(~np.isclose(found, expected, rtol=0, atol=reach, equal_nan=True))
        if differs.size:
            line = int(differs[0])
            words = f"{expected[line]:.6f}, as the cells give it ({differs.size} such lines)"
            findings.refuse(where, f"{found[line]:.6f} in line {line + 2}", words)


def _thresholds(entry: Entry) -> summary.Thresholds | None:
    """Return the thresholds in the table; None if none were chosen."""
    report = entry.record.test.thresholds
    values = [row.threshold for row in entry.per_class]
    if report is None or None in values:
        return None
    return summary.Thresholds(np.array(values, np.float64), report)


def _compare(where: str, found: Any, expected: Any, findings: Findings) -> None:
    if isinstance(found, dict) and isinstance(expected, dict) and found.keys() == expected.keys():
        for name in found:
            _compare(f"{where}.{name}", found[name], expected[name], findings)
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for number, value in enumerate(found):
            _compare(f"{where}.{number}", value, expected[number], findings)
    elif isinstance(found, float) and isinstance(expected, float):
        is_end = where.endswith((".low", ".high"))
        findings.close(where, found, expected, _ENDS if is_end else ROUNDED)
    else:
        findings.equal(where, found, expected)

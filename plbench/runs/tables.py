"""The tables beside a record, read with limits, since anybody may have written them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from plbench.errors import PlbenchError
from plbench.metrics import Metrics

PER_CLASS, REPLICATES = "per_class.csv", "replicates.csv"

MAX_CLASSES = 20_000
MAX_REPLICATES = 20_000


class EntryError(PlbenchError):
    """A file of a record that cannot be read: `field` says which, and what in it."""

    def __init__(self, field: str, found: str) -> None:
        """Keep the field apart from what was found there."""
        super().__init__(f"{field}: {found}")
        self.field, self.found = field, found


@dataclass(frozen=True)
class ClassRow:
    """One class of `per_class.csv`: AP in percent, None where undefined; known positives and negatives in test.

    Attributes:
        auroc, precision, recall: percent. predicted: known cells that reach `threshold`. None in tables before schema
            5 of records, and where they are undefined or no thresholds were chosen.
    """

    class_id: str
    class_name: str
    ap: float | None
    positives: int
    negatives: int
    groups: tuple[str, ...]
    quintile: int | None
    auroc: float | None = None
    threshold: float | None = None
    predicted: int | None = None
    precision: float | None = None
    recall: float | None = None


def parse_per_class(content: bytes) -> tuple[ClassRow, ...]:
    """Parse a per-class table.

    Raises:
        EntryError: if it is no such table, with the line.
    """
    rows = []
    try:
        for number, row in enumerate(csv.DictReader(io.StringIO(_text(content, PER_CLASS)), strict=True), 2):
            if number > MAX_CLASSES + 1:
                raise EntryError(PER_CLASS, f"has more than {MAX_CLASSES:,} classes")
            rows.append(_class_row(row, number))
    except csv.Error as error:
        raise EntryError(PER_CLASS, f"is not CSV: {error}") from error
    if not rows:
        raise EntryError(PER_CLASS, "has no classes")
    return tuple(rows)


def parse_replicates(content: bytes) -> dict[str, np.ndarray]:
    """Parse bootstrap replicates.

    Returns:
        [R] by metric, percent; NaN where a replicate has no class to score.

    Raises:
        EntryError: if it is no such table, with the line.
    """
    lines = _text(content, REPLICATES).splitlines()
    names = lines[0].split(",") if lines else []
    if len(lines) - 1 > MAX_REPLICATES or not names or len(set(names)) != len(names):
        raise EntryError(REPLICATES, f"has {len(lines) - 1:,} rows of {len(names)} columns")
    table = np.empty((len(lines) - 1, len(names)))
    for number, line in enumerate(lines[1:]):
        try:
            values = [float(text) for text in line.split(",")]
            if len(values) != len(names):
                raise ValueError(f"it has {len(values)} values for {len(names)} columns")
            table[number] = values
        except ValueError as error:
            raise EntryError(f"{REPLICATES}, line {number + 2}", str(error)) from error
    wrong = ~(np.isnan(table) | ((table >= 0) & (table <= 100))).all(axis=1)
    if wrong.any():
        raise EntryError(f"{REPLICATES}, line {int(wrong.argmax()) + 2}", "a value is not between 0 and 100")
    return dict(zip(names, table.T.copy(), strict=True))


def as_metrics(table: Sequence[ClassRow]) -> Metrics:
    """Return a per-class table as what its means are taken from."""
    ap = np.array([math.nan if row.ap is None else row.ap / 100 for row in table])
    return Metrics(ap, np.array([row.positives for row in table]), np.array([row.negatives for row in table]))


def group_members(table: Sequence[ClassRow], names: Iterable[str]) -> dict[str, list[int]]:
    """Return columns of each group's classes."""
    return {name: [c for c, row in enumerate(table) if name in row.groups] for name in names}


def quintile_members(table: Sequence[ClassRow]) -> list[list[int]]:
    """Return columns of each quintile's classes."""
    return [[c for c, row in enumerate(table) if row.quintile == number] for number in range(1, 6)]


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise EntryError(name, f"byte {error.start} is not UTF-8") from error


def _percent(row: dict[str, str], name: str) -> float | None:
    value = float(row[name]) if (row["ap"] if name == "ap" else row.get(name)) else None
    if value is not None and not 0 <= value <= 100 + 1e-9:  # NaN is not in there either
        raise ValueError(f"{name} {row[name]!r} is not between 0 and 100")
    return value


def _class_row(row: dict[str, str], number: int) -> ClassRow:
    try:
        ap, auroc, precision, recall = (_percent(row, name) for name in ("ap", "auroc", "precision", "recall"))
        positives, negatives = int(row["positives"]), int(row["negatives"])
        predicted = int(row["predicted"]) if row.get("predicted") else None
        if min(positives, negatives, predicted or 0) < 0 or max(positives, negatives, predicted or 0) > 10**9:
            raise ValueError("a count is negative or beyond a billion")
        threshold = float(row["threshold"]) if row.get("threshold") else None
        if threshold is not None and not math.isfinite(threshold):
            raise ValueError(f"threshold {row['threshold']!r} is no finite number")
        return ClassRow(
            row["class_id"],
            row["class_name"],
            ap,
            positives,
            negatives,
            tuple(filter(None, (row.get("groups") or "").split(";"))),
            int(row["quintile"]) if row.get("quintile") else None,
            auroc,
            threshold,
            predicted,
            precision,
            recall,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise EntryError(f"{PER_CLASS}, line {number}", str(error)) from error

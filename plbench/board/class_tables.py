"""Compact file of the per-class tables of a row's records: shared columns once, numbers as binary columns.

Percentages are integer millionths, thresholds are float32, and precision and recall are computed from counts. The
tables of five seeds need half the size of text.
"""

from __future__ import annotations

import csv
import io
import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from plbench.runs.tables import MAX_CLASSES, EntryError

COLUMNS = "per_class.bin"
"""The length of a CSV table of the columns that all records share, as text, and a line's end; that table; then 32 bits,
little-endian, of [column, record, class]: every lowest byte, every second one, and so on."""

_SHARED = ("class_id", "class_name", "positives", "negatives", "groups")
_NUMBERS = ("ap", "auroc", "threshold", "predicted", "hits", "quintile")
_ORDER = (
    *("class_id", "class_name", "ap", "positives", "negatives", "auroc"),
    *("threshold", "predicted", "precision", "recall", "groups", "quintile"),
)
_MILLION = 10**6
_MAX_TEXT = 64 << 20  # bytes of the shared columns, repeated for each record
_NONE = -1


def as_columns(tables: Sequence[bytes]) -> bytes | None:
    """Pack per-class tables into one file; None if they could not be restored byte-identically.

    Args:
        tables: as written by runs.
    """
    try:
        parsed = [list(csv.DictReader(io.StringIO(table.decode(), newline=""), strict=True)) for table in tables]
        shared = [[{name: row[name] for name in _SHARED} for row in rows] for rows in parsed]
        if not shared[0] or any(rows != shared[0] for rows in shared):
            return None
        numbers = np.array([[_numbers(row) for row in rows] for rows in parsed], dtype="<i4")  # [record, class, column]
    except (csv.Error, KeyError, TypeError, ValueError, OverflowError):  # damaged, or from another version
        return None
    text = _as_csv(_SHARED, (row.values() for row in shared[0]))
    planes = np.ascontiguousarray(numbers.transpose(2, 0, 1)).reshape(-1, 1).view(np.uint8).T
    content = f"{len(text)}\n".encode() + text + planes.tobytes()
    try:
        return content if from_columns(content, len(tables)) == list(tables) else None
    except EntryError:
        return None


def _numbers(row: dict[str, str]) -> list[int]:
    recall = row["recall"]
    return [
        *(round(_MILLION * float(row[name])) if row[name] else _NONE for name in ("ap", "auroc")),
        *struct.unpack("<i", struct.pack("<f", float(row["threshold"] or "nan"))),
        int(row["predicted"] or _NONE),
        round(float(recall) / 100 * int(row["positives"])) if recall else _NONE,
        int(row["quintile"] or _NONE),
    ]


def from_columns(content: bytes, num_tables: int) -> list[bytes]:
    """Unpack the tables packed by `as_columns`.

    Raises:
        EntryError: if it does not contain this number of tables.
    """
    length, _, rest = content[:16].partition(b"\n")
    if not length.isdigit() or not rest:
        raise EntryError(COLUMNS, "does not begin with a length")
    if int(length) * num_tables > _MAX_TEXT:
        raise EntryError(COLUMNS, f"is too long for {num_tables} records")
    begin = len(length) + 1
    text, packed = content[begin : begin + int(length)], content[begin + int(length) :]
    try:
        header, *shared = csv.reader(io.StringIO(text.decode(), newline=""), strict=True)
        positives = [int(row[_SHARED.index("positives")]) for row in shared]
    except (csv.Error, ValueError, IndexError) as error:
        raise EntryError(COLUMNS, f"has no table of classes: {error}") from error
    size = len(_NUMBERS) * num_tables * len(shared)
    if tuple(header) != _SHARED or not 0 < len(shared) <= MAX_CLASSES or any(len(row) != len(header) for row in shared):
        raise EntryError(COLUMNS, f"has no table of 1 to {MAX_CLASSES:,} classes")
    if len(packed) != 4 * size:
        raise EntryError(COLUMNS, f"has no columns of {num_tables} records of {len(shared)} classes")
    planes = np.frombuffer(packed, np.uint8).reshape(4, -1)
    numbers = planes.T.copy().view("<i4").reshape(len(_NUMBERS), num_tables, len(shared))
    return [_as_table(shared, positives, numbers[:, record]) for record in range(num_tables)]


def _as_table(shared: list[list[str]], positives: list[int], numbers: np.ndarray) -> bytes:
    columns: dict[str, Sequence[Any]] = dict(zip(_SHARED, zip(*shared, strict=True), strict=True))
    for name, column in zip(_NUMBERS, numbers, strict=True):
        columns[name] = [None if value == _NONE else value for value in column.tolist()]
    for name in ("ap", "auroc"):
        columns[name] = [None if value is None else value / _MILLION for value in columns[name]]
    thresholds = numbers[_NUMBERS.index("threshold")].copy().view(np.float32).tolist()
    columns["threshold"] = [None if math.isnan(value) else value for value in thresholds]
    hits = columns["hits"]
    columns["precision"] = list(map(_share, hits, columns["predicted"]))
    columns["recall"] = list(map(_share, hits, positives))
    return _as_csv(_ORDER, zip(*(columns[name] for name in _ORDER), strict=True))


def _share(part: int | None, whole: int | None) -> float | None:
    return None if part is None or whole is None else round(100 * (part / max(whole, 1)), 6)


def _as_csv(names: Sequence[str], rows: Iterable[Iterable[object]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    return text.getvalue().encode()

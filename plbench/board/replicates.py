"""Replicates of the records of a row in one file: the first record's, and how the others differ from it.

Records of one row are resampled alike, so that their replicates rise and fall together. As whole hundredths of a point,
differences are small numbers; with their high bytes apart from the low ones, which compress best, the replicates of
five seeds take a fifth less.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from plbench.runs.tables import MAX_REPLICATES, EntryError, parse_replicates

DIFFERENCES = "replicates.bin"
"""A line with the names of the metrics; then int16, little-endian, [record, metric, replicate], in hundredths: every
low byte, every high byte."""

_MAX_HEADER = 1 << 12  # bytes, which each record's table repeats


def as_differences(tables: Sequence[bytes]) -> bytes | None:
    """Return tables of replicates as one file; None where it would not give back each of them to the byte.

    Args:
        tables: as `plbench.runs.tables.parse_replicates` reads them.
    """
    try:
        parsed = [parse_replicates(table) for table in tables]
        values = np.stack([np.stack([*table.values()]) for table in parsed])
    except (EntryError, ValueError):  # damaged, or of different lengths
        return None
    if not values.size or not np.isfinite(values).all():
        return None
    hundredths = np.rint(100 * values).astype("<i2")
    hundredths[1:] -= hundredths[0]
    planes = hundredths.reshape(-1, 1).view(np.uint8).T
    content = tables[0].partition(b"\n")[0] + b"\n" + planes.tobytes()
    return content if from_differences(content, len(tables)) == list(tables) else None


def from_differences(content: bytes, num_tables: int) -> list[bytes]:
    """Return the tables that `as_differences` put into one file.

    Raises:
        EntryError: if it does not hold so many.
    """
    header, _, packed = content.partition(b"\n")
    if len(header) > _MAX_HEADER:
        raise EntryError(DIFFERENCES, f"has a first line of {len(header):,} bytes")
    num_columns = header.count(b",") + 1
    num_replicates, rest = divmod(len(packed), 2 * num_tables * num_columns)
    if rest or not 0 < num_replicates <= MAX_REPLICATES:
        raise EntryError(DIFFERENCES, f"has no whole number of replicates of {num_tables} records, none, or too many")
    planes = np.frombuffer(packed, np.uint8).reshape(2, -1)
    hundredths = planes.T.copy().view("<i2").reshape(num_tables, num_columns, num_replicates).astype(np.int64)
    hundredths[1:] += hundredths[0]
    return [header + b"\n" + _as_lines(table) for table in hundredths / 100]


def _as_lines(table: np.ndarray) -> bytes:
    return "".join(",".join(f"{value:.2f}" for value in row) + "\n" for row in table.T.tolist()).encode()

"""Compact file of the replicates of a row's records: those of the first record, and differences of the others from it.

Records of one row use the same resamples, so their replicates are correlated and their differences, in integer
hundredths of a point, are small. High bytes, which compress best, are stored apart from low ones. This saves a fifth
for five seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from plbench.runs.tables import MAX_REPLICATES, EntryError, parse_replicates

DIFFERENCES = "replicates.bin"
"""A line with the names of the metrics, then little-endian int16 hundredths of [record, metric, replicate]: all low
bytes, then all high bytes."""

_MAX_HEADER = 1 << 12  # bytes, repeated in each record's table


def as_differences(tables: Sequence[bytes]) -> bytes | None:
    """Pack tables of replicates into one file; None if they could not be restored byte-identically.

    Args:
        tables: as read by `plbench.runs.tables.parse_replicates`.
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
    """Unpack the tables packed by `as_differences`.

    Raises:
        EntryError: if it does not contain this number of tables.
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

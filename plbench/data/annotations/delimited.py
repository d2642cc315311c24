"""Read large CSV files in batches of rows, with errors that name file, row and expected content."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv

from plbench.errors import DataError

PRESENCE = {"true_values": ["1", "1.0"], "false_values": ["0", "0.0"]}
"""Values of present and absent classes in published files; all others are errors."""

_MAX_HEADER = 4 << 20  # bytes
_MAX_COLUMNS = 100_000
_BLOCK = 4 << 20  # bytes per parsed block: the fastest of 1, 4, 16 and 64 MB
_BYTE_ORDER_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def header(path: Path) -> list[str]:
    """Return the names in the first line of a CSV file, from at most its first 4 MB.

    Raises:
        DataError: if the file cannot be read, is empty, is not UTF-8 text, or its first line is too long.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_MAX_HEADER)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    for mark, name in _BYTE_ORDER_MARKS.items():
        if start.startswith(mark):
            raise DataError(f"{path} is written in {name}; save it as UTF-8")
    line, newline, _ = start.removeprefix(b"\xef\xbb\xbf").partition(b"\n")
    if (not newline and len(start) == _MAX_HEADER) or line.count(b",") >= _MAX_COLUMNS:
        raise DataError(
            f"{path} has a first line of more than {_MAX_COLUMNS:,} columns or {_MAX_HEADER >> 20} MB; expected "
            "one line with the names of the columns"
        )
    if not start:
        raise DataError(f"{path} is empty; expected a line with the names of the columns")
    try:
        return [name.strip('"') for name in line.decode("utf-8").rstrip("\r").split(",")]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, first line: byte {error.start} is not UTF-8; save the file as UTF-8") from error


def text_batches(
    path: Path,
    columns: Mapping[str, pa.DataType],
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[pa.RecordBatch]:
    """Yield named columns of a CSV file with a header as Arrow batches. A byte-order mark and CRLF are allowed.

    Args:
        path: of the file.
        columns: Arrow type by name; booleans are read by `PRESENCE`.
        report: called with bytes read and total bytes.

    Raises:
        DataError: if a column is missing, a row has the wrong number of fields, or a value has the wrong type; with
            file, row and what was found.
    """
    names = header(path)
    for name in columns:
        if names.count(name) != 1:
            found = ", ".join(repr(text[:40]) for text in names[:8]) + (", …" if len(names) > 8 else "")
            raise DataError(f"{path} needs one column {name!r}; its first line has {found}")
    try:
        yield from _batches(path, columns, report, threads=True)
    except (pa.ArrowException, KeyError) as error:
        where = _located(path, columns, error)
        raise DataError(f"{path}: {where}; fix the row, or download the file again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _batches(
    path: Path, columns: Mapping[str, pa.DataType], report: Callable[[int, int], None], *, threads: bool
) -> Iterator[pa.RecordBatch]:
    total = path.stat().st_size
    with pa.OSFile(str(path)) as file:
        reader = pa_csv.open_csv(
            file,
            read_options=pa_csv.ReadOptions(block_size=_BLOCK, use_threads=threads),
            convert_options=pa_csv.ConvertOptions(
                include_columns=list(columns), column_types=dict(columns), check_utf8=True, **PRESENCE
            ),
        )
        row = 2  # the first line is the header
        for batch in reader:
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                if column.null_count:
                    empty = column.is_null().to_pylist().index(True)
                    raise pa.ArrowInvalid(f"Row #{row + empty}: column {name!r} is empty; expected 0 or 1")
            row += len(batch)
            yield batch
            report(min(file.tell(), total), total)


def _located(path: Path, columns: Mapping[str, pa.DataType], error: Exception) -> str:
    """Return Arrow's error message with the row, which it only knows when reading with one thread."""
    if "Row #" not in str(error):
        try:
            for _ in _batches(path, columns, lambda done, total: None, threads=False):
                pass
        except (pa.ArrowException, KeyError) as again:
            error = again
    said = " ".join(str(error).split())[:300]
    if "straddling" in said:
        return f"a row is longer than {_BLOCK >> 20} MB"
    return f"{said}; expected 0 or 1" if "conversion error to bool" in said else said

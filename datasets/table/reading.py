"""Opening a person's own table: what kind of file it is."""

from __future__ import annotations

from pathlib import Path

from plbench.api import DataError

from .csv_file import MAX_LINE_BYTES, CsvTable
from .file import ParquetTable, TableFile
from .header import CsvForm

_SUFFIX_HINT = "save the table as CSV (UTF-8) or Parquet"
_FOREIGN = {
    b"PK\x03\x04": "an Excel workbook or a zip archive",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"\x1f\x8b": "compressed with gzip",
    b"SQLite format": "a database",
}


def open_table(path: Path, form: CsvForm) -> TableFile:
    """Return the table in a file. At most 4 MB are read.

    Args:
        path: of the file.
        form: what is said of a CSV file.

    Raises:
        DataError: if there is no table in the file.
    """
    try:
        with path.open("rb") as file:
            head = file.read(MAX_LINE_BYTES)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if not head:
        raise DataError(f"{path} is empty; expected a CSV or Parquet file with the names of its columns")
    if head.startswith(b"PAR1"):
        return ParquetTable(path)
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise DataError(f"{path} is {what}; {_SUFFIX_HINT}")
    if path.suffix.lower() in (".parquet", ".pq"):
        raise DataError(f"{path} is not a Parquet file: it starts with {head[:8]!r}, not 'PAR1'; write it again")
    return CsvTable(path, head, form)

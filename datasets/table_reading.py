"""Opening a person's own table: what kind of file it is, which columns mean something, and in which layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from plbench.api import DataError

from .table_csv import LONGEST_LINE, CsvTable
from .table_file import ParquetTable, TableFile
from .table_values import BAD, codes_of

Layout = Literal["long", "wide"]
_SAMPLED = 1000  # rows looked at to tell the layout
_SUFFIX_HINT = "save the table as CSV (UTF-8) or Parquet"
_FOREIGN = {
    b"PK\x03\x04": "an Excel workbook or a zip archive",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"\x1f\x8b": "compressed with gzip",
    b"SQLite format": "a database",
}


@dataclass(frozen=True)
class ColumnNames:
    """The columns that mean something, as the person names them."""

    image: str
    label: str
    value: str
    split: str

    def __post_init__(self) -> None:
        """Checks that they differ.

        Raises:
            DataError: if two are the same.
        """
        if len({self.image, self.label, self.value, self.split}) < 4:
            raise DataError(
                "image_column, label_column, value_column and split_column need columns of different names, not "
                f"{self.image}, {self.label}, {self.value} and {self.split}"
            )


def open_table(path: Path, image_column: str, encoding: str, delimiter: str | None) -> TableFile:
    """The table in a file. At most 4 MB are read.

    Args:
        path: of the file.
        image_column: a name that its first line should have; tells how a CSV file separates its columns.
        encoding: of a CSV file, as Python names it.
        delimiter: of a CSV file; None to tell from its first line.

    Raises:
        DataError: if there is no table in the file.
    """
    try:
        with path.open("rb") as file:
            head = file.read(LONGEST_LINE)
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
    return CsvTable(path, head, image_column, encoding, delimiter)


def tell_layout(table: TableFile, names: ColumnNames, asked: Layout | None) -> Layout:
    """Which layout a table has.

    Raises:
        DataError: if a column is missing, or it could be either: the columns found, and which option resolves it.
    """
    found = ", ".join(table.columns[:12]) + (", …" if len(table.columns) > 12 else "")
    if names.image not in table.columns:
        raise DataError(
            f"{table.path} has no column {names.image!r}; it has {found}; name the one with the image files, such as "
            f"-D image_column={next(filter(None, table.columns), 'file')}"
        )
    if asked == "long" and names.label not in table.columns:
        raise DataError(
            f"{table.path} has no column {names.label!r}; it has {found}; name the one with the classes, such as "
            "-D label_column=class"
        )
    if asked or names.label not in table.columns:
        return asked or "wide"
    others = [c for c in table.columns if c and c not in (names.image, names.label, names.value, names.split)]
    if doubtful := next((name for name in others if _looks_like_values(table, name)), None):
        raise DataError(
            f"{table.path} has a column {names.label!r}, and in {doubtful!r} values as of a class; give -D layout=long "
            f"if each row is one label, or -D layout=wide if {names.label!r} and {doubtful!r} are classes"
        )
    return "long"


def _looks_like_values(table: TableFile, name: str) -> bool:
    batches = table.texts([name])
    codes = codes_of(next(batches, [pa.array([], pa.string())])[0][:_SAMPLED])
    return bool(codes.any()) and BAD not in codes

"""The CSV files of both datasets: four values of fourteen observations, gzipped or not."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from io import TextIOWrapper
from operator import itemgetter
from pathlib import Path

from plbench.api import DataError

OBSERVATIONS = (
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other"),
    *("Fracture", "Support Devices"),
)
PRESENT, ABSENT, UNCERTAIN, UNMENTIONED, UNLABELLED = range(5)
"""What a file says of an observation; UNLABELLED where it has no row for the study."""

_CODES = {
    **dict.fromkeys(("1", "1.0"), PRESENT),
    **dict.fromkeys(("0", "0.0"), ABSENT),
    **dict.fromkeys(("-1", "-1.0"), UNCERTAIN),
    "": UNMENTIONED,
}


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield the number of each line and its values in the named columns, which may come in any order.

    Args:
        path: of a CSV file with a header, gzipped where its name ends in `.gz`.
        columns: two or more names.

    Raises:
        DataError: if the file cannot be read, lacks a column, or a row has another number of fields.
    """
    try:
        with (
            gzip.open(path) if path.suffix == ".gz" else path.open("rb") as raw,
            TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file,
        ):
            rows = csv.reader(file)
            header = next(rows, [])
            for name in columns:
                if header.count(name) != 1:
                    raise DataError(f"{path}: the first line is {','.join(header)!r:.80}; expected one column {name!r}")
            pick = itemgetter(*(header.index(name) for name in columns))
            for row in rows:
                if len(row) == len(header):
                    yield rows.line_num, pick(row)
                elif row:  # else an empty line
                    raise DataError(f"{path}, line {rows.line_num}: {len(row)} fields; expected {len(header)}")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def read_observations(path: Path, keys: Sequence[str]) -> Iterator[tuple[int, tuple[str, ...], bytes]]:
    """Yield the number of each line, its values in the columns `keys`, and a code for each of `OBSERVATIONS`.

    Raises:
        DataError: if the file is malformed, or a value is none of 1, 0, -1 and blank.
    """
    for number, values in read_rows(path, (*keys, *OBSERVATIONS)):
        said = values[len(keys) :]
        try:
            yield number, values[: len(keys)], bytes([_CODES[value] for value in said])
        except KeyError:
            name, value = next(pair for pair in zip(OBSERVATIONS, said, strict=True) if pair[1] not in _CODES)
            raise DataError(f"{path}, line {number}: {name} = {value!r:.20}; expected 1, 0, -1 or nothing") from None

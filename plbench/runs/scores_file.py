"""Write predictions to a file: CSV, Parquet or JSONL, by its suffix."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from plbench.errors import PlbenchError
from plbench.files import write_atomically
from plbench.files.escaping import csv_cell
from plbench.runs.predict import Predictions

_ROWS = 4096  # at once, so that their text fits into memory
_SEPARATOR = ";"  # of labels in a cell of a CSV


def check_name(path: Path, option: str = "out") -> None:
    """Reject unknown file suffixes before the work starts.

    Args:
        path: of the file to write.
        option: its option, for the message.

    Raises:
        PlbenchError: if it is.
    """
    if path.suffix.lower() not in _WRITERS:
        raise PlbenchError(f"`{option}={path}`: its name must end in one of {', '.join(sorted(_WRITERS))}")


def write_predictions(path: Path, found: Predictions, labels: npt.NDArray[np.bool_] | None = None) -> None:
    """Write one row per image: name, labels if given, and the score of each class.

    Scores are written with all digits of a float32, so they are read back bit-identically.

    Args:
        path: of the file; written atomically.
        found: the scores.
        labels: [N, C] mask of predicted classes, written as a list of names; in a CSV joined by ";".

    Raises:
        PlbenchError: as `check_name`. StoreError: if it cannot be written.
    """
    check_name(path)
    writer = _WRITERS[path.suffix.lower()]
    write_atomically(path, lambda file: writer(file, found, labels))


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Write a data frame, without its index, as CSV, Parquet or JSONL; atomically.

    Raises:
        PlbenchError: as `check_name`. StoreError: if it cannot be written.
    """
    check_name(path)
    writers: dict[str, Callable[[IO[bytes]], object]] = {
        ".csv": lambda file: frame.to_csv(file, index=False),
        ".jsonl": lambda file: frame.to_json(file, orient="records", lines=True, force_ascii=False),
        ".parquet": lambda file: frame.to_parquet(file, index=False, compression="zstd"),
    }
    write_atomically(path, writers[path.suffix.lower()])


def _names(chosen: npt.NDArray[np.bool_], found: Predictions) -> list[list[str]]:
    return [[found.class_names[place] for place in np.flatnonzero(row)] for row in chosen]


def _tables(found: Predictions, labels: npt.NDArray[np.bool_] | None, *, joined: bool) -> Iterator[pa.Table]:
    """Yield tables of some rows at a time; an empty table if there are none.

    Args:
        joined: for a CSV: labels are one text, and names that a spreadsheet would execute are quoted (`csv_cell`).
    """
    for start in range(0, max(1, len(found.images)), _ROWS):
        rows = slice(start, start + _ROWS)
        shown = csv_cell if joined else str
        names, columns = ["image"], [pa.array(map(shown, found.images[rows]), pa.string())]
        if labels is not None:
            lists = _names(labels[rows], found)
            texts = pa.array([shown(_SEPARATOR.join(own)) for own in lists], pa.string())
            names.append("labels")
            columns.append(texts if joined else pa.array(lists, pa.list_(pa.string())))
        scores = np.asfortranarray(found.scores[rows])
        names += map(shown, found.class_names)
        columns += [pa.array(scores[:, place], pa.float32()) for place in range(scores.shape[1])]
        yield pa.Table.from_arrays(columns, names=names)


def _write_csv(file: IO[bytes], found: Predictions, labels: npt.NDArray[np.bool_] | None) -> None:
    writer = None
    for table in _tables(found, labels, joined=True):
        writer = writer or pa.csv.CSVWriter(file, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def _write_parquet(file: IO[bytes], found: Predictions, labels: npt.NDArray[np.bool_] | None) -> None:
    writer = None
    for table in _tables(found, labels, joined=False):
        writer = writer or pa.parquet.ParquetWriter(file, table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None
    writer.close()


def _write_jsonl(file: IO[bytes], found: Predictions, labels: npt.NDArray[np.bool_] | None) -> None:
    for row, image in enumerate(found.images):
        line: dict[str, Any] = {"image": image}
        if labels is not None:
            (line["labels"],) = _names(labels[row : row + 1], found)
        # the shortest text that parses to the same float32
        line["scores"] = {n: float(str(score)) for n, score in zip(found.class_names, found.scores[row], strict=True)}
        file.write(json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n")


_WRITERS: dict[str, Callable[[IO[bytes], Predictions, npt.NDArray[np.bool_] | None], None]] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}

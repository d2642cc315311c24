"""Export the scores of a board for computing new metrics: Parquet files with a dataset card."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from plbench.board.boards import BoardFolder
from plbench.board.croissant import (
    BOOLEAN,
    INTEGER,
    NUMBER,
    TEXT,
    describe,
    file_object,
    file_set,
    record_set,
)
from plbench.board.entries import Entry
from plbench.board.evidence import IMAGES
from plbench.board.rows import labelled_entries
from plbench.board.text import page_template
from plbench.errors import PlbenchError, StoreError
from plbench.files import unwritable, write_atomically, write_text
from plbench.files.checksums import hash_file
from plbench.metrics.cells import Cells
from plbench.progress import counted
from plbench.runs.record import reference
from plbench.runs.store import CELLS
from plbench.runs.workspace import Workspace, fingerprint, open_dataset

RECORDS, CLASSES, CARD, CROISSANT = "records.csv", "classes.csv", "README.md", "croissant.json"
_GROUP_ROWS = 1 << 20  # cells per Parquet row group, which is also the number in memory as text

_CELL_COLUMNS = {
    "key": (TEXT, "key of the run, as in records.csv"),
    "row": (TEXT, "what the board calls the run's row"),
    "method": (TEXT, "name of the method"),
    "seed": (INTEGER, "of the run"),
    "image_id": (TEXT, "id of the test image in its dataset"),
    "class_id": (TEXT, "id of the class, as in classes.csv"),
    "score": (NUMBER, "of the class on the image, as the run's metrics saw it"),
    "label": (INTEGER, "1: verified present, -1: verified absent"),
    "top3": (BOOLEAN, "whether the class is among the image's 3 highest-scored ones, unknown classes included"),
}
_IMAGE_COLUMNS = {
    "split": (TEXT, "of the dataset"),
    "image_id": (TEXT, "id of the image in its dataset; in the order of the split, those without a known label too"),
}
_RECORD_COLUMNS = {
    "key": (TEXT, "of the run"),
    "section": (TEXT, "of the board: regime, model and way of choosing values"),
    "row": (TEXT, "what the board calls the run's row"),
    "status": (TEXT, "of the row: ranked, provisional, ceiling, withdrawn or not ranked"),
    "method": (TEXT, "name of the method"),
    "params": (TEXT, "of the method, as JSON"),
    "seed": (INTEGER, "of the run"),
    "protocol": (TEXT, "of the run; of a ceiling it is not the board's"),
    "map_c": (NUMBER, "mean over classes of average precision, percent"),
    "map_o": (NUMBER, "average precision over all cells, percent"),
    "num_images": (INTEGER, "test images, those without a known label included"),
    "num_classes": (INTEGER, "classes, those that cannot be scored included"),
    "num_cells": (INTEGER, "known labels of test images"),
    "file": (TEXT, "the run's cells; empty where they are not here"),
    "file_sha256": (TEXT, "of that file"),
    "cells_sha256": (TEXT, "of the run's cells.npz, as its record on the board says"),
}
_CLASS_COLUMNS = {
    "class_id": (TEXT, "stable id"),
    "class_name": (TEXT, "name"),
    "positives": (INTEGER, "test images that have it"),
    "negatives": (INTEGER, "test images verified not to have it"),
    "groups": (TEXT, "that the dataset puts it into, separated by semicolons"),
}


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        folder: the written folder.
        files: with cells, one per run, below the folder.
        num_cells: total number.
        missing: reasons, by key of each record without cells.
        licence: of the dataset, since the files contain its labels.
    """

    folder: Path
    files: tuple[str, ...]
    num_cells: int
    missing: dict[str, str]
    licence: str


def export_cells(board: BoardFolder, to: Path, workspace: Workspace) -> Exported:
    """Write the scores at known cells of all records of a board with local runs.

    A run's cells are only used if their sha256 matches its record on the board. One run is in memory at a time; the
    folder is written atomically.

    Args:
        board: the board.
        to: a new or empty folder.
        workspace: with the runs, and the dataset, which provides image ids.

    Raises:
        PlbenchError: if no record has local cells, the folder is not empty, or the dataset is missing or different.
        StoreError: if the folder cannot be written.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise PlbenchError(f"{to} already exists; give a new folder, or delete it")
    entries = labelled_entries(board)
    found: dict[str, Path] = {}
    missing: dict[str, str] = {}
    with workspace.reporter.task(f"Checking the cells of {len(entries):,} records") as report:
        for number, (entry, _) in enumerate(entries, 1):
            try:
                found[entry.key] = _cells_of(entry, workspace)
            except StoreError as error:
                missing[entry.key] = str(error)
            report(number, len(entries))
    if not found:
        others = sum((workspace.store.run_folder(key) / CELLS).is_file() for key in missing)
        raise PlbenchError(
            f"none of the {len(entries)} records of {board.board.name} has its cells in {workspace.store.runs}"
            + (f", where {counted(others, 'run')} of the same key gave other scores" if others else "")
            + "; give the folder of exactly the runs that were added with `runs=`"
        )
    dataset = open_dataset(board.board.dataset, workspace)
    if (here := fingerprint(dataset, workspace)) != board.board.dataset_fingerprint:
        raise PlbenchError(
            f"dataset {dataset.name!r} in {dataset.root} has fingerprint {here[:16]}…, and the records of "
            f"{board.board.name} were made on {(board.board.dataset_fingerprint or '')[:16]}…; give the folder of "
            "exactly those files with `data_root=`"
        )
    ids = {split: dataset.split(split).images.ids for split in {e.record.spec.protocol.test_split for e, _ in entries}}
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{to.name}.", dir=to.parent))
    except OSError as error:
        raise unwritable(to, error) from error
    try:
        num_cells, rows = 0, []
        with workspace.reporter.task("Writing cells") as report:
            for number, (entry, labels) in enumerate(entries):
                name = None
                if entry.key in found:
                    name = f"cells/{entry.record.spec.method.name}/{entry.key}.parquet"
                    images = ids[entry.record.spec.protocol.test_split]
                    num_cells += _write_cells(staging / name, entry, labels["row"], found[entry.key], images)
                rows.append(_row(entry, labels, name, staging))
                report(number + 1, len(entries))
        _write_images(staging / IMAGES, ids)
        _describe(staging, board, [entry for entry, _ in entries], rows, dataset)
        staging.chmod(0o755)
        if to.is_dir():
            to.rmdir()
        staging.rename(to)
    except OSError as error:
        raise unwritable(to, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    files = tuple(row["file"] for row in rows if row["file"])
    return Exported(to, files, num_cells, missing, dataset.licence)


def _cells_of(entry: Entry, workspace: Workspace) -> Path:
    """Return the cells of a record's run, verified against the record on the board."""
    path = workspace.store.run_folder(entry.key) / CELLS
    try:
        if reference(path) == entry.record.files.get(CELLS):
            return path
    except OSError as error:
        raise StoreError(f"record {entry.key}: {path} cannot be read: {error.strerror}") from error
    raise StoreError(f"record {entry.key}: {path} holds other scores than those that the record was made from")


def _write_cells(path: Path, entry: Entry, row: str, source: Path, ids: Sequence[str]) -> int:
    """Write the cells of one run; return their number."""
    cells = Cells.load(source)
    classes = [one.class_id for one in entry.per_class]
    if (cells.num_images, cells.num_classes) != (len(ids), len(classes)):
        raise PlbenchError(
            f"{source} is of {cells.num_images:,} images and {cells.num_classes:,} classes; the dataset has "
            f"{len(ids):,} test images and the record {len(classes):,} classes"
        )
    image_ids, class_ids = pa.array(list(ids), pa.string()), pa.array(classes, pa.string())
    constant = {"key": entry.key, "row": row, "method": entry.record.spec.method.name}
    number = len(cells.scores)

    def write(file: IO[bytes]) -> None:
        writer = None
        for start in range(0, max(1, number), _GROUP_ROWS):
            part = slice(start, start + _GROUP_ROWS)
            size = len(cells.scores[part])
            columns = {
                **{name: pa.repeat(pa.scalar(value, pa.string()), size) for name, value in constant.items()},
                "seed": pa.repeat(pa.scalar(entry.record.spec.seed, pa.int64()), size),
                "image_id": image_ids.take(pa.array(cells.rows[part])),
                "class_id": class_ids.take(pa.array(cells.class_index[part])),
                "score": pa.array(cells.scores[part]),
                "label": pa.array(np.where(cells.positives[part], 1, -1).astype(np.int8)),
                "top3": pa.nulls(size, pa.bool_()) if cells.in_top is None else pa.array(cells.in_top[part]),
            }
            table = pa.table(columns)
            writer = writer or pa.parquet.ParquetWriter(file, table.schema, compression="zstd")
            writer.write_table(table)
        assert writer is not None
        writer.close()

    write_atomically(path, write)
    return number


def _write_images(path: Path, ids: Mapping[str, Sequence[str]]) -> None:
    """Write the images of each split in order, since replicates resample them by position."""
    splits = [name for name, images in sorted(ids.items()) for _ in images]
    images = [one for _, images in sorted(ids.items()) for one in images]
    table = pa.table({"split": pa.array(splits, pa.string()), "image_id": pa.array(images, pa.string())})
    write_atomically(path, lambda file: pa.parquet.write_table(table, file, compression="zstd"))


def _row(entry: Entry, labels: Mapping[str, Any], name: str | None, folder: Path) -> dict[str, Any]:
    record = entry.record
    test, method = record.test, record.spec.method
    stated = record.files.get(CELLS)
    return {
        "key": entry.key,
        **labels,
        "method": method.name,
        "params": json.dumps(method.params, sort_keys=True),
        "seed": record.spec.seed,
        "protocol": record.spec.protocol.name,
        "map_c": test.map_c.value,
        "map_o": test.map_o.value,
        "num_images": test.num_images,
        "num_classes": test.num_classes,
        "num_cells": test.num_cells,
        "file": name,
        "file_sha256": None if name is None else hash_file(folder / name),
        "cells_sha256": None if stated is None else stated.sha256,
    }


def _describe(
    folder: Path, board: BoardFolder, entries: Sequence[Entry], rows: Sequence[Mapping[str, Any]], dataset: Any
) -> None:
    """Write the tables beside the cells, the dataset card and the Croissant description."""
    classes = [
        {**{name: getattr(one, name) for name in _CLASS_COLUMNS}, "groups": ";".join(one.groups)}
        for one in entries[0].per_class
    ]
    tables = {RECORDS: _as_csv(_RECORD_COLUMNS, rows), CLASSES: _as_csv(_CLASS_COLUMNS, classes)}
    for name, content in tables.items():
        write_text(folder / name, content)
    about = {"board": board.board, "dataset": dataset, "records": rows, "columns": _CELL_COLUMNS}
    write_text(folder / CARD, page_template("cells.md").render(**about).rstrip() + "\n")
    text = f"Scores of every known test label by the runs of plbench's leaderboard {board.board.title}."
    described = describe(
        f"plbench-{board.board.name}-cells",
        text,
        [
            file_set("cells", "application/x-parquet", "cells/*/*.parquet"),
            file_object(IMAGES, "application/x-parquet", (folder / IMAGES).read_bytes()),
            *(file_object(name, "text/csv", content.encode()) for name, content in tables.items()),
        ],
        [
            record_set("cell", "A known label of a test image, scored by a run.", "cells", _CELL_COLUMNS, of_set=True),
            record_set("record", "A run.", RECORDS, _RECORD_COLUMNS),
            record_set("class", "A class.", CLASSES, _CLASS_COLUMNS),
            record_set("image", "A test image.", IMAGES, _IMAGE_COLUMNS),
        ],
        version=f"{board.board.version}.0.0",
        updated=board.updated,
    )
    write_text(folder / CROISSANT, described)


def _as_csv(columns: Mapping[str, object], rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()

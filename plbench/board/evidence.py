"""Scores behind records, from a folder of runs or of published cells, and their labels.

A run's own file is identified by its hash, which the record states. A published file is Parquet with another hash; it
is tied to its record by reproducing each figure and each replicate to the last digit. Neither proves that the labels
are genuine, since anyone can permute labels and compute all figures from the result. But test labels come from the
dataset and do not depend on simulation, method or seed, so they must be the same in all records of one test set.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from plbench.board.entries import Entry
from plbench.errors import PlbenchError
from plbench.metrics.cells import Cells
from plbench.runs.findings import Findings, Problem
from plbench.runs.store import CELLS

if TYPE_CHECKING:
    from plbench.board.boards import Board
    from plbench.runs.workspace import Workspace
    from plbench.spec import Protocol

IMAGES = "images.parquet"
"""Table of published cells: all test images, including unlabelled ones, in the dataset's order, by which they are
resampled."""

_COLUMNS = ("image_id", "class_id", "score", "label", "top3")
_MAX_IMAGES_BYTES = 1 << 30  # unpacked: 10 million ids of 100 characters
_BYTES_PER_CELL = 64  # of unpacked columns, with dictionary-encoded text

Question = tuple[str, str, str]


@dataclass(frozen=True)
class Place:
    """A folder with cells: of runs (`KEY/cells.npz`), or as written by `board export --cells`, or both.

    Attributes:
        folder: the folder.
        board: name of the board; may be a subfolder, with one folder per archive, as unpacked by `board fetch`.
    """

    folder: Path
    board: str

    def find(self, key: str) -> Path | None:
        """Return the file of a record's cells, preferably the run's own; None if there is none."""
        roots = (self.folder, self.folder / self.board, *sorted((self.folder / self.board).glob("*/")))
        found = [root / key / CELLS for root in roots if (root / key / CELLS).is_file()]
        found += [path for root in roots for path in sorted(root.glob(f"cells/*/{key}.parquet"))]
        return found[0] if found else None

    def image_ids(self, path: Path, split: str) -> list[str]:
        """Return the ids of a split's images, in order, from the table next to a published file of cells.

        Raises:
            PlbenchError: if they are missing or damaged.
        """
        source = path.parents[2] / IMAGES
        try:
            with pa.parquet.ParquetFile(source) as file:
                if _unpacked(file) > _MAX_IMAGES_BYTES:
                    raise PlbenchError(f"{source} unpacks to more than {_MAX_IMAGES_BYTES:,} bytes")
                table = file.read(["split", "image_id"])
            return [str(one) for one in table.filter(pa.compute.field("split") == split)["image_id"].to_pylist()]
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise PlbenchError(
                f"{IMAGES} beside the published cells cannot be read ({type(error).__name__}); export them again"
            ) from error


def read_published(entry: Entry, path: Path, image_ids: Sequence[str], findings: Findings) -> Cells | None:
    """Return a record's cells from Parquet; None, with a problem, if they do not belong to the record.

    Args:
        entry: the record. path: of the file. image_ids: of its test split, in order. findings: receives problems.
    """
    number = entry.record.test.num_cells
    try:
        with pa.parquet.ParquetFile(path) as file:
            if file.metadata.num_rows != number:
                findings.refuse(
                    path.name, f"of {file.metadata.num_rows:,} cells", f"{number:,}, as the record has them"
                )
                return None
            if _unpacked(file) > _BYTES_PER_CELL * number + 2**20 + 200 * (len(image_ids) + len(entry.per_class)):
                findings.refuse(path.name, f"{_unpacked(file):,} bytes unpacked", f"those of {number:,} cells")
                return None
            table = file.read([*_COLUMNS])
        top = table["top3"]
        in_top = None if top.null_count == number else _numbers(top, "in top3").astype(bool)
        label = _numbers(table["label"], "label")
        if not np.isin(label, (-1, 1)).all():
            raise ValueError("a label is neither 1 nor -1")
        return Cells(
            _places(table["image_id"], image_ids).astype(np.int64),
            _places(table["class_id"], [row.class_id for row in entry.per_class]).astype(np.int32),
            _numbers(table["score"], "score"),
            label > 0,
            len(image_ids),
            len(entry.per_class),
            in_top,
        )
    except (PlbenchError, OSError, ValueError, KeyError, MemoryError, pa.ArrowException) as error:
        words = str(error) if isinstance(error, PlbenchError | ValueError) else type(error).__name__
        findings.refuse(path.name, f"no file of this record's cells ({words})", "as plbench board export writes it")
        return None


def check_scores(cells: Cells, findings: Findings) -> None:
    """Reject scores outside [0, 1]."""
    if cells.scores.size:
        low, high = float(cells.scores.min()), float(cells.scores.max())
        findings.require(low >= 0 and high <= 1, "cells: score", f"{low:.6g} to {high:.6g}", "scores between 0 and 1")


def digest_of_labels(cells: Cells) -> str:
    """Return a hash of which cells are known and their labels; the order of the cells does not matter."""
    return _digest(cells.rows, cells.class_index, cells.positives, cells.num_images, cells.num_classes)


def truth_of(board: Board, protocol: Protocol, workspace: Workspace, note: Callable[[str], None]) -> str | None:
    """Return the hash of the dataset's own test labels; None, with a message, if the data is not available.

    Raises:
        PlbenchError: if the dataset cannot be opened.
    """
    from plbench.runs.protocol import ProtocolData
    from plbench.runs.workspace import fingerprint, open_dataset

    dataset = open_dataset(board.dataset, workspace)
    if fingerprint(dataset, workspace) != board.dataset_fingerprint:
        note(f"board {board.name}: labels were not compared with the data: {dataset.root} holds other data")
        return None
    labels = ProtocolData(dataset, protocol).test().labels
    rows, columns, values = labels.cells()
    return _digest(rows, columns, values > 0, labels.num_images, labels.num_classes)


def check_labels(
    found: Sequence[tuple[Entry, str]], truth: Mapping[Question, str], name: str, note: Callable[[str], None]
) -> list[Problem]:
    """Check that the cells of all records of one test set have the same labels.

    Records that differ from the dataset are rejected; without the dataset, those that differ from the majority.

    Args:
        found: records with the hash of their cells' labels, oldest first.
        truth: hashes of the dataset's own labels, where the dataset is available.
        name: of the board. note: receives a message if nothing could be compared.
    """
    by_test_set: dict[Question, list[tuple[Entry, str]]] = defaultdict(list)
    for entry, digest in found:
        by_test_set[question_of(entry)].append((entry, digest))
    problems = []
    for key, members in by_test_set.items():
        agreed = truth.get(key) or Counter(digest for _, digest in members).most_common(1)[0][0]
        whose = "the dataset" if key in truth else "the cells of other records"
        if key not in truth and len(members) == 1:
            key_of = members[0][0].key
            note(f"board {name}: labels of record {key_of} were compared with nothing: give more cells, or the data")
        problems += [
            Problem(entry.key, "cells: label", f"other labels than in {whose}", "the same labels of the same test set")
            for entry, digest in members
            if digest != agreed
        ]
    return problems


def question_of(entry: Entry) -> Question:
    """Return what records with the same test labels have in common."""
    spec = entry.record.spec
    return spec.dataset_fingerprint, spec.protocol.test_split, repr(spec.protocol.metric_rules)


def _digest(rows: np.ndarray, columns: np.ndarray, positives: np.ndarray, num_images: int, num_classes: int) -> str:
    places = rows.astype(np.int64) * num_classes + columns
    if not np.all(places[1:] > places[:-1]):
        order = np.argsort(places)
        places, positives = places[order], positives[order]
    digest = hashlib.sha256(f"{num_images} {num_classes}".encode())
    digest.update(places.astype("<i8").tobytes())
    digest.update(np.packbits(positives).tobytes())
    return digest.hexdigest()


def _unpacked(file: pa.parquet.ParquetFile) -> int:
    """Return the unpacked size in bytes of the columns to read, as stated in the file."""
    groups = (file.metadata.row_group(number) for number in range(file.metadata.num_row_groups))
    return sum(
        group.column(c).total_uncompressed_size
        for group in groups
        for c in range(group.num_columns)
        if group.column(c).path_in_schema in (*_COLUMNS, "split")
    )


def _places(column: pa.ChunkedArray, names: Sequence[str]) -> np.ndarray:
    """Return the position of each of a column's names in a list.

    Raises:
        ValueError: if one is not in the list.
    """
    found = pa.compute.index_in(column.cast(pa.string()), value_set=pa.array(list(names), pa.string()))
    if found.null_count:
        raise ValueError("an image or class is not one of the record's test set")
    return np.asarray(found.to_numpy())


def _numbers(column: pa.ChunkedArray, name: str) -> np.ndarray:
    if column.null_count:
        raise ValueError(f"a {name} is missing")
    return np.asarray(column.to_numpy())

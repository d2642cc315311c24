"""From rows of (image, class, sign), as annotation files have them, to sparse labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from plbench.data.labels import PartialLabels
from plbench.data.text_column import TextColumn
from plbench.errors import DataError
from plbench.files.checksums import Damaged, check_sums, write_sums
from plbench.files.plain_json import parse_json

_PATHS = "paths.arrow"
_NO_CLASS = -2  # column of a row that only mentions its image; -1 is a class that is not among ours
_PIECE = 1 << 18  # cells sorted at a time: 2 MB of keys


@dataclass(frozen=True)
class Annotations:
    """What annotation files say about one split.

    Attributes:
        image_ids: [N] stable ids.
        labels: of these images.
        image_paths: [N] relative to the dataset's root, where the files give them.
        groups: named groups of class ids, where the files define some.
        notes: sentences on what was found and how it was taken, such as contradictions, for a person to read.
    """

    image_ids: TextColumn
    labels: PartialLabels
    image_paths: TextColumn | None = None
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        """Write all of it into a folder, for `open` to memory-map."""
        self.labels.write(folder)
        self.image_ids.save(folder / "image_ids.arrow")
        if self.image_paths is not None:
            self.image_paths.save(folder / _PATHS)
        said = {"groups": self.groups, "notes": self.notes}
        (folder / "said.json").write_text(json.dumps(said), encoding="utf-8")
        write_sums(folder)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Memory-map what `write` wrote.

        Raises:
            DataError: if the folder does not hold that, or any of its files is not what was written.
        """
        try:
            check_sums(folder)
        except Damaged as error:
            raise DataError(str(error)) from error
        try:
            said = parse_json((folder / "said.json").read_bytes())
            groups = {name: tuple(ids) for name, ids in said["groups"].items()}
            notes = tuple(said["notes"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{folder} does not hold annotations written by plbench: {error}") from error
        paths = TextColumn.open(folder / _PATHS) if (folder / _PATHS).exists() else None
        annotations = cls(TextColumn.open(folder / "image_ids.arrow"), PartialLabels.open(folder), paths, groups, notes)
        num_rows = {len(column) for column in (annotations.image_ids, paths) if column is not None}
        if num_rows != {annotations.labels.num_images}:
            raise DataError(f"{folder} holds labels of other images than it names; delete it, so that it is made anew")
        return annotations


def settle_cells(
    rows: npt.NDArray[np.int64],
    columns: npt.NDArray[np.integer],
    present: npt.NDArray[np.bool_],
    *,
    num_images: int,
    class_ids: Sequence[str],
    class_names: Sequence[str],
    what: str = "labels",
) -> tuple[PartialLabels, tuple[str, ...]]:
    """Return labels from cells in any order, and sentences on those that were left out, repeated or contradicted.

    Args:
        rows: [K] image row of each cell.
        columns: [K] class column; -1 for a class that is not among ours.
        present: [K] whether the class is there.
        num_images: N.
        class_ids: [C]. class_names: [C].
        what: what to call a cell in the sentences.
    """
    keys, tally = _settled(rows, columns, present, len(class_ids))
    matrix = _Cells(len(keys), num_images, len(class_ids)).put(0, keys).matrix()
    return PartialLabels(matrix, tuple(class_ids), tuple(class_names)), tally.notes(len(rows), what)


class CellCollector:
    """Gathers rows of (image id, class, sign), a batch at a time, and sorts them into labels once.

    Rows may come in any order. A cell given twice counts once; one given with both signs is unknown, and counted.
    Three bytes are kept for a row of the file, and its image's id once for every run of rows of that image.

    Attributes:
        num_rows: that were added. num_outside: of those, once `finish` was called, of a class that is not among ours.
        first_outside: number, from 0 on, and class of the first of these.
    """

    def __init__(self, class_ids: Sequence[str], class_names: Sequence[str]) -> None:
        """Classes in the order of their columns."""
        self._class_ids, self._class_names = tuple(class_ids), tuple(class_names)
        self._known_ids = pa.array(self._class_ids, pa.string())
        self._batches: list[Future[_Runs]] = []
        self._threads = ThreadPoolExecutor(max_workers=2)  # Arrow and numpy let go of the interpreter
        self.num_rows, self.num_outside = 0, 0
        self.first_outside: tuple[int, str] | None = None

    def add(self, image_ids: pa.Array, class_ids: pa.Array, present: npt.NDArray[np.bool_]) -> None:
        """Take one batch of rows: Arrow strings [K], and whether each class is present [K].

        Return before it is encoded.

        A row whose class is null only says that its image is there.
        """
        self._batches.append(self._threads.submit(self._encoded, image_ids, class_ids, present, self.num_rows))
        self.num_rows += len(present)

    def _encoded(self, image_ids: pa.Array, class_ids: pa.Array, present: npt.NDArray[np.bool_], start: int) -> _Runs:
        runs = pc.run_end_encode(image_ids)
        lengths = np.diff(runs.run_ends.to_numpy(), prepend=0)
        columns = pc.fill_null(pc.index_in(class_ids, value_set=self._known_ids), -1).to_numpy()
        if class_ids.null_count:
            columns = np.where(class_ids.is_null().to_numpy(zero_copy_only=False), _NO_CLASS, columns)
        small = np.int16 if len(self._class_ids) < 2**15 else np.int32
        outside = np.flatnonzero(columns == -1)
        first = (start + int(outside[0]), str(class_ids[int(outside[0])].as_py())) if outside.size else None
        return _Runs(runs.values, lengths, columns.astype(small), present, first)

    def finish(self, *, what: str = "rows") -> Annotations:
        """Return labels and images of all that was added.

        Every image that a row names is there, in order of first mention.

        Args:
            what: what to call a row in the notes.
        """
        with self._threads:
            batches = [future.result() for future in self._batches]
        self._batches.clear()
        runs = pa.chunked_array([batch.ids for batch in batches], pa.string()).combine_chunks()
        lengths = _joined([batch.lengths for batch in batches])
        columns, present = _joined([b.columns for b in batches]), _joined([b.present for b in batches])
        self.first_outside = next((batch.first_outside for batch in batches if batch.first_outside), None)
        batches.clear()
        cells_before = np.concatenate([[0], np.cumsum(lengths)])
        if (image_ids := _grouped(runs)) is not None:  # as published files are: small sorts, in the processor's cache
            is_first = np.ones(len(runs), bool)
            is_first[1:] = pc.not_equal(runs[1:], runs[:-1]).to_numpy(zero_copy_only=False)
            row_of_run = np.cumsum(is_first) - 1
            pieces = _pieces(cells_before, np.flatnonzero(is_first))
        else:  # an image's rows may be anywhere: one sort over all
            encoded = runs.dictionary_encode()
            image_ids, row_of_run = encoded.dictionary, encoded.indices.to_numpy().astype(np.int64)
            pieces = [slice(0, len(lengths))]
        matrix, tally = self._settle(row_of_run, lengths, cells_before, columns, present, pieces, len(image_ids))
        labels = PartialLabels(matrix, self._class_ids, self._class_names)
        self.num_outside = tally.outside
        return Annotations(TextColumn.of_arrow(image_ids), labels, notes=tally.notes(self.num_rows, what))

    def _settle(
        self,
        row_of_run: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        cells_before: npt.NDArray[np.int64],
        columns: npt.NDArray[np.integer],
        present: npt.NDArray[np.bool_],
        pieces: list[slice],
        num_images: int,
    ) -> tuple[sparse.csr_array, _Tally]:
        """Return CSR labels from the runs, piece by piece; no two pieces have an image in common."""
        num_classes = len(self._class_ids)
        cells = _Cells(len(columns), num_images, num_classes)

        def settle(piece: slice) -> _Tally:
            part = slice(cells_before[piece.start], cells_before[piece.stop])
            rows = np.repeat(row_of_run[piece], lengths[piece])
            keys, found = _settled(rows, columns[part], present[part], num_classes)
            cells.put(int(part.start), keys)
            return found

        with ThreadPoolExecutor(max_workers=2) as pool:  # numpy lets go of the interpreter while it sorts
            tally = sum(pool.map(settle, pieces), start=_Tally())
        return cells.matrix(), tally


class _Cells:
    """CSR arrays that fill up with sorted keys, as `_settled` gives them. Threads may fill different rows at once."""

    def __init__(self, most: int, num_rows: int, num_columns: int) -> None:
        self._num_columns = num_columns
        self._index_type: Any = np.int32 if most < 2**31 else np.int64
        self._indices: npt.NDArray[np.int64] = np.empty(most, self._index_type)
        self._values = np.empty(most, np.int8)
        self._in_row: npt.NDArray[np.int64] = np.zeros(num_rows + 1, self._index_type)
        self._parts: list[tuple[int, int]] = []

    def put(self, start: int, keys: npt.NDArray[np.int64]) -> _Cells:
        """Write cells from place `start` on, where there is room for as many as there were before settling."""
        if len(keys):
            part = slice(start, start + len(keys))
            self._values[part] = (keys & 1) * 2 - 1
            cells = keys >> 1
            rows = cells // self._num_columns
            self._indices[part] = cells - rows * self._num_columns
            self._in_row[rows[0] + 1 : rows[-1] + 2] = np.bincount(rows - rows[0])
            self._parts.append((start, len(keys)))
        return self

    def matrix(self) -> sparse.csr_array:
        """Return the labels; closes the gaps that cells left out have left."""
        filled = 0
        for start, number in sorted(self._parts):
            if start > filled:
                self._values[filled : filled + number] = self._values[start : start + number]
                self._indices[filled : filled + number] = self._indices[start : start + number]
            filled += number
        np.cumsum(self._in_row, out=self._in_row)
        shape = (len(self._in_row) - 1, self._num_columns)
        matrix = sparse.csr_array((self._values[:filled], self._indices[:filled], self._in_row), shape=shape)
        matrix.has_canonical_format = True  # sorted and settled
        return matrix


@dataclass(frozen=True)
class _Runs:
    """K rows, their image ids once for each of R runs of equal ones: ids and lengths [R], columns and present [K]."""

    ids: pa.Array
    lengths: npt.NDArray[np.integer]
    columns: npt.NDArray[np.integer]
    present: npt.NDArray[np.bool_]
    first_outside: tuple[int, str] | None


@dataclass(frozen=True)
class _Tally:
    """What was met on the way: rows of foreign classes, rows that repeat others, cells with both signs."""

    outside: int = 0
    repeated: int = 0
    contradicted: int = 0

    def __add__(self, other: _Tally) -> _Tally:
        return _Tally(
            self.outside + other.outside, self.repeated + other.repeated, self.contradicted + other.contradicted
        )

    def notes(self, num_rows: int, what: str) -> tuple[str, ...]:
        """Return sentences on what there was any of."""
        sentences = (
            (self.outside, f"of {num_rows:,} {what} name classes that are not in the class list; left out"),
            (self.repeated, f"{what} repeat what another says; each cell counts once"),
            (self.contradicted, "(image, class) cells are called both present and absent; taken as unknown"),
        )
        return tuple(f"{number:,} {sentence}" for number, sentence in sentences if number)


def _pieces(cells_before: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]) -> list[slice]:
    """Return runs cut into pieces of about `_PIECE` cells, only where an image starts.

    Args:
        cells_before: [R + 1] cells before each run, and in all.
        starts: runs that start an image.
    """
    num_runs = len(cells_before) - 1
    wanted = np.searchsorted(cells_before, np.arange(_PIECE, cells_before[-1], _PIECE), side="right") - 1
    cuts = starts[np.searchsorted(starts, wanted, side="right") - 1] if num_runs else wanted
    return [slice(start, stop) for start, stop in pairwise(np.unique([0, *cuts.tolist(), num_runs]).tolist())]


def _grouped(runs: pa.Array) -> pa.Array | None:
    """Return the distinct ids where equal ones stand side by side, which rising order shows.

    None where it does not rise.
    """
    if len(runs) < 2:
        return runs
    before, after = runs[:-1], runs[1:]
    if not pc.all(pc.less_equal(before, after)).as_py():
        return None
    return pa.concat_arrays([runs[:1], after.filter(pc.not_equal(before, after))])


def _settled(
    rows: npt.NDArray[np.int64],
    columns: npt.NDArray[np.integer],
    present: npt.NDArray[np.bool_],
    num_classes: int,
) -> tuple[npt.NDArray[np.int64], _Tally]:
    """Return cells as sorted keys (row * num_classes + column) * 2 + is_present: each once, contradictions left out.

    With the sign in the last bit, a single sort brings together rows, columns, repeats and contradictions.
    """
    outside = int(np.count_nonzero(columns == -1))
    if columns.size and columns.min() < 0:
        inside = columns >= 0
        rows, columns, present = rows[inside], columns[inside], present[inside]
    keys = rows * num_classes
    keys += columns
    keys <<= 1
    keys |= present
    keys.sort()
    again = keys[1:] == keys[:-1]
    repeated = int(np.count_nonzero(again))
    if repeated:
        keys = keys[np.concatenate([[True], ~again])]
    clash = (keys[1:] >> 1) == (keys[:-1] >> 1)
    contradicted = int(np.count_nonzero(clash))
    if contradicted:
        alone = np.ones(len(keys), bool)
        alone[1:] &= ~clash
        alone[:-1] &= ~clash
        keys = keys[alone]
    return keys, _Tally(outside, repeated, contradicted)


def _joined(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(0, np.int64)

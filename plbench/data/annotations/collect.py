"""Convert rows of (image, class, sign), as in annotation files, to sparse labels."""

from __future__ import annotations

import json
from collections import Counter
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
_NO_CLASS = -2  # column of a row that only names its image; -1 is a class that is not in the class list
_PIECE = 1 << 18  # cells per sort: 2 MB of keys

_Settled = tuple[npt.NDArray[Any], npt.NDArray[np.int8], Counter[str]]
"""Classes [K] and signs [K] of sorted cells, and the numbers of "outside", "repeated" and "contradicted" ones."""


@dataclass(frozen=True)
class Annotations:
    """Annotations of one split.

    Attributes:
        image_ids: [N] stable ids.
        labels: of these images.
        image_paths: [N] relative to the dataset's root, if in the files.
        groups: named groups of class ids, if in the files.
        notes: sentences on irregularities, such as contradictions, and how they were handled.
    """

    image_ids: TextColumn
    labels: PartialLabels
    image_paths: TextColumn | None = None
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        """Write everything to a folder, which `open` can memory-map."""
        self.labels.write(folder)
        self.image_ids.save(folder / "image_ids.arrow")
        if self.image_paths is not None:
            self.image_paths.save(folder / _PATHS)
        said = {"groups": self.groups, "notes": self.notes}
        (folder / "said.json").write_text(json.dumps(said), encoding="utf-8")
        write_sums(folder)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Memory-map a folder written by `write`; DataError if it is invalid or damaged."""
        try:
            check_sums(folder)
        except Damaged as error:
            raise DataError(str(error)) from error
        try:
            said = parse_json((folder / "said.json").read_bytes())
            groups = {name: tuple(map(_text, ids)) for name, ids in said["groups"].items()}
            notes = tuple(map(_text, said["notes"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{folder} does not hold annotations written by plbench: {error}") from error
        paths = TextColumn.open(folder / _PATHS) if (folder / _PATHS).exists() else None
        annotations = cls(TextColumn.open(folder / "image_ids.arrow"), PartialLabels.open(folder), paths, groups, notes)
        num_rows = {len(column) for column in (annotations.image_ids, paths) if column is not None}
        if num_rows != {annotations.labels.num_images}:
            raise DataError(f"{folder} has labels of other images than it names; delete it to have it created again")
        refuse_unknown_classes(groups, annotations.labels, folder / "said.json")
        return annotations


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.60} where text is expected")
    return value


def refuse_unknown_classes(groups: Mapping[str, Sequence[str]], labels: PartialLabels, source: Path) -> None:
    """Reject groups with classes that the labels lack: DataError with the first class and the source file."""
    known = set(labels.class_ids)
    for name, ids in groups.items():
        unknown = next((class_id for class_id in ids if class_id not in known), None)
        if unknown is not None:
            raise DataError(
                f"{source}: group {name!r:.60} names class {unknown!r:.60}, which the labels next to it do not have; "
                "use files that belong together, or delete the folder so that it is created again"
            )


def note_on_repeated_files(annotations: Annotations, what: str) -> tuple[str, ...]:
    """Return a sentence on images that are listed under several ids, if there are any.

    Args:
        annotations: of one split.
        what: name for messages, such as "split 'train' of 'coco'".

    Raises:
        DataError: if ids of one file disagree on whether a class is present.
    """
    if annotations.image_paths is None:
        return ()
    paths = annotations.image_paths.array
    counted = pc.value_counts(paths)
    repeated = counted.field("values").filter(pc.greater(counted.field("counts"), 1))
    if not len(repeated):
        return ()
    places = pc.index_in(paths, value_set=pa.array(repeated)).to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(~np.isnan(places))
    groups = [rows[places[rows] == number] for number in range(len(repeated))]
    for number, group in enumerate(groups):
        _check_agreement(annotations, group, repeated[number].as_py(), what)
    ids = " and ".join(annotations.image_ids[int(row)][:80] for row in groups[0][:2])
    return (
        f"{len(repeated):,} image files are listed under more than one id, such as {repeated[0].as_py():.200} under "
        f"{ids}; each id counts as an image",
    )


def _check_agreement(annotations: Annotations, rows: npt.NDArray[np.int64], path: str, what: str) -> None:
    known = annotations.labels.rows(rows)
    clash = np.flatnonzero((known > 0).any(axis=0) & (known < 0).any(axis=0))
    if not clash.size:
        return
    column = int(clash[0])
    with_it, without = (int(rows[np.flatnonzero(known[:, column] == sign)[0]]) for sign in (1, -1))
    ids = annotations.image_ids
    raise DataError(
        f"{what}: ids {ids[with_it]:.80} and {ids[without]:.80} are the same file {path:.200}, which one says to show "
        f"{annotations.labels.class_names[column]!r:.60} and the other not to ({clash.size:,} such classes); list the "
        "file once, with all of its annotations"
    )


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
    """Return labels from cells in any order, and sentences on omitted, repeated and contradictory ones.

    Args:
        rows: [K] image row of each cell.
        columns: [K] class column; -1 for a class that is not in the class list.
        present: [K] whether the class is present.
        num_images: N.
        class_ids: [C]. class_names: [C].
        what: name of cells in the sentences.
    """
    in_row = _counters(len(rows), num_images)
    indices, values, tally = _settled(rows, columns, present, len(class_ids), in_row)
    labels = PartialLabels(_matrix([indices], [values], in_row, len(class_ids)), tuple(class_ids), tuple(class_names))
    return labels, _notes(tally, len(rows), what)


class CellCollector:
    """Collects batches of rows (image id, class, sign), and sorts them into labels once.

    Rows may be in any order. Repeated cells count once; cells with both signs are unknown, and counted. Each row takes
    three bytes of memory, and each run of rows of one image its id.

    Attributes:
        num_rows: number of rows added. num_outside: after `finish`, those of classes that are not in the class list.
        first_outside: number (from 0) and class of the first of these.
    """

    def __init__(self, class_ids: Sequence[str], class_names: Sequence[str]) -> None:
        """Set the classes, in the order of their columns."""
        self._class_ids, self._class_names = tuple(class_ids), tuple(class_names)
        self._known_ids = pa.array(self._class_ids, pa.string())
        self._batches: list[Future[tuple[Any, ...]]] = []
        self._threads = ThreadPoolExecutor(max_workers=2)  # Arrow and numpy release the GIL
        self.num_rows, self.num_outside = 0, 0
        self.first_outside: tuple[int, str] | None = None

    def add(self, image_ids: pa.Array, class_ids: pa.Array, present: npt.NDArray[np.bool_]) -> None:
        """Add a batch of rows: Arrow strings [K], and whether each class is present [K]; it is encoded in a thread.

        A row whose class is null only adds its image.
        """
        self._batches.append(self._threads.submit(self._encoded, image_ids, class_ids, present, self.num_rows))
        self.num_rows += len(present)

    def _encoded(
        self, image_ids: pa.Array, class_ids: pa.Array, present: npt.NDArray[np.bool_], start: int
    ) -> tuple[Any, ...]:
        """Return image id and length of each run of equal ids [R], columns and signs [K], and `first_outside`."""
        runs = pc.run_end_encode(image_ids)
        lengths = np.diff(runs.run_ends.to_numpy(), prepend=0)
        columns = pc.fill_null(pc.index_in(class_ids, value_set=self._known_ids), -1).to_numpy()
        if class_ids.null_count:
            columns = np.where(class_ids.is_null().to_numpy(zero_copy_only=False), _NO_CLASS, columns)
        small = np.int16 if len(self._class_ids) < 2**15 else np.int32
        outside = np.flatnonzero(columns == -1)
        first = (start + int(outside[0]), str(class_ids[int(outside[0])].as_py())) if outside.size else None
        return runs.values, lengths, columns.astype(small), present, first

    def finish(self, *, what: str = "rows") -> Annotations:
        """Return labels and images of all added rows.

        They include every image named in a row, in order of first occurrence.

        Args:
            what: name of rows in the notes.
        """
        with self._threads:
            batches = [future.result() for future in self._batches]
        self._batches.clear()
        ids, *parts, firsts = zip(*batches, strict=True) if batches else [()] * 5
        runs = pa.chunked_array(ids, pa.string()).combine_chunks()
        lengths, columns, present = (_joined(part) for part in parts)
        self.first_outside = next(filter(None, firsts), None)
        del batches, ids, parts
        cells_before = np.concatenate([[0], np.cumsum(lengths)])
        if (image_ids := _grouped(runs)) is not None:  # the usual case: small sorts within the CPU cache
            is_first = np.ones(len(runs), bool)
            is_first[1:] = pc.not_equal(runs[1:], runs[:-1]).to_numpy(zero_copy_only=False)
            row_of_run = np.cumsum(is_first) - 1
            pieces = _pieces(cells_before, np.flatnonzero(is_first))
        else:  # an image's rows may be anywhere: one sort over all
            encoded = runs.dictionary_encode()
            image_ids, row_of_run = encoded.dictionary, encoded.indices.to_numpy().astype(np.int64)
            pieces = [slice(0, len(lengths))]
        num_classes, in_row = len(self._class_ids), _counters(len(columns), len(image_ids))

        def settle(piece: slice) -> _Settled:
            part = slice(cells_before[piece.start], cells_before[piece.stop])
            rows = np.repeat(row_of_run[piece], lengths[piece])
            return _settled(rows, columns[part], present[part], num_classes, in_row)

        with ThreadPoolExecutor(max_workers=2) as pool:  # numpy releases the GIL while sorting
            settled = list(pool.map(settle, pieces))
        tally = sum((found for _, _, found in settled), Counter[str]())
        matrix = _matrix([part[0] for part in settled], [part[1] for part in settled], in_row, num_classes)
        labels = PartialLabels(matrix, self._class_ids, self._class_names)
        self.num_outside = tally["outside"]
        return Annotations(TextColumn.of_arrow(image_ids), labels, notes=_notes(tally, self.num_rows, what))


def _notes(tally: Counter[str], num_rows: int, what: str) -> tuple[str, ...]:
    """Return sentences on omitted, repeated and contradictory cells."""
    sentences = {
        "outside": f"of {num_rows:,} {what} name classes that are not in the class list; left out",
        "repeated": f"{what} repeat what another says; each cell counts once",
        "contradicted": "(image, class) cells are called both present and absent; taken as unknown",
    }
    return tuple(f"{tally[kind]:,} {sentence}" for kind, sentence in sentences.items() if tally[kind])


def _pieces(cells_before: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]) -> list[slice]:
    """Split runs into pieces of about `_PIECE` cells, only where an image begins (`starts`)."""
    num_runs = len(cells_before) - 1
    wanted = np.searchsorted(cells_before, np.arange(_PIECE, cells_before[-1], _PIECE), side="right") - 1
    cuts = starts[np.searchsorted(starts, wanted, side="right") - 1] if num_runs else wanted
    return [slice(start, stop) for start, stop in pairwise(np.unique([0, *cuts.tolist(), num_runs]).tolist())]


def _grouped(runs: pa.Array) -> pa.Array | None:
    """Return the distinct ids if ids are in ascending order, so that equal ones are adjacent; otherwise None."""
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
    in_row: npt.NDArray[Any],
) -> _Settled:
    """Return the cells of some rows in CSR order, without repeats and contradictions, and count them in `in_row`.

    They are sorted as keys (row * num_classes + column) * 2 + is_present: with the sign in the last bit, a single sort
    brings together rows, columns, repeats and contradictions.

    Args:
        in_row: from `_counters`. Threads may fill different rows at once.
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
    values = ((keys & 1) * 2 - 1).astype(np.int8)
    keys >>= 1
    rows = keys // num_classes if num_classes else keys
    if len(keys):
        in_row[rows[0] + 1 : rows[-1] + 2] = np.bincount(rows - rows[0])
    tally = Counter(outside=outside, repeated=repeated, contradicted=contradicted)
    return (keys - rows * num_classes).astype(in_row.dtype), values, tally


def _counters(most: int, num_rows: int) -> npt.NDArray[Any]:
    """Return zeros [N + 1], to count the cells of row i at i + 1, in a dtype that can hold `most`."""
    return np.zeros(num_rows + 1, np.int32 if most < 2**31 else np.int64)


def _matrix(
    indices: Sequence[npt.NDArray[Any]],
    values: Sequence[npt.NDArray[np.int8]],
    in_row: npt.NDArray[Any],
    num_classes: int,
) -> sparse.csr_array:
    """Return labels from settled cells, in row order."""
    cells = _joined(values).astype(np.int8, copy=False), _joined(indices).astype(in_row.dtype, copy=False)
    matrix = sparse.csr_array((*cells, np.cumsum(in_row, out=in_row)), shape=(len(in_row) - 1, num_classes))
    matrix.has_canonical_format = True  # sorted, without duplicates
    return matrix


def _joined(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(0, np.int64)

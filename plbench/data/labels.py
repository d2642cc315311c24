"""The sparse ternary label matrix: +1 present, -1 verified absent, 0 unknown."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import scipy  # submodules are imported on first use

from plbench.errors import DataError
from plbench.files.arrays import damage_in_words, usable

Int8Array = npt.NDArray[np.int8]
IntArray = npt.NDArray[np.int64]

_BLOCK = 2**16  # cells at once, to fit the CPU cache


@dataclass(frozen=True, eq=False)
class PartialLabels:
    """Labels of N images for C classes, of which only the known cells are stored.

    Attributes:
        matrix: [N, C] int8 CSR in canonical form (rows sorted, no duplicates), stored values +1 and -1 only.
        class_ids: [C] stable ids (MID, category id), the keys of labels.
        class_names: [C] display names; they may repeat.
    """

    matrix: scipy.sparse.csr_array
    class_ids: tuple[str, ...]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check shapes, ids and values, on which all users rely."""
        if self.matrix.shape[1] != len(self.class_ids) or len(self.class_ids) != len(self.class_names):
            raise DataError(
                f"labels have {self.matrix.shape[1]} columns for {len(self.class_ids)} class ids and "
                f"{len(self.class_names)} names; the three must agree"
            )
        assert self.matrix.dtype == np.int8 and self.matrix.has_canonical_format, "labels must be canonical int8 CSR"
        if len(set(self.class_ids)) != len(self.class_ids):
            repeated = next(i for i in self.class_ids if self.class_ids.count(i) > 1)
            raise DataError(f"class id {repeated!r} appears twice; ids must be unique (names may repeat)")
        bad = self.matrix.data[np.abs(self.matrix.data) != 1]
        if bad.size:
            raise DataError(f"a stored label is {bad[0]}; known labels are +1 or -1, unknown ones are not stored")

    @classmethod
    def from_cells(
        cls,
        rows: npt.ArrayLike,
        columns: npt.ArrayLike,
        values: npt.ArrayLike,
        *,
        num_rows: int,
        class_ids: Sequence[str],
        class_names: Sequence[str] | None = None,
    ) -> Self:
        """Build labels from known cells in any order.

        Args:
            rows: [K] image index of each known cell.
            columns: [K] class index.
            values: [K] +1 or -1.
            num_rows: N, which cannot be inferred from the cells (an image may have no known label).
            class_ids: [C] stable ids.
            class_names: [C] display names; default: the ids.

        Raises:
            DataError: if a cell is given twice or is out of range, or a value is neither +1 nor -1.
        """
        row_index, column_index = np.asarray(rows, np.int64), np.asarray(columns, np.int64)
        given = np.asarray(values)
        bad = given[(given != 1) & (given != -1)]  # before the cast, which wraps 257 to 1
        if bad.size:
            raise DataError(f"a label is {bad[0]}; known labels are +1 or -1, unknown ones are not given")
        cell_values = given.astype(np.int8)
        try:
            coordinates = scipy.sparse.coo_array(
                (cell_values, (row_index, column_index)), shape=(num_rows, len(class_ids)), dtype=np.int8
            )
        except ValueError as error:
            shape = f"{num_rows} x {len(class_ids)}"
            raise DataError(f"a known cell lies outside the {shape} labels: {error}") from error
        matrix = coordinates.tocsr()  # sums duplicates, which the count below reveals
        if matrix.nnz != cell_values.size:
            raise DataError(
                f"{cell_values.size - matrix.nnz} (image, class) cells are given more than once; each may be known once"
            )
        matrix.sort_indices()
        return cls(matrix, tuple(class_ids), tuple(class_names if class_names is not None else class_ids))

    @classmethod
    def from_dense(
        cls, labels: npt.ArrayLike, class_ids: Sequence[str], class_names: Sequence[str] | None = None
    ) -> Self:
        """Build labels from a small dense [N, C] array of +1, -1 and 0."""
        dense = np.asarray(labels)
        rows, columns = np.nonzero(dense)
        return cls.from_cells(
            rows,
            columns,
            dense[rows, columns],
            num_rows=dense.shape[0],
            class_ids=class_ids,
            class_names=class_names,
        )

    @property
    def num_images(self) -> int:
        """N."""
        return int(self.matrix.shape[0])

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self.matrix.shape[1])

    @property
    def num_known(self) -> int:
        """Number of known cells, present or absent."""
        return int(self.matrix.nnz)

    @property
    def density(self) -> float:
        """Known cells as a share of all N x C cells, in [0, 1]; 0 if there are no cells."""
        cells = self.num_images * self.num_classes
        return self.num_known / cells if cells else 0.0

    @property
    def is_complete(self) -> bool:
        """Whether every cell is known."""
        return self.num_known == self.num_images * self.num_classes

    def counts(self) -> tuple[IntArray, IntArray]:
        """Return the numbers of known positives and known negatives of each class: two [C] int64 arrays."""
        columns, present = self.matrix.indices, self.matrix.data > 0
        positives = np.bincount(columns[present], minlength=self.num_classes)
        negatives = np.bincount(columns[~present], minlength=self.num_classes)
        return positives.astype(np.int64), negatives.astype(np.int64)

    def cells(self) -> tuple[IntArray, IntArray, Int8Array]:
        """Return the known cells in row-major order: row index [K], class index [K], value [K] of +1 / -1."""
        rows = np.repeat(np.arange(self.num_images, dtype=np.int64), np.diff(self.matrix.indptr))
        return rows, self.matrix.indices.astype(np.int64), self.matrix.data

    def rows(self, index: npt.ArrayLike) -> Int8Array:
        """Return dense labels [len(index), C] int8 of the chosen images, for one batch at a time."""
        return self.matrix[_row_index(index)].toarray()

    def subset(self, index: npt.ArrayLike) -> Self:
        """Return the labels of the chosen images, in the order given."""
        matrix = self.matrix[_row_index(index)].tocsr()
        matrix.sort_indices()
        return type(self)(matrix, self.class_ids, self.class_names)

    def keep(self, mask: npt.NDArray[np.bool_]) -> Self:
        """Return labels of the same images with only some cells known: `mask` [K] in the order of `cells()`."""
        assert mask.shape == self.matrix.data.shape, "one answer for each known cell"
        matrix, num_kept = self.matrix, np.count_nonzero(mask)
        values, indices = np.empty(num_kept, np.int8), np.empty(num_kept, matrix.indices.dtype)
        indptr = np.zeros_like(matrix.indptr)
        starts = np.arange(0, mask.size + 1, _BLOCK, dtype=indptr.dtype)
        # rows that end before each block; searched in their own dtype, since another would copy them all
        rows = np.append(np.searchsorted(matrix.indptr, starts, side="right"), indptr.size)
        kept_before = 0
        # in blocks, to need no more memory than the result: OpenImages has 60 million cells
        for start, first_row, last_row in zip(starts.tolist(), rows, rows[1:], strict=False):
            block = slice(start, start + _BLOCK)
            running, cells = np.cumsum(mask[block]), np.flatnonzero(mask[block])
            target = slice(kept_before, kept_before + cells.size)
            values[target], indices[target] = matrix.data[block].take(cells), matrix.indices[block].take(cells)
            indptr[first_row:last_row] = kept_before + running[matrix.indptr[first_row:last_row] - start - 1]
            kept_before = target.stop
        kept = scipy.sparse.csr_array((values, indices, indptr), shape=matrix.shape)
        kept.has_canonical_format = True  # like any subset of a canonical matrix
        return type(self)(kept, self.class_ids, self.class_names)

    def fingerprint(self) -> str:
        """Return sha256 over class ids, shape and known cells; equal on every machine for equal labels."""
        digest = hashlib.sha256(repr((self.matrix.shape, self.class_ids)).encode())
        for array in (self.matrix.indptr.astype("<i8"), self.matrix.indices.astype("<i8"), self.matrix.data):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def write(self, folder: Path) -> None:
        """Write plain arrays to a folder, which `open` memory-maps."""
        arrays = {"indptr": self.matrix.indptr, "indices": self.matrix.indices, "values": self.matrix.data}
        index_type = np.int32 if self.num_known < 2**31 else np.int64  # scipy requires one dtype for both
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array if name == "values" else array.astype(index_type, copy=False))
        from plbench.data.text_column import TextColumn  # imports pyarrow

        TextColumn.of(self.class_ids).save(folder / "class_ids.arrow")
        TextColumn.of(self.class_names).save(folder / "class_names.arrow")

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Memory-map a folder written by `write`; DataError if it is invalid."""
        from plbench.data.text_column import TextColumn

        try:
            with damage_in_words():
                indptr, indices, values = (
                    np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                    for name in ("indptr", "indices", "values")
                )
            class_ids = tuple(TextColumn.open(folder / "class_ids.arrow"))
            class_names = tuple(TextColumn.open(folder / "class_names.arrow"))
            return cls(_checked_matrix(values, indices, indptr, len(class_ids)), class_ids, class_names)
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{folder} does not hold labels written by plbench: {error}") from error

    def save(self, path: Path) -> None:
        """Write one compressed .npz file without pickled objects."""
        with path.open("wb") as file:
            np.savez_compressed(
                file,
                indptr=self.matrix.indptr.astype(np.int64),
                indices=self.matrix.indices.astype(np.int32),
                values=self.matrix.data,
                class_ids=np.array(self.class_ids, dtype=np.str_),
                class_names=np.array(self.class_names, dtype=np.str_),
            )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file written by `save`; DataError if it is invalid."""
        try:
            # numpy does not close a damaged file that it opened itself
            with path.open("rb") as file, damage_in_words(), np.load(file, allow_pickle=False) as stored:
                class_ids = tuple(str(i) for i in usable(stored["class_ids"]))
                class_names = tuple(str(i) for i in usable(stored["class_names"]))
                matrix = _checked_matrix(stored["values"], stored["indices"], stored["indptr"], len(class_ids))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} does not hold labels written by plbench: {error}") from error
        return cls(matrix, class_ids, class_names)


def _checked_matrix(values: Int8Array, indices: IntArray, indptr: IntArray, num_classes: int) -> scipy.sparse.csr_array:
    """Return a file's matrix; ValueError if it is invalid."""
    matrix = scipy.sparse.csr_array((values, indices, indptr), shape=(len(indptr) - 1, num_classes))
    matrix.check_format(full_check=True)  # an index out of range would read out of bounds
    if matrix.dtype != np.int8 or {indptr.dtype.kind, indices.dtype.kind} != {"i"}:
        raise ValueError("its cells are not int8, or not numbered by integers")
    if not matrix.has_canonical_format:
        raise ValueError("its cells are not in order, each once")
    return matrix


def _row_index(index: npt.ArrayLike) -> IntArray:
    """Return row indices; reject boolean masks, which would silently be read as rows 0 and 1."""
    array = np.asarray(index)
    if array.dtype == np.bool_:
        raise TypeError("rows are chosen by number; turn a mask into numbers with np.flatnonzero")
    return array.astype(np.int64)

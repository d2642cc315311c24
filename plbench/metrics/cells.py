"""Scores at known cells, the only part of a model's output that is kept and that metrics use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from plbench.data.labels import PartialLabels
from plbench.errors import PlbenchError, StoreError
from plbench.files import write_atomically
from plbench.files.arrays import damage_in_words, usable

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]
BoolArray = npt.NDArray[np.bool_]
Float64Array = npt.NDArray[np.float64]

TOP = 3
"""Number of predicted classes per image in the literature's top-3 figures."""

_COLUMNS = ("rows", "class_index", "scores", "positives")


@dataclass(frozen=True, eq=False)
class Cells:
    """Scores and labels of the K known cells of a test set, sufficient for all metrics and intervals.

    Attributes:
        rows: [K] int64, the test image of each cell. No (image, class) cell appears twice.
        class_index: [K] int32 or int64.
        scores: [K] float32 or float64, finite; except for thresholds, only their order matters.
        positives: [K] bool: verified present (True) or verified absent (False).
        num_images: N, including images without a known label.
        num_classes: C.
        in_top: [K] bool, whether the class is among the `TOP` highest-scored ones of its image, including unknown
            classes (`top_places`); None if scores of unknown cells were not available.
    """

    rows: npt.NDArray[np.int64]
    class_index: IntArray
    scores: FloatArray
    positives: BoolArray
    num_images: int
    num_classes: int
    in_top: BoolArray | None = None

    def __post_init__(self) -> None:
        """Check the assumptions of all metrics.

        Raises:
            PlbenchError: if shapes, types or ranges are not as described, or a cell appears twice.
        """
        check_columns(self.class_index, self.scores, self.positives, self.num_classes)
        if self.rows.shape != self.scores.shape or self.rows.dtype.kind != "i":
            raise PlbenchError(f"rows is {self.rows.dtype}{list(self.rows.shape)}, not one integer per cell")
        if self.in_top is not None and (self.in_top.shape != self.scores.shape or self.in_top.dtype != np.bool_):
            raise PlbenchError(f"in_top is {self.in_top.dtype}{list(self.in_top.shape)}, not one bool per cell")
        if self.rows.size and not 0 <= self.rows.min() <= self.rows.max() < self.num_images:
            raise PlbenchError(f"an image index lies outside 0..{self.num_images - 1}, the test images")
        keys = self.rows * self.num_classes + self.class_index
        # cells are usually sorted, which one pass verifies; otherwise sort
        if not np.all(keys[1:] > keys[:-1]) and np.unique(keys).size < keys.size:
            raise PlbenchError("an (image, class) cell is scored twice; each known cell must appear once")

    @classmethod
    def from_scores(cls, scores: npt.ArrayLike, labels: PartialLabels | npt.ArrayLike) -> Self:
        """Select the known cells of dense scores; scores of unknown cells are ignored.

        Args:
            scores: [N, C] in the order of `labels`; logits or probabilities.
            labels: N x C, +1 present, -1 verified absent, 0 (or not stored) unknown.

        Raises:
            PlbenchError: if shapes differ, a label is invalid, or a known cell's score is not finite.
        """
        dense = np.asarray(scores)
        shape = labels.matrix.shape if isinstance(labels, PartialLabels) else np.shape(labels)
        if dense.ndim != 2 or dense.shape != shape:
            raise PlbenchError(f"scores are {list(dense.shape)}, labels {list(shape)}; both must be [images, classes]")
        if isinstance(labels, PartialLabels):
            rows, columns, values = labels.cells()
            known = dense[rows, columns]
        else:
            flat = np.asarray(labels).ravel()
            cells = np.flatnonzero(flat != 0)  # several times as fast on booleans as on numbers
            rows, columns = np.divmod(cells, max(dense.shape[1], 1))
            values, known = flat[cells], dense.ravel()[cells]
            if not np.all((values == 1) | (values == -1)):
                raise PlbenchError("labels must be +1 (present), -1 (verified absent) or 0 (unknown)")
        known = known.astype(np.result_type(known.dtype, np.float32), copy=False)
        return cls(rows, columns.astype(np.int32), known, values > 0, *dense.shape)

    def save(self, path: Path) -> None:
        """Write one compressed .npz file without pickled objects, atomically.

        Raises:
            StoreError: if the file cannot be written.
        """
        columns = {name: value for name, value in vars(self).items() if value is not None}
        write_atomically(path, lambda file: np.savez_compressed(file, **columns))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file written by `save`.

        Raises:
            StoreError: if the file is missing, damaged, or of another kind.
        """
        try:
            # numpy does not close a damaged file that it opened itself
            with path.open("rb") as file, damage_in_words(), np.load(file, allow_pickle=False) as stored:
                rows, classes, scores, positives = (usable(stored[name]) for name in _COLUMNS)
                size = int(stored["num_images"]), int(stored["num_classes"])
                return cls(rows, classes, scores, positives, *size, stored.get("in_top"))
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{path} does not hold the scores of known cells ({error}); evaluate the run again to fix it"
            ) from error


def joined_cells(parts: Sequence[Cells]) -> Cells:
    """Merge cells that several processes scored, in the order of a single process.

    Args:
        parts: cells of each process; all cells of an image are from the same process.

    Returns:
        All cells by ascending row; `in_top` is None if any part has none.
    """
    if len(parts) == 1:
        return parts[0]
    names = (*_COLUMNS, "in_top") if all(part.in_top is not None for part in parts) else _COLUMNS
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    order = np.argsort(columns["rows"], kind="stable")  # the cells of an image are from one process, in order
    ordered = {name: column[order] for name, column in columns.items()}
    return Cells(**ordered, num_images=parts[0].num_images, num_classes=parts[0].num_classes)


def top_places(scores: FloatArray, k: int = TOP) -> BoolArray:
    """Mark the k highest-scored classes of each image, or all if there are fewer.

    Args:
        scores: [N, C], including unknown classes.
        k: number of classes per image.

    Returns:
        [N, C] bool with min(k, C) marks in each row; ties by lower class index.

    Examples:
        >>> top_places(np.array([[0.1, 0.7, 0.7, 0.7], [0.9, 0.0, 0.2, 0.1]]), 2)
        array([[False,  True,  True, False],
               [ True, False,  True, False]])
    """
    k = min(k, scores.shape[1])
    if not k:
        return np.zeros(scores.shape, np.bool_)
    last = np.partition(scores, -k, axis=1)[:, -k, None]
    above, tied = scores > last, scores == last
    places: npt.NDArray[np.bool_] = above | (tied & (np.cumsum(tied, axis=1) <= k - above.sum(axis=1, keepdims=True)))
    return places


def check_columns(class_index: IntArray, scores: FloatArray, positives: BoolArray, num_classes: int) -> None:
    """Check that the columns of K cells are as the metrics assume.

    Args:
        class_index: [K] integers in 0..num_classes-1.
        scores: [K] floats, finite.
        positives: [K] bool.
        num_classes: C.

    Raises:
        PlbenchError: if a shape, type or range is wrong, or a score is not finite.
    """
    if scores.ndim != 1 or not class_index.shape == scores.shape == positives.shape:
        raise PlbenchError(
            f"class_index {list(class_index.shape)}, scores {list(scores.shape)} and positives "
            f"{list(positives.shape)} must be 1-D and equally long: one entry per known cell"
        )
    if class_index.dtype.kind not in "iu" or scores.dtype.kind != "f" or positives.dtype != np.bool_:
        raise PlbenchError(
            f"class_index is {class_index.dtype}, scores {scores.dtype} and positives {positives.dtype}; "
            "they must be integers, floats and bools (positives = labels > 0)"
        )
    if scores.size and not 0 <= class_index.min() <= class_index.max() < num_classes:
        raise PlbenchError(f"a class index lies outside 0..{num_classes - 1}, the classes that are scored")
    broken = np.flatnonzero(~np.isfinite(scores))
    if broken.size:
        raise PlbenchError(
            f"{broken.size} of {scores.size} scores are NaN or infinite, the first of class index "
            f"{class_index[broken[0]]}; a score must be finite (did the training diverge?)"
        )

"""Published partial labels for a dataset's train images: a matrix, a tensor, a list, or a CSV.

A matrix or tensor [N, C] has one row per train image, in the dataset's order, and is read as:

| values | present | absent | unknown |
|---|---|---|---|
| 1, 0, -1 | 1 | -1 | 0 |
| 1, 0 and NaN | 1 | 0 | NaN |
| 1 and -1 | 1 | -1 | none |
| 1 and 0 | 1 | depends on `zero`, which is required | depends on `zero` |

A list has one line per image, `name, 0 52`, with the positions of its present classes; all others are unknown. A CSV
has a column `image` and either one column per class (1, -1, and 0 or empty for unknown) or columns `label` and `value`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from plbench.data.images import ImageSource
from plbench.data.labels import PartialLabels
from plbench.errors import DataError
from plbench.files.arrays import damage_in_words

Zero = Literal["absent", "unknown"]
FloatMatrix = npt.NDArray[np.float64]


def read_label_file(path: Path, images: ImageSource, truth: PartialLabels, zero: Zero | None = None) -> PartialLabels:
    """Return a file's labels for the images of a split.

    Args:
        path: `.npy`, `.pt` or `.pth`, `.txt`, or `.csv`.
        images: N images of the split; the file may refer to their ids or file names.
        truth: the split's own labels, of which only the classes are used.
        zero: meaning of 0 in a matrix of only 1 and 0.

    Returns:
        [N, C].

    Raises:
        DataError: if the file cannot be read, or does not fit the split.
    """
    readers: dict[str, Callable[[], PartialLabels]] = {
        ".npy": lambda: _of_matrix(path, _load_numpy(path), truth, zero),
        ".pt": lambda: _of_matrix(path, _load_tensor(path), truth, zero),
        ".pth": lambda: _of_matrix(path, _load_tensor(path), truth, zero),
        ".txt": lambda: _of_list(path, images, truth),
        ".csv": lambda: _of_csv(path, images, truth),
    }
    if path.suffix.lower() not in readers:
        raise DataError(f"{path} does not end in {', '.join(readers)}: labels are read from these")
    try:
        return readers[path.suffix.lower()]()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _load_numpy(path: Path) -> Any:
    try:
        with path.open("rb") as file, damage_in_words():
            return np.load(file, allow_pickle=False)
    except ValueError as error:
        raise DataError(f"{path} is not an array saved by numpy without objects: {error}") from error


def _load_tensor(path: Path) -> Any:
    import torch

    try:
        with path.open("rb") as file:
            found = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch, zipfile and pickle raise different errors, and suggest running the file's code
        raise DataError(
            f"{path} is not a tensor that can be read without running code ({type(error).__name__}); save one by "
            "torch.save(tensor, file)"
        ) from error
    tensors = [value for value in found.values() if isinstance(value, torch.Tensor)] if isinstance(found, dict) else []
    found = tensors[0] if len(tensors) == 1 else found
    if not isinstance(found, torch.Tensor):
        raise DataError(f"{path} holds a {type(found).__name__}; expected one tensor [N, C]")
    return found.numpy()


def _of_matrix(path: Path, matrix: Any, truth: PartialLabels, zero: Zero | None) -> PartialLabels:
    shape = (truth.num_images, truth.num_classes)
    if not isinstance(matrix, np.ndarray) or matrix.shape != shape or matrix.dtype.kind not in "biuf":
        found = f"{matrix.dtype} of shape {matrix.shape}" if isinstance(matrix, np.ndarray) else "several arrays"
        raise DataError(f"{path} holds {found}; expected numbers of shape {shape}: train images by classes")
    unknown = np.isnan(matrix) if matrix.dtype.kind == "f" else np.zeros(shape, bool)
    values = {float(value) for value in np.unique(matrix[~unknown])}
    if not values <= {1.0, 0.0, -1.0}:
        bad = next(value for value in values if value not in (1.0, 0.0, -1.0))
        raise DataError(f"{path} holds the value {bad:g}; expected 1, 0, -1 or NaN")
    if unknown.any() and {0.0, -1.0} <= values:
        raise DataError(f"{path} holds NaN, 0 and -1, which are one too many: NaN is unknown, and one of them absent")
    zero_is_absent = unknown.any() or zero == "absent"
    if -1.0 in values and zero_is_absent and 0.0 in values:
        raise DataError(f"{path} holds -1, so that 0 is unknown; leave out `zero=absent`")
    if not unknown.any() and -1.0 not in values and 0.0 in values and zero is None:
        raise DataError(f"{path} holds 1 and 0 alone: say with `zero=absent` or `zero=unknown` what 0 means")
    signs = np.where(matrix == 1, 1, np.where((matrix == -1) | ((matrix == 0) & zero_is_absent), -1, 0))
    return PartialLabels.from_dense(signs.astype(np.int8), truth.class_ids, truth.class_names)


def _of_list(path: Path, images: ImageSource, truth: PartialLabels) -> PartialLabels:
    rows, columns = [], []
    row_of = _rows_by_name(images)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text in UTF-8: {error}") from error
    for number, line in enumerate(lines, 1):
        name, comma, numbers = line.partition(",")
        words = numbers.split()
        if not name.strip() or not comma or not all(word.isdecimal() and len(word) < 10 for word in words):
            raise DataError(f"{path}, line {number}: {line!r:.60}; expected an image, a comma, and numbers of classes")
        row = _row(row_of, name.strip(), f"{path}, line {number}")
        for column in dict.fromkeys(map(int, words)):
            if column >= truth.num_classes:
                raise DataError(f"{path}, line {number}: class {column}; there are 0 to {truth.num_classes - 1}")
            rows.append(row)
            columns.append(column)
    return _from_cells(path, rows, columns, np.ones(len(rows), np.int8), truth)


def _of_csv(path: Path, images: ImageSource, truth: PartialLabels) -> PartialLabels:
    try:
        table = pd.read_csv(path, dtype={"image": str, "label": str})
    except ValueError as error:  # pandas' own errors are ValueErrors
        raise DataError(f"{path} is not a table: {error}") from error
    if "image" not in table:
        raise DataError(
            f"{path} has no column 'image'; it has {', '.join(f'{name!r:.60}' for name in table.columns[:6])}"
        )
    row_of = _rows_by_name(images)
    for name in {"image", "label"} & {*table.columns}:
        table[name] = table[name].fillna("")  # pandas reads empty names as NaN
    rows = np.array([_row(row_of, name, f"{path}, line {line}") for line, name in enumerate(table.pop("image"), 2)])
    column_of = {name: column for column, name in enumerate(truth.class_ids)}
    column_of |= {name: column for column, name in enumerate(truth.class_names)}
    long = {"label", "value"} <= {*table.columns}
    names = table["label"] if long else table.columns
    lost = next((name for name in names if name not in column_of), None)
    if lost is not None:
        raise DataError(f"{path}: {lost!r:.60} is not a class; expected classes such as {truth.class_names[0]!r}")
    columns = np.array([column_of[name] for name in names], np.int64)
    try:
        values = (table["value"] if long else table).to_numpy(np.float64, na_value=0.0)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{path}: {error}; expected 1, -1, and 0 or nothing for unknown") from error
    if not np.isin(values, (1, 0, -1)).all():
        raise DataError(f"{path} holds {values[~np.isin(values, (1, 0, -1))][0]:g}; expected 1, -1, and 0 for unknown")
    if not long:
        at, column_at = np.nonzero(values)
        rows, columns, values = rows[at], columns[column_at], values[at, column_at]
    return _from_cells(path, rows[values != 0], columns[values != 0], values[values != 0], truth)


def _from_cells(path: Path, rows: Any, columns: Any, values: Any, truth: PartialLabels) -> PartialLabels:
    try:
        return PartialLabels.from_cells(
            rows,
            columns,
            values,
            num_rows=truth.num_images,
            class_ids=truth.class_ids,
            class_names=truth.class_names,
        )
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _rows_by_name(images: ImageSource) -> dict[str, int]:
    """Return the row of each image by id, and by file name with and without suffix."""
    found: dict[str, int] = {}
    for row in range(len(images)):
        file = PurePosixPath(images.name(row).replace("\\", "/"))
        for name in (file.stem, file.name, images.ids[row]):
            found[name] = row if found.get(name, row) == row else -1
    return found


def _row(row_of: Mapping[str, int], name: str, where: str) -> int:
    row = row_of.get(name, row_of.get(PurePosixPath(name).name))
    if row is None or row < 0:
        raise DataError(f"{where}: image {name!r:.60} is {'one of several' if row else 'not'} in the train split")
    return row


def count_contradictions(labels: PartialLabels, truth: PartialLabels) -> int:
    """Return the number of cells known in both with different signs in `labels` [N, C] and `truth` [N, C]."""
    product = sparse.csr_array(labels.matrix.multiply(truth.matrix))
    return int(np.sum(product.data < 0))

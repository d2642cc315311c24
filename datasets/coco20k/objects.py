"""`objects.csv` beside `labels.csv`: how large and how central COCO's objects are, a row for each present class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from scipy import sparse

from plbench.api import DataError, PartialLabels
from plbench.files import write_text

OBJECTS = "objects.csv"


def write_objects(
    root: Path, image_ids: Sequence[str], class_ids: Sequence[str], prominence: Mapping[str, sparse.csr_array]
) -> None:
    """Write the file, to six digits.

    Args:
        root: folder of the dataset.
        image_ids: [N]. class_ids: [C].
        prominence: [N, C] by "size" and "place", of the same cells in canonical order.
    """
    cells = {by: matrix.tocoo() for by, matrix in prominence.items()}
    rows, columns = cells["size"].coords
    table = pd.DataFrame({"image": np.array(image_ids)[rows], "class": np.array(class_ids)[columns]})
    table = table.assign(**{by: matrix.data for by, matrix in cells.items()})
    write_text(root / OBJECTS, table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def read_objects(
    root: Path, by: Literal["size", "place"], image_ids: Sequence[str], labels: PartialLabels
) -> sparse.csr_array:
    """Return one column of the file for the images of a split, [N, C].

    Args:
        root: folder of the dataset.
        by: the column.
        image_ids: [N] of the split. labels: [N, C], complete.

    Raises:
        DataError: if the file is malformed, or does not name the present classes of these images and no others.
    """
    path = root / OBJECTS
    try:
        table = pd.read_csv(path, dtype={"image": str, "class": str, by: np.float64}, usecols=["image", "class", by])
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise DataError(f"{path} cannot be read as a table of image, class, {by}: {error}") from error
    rows = pd.Index(image_ids).get_indexer(pd.Index(table["image"]))
    columns = pd.Index(labels.class_ids).get_indexer(pd.Index(table["class"]))
    of_split = (rows >= 0) & (columns >= 0)
    order = np.lexsort((columns[of_split], rows[of_split]))
    found = [values[of_split][order] for values in (rows, columns, table[by].to_numpy())]
    expected_rows, expected_columns, signs = labels.cells()
    present = signs > 0
    if (
        not np.array_equal(found[0], expected_rows[present])
        or not np.array_equal(found[1], expected_columns[present])
        or not (np.isfinite(found[2]) & (found[2] > 0)).all()
    ):
        raise DataError(
            f"{path} does not have one row with a number above 0 for each present class of each image of labels.csv; "
            "make both again from COCO's files"
        )
    matrix = sparse.csr_array((found[2], (found[0], found[1])), shape=(labels.num_images, labels.num_classes))
    matrix.sort_indices()
    return matrix

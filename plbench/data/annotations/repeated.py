"""Files that annotations list under several ids."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from plbench.data.annotations.collect import Annotations
from plbench.errors import DataError


def note_on_repeated_files(annotations: Annotations, what: str) -> tuple[str, ...]:
    """Return a sentence on images that are one file, if there are any.

    Args:
        annotations: of one split.
        what: whose they are, such as "split 'train' of 'coco'".

    Raises:
        DataError: if one id says that a class is in such a file, and another that it is not.
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
    ids = " and ".join(annotations.image_ids[int(row)] for row in groups[0][:2])
    return (
        f"{len(repeated):,} image files are listed under more than one id, such as {repeated[0].as_py()} under {ids}; "
        "each id counts as an image",
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
        f"{what}: ids {ids[with_it]} and {ids[without]} are the same file {path}, which one says to show "
        f"{annotations.labels.class_names[column]!r:.60} and the other not to ({clash.size:,} such classes); list the "
        "file once, with all of its annotations"
    )

"""The two layouts of a person's own table: a row for every label, or a row for every image and a column a class."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from plbench.api import Annotations, CellCollector, DataError, PartialLabels, ProgressReport, TextColumn
from plbench.data.spelling import trim_column

from .columns import SPLIT_NAMES, ColumnFinder, Columns, flag_splits
from .file import TableFile, leave_out
from .labels import check_names, collect_labels
from .options import TableOptions
from .values import BAD, CodeOf, Codes, Values, codes_of

SPLITS = ("train", "test", "val")


Contents = tuple[Annotations, npt.NDArray[np.int8] | None]
"""What a whole table says, and [N] index into `SPLITS` of each image; None where the table has no such column."""


def read_table(table: TableFile, options: TableOptions, report: ProgressReport) -> Contents:
    """Read a whole table in whichever layout it has.

    Raises:
        DataError: if it is malformed, or could be read in two ways: line and column, what was found, what was expected.
    """
    finder, values = ColumnFinder(table, options), Values(table.path, options.negative_value)
    columns = finder.find()
    if columns.layout == "wide":
        return _read_wide(table, columns, values, report)
    return _read_long(table, columns, finder, options.label_separator, values, report)


def _read_long(
    table: TableFile,
    columns: Columns,
    finder: ColumnFinder,
    separator: str | None,
    values: Values,
    report: ProgressReport,
) -> Contents:
    """Read a row for every label, or for several. Reads the file twice: once for the classes, once for the labels."""
    assert columns.label is not None
    classes, cells, notes = collect_labels(table, columns.label, separator, lambda done, total: report(done, 2 * total))
    finder.check_value()
    wanted = [name for name in (columns.image, columns.label, columns.value, columns.split) if name is not None]
    if columns.value is None:
        notes.append("every row says that its class is present, as -D value_column=none says")
    collector, mentions = CellCollector(classes, classes), list[pa.Table]()
    start = num_unknown = 0
    for images, texts, *more in table.texts(wanted, lambda done, total: report(total + done, 2 * total)):
        images = trim_column(images)
        signs: Codes = np.ones(len(images), np.int8)
        if columns.value is not None:
            value, first = columns.value, start
            signs = values.signs(codes_of(more[0]), lambda at: table.cell(first + at, value))  # noqa: B023
        if columns.split is not None:
            said = pa.table({"image": images, "split": split_codes(table, columns.split, more[-1], start)})
            mentions.append(said.group_by(["image", "split"], use_threads=False).aggregate([]))
        num_unknown += int(np.count_nonzero(signs == 0))
        rows, labels = cells.expand(texts)
        start += len(images)
        if rows is not None:
            images, signs = images.take(pa.array(rows)), signs[rows]
        if not signs.all():
            labels = pc.if_else(pa.array(signs != 0), labels, None)
        collector.add(images, labels, signs > 0)
    found = collector.finish()
    notes = [*columns.notes, *notes, *values.notes(), *found.notes]
    if num_unknown:
        notes.append(f"{num_unknown:,} rows say that a label is unknown; they make their images known, and no label")
    splits = _splits_of(table, columns, found.image_ids, mentions) if columns.split is not None else None
    return replace(found, notes=tuple(notes)), splits


def _splits_of(
    table: TableFile, columns: Columns, image_ids: TextColumn, mentions: list[pa.Table]
) -> npt.NDArray[np.int8]:
    """Return [N] the split of each image from what rows say: distinct pairs of image and split.

    Raises:
        DataError: if rows of an image disagree.
    """
    pairs = pa.concat_tables(mentions)
    rows = pc.index_in(pairs["image"].cast(pa.large_string()), value_set=image_ids.array).to_numpy()
    said = pairs["split"].to_numpy()
    splits = np.empty(len(image_ids), np.int8)
    splits[rows] = said
    if np.any(clash := splits[rows] != said):
        at = int(np.argmax(clash))
        name, one, other = image_ids[int(rows[at])], SPLITS[said[at]], SPLITS[splits[rows[at]]]
        raise DataError(
            f"{table.path}: image {name!r} ({table.where(columns.image, name)}) is in split {one} by one row and in "
            f"{other} by another; give all its rows the same split"
        )
    return splits


def split_codes(table: TableFile, column: str, texts: pa.Array, start: int) -> npt.NDArray[np.int8]:
    """Return [K] index into `SPLITS` of each text.

    Raises:
        DataError: if one names no split.
    """
    texts = pc.utf8_lower(trim_column(texts))
    index = pc.index_in(texts, value_set=pa.array(SPLIT_NAMES, pa.string()))
    places = pc.fill_null(index, len(SPLIT_NAMES)).to_numpy()
    splits: npt.NDArray[np.int8] = np.array([*SPLIT_NAMES.values(), -1], np.int8)[places]
    if index.null_count and (flags := flag_splits(column)) is not None:
        splits = np.array([flags.get(code, -1) for code in range(BAD + 1)], np.int8)[codes_of(texts)]
    if np.any(splits < 0):
        where, text = table.cell(start + int(np.argmax(splits < 0)), column)
        raise DataError(
            f"{table.path}, {where}: split {text!r:.40} is not valid; expected train, test or val; if {column!r} is "
            "another thing, name the column of splits, such as `options.split_column='part'`, or none"
        )
    return splits


def _read_wide(table: TableFile, columns: Columns, values: Values, report: ProgressReport) -> Contents:
    """Read a row for every image, a column for every class."""
    classes = list(columns.classes)
    keys = [columns.image] if columns.split is None else [columns.image, columns.split]
    notes = [*columns.notes, *check_names(table, classes)]
    images: list[pa.Array] = []
    splits: list[npt.NDArray[np.int8]] = []
    pieces: list[sparse.csr_array] = []
    start = 0
    for block, codes in table.codes(keys, classes, report):
        signs = values.signs(codes, partial(_wide_cell, table, classes, start))
        pieces.append(sparse.csr_array(signs))
        images.append(trim_column(block[0]))
        if columns.split is not None:
            splits.append(split_codes(table, columns.split, block[1], start))
        start += len(codes)
    if not start:
        raise DataError(f"{table.path} has a header and no rows; expected one row per image")
    image_ids = TextColumn.of_arrow(pa.chunked_array(images))
    counted = pc.value_counts(image_ids.array)
    if len(counted) < len(image_ids):
        name = counted.field(0).filter(pc.greater(counted.field(1), 1))[0].as_py()
        raise DataError(
            f"{table.path}, {table.where(columns.image, name)}: image {name!r:.80} has more than one row; a wide table "
            "has one row for each image"
        )
    matrix = sparse.csr_array(sparse.vstack(pieces, format="csr", dtype=np.int8))
    matrix.has_canonical_format = True  # made of dense rows
    notes += values.notes()
    labels = PartialLabels(matrix, tuple(classes), tuple(classes))
    return Annotations(image_ids, labels, notes=tuple(notes)), np.concatenate(splits) if splits else None


def _wide_cell(table: TableFile, classes: list[str], start: int, at: int) -> tuple[str, str]:
    """Return where a cell is, and its text; if it is no value, its column may be no class."""
    row, column = divmod(at, len(classes))
    where, text = table.cell(start + row, classes[column])
    where += f", column {classes[column]!r}"
    if CodeOf()[text] == BAD:
        where += f" (taken for a class; if it is none, give {leave_out([classes[column]])})"
    return where, text

"""The two layouts of a person's own table: a row for every label, or a row for every image and a column a class."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from plbench.api import CellCollector, DataError, PartialLabels, ProgressReport, TextColumn

from .table_file import MOST_COLUMNS, TableFile
from .table_reading import ColumnNames
from .table_values import BAD, Codes, Values, codes_of

SPLITS = ("train", "test", "val")
_SPLIT_NAMES = {"train": 0, "test": 1, "val": 2, "valid": 2, "validation": 2}
_PANDAS_INDEX = "__index_level_"
_LONGEST_NAME = 1000  # letters


@dataclass(frozen=True)
class Contents:
    """What a whole table says.

    Attributes:
        splits: [N] index into `SPLITS`; None where the table has no such column.
        notes: sentences on how it was taken.
    """

    image_ids: TextColumn
    labels: PartialLabels
    splits: npt.NDArray[np.int8] | None
    notes: tuple[str, ...]


def read_long(table: TableFile, names: ColumnNames, values: Values, report: ProgressReport) -> Contents:
    """A row for every label. Reads the file twice: once for the classes, once for the labels.

    Raises:
        DataError: if the file is malformed: line, what was found, what was expected.
    """
    classes, notes = _distinct_labels(table, names.label, lambda done, total: report(done, 2 * total))
    has_value, has_split = names.value in table.columns, names.split in table.columns
    wanted = [names.image, names.label, *[names.value] * has_value, *[names.split] * has_split]
    if left_out := [repr(name) for name in table.columns if name not in wanted]:
        notes.append(f"columns that are no part of a long table were left out: {', '.join(left_out[:8])}")
    if not has_value:
        notes.append(f"there is no column {names.value!r}: every row says that its class is present")
    collector, mentions = CellCollector(classes, classes), _Mentions(table, names.split)
    start = num_unknown = 0
    for images, labels, *more in table.texts(wanted, lambda done, total: report(total + done, 2 * total)):
        images, labels = pc.utf8_trim_whitespace(images), pc.utf8_trim_whitespace(labels)
        signs: Codes = np.ones(len(images), np.int8)
        if has_value:
            signs = values.signs(codes_of(more[0]), partial(_long_cell, table, names.value, start))
        if unknown := int(np.count_nonzero(signs == 0)):
            labels, num_unknown = pc.if_else(pa.array(signs != 0), labels, None), num_unknown + unknown
        collector.add(images, labels, signs > 0)
        if has_split:
            mentions.add(images, more[-1], start)
        start += len(images)
    found = collector.finish()
    notes += [*values.notes(), *found.notes]
    if num_unknown:
        notes.append(f"{num_unknown:,} rows say that a label is unknown; they make their images known, and no label")
    splits = mentions.by_image(found.image_ids, names.image) if has_split else None
    return Contents(found.image_ids, found.labels, splits, tuple(notes))


def _long_cell(table: TableFile, column: str, start: int, at: int) -> tuple[str, str]:
    return table.cell(start + at, column)


def _distinct_labels(table: TableFile, column: str, report: ProgressReport) -> tuple[list[str], list[str]]:
    """The classes, sorted, without white space around them; and notes on what that changed."""
    found: set[str] = set()
    for (labels,) in table.texts([column], report):
        found.update(pc.unique(labels).to_pylist())
        if len(found) > MOST_COLUMNS:
            raise DataError(
                f"{table.path} has more than {MOST_COLUMNS:,} different labels in column {column!r}; is that the "
                "column of classes? Name it, such as -D label_column=class"
            )
    if not found:
        raise DataError(f"{table.path} has a first line and no rows; expected a row for every label")
    spaced = sorted(name for name in found if name != name.strip())
    classes = sorted({name.strip() for name in found})
    if not classes[0]:
        raise DataError(f"{table.path}, {table.where(column, '')} has no label; expected the name of a class")
    notes = [f"white space around {len(spaced):,} labels, such as {spaced[0]!r}, was left out"] if spaced else []
    return classes, notes + check_names(table, classes)


def check_names(table: TableFile, classes: list[str]) -> list[str]:
    """Notes on class names that are easily taken for one another.

    Raises:
        DataError: if a name is endless or has control characters, or two look the same.
    """
    seen: dict[str, str] = {}
    for name in classes:
        if len(name) > _LONGEST_NAME:
            raise DataError(f"{table.path}: class {name[:40]!r}… has a name of {len(name):,} letters; is it a name?")
        if any(unicodedata.category(letter) == "Cc" for letter in name):
            raise DataError(
                f"{table.path}: class {name!r:.60} has a line break or control character in it; a quote may be missing"
            )
        if (other := seen.setdefault(unicodedata.normalize("NFC", name), name)) != name:
            raise DataError(
                f"{table.path}: classes {other!r} and {name!r} look the same and are written with other characters "
                f"({other!a}, {name!a}); write both the same way"
            )
    folded: dict[str, str] = {}
    alike = [(folded[f], name) for name in classes if (f := name.casefold()) in folded or folded.update({f: name})]
    return [f"classes {a!r} and {b!r} differ in capitals alone; they were taken for two" for a, b in alike[:8]]


class _Mentions:
    """The split that each row gives its image, once for every run of rows that say the same."""

    def __init__(self, table: TableFile, column: str) -> None:
        self._table, self._column = table, column
        self._images: list[pa.Array] = []
        self._splits: list[npt.NDArray[np.int8]] = []

    def add(self, images: pa.Array, texts: pa.Array, start: int) -> None:
        """A batch that starts at a row."""
        splits = split_codes(self._table, self._column, texts, start)
        new = np.ones(len(splits), bool)
        new[1:] = (splits[1:] != splits[:-1]) | pc.not_equal(images[1:], images[:-1]).to_numpy(zero_copy_only=False)
        self._images.append(images.filter(pa.array(new)))
        self._splits.append(splits[new])

    def by_image(self, image_ids: TextColumn, column: str) -> npt.NDArray[np.int8]:
        """[N] the split of each image.

        Raises:
            DataError: if rows of an image disagree.
        """
        mentioned = pa.chunked_array(self._images).cast(pa.large_string())
        rows = pc.index_in(mentioned, value_set=image_ids.array).to_numpy()
        said = np.concatenate(self._splits)
        splits = np.empty(len(image_ids), np.int8)
        splits[rows] = said
        if np.any(clash := splits[rows] != said):
            at = int(np.argmax(clash))
            name, one, other = image_ids[int(rows[at])], SPLITS[said[at]], SPLITS[splits[rows[at]]]
            raise DataError(
                f"{self._table.path}: image {name!r} ({self._table.where(column, name)}) is in split {one} by one row "
                f"and in {other} by another; give all its rows the same"
            )
        return splits


def split_codes(table: TableFile, column: str, texts: pa.Array, start: int) -> npt.NDArray[np.int8]:
    """[K] index into `SPLITS` of each text.

    Raises:
        DataError: if one names no split.
    """
    known = pa.array(_SPLIT_NAMES, pa.string())
    index = pc.index_in(pc.utf8_lower(pc.utf8_trim_whitespace(texts)), value_set=known)
    if index.null_count:
        row = start + index.is_null().to_pylist().index(True)
        where, text = table.cell(row, column)
        raise DataError(
            f"{table.path}, {where}: split {text!r:.40} is none; expected train, test or val; where {column!r} is "
            "another thing, name the column of splits, such as -D split_column=part"
        )
    return np.array([*_SPLIT_NAMES.values()], np.int8)[index.to_numpy()]


def read_wide(table: TableFile, names: ColumnNames, values: Values, report: ProgressReport) -> Contents:
    """A row for every image, a column for every class.

    Raises:
        DataError: if the file is malformed: line and column, what was found, what was expected.
    """
    if "" in table.columns:
        raise DataError(
            f"{table.path}: column {table.columns.index('') + 1} has no name; name its class, or leave it out (pandas "
            "writes row numbers so: to_csv(index=False))"
        )
    keys = [names.image, names.split] if names.split in table.columns else [names.image]
    rest = [name for name in table.columns if name not in keys]
    classes = sorted(name for name in rest if not name.startswith(_PANDAS_INDEX))
    if not classes:
        raise DataError(f"{table.path} has no column of a class beside {' and '.join(map(repr, keys))}")
    notes = check_names(table, classes)
    if len(classes) < len(rest):
        notes.append("the column of pandas' row numbers was left out")
    images: list[pa.Array] = []
    splits: list[npt.NDArray[np.int8]] = []
    pieces: list[sparse.csr_array] = []
    start = 0
    for block, codes in table.codes(keys, classes, report):
        signs = values.signs(codes, partial(_wide_cell, table, names.label, classes, start))
        pieces.append(sparse.csr_array(signs))
        images.append(pc.utf8_trim_whitespace(block[0]))
        if len(keys) > 1:
            splits.append(split_codes(table, names.split, block[1], start))
        start += len(codes)
    if not start:
        raise DataError(f"{table.path} has a first line and no rows; expected a row for every image")
    image_ids = TextColumn.of_arrow(pa.chunked_array(images))
    _check_once(table, names.image, image_ids)
    matrix = sparse.csr_array(sparse.vstack(pieces, format="csr", dtype=np.int8))
    matrix.has_canonical_format = True  # made of dense rows
    notes += values.notes()
    labels = PartialLabels(matrix, tuple(classes), tuple(classes))
    return Contents(image_ids, labels, np.concatenate(splits) if splits else None, tuple(notes))


def _wide_cell(table: TableFile, label: str, classes: list[str], start: int, at: int) -> tuple[str, str]:
    """Where a cell is, and its text; if it is no value, the table may be a long one with another name for labels."""
    row, column = divmod(at, len(classes))
    where, text = table.cell(start + row, classes[column])
    where += f", column {classes[column]!r}"
    if label not in table.columns and codes_of(pa.array([text]))[0] == BAD:
        where += " (taken for a class; if each row is one label, name the column of classes: -D label_column=class)"
    return where, text


def _check_once(table: TableFile, column: str, image_ids: TextColumn) -> None:
    counted = pc.value_counts(image_ids.array)
    if len(counted) < len(image_ids):
        name = counted.field(0).filter(pc.greater(counted.field(1), 1))[0].as_py()
        raise DataError(
            f"{table.path}, {table.where(column, name)}: image {name!r:.80} has more than one row; a wide table has "
            "one row for each image"
        )

"""A table in a file, cells as text: what CSV and Parquet have in common, and Parquet."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from plbench.api import DataError, ProgressReport
from plbench.data.spelling import trim, trim_column

from .values import Codes, codes_of

MAX_COLUMNS = 100_000
MAX_NAME = 300  # characters: errors quote several
ROWS = 1 << 16  # at a time
CELLS = 4 << 20  # at a time
_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean)


def _is_one_of(tests: Iterable[Callable[[pa.DataType], bool]], kind: pa.DataType) -> bool:
    return any(test(kind) for test in tests)


def num_sampled(num_columns: int) -> int:
    """Return how many rows `sample` reads: about two hundred thousand cells."""
    return max(20, min(1000, 200_000 // max(1, num_columns)))


def leave_out(columns: Iterable[str]) -> str:
    """Return the option that leaves columns out; of very many, the first."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(columns)
    text = line.getvalue()
    return f"`options.leave_out={text if len(text) < 1000 else f'{text[:300]}…'!r}`"


def nobody(done: int, total: int) -> None:
    """Report to nobody."""


class TableFile(ABC):
    """A table with a name for each column.

    Attributes:
        columns: names in the order of the file, without white space around them. position: of each, by name.
        lists: names of columns whose cells are lists of texts.
        notes: sentences on how the file was read.
    """

    lists: frozenset[str] = frozenset()

    def __init__(self, path: Path, columns: Sequence[str], notes: tuple[str, ...] = ()) -> None:
        """Keep what the file's head says.

        Raises:
            DataError: if a name comes twice, or there are too many.
        """
        self.path, self.columns, self.notes = path, tuple(map(trim, columns)), notes
        if len(self.columns) > MAX_COLUMNS:
            raise DataError(f"{path} has {len(self.columns):,} columns; up to {MAX_COLUMNS:,} are read")
        longest = max(self.columns, key=len, default="")
        if len(longest) > MAX_NAME:
            raise DataError(
                f"{path} has a column whose name is of {len(longest):,} characters, {longest[:60]!r}…; expected up to "
                f"{MAX_NAME:,}"
            )
        self.position = {name: at for at, name in enumerate(self.columns)}
        for at, name in enumerate(self.columns):
            if name and self.position[name] != at:
                raise DataError(f"{path} has two columns named {name!r}; each needs its own name")

    @abstractmethod
    def texts(self, names: Sequence[str], report: ProgressReport = nobody) -> Iterator[list[pa.Array]]:
        """Return some columns, a batch of rows at a time, as Arrow strings without nulls.

        An empty cell is the empty text.

        Raises:
            DataError: if the file is malformed.
        """

    def codes(
        self, keys: Sequence[str], classes: Sequence[str], report: ProgressReport
    ) -> Iterator[tuple[list[pa.Array], Codes]]:
        """Yield blocks of K rows: some columns as `texts` gives them, and codes [K, C] of the values in many others."""
        for batch in self.texts([*keys, *classes], report):
            yield batch[: len(keys)], np.stack([codes_of(texts) for texts in batch[len(keys) :]], axis=1)

    @abstractmethod
    def cell(self, row: int, name: str) -> tuple[str, str]:
        """Return where a person finds a cell ("line 17"), and its text. Rows count from 0; slow: for messages."""

    @abstractmethod
    def sample(self) -> dict[str, list[str]]:
        """Return the texts of the first rows, a thousand of them where columns are few, by column.

        Raises:
            DataError: if one of these rows is malformed.
        """

    def where(self, name: str, text: str) -> str:
        """Return where the first row is that holds a text in a column, but for white space around it; for messages."""
        start = 0
        for (batch,) in self.texts([name]):
            if (index := pc.index(trim_column(batch), text).as_py()) >= 0:
                return self.cell(start + int(index), name)[0]
            start += len(batch)
        raise AssertionError(f"{text!r} is not in column {name!r}")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: of names of columns
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} is not a complete Parquet file ({reason}); write or copy it again") from error


class ParquetTable(TableFile):
    """A Parquet file. Numbers come out as text too: what a value may be is said in one place."""

    def __init__(self, path: Path) -> None:
        """Read the names of the columns from the file's foot."""
        with _opened(path) as file:
            schema, self.num_rows = file.schema_arrow, file.metadata.num_rows
            names = schema.names
        super().__init__(path, names)
        self._written = dict(zip(self.columns, names, strict=True))
        kinds = zip(self.columns, schema.types, strict=True)
        self.lists = frozenset(
            n for n, kind in kinds if _is_one_of(_LISTS, kind) and _is_one_of(_TEXT, kind.value_type)
        )

    def texts(self, names: Sequence[str], report: ProgressReport = nobody) -> Iterator[list[pa.Array]]:
        """Yield batches of at most four million cells."""
        size, done = self.path.stat().st_size, 0
        written = [self._written[name] for name in names]
        with _opened(self.path) as file:
            for batch in file.iter_batches(max(1, min(ROWS, CELLS // len(names))), columns=written):
                yield [self._text(name, batch.column(column)) for name, column in zip(names, written, strict=True)]
                done += len(batch)
                report(size * done // self.num_rows, size)

    def _text(self, name: str, column: pa.Array) -> pa.Array:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        kind = column.type
        if name in self.lists:
            texts = [None if cell is None else json.dumps(cell, ensure_ascii=False) for cell in column.to_pylist()]
            return pc.fill_null(pa.array(texts, pa.string()), "")
        if not _is_one_of((*_TEXT, *_NUMBERS, pa.types.is_null), kind):
            raise DataError(
                f"{self.path}: column {name!r} is of type {kind}; expected text, numbers or booleans; if you do not "
                f"need it, leave it out with {leave_out([name])}"
            )
        if pa.types.is_floating(kind):  # pandas writes a missing number as NaN
            column = pc.if_else(pc.is_nan(column), None, column)
        column.validate(full=True)  # text may not be UTF-8
        return pc.fill_null(column.cast(pa.string()), "")

    def sample(self) -> dict[str, list[str]]:
        """Return a sample, also of columns of types that are not read."""
        with _opened(self.path) as file:
            batch = next(file.iter_batches(num_sampled(len(self.columns))), None)
        columns = batch.to_pydict().values() if batch is not None else [[] for _ in self.columns]
        texts = [["" if cell is None else str(cell) for cell in cells] for cells in columns]
        return dict(zip(self.columns, texts, strict=True))

    def cell(self, row: int, name: str) -> tuple[str, str]:
        """By the number of the row, from 1."""
        cells = (cell for (batch,) in self.texts([name]) for cell in batch)
        return f"row {row + 1}", next(itertools.islice(cells, row, None)).as_py()

"""Text by row in Arrow's layout: nine million image ids take 200 MB, memory-mapped, not a gigabyte of objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from plbench.errors import DataError

_CHUNK = 1 << 16  # rows converted to Python strings at a time
_FIELD = "text"


class TextColumn(Sequence[str]):
    """An immutable column of strings.

    Attributes:
        array: [N] of Arrow's large_string, without nulls; possibly memory-mapped.
    """

    def __init__(self, array: pa.LargeStringArray) -> None:
        """Wrap an Arrow array."""
        assert array.type == pa.large_string() and not array.null_count
        self.array = array

    @classmethod
    def of(cls, texts: Iterable[str]) -> TextColumn:
        """Build a column from Python strings."""
        return cls(pa.array(texts if isinstance(texts, list) else list(texts), pa.large_string()))

    @classmethod
    def of_arrow(cls, array: pa.Array | pa.ChunkedArray) -> TextColumn:
        """Build a column from any Arrow array of strings without nulls."""
        whole = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
        return cls(whole.cast(pa.large_string()))

    def __len__(self) -> int:
        """N."""
        return len(self.array)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> TextColumn: ...
    def __getitem__(self, row: int | slice) -> str | TextColumn:
        """Return the text of a row, or a column for a slice."""
        if isinstance(row, slice):
            return self.take(np.arange(len(self))[row])
        return str(self.array[int(row)].as_py())

    def __iter__(self) -> Iterator[str]:
        """Yield the texts in order, with one chunk in memory at a time."""
        for start in range(0, len(self), _CHUNK):
            yield from self.array.slice(start, _CHUNK).to_pylist()

    def __eq__(self, other: object) -> bool:
        """Return whether another column or sequence has the same texts."""
        if isinstance(other, TextColumn):
            return bool(self.array.equals(other.array))
        if isinstance(other, tuple | list):
            return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # equality goes over every row: not a thing to be a key

    def __repr__(self) -> str:
        """Return the number of rows, and the first ones."""
        return f"TextColumn({len(self):,} rows: {', '.join(map(repr, self[:3]))}{', …' if len(self) > 3 else ''})"

    def take(self, index: npt.NDArray[np.integer]) -> TextColumn:
        """Return the chosen rows, in the order given."""
        return TextColumn(self.array.take(pa.array(index)))

    def save(self, path: Path) -> None:
        """Write an Arrow IPC file."""
        with path.open("wb") as file:
            write_batch(pa.record_batch([self.array], names=[_FIELD]), file)

    @classmethod
    def open(cls, path: Path) -> TextColumn:
        """Memory-map a file written by `save`; DataError if it is invalid."""
        try:
            with pa.memory_map(str(path)) as file:
                array = pa.ipc.open_file(file).get_batch(0).column(_FIELD)
            array.validate(full=True)  # a damaged offset would read out of bounds; takes 0.1 s for nine million ids
            return cls(array)
        except (OSError, pa.ArrowException, KeyError, ValueError, AssertionError) as error:
            raise DataError(f"{path} does not hold a column written by plbench: {error}") from error


class PatternColumn(Sequence[str]):
    """Texts computed from ids by a pattern, such as paths: `train/train_{id[0]}/{id}.jpg`. Nothing is stored."""

    def __init__(self, ids: TextColumn, pattern: str) -> None:
        """Set ids and pattern, a format string in which `{id}` stands for the row's id."""
        self.ids, self.pattern = ids, pattern

    def __len__(self) -> int:
        """N."""
        return len(self.ids)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> PatternColumn: ...
    def __getitem__(self, row: int | slice) -> str | PatternColumn:
        """Return the text of a row, or a column of some."""
        if isinstance(row, slice):
            return PatternColumn(self.ids[row], self.pattern)
        return self.pattern.format(id=self.ids[row])

    def __iter__(self) -> Iterator[str]:
        """Yield the texts in order."""
        return (self.pattern.format(id=identity) for identity in self.ids)

    def take(self, index: npt.NDArray[np.integer]) -> PatternColumn:
        """Return the chosen rows, in the order given."""
        return PatternColumn(self.ids.take(index), self.pattern)


def write_batch(batch: pa.RecordBatch, file: IO[bytes]) -> None:
    """Write one Arrow batch as an IPC file."""
    with pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def take(texts: Sequence[str], index: npt.NDArray[np.integer]) -> Sequence[str]:
    """Return the chosen rows of a column or tuple, in the order given."""
    if isinstance(texts, TextColumn | PatternColumn):
        return texts.take(index)
    return tuple(texts[row] for row in index.tolist())

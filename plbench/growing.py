"""A matrix on disk that one or several processes fill batch by batch, and go on with after an interruption."""

from __future__ import annotations

import io
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from plbench.errors import PlbenchError

_SECONDS_BETWEEN_LOOKS = 0.1


class GrowingMatrix:
    """A float32 matrix [N, D] in a .npy file, which appears under its name when it is whole.

    Until then it lies beside it at its full size, followed by a byte for each batch: 1 where that batch is on disk.
    Writers need no lock, since no two write the same bytes.
    """

    def __init__(self, path: Path, shape: tuple[int, int], batch_rows: int) -> None:
        """Nothing is opened or written yet."""
        self.path, self.shape, self.batch_rows = path, shape, batch_rows
        self.num_batches = -(-shape[0] // batch_rows)
        header = io.BytesIO()
        np.lib.format.write_array_header_2_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
        self._header = header.getvalue()
        self._marks_begin = len(self._header) + 4 * math.prod(shape)
        self._unmarked: list[int] = []

    @property
    def partial(self) -> Path:
        """Where it lies while it grows."""
        return self.path.with_suffix(".partial")

    def rows_of(self, batch: int) -> range:
        """The rows that a batch is."""
        return range(batch * self.batch_rows, min((batch + 1) * self.batch_rows, self.shape[0]))

    @contextmanager
    def opened(self, *, owner: bool) -> Iterator[None]:
        """Open for writing inside the scope.

        Args:
            owner: whether this process makes the file where there is none that fits; others wait for it.

        Raises:
            OSError: if the disk is full or may not be written to.
        """
        if not owner:
            self._wait(lambda: self._fits() or self.is_whole(), begun=False)
        elif not self._fits():
            self._reserve()
        try:
            self._file = self.partial.open("r+b")
        except FileNotFoundError:
            if not self.is_whole():
                raise
            self._file = self.path.open("r+b")
        with self._file:
            yield

    def batches_to_do(self, rank: int, num_ranks: int) -> list[int]:
        """Batches of one of several processes that are not on disk: the same ones, whenever it asks."""
        return [batch for batch in np.flatnonzero(~self._marks()).tolist() if batch % num_ranks == rank]

    def write(self, batch: int, values: np.ndarray) -> None:
        """Writes the rows of a batch, float32 [b, D]; `note` makes them count."""
        self._file.seek(len(self._header) + 4 * self.shape[1] * self.rows_of(batch).start)
        self._file.write(np.ascontiguousarray(values, dtype="<f4").data)
        self._unmarked.append(batch)

    def note(self) -> None:
        """Marks what was written, once it is on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        for batch in self._unmarked:
            self._file.seek(self._marks_begin + batch)
            self._file.write(b"\1")
        self._file.flush()
        self._unmarked.clear()

    def num_rows_done(self) -> int:
        """Rows that are there, of all processes; those that others have not marked are not known."""
        marks = self._marks()
        marks[self._unmarked] = True
        missing_in_last = self.num_batches * self.batch_rows - self.shape[0] if marks[-1:].all() else 0
        return int(marks.sum()) * self.batch_rows - missing_in_last

    def finish(self, *, owner: bool) -> None:
        """Gives the whole file its name, or, where another process owns it, waits until it has.

        Raises:
            PlbenchError: if it is taken away meanwhile.
        """
        self.note()
        if not owner:
            self._wait(self.is_whole, begun=True)
            return
        self._wait(lambda: bool(self._marks().all()), begun=True)
        self._file.truncate(self._marks_begin)
        os.fsync(self._file.fileno())
        self.partial.replace(self.path)

    def is_whole(self) -> bool:
        """Whether it lies under its name."""
        return self._is_of(self.path, self._marks_begin)

    def remove(self) -> None:
        """Takes away what is not whole."""
        self.partial.unlink(missing_ok=True)

    def _marks(self) -> np.ndarray:
        """Which batches are on disk, bool [num_batches]."""
        content = os.pread(self._file.fileno(), self.num_batches, self._marks_begin)
        if len(content) < self.num_batches:  # it is whole: the owner has cut the marks off
            return np.ones(self.num_batches, dtype=np.bool_)
        return np.frombuffer(content, np.uint8) == 1

    def _fits(self) -> bool:
        """Whether what lies there began as this matrix, in batches of this size."""
        return self._is_of(self.partial, self._marks_begin + self.num_batches)

    def _is_of(self, path: Path, size: int) -> bool:
        try:
            with path.open("rb") as file:
                return os.fstat(file.fileno()).st_size == size and file.read(len(self._header)) == self._header
        except OSError:
            return False

    def _reserve(self) -> None:
        """Makes the file at its full size, so that a disk too small is an error now and not hours later."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.partial.with_suffix(".reserved")
        try:
            with fresh.open("wb") as file:
                file.write(self._header)
                zeros = np.zeros(1 << 20, np.uint8)
                remaining = self._marks_begin - len(self._header) + self.num_batches
                while remaining > 0:
                    file.write(zeros[:remaining].data)
                    remaining -= zeros.size
            fresh.replace(self.partial)
        finally:
            fresh.unlink(missing_ok=True)

    def _wait(self, until: Callable[[], bool], *, begun: bool) -> None:
        while not until():
            if begun and not self.partial.exists() and not self.is_whole():
                raise PlbenchError(
                    f"{self.partial} was taken away while it grew, by a process that failed or by hand; the message of "
                    "that process says why; run the same command again"
                )
            time.sleep(_SECONDS_BETWEEN_LOOKS)

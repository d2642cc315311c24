"""An array on disk that one or several processes fill batch by batch, resumable after an interruption."""

from __future__ import annotations

import errno
import io
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
import xxhash

from plbench.data.digests import signature
from plbench.errors import PlbenchError

PARTIAL = ".partial"
_SECONDS_BETWEEN_LOOKS = 0.1
_DONE = 1 << 63
_CHECKED_AT_A_TIME = 8 << 20  # bytes, small enough to balance threads


def open_matrix(path: Path, num_rows: int) -> np.ndarray | None:
    """Return a complete array, memory-mapped, [N, …], without verifying values.

    None if there is no file, or it is not a complete array of N rows written by `GrowingMatrix`.
    """
    layout = _layout_of(path)
    return None if layout is None or layout.shape[0] != num_rows else np.load(path, mmap_mode="r", allow_pickle=False)


def find_damage(path: Path) -> str | None:
    """Return a message if a complete matrix is damaged, otherwise None. May raise OSError.

    The whole file is read, once per process while it does not change; this is cheap compared with using it.
    """
    return _damage_of(path, signature(path.stat()))


def forget_damaged(path: Path) -> str | None:
    """Unmark damaged batches of an incomplete matrix, so that they are recomputed.

    Called by one process, before any opens it.

    Returns:
        A message on them; None if there are none.

    Raises:
        OSError: if it cannot be read or written.
    """
    layout = _layout_of(path.with_suffix(PARTIAL))
    wrong = [] if layout is None else layout._wrong_batches(is_whole=False)
    if layout is None or not wrong:
        return None
    with layout.path.open("r+b") as file:
        for batch in wrong:
            file.seek(layout._marks_begin + 8 * batch)
            file.write(bytes(8))
    return layout._in_words(wrong)


def open_checked(path: Path, num_rows: int) -> np.ndarray | None:
    """Return an array as `open_matrix` does, after verifying values; if incomplete, call `forget_damaged`.

    For one process. May raise OSError.
    """
    if path.exists():
        return None if find_damage(path) is not None else open_matrix(path, num_rows)
    forget_damaged(path)
    return None


def _checksum(content: bytes | memoryview) -> int:
    # not cryptographic; the highest bit marks that there is a checksum (`_DONE`)
    return xxhash.xxh3_64_intdigest(content) >> 1


@lru_cache(256)
def _damage_of(path: Path, seen: bytes) -> str | None:
    layout = _layout_of(path)
    if layout is None:
        return "it is not whole, or not of plbench's making"
    wrong = layout._wrong_batches(is_whole=True)
    return layout._in_words(wrong) if wrong else None


def _layout_of(path: Path) -> GrowingMatrix | None:
    """Return the matrix of a file, by its size and header; None if it is not one."""
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
        with path.open("rb") as file:
            file.seek(values.offset + values.nbytes)
            batch_rows = int.from_bytes(file.read(8), "little")
        layout = GrowingMatrix(path, values.shape, batch_rows, values.dtype.str)
    except Exception:  # on a damaged header, numpy, ast and tokenize raise different types
        return None
    return layout if layout.is_whole() else None


class GrowingMatrix:
    """An array [N, …] in a .npy file, which is renamed to its final name when complete.

    The array is followed by the number of rows in a batch and a word for each batch, all little-endian uint64: 0 while
    it is not on disk, then 2^63 + 63 bits of XXH3 of its bytes as they were computed; `find_damage` compares them.
    Until it is complete, the file has a temporary name and its full size. Writers need no lock, since no two write the
    same bytes.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], batch_rows: int, dtype: str = "<f4") -> None:
        """Store the arguments; nothing is opened or written yet. `dtype` is numpy's, little-endian."""
        self.path, self.shape, self.batch_rows, self.dtype = path, shape, batch_rows, dtype
        self.num_batches = -(-shape[0] // batch_rows)
        header = io.BytesIO()
        np.lib.format.write_array_header_2_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
        self._header = header.getvalue()
        self._row_bytes = np.dtype(dtype).itemsize * math.prod(shape[1:])
        # 8 bytes for the number of rows in a batch, which comes before the marks
        self._marks_begin = len(self._header) + self._row_bytes * shape[0] + 8
        self._num_bytes = self._marks_begin + 8 * self.num_batches
        self._unmarked: dict[int, int] = {}

    @property
    def partial(self) -> Path:
        """Temporary path of the incomplete file."""
        return self.path.with_suffix(PARTIAL)

    def rows_of(self, batch: int) -> range:
        """Return the rows of a batch."""
        return range(batch * self.batch_rows, min((batch + 1) * self.batch_rows, self.shape[0]))

    @contextmanager
    def opened(self, *, owner: bool) -> Iterator[None]:
        """Open for writing inside the scope; OSError if the disk is full or may not be written to.

        Args:
            owner: whether this process creates the file if there is no valid one; others wait for it.
        """
        if not owner:
            self._wait(lambda: self._is_of(self.partial) or self.is_whole(), begun=False)
        elif not self._is_of(self.partial):
            self._reserve()
        try:
            self._file = self.partial.open("r+b")
        except FileNotFoundError:
            if not self.is_whole():
                raise
            # the owner has finished it meanwhile
            self._file = self.path.open("r+b")
        with self._file:
            yield

    def batches_to_do(self, rank: int, num_ranks: int) -> list[int]:
        """Return the missing batches of one of several processes; the result is stable."""
        return [batch for batch in np.flatnonzero(~self._marks()).tolist() if batch % num_ranks == rank]

    def write(self, batch: int, values: np.ndarray) -> None:
        """Write the rows of a batch, [b, …]; `note` marks them as done."""
        content = np.ascontiguousarray(values, dtype=self.dtype).data.cast("B")
        self._file.seek(self._place_of(batch)[0])
        self._file.write(content)
        self._unmarked[batch] = _DONE | _checksum(content)

    def note(self) -> None:
        """Mark written batches as done, after flushing to disk."""
        self._file.flush()
        # before the marks: after a crash, no mark may refer to rows that did not reach the disk
        os.fsync(self._file.fileno())
        for batch, mark in self._unmarked.items():
            self._file.seek(self._marks_begin + 8 * batch)
            self._file.write(mark.to_bytes(8, "little"))
        self._file.flush()
        self._unmarked.clear()

    def num_rows_done(self) -> int:
        """Return the number of finished rows of all processes, as far as they are marked."""
        marks = self._marks()
        marks[list(self._unmarked)] = True
        missing_in_last = self.num_batches * self.batch_rows - self.shape[0] if marks[-1:].all() else 0
        return int(marks.sum()) * self.batch_rows - missing_in_last

    def finish(self, *, owner: bool) -> None:
        """Rename the complete file, or wait until its owner has; PlbenchError if it is removed meanwhile."""
        self.note()
        if owner:
            self._wait(lambda: bool(self._marks().all()), begun=True)
            self.partial.replace(self.path)
        else:
            self._wait(self.is_whole, begun=True)

    def is_whole(self) -> bool:
        """Return whether it is complete under its final name."""
        return self._is_of(self.path)

    def remove(self) -> None:
        """Remove the incomplete file if possible, without hiding an error that is being raised."""
        with suppress(OSError):
            self.partial.unlink(missing_ok=True)

    def _marks(self) -> np.ndarray:
        """Return which batches are on disk, bool [num_batches]."""
        return self._read_marks(self._file.fileno()) >= _DONE

    def _read_marks(self, descriptor: int) -> np.ndarray:
        # bypass the file object's buffer, which does not see writes of other processes
        marks = os.pread(descriptor, 8 * self.num_batches, self._marks_begin)
        if len(marks) < 8 * self.num_batches:
            raise OSError(errno.EIO, f"the file was cut short while it was in use, to {len(marks)} bytes of its marks")
        return np.frombuffer(marks, "<u8")

    def _is_of(self, path: Path) -> bool:
        """Return whether a file was started as this matrix, with batches of this size."""
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size != self._num_bytes or file.read(len(self._header)) != self._header:
                    return False
                file.seek(self._marks_begin - 8)
                return int.from_bytes(file.read(8), "little") == self.batch_rows
        except OSError:
            return False

    def _place_of(self, batch: int) -> tuple[int, int]:
        """Return a batch's offset in the file, and its size in bytes."""
        rows = self.rows_of(batch)
        return len(self._header) + self._row_bytes * rows.start, self._row_bytes * len(rows)

    def _wrong_batches(self, *, is_whole: bool) -> list[int]:
        """Return damaged batches; unmarked ones do not count while the file is incomplete."""
        with self.path.open("rb") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
            descriptor = file.fileno()
            marks = self._read_marks(descriptor)
            expected = np.flatnonzero((marks >= _DONE) | is_whole)
            groups = np.array_split(expected, max(1, self._num_bytes // _CHECKED_AT_A_TIME))

            def damaged(batches: np.ndarray) -> list[int]:
                places = ((batch, self._place_of(batch)) for batch in batches.tolist())
                # pread, since threads share a file descriptor and its position
                sums = ((batch, _checksum(os.pread(descriptor, size, begin))) for batch, (begin, size) in places)
                return [batch for batch, found in sums if marks[batch] != _DONE | found]

            return [batch for batches in pool.map(damaged, groups) for batch in batches]

    def _in_words(self, wrong: Sequence[int]) -> str:
        rows = self.rows_of(wrong[0])
        more = f" and {len(wrong) - 1:,} other blocks" if len(wrong) > 1 else ""
        return f"rows {rows.start:,} to {rows.stop - 1:,}{more} do not match their checksums"

    def _reserve(self) -> None:
        """Create the file at its full size, so that lack of disk space is an error now and not hours later."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(self.path.parent).free) < self._num_bytes:  # known before the disk is full
            needed = f"{self._num_bytes / 2**30:,.1f} GiB are needed and {free / 2**30:,.1f} GiB are free"
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {needed}")
        # under another name until fully allocated: other processes open the partial file as soon as it exists
        fresh = self.partial.with_suffix(".reserved")
        try:
            with fresh.open("wb") as file:
                file.write(self._header)
                # written, since a sparse file would not reserve space
                zeros = np.zeros(1 << 20, np.uint8)
                remaining = self._num_bytes - len(self._header)
                while remaining > 0:
                    file.write(zeros[:remaining].data)
                    remaining -= zeros.size
                file.seek(self._marks_begin - 8)
                file.write(self.batch_rows.to_bytes(8, "little"))
            fresh.replace(self.partial)
        finally:
            fresh.unlink(missing_ok=True)

    def _wait(self, until: Callable[[], bool], *, begun: bool) -> None:
        while not until():
            if begun and not self.partial.exists() and not self.is_whole():
                raise PlbenchError(
                    f"{self.partial} was removed while it was being written, by a failed process or by hand; the "
                    "message of that process says why; repeat the command"
                )
            time.sleep(_SECONDS_BETWEEN_LOOKS)

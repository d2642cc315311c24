"""What files hold, as sha256. Each file is read once and remembered in the cache, until anything about it changes.

A file is recognised by its path, size, inode, and the times of its last modification and of its last change of status
(ctime). No program can set the last of these, so that a file edited in place and given its old time back is read again.
(Windows has no such time.)
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plbench.errors import DataError
from plbench.files import unwritable

Sha256s = npt.NDArray[np.uint8]
"""[N, 32]: the sha256 of each of N things; all zeros where one is not there."""

Report = Callable[[int, int], None]

_TABLE = "CREATE TABLE IF NOT EXISTS digests (place BLOB PRIMARY KEY, seen BLOB, sha256 BLOB, sum BLOB) WITHOUT ROWID"
_FORMAT = 1
_FRESH_NS = 2 * 10**9  # a file changed so lately may change again within the same tick of the disk's clock
_CHUNK = 4096  # files between two writes to the memory: what a process that is killed may have read in vain
_THREADS = 8  # more than cores: on network disks most of the time is waiting
_PATIENCE = 2.0  # seconds of work that need no bar


def signature(status: os.stat_result) -> bytes:
    """Return what changes about a file whenever its content does."""
    signed = (number % 2**64 - 2**63 for number in (status.st_ino, status.st_dev))
    return struct.pack("<5q", status.st_size, status.st_mtime_ns, status.st_ctime_ns, *signed)


def settled(status: os.stat_result) -> bool:
    """Return whether a file changed long enough ago that another change would show in its times."""
    return time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _FRESH_NS


_watched: dict[str, bytes] | None = None


@contextlib.contextmanager
def watching() -> Iterator[dict[str, bytes]]:
    """Yield the files whose sha256 is asked for meanwhile, in any thread: by absolute path the `signature` of each.

    It is empty for a file that is not there, that changed so lately that another change might not show, or that
    changed meanwhile.
    """
    global _watched
    _watched = {}
    try:
        yield _watched
    finally:
        _watched = None


def file_sha256(path: Path, cache: Path | None = None) -> str:
    """Return hex sha256 of a file, remembered in the cache.

    Raises:
        DataError: if the file cannot be read.
    """
    return file_sha256s([path], cache)[0]


def file_sha256s(paths: Sequence[Path], cache: Path | None = None) -> list[str]:
    """Return hex sha256 of each file; for thousands, far quicker than one by one.

    Raises:
        DataError: if one cannot be read.
    """
    found = files_sha256([os.path.abspath(path) for path in paths], cache)
    for path, digest in zip(paths, found, strict=True):
        if not digest.any():
            try:
                path.open("rb").close()
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error.strerror}") from error
            raise DataError(f"{path} cannot be read")
    return [digest.tobytes().hex() for digest in found]


def sha256_of(sha256s: Sha256s) -> str:
    """Return hex sha256 over the digests of many things, in order."""
    return hashlib.sha256(np.ascontiguousarray(sha256s).data).hexdigest()


def files_sha256(paths: Sequence[str], cache: Path | None, report: Report = lambda done, total: None) -> Sha256s:
    """Return the sha256 of each file.

    Args:
        paths: absolute.
        cache: folder that remembers; None to read every file.
        report: is told files done and in all, where this takes more than two seconds.
    """

    def status_of(row: int) -> os.stat_result | None:
        try:
            status = os.stat(paths[row])
        except OSError:
            status = None
        if _watched is not None:
            seen = signature(status) if status is not None and settled(status) else b""
            _watched[paths[row]] = seen if _watched.get(paths[row], seen) == seen else b""
        return status

    def digest(row: int) -> bytes | None:
        try:
            with open(paths[row], "rb") as file:
                return hashlib.file_digest(file, "sha256").digest()
        except OSError:
            return None

    return remembered(len(paths), lambda row: paths[row], status_of, digest, cache, report)


def remembered(
    number: int,
    place_of: Callable[[int], str],
    status_of: Callable[[int], os.stat_result | None],
    digest: Callable[[int], bytes | None],
    cache: Path | None,
    report: Report = lambda done, total: None,
) -> Sha256s:
    """Return the sha256 of N things in files.

    From the memory where their files are as they were, else computed, in threads.

    Args:
        number: N.
        place_of: a text that names the thing of a row, such as its path. status_of: of its file.
        digest: computes its sha256; None where it cannot be read.
        cache: folder that remembers; None for none.
        report: is told things done and in all, where this takes more than two seconds.

    Raises:
        StoreError: if the cache cannot be written.
    """
    found = np.zeros((number, 32), np.uint8)
    start = time.monotonic()
    with _Memory.opened(cache) as memory, ThreadPoolExecutor(_THREADS) as pool:
        for begin in range(0, number, _CHUNK):
            rows = range(begin, min(begin + _CHUNK, number))
            statuses = [status_of(row) for row in rows]
            places = [hashlib.blake2b(place_of(row).encode(errors="surrogateescape")).digest()[:16] for row in rows]
            news = []
            for row, place, status in zip(rows, places, statuses, strict=True):
                if status is not None:
                    known = memory.get(place, signature(status))
                    if known is None:
                        news.append((row, place, status))
                    else:
                        found[row] = np.frombuffer(known, np.uint8)
            digests = pool.map(digest, [row for row, _, _ in news])
            kept = []
            for done, ((row, place, status), computed) in enumerate(zip(news, digests, strict=True), 1):
                if computed is not None:
                    found[row] = np.frombuffer(computed, np.uint8)
                    if settled(status):
                        kept.append((place, signature(status), computed))
                if time.monotonic() - start > _PATIENCE:
                    report(begin + done, number)
            memory.put(kept)
    if time.monotonic() - start > _PATIENCE:
        report(number, number)
    return found


class _Memory:
    """Digests by place in SQLite, which several processes may write to and any of them be killed.

    Every row has a sum of its own: one that was damaged is not there.
    """

    def __init__(self, connection: sqlite3.Connection | None) -> None:
        self._connection = connection

    @classmethod
    @contextlib.contextmanager
    def opened(cls, cache: Path | None) -> Iterator[_Memory]:
        """Open the memory of a cache; an empty one where there is no cache."""
        if cache is None:
            yield cls(None)
            return
        path = cache / f"digests-{_FORMAT}.sqlite"
        try:
            cache.mkdir(parents=True, exist_ok=True)
            connection = _connected(path)
        except (OSError, sqlite3.OperationalError) as error:
            raise unwritable(path, error) from error
        with contextlib.closing(connection):
            yield cls(connection)

    def get(self, place: bytes, seen: bytes) -> bytes | None:
        """Return the digest of a thing whose file is as it was seen."""
        if self._connection is None:
            return None
        try:
            row = self._connection.execute("SELECT seen, sha256, sum FROM digests WHERE place = ?", (place,)).fetchone()
        except sqlite3.DatabaseError:
            return None
        if row is None or row[0] != seen or row[2] != _sum(place, seen, row[1]):
            return None
        return bytes(row[1])

    def put(self, rows: Sequence[tuple[bytes, bytes, bytes]]) -> None:
        """Remember (place, seen, digest)."""
        if self._connection is None or not rows:
            return
        with contextlib.suppress(sqlite3.DatabaseError), self._connection:  # a full disk costs the memory alone
            self._connection.executemany(
                "INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?)", [(*row, _sum(*row)) for row in rows]
            )


def _sum(place: bytes, seen: bytes, digest: bytes) -> bytes:
    return hashlib.blake2b(place + seen + digest, digest_size=8).digest()


def _connected(path: Path) -> sqlite3.Connection:
    """Return the database; a damaged one is set aside, since what it says can be found out again."""
    for is_last in (False, True):
        connection = sqlite3.connect(path, timeout=60)
        try:
            with connection:
                connection.execute(_TABLE)
            return connection
        except sqlite3.OperationalError:
            connection.close()
            raise
        except sqlite3.DatabaseError:  # not a database
            connection.close()
            if is_last:
                raise
            with contextlib.suppress(FileNotFoundError):  # another process was first
                path.replace(path.with_name(f"{path.name}.damaged"))
    raise AssertionError("the second time it is a new one")

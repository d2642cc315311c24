"""Cached sha256 of files. Each file is read once, and again only if anything about it changes.

A file is identified by path, size, inode, mtime and ctime. Programs cannot set ctime, so a file that is edited in place
and has its mtime restored is read again. (Windows has no ctime.)
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
"""[N, 32]: the sha256 of N items; all zeros if missing."""

Report = Callable[[int, int], None]

_TABLE = "CREATE TABLE IF NOT EXISTS digests (place BLOB PRIMARY KEY, seen BLOB, sha256 BLOB, sum BLOB) WITHOUT ROWID"
_DAMAGE = (sqlite3.DatabaseError, UnicodeDecodeError)  # the latter if SQLite's message quotes invalid text
_FORMAT = 1
_FRESH_NS = 2 * 10**9  # a file changed this recently may change again within the same tick of the disk's clock
_CHUNK = 4096  # files between two writes to the cache, lost if the process is killed
_THREADS = 8  # more than cores: on network disks most of the time is waiting
_PATIENCE = 2.0  # seconds of work without a progress bar


def signature(status: os.stat_result) -> bytes:
    """Return the metadata that changes whenever a file's content does."""
    signed = (number % 2**64 - 2**63 for number in (status.st_ino, status.st_dev))
    return struct.pack("<5q", status.st_size, status.st_mtime_ns, status.st_ctime_ns, *signed)


def settled(status: os.stat_result) -> bool:
    """Return whether a file's last change is old enough that another would change its times."""
    return time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _FRESH_NS


_watched: dict[str, bytes] | None = None


@contextlib.contextmanager
def watching() -> Iterator[dict[str, bytes]]:
    """Yield the files hashed inside the scope, in any thread: the `signature` of each by absolute path.

    The signature is empty for a file that is missing, is not `settled`, or changed meanwhile.
    """
    global _watched
    _watched = {}
    try:
        yield _watched
    finally:
        _watched = None


def file_sha256(path: Path, cache: Path | None = None) -> str:
    """Return the hex sha256 of a file, cached; DataError if it cannot be read."""
    return file_sha256s([path], cache)[0]


def file_sha256s(paths: Sequence[Path], cache: Path | None = None) -> list[str]:
    """Return the hex sha256 of each file; for thousands of files much faster than one by one.

    Raises:
        DataError: if one cannot be read.
    """
    found = files_sha256(len(paths), lambda row: os.path.abspath(paths[row]), cache)
    for path, digest in zip(paths, found, strict=True):
        if not digest.any():
            try:
                path.open("rb").close()
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error.strerror}") from error
            raise DataError(f"{path} cannot be read")
    return [digest.tobytes().hex() for digest in found]


def sha256_of(sha256s: Sha256s) -> str:
    """Return the hex sha256 of many digests, in order."""
    return hashlib.sha256(np.ascontiguousarray(sha256s).data).hexdigest()


def files_sha256(
    number: int, path_of: Callable[[int], str], cache: Path | None, report: Report = lambda done, total: None
) -> Sha256s:
    """Return the sha256 of each of N files; zeros if a file cannot be read.

    Args:
        number: N.
        path_of: absolute path by row, computed on demand since nine million of them need not be in memory.
        cache: folder of the cache; None to read every file.
        report: receives the number of files done and in total, if this takes more than two seconds.
    """

    def status_of(row: int) -> os.stat_result | None:
        path = path_of(row)
        try:
            status = os.stat(path)
        except OSError:
            status = None
        if _watched is not None:
            seen = signature(status) if status is not None and settled(status) else b""
            _watched[path] = seen if _watched.get(path, seen) == seen else b""
        return status

    def digest(row: int) -> bytes | None:
        try:
            with open(path_of(row), "rb") as file:
                return hashlib.file_digest(file, "sha256").digest()
        except OSError:
            return None

    return remembered(number, path_of, status_of, digest, cache, report)


def remembered(
    number: int,
    place_of: Callable[[int], str],
    status_of: Callable[[int], os.stat_result | None],
    digest: Callable[[int], bytes | None],
    cache: Path | None,
    report: Report = lambda done, total: None,
) -> Sha256s:
    """Return the sha256 of N items in files, [N, 32], cached as long as the files are unchanged.

    Args:
        number: N.
        place_of: a text that identifies the item of a row, such as its path. status_of: of its file.
        digest: computes its sha256; None if it cannot be read.
        cache: folder of the cache; None for none.
        report: receives the number of items done and in total, if this takes more than two seconds.

    Raises:
        StoreError: if the cache cannot be written.
    """
    found = np.zeros((number, 32), np.uint8)
    start = time.monotonic()
    with _opened_memory(cache) as memory, ThreadPoolExecutor(_THREADS) as pool:
        for begin in range(0, number, _CHUNK):
            news = []
            for row in range(begin, min(begin + _CHUNK, number)):
                status = status_of(row)
                if status is None:
                    continue
                place = hashlib.blake2b(place_of(row).encode(errors="surrogateescape")).digest()[:16]
                known = None if memory is None else _recall(memory, place, signature(status))
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
                        seen = signature(status)
                        kept.append((place, seen, computed, _sum(place, seen, computed)))
                if time.monotonic() - start > _PATIENCE:
                    report(begin + done, number)
            if memory is not None and kept:
                with contextlib.suppress(*_DAMAGE), memory:  # on a full disk, only caching fails
                    memory.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?)", kept)
    if time.monotonic() - start > _PATIENCE:
        report(number, number)
    return found


@contextlib.contextmanager
def _opened_memory(cache: Path | None) -> Iterator[sqlite3.Connection | None]:
    """Open the SQLite cache of digests, which is safe with several writers and killed processes.

    Every row has a checksum; damaged rows are ignored. None if there is no cache.
    """
    if cache is None:
        yield None
        return
    path = cache / f"digests-{_FORMAT}.sqlite"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        connection = _connected(path)
    except (OSError, sqlite3.OperationalError) as error:
        raise unwritable(path, error) from error
    with contextlib.closing(connection):
        yield connection


def _recall(memory: sqlite3.Connection, place: bytes, seen: bytes) -> bytes | None:
    """Return the cached digest of an item whose file is unchanged."""
    try:
        row = memory.execute("SELECT seen, sha256, sum FROM digests WHERE place = ?", (place,)).fetchone()
    except _DAMAGE:
        return None
    return bytes(row[1]) if row and row[0] == seen and row[2] == _sum(place, seen, row[1]) else None


def _sum(place: bytes, seen: bytes, digest: bytes) -> bytes:
    return hashlib.blake2b(place + seen + digest, digest_size=8).digest()


def _connected(path: Path, *, is_new: bool = False) -> sqlite3.Connection:
    """Return the database; a damaged one is set aside, since it can be recomputed."""
    connection = sqlite3.connect(path, timeout=60)
    try:
        with connection:
            connection.execute(_TABLE)
    except _DAMAGE as error:
        connection.close()
        # the operational error without a specific code means that the file is not an SQLite database
        is_sound = isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode != sqlite3.SQLITE_ERROR
        if is_new or is_sound:
            raise
        with contextlib.suppress(FileNotFoundError):  # another process was first
            path.replace(path.with_name(f"{path.name}.damaged"))
        return _connected(path, is_new=True)
    return connection

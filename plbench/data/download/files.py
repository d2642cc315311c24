"""Download published files in parallel and unpack them; each is either complete or downloaded again."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from plbench.data.download.archives import unpack
from plbench.data.download.remote import (
    RECORDS,
    FileRecord,
    RemoteFile,
    bytes_of_part,
    is_here,
    is_kept,
    part_path,
    read_record,
    record_path,
    size_in_words,
    write_record,
)
from plbench.data.download.transfer import Transfer, remote_size
from plbench.errors import DataError
from plbench.files import unwritable
from plbench.files.paths import refuse_links

_GLANCE = 0.1  # seconds between reports
_GRACE = 2.0  # seconds for threads to notice that they should stop


def total_bytes(files: Sequence[RemoteFile], root: Path) -> int | None:
    """Return the number of bytes to download; None if neither publisher nor server states a file's size."""
    sizes = _sizes([file for file in _distinct(files) if not is_here(file, root)], root).values()
    return None if None in sizes else sum(size for size in sizes if size is not None)


def download(
    files: Sequence[RemoteFile],
    root: Path,
    report: Callable[[int, int], None],
    *,
    parallel: int = 4,
    note: Callable[[str], None],
) -> None:
    """Download missing files, verify them, and unpack archives.

    If it was killed, the next call continues where it stopped. Downloaded archives are deleted after unpacking; those
    that were there before are verified, unpacked and kept.

    Args:
        report: called from this thread with (bytes downloaded, total bytes); the total grows if sizes are unknown.
        parallel: maximum number of concurrent downloads.
        note: called from this thread with messages for the user.

    Raises:
        DataError: if a file is not available, or differs from what its publisher states. Other downloads stop; their
            data is kept.
        StoreError: if the root cannot be written to, or the disk is full.
    """
    files = _distinct(files)
    if all(is_here(file, root) for file in files):
        return
    with _only_one(root, note):
        files = [file for file in files if not is_here(file, root)]  # another process may have downloaded some
        sizes = _sizes(files, root)
        _check_space(sizes, root, parallel)
        stop = threading.Event()
        notes: queue.SimpleQueue[str] = queue.SimpleQueue()
        transfers = [Transfer(file, root, stop, notes.put) for file in files]
        before = [transfer.received for transfer in transfers]

        def progress() -> tuple[int, int]:
            done = total = 0
            for transfer, start in zip(transfers, before, strict=True):
                fetched, size = max(transfer.received - start, 0), sizes[transfer.file]
                if size is None and transfer.total is not None:
                    size = transfer.total - start
                done += fetched
                total += fetched + 1 if size is None else max(size, fetched)  # of unknown size: at least one more byte
            return done, total

        pool = concurrent.futures.ThreadPoolExecutor(max(parallel, 1), thread_name_prefix="download")
        futures = [pool.submit(_obtain, transfer) for transfer in transfers]
        try:
            pending = set(futures)
            while pending:
                _, pending = concurrent.futures.wait(pending, _GLANCE, concurrent.futures.FIRST_EXCEPTION)
                while not notes.empty():
                    note(notes.get_nowait())
                report(*progress())
                for future in futures:  # in the order of the files, in case several failed
                    if future.done():
                        future.result()
        finally:  # also on Ctrl-C, which only this thread receives
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for transfer in transfers:
                transfer.interrupt()
            concurrent.futures.wait([future for future in futures if not future.cancelled()], _GRACE)


def _obtain(transfer: Transfer) -> None:
    """Download and unpack one file, in its own thread."""
    transfer.pulse()
    file, root = transfer.file, transfer.root
    path = root / file.path
    for written in (part_path(file, root), record_path(file, root)):
        refuse_links(root, written)
    record = read_record(file, root)
    if record is None or not is_kept(file, root):
        if path.exists() and (record is None or record.by_hand):
            by_hand, checksum = transfer.adopt(), file.checksum
        else:
            by_hand, checksum = False, transfer.run()
        record = FileRecord(path.stat().st_size, checksum, "kept", by_hand)
        write_record(file, root, record)
        transfer.clear()
    if file.unpack is None:
        return
    folder = root / file.unpack
    write_record(file, root, dataclasses.replace(record, state="unpacking"))
    refuse_links(root, folder)
    transfer.note(f"unpacking {file.name} ({size_in_words(record.size)}) into {folder}")
    unpack(path, folder, lambda done, total: transfer.pulse())
    absent = [made for made in file.makes if not (root / made).exists()]
    if absent:
        raise DataError(
            f"{path} was unpacked, and {', '.join(absent)} not among its members, so it is not the archive "
            f"expected from {file.url}; delete it, and get the right one"
        )
    if hasattr(os, "sync"):  # not available on Windows
        os.sync()  # otherwise a power failure could keep the record and lose the members
    write_record(file, root, dataclasses.replace(record, state="unpacked"))
    if not record.by_hand:
        path.unlink(missing_ok=True)


def _distinct(files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """Remove duplicates, since splits may share files; DataError if two files have the same path."""
    by_path: dict[str, RemoteFile] = {}
    for file in files:
        if by_path.setdefault(file.path, file).url != file.url:
            raise DataError(f"{file.url} and {by_path[file.path].url} are both to be kept as {file.path}; rename one")
    return list(by_path.values())


def _sizes(files: Sequence[RemoteFile], root: Path) -> dict[RemoteFile, int | None]:
    """Return the remaining bytes of each file; servers are asked in parallel, since some are slow."""

    def left(file: RemoteFile) -> int | None:
        if (root / file.path).is_file() and (read_record(file, root) is None or is_kept(file, root)):
            return 0
        size = remote_size(file.url) if file.size is None else file.size
        return None if size is None else max(size - bytes_of_part(file, root), 0)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return dict(zip(files, pool.map(left, files), strict=True))


def _check_space(sizes: dict[RemoteFile, int | None], root: Path, parallel: int) -> None:
    """Check that disk space suffices for the files and the archives' contents, which are at least as large.

    As many archives as are downloaded in parallel exist next to their contents.
    """
    archives = sorted((size or 0 for file, size in sizes.items() if file.unpack is not None), reverse=True)
    kept = sum(size or 0 for file, size in sizes.items() if file.unpack is None)
    needed = kept + sum(archives) + sum(archives[:parallel])
    free = shutil.disk_usage(root).free
    if needed > free:
        raise DataError(
            f"downloading and unpacking needs at least {size_in_words(needed)} in {root}, where {size_in_words(free)} "
            "are free; free some space, or choose a folder on another disk with `data_root=DIR`"
        )


@contextlib.contextmanager
def _only_one(root: Path, note: Callable[[str], None]) -> Iterator[None]:
    """Lock the root for this process; wait while another one downloads into it."""
    refuse_links(root, root / RECORDS / "lock")
    lock = FileLock(root / RECORDS / "lock")
    try:
        (root / RECORDS).mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            note(f"another process is downloading into {root}; waiting for it")
            lock.acquire()
    except OSError as error:
        raise unwritable(root, error) from error
    try:
        for leftover in (root / RECORDS).glob(".*.tmp"):  # of a process that was killed while writing a record
            leftover.unlink(missing_ok=True)
        yield
    finally:
        lock.release()

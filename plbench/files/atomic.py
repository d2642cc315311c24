"""Write files atomically, and report failed writes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from plbench.errors import StoreError, UnwritableError


def write_atomically(path: Path, write: Callable[[IO[bytes]], object], staging: Path | None = None) -> None:
    """Write a file so that it is either complete or missing, also after a crash or on a full disk.

    Args:
        path: of the file.
        write: writes the content to an open binary file.
        staging: folder of the unfinished file, on the same disk; by default, the file's own.

    Raises:
        StoreError: if the disk is full or the folder is not writable. Nothing is left behind.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # not with tempfile, whose files are private: permissions should follow the umask
        unused = (staging or path.parent) / f".{path.name}.{os.urandom(4).hex()}.tmp"
        with unused.open("xb") as file:
            temporary = unused
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save turns a failed write into a RuntimeError
        raise unwritable(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def is_unfinished(path: Path) -> bool:
    """Return whether a file is an unfinished one of `write_atomically`, of a killed or running process."""
    return re.fullmatch(r"\..+\.[0-9a-f]{8}\.tmp", path.name) is not None


def write_text(path: Path, text: str, staging: Path | None = None) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda file: file.write(text.encode()), staging)


def write_json(path: Path, content: Any, staging: Path | None = None) -> None:
    """Write readable JSON atomically; NaN is rejected."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n", staging)


def fresh_folder(parent: Path, start: str) -> Path:
    """Create and return a folder with a new name that begins with `start`, with permissions by the umask.

    Raises:
        OSError: if it cannot be created.
    """
    folder = parent / f"{start}{os.urandom(4).hex()}"
    folder.mkdir()
    return folder


def try_folder(folder: Path) -> None:
    """Create a folder for the result of long work, and try to write there; raise StoreError now if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise unwritable(folder, error) from error


@contextlib.contextmanager
def locked(path: Path) -> Iterator[Path]:
    """Lock a path while it is created: a second process waits, and then finds it.

    There is no lock if the user has no write permission; complete files can still be used.

    Raises:
        StoreError: if the folder does not exist and cannot be created, or the disk has an error or is full.
    """
    from filelock import FileLock  # imported here, since reading does not need it, and it takes 20 ms

    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM) or not path.parent.is_dir():
            raise unwritable(path, error) from error
    try:
        yield path
    finally:
        lock.release()


def unwritable(path: Path, error: BaseException) -> StoreError:
    """Return the error for a failed write: what, where, and how to fix it."""
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.strerror):
        cause = cause.__context__  # torch hides the system's error behind its own
    reason = str(error).splitlines()[0] if cause is None else cause.strerror
    if isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE):
        return StoreError(f"could not write {path}: {reason}; allow this program more of them (ulimit -n 1024)")
    return UnwritableError(f"could not write {path}: {reason}; free some space, or choose another place")

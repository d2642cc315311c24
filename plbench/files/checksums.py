"""Files with checksums of their content, and what happens to damaged ones."""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from plbench.errors import StoreError
from plbench.files import write_atomically, write_json

DAMAGED = ".damaged"
SUMS = "sha256.json"
_TRAILER = 32  # bytes of a sha256


class Damaged(StoreError):
    """A stored file was changed."""


def write_checked(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file atomically, with the sha256 of its content in its last 32 bytes; StoreError if that fails.

    Args:
        write: writes the content to an open binary file. It is buffered in memory.
    """
    content = io.BytesIO()
    write(content)
    content.write(hashlib.sha256(content.getbuffer()).digest())
    write_atomically(path, lambda file: file.write(content.getbuffer()))


def read_checked(path: Path) -> memoryview:
    """Return the content of such a file, memory-mapped, after verifying its sha256.

    Raises:
        FileNotFoundError: if it is missing. Damaged: if it was changed.
    """
    try:
        with path.open("rb") as file:
            whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: it is empty
        raise Damaged(f"{path} cannot be read: {error}") from error
    content, trailer = whole[:-_TRAILER], whole[-_TRAILER:]
    if hashlib.sha256(content).digest() != trailer:
        raise Damaged(f"{path} does not match the checksum that it was written with")
    return content


def write_checked_json(path: Path, content: dict[str, Any]) -> None:
    """Write readable JSON that includes the sha256 of its content."""
    write_json(path, {**content, "sha256": _json_sha256(content)})


def read_checked_json(path: Path) -> dict[str, Any] | None:
    """Return the content of such a file; None if it is missing or was changed."""
    try:
        content = json.loads(path.read_bytes())
        digest = content.pop("sha256")
        return content if isinstance(content, dict) and digest == _json_sha256(content) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _json_sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def write_sums(folder: Path) -> None:
    """Store the sha256 of every file of a folder in a file there."""
    sums = {path.name: hash_file(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name != SUMS}
    write_checked_json(folder / SUMS, {"files": sums})


def check_sums(folder: Path) -> None:
    """Verify the files of a folder with the result of `write_sums`.

    Raises:
        Damaged: if there are no checksums, or a file is missing or was changed, with its path.
    """
    noted = read_checked_json(folder / SUMS)
    if noted is None:
        raise Damaged(f"{folder / SUMS} is missing or damaged")
    for name, digest in noted["files"].items():
        path = folder / name
        try:
            found = hash_file(path)
        except OSError as error:
            raise Damaged(f"{path} cannot be read: {error.strerror}") from error
        if found != digest:
            raise Damaged(f"{path} does not match the checksum that it was written with")


def hash_file(path: Path) -> str:
    """Return the hex sha256 of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder, so that it is not used; return its new path."""
    aside = path.with_name(path.name + DAMAGED)
    if path.is_dir():
        shutil.rmtree(aside, ignore_errors=True)
    path.replace(aside)
    return aside

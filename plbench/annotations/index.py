"""Published annotation files, read once: indexed by their content in the cache and memory-mapped from then on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import escape
from pathlib import Path

from filelock import FileLock

from plbench.annotations.collect import Annotations
from plbench.errors import DataError
from plbench.store import unwritable, write_json

_DAY = 86_400.0
_FRESH_NS = 2 * 10**9  # a file changed so lately may change again within the same tick of the disk's clock


def file_sha256(path: Path, cache: Path | None = None) -> str:
    """Hex sha256 of a file; noted in the cache by size and time of change, so that large files are read once.

    Raises:
        DataError: if the file cannot be read.
    """
    try:
        status = path.stat()
        seen = [status.st_size, status.st_mtime_ns, status.st_ino]
        note = None if cache is None else cache / "digests" / f"{_text_sha256(os.path.abspath(path))[:32]}.json"
        if note is not None and (known := _noted(note, seen)) is not None:
            return known
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if note is not None and time.time_ns() - status.st_mtime_ns > _FRESH_NS:
        write_json(note, {"seen": seen, "sha256": digest})
    return digest


def _noted(note: Path, seen: list[int]) -> str | None:
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
        return str(content["sha256"]) if content["seen"] == seen else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Index:
    """The annotations of one split as its files have them.

    Attributes:
        name: of the dataset and the split, for the folder's name.
        meaning: whatever else decides what reading makes of the files: the reader's version, options.
        files: that are read.
    """

    def __init__(self, cache: Path | None, name: str, meaning: str, files: Sequence[Path]) -> None:
        """Nothing is read yet. Without a cache nothing is kept."""
        self._cache = None if cache is None else cache / "index"
        self._name, self._meaning, self._files = name, meaning, tuple(files)

    def key(self) -> str:
        """sha256 over the content of the files and the meaning: equal wherever the files lie."""
        digests = [file_sha256(path, self._cache) for path in self._files]
        return _text_sha256(json.dumps([self._name, self._meaning, digests]))

    def get(self, read: Callable[[], Annotations]) -> Annotations:
        """The annotations from the cache, or read from the files, and then kept.

        Raises:
            DataError: if the files are missing or malformed. StoreError: if the cache cannot be written.
        """
        if self._cache is None:
            return read()
        with ThreadPoolExecutor(max_workers=1) as thread:
            hashing = thread.submit(self.key)  # seconds for gigabytes: beside the reading, which waits on other things
            if self._has_been_here() and (found := self._open(hashing.result())) is not None:
                return found
            annotations = read()
            return self._keep(annotations, hashing.result())

    def _has_been_here(self) -> bool:
        """Whether files of this name were ever indexed, so that it is worth waiting for the key of these."""
        assert self._cache is not None
        return any(self._cache.glob(f"{escape(self._name)}-*"))

    def _folder(self, key: str) -> Path:
        assert self._cache is not None
        return self._cache / f"{self._name}-{key[:24]}"

    def _open(self, key: str) -> Annotations | None:
        try:
            return Annotations.open(self._folder(key))
        except DataError:
            return None  # not there, or damaged: made anew

    def _sweep(self) -> None:
        """Deletes what processes that were killed a day ago or earlier left of an index under way."""
        assert self._cache is not None
        for leftover in self._cache.glob(f".{escape(self._name)}-*"):
            if time.time() - leftover.stat().st_mtime > _DAY:
                shutil.rmtree(leftover, ignore_errors=True)

    def _keep(self, annotations: Annotations, key: str) -> Annotations:
        folder = self._folder(key)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            self._sweep()
            temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
            try:
                annotations.write(temporary)
                temporary.chmod(0o755)  # others may share the cache
                with FileLock(folder.with_name(".lock")):  # of those that find a damaged one, only the first removes it
                    if self._open(key) is None:  # else another process was first
                        shutil.rmtree(folder, ignore_errors=True)
                        temporary.rename(folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        except OSError as error:
            if self._open(key) is None:
                raise unwritable(folder, error) from error
        return self._open(key) or annotations  # another process may be replacing a damaged one this very moment

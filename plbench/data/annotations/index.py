"""Cached index of annotation files: they are read once, and then memory-mapped from the cache by content."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import escape
from pathlib import Path

from filelock import FileLock

from plbench.data.annotations.collect import Annotations
from plbench.data.digests import file_sha256s
from plbench.errors import DataError
from plbench.files import fresh_folder, unwritable
from plbench.files.checksums import set_aside

_DAY = 86_400.0


class Index:
    """Annotations of one split, cached.

    Attributes:
        name: of dataset and split, for the folder's name.
        meaning: everything else that affects the result of reading: the reader's version, options.
        files: to read.
    """

    def __init__(
        self,
        cache: Path | None,
        name: str,
        meaning: str,
        files: Sequence[Path],
        warn: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        """Store the settings; nothing is read yet.

        Args:
            cache: folder of the cache; None for none.
            name, meaning, files: as in the class.
            warn: receives a message if the index is damaged.
        """
        self._memory, self._cache = cache, None if cache is None else cache / "index"
        self._name, self._meaning, self._files, self._warn = name, meaning, tuple(files), warn

    def key(self) -> str:
        """Return sha256 over the content of the files and the meaning, which does not depend on paths."""
        digests = file_sha256s(self._files, self._memory)
        return hashlib.sha256(json.dumps([self._name, self._meaning, digests]).encode()).hexdigest()

    def get(self, read: Callable[[], Annotations]) -> Annotations:
        """Return the annotations from the cache; if missing, read them from the files and cache them.

        Raises:
            DataError: if the files are missing or malformed. StoreError: if the cache cannot be written.
        """
        if self._cache is None:
            return read()
        with ThreadPoolExecutor(max_workers=1) as thread:
            hashing = thread.submit(self.key)  # takes seconds for gigabytes: concurrent with reading
            was_indexed = any(self._cache.glob(f"{escape(self._name)}-*"))  # otherwise the key is not worth waiting for
            if was_indexed and (found := self._open(hashing.result())) is not None:
                return found
            annotations = read()
            return self._keep(annotations, hashing.result())

    def _folder(self, key: str) -> Path:
        assert self._cache is not None
        return self._cache / f"{self._name}-{key[:24]}"

    def _open(self, key: str) -> Annotations | None:
        try:
            return Annotations.open(self._folder(key))
        except DataError:
            return None  # missing or damaged: built again

    def _keep(self, annotations: Annotations, key: str) -> Annotations:
        folder = self._folder(key)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            # of processes that were killed over a day ago
            for leftover in folder.parent.glob(f".{escape(self._name)}-*"):
                if time.time() - leftover.stat().st_mtime > _DAY:
                    shutil.rmtree(leftover, ignore_errors=True)
            temporary = fresh_folder(folder.parent, f".{folder.name}.")
            try:
                annotations.write(temporary)
                # of several processes that find a damaged index, only the first removes it
                with FileLock(folder.with_name(".lock")):
                    try:
                        Annotations.open(folder)  # another process was faster
                    except DataError as damage:
                        if folder.is_dir():
                            self._warn(f"{damage}; the index was renamed to {set_aside(folder)} and made again")
                        temporary.rename(folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        except OSError as error:
            if self._open(key) is None:
                raise unwritable(folder, error) from error
        return self._open(key) or annotations  # another process may be replacing a damaged index right now

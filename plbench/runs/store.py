"""Storage of finished runs, and the cache shared by runs: atomic, content-addressed, locked."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from platformdirs import user_cache_path

from plbench.errors import StoreError
from plbench.files import unwritable
from plbench.files.paths import in_home, refuse_links

RECORD = "record.json"
SPEC = "spec.toml"
CHECKPOINT = "checkpoint.pt"
CELLS = "cells.npz"

_REMOVED = ".removed"


@dataclass(frozen=True)
class Store:
    """Runs by key, and the cache.

    Attributes:
        runs: one folder per run, named by its key.
        cache: rendered data, features, artifacts; safe to delete.
    """

    runs: Path
    cache: Path

    @classmethod
    def at(cls, runs: Path) -> Self:
        """Return the store of a folder of runs, with the user's cache, or the one in PLBENCH_CACHE."""
        cache = os.environ.get("PLBENCH_CACHE")
        return cls(in_home(runs), in_home(cache) if cache else user_cache_path("plbench"))

    def run_folder(self, key: str) -> Path:
        """Return the folder of a run."""
        return self.runs / key

    def keys(self, mark: str = RECORD) -> list[str]:
        """Return the sorted keys of all runs that have a file with this name, by default a record."""
        if not self.runs.is_dir():
            return []
        return sorted(folder.name for folder in self.runs.iterdir() if (folder / mark).is_file())

    def find(self, text: str, *, begun: bool = False) -> Path:
        """Return the folder of a run given by key, prefix of the key, or path.

        Args:
            text: key, prefix or path.
            begun: also find runs without a record, in progress or interrupted.

        Raises:
            StoreError: if there is no such run, or several.
        """
        path, mark = Path(text), SPEC if begun else RECORD
        if (path / RECORD).is_file() or (path / mark).is_file():
            return path
        if path.name in (RECORD, mark) and path.is_file():
            return path.parent
        matches = sorted(key for key in {*self.keys(), *self.keys(mark)} if key.startswith(text))
        if len(matches) == 1:
            return self.run_folder(matches[0])
        if matches:
            raise StoreError(
                f"{text!r} is the start of {len(matches)} runs ({', '.join(matches[:4])} …); give more digits"
            )
        raise StoreError(f"there is no run {text!r} in {self.runs}; plbench runs list shows those there are")

    @contextlib.contextmanager
    def lock(self, key: str, tell: Callable[[str], None]) -> Iterator[None]:
        """Lock one run for this process; if another one holds the lock, report that and wait.

        Args:
            key: of the run.
            tell: receives a message.

        Raises:
            StoreError: if the folder cannot be written to. PlbenchError: if a link would redirect written files.
        """
        from filelock import FileLock, Timeout  # imported here, since reading does not need it, and it takes 20 ms

        path = self._lock_path(key)
        refuse_links(self.runs, path)
        refuse_links(self.runs, self.run_folder(key))
        lock = FileLock(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                tell(f"Run {key} is in progress in another process; waiting for it")
                lock.acquire()
        except OSError as error:
            raise unwritable(self.runs, error) from error
        try:
            for leftover in self.run_folder(key).glob(".*.tmp"):  # of a killed process
                leftover.unlink(missing_ok=True)
            yield
        finally:
            path.unlink(missing_ok=True)  # while locked: a process that opened it meanwhile notices its removal
            lock.release()

    def held(self, keys: Iterable[str]) -> set[str]:
        """Return the keys that are locked by a living process; the locks of killed ones are free.

        If the folder is not writable, locks cannot be tested, and none are returned.
        """
        from filelock import FileLock, Timeout

        there, found = {path.name for path in self.runs.glob(".*.lock")}, set()
        for key in keys:
            path = self._lock_path(key)
            if path.name in there:
                try:
                    with FileLock(path, timeout=0):
                        path.unlink(missing_ok=True)
                except Timeout:
                    found.add(key)
                except OSError:
                    continue
        return found

    def _lock_path(self, key: str) -> Path:
        return self.runs / f".{key}.lock"

    def remove(self, key: str) -> None:
        """Delete a run's folder as far as permitted; if the process is killed, the run is either complete or hidden."""
        with contextlib.suppress(OSError):
            self.discard(self.run_folder(key))
        shutil.rmtree(self.run_folder(key), ignore_errors=True)  # if it cannot be renamed

    def discard(self, folder: Path) -> None:
        """Move a run's folder to a hidden folder, and delete it there.

        Remains of killed processes are deleted as well.

        Raises:
            OSError: if it cannot be renamed.
        """
        trash = self.runs / _REMOVED
        while folder.exists():
            trash.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # another process removed the empty hidden folder
                folder.rename(trash / f"{folder.name}-{os.urandom(4).hex()}")
        for path in self.removed():
            shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):  # in use by another process
            trash.rmdir()

    def removed(self) -> list[Path]:
        """Return folders whose deletion was interrupted."""
        trash = self.runs / _REMOVED
        return sorted(trash.iterdir()) if trash.is_dir() else []

"""What lies on disk: finished runs, and the cache of what many runs share. Atomic, content-addressed, locked."""

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
        cache: drawn data, features, artifacts; safe to delete.
    """

    runs: Path
    cache: Path

    @classmethod
    def at(cls, runs: Path) -> Self:
        """Return a folder of runs, with the cache of this user, or that of the environment's PLBENCH_CACHE."""
        cache = os.environ.get("PLBENCH_CACHE")
        return cls(in_home(runs), in_home(cache) if cache else user_cache_path("plbench"))

    def run_folder(self, key: str) -> Path:
        """Return where a run's files lie."""
        return self.runs / key

    def keys(self, mark: str = RECORD) -> list[str]:
        """Return the keys of all runs whose folder has a file of this name, sorted: by default a record."""
        if not self.runs.is_dir():
            return []
        return sorted(folder.name for folder in self.runs.iterdir() if (folder / mark).is_file())

    def find(self, text: str, *, begun: bool = False) -> Path:
        """Return the folder of the run that a key, the start of one, or a path names.

        Args:
            text: that names it.
            begun: whether a run may be meant that has no record yet: it is under way, or was interrupted.

        Raises:
            StoreError: if no run or more than one is meant.
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
        """Hold one run for this process; where another one holds it, say so and wait.

        Args:
            key: of the run.
            tell: is given that sentence.

        Raises:
            StoreError: if the folder cannot be written to. PlbenchError: if a link would lead what is written
                elsewhere.
        """
        from filelock import FileLock, Timeout  # here: what only reads does without, and it takes 20 ms

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
            for leftover in self.run_folder(key).glob(".*.tmp"):  # of a process that was killed
                leftover.unlink(missing_ok=True)
            yield
        finally:
            path.unlink(missing_ok=True)  # while it is held: who opened it meanwhile sees that it is gone
            lock.release()

    def held(self, keys: Iterable[str]) -> set[str]:
        """Return those of some runs that a living process holds; the lock of one that was killed is free.

        Where locks cannot be tried, since the folder may not be written to, none are.
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
        """Delete a run's folder, as far as this user may: a process that is killed leaves it whole, or out of sight."""
        with contextlib.suppress(OSError):
            self.discard(self.run_folder(key))
        shutil.rmtree(self.run_folder(key), ignore_errors=True)  # where nothing can be renamed

    def discard(self, folder: Path) -> None:
        """Rename a folder in the folder of runs to where nobody looks for runs, and delete it there.

        What others left there when they were killed goes with it.

        Raises:
            OSError: if it cannot be renamed.
        """
        trash = self.runs / _REMOVED
        while folder.exists():
            trash.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # another process took the empty trash away meanwhile
                folder.rename(trash / f"{folder.name}-{os.urandom(4).hex()}")
        for path in self.removed():
            shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):  # another process is at it
            trash.rmdir()

    def removed(self) -> list[Path]:
        """Return folders that were being deleted when their process was killed."""
        trash = self.runs / _REMOVED
        return sorted(trash.iterdir()) if trash.is_dir() else []

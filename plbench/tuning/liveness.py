"""Detection of dead workers of a study: by file locks for a journal, by heartbeats in a database."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from plbench.files import unwritable

HEARTBEAT_SECONDS = 20
GRACE_SECONDS = 60  # without a heartbeat until a worker counts as dead


class Liveness:
    """Detects dead workers."""

    def claiming(self) -> contextlib.AbstractContextManager[Any]:
        """Hold this while claiming trials, if the storage cannot tell a new trial from an abandoned one."""
        return contextlib.nullcontext()

    def lost(self, study: optuna.Study, worker: str) -> list[FrozenTrial]:
        """Return running trials of dead workers, except those that the storage has marked FAIL itself."""
        raise NotImplementedError

    def taken(self, trial: optuna.Trial) -> None:
        """Register a claimed trial, before it is marked with its worker."""

    def alive(self, trials: Sequence[optuna.Trial]) -> contextlib.AbstractContextManager[Any]:
        """Hold this while training trials."""
        return contextlib.nullcontext()

    def close(self) -> None:
        """End the worker."""
        raise NotImplementedError


class Locks(Liveness):
    """Workers of a journal: each holds a file lock while its process lives."""

    def __init__(self, journal: Path, worker: str) -> None:
        self._folder = journal.with_name("workers" if journal.name == "journal.log" else f"{journal.name}.workers")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._own = FileLock(self._folder / f"{worker}.lock")
            with self.claiming():
                for path in self._folder.glob("?" * len(worker) + ".lock"):
                    self._lives(path.stem)
                self._own.acquire()
        except OSError as error:
            raise unwritable(self._folder, error) from error

    def claiming(self) -> contextlib.AbstractContextManager[Any]:
        """Exclude other workers of the journal while claiming trials."""
        return FileLock(self._folder / "claiming.lock")

    def lost(self, study: optuna.Study, worker: str) -> list[FrozenTrial]:
        """Return trials whose worker's lock is free, or whose worker died while claiming."""
        running = [trial for trial in study.get_trials(deepcopy=False) if runs(trial)]
        owners = {trial.user_attrs.get("worker") for trial in running} - {worker}
        dead = {owner for owner in owners if owner is None or not self._lives(owner)}  # None: died while claiming
        return [trial for trial in running if trial.user_attrs.get("worker") in dead]

    def _lives(self, worker: str) -> bool:
        """Return whether the worker's process lives; the lock of a dead one is removed."""
        path = self._folder / f"{worker}.lock"
        if not path.exists():
            return False
        try:
            with FileLock(path, timeout=0):
                path.unlink(missing_ok=True)
        except Timeout:
            return True
        return False

    def close(self) -> None:
        """Free the lock."""
        Path(self._own.lock_file).unlink(missing_ok=True)
        self._own.release()


class Heartbeats(Liveness):
    """Workers of a database: each sends a heartbeat every few seconds."""

    def __init__(self, storage: RDBStorage) -> None:
        self._storage = storage
        self._unmarked_since: dict[int, float] = {}  # when a running trial was first seen without a worker's mark

    def lost(self, study: optuna.Study, worker: str) -> list[FrozenTrial]:
        """Return trials that remain unmarked; Optuna fails marked trials whose heartbeat stops.

        The wait is measured locally, since clocks and time zones of other workers' machines may differ.
        """
        optuna.storages.fail_stale_trials(study)  # queues their values by the storage's callback
        unmarked = [t for t in study.get_trials(deepcopy=False) if runs(t) and "worker" not in t.user_attrs]
        now = time.monotonic()
        self._unmarked_since = {trial.number: self._unmarked_since.get(trial.number, now) for trial in unmarked}
        return [trial for trial in unmarked if now - self._unmarked_since[trial.number] > GRACE_SECONDS]

    def taken(self, trial: optuna.Trial) -> None:
        """Send the first heartbeat; Optuna ignores trials without any."""
        self._storage.record_heartbeat(trial._trial_id)

    @contextlib.contextmanager
    def alive(self, trials: Sequence[optuna.Trial]) -> Iterator[None]:
        """Send heartbeats from a thread."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(HEARTBEAT_SECONDS):
                with contextlib.suppress(Exception):  # retry if the database is temporarily unavailable
                    for trial in trials:
                        self.taken(trial)

        for trial in trials:
            self.taken(trial)
        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def close(self) -> None:
        """Close the connection."""
        self._storage.remove_session()
        self._storage.engine.dispose()


def runs(trial: FrozenTrial) -> bool:
    """Return whether a worker has claimed the trial and it has no outcome yet."""
    return trial.state == TrialState.RUNNING

"""Who of a study's workers is alive: by locks beside a journal, by heartbeats in a database."""

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
GRACE_SECONDS = 60  # without a heartbeat, after which a worker counts as dead


class Liveness:
    """Tells living workers from dead ones."""

    def claiming(self) -> contextlib.AbstractContextManager[Any]:
        """Hold this while trials are taken, where the storage alone cannot tell a new trial from an abandoned one."""
        return contextlib.nullcontext()

    def lost(self, study: optuna.Study, worker: str) -> list[FrozenTrial]:
        """Return running trials of dead workers; those that it has told FAIL itself are not among them."""
        raise NotImplementedError

    def taken(self, trial: optuna.Trial) -> None:
        """Note a trial as soon as it is taken, before it is marked as a worker's."""

    def alive(self, trials: Sequence[optuna.Trial]) -> contextlib.AbstractContextManager[Any]:
        """Hold this while trials are trained."""
        return contextlib.nullcontext()

    def close(self) -> None:
        """End the worker."""
        raise NotImplementedError


class Locks(Liveness):
    """Workers of a journal: each holds a file for as long as its process lives."""

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
        """Let no two workers of a journal take trials at once."""
        return FileLock(self._folder / "claiming.lock")

    def lost(self, study: optuna.Study, worker: str) -> list[FrozenTrial]:
        """Return those whose worker's lock is free, or who died while they were claimed."""
        running = [trial for trial in study.get_trials(deepcopy=False) if runs(trial)]
        owners = {trial.user_attrs.get("worker") for trial in running} - {worker}
        dead = {owner for owner in owners if owner is None or not self._lives(owner)}  # None: died while it claimed
        return [trial for trial in running if trial.user_attrs.get("worker") in dead]

    def _lives(self, worker: str) -> bool:
        """Return whether its process does; the lock of one that does not is cleared away."""
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
    """Workers of a database: each says every few seconds that it is still at its trials."""

    def __init__(self, storage: RDBStorage) -> None:
        self._storage = storage
        self._unmarked_since: dict[int, float] = {}  # when a running trial was first seen without a worker's mark

    def lost(self, study: optuna.Study, worker: str) -> list[FrozenTrial]:
        """Return those that stay without a worker's mark; of marked ones, Optuna fails those whose heartbeat stops.

        The wait is measured here, as clocks and time zones of other workers' machines may differ.
        """
        optuna.storages.fail_stale_trials(study)  # queues their values by the storage's callback
        unmarked = [t for t in study.get_trials(deepcopy=False) if runs(t) and "worker" not in t.user_attrs]
        now = time.monotonic()
        self._unmarked_since = {trial.number: self._unmarked_since.get(trial.number, now) for trial in unmarked}
        return [trial for trial in unmarked if now - self._unmarked_since[trial.number] > GRACE_SECONDS]

    def taken(self, trial: optuna.Trial) -> None:
        """Send its first heartbeat: Optuna never misses one that has none."""
        self._storage.record_heartbeat(trial._trial_id)

    @contextlib.contextmanager
    def alive(self, trials: Sequence[optuna.Trial]) -> Iterator[None]:
        """Send heartbeats from a thread."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(HEARTBEAT_SECONDS):
                with contextlib.suppress(Exception):  # a database that is away for a moment is tried again
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
    """Return whether some worker has taken it and it was not told an outcome."""
    return trial.state == TrialState.RUNNING

"""A study that several workers share: its storage, who of them is alive, and the trials that a dead one leaves.

Optuna numbers trials; here they have an index among those that count. A trial counts while a living worker trains it,
and once it was told an outcome: a value, that it was pruned, or the error of its training. A trial whose worker died
is told FAIL without an error, does not count, and its values are queued to be tried again.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import threading
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import optuna
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from plbench.errors import PlbenchError, StoreError
from plbench.randomness import derive_seed
from plbench.resolve import differences
from plbench.store import unwritable
from plbench.study import State, StudySpec, Trial
from plbench.trials import TrialResult

HEARTBEAT_SECONDS = 20
GRACE_SECONDS = 60  # without a heartbeat, after which a worker counts as dead
_MADE_SECONDS = 10.0  # that the making of a study in a database may take
_DATABASES = {"postgresql": "postgresql+psycopg", "mysql": "mysql", "sqlite": "sqlite"}
_OPERATION = b'{"op_code":'  # what each line of a journal starts with
_MOST_TWINS = 8  # draws of a trial, in search of one that no other has
_NUM_RANDOM = 10  # trials before the sampler models what it saw

SAMPLER = f"TPE, multivariate, constant liar, {_NUM_RANDOM} random trials first"
FINISHED = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


@dataclass(frozen=True)
class Claim:
    """A trial that this worker has taken: its index among those that count, and the values to try."""

    index: int
    values: dict[str, float]
    trial: optuna.Trial


class Liveness(Protocol):
    """Tells living workers from dead ones."""

    def claiming(self) -> contextlib.AbstractContextManager[Any]:
        """Held while trials are taken, where the storage alone cannot tell a new trial from an abandoned one."""

    def lost(self, study: optuna.Study, worker: str) -> list[FrozenTrial]:
        """Running trials of dead workers; those that it has told FAIL itself are not among them."""

    def alive(self, trials: Sequence[optuna.Trial]) -> contextlib.AbstractContextManager[Any]:
        """Held while trials are trained."""

    def close(self) -> None:
        """Ends the worker."""


class SharedStudy:
    """One worker's side of a study."""

    def __init__(self, spec: StudySpec, study: optuna.Study, liveness: Liveness, worker: str, place: str) -> None:
        """See `open_study`."""
        self.spec, self.study, self._liveness, self._worker, self._place = spec, study, liveness, worker, place
        self._distributions = {name: _distribution(spec, name) for name in spec.space}

    def claim(self, num_trials: int, most: int) -> list[Claim]:
        """Takes trials: what dead workers left first, then new ones, up to the next multiple of `most`.

        Args:
            num_trials: that all workers may make together.
            most: in one batch.

        Returns:
            None of them where other workers are at work on all that are missing.
        """
        with self._reaching(), self._liveness.claiming():
            self._give_up_lost()
            taken = sum(_counts(trial) for trial in self._frozen())
            wanted = max(0, min(most - taken % most, num_trials - taken))
            claims = [self._ask_anew(taken + place) for place in range(wanted)]
            order = [trial.number for trial in self._frozen() if _counts(trial)]
            surplus = [claim for claim in claims if order.index(claim.trial.number) >= num_trials]
            for claim in surplus:  # two workers of a database asked at once: the later number goes
                self._fail(claim.trial._trial_id)
            return [claim for claim in claims if claim not in surplus]

    def alive(self, claims: Sequence[Claim]) -> contextlib.AbstractContextManager[Any]:
        """Held while claimed trials are trained: others see that this worker lives."""
        return self._liveness.alive([claim.trial for claim in claims])

    def tell(self, claim: Claim, result: TrialResult | None) -> None:
        """What came of a trial; None where it was pruned. One that others took for lost meanwhile is theirs."""
        with self._reaching(), contextlib.suppress(UpdateFinishedTrialError, ValueError):
            trial = claim.trial
            if result is None:
                self.study.tell(trial, state=TrialState.PRUNED)
                return
            trial.set_user_attr("seconds", round(result.seconds, 3))
            if result.value is None or math.isnan(result.value):
                trial.set_user_attr("error", (result.error or "no class of the validation part was scored")[:500])
                self.study.tell(trial, state=TrialState.FAIL)
            else:
                self.study.tell(trial, result.value)

    def give_back(self, claims: Sequence[Claim]) -> None:
        """Leaves trials that were not told an outcome to whoever goes on."""
        with self._reaching(), self._liveness.claiming():
            own = {claim.trial.number for claim in claims}
            self._give_up([trial for trial in self._frozen() if trial.number in own and _runs(trial)])

    def trials(self) -> tuple[Trial, ...]:
        """All that were told an outcome, in the order in which they were taken."""
        with self._reaching():
            return tuple(self._outcome(trial) for trial in self._frozen() if _counts(trial) and not _runs(trial))

    def close(self) -> None:
        """Ends this worker."""
        self._liveness.close()

    def _frozen(self) -> list[FrozenTrial]:
        return sorted(self.study.get_trials(deepcopy=False), key=lambda trial: trial.number)

    def _ask_anew(self, index: int) -> Claim:
        """A trial that no other worker has; two of a database that ask at once would draw the same one."""
        for attempt in range(_MOST_TWINS):
            claim = self._ask(index, attempt)
            params = self._values(claim.trial.params, {})
            older = (t for t in self._frozen() if t.number < claim.trial.number and _counts(t))
            if not any(self._values_or_none(trial) == params for trial in older):
                break
            if attempt + 1 < _MOST_TWINS:
                self._fail(claim.trial._trial_id)
        return claim

    def _values_or_none(self, trial: FrozenTrial) -> dict[str, float] | None:
        return self._values(trial.params, {}) if self.spec.space.keys() <= trial.params.keys() else None

    def _ask(self, index: int, attempt: int) -> Claim:
        """Each index has a sampler of its own seed, so that a study that was broken off draws as one that was not."""
        names = (index, attempt) if attempt else (index,)
        seed = derive_seed(self.spec.seed, "sampler", *names) % 2**32
        self.study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=_NUM_RANDOM, multivariate=True, constant_liar=True, seed=seed
        )
        trial = self.study.ask(self._distributions)
        trial.set_user_attr("worker", self._worker)
        return Claim(index, self._values(trial.params, trial.user_attrs), trial)

    def _values(self, params: dict[str, float], attributes: dict[str, Any]) -> dict[str, float]:
        """The first trial takes the starting values to the digit, also where they lie outside the space."""
        return dict(self.spec.start) if attributes.get("start") else {name: params[name] for name in self.spec.space}

    def _outcome(self, trial: FrozenTrial) -> Trial:
        state: State = FINISHED[trial.state]  # type: ignore[assignment]
        return Trial(
            values=self._values(trial.params, trial.user_attrs),
            state=state,
            value=trial.value if state == "complete" else None,
            seconds=trial.user_attrs.get("seconds"),
            error=trial.user_attrs.get("error"),
        )

    def _give_up_lost(self) -> None:
        self._give_up(self._liveness.lost(self.study, self._worker))

    def _give_up(self, trials: Sequence[FrozenTrial]) -> None:
        for trial in trials:
            if self._fail(trial._trial_id):  # one of several workers that saw it
                queue_again(self.study, trial, self.spec)

    def _fail(self, trial_id: int) -> bool:
        try:
            return bool(self.study._storage.set_trial_state_values(trial_id, state=TrialState.FAIL))
        except UpdateFinishedTrialError:
            return False

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        with _speaking_of(self._place), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is experimental, and of asking where there is a heartbeat
            yield


def queue_start(study: optuna.Study, spec: StudySpec) -> None:
    """Queues the trial of the starting values; those outside the space are told to the sampler as its nearest end."""
    values = {name: _within(spec, name, value) for name, value in spec.start.items()}
    study.enqueue_trial(values, user_attrs={"start": True})


def queue_again(study: optuna.Study, trial: FrozenTrial, spec: StudySpec) -> None:
    """Queues the values of a lost trial; one that had not drawn all of them is drawn again, by the same seed."""
    if trial.user_attrs.get("start"):
        queue_start(study, spec)
        return
    values = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
    if spec.space.keys() <= values.keys():
        study.enqueue_trial(values)


def open_study(spec: StudySpec, folder: Path, storage: str | None, name: str | None, pruner: Any) -> SharedStudy:
    """Opens a study, or makes it.

    Args:
        spec: what it asks.
        folder: of the study, where its journal lies unless another storage is given.
        storage: path of a journal file, or URL of a database.
        name: of the study in the storage; by default one that only this study has.
        pruner: Optuna's.

    Raises:
        StoreError: if the storage cannot be reached or read. PlbenchError: if there is no such kind of storage, or
            the study of that name asks something else.
    """
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)  # what matters is said in our own words
    worker, name = uuid.uuid4().hex, name or f"plbench-{spec.key}"
    kept, place = _open_storage(storage, folder, spec)
    path = None if isinstance(kept, RDBStorage) else Path(storage or folder / "journal.log")
    liveness: Liveness = _Heartbeats(kept) if path is None else _Locks(path, worker)  # type: ignore[arg-type]
    try:
        with _speaking_of(place), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study = _made(spec, kept, name, place, liveness, pruner)
    except BaseException:
        liveness.close()
        raise
    return SharedStudy(spec, study, liveness, worker, place)


def _made(
    spec: StudySpec, storage: BaseStorage, name: str, place: str, liveness: Liveness, pruner: Any
) -> optuna.Study:
    """The study of that name: made if it is not there, compared with the spec if it is."""
    with liveness.claiming():
        try:
            study = optuna.create_study(storage=storage, study_name=name, direction="maximize", pruner=pruner)
            made_here = True
        except optuna.exceptions.DuplicatedStudyError:
            study, made_here = optuna.load_study(storage=storage, study_name=name, pruner=pruner), False
        if not made_here and isinstance(storage, RDBStorage):  # another worker may be about to finish making it
            deadline = time.monotonic() + _MADE_SECONDS
            while "spec" not in study.user_attrs and time.monotonic() < deadline:
                time.sleep(0.2)
        found = study.user_attrs.get("spec")
        if found is None:  # new, or its making was broken off
            trials = study.get_trials(deepcopy=False)
            if any(not trial.user_attrs.get("start") for trial in trials):
                raise PlbenchError(
                    f"study {name!r} in {place} was not made by plbench tune; give another name with --study NAME"
                )
            if not trials:
                queue_start(study, spec)
            study.set_user_attr("spec", spec.model_dump(mode="json"))
            return study
    differs = differences(found, spec.model_dump(mode="json"))
    if differs:
        more = f"; and {len(differs) - 3} more" if len(differs) > 3 else ""
        raise PlbenchError(
            f"study {name!r} in {place} asks another question: {'; '.join(differs[:3])}{more}; give another name with "
            "--study NAME, or the options that it was made with"
        )
    return study


def _open_storage(storage: str | None, folder: Path, spec: StudySpec) -> tuple[BaseStorage, str]:
    """The storage, and what to call it in a sentence."""
    kind, separator, _ = (storage or "").partition("://")
    if not separator:
        path = Path(storage) if storage else folder / "journal.log"
        return _open_journal(path), str(path)
    dialect = kind.partition("+")[0]
    if dialect not in _DATABASES:
        raise PlbenchError(
            f"--storage {kind}://… is of no known kind; give the path of a journal file, or the URL of a database such "
            "as postgresql://user@host/database"
        )
    assert storage is not None
    return _open_database(storage if "+" in kind else storage.replace(kind, _DATABASES[dialect], 1), spec)


def _open_journal(path: Path) -> JournalStorage:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):  # a lock would be waited for without end where nothing can be written
            pass
        lock = _JournalLock(path)
        lock.acquire()
        try:
            _cut_torn_line(path)
        finally:
            lock.release()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))  # type: ignore[arg-type]
    except OSError as error:
        raise unwritable(path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise StoreError(
            f"{path} is damaged and cannot be read as a study's journal ({str(error).splitlines()[0][:80]}); move it "
            "away, and the same command starts the study anew"
        ) from error


def _cut_torn_line(path: Path) -> None:
    """A last line without an end was being written when power or disk gave out; it would spoil what follows it.

    Raises:
        ValueError: if the last whole line is none of a journal; Optuna would only see it when it wrote the next one.
    """
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    torn = content[whole:]
    if not _OPERATION.startswith(torn[: len(_OPERATION)]):
        raise ValueError("its last line is none of a journal")
    if torn:
        with path.open("r+b") as file:
            file.truncate(whole)
    if whole:
        json.loads(content[:whole].splitlines()[-1])


def _open_database(url: str, spec: StudySpec) -> tuple[RDBStorage, str]:
    import sqlalchemy

    try:
        parsed = sqlalchemy.engine.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        raise PlbenchError(
            "--storage is not a URL that can be read; give one such as postgresql://user@host/database"
        ) from error
    place = parsed.render_as_string(hide_password=True)
    options: dict[str, Any] = {"pool_pre_ping": True}
    if parsed.get_backend_name() == "postgresql":
        options["connect_args"] = {"connect_timeout": 10}
    try:
        with _speaking_of(place), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            storage = RDBStorage(
                url,
                options,
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=GRACE_SECONDS,
                heartbeat_stale_trial_callback=lambda study, trial: queue_again(study, trial, spec),
            )
    except (ImportError, sqlalchemy.exc.NoSuchModuleError) as error:
        mends = 'pip install "plbench[postgres]"' if "psycopg" in url else "install the driver that its URL names"
        raise PlbenchError(f"--storage {place} needs a database driver that is not installed here; {mends}") from error
    return storage, place


@contextlib.contextmanager
def _speaking_of(place: str) -> Iterator[None]:
    """Turns what a storage that fails raises into a sentence."""
    try:
        yield
    except OSError as error:
        raise unwritable(Path(error.filename or place), error) from error
    except Exception as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        if type(cause).__module__.split(".")[0] not in ("sqlalchemy", "psycopg"):
            raise
        if type(cause).__name__ == "NoSuchModuleError":
            raise
        why = str(getattr(cause, "orig", None) or cause).splitlines()[0][:160]
        raise StoreError(f"the storage {place} cannot be used: {why}; start the database, or mend --storage") from error


class _JournalLock:
    """Optuna's lock of a journal, by one that the system frees when its process dies."""

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(path.with_name(f"{path.name}.lock"))

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


class _Locks:
    """Workers of a journal: each holds a file for as long as its process lives."""

    def __init__(self, journal: Path, worker: str) -> None:
        self._folder = journal.with_name("workers" if journal.name == "journal.log" else f"{journal.name}.workers")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._own = FileLock(self._path(worker))
            with self.claiming():
                for path in self._folder.glob("?" * len(worker) + ".lock"):
                    self._lives(path.stem)
                self._own.acquire()
        except OSError as error:
            raise unwritable(self._folder, error) from error

    def _path(self, worker: str) -> Path:
        return self._folder / f"{worker}.lock"

    def claiming(self) -> contextlib.AbstractContextManager[Any]:
        return FileLock(self._folder / "claiming.lock")

    def lost(self, study: optuna.Study, worker: str) -> list[FrozenTrial]:
        running = [trial for trial in study.get_trials(deepcopy=False) if _runs(trial)]
        owners = {trial.user_attrs.get("worker") for trial in running} - {worker}
        dead = {owner for owner in owners if owner is None or not self._lives(owner)}  # None: died while it claimed
        return [trial for trial in running if trial.user_attrs.get("worker") in dead]

    def _lives(self, worker: str) -> bool:
        """Whether its process does; the lock of one that does not is cleared away."""
        path = self._path(worker)
        if not path.exists():
            return False
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        path.unlink(missing_ok=True)
        lock.release()
        return False

    def alive(self, trials: Sequence[optuna.Trial]) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def close(self) -> None:
        Path(self._own.lock_file).unlink(missing_ok=True)
        self._own.release()


class _Heartbeats:
    """Workers of a database: each says every few seconds that it is still at its trials."""

    def __init__(self, storage: RDBStorage) -> None:
        self._storage = storage

    def claiming(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def lost(self, study: optuna.Study, worker: str) -> list[FrozenTrial]:
        optuna.storages.fail_stale_trials(study)  # queues their values by the storage's callback
        oldest = datetime.datetime.now() - datetime.timedelta(seconds=GRACE_SECONDS)
        running = [trial for trial in study.get_trials(deepcopy=False) if _runs(trial)]
        return [  # died before its first heartbeat
            trial
            for trial in running
            if "worker" not in trial.user_attrs and trial.datetime_start is not None and trial.datetime_start < oldest
        ]

    @contextlib.contextmanager
    def alive(self, trials: Sequence[optuna.Trial]) -> Iterator[None]:
        ended = threading.Event()
        self._beat(trials)
        thread = threading.Thread(target=self._keep_beating, args=(trials, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _keep_beating(self, trials: Sequence[optuna.Trial], ended: threading.Event) -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(Exception):  # a database that is away for a moment is tried again
                self._beat(trials)

    def _beat(self, trials: Sequence[optuna.Trial]) -> None:
        for trial in trials:
            self._storage.record_heartbeat(trial._trial_id)

    def close(self) -> None:
        self._storage.remove_session()
        self._storage.engine.dispose()


def _counts(trial: FrozenTrial) -> bool:
    """Whether it is one of the study's number: running, or told an outcome."""
    if trial.state == TrialState.FAIL:
        return "error" in trial.user_attrs
    return trial.state != TrialState.WAITING


def _runs(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.RUNNING


def _distribution(spec: StudySpec, name: str) -> BaseDistribution:
    found = spec.space[name]
    if found.integer:
        return IntDistribution(int(found.low), int(found.high), log=found.log)
    return FloatDistribution(found.low, found.high, log=found.log)


def _within(spec: StudySpec, name: str, value: float) -> float:
    found = spec.space[name]
    near = min(max(value, found.low), found.high)
    return int(near) if found.integer else near

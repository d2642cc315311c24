"""One worker of a study: it claims trials, reports their outcomes, and repeats trials of dead workers.

Besides Optuna's numbers, trials have an index among those that count. A trial counts while a living worker trains it,
and once it has an outcome: a value, pruned, or the error of its training. A trial whose worker died is marked FAIL
without an error, does not count, and its values are queued again.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from plbench.errors import PlbenchError, StoreError
from plbench.files import unwritable
from plbench.randomness import derive_seed
from plbench.tuning.liveness import Liveness, runs
from plbench.tuning.study import State, StudySpec, Trial
from plbench.tuning.trials import TrialResult

_ASKED_SECONDS = 10.0  # maximum wait for the values of other trials, whose workers may have died
_MAX_TWINS = 8  # attempts to sample values that no other trial has
_NUM_RANDOM = 10  # random trials before the sampler builds a model

SAMPLER = f"TPE, multivariate, constant liar, {_NUM_RANDOM} random trials first"
DAMAGE = (ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError)
"""Errors of Optuna on a journal with invalid content, which it does not validate."""

FINISHED: dict[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


class SharedStudy:
    """One worker of a study."""

    def __init__(self, spec: StudySpec, study: optuna.Study, liveness: Liveness, worker: str, place: str) -> None:
        """See `open_study`."""
        self.spec, self.study, self.liveness, self._worker, self._place = spec, study, liveness, worker, place
        self._distributions = {name: _distribution(spec, name) for name in spec.space}

    def claim(self, num_trials: int, most: int) -> list[optuna.Trial]:
        """Claim trials: those of dead workers first, then new ones, up to the next multiple of `most`.

        Args:
            num_trials: maximum over all workers.
            most: maximum in one batch.

        Returns:
            Empty if other workers are training all missing trials.
        """
        with speaking_of(self._place), self.liveness.claiming():
            self._give_up(self.liveness.lost(self.study, self._worker))
            taken = sum(_counts(trial) for trial in self._frozen())
            # batches end at multiples of `most`, so that an interrupted study samples the same values
            wanted = max(0, min(most - taken % most, num_trials - taken))
            until = time.monotonic() + _ASKED_SECONDS
            claims = [self._ask(taken + place, until) for place in range(wanted)]
            order = [trial.number for trial in self._frozen() if _counts(trial)]
            surplus = [trial for trial in claims if order.index(trial.number) >= num_trials]
            for trial in surplus:  # two workers of a database claimed at once: drop the later number
                self._fail(trial._trial_id)
            return [trial for trial in claims if trial not in surplus]

    def tell(self, trial: optuna.Trial, result: TrialResult | None) -> None:
        """Report the outcome of a trial; None if pruned. Trials that others have taken over meanwhile are ignored."""
        with speaking_of(self._place), contextlib.suppress(UpdateFinishedTrialError, ValueError):
            if result is None:
                self.study.tell(trial, state=TrialState.PRUNED)
                return
            trial.set_user_attr("seconds", round(result.seconds, 3))
            if result.value is None or math.isnan(result.value):
                trial.set_user_attr("error", (result.error or "no class of the validation part was scored")[:500])
                self.study.tell(trial, state=TrialState.FAIL)
            else:
                self.study.tell(trial, result.value)

    def give_back(self, claims: Sequence[optuna.Trial]) -> None:
        """Release trials without an outcome for other workers."""
        with speaking_of(self._place), self.liveness.claiming():
            own = {trial.number for trial in claims}
            self._give_up([trial for trial in self._frozen() if trial.number in own and runs(trial)])

    def trials(self) -> tuple[Trial, ...]:
        """Return all trials with an outcome: the starting values, then the others in order of creation."""
        with speaking_of(self._place):
            told = [trial for trial in self._frozen() if _counts(trial) and not runs(trial)]
            return tuple(
                Trial(
                    values=self.values(trial),
                    state=FINISHED[trial.state],
                    value=trial.value if trial.state == TrialState.COMPLETE else None,
                    seconds=trial.user_attrs.get("seconds"),
                    error=trial.user_attrs.get("error"),
                )
                for trial in sorted(told, key=lambda trial: not trial.user_attrs.get("start"))
            )

    def _frozen(self) -> list[FrozenTrial]:
        # not copied: they are read often, and never modified
        return sorted(self.study.get_trials(deepcopy=False), key=lambda trial: trial.number)

    def _ask(self, index: int, until: float) -> optuna.Trial:
        """Return a trial with unique values; two workers of a database that ask at once would sample the same ones.

        The sampler's seed depends on the index, so that an interrupted study samples the same values.
        """
        for attempt in range(_MAX_TWINS):
            names = (index, attempt) if attempt else (index,)
            # Optuna uses numpy's legacy generators, with 32-bit seeds
            seed = derive_seed(self.spec.seed, "sampler", *names) % 2**32
            self.study.sampler = optuna.samplers.TPESampler(
                n_startup_trials=_NUM_RANDOM, multivariate=True, constant_liar=True, seed=seed
            )
            trial = self.study.ask(self._distributions)
            # heartbeat before mark: a marked trial without a heartbeat would never be detected as lost
            self.liveness.taken(trial)
            trial.set_user_attr("worker", self._worker)
            if trial.params not in self._params_of_older(trial.number, until):
                break
            if attempt + 1 < _MAX_TWINS:
                self._fail(trial._trial_id)
        return trial

    def _params_of_older(self, number: int, until: float) -> list[dict[str, float]]:
        """Return the values of trials with lower numbers, waiting for those that are still being sampled."""
        while True:
            older = [trial.params for trial in self._frozen() if trial.number < number and _counts(trial)]
            whole = [params for params in older if self.spec.space.keys() <= params.keys()]
            if len(whole) == len(older) or time.monotonic() > until:
                return whole
            time.sleep(0.02)

    def values(self, trial: optuna.Trial | FrozenTrial) -> dict[str, float]:
        """Return a trial's values; those of the first are exactly the starting values, even outside the space."""
        if trial.user_attrs.get("start"):
            return dict(self.spec.start)
        return {name: trial.params[name] for name in self.spec.space}

    def _give_up(self, trials: Sequence[FrozenTrial]) -> None:
        for trial in trials:
            if self._fail(trial._trial_id):  # only one of several workers succeeds
                queue_again(self.study, trial, self.spec)

    def _fail(self, trial_id: int) -> bool:
        try:
            return bool(self.study._storage.set_trial_state_values(trial_id, state=TrialState.FAIL))
        except UpdateFinishedTrialError:
            return False


def queue_start(study: optuna.Study, spec: StudySpec) -> None:
    """Queue the trial of the starting values; the sampler sees values outside the space clipped to it."""
    values = {}
    for name, value in spec.start.items():
        found = spec.space[name]
        near = min(max(value, found.low), found.high)
        values[name] = int(near) if found.integer else near
    study.enqueue_trial(values, user_attrs={"start": True})


def queue_again(study: optuna.Study, trial: FrozenTrial, spec: StudySpec) -> None:
    """Queue the values of a lost trial; if they were incomplete, they are sampled again with the same seed."""
    if trial.user_attrs.get("start"):
        queue_start(study, spec)
        return
    values = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
    if spec.space.keys() <= values.keys():
        study.enqueue_trial(values)


@contextlib.contextmanager
def speaking_of(place: str) -> Iterator[None]:
    """Turn errors of the storage into messages, and silence Optuna's warnings on experimental features."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except OSError as error:
        raise unwritable(Path(error.filename or place), error) from error
    except Exception as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        if isinstance(cause, DAMAGE) and not isinstance(cause, PlbenchError):
            raise damaged(place, cause) from error
        kind = type(cause)  # by name, since the drivers may not be installed
        # `storage._open_database` says which driver is missing
        if kind.__module__.split(".")[0] not in ("sqlalchemy", "psycopg") or kind.__name__ == "NoSuchModuleError":
            raise
        # the driver's message; SQLAlchemy's also contains the statement and its values
        why = str(getattr(cause, "orig", None) or cause).splitlines()[0][:160]
        raise StoreError(f"the storage {place} cannot be used: {why}; start the database, or fix `storage=`") from error


def damaged(place: object, error: BaseException) -> StoreError:
    """Return the error for a storage that Optuna cannot read."""
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return StoreError(
        f"{place} is damaged and cannot be read as a study ({said:.100}); move it away, and the same command starts "
        "the study again"
    )


def _counts(trial: FrozenTrial) -> bool:
    """Return whether the trial counts: it is running or has an outcome."""
    if trial.state == TrialState.FAIL:
        return "error" in trial.user_attrs
    return trial.state != TrialState.WAITING


def _distribution(spec: StudySpec, name: str) -> BaseDistribution:
    found = spec.space[name]
    if found.integer:
        return IntDistribution(int(found.low), int(found.high), log=found.log)
    return FloatDistribution(found.low, found.high, log=found.log)

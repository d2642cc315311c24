"""Data of a study: its specification, search space and trials. Nothing is run or plotted here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from plbench.errors import PlbenchError, StoreError, did_you_mean, first_invalid
from plbench.files import write_text
from plbench.method import SearchRange
from plbench.randomness import derive_seed
from plbench.runs.plan.resolved import ResolvedRun, checked, complete, make_task
from plbench.runs.record import Count, Percent, SearchedRange, TuningReport
from plbench.runs.registry import Registry
from plbench.runs.store import Store
from plbench.spec import NUMERICS, Frozen, Plan, Regime, TrainingSpec

STUDY = "study.json"
PLAN_VALUES = ("lr", "weight_decay")
_RATE_FACTOR = 10.0
_DECAY_FACTOR = 30.0
_DECAYS = (1e-6, 1e-1)  # if the plan's decay is 0, which has no logarithm

State = Literal["complete", "pruned", "failed"]
Ranges = Mapping[str, tuple[float, float]]


class StudySpec(TrainingSpec):
    """Everything that determines a study's result, except the number of trials, which can be increased later.

    Attributes:
        protocol: without its budget, which only limits the number of trials.
        method, plan: with the starting values; the names in `space` are searched.
        seed: of the sampler and of the trials.
        space: search ranges by name: the method's parameters, "lr" and "weight_decay".
        sampler, pruner: propose values, and end trials early; the pruner is "none" if trials train together.
    """

    space: dict[str, SearchedRange]
    sampler: str
    pruner: str
    skipped_images: tuple[str, ...] = ()
    numerics: int = NUMERICS

    @property
    def trial_seed(self) -> int:
        """Seed of all trials, different from those of the final runs."""
        return derive_seed(self.seed, "trials") % 2**31

    @property
    def start(self) -> dict[str, float]:
        """The values of the first trial: the starting values, the paper's by default."""
        plan = {name: getattr(self.plan, name) for name in PLAN_VALUES}
        return {name: {**self.method.params, **plan}[name] for name in self.space}


class Trial(Frozen):
    """One trial with an outcome.

    Attributes:
        values: trained values by name.
        value: mAP(C) on the validation part, percent; None if pruned or failed.
        seconds: training time; an equal share if trials trained together.
    """

    values: dict[str, float]
    state: State
    value: Percent | None = None
    seconds: float | None = None
    error: str | None = None


class Rows(Frozen):
    """Keys of the final runs in one regime, by seed 0, 1, …; failed trainings have none."""

    regime: Regime
    default: tuple[str, ...]
    tuned: tuple[str, ...]


class StudyRecord(Frozen):
    """`study.json`: specification, trials and choice.

    Attributes:
        trials: in order of creation; the first has the starting values.
        winner: index of the best complete trial, the first if tied.
        rows: the final runs, if any.
        pictures: names of files in the study's folder.
        versions: of packages that affect results.
    """

    schema_version: Literal[1] = 1
    key: str
    spec_sha256: str
    spec: StudySpec
    trials: Annotated[tuple[Trial, ...], Field(min_length=1)]
    winner: Count
    rows: tuple[Rows, ...] = ()
    pictures: tuple[str, ...] = ()
    versions: dict[str, str | None] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_a_winner(self) -> Self:
        if self.winner >= len(self.trials) or self.best.value is None:
            raise ValueError(f"the winner, trial {self.winner}, is none of the trials with a value")
        return self

    @property
    def best(self) -> Trial:
        """The winner."""
        return self.trials[self.winner]

    def report(self) -> TuningReport:
        """Return the report on the study for the record of a run with its values."""
        value = self.best.value
        assert value is not None
        return TuningReport(
            study=self.key,
            regime=self.spec.regime,
            num_trials=len(self.trials),
            space=self.spec.space,
            sampler=self.spec.sampler,
            pruner=self.spec.pruner,
            seed=self.spec.seed,
            labels=self.spec.protocol.validation_labels,
            chosen=self.best.values,
            default=self.spec.start,
            value=value,
            default_value=self.trials[0].value,
        )


def study_folder(store: Store, key: str) -> Path:
    """Return the folder of a study's files."""
    return store.runs / "studies" / key


def write_study(folder: Path, study: StudyRecord) -> None:
    """Write `study.json`.

    Raises:
        StoreError: if it cannot be written.
    """
    content = study.model_dump(mode="json")
    write_text(folder / STUDY, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_study(folder: Path) -> StudyRecord:
    """Read and validate `study.json`.

    Raises:
        StoreError: if it is missing, damaged, or does not match its key.
    """
    path = folder / STUDY
    try:
        study = StudyRecord.model_validate_json(path.read_bytes())
    except OSError as error:
        raise StoreError(f"{path} cannot be read as a study: {error.strerror}") from error
    except ValidationError as error:
        field, message, *_ = first_invalid(error)
        raise StoreError(f"{path} is not a valid study: {field or 'JSON'}: {message}") from error
    if study.spec.sha256() != study.spec_sha256 or study.spec.key != study.key:
        raise StoreError(f"{path} was changed: its spec has key {study.spec.key}, it says {study.key}")
    return study


def parse_ranges(texts: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Parse texts "name=low:high" to lowest and highest values by name.

    Raises:
        PlbenchError: if one is not of that form, or a name is repeated.
    """
    ranges: dict[str, tuple[float, float]] = {}
    for text in texts:
        name, _, ends = text.partition("=")
        try:
            low, high = map(float, ends.split(":"))
        except ValueError:
            name = ""
        if not name:
            raise PlbenchError(f'`range=` {text!r} is not of the form name=low:high, such as `range="lr=1e-4:1e-1"`')
        if name in ranges:
            first = ":".join(f"{end:g}" for end in ranges[name])
            raise PlbenchError(f'`range="{name}"` is given twice ({first} and {ends}); give it once')
        ranges[name] = low, high
    return ranges


def search_space(plan: ResolvedRun, fixed: frozenset[str], ranges: Ranges) -> dict[str, SearchedRange]:
    """Return the search space of a study of this plan.

    Args:
        plan: with the starting values.
        fixed: parameters of the method that stay as they are.
        ranges: lowest and highest value by name, instead of the defaults of method and plan.

    Raises:
        PlbenchError: if a range is invalid, or of a parameter that is not searched.
    """
    declared, is_whole = plan.method.Params.search_space(), plan.method.Params.is_whole
    searched = {n: r for n, r in declared.items() if n not in fixed and r.applies(plan.params)}
    for name, ends in ranges.items():
        _check_range(name, ends, plan, searched, fixed)
    task = make_task(plan.spec.model_copy(update={"train_part": "fit"}), plan.protocol_data)
    space = {}
    for name, found in searched.items():
        start, (low, high) = getattr(plan.params, name), found.bounds(task)
        if is_whole(name):
            low, high = math.ceil(low), math.floor(high)
        low, high = min(low, start), max(high, start)
        space[name] = SearchedRange(low=low, high=high, log=found.log and low > 0, integer=is_whole(name))
    if plan.method.learns:
        rate, decay = plan.spec.plan.lr, plan.spec.plan.weight_decay
        space["lr"] = SearchedRange(low=rate / _RATE_FACTOR, high=rate * _RATE_FACTOR, log=True)
        low, high = (decay / _DECAY_FACTOR, decay * _DECAY_FACTOR) if decay else _DECAYS
        space["weight_decay"] = SearchedRange(low=low, high=high, log=True)
    for name, (low, high) in ranges.items():
        update = {"low": low, "high": high, "log": space[name].log and low > 0}
        space[name] = space[name].model_copy(update=update)
    space = {name: found for name, found in space.items() if found.low < found.high}
    if not space:
        raise PlbenchError(f"method {plan.method.name!r}: no parameter is left for tuning to search; leave one free")
    return space


def _check_range(
    name: str, ends: tuple[float, float], plan: ResolvedRun, searched: Mapping[str, SearchRange], fixed: frozenset[str]
) -> None:
    low, high = ends
    said = f'`range="{name}={low:g}:{high:g}"`'
    declared = plan.method.Params.search_space()
    if name in fixed:
        raise PlbenchError(
            f"{said}: {name} is fixed with `params.{name}={getattr(plan.params, name)}`; give one of the two"
        )
    if name in declared and name not in searched:
        needs = " and ".join(
            f"{n} = {' or '.join(map(str, v))}, not {getattr(plan.params, n)}" for n, v in declared[name].when.items()
        )
        raise PlbenchError(f"{said}: {name} has no effect here, since it needs {needs}; leave the range out")
    known = (*searched, *(PLAN_VALUES if plan.method.learns else ()))
    if name not in known:
        if name in plan.method.Params.model_fields:
            raise PlbenchError(f"{said}: tuning does not search {name}; {did_you_mean(name, known)}")
        raise PlbenchError(
            f"{said}: method {plan.method.name!r} has no parameter {name!r}; {did_you_mean(name, known)}"
        )
    if not (math.isfinite(low) and math.isfinite(high)):
        raise PlbenchError(f'{said}: both ends must be finite, as in `range="lr=1e-4:1e-1"`')
    if low >= high:
        raise PlbenchError(f"{said} is reversed or empty; the lower end comes first, as in {name}=LOW:HIGH")
    if name in searched and plan.method.Params.is_whole(name) and not (low.is_integer() and high.is_integer()):
        raise PlbenchError(f"{said}: {name} takes whole numbers")


def trial_plan(plan: ResolvedRun, values: Mapping[str, float], seed: int, registry: Registry) -> ResolvedRun:
    """Return the run of one trial: on train without its validation part, for all epochs.

    Args:
        plan: with the starting values.
        values: of the trial, by name.
        seed: of all trials.
        registry: of methods.

    Raises:
        PlbenchError: if a value is not valid.
    """
    update = {
        "protocol": plan.spec.protocol.model_copy(update={"max_trials": None}),
        "train_part": "fit",
        "selection": "last",
        "seed": seed,
        "tuned_by": None,
    }
    return with_values(plan, values, update, registry)


def with_values(
    plan: ResolvedRun, values: Mapping[str, Any], update: Mapping[str, Any], registry: Registry
) -> ResolvedRun:
    """Return a plan with changed parameters, rate and decay, and other changed fields of its spec.

    Raises:
        PlbenchError: if a value is not valid.
    """
    of_plan = {name: value for name, value in values.items() if name in PLAN_VALUES}
    of_method = {name: value for name, value in values.items() if name not in PLAN_VALUES}
    changed = checked(Plan, {**plan.spec.plan.model_dump(), **of_plan}, "training plan")
    base = plan.spec.model_copy(update={**update, "plan": changed})
    return complete(base, {**plan.spec.method.params, **of_method}, plan.protocol_data, plan.recipe, registry)


def study_spec(
    plan: ResolvedRun,
    seed: int,
    fixed: frozenset[str],
    ranges: Ranges,
    registry: Registry,
    *,
    sampler: str,
    pruner: str,
) -> StudySpec:
    """Return the specification of a study of this plan.

    Raises:
        PlbenchError: if a range is invalid.
    """
    same = {name: value for name, value in plan.spec if name in StudySpec.model_fields}
    own = {
        "protocol": plan.spec.protocol.model_copy(update={"max_trials": None}),
        "seed": seed,
        "space": search_space(plan, fixed, ranges),
        "sampler": sampler,
        "pruner": pruner,
    }
    study = StudySpec(**{**same, **own})
    for name, ends in ranges.items():
        for end in ends:
            value = int(end) if study.space[name].integer else end
            try:
                trial_plan(plan, {name: value}, study.trial_seed, registry)
            except PlbenchError as error:
                raise PlbenchError(f'`range="{name}={ends[0]:g}:{ends[1]:g}"`: {error}') from error
    return study

"""A comparison: which methods and variants, which runs of each, made in one go, and what came of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from plbench.errors import DataError, PlbenchError, StoreError, TrainingError, did_you_mean
from plbench.method import Batch, Loss, Method, Progress
from plbench.progress import duration
from plbench.runs import run as runner
from plbench.runs import schedule as sweep
from plbench.runs.estimate.stacked import seconds_of_all
from plbench.runs.plan.resolve import Request, RunPlan, complete, plan_run
from plbench.runs.protocol import Material
from plbench.runs.record import Record
from plbench.runs.registry import Registry, Source
from plbench.runs.workspace import Workspace
from plbench.spec import MethodSpec
from plbench.tuning.study import StudyRecord

ALL = "all"
"""What `--methods` calls everything that is installed."""


@dataclass(frozen=True)
class Entrant:
    """A method, or a variant of one, that takes part.

    Attributes:
        params: the variant's.
        named: whether a person asked for this very one, so that it may not be left out.
    """

    method: str
    variant: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict, compare=False)
    named: bool = field(default=False, compare=False)

    @property
    def words(self) -> str:
        """As `--methods` takes it."""
        return f"{self.method}:{self.variant}" if self.variant else self.method


@dataclass(frozen=True)
class LeftOut:
    """What is not in the table, and why."""

    who: str
    why: str


@dataclass(frozen=True)
class Contest:
    """The runs of each entrant, by seed.

    Attributes:
        rows: each entrant with its plans; twice where studies also chose values for it, then with those of each study.
        setting: a plan of the same protocol, model and recipe, of no method in particular.
    """

    rows: tuple[tuple[Entrant, tuple[RunPlan, ...]], ...]
    left_out: tuple[LeftOut, ...]
    setting: RunPlan

    @property
    def plans(self) -> list[RunPlan]:
        """All runs, row by row."""
        return [plan for _, plans in self.rows for plan in plans]


class _Anyone(Method):
    """Stands for all methods where only their setting is planned: it needs nothing, so it fits every protocol."""

    name = "anyone"
    title = "Any method"

    def loss(self, output: Any, batch: Batch, progress: Progress) -> Loss:
        """Never called."""
        raise AssertionError("nobody trains this")


def choose_entrants(texts: Sequence[str], registry: Registry) -> tuple[list[Entrant], list[LeftOut]]:
    """Who takes part, in the order in which they are named.

    Args:
        texts: "all", tags, methods, "method:variant" and "method:*", separated by commas. A tag brings the variants of
            its methods along; a method that is named comes alone.
        registry: what is installed.

    Returns:
        The entrants, and what a group would have brought but for its being broken.

    Raises:
        PlbenchError: if a name is none of these. PluginError: if a method that is named is broken.
    """
    names = [name.strip() for text in texts for name in text.split(",") if name.strip()]
    if not names:
        raise PlbenchError("--methods names nobody; give all, a tag such as paper, or names of methods")
    broken = registry.broken("method")
    sound = {name: registry.method(name) for name in registry.names("method") if name not in broken}
    entrants: dict[tuple[str, str | None], Entrant] = {}
    has_group = False
    for name in names:
        group = _members(name, sound)
        has_group |= group is not None
        for entrant in [_named(name, registry, sound)] if group is None else group:
            known = entrants.get((entrant.method, entrant.variant))
            if known is None or entrant.named:
                entrants[entrant.method, entrant.variant] = entrant
    left_out = [LeftOut(name, why) for name, why in broken.items()] if has_group else []
    return list(entrants.values()), left_out


def _members(name: str, sound: Mapping[str, type[Method]]) -> list[Entrant] | None:
    """Whom the name of a group stands for, variants included; None where it is no group's."""
    method, colon, variant = name.partition(":")
    if colon and variant == "*" and method in sound:
        return _with_variants(sound[method])
    if name in sound or (name != ALL and not any(name in kind.tags for kind in sound.values())):
        return None
    return [entrant for kind in sound.values() if name == ALL or name in kind.tags for entrant in _with_variants(kind)]


def _with_variants(method: type[Method]) -> list[Entrant]:
    return [Entrant(method.name), *(Entrant(method.name, name, params) for name, params in method.variants.items())]


def _named(name: str, registry: Registry, sound: Mapping[str, type[Method]]) -> Entrant:
    method, colon, variant = name.partition(":")
    if method not in registry.names("method"):
        tags = {tag for kind in sound.values() for tag in kind.tags}
        known = sound if colon else {ALL, *tags, *sound}
        raise PlbenchError(f"there is no method{'' if colon else ' or tag'} {method!r}; {did_you_mean(method, known)}")
    variants = registry.method(method).variants
    if not colon:
        return Entrant(method, named=True)
    if variant not in variants:
        listing = did_you_mean(variant, {"*", *variants}) if variants else "it has none"
        raise PlbenchError(f"method {method!r} has no variant {variant!r}; {listing}")
    return Entrant(method, variant, variants[variant], named=True)


def plan_contest(
    request: Request,
    entrants: Sequence[Entrant],
    num_seeds: int,
    workspace: Workspace,
    *,
    left_out: Sequence[LeftOut] = (),
    num_trials: int | None = None,
) -> Contest:
    """The runs of all entrants with seeds 0, 1, …; nothing is trained yet.

    Args:
        request: dataset, model and plan; its method, parameters and seed are not looked at.
        entrants: who takes part. One that does not fit the setting is left out, unless it was named.
        num_seeds: at least 1.
        workspace: where and how.
        left_out: whom choosing has left out already.
        num_trials: of a study for each row, if there are to be any: the protocol of all rows must grant them.

    Raises:
        PlbenchError: if the setting does not exist, one who was named does not fit it, or nobody does.
    """
    if num_seeds < 1:
        raise PlbenchError(f"--seeds {num_seeds}: a comparison needs at least one seed, and 3 to tell methods apart")
    setting = plan_setting(request, num_trials, workspace)
    rows, absent = [], list(left_out)
    for entrant in entrants:
        try:
            plans = [plan_entrant(entrant, setting, seed, workspace) for seed in range(num_seeds)]
        except PlbenchError as error:
            if entrant.named:
                raise
            absent.append(LeftOut(entrant.words, str(error)))
            continue
        rows.append((entrant, tuple(plans)))
    if not rows:
        why = "; ".join(f"{entry.who}: {entry.why}" for entry in absent)
        raise PlbenchError(f"no method that --methods names applies to {setting.spec.protocol.name} ({why})")
    return Contest(tuple(rows), tuple(absent), setting)


def plan_setting(
    request: Request, num_trials: int | None, workspace: Workspace, opened: Sequence[Material] = ()
) -> RunPlan:
    """Opens and checks the data once: every entrant shares what comes of it.

    Args:
        request: as for `plan_contest`.
        num_trials: of a study for each row that the protocol must grant; None for no study.
        workspace: where and how.
        opened: as for `plan_run`.
    """
    methods = {**workspace.registry.sources["method"], _Anyone.name: [Source(_Anyone.name, "plbench", loaded=_Anyone)]}
    with_anyone = replace(workspace, registry=Registry({**workspace.registry.sources, "method": methods}))
    setting = plan_run(replace(request, method=_Anyone.name, method_params={}, seed=0), with_anyone, opened)
    if num_trials is None:
        return setting
    from plbench.tuning import tune  # imports Optuna

    return tune.budgeted(setting, num_trials, with_anyone)


def plan_entrant(entrant: Entrant, setting: RunPlan, seed: int, workspace: Workspace) -> RunPlan:
    """One run of an entrant.

    Raises:
        PlbenchError: if the method does not fit the setting.
    """
    method = MethodSpec(name=entrant.method, version="", source_sha256="", params={})
    base = setting.spec.model_copy(update={"method": method, "seed": seed})
    return complete(base, entrant.params, setting.material, setting.recipe, workspace.registry)


def with_tuned(contest: Contest, num_trials: int, num_studies: int, workspace: Workspace) -> Contest:
    """Adds, beside each row, that of the values which studies of equally many trials choose for it.

    What one study finds is in part its luck. So a tuned row has several, each with a seed and so with proposals and
    labels of its own, and the winner of each is run with all seeds of the comparison. A study that was longer before
    counts by its first trials. A row one of whose studies fails has no tuned one beside it.

    Args:
        contest: the rows.
        num_trials: of each study, at least 1.
        num_studies: of each row, at least 1; their seeds are 0, 1, …
        workspace: where and how.

    Raises:
        PlbenchError: if a study of somebody who was named cannot be made, or data or files are not as they must be.
    """
    rows, absent = [], list(contest.left_out)
    for number, (entrant, plans) in enumerate(contest.rows, 1):
        of_each = f"{_number(num_studies, 'study', 'studies')} of {_number(num_trials, 'trial')}"
        workspace.reporter.line(f"Tuning {entrant.words}, {number} of {len(contest.rows)}: {of_each}")
        rows.append((entrant, plans))
        try:
            rows.append((entrant, _tuned(plans, num_trials, num_studies, workspace)))
        except (DataError, StoreError):
            raise
        except PlbenchError as error:
            if entrant.named and not isinstance(error, TrainingError):
                raise
            absent.append(LeftOut(f"{entrant.words}, tuned", str(error)))
    return replace(contest, rows=tuple(rows), left_out=tuple(absent))


def _tuned(plans: Sequence[RunPlan], num_trials: int, num_studies: int, workspace: Workspace) -> tuple[RunPlan, ...]:
    """The runs of a tuned row: those of the first study's winner by seed, then those of the next."""
    from plbench.tuning import tune  # imports Optuna

    found: list[RunPlan] = []
    for seed in range(num_studies):
        study = _first_trials(tune.search(plans[0], tune.Settings(num_trials, seed=seed), workspace), num_trials)
        found += [tune.tuned_plan(plan, study, workspace) for plan in plans]
    return tuple(found)


def describe_studies(contest: Contest, num_trials: int, num_studies: int) -> str:
    """One line on what tuning adds to a contest that has no tuned rows yet."""
    rows, seeds = len(contest.rows), len(contest.rows[0][1])
    trials = rows * num_studies * num_trials
    runs = rows * num_studies * seeds
    return (
        f"before that {_number(num_studies, 'study', 'studies')} of {_number(num_trials, 'trial')} for each row, "
        f"{_number(trials, 'shorter training')} in all, less what is there; they add {_number(rows, 'tuned row')} of "
        f"{_number(num_studies * seeds, 'training')} each, {runs:,} in all"
    )


def _number(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _first_trials(study: StudyRecord, number: int) -> StudyRecord:
    """What the study had found after so many trials: nobody gets more than the others."""
    if len(study.trials) <= number:
        return study
    trials = study.trials[:number]
    values = [-math.inf if trial.value is None else trial.value for trial in trials]
    if max(values) == -math.inf:
        raise TrainingError(f"none of the first {number} trials of study {study.key} was trained to its end")
    return study.model_copy(update={"trials": trials, "winner": values.index(max(values))})


@dataclass(frozen=True)
class Foreseen:
    """One line on what will run; the trainings that it takes, those not yet done, and seconds for these."""

    text: str
    num_trainings: int
    num_missing: int
    seconds: float


def foresee(contest: Contest, workspace: Workspace) -> Foreseen:
    """Counts the trainings of all rows, with what they need first, and measures how long one takes."""
    wanted = sweep.with_prerequisites(contest.plans, workspace.registry)
    missing = [plan for plan in wanted.values() if runner.finished(plan, workspace) is None]
    seconds = seconds_of_all(contest.plans, workspace) if missing else 0.0
    rows, seeds = len(contest.rows), len(contest.rows[0][1])
    num_tuned = sum(plans[0].spec.tuned_by is not None for _, plans in contest.rows)
    num_studies = max(len({plan.spec.tuned_by for plan in plans}) for _, plans in contest.rows)
    tuned = f", {num_tuned} of them tuned by {_number(num_studies, 'study', 'studies')} each" if num_tuned else ""
    done = "all done already" if not missing else f"{len(wanted) - len(missing)} of them done already"
    text = (
        f"{contest.setting.spec.protocol.name}: {_number(rows, 'row')} with {_number(seeds, 'seed')} each{tuned}, "
        f"{_number(len(wanted), 'training')}, {done}"
    )
    if missing:
        text += f"; about {duration(seconds)} on {workspace.device.type}"
    return Foreseen(text, len(wanted), len(missing), seconds)


def make_runs(contest: Contest, workspace: Workspace) -> tuple[list[tuple[Path, Record]], list[LeftOut]]:
    """Makes what is missing of all runs, in one sweep.

    Returns:
        Folder and record of each run whose row is whole; and the rows that are not, with the training that failed.
    """
    results = iter(sweep.run_all(contest.plans, workspace))
    whole, failed = [], []
    for entrant, plans in contest.rows:
        made = [next(results) for _ in plans]
        error = next((result for result in made if isinstance(result, TrainingError)), None)
        if error is not None:
            spec = plans[made.index(error)].spec
            tuned, which = (", tuned", f" of study {spec.tuned_by}") if spec.tuned_by else ("", "")
            failed.append(LeftOut(f"{entrant.words}{tuned}", f"seed {spec.seed}{which} failed: {error}"))
            continue
        whole += [(workspace.store.run_folder(r.key), r) for r in made if isinstance(r, Record)]
    return whole, failed

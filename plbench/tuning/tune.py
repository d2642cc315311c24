"""Tuning: a study proposes values, trials evaluate them on the validation part; the best is retrained."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import optuna

from plbench.comparison.compare import Setting, compare
from plbench.errors import PlbenchError, TrainingError
from plbench.progress import duration
from plbench.runs import schedule
from plbench.runs.environment import package_versions
from plbench.runs.estimate.estimate import Estimate, estimate_runs
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.protocol import granting
from plbench.runs.record import Record
from plbench.runs.together import can_stack
from plbench.runs.workspace import Workspace
from plbench.tuning import trials
from plbench.tuning.shared import SAMPLER, SharedStudy
from plbench.tuning.storage import open_study
from plbench.tuning.study import (
    PLAN_VALUES,
    Rows,
    StudyRecord,
    StudySpec,
    study_folder,
    study_spec,
    trial_plan,
    with_values,
    write_study,
)
from plbench.tuning.trials import TrialResult

BATCH = 16  # maximum number of trials proposed at once; the sampler learns between batches
POLL_SECONDS = 1.0
_PRUNED_AFTER = 5  # trials
_SAID_EVERY = 2.0  # seconds between two progress lines


@dataclass(frozen=True)
class Settings:
    """Settings of a study.

    Attributes:
        num_trials: of all workers together, including existing trials.
        seed: of the sampler and of the trials.
        storage: path of a journal, or URL of a database; None for a journal in the study's folder.
        study: name of the study in the storage.
        ranges: lowest and highest value by name, instead of the declared ones.
        fixed: parameters of the method that are not searched.
    """

    num_trials: int
    seed: int = 0
    storage: str | None = None
    study: str | None = None
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    fixed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Tuning:
    """The result of `plbench tune`.

    Attributes:
        settings: comparison of the final rows, one setting per regime; empty with `search_only`.
    """

    study: StudyRecord
    folder: Path
    settings: tuple[Setting, ...]


def tune(
    plan: ResolvedRun,
    settings: Settings,
    workspace: Workspace,
    *,
    num_seeds: int = 3,
    then: ResolvedRun | None = None,
    search_only: bool = False,
) -> Tuning:
    """Search, then train the starting and the winning values on all of train, with seeds from 0 on.

    Args:
        plan: the method's run with its starting values.
        settings: of the study.
        workspace: locations and compute options.
        num_seeds: number of seeds of each final row.
        then: the same run in another regime, also trained with the winner's parameters.
        search_only: skip the final runs.

    Raises:
        PlbenchError: if the settings are not possible. TrainingError: if no trial or no final run could be trained.
    """
    if num_seeds < 1:
        raise PlbenchError(f"`seeds={num_seeds}`: the final rows need at least one seed, such as `seeds=3`")
    study = search(plan, settings, workspace)
    folder = study_folder(workspace.store, study.key)
    rows: tuple[Rows, ...] = ()
    compared: tuple[Setting, ...] = ()
    if not search_only:
        finals = [plan] if then is None else [plan, then]
        rows, compared = _final_runs(finals, study, max(settings.num_trials, len(study.trials)), num_seeds, workspace)
    with workspace.reporter.patience("Drawing the study"):
        from plbench.tuning.pictures import draw_study

        pictures = draw_study(study, folder)
    study = study.model_copy(update={"rows": rows, "pictures": pictures})
    write_study(folder, study)
    return Tuning(study, folder, compared)


def estimate_study(
    plan: ResolvedRun, num_trials: int, num_seeds: int, workspace: Workspace, then: ResolvedRun | None = None
) -> tuple[str, Estimate]:
    """Return one line on the cost of a study and its final rows, and the estimate; nothing is trained.

    Runs with a slightly different learning rate stand for those whose values are not known yet.

    Args:
        plan: the method's run on all of train.
        num_trials: of the study.
        num_seeds: number of seeds of each final row; 0 for a search alone.
        workspace: where and how.
        then: the same run in another regime, if it is also trained.
    """

    def with_rate(run: ResolvedRun, number: int) -> ResolvedRun:
        changed = run.spec.plan.model_copy(update={"lr": run.spec.plan.lr * (1 + 1e-9 * number)})
        return replace(run, spec=run.spec.model_copy(update={"plan": changed}))

    trial = trial_plan(plan, {}, 0, workspace.registry)
    plans = [with_rate(trial, number) for number in range(num_trials)]
    for final in (plan,) if then is None else (plan, then):
        for seed in range(num_seeds):
            default = at_seed(final, seed, workspace)
            plans += [default, with_rate(default, 1)]
    found = estimate_runs(plans, workspace)
    rows = "" if not num_seeds else f", then 2 rows of {num_seeds} seeds" + (" in each regime" if then else "")
    text = (
        f"Study of {plan.method.title} on {plan.spec.protocol.name}: {num_trials} trials{rows}; {found.words}, minus "
        "finished and pruned trials"
    )
    return text, found


def search(plan: ResolvedRun, settings: Settings, workspace: Workspace) -> StudyRecord:
    """Run the missing trials of a study, alone or together with other workers, and return it with its winner.

    Test is not opened: trials train on train without its validation part, and are scored on that part.

    Args:
        plan: the method's run with its starting values, on all of train.
        settings: of the study.
        workspace: where and how.

    Raises:
        PlbenchError: if the settings are not possible. TrainingError: if no trial could be trained.
    """
    if settings.num_trials < 1:
        raise PlbenchError(f"`trials={settings.num_trials}`: a study needs at least one trial, such as `trials=64`")
    if settings.seed < 0:
        raise PlbenchError(f"`study_seed={settings.seed}`: a seed is 0 or more")
    if settings.study is not None and not settings.study.strip():
        raise PlbenchError("`study=`: the name is empty; give one, or leave it out")
    plan.protocol_data.validation()  # raise errors now, not after the stages
    together = can_stack(trial_plan(plan, {}, 0, workspace.registry))
    sampler, pruned_by = SAMPLER, "none"
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if together:
        sampler += f", batches of {BATCH}"
    else:
        warm_up = max(1, plan.spec.plan.epochs // 3)
        pruner = optuna.pruners.MedianPruner(n_startup_trials=_PRUNED_AFTER, n_warmup_steps=warm_up)
        pruned_by = f"median, after {_PRUNED_AFTER} trials and {warm_up} epochs"
    fixed, ranges = settings.fixed, settings.ranges
    spec = study_spec(plan, settings.seed, fixed, ranges, workspace.registry, sampler=sampler, pruner=pruned_by)
    folder = study_folder(workspace.store, spec.key)
    shared = open_study(spec, folder, settings.storage, settings.study, pruner)
    try:
        _Search(plan, spec, settings.num_trials, shared, workspace, together).run()
        told = shared.trials()
    finally:
        shared.liveness.close()
    complete = [index for index, trial in enumerate(told) if trial.value is not None]
    if not complete:
        errors = [trial.error for trial in told if trial.error]
        why = f"the last failed: {errors[-1]}" if errors else "all were pruned"
        raise TrainingError(
            f"none of the {len(told)} trials of study {spec.key} was completed; {why}; give other ranges, "
            'such as `range="lr=LOW:HIGH"`, or more `trials=`'
        )
    study = StudyRecord(
        key=spec.key,
        spec_sha256=spec.sha256(),
        spec=spec,
        trials=told,
        winner=max(complete, key=lambda index: (told[index].value, -index)),
        versions={**package_versions(), "optuna": optuna.__version__},
    )
    write_study(folder, study)
    return study


@dataclass
class _Search:
    """One worker of a study."""

    plan: ResolvedRun
    spec: StudySpec
    num_trials: int
    shared: SharedStudy
    workspace: Workspace
    together: bool
    num_made: int = 0
    start: float = field(default_factory=time.monotonic)
    said: float = 0.0

    def run(self) -> None:
        """Run until all trials of the study have an outcome, from any worker."""
        say = self.workspace.reporter.line
        say(f"Study {self.spec.key}: {self.plan.method.title}, {', '.join(self.spec.space)}")
        waiting = False
        while (num_told := len(self.shared.trials())) < self.num_trials:
            claims = self.shared.claim(self.num_trials, BATCH if self.together else 1)
            if claims:
                self._train(claims)
                waiting = False
                continue
            if not waiting:
                say(f"Waiting for the last {self.num_trials - num_told} trials, which other workers have taken")
                waiting = True
            time.sleep(POLL_SECONDS)

    def _train(self, claims: Sequence[optuna.Trial]) -> None:
        seed, registry = self.spec.trial_seed, self.workspace.registry
        plans = [trial_plan(self.plan, self.shared.values(trial), seed, registry) for trial in claims]
        try:
            with self.shared.liveness.alive(claims):
                if self.together:
                    results: list[TrialResult | None] = [*trials.score_together(plans, self.workspace)]
                else:
                    results = [self._alone(trial, plan) for trial, plan in zip(claims, plans, strict=True)]
            for trial, result in zip(claims, results, strict=True):
                self.shared.tell(trial, result)
        except BaseException:
            self.shared.give_back(claims)
            raise
        self.num_made += len(claims)
        self._say_how_far()

    def _alone(self, trial: optuna.Trial, plan: ResolvedRun) -> TrialResult | None:
        """Train one trial and return its result; None if it was pruned."""

        def watch(epoch: int, value: float) -> None:
            trial.report(value, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        try:
            return trials.score_alone(plan, self.workspace, watch)
        except optuna.TrialPruned:
            self.workspace.store.remove(plan.spec.key)
            return None

    def _say_how_far(self) -> None:
        now, told = time.monotonic(), self.shared.trials()
        left = self.num_trials - len(told)
        if now - self.said < _SAID_EVERY and left > 0:
            return
        self.said = now
        values = [trial.value for trial in told if trial.value is not None]
        best = f"best mAP(C) on the validation part {max(values):.2f}" if values else "none complete"
        started = f" (starting values {told[0].value:.2f})" if told and told[0].value is not None else ""
        until = f", about {duration((now - self.start) / self.num_made * left)} left" if left > 0 else ""
        self.workspace.reporter.line(f"Trials: {len(told)} of {self.num_trials}, {best}{started}{until}")


def tuned_plan(plan: ResolvedRun, study: StudyRecord, workspace: Workspace) -> ResolvedRun:
    """Return the run of a study's winner with the plan's seed and regime, on all of train.

    In a different regime than the study's, only the method's parameters are transferred: a rate or decay tuned for a
    head does not apply to a whole network.

    Raises:
        PlbenchError: if a value is not valid in the plan.
    """
    values = study.best.values
    if plan.spec.regime != study.spec.regime:
        values = {name: value for name, value in values.items() if name not in PLAN_VALUES}
    tuned = with_values(plan, values, {"tuned_by": study.key}, workspace.registry)
    return replace(tuned, tuning=study.report())


def at_seed(plan: ResolvedRun, seed: int, workspace: Workspace) -> ResolvedRun:
    """Return the same run with another seed, including its stages."""
    return replace(with_values(plan, {}, {"seed": seed}, workspace.registry), tuning=plan.tuning)


def _final_runs(
    plans: Sequence[ResolvedRun], study: StudyRecord, num_trials: int, num_seeds: int, workspace: Workspace
) -> tuple[tuple[Rows, ...], tuple[Setting, ...]]:
    """Train the default and the tuned row of each regime with all seeds, and compare them."""
    rows: list[ResolvedRun] = []
    for plan in plans:
        # the plan's own protocol, unless it grants fewer trials
        protocol = granting(plan.spec.protocol, num_trials, workspace.reporter)
        default = with_values(plan, {}, {"protocol": protocol}, workspace.registry)
        rows += [default, tuned_plan(default, study, workspace)]
    finals = [at_seed(row, seed, workspace) for row in rows for seed in range(num_seeds)]
    workspace.reporter.line(f"The winner and the starting values on all of train: {len(finals)} runs")
    results = schedule.run_here(finals, workspace)
    made = [result for result in results if isinstance(result, Record)]
    if not made:
        raise TrainingError(f"none of the {len(finals)} final runs could be trained; {results[0]}")
    keys = [
        tuple(result.key for result in results[start : start + num_seeds] if isinstance(result, Record))
        for start in range(0, len(results), num_seeds)
    ]
    rows_by_regime = tuple(
        Rows(regime=plan.spec.regime, default=default, tuned=tuned)
        for plan, default, tuned in zip(plans, keys[::2], keys[1::2], strict=True)
    )
    folders = [(workspace.store.run_folder(record.key), record) for record in made]
    return rows_by_regime, tuple(compare(folders, workspace.registry))

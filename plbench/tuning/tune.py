"""Tuning: a study proposes values, trials on the validation part judge them, the best is trained with fresh seeds."""

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

BATCH = 16  # trials that are proposed at once, at most: the sampler learns from one batch to the next
POLL_SECONDS = 1.0
_PRUNED_AFTER = 5  # trials
_SAID_EVERY = 2.0  # seconds, between two lines on how far it is


@dataclass(frozen=True)
class Settings:
    """How a study is made.

    Attributes:
        num_trials: of all workers together; those that are there count.
        seed: of the sampler and of the trials.
        storage: path of a journal, or URL of a database; None for a journal in the study's folder.
        study: its name in the storage.
        ranges: lowest and highest value by name, in place of the declared ones.
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
    """What `plbench tune` made.

    Attributes:
        settings: the final rows side by side, one setting for each regime; empty where only the search was asked for.
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
    """Search, then train the starting values and the winner's on all of train, with seeds from 0 on.

    Args:
        plan: the method's run with its starting values.
        settings: of the study.
        workspace: where and how.
        num_seeds: of each final row.
        then: the same run in another regime, into which the winner's parameters go, too.
        search_only: leave the final runs out.

    Raises:
        PlbenchError: if something asked for cannot be. TrainingError: if no trial or no final run could be trained.
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
    """Return one line on what a study and its final rows take, and the estimate; nothing is trained.

    Runs that differ from the starting values by a hair in the rate stand for those whose values nobody knows yet.

    Args:
        plan: the method's run on all of train.
        num_trials: of the study.
        num_seeds: of each final row; 0 where only the search is asked for.
        workspace: where and how.
        then: the same run in another regime, if its final rows are asked for, too.
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
    """Make what is missing of a study's trials, alone or beside other workers, and return it with its winner.

    Test is not opened: trials train on train without its validation part, and are scored on that.

    Args:
        plan: the method's run with its starting values, on all of train.
        settings: of the study.
        workspace: where and how.

    Raises:
        PlbenchError: if something asked for cannot be. TrainingError: if no trial could be trained.
    """
    if settings.num_trials < 1:
        raise PlbenchError(f"`trials={settings.num_trials}`: a study needs at least one trial, such as `trials=64`")
    if settings.seed < 0:
        raise PlbenchError(f"`study_seed={settings.seed}`: a seed is 0 or more")
    if settings.study is not None and not settings.study.strip():
        raise PlbenchError("`study=`: the name is empty; give one, or leave it out")
    plan.protocol_data.validation()  # else what is wrong with it would be said after the stages
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
    """One worker at its trials."""

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
        """Run until all trials of the study were told an outcome, by whomever."""
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
        """Return one training; None where it was pruned, which leaves nothing behind."""

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
    """Return the run of a study's winner at the plan's own seed and regime, on all of train.

    In another regime than the study's, the parameters of the method go over alone: a rate or decay found for a head
    says nothing about a whole network.

    Raises:
        PlbenchError: if a value is not valid there.
    """
    values = study.best.values
    if plan.spec.regime != study.spec.regime:
        values = {name: value for name, value in values.items() if name not in PLAN_VALUES}
    tuned = with_values(plan, values, {"tuned_by": study.key}, workspace.registry)
    return replace(tuned, tuning=study.report())


def at_seed(plan: ResolvedRun, seed: int, workspace: Workspace) -> ResolvedRun:
    """Return the same run with another seed, and so with stages of that seed."""
    return replace(with_values(plan, {}, {"seed": seed}, workspace.registry), tuning=plan.tuning)


def _final_runs(
    plans: Sequence[ResolvedRun], study: StudyRecord, num_trials: int, num_seeds: int, workspace: Workspace
) -> tuple[tuple[Rows, ...], tuple[Setting, ...]]:
    """Return default and tuned row of each plan's regime over all seeds, in one go, and how they compare."""
    rows: list[ResolvedRun] = []
    for plan in plans:
        # its own, unless that grants fewer trials
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

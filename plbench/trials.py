"""Trials of a study: trainings on train without its validation part, judged by mAP(C) on that part. Test stays shut."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from plbench import runner
from plbench.errors import TrainingError
from plbench.job import Job
from plbench.metrics import evaluate_cells
from plbench.resolve import RunPlan
from plbench.workspace import Workspace


@dataclass(frozen=True)
class TrialResult:
    """What came of one trial.

    Attributes:
        value: mAP(C) on the validation part by the headline weights, percent; None where the training failed.
        seconds: that it took; of trials that trained together, an equal share.
        error: why it failed.
    """

    value: float | None
    seconds: float
    error: str | None = None


def can_train_together(plan: RunPlan) -> bool:
    """Whether trials of this setting train in one pass: cached features, and a method whose loss broadcasts."""
    return False


def score_together(plans: Sequence[RunPlan], workspace: Workspace) -> list[TrialResult]:
    """Trains trials in one pass and scores each; nothing is kept but the stages that they share.

    Args:
        plans: of train part "fit", for which `can_train_together` holds, and which agree in all but parameters, rate
            and decay.
        workspace: where and how.
    """
    return [_score(plan, workspace) for plan in plans]


def _score(plan: RunPlan, workspace: Workspace) -> TrialResult:
    start = time.perf_counter()
    artifacts = {name: runner.stage_artifact(plan, name, workspace) for name in plan.stages}
    job = Job(plan, workspace, artifacts)
    job.prepare()
    job.open_scored_part()
    try:
        job.train(workspace.store.run_folder(plan.spec.key))
    except TrainingError as error:
        return TrialResult(None, time.perf_counter() - start, str(error))
    return TrialResult(evaluate_cells(job.cells(job.headline_weights)).map_c, time.perf_counter() - start)


def score_alone(plan: RunPlan, workspace: Workspace, watch: Callable[[int, float], None]) -> TrialResult:
    """Makes a trial a run of its own, with a record and checkpoints: what was begun goes on, what is done is read.

    Args:
        plan: of train part "fit".
        workspace: where and how.
        watch: is told each epoch and its mAP(C) on the validation part; what it raises ends the trial.
    """
    start = time.perf_counter()
    try:
        record = runner.run(plan, workspace, watch=watch)
    except TrainingError as error:
        return TrialResult(None, time.perf_counter() - start, str(error))
    return TrialResult(record.metrics["validation"].map_c.value, time.perf_counter() - start)

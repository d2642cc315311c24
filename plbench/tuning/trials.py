"""Trials of a study: trainings on train without its validation part, judged by mAP(C) on that part. Test stays shut."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch

from plbench.errors import TrainingError
from plbench.progress import Reporter
from plbench.runs import run as runner
from plbench.runs.active import ActiveRun
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.schedule import run_all
from plbench.runs.together import in_memory, train
from plbench.runs.workspace import Workspace
from plbench.training.stacked.heads import Head


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


def score_together(plans: Sequence[ResolvedRun], workspace: Workspace) -> list[TrialResult]:
    """Train trials in one pass and score each; nothing is kept but the stages that they share.

    Args:
        plans: of train part "fit", for which `can_stack` holds, and which agree in all but parameters, rate
            and decay.
        workspace: where and how.
    """
    for result in run_all([first for plan in plans for first in plan.prerequisites], workspace):
        if isinstance(result, TrainingError):
            raise result
    results: list[TrialResult] = []
    for together in in_memory(plans, workspace):
        heads = train(together, workspace, is_kept=False)
        with ThreadPoolExecutor(torch.get_num_threads(), "scoring") as pool:  # much of it is numpy's, on one core
            results += pool.map(_scored, together, heads)
    return results


def _scored(active: ActiveRun, head: Head) -> TrialResult:
    if head.error is not None:
        return TrialResult(None, head.seconds, str(head.error))
    active.workspace = replace(active.workspace, reporter=Reporter())  # one bar a trial would be many
    start = time.perf_counter()
    value = active.map_c(active.headline_weights)
    return TrialResult(value, head.seconds + time.perf_counter() - start)


def score_alone(plan: ResolvedRun, workspace: Workspace, watch: Callable[[int, float], None]) -> TrialResult:
    """Make a trial a run of its own, with a record and checkpoints: what was begun goes on, what is done is read.

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

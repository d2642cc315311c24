"""Trials of a study: trained on train without its validation part, scored by mAP(C) on it. Test is not opened."""

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
    """The result of one trial.

    Attributes:
        value: mAP(C) on the validation part with the headline weights, percent; None if the training failed.
        seconds: training time; an equal share if trials trained together.
        error: why it failed.
    """

    value: float | None
    seconds: float
    error: str | None = None


def score_together(plans: Sequence[ResolvedRun], workspace: Workspace) -> list[TrialResult]:
    """Train trials in one pass and score each; only their shared stages are kept.

    Args:
        plans: with train part "fit", stackable (`can_stack`), and equal except for parameters, rate and decay.
        workspace: where and how.
    """
    for result in run_all([first for plan in plans for first in plan.prerequisites], workspace):
        if isinstance(result, TrainingError):
            raise result
    results: list[TrialResult] = []
    for together in in_memory(plans, workspace):
        heads = train(together, workspace, is_kept=False)
        with ThreadPoolExecutor(torch.get_num_threads(), "scoring") as pool:  # much of it is single-threaded numpy
            results += pool.map(_scored, together, heads)
    return results


def _scored(active: ActiveRun, head: Head) -> TrialResult:
    if head.error is not None:
        return TrialResult(None, head.seconds, str(head.error))
    active.workspace = replace(active.workspace, reporter=Reporter())  # no progress bar per trial
    start = time.perf_counter()
    value = active.map_c(active.headline_weights)
    return TrialResult(value, head.seconds + time.perf_counter() - start)


def score_alone(plan: ResolvedRun, workspace: Workspace, watch: Callable[[int, float], None]) -> TrialResult:
    """Train a trial as a separate run with record and checkpoints; it is resumed or read if it exists.

    Args:
        plan: with train part "fit".
        workspace: where and how.
        watch: receives each epoch and its mAP(C) on the validation part; an exception in it ends the trial.
    """
    start = time.perf_counter()
    try:
        record = runner.run(plan, workspace, watch=watch)
    except TrainingError as error:
        return TrialResult(None, time.perf_counter() - start, str(error))
    return TrialResult(record.metrics["validation"].map_c.value, time.perf_counter() - start)

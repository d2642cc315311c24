"""Tuned rows of a comparison: for each of its rows, the values that several studies choose."""

from __future__ import annotations

import math
from dataclasses import replace

from plbench.comparison.candidates import Skipped
from plbench.comparison.plan import Comparison
from plbench.errors import DataError, PlbenchError, StoreError, TrainingError
from plbench.progress import counted
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.workspace import Workspace
from plbench.tuning import tune
from plbench.tuning.study import StudyRecord


def with_tuned(comparison: Comparison, num_trials: int, num_studies: int, workspace: Workspace) -> Comparison:
    """Add, beside each row, that of the values which studies of equally many trials choose for it.

    What one study finds is in part its luck. So a tuned row has several, each with a seed and so with proposals and
    labels of its own, and the winner of each is run with all seeds of the comparison. A study that was longer before
    counts by its first trials. A row one of whose studies fails has no tuned one beside it.

    Args:
        comparison: the rows.
        num_trials: of each study, at least 1.
        num_studies: of each row, at least 1; their seeds are 0, 1, …
        workspace: where and how.

    Raises:
        PlbenchError: if a study of somebody who was named cannot be made, or data or files are not as they must be.
    """
    rows, absent = [], list(comparison.skipped)
    for number, (candidate, plans) in enumerate(comparison.rows, 1):
        of_each = f"{counted(num_studies, 'study', 'studies')} of {counted(num_trials, 'trial')}"
        workspace.reporter.line(f"Tuning {candidate.words}, {number} of {len(comparison.rows)}: {of_each}")
        rows.append((candidate, plans))
        try:
            tuned: list[ResolvedRun] = []  # the first study's winner by seed, then the next one's
            for seed in range(num_studies):
                study = tune.search(plans[0], tune.Settings(num_trials, seed=seed), workspace)
                study = _first_trials(study, num_trials)
                tuned += [tune.tuned_plan(plan, study, workspace) for plan in plans]
            rows.append((candidate, tuple(tuned)))
        except (DataError, StoreError):
            raise
        except PlbenchError as error:
            if candidate.named and not isinstance(error, TrainingError):
                raise
            absent.append(Skipped(f"{candidate.words}, tuned", str(error)))
    return replace(comparison, rows=tuple(rows), skipped=tuple(absent))


def describe_studies(comparison: Comparison, num_trials: int, num_studies: int) -> str:
    """Return one line on what tuning adds to a comparison that has no tuned rows yet."""
    rows, seeds = len(comparison.rows), len(comparison.rows[0][1])
    trials = rows * num_studies * num_trials
    runs = rows * num_studies * seeds
    return (
        f"before that {counted(num_studies, 'study', 'studies')} of {counted(num_trials, 'trial')} for each row, "
        f"{counted(trials, 'shorter training')} in all, minus finished ones; they add {counted(rows, 'tuned row')} of "
        f"{counted(num_studies * seeds, 'training')} each, {runs:,} in all"
    )


def _first_trials(study: StudyRecord, number: int) -> StudyRecord:
    """Return what the study had found after so many trials: nobody gets more than the others."""
    if len(study.trials) <= number:
        return study
    trials = study.trials[:number]
    values = [-math.inf if trial.value is None else trial.value for trial in trials]
    if max(values) == -math.inf:
        raise TrainingError(f"none of the first {number} trials of study {study.key} was completed")
    return study.model_copy(update={"trials": trials, "winner": values.index(max(values))})

"""Tuned rows of a comparison: for each row, the values chosen by several studies."""

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
    """Add a tuned row for each row, with values chosen by studies with the same number of trials.

    The result of a single study is partly chance. A tuned row therefore has several studies, each with its own seed and
    so its own proposals and labels, and the winner of each is run with all seeds of the comparison. Of longer existing
    studies, only the first trials count. If a study of a row fails, the row has no tuned counterpart.

    Args:
        comparison: the rows.
        num_trials: trials per study, at least 1.
        num_studies: studies per row, at least 1; their seeds are 0, 1, …
        workspace: where and how.

    Raises:
        PlbenchError: if a study of an explicitly named method is not possible, or data or files are invalid.
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
    """Return one line on the cost of tuning for a comparison without tuned rows."""
    rows, seeds = len(comparison.rows), len(comparison.rows[0][1])
    trials = rows * num_studies * num_trials
    runs = rows * num_studies * seeds
    return (
        f"before that {counted(num_studies, 'study', 'studies')} of {counted(num_trials, 'trial')} for each row, "
        f"{counted(trials, 'shorter training')} in all, minus finished ones; they add {counted(rows, 'tuned row')} of "
        f"{counted(num_studies * seeds, 'training')} each, {runs:,} in all"
    )


def _first_trials(study: StudyRecord, number: int) -> StudyRecord:
    """Return the study's result after its first `number` trials, so that every method gets the same number."""
    if len(study.trials) <= number:
        return study
    trials = study.trials[:number]
    values = [-math.inf if trial.value is None else trial.value for trial in trials]
    if max(values) == -math.inf:
        raise TrainingError(f"none of the first {number} trials of study {study.key} was completed")
    return study.model_copy(update={"trials": trials, "winner": values.index(max(values))})

"""Many runs: what is done is read, stages come first, and what can train together does."""

from __future__ import annotations

from collections.abc import Sequence

from plbench import runner
from plbench.errors import TrainingError
from plbench.record import Record
from plbench.resolve import RunPlan
from plbench.workspace import Workspace


def run_all(plans: Sequence[RunPlan], workspace: Workspace, *, force: bool = False) -> list[Record | TrainingError]:
    """Makes all runs and returns their records, in the order of the plans; a training that failed gives its error."""
    results: list[Record | TrainingError] = []
    for plan in plans:
        try:
            results.append(runner.run(plan, workspace, force=force))
        except TrainingError as error:
            results.append(error)
    return results

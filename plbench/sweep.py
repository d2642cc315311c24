"""Many runs: what is done is read, stages come first, and what can train together does."""

from __future__ import annotations

from collections.abc import Sequence

from plbench import runner
from plbench.errors import TrainingError
from plbench.record import Record
from plbench.resolve import RunPlan, fit_part_plan
from plbench.together import groups, run_group
from plbench.workspace import Workspace

Result = Record | TrainingError


def run_all(plans: Sequence[RunPlan], workspace: Workspace, *, force: bool = False) -> list[Result]:
    """Makes all runs and returns their records, in the order of the plans; a training that failed gives its error.

    Args:
        plans: what to run; the same run may come twice.
        workspace: where and how.
        force: repeat runs that are done, though not their stages.
    """
    wanted = {plan.spec.key: plan for plan in plans}
    results: dict[str, Result] = {}
    for key, plan in wanted.items():
        if force:
            workspace.store.remove(key)
        elif record := runner.finished(plan, workspace):
            results[key] = record
    missing = [plan for key, plan in wanted.items() if key not in results]
    results |= _without_their_stages(missing, workspace)
    for members in groups([plan for plan in missing if plan.spec.key not in results]):
        for plan, result in zip(members, _run(members, workspace), strict=True):
            results[plan.spec.key] = result
    return [results[plan.spec.key] for plan in plans]


def _without_their_stages(plans: Sequence[RunPlan], workspace: Workspace) -> dict[str, Result]:
    """Makes the stages of all plans, and the runs that choose their epochs; gives the plans whose stages failed."""
    first: dict[str, list[RunPlan]] = {}
    for plan in plans:
        first[plan.spec.key] = [stage for _, stage in plan.stages.values()]
        if plan.spec.selection == "validation" and plan.spec.train_part == "train":
            first[plan.spec.key].append(fit_part_plan(plan, workspace.registry))
    needed = [stage for stages in first.values() for stage in stages]
    if not needed:
        return {}
    made = dict(zip((stage.spec.key for stage in needed), run_all(needed, workspace), strict=True))
    failed: dict[str, Result] = {}
    for key, stages in first.items():
        errors = [error for stage in stages if isinstance(error := made[stage.spec.key], TrainingError)]
        if errors:
            failed[key] = TrainingError(f"a run that must come first failed: {errors[0]}")
    return failed


def _run(plans: Sequence[RunPlan], workspace: Workspace) -> list[Result]:
    if len(plans) > 1:
        return run_group(plans, workspace)
    try:
        return [runner.run(plans[0], workspace)]
    except TrainingError as error:
        return [error]

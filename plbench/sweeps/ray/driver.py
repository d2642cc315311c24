"""Distribute runs over the processes, GPUs and nodes of a Ray cluster. Results are in the store as usual.

A task does one run, or runs that train together; tasks wait for their prerequisites. Ray repeats tasks whose worker or
node dies; the store's locks and records ensure that nothing is done twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plbench.errors import PlbenchError
from plbench.progress import counted
from plbench.runs.elsewhere import Place
from plbench.runs.plan.resolved import ResolvedRun, in_order
from plbench.runs.schedule import Count, Result
from plbench.runs.workspace import Workspace
from plbench.sweeps.ray.cluster import Cluster, Overheard, check_room, first_line, joined, slots_of
from plbench.sweeps.task import LOOK_EVERY_SECONDS, Outcome, in_bundles, make, place_of_tasks, result_of, travelling

SAVING_SECONDS = 30.0  # for tasks to save their state after Ctrl-C


def run_all(
    plans: Sequence[ResolvedRun],
    workspace: Workspace,
    cluster: Cluster,
    plugins: Sequence[Path] = (),
    expected_seconds: float = 0.0,
) -> list[Result]:
    """Run like `plbench.runs.schedule.run_all`, on a Ray cluster.

    Args:
        plans: runs, possibly repeated.
        workspace: where and how; the device is chosen by the cluster.
        cluster: the cluster, and the resources of a run.
        plugins: files with methods or datasets, which every node loads.
        expected_seconds: of everything missing, run sequentially.

    Raises:
        PlbenchError: if Ray or the cluster cannot be used, no node has room for a run, or finished runs are not visible
            here.
    """
    missing = [plan for plan in in_order(plans).values() if plan.finished(workspace.store) is None]
    outcomes: Outcome = {}
    if missing:
        with contextlib.redirect_stdout(Overheard(workspace.reporter)), joined(cluster) as ray:
            has_gpus = ray.cluster_resources().get("GPU", 0) > 0
            gpus = float(has_gpus * workspace.nproc) if cluster.gpus is None else cluster.gpus
            taken = {"CPU": cluster.cpus, "GPU": gpus}
            slots = slots_of(ray, taken)
            check_room(taken, slots, cluster, workspace.reporter)
            bundles = in_bundles(missing, max(1, slots), workspace.nproc)
            nodes, tasks = sum(node["Alive"] for node in ray.nodes()), len(bundles)
            together = "" if len(missing) == tasks else f" in {tasks} tasks, as runs train together"
            where = f"{slots} at a time on {counted(nodes, 'node')}"
            workspace.reporter.line(f"Ray: {len(missing)} runs{together}, {where}")
            count = Count(len(missing), expected_seconds / max(1, min(slots, tasks)))
            task = ray.remote(make).options(
                num_cpus=taken["CPU"],
                num_gpus=taken["GPU"],
                max_retries=cluster.retries,
                retry_exceptions=False,  # a training that fails would fail again
                name="plbench",
            )
            pending = _submitted(task, bundles, *place_of_tasks(workspace, plugins, cpus=cluster.cpus, gpus=gpus))
            try:
                outcomes = _follow(ray, pending, workspace, count)
            except BaseException:
                _cancel(ray, list(pending), workspace, count)
                raise
    return [result_of(plan, outcomes.get(plan.spec.key), workspace) for plan in plans]


def _submitted(
    task: Any, bundles: Sequence[Sequence[ResolvedRun]], place: Place, threads: int
) -> dict[Any, Sequence[ResolvedRun]]:
    """Submit all tasks to Ray, and return the runs of each."""
    made_by: dict[str, Any] = {}
    pending: dict[Any, Sequence[ResolvedRun]] = {}
    for bundle in bundles:
        needs = [one.spec.key for plan in bundle for one in plan.prerequisites]
        first = dict.fromkeys(made_by[key] for key in needs if key in made_by)  # each task once
        ref = task.remote(place, threads, *travelling(bundle), *first)
        pending[ref] = bundle
        made_by |= dict.fromkeys((plan.spec.key for plan in bundle), ref)
    return pending


def _follow(ray: Any, pending: dict[Any, Sequence[ResolvedRun]], workspace: Workspace, count: Count) -> Outcome:
    """Wait for all tasks; report progress, and failures immediately."""
    outcomes: Outcome = {}
    with workspace.reporter.tally("Runs") as tally:
        tally(count.made, count.total, count.words(0))
        while pending:
            ready, _ = ray.wait(list(pending), num_returns=1, timeout=LOOK_EVERY_SECONDS)
            for ref in ready:
                bundle = pending.pop(ref)
                outcome = _outcome_of(ray, ref, [plan.spec.key for plan in bundle])
                outcomes |= outcome
                failed = [plan for plan in bundle if outcome[plan.spec.key] is not None]
                count.add(len(bundle), len(failed))
                for plan in failed:
                    why = outcome[plan.spec.key]
                    workspace.reporter.line(f"Failed: {plan.spec.key}, {plan.method.title}: {why}")
            running = workspace.store.held(plan.spec.key for bundle in pending.values() for plan in bundle)
            tally(count.made, count.total, count.words(len(running)))
    return outcomes


def _outcome_of(ray: Any, ref: Any, keys: Sequence[str]) -> Outcome:
    """Return the outcome of a task, or why it has none."""
    try:
        outcome: Outcome = ray.get(ref)
        return outcome
    except ray.exceptions.RayTaskError as error:  # an unexpected error of a plugin, or a bug
        cause = error.cause if isinstance(error.cause, BaseException) else error
        kind = "" if isinstance(cause, PlbenchError) else f"{type(cause).__name__}: "
        return dict.fromkeys(keys, kind + first_line(cause))
    except ray.exceptions.RayError as error:
        return dict.fromkeys(keys, f"its worker was lost again and again: {first_line(error)}")


def _cancel(ray: Any, refs: list[Any], workspace: Workspace, count: Count) -> None:
    """Stop running tasks, which may save their state first."""
    workspace.reporter.line(
        f"Stopping: {count.made} of {count.total} runs are made; the others have {SAVING_SECONDS:.0f} seconds to save "
        "where they are"
    )
    for ref in refs:
        ray.cancel(ref)
    _, left = ray.wait(refs, num_returns=len(refs), timeout=SAVING_SECONDS) if refs else ([], [])
    for ref in left:
        ray.cancel(ref, force=True)

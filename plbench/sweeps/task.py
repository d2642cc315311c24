"""A task of a sweep: runs by a process on a node, in the shared store, and how the driver uses it.

Only plain data is sent: the driver's plans as specs, which are resolved again with the node's own data and code. A node
with other data or another version thus reports that instead of doing a different run.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from plbench.errors import PlbenchError, TrainingError
from plbench.runs import schedule
from plbench.runs.elsewhere import Data, Place, data_of, place_of
from plbench.runs.plan.resolve import plan_from_spec
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.protocol import ProtocolData
from plbench.runs.schedule import Result
from plbench.runs.together import groups_in_order
from plbench.runs.workspace import Workspace
from plbench.spec import RunSpec

LOOK_EVERY_SECONDS = 1.0
SHARED_SECONDS = 60.0  # until a file written by another node is visible in a shared folder

_OPENED: list[ProtocolData] = []
"""Data that this process opened for earlier tasks of its sweep, latest last."""

_MAX_OPENED = 4

Outcome = dict[str, str | None]
"""By key: None if the run is done, otherwise why it failed."""


def make(place: Place, threads: int, data: Data, specs: Sequence[str], *first: Outcome) -> Outcome:
    """Do runs, except those with a failed prerequisite. Only the driver reports progress.

    Args:
        place: where and how.
        threads: of torch.
        data: of the runs.
        specs: of the runs, as JSON.
        first: outcomes of the tasks with prerequisites.

    Raises:
        PlbenchError: if the node has no such device, or plugins cannot be loaded.
    """
    torch.set_num_threads(threads)
    workspace = replace(place.workspace(data), shares_machine=True)
    failed = {key: why for outcome in first for key, why in outcome.items() if why is not None}
    made: Outcome = {}
    plans = []
    for text in specs:
        spec = RunSpec.model_validate_json(text)
        try:
            plan = plan_from_spec(spec, workspace, _OPENED)
        except PlbenchError as error:
            made[spec.key] = str(error)
            continue
        mine = plan.protocol_data
        if not any(opened.is_of(mine.dataset, mine.protocol, tuple(mine.skipped)) for opened in _OPENED):
            _OPENED[:] = [*_OPENED, mine][-_MAX_OPENED:]
        why = next((failed[one.spec.key] for one in plan.prerequisites if one.spec.key in failed), None)
        made[spec.key] = None if why is None else str(schedule.came_first(why))
        plans += [plan] if why is None else []
    try:
        for plan, result in zip(plans, schedule.run_all(plans, workspace), strict=True):
            made[plan.spec.key] = str(result) if isinstance(result, TrainingError) else None
    except PlbenchError as error:  # of data or disk: all unfinished runs fail with it
        made |= {p.spec.key: str(error) for p in plans if p.finished(workspace.store) is None}
    return made


def travelling(bundle: Sequence[ResolvedRun]) -> tuple[Data, list[str]]:
    """Return the runs of a task as arguments of `make`."""
    return data_of(bundle[0]), [plan.spec.model_dump_json() for plan in bundle]


def place_of_tasks(workspace: Workspace, plugins: Sequence[Path], *, cpus: float, gpus: float) -> tuple[Place, int]:
    """Return where and how a task computes with these CPU cores and GPUs, and its number of torch threads."""
    threads = max(1, int(cpus))
    workers = min(workspace.workers, max(1, threads // workspace.nproc))
    return place_of(workspace, plugins, device="cuda" if gpus > 0 else "cpu", workers=workers), threads


def in_bundles(plans: Sequence[ResolvedRun], slots: int, nproc: int = 1) -> list[list[ResolvedRun]]:
    """Group runs into tasks, prerequisites first.

    Runs that can train together do, unless that would leave slots empty.

    Args:
        plans: missing runs, each after its prerequisites.
        slots: tasks that can run at a time.
        nproc: processes per run; with more than one, every run is a task.
    """
    bundles = []
    for members in groups_in_order(plans, nproc):
        size = -(-len(members) // slots)
        bundles += [members[start : start + size] for start in range(0, len(members), size)]
    return bundles


def result_of(plan: ResolvedRun, why: str | None, workspace: Workspace) -> Result:
    """Return the record of a finished run, or the error of a failed one.

    Args:
        plan: the run.
        why: it failed; None if it is done.
        workspace: of the driver.

    Raises:
        PlbenchError: if it is done, but its record does not become visible here.
    """
    if why is not None:
        return TrainingError(why)
    folder, deadline = workspace.store.run_folder(plan.spec.key), time.monotonic() + SHARED_SECONDS
    while (record := plan.finished(workspace.store)) is None:
        if time.monotonic() > deadline:
            raise PlbenchError(
                f"run {plan.spec.key} was made on another node, but {folder} is not here; `runs=` must be a folder "
                "that all nodes share, at the same path"
            )
        time.sleep(LOOK_EVERY_SECONDS)
        with contextlib.suppress(OSError):
            os.listdir(folder.parent)  # makes a network file system look again
    return record

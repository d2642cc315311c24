"""What a Ray task does on its node: makes runs that the driver planned, in the same store.

Everything that travels is plain: the driver's plans as specs, which are planned anew on the node's own data and code.
A node with other data or another version thereby says so instead of making another run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from plbench.errors import PlbenchError, TrainingError
from plbench.progress import Reporter
from plbench.runs import schedule
from plbench.runs.environment import choose_device
from plbench.runs.plan.resolve import plan_from_spec
from plbench.runs.protocol import ProtocolData
from plbench.runs.registry import Registry
from plbench.runs.store import Store
from plbench.runs.workspace import Workspace
from plbench.spec import RunSpec

_OPENED: list[ProtocolData] = []
"""By this process for earlier tasks of its sweep, latest last."""

_MAX_OPENED = 4

Outcome = dict[str, str | None]
"""By key: None where the run is done, else why it failed."""


@dataclass(frozen=True)
class Place:
    """A workspace in plain values, for a process elsewhere: all paths are absolute, and the same on every node.

    Attributes:
        threads: of torch. rest: other fields of `Workspace` that say how to compute.
    """

    runs: Path
    cache: Path
    plugins: tuple[Path, ...]
    device: str
    threads: int
    rest: Mapping[str, Any]


def make(place: Place, data: tuple[Path, Mapping[str, Any]], specs: Sequence[str], *first: Outcome) -> Outcome:
    """Make runs, but for those that need one that failed. Only the driver reports.

    Args:
        place: where and how.
        data: root and options of the dataset.
        specs: of the runs, as JSON.
        first: what came of the tasks that make what these need.

    Raises:
        PlbenchError: if the node has no such device, or plugins cannot be loaded.
    """
    torch.set_num_threads(place.threads)
    workspace = Workspace(
        store=Store(place.runs, place.cache),
        registry=Registry.discover(place.plugins),
        reporter=Reporter(),
        device=choose_device(place.device),
        data_root=data[0],
        data_options=data[1],
        shares_machine=True,
        **place.rest,
    )
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
    except PlbenchError as error:  # the data or the disk: all that is not made fails with it
        made |= {p.spec.key: str(error) for p in plans if p.finished(workspace.store) is None}
    return made

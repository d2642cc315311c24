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
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.protocol import ProtocolData
from plbench.runs.registry import Registry
from plbench.runs.store import Store
from plbench.runs.workspace import Workspace
from plbench.spec import RunSpec

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

    def workspace(self, data: tuple[Path, Mapping[str, Any]]) -> Workspace:
        """Return the workspace on this node, for a dataset's root and options. Only the driver reports.

        Raises:
            PlbenchError: if the node has no such device, or plugins cannot be loaded.
        """
        return Workspace(
            store=Store(self.runs, self.cache),
            registry=Registry.discover(self.plugins),
            reporter=Reporter(),
            device=choose_device(self.device),
            data_root=data[0],
            data_options=data[1],
            shares_machine=True,
            **self.rest,
        )


def make(
    place: Place,
    data: tuple[Path, Mapping[str, Any]],
    specs: Sequence[str],
    needs: Sequence[Sequence[str]],
    *first: Outcome,
) -> Outcome:
    """Return a task: makes runs, but for those that need one that failed."""
    torch.set_num_threads(place.threads)
    workspace = place.workspace(data)
    failed = {key: why for outcome in first for key, why in outcome.items() if why is not None}
    made: Outcome = {}
    plans = []
    for text, keys in zip(specs, needs, strict=True):
        spec = RunSpec.model_validate_json(text)
        why = next((failed[key] for key in keys if key in failed), None)
        if why is not None:
            made[spec.key] = str(schedule.came_first(why))
            continue
        try:
            plans.append(_plan(spec, workspace))
        except PlbenchError as error:
            made[spec.key] = str(error)
    try:
        for plan, result in zip(plans, schedule.run_all(plans, workspace), strict=True):
            made[plan.spec.key] = str(result) if isinstance(result, TrainingError) else None
    except PlbenchError as error:  # the data or the disk: all that is not made fails with it
        made |= {p.spec.key: str(error) for p in plans if p.finished(workspace.store) is None}
    return dict.fromkeys(plan.spec.key for plan in plans) | made


_OPENED: list[ProtocolData] = []
"""By this process for earlier tasks of its sweep, latest last."""

_MAX_OPENED = 4


def _plan(spec: RunSpec, workspace: Workspace) -> ResolvedRun:
    plan = plan_from_spec(spec, workspace, _OPENED)
    mine = plan.protocol_data
    if not any(opened.is_of(mine.dataset, mine.protocol, tuple(mine.skipped)) for opened in _OPENED):
        _OPENED[:] = [*_OPENED, mine][-_MAX_OPENED:]
    return plan

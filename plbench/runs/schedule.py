"""Schedule of many runs: finished ones are read, stages come first, and stackable runs train together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from plbench.errors import StoreError, TrainingError
from plbench.progress import duration
from plbench.runs import processes
from plbench.runs import run as runner
from plbench.runs.plan.resolved import ResolvedRun, in_order
from plbench.runs.record import Record
from plbench.runs.store import RECORD, Store
from plbench.runs.stored import read_own_run
from plbench.runs.together import groups, run_group
from plbench.runs.workspace import Workspace

Result = Record | TrainingError
Tell = Callable[[Sequence[Result]], None]


def run_all(plans: Sequence[ResolvedRun], workspace: Workspace, tell: Tell = lambda results: None) -> list[Result]:
    """Execute all runs and return their records, or errors of failed trainings, in the order of the plans.

    If the workspace uses several processes per run, each run is trained separately.

    Args:
        plans: the runs; duplicates are allowed.
        workspace: where and how.
        tell: receives results of executed runs, including stages, as soon as available.
    """
    wanted = {plan.spec.key: plan for plan in plans}
    found = {key: plan.finished(workspace.store) for key, plan in wanted.items()}
    results: dict[str, Result] = {key: record for key, record in found.items() if record}
    missing = [plan for key, plan in wanted.items() if key not in results]
    needed = [first for plan in missing for first in plan.prerequisites]
    if needed:
        first = dict(zip((one.spec.key for one in needed), run_all(needed, workspace, tell), strict=True))
        results |= {key: result for key, result in first.items() if key in wanted}  # a stage may be requested itself
        failed: dict[str, Result] = {}
        for plan in missing:
            errors = [e for one in plan.prerequisites if isinstance(e := first[one.spec.key], TrainingError)]
            if errors:
                failed[plan.spec.key] = came_first(str(errors[0]))
        tell(list(failed.values()))
        results |= failed
    make = runner.run if workspace.nproc == 1 else processes.run
    for members in groups([plan for plan in missing if plan.spec.key not in results], workspace.nproc):
        made: list[Result]
        if len(members) > 1:
            made = run_group(members, workspace)
        else:
            try:
                made = [make(members[0], workspace)]
            except TrainingError as error:
                made = [error]
        results |= dict(zip((plan.spec.key for plan in members), made, strict=True))
        tell(made)
    return [results[plan.spec.key] for plan in plans]


def came_first(why: str) -> TrainingError:
    """Return the error of a run whose prerequisite failed."""
    return TrainingError(f"a run that it depends on failed: {why}")


@dataclass
class Count:
    """Progress of a sweep.

    Attributes:
        total: number of trainings. made: number of finished ones, including failures. failed: number of failures.
        expected_seconds: for all of them, used until the first has finished.
        start, last: start of the sweep and end of the last training, by the monotonic clock.
    """

    total: int
    expected_seconds: float = 0.0
    made: int = 0
    failed: int = 0
    start: float = field(default_factory=time.monotonic)
    last: float = field(default_factory=time.monotonic)

    def add(self, made: int, failed: int) -> None:
        """Count finished trainings."""
        self.made += made
        self.failed += failed
        self.last = time.monotonic()

    def words(self, running: int | None = None) -> str:
        """Return failures, running trainings and remaining time in words."""
        parts = [f"{self.failed} failed"] if self.failed else []
        parts += [] if running is None else [f"{running} running"]
        left = self.seconds_left()
        return ", ".join([*parts, f"about {duration(left)} left"] if left >= 1 else parts)

    def seconds_left(self) -> float:
        """Remaining seconds by the pace so far, otherwise by the estimate; 0 if nothing is left or known."""
        expected = self.expected_seconds
        if self.made > 0:
            # the pace up to the last finished training; the time since then belongs to the remaining ones
            expected = (self.last - self.start) / self.made * (self.total - self.made)
        return max(0.0, expected - (time.monotonic() - self.last))


def run_here(plans: Sequence[ResolvedRun], workspace: Workspace, expected_seconds: float = 0.0) -> list[Result]:
    """Do the same as `run_all`, with one progress bar for all runs."""
    missing = [plan for plan in in_order(plans).values() if plan.finished(workspace.store) is None]
    if len(missing) < 2:
        return run_all(plans, workspace)
    count = Count(len(missing), expected_seconds)
    with workspace.reporter.tally("Runs") as tally:

        def tell(results: Sequence[Result]) -> None:
            count.add(len(results), sum(isinstance(result, TrainingError) for result in results))
            tally(count.made, count.total, count.words())

        tell([])
        return run_all(plans, workspace, tell)


State = Literal["done", "failed", "under way", "missing"]


@dataclass(frozen=True)
class Standing:
    """Status of a run, with its record if finished, or the reason of a failure."""

    state: State
    record: Record | None = None
    why: str | None = None


def standings(plans: Sequence[ResolvedRun], store: Store) -> list[Standing]:
    """Read the status of runs; an invalid record counts as a failure."""
    found = [standing_of(store.run_folder(plan.spec.key)) for plan in plans]
    held = store.held(plan.spec.key for plan, standing in zip(plans, found, strict=True) if standing.state != "done")
    return [
        Standing("under way") if plan.spec.key in held else standing
        for plan, standing in zip(plans, found, strict=True)
    ]


def standing_of(folder: Path) -> Standing:
    """Read the status of the run in a folder, even if it is in progress."""
    if not (folder / RECORD).is_file():
        return Standing("missing")
    try:
        record = read_own_run(folder)
    except StoreError as error:
        return Standing("failed", why=str(error))
    return Standing("done", record) if record.status == "done" else Standing("failed", why=record.error)

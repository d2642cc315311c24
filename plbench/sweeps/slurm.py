"""Runs as jobs of a Slurm cluster, through submitit. Results are in the store as usual.

A job does one run, or runs that train together. Jobs are queued with Slurm's dependencies on their prerequisites, so
that all are queued at once and continue without the command that submitted them. Jobs that reach their time limit or
are preempted are requeued, and continue from the last checkpoint.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from plbench.errors import PlbenchError
from plbench.files import write_json
from plbench.progress import Tally, counted
from plbench.runs.elsewhere import Data, Place
from plbench.runs.plan.resolved import ResolvedRun, in_order
from plbench.runs.schedule import Count, Result, standing_of
from plbench.runs.store import Store
from plbench.runs.workspace import Workspace
from plbench.sweeps.task import LOOK_EVERY_SECONDS, Outcome, in_bundles, make, place_of_tasks, result_of, travelling

SAVING_SECONDS = 30.0  # for jobs to save their state after Ctrl-C
MINUTES = 24 * 60  # default time limit of a job
_QUEUED = "jobs.json"

Bundle = Sequence[ResolvedRun]


@dataclass(frozen=True)
class Jobs:
    """Resources of each job on a Slurm cluster.

    Attributes:
        partition, account: as in sbatch; None for the cluster's default.
        minutes: time limit of a job. memory: such as "32G"; None for the cluster's default.
        cpus, gpus: per job.
        parallel: maximum number of jobs at a time; None for the cluster's limit.
        retries: maximum number of times that a job is requeued after its time limit; preempted jobs always are.
        options: other options of sbatch by name, such as {"qos": "high"}.
        logs: folder of the jobs' files; None for `slurm` next to the runs.
        is_left: whether jobs stay in the queue when the command that follows them is stopped.
        cluster: "slurm"; "local" runs the jobs as processes of this machine.
    """

    partition: str | None = None
    account: str | None = None
    minutes: int = MINUTES
    memory: str | None = None
    cpus: int = 1
    gpus: int = 0
    parallel: int | None = None
    retries: int = 3
    options: Mapping[str, str] = field(default_factory=dict)
    logs: Path | None = None
    is_left: bool = False
    cluster: Literal["slurm", "local"] = "slurm"

    @property
    def words(self) -> str:
        """Resources of a job in words."""
        gpus = counted(self.gpus, "GPU") if self.gpus else "no GPU"
        return f"{counted(self.cpus, 'CPU core')} and {gpus} a job, {self.minutes / 60:g} h at most"


class MakeRuns:
    """The function of a job, called by submitit, which also asks it what to requeue when the job must end early."""

    def __call__(self, place: Place, threads: int, data: Data, specs: Sequence[str], needs: Sequence[str]) -> Outcome:
        """Run like `make`; failures of prerequisites are read from the store, since other jobs ran them.

        Args:
            needs: keys of prerequisites in other jobs of the sweep.
        """
        store = Store(place.runs, place.cache)
        standings = {key: standing_of(store.run_folder(key)) for key in needs}
        # missing prerequisites, of killed jobs, are run here
        failed = {key: standing.why for key, standing in standings.items() if standing.state == "failed"}
        return make(place, threads, data, specs, failed)

    def checkpoint(self, *given: Any) -> Any:
        """Return the same job for requeueing; it continues from the last checkpoint in the store."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *given)


def run_all(
    plans: Sequence[ResolvedRun],
    workspace: Workspace,
    jobs: Jobs,
    plugins: Sequence[Path] = (),
    expected_seconds: float = 0.0,
) -> list[Result]:
    """Run like `plbench.runs.schedule.run_all`, on a Slurm cluster; queued jobs of an earlier call are followed.

    Args:
        plans: runs, possibly repeated.
        workspace: where and how; the device is chosen by the cluster.
        jobs: resources of each.
        plugins: files with methods or datasets, which every node loads.
        expected_seconds: of everything missing, run sequentially.

    Raises:
        PlbenchError: if Slurm or submitit is not installed, Slurm rejects the jobs, or finished runs are not visible.
    """
    missing = [plan for plan in in_order(plans).values() if plan.finished(workspace.store) is None]
    outcomes: Outcome = {}
    if missing:
        submitit = _submitit()
        folder = (jobs.logs or workspace.store.runs / "slurm").absolute()
        pending = _queued(submitit, missing, folder) if jobs.cluster == "slurm" else {}
        there = {plan.spec.key for bundle in pending.values() for plan in bundle}
        rest = [plan for plan in missing if plan.spec.key not in there]
        bundles = in_bundles(rest, jobs.parallel or 1, workspace.nproc)
        reporter = workspace.reporter
        if pending:
            reporter.line(f"Slurm: {counted(len(pending), 'job')} of an earlier command still queued or running")
        if bundles:
            together = "" if len(rest) == len(bundles) else ", as runs train together"
            reporter.line(
                f"Slurm: {counted(len(rest), 'run')} in {counted(len(bundles), 'job')}{together}; {jobs.words}"
            )
            reporter.line(f"Logs of the jobs: {folder}")
        count = Count(len(missing), expected_seconds / max(1, min(jobs.parallel or 1, len(bundles))))
        try:
            with reporter.tally("Runs") as tally:
                for _ in _submitted(submitit, bundles, pending, workspace, jobs, folder, plugins):
                    outcomes |= _follow(pending, workspace, count, tally)
        except BaseException as error:
            if jobs.is_left and isinstance(error, KeyboardInterrupt):
                names = " ".join(sorted({job.job_id.partition("_")[0] for job in pending}))
                reporter.line(f"Left in the queue: {counted(len(pending), 'job')}; scancel {names} ends them")
            else:
                _cancel(list(pending), [plan for bundle in pending.values() for plan in bundle], workspace, count)
            raise
    return [result_of(plan, outcomes.get(plan.spec.key), workspace) for plan in plans]


def _submitit() -> Any:
    try:
        import submitit
    except ImportError as error:
        raise PlbenchError("`executor='slurm'` needs submitit; pip install 'plbench[slurm]' installs it") from error
    return submitit


def _executor(submitit: Any, jobs: Jobs, folder: Path) -> Any:
    """Return submitit's executor for jobs with these resources."""
    try:
        executor = submitit.AutoExecutor(folder, cluster=jobs.cluster, slurm_max_num_timeout=jobs.retries)
    except RuntimeError as error:
        raise PlbenchError(
            "Slurm is not on this machine (there is no srun); run the command where sbatch works, such as on a login "
            "node, or leave out `executor='slurm'`"
        ) from error
    given: dict[str, Any] = {
        "name": "plbench",
        "nodes": 1,
        "tasks_per_node": 1,
        "timeout_min": jobs.minutes,
        "cpus_per_task": jobs.cpus,
        "gpus_per_node": jobs.gpus or None,
        "slurm_mem": jobs.memory,
        "slurm_partition": jobs.partition,
        "slurm_account": jobs.account,
        "slurm_array_parallelism": jobs.parallel,
        "slurm_additional_parameters": dict(jobs.options) or None,
    }
    executor.update_parameters(**given)
    return executor


def _submitted(
    submitit: Any,
    bundles: Sequence[Bundle],
    pending: dict[Any, Bundle],
    workspace: Workspace,
    jobs: Jobs,
    folder: Path,
    plugins: Sequence[Path],
) -> Iterator[None]:
    """Add submitted jobs to `pending`, and yield whenever these must end before others can be submitted.

    Slurm takes all at once, with dependencies. On this machine alone, dependencies and the number of concurrent jobs
    are handled here.
    """
    place, threads = place_of_tasks(workspace, plugins, cpus=jobs.cpus, gpus=jobs.gpus)
    executor = _executor(submitit, jobs, folder) if bundles else None
    made_by: dict[str, Any] = {plan.spec.key: job for job, bundle in pending.items() for plan in bundle}
    for wave in _waves(bundles):
        at_once = len(wave)
        if jobs.cluster == "local":
            at_once = jobs.parallel or max(1, (os.cpu_count() or 1) // jobs.cpus)
        for start in range(0, len(wave), at_once):
            members = wave[start : start + at_once]
            needed = [[one.spec.key for plan in bundle for one in plan.prerequisites] for bundle in members]
            first = sorted({made_by[key].job_id for keys in needed for key in keys if key in made_by})
            assert executor is not None
            if jobs.cluster == "slurm":
                executor.update_parameters(slurm_dependency=f"afterany:{':'.join(first)}" if first else None)
            try:
                given = [(place, threads, *travelling(b), keys) for b, keys in zip(members, needed, strict=True)]
                found = executor.map_array(MakeRuns(), *zip(*given, strict=True))
            except submitit.core.utils.FailedJobError as error:
                said = [line for line in str(error).splitlines() if line.strip()]
                raise PlbenchError(f"Slurm refused the jobs: {said[-1].strip() if said else error}") from error
            pending |= dict(zip(found, members, strict=True))
            made_by |= {plan.spec.key: job for job, bundle in zip(found, members, strict=True) for plan in bundle}
            if jobs.cluster == "local":
                yield
            else:
                queued = {plan.spec.key: job.job_id for job, bundle in pending.items() for plan in bundle}
                write_json(folder / _QUEUED, queued)
    yield


def _waves(bundles: Sequence[Bundle]) -> list[list[Bundle]]:
    """Group bundles into waves that can run concurrently, each after the waves with its prerequisites."""
    depth: dict[str, int] = {}
    waves: list[list[Bundle]] = []
    for bundle in bundles:
        needs = [one.spec.key for plan in bundle for one in plan.prerequisites]
        number = 1 + max((depth[key] for key in needs if key in depth), default=-1)
        depth |= dict.fromkeys((plan.spec.key for plan in bundle), number)
        waves += [[] for _ in range(number + 1 - len(waves))]
        waves[number].append(bundle)
    return waves


def _queued(submitit: Any, missing: Sequence[ResolvedRun], folder: Path) -> dict[Any, Bundle]:
    """Return unfinished jobs of an earlier command, with the missing runs of each."""
    try:
        noted = json.loads((folder / _QUEUED).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(noted, dict) or not all(isinstance(name, str) for name in noted.values()):
        return {}
    found: dict[str, list[ResolvedRun]] = {}
    for plan in missing:
        if plan.spec.key in noted:
            found.setdefault(noted[plan.spec.key], []).append(plan)
    jobs = {submitit.SlurmJob(folder=folder, job_id=name): members for name, members in found.items()}
    return {job: members for job, members in jobs.items() if not job.done(force_check=True) and job.state != "UNKNOWN"}


def _follow(pending: dict[Any, Bundle], workspace: Workspace, count: Count, tally: Tally) -> Outcome:
    """Wait for all jobs; report progress, and failures immediately."""
    outcomes: Outcome = {}
    tally(count.made, count.total, count.words(0))
    while pending:
        for job in [job for job in pending if job.done()]:
            bundle = pending[job]
            outcome = _outcome_of(job, bundle, workspace.store)
            del pending[job]
            outcomes |= outcome
            failed = [plan for plan in bundle if outcome[plan.spec.key] is not None]
            count.add(len(bundle), len(failed))
            for plan in failed:
                workspace.reporter.line(f"Failed: {plan.spec.key}, {plan.method.title}: {outcome[plan.spec.key]}")
        running = workspace.store.held(plan.spec.key for bundle in pending.values() for plan in bundle)
        tally(count.made, count.total, count.words(len(running)))
        if pending:
            time.sleep(LOOK_EVERY_SECONDS)
    return outcomes


def _outcome_of(job: Any, bundle: Bundle, store: Store) -> Outcome:
    """Return the outcome of a job, or why it has none."""
    error = job.exception()
    if error is None:
        outcome: Outcome = job.result()
        return outcome
    trace = [line for line in str(error).splitlines() if line.strip() and not line.startswith(("-", "You can check"))]
    logs = f"its log is {job.paths.stderr}"
    if job.paths.result_pickle.exists():  # an unexpected error of a plugin, or a bug
        last = [line.strip() for line in trace if not line.startswith((" ", "or at paths"))]
        why = f"{last[-1] if last else error}; {logs}"
    else:
        why = f"its job {job.job_id} ended before the run was finished (Slurm says {job.state}); {logs}"
    return {plan.spec.key: None if plan.finished(store) is not None else why for plan in bundle}


def _cancel(pending: Sequence[Any], plans: Sequence[ResolvedRun], workspace: Workspace, count: Count) -> None:
    """Cancel jobs; running ones may save their state first."""
    workspace.reporter.line(
        f"Stopping: {count.made} of {count.total} runs are finished; the others have {SAVING_SECONDS:.0f} seconds to "
        "save their state"
    )
    for job in pending:
        job.cancel(check=False)
    deadline = time.monotonic() + SAVING_SECONDS
    while workspace.store.held(plan.spec.key for plan in plans) and time.monotonic() < deadline:
        time.sleep(LOOK_EVERY_SECONDS)


def minutes_of(text: str) -> int:
    """Return the minutes of a time limit in sbatch's format, rounded up.

    Raises:
        PlbenchError: if it is invalid.

    Examples:
        >>> minutes_of("90"), minutes_of("4:00:00"), minutes_of("1-12"), minutes_of("2-00:30:00")
        (90, 240, 2160, 2910)
    """
    days, dash, rest = text.rpartition("-")
    parts = rest.split(":")
    wrong = f"`time={text}`: give minutes, hours:minutes:seconds, or days-hours, such as `time=12:00:00`"
    if not all(re.fullmatch(r"\d{1,9}", part) for part in [*parts, *([days] if dash else [])]) or len(parts) > 3:
        raise PlbenchError(wrong)
    numbers = [int(part) for part in parts]
    if dash:  # days-hours[:minutes[:seconds]]
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:  # minutes[:seconds]
        hours, minutes, seconds = 0, numbers[0], [*numbers, 0][1]
    total = 24 * 60 * int(days or 0) + 60 * hours + minutes + math.ceil(seconds / 60)
    if total < 1:
        raise PlbenchError(wrong)
    return total

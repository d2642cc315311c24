"""`plbench sweep`: many runs from one file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from plbench.cli import options as opt
from plbench.cli.once import CommandGroup
from plbench.cli.options import command, echo, emit, parse_assignments, typed
from plbench.cli.setting import DryRun, workspace_for
from plbench.cli.wording import in_options
from plbench.errors import PlbenchError, TrainingError
from plbench.progress import counted

if TYPE_CHECKING:
    from plbench.runs.plan.resolved import ResolvedRun
    from plbench.runs.schedule import Result, Standing
    from plbench.sweeps.expansion import Expansion


class _RunUnlessNamed(TyperGroup):
    """Make `plbench sweep grid.toml` equivalent to `plbench sweep run grid.toml`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["run", *args]
        return super().parse_args(ctx, args)


sweep_app = CommandGroup(
    cls=_RunUnlessNamed,
    help="Train many runs from one file, locally, on Slurm or on Ray: plbench sweep grid.toml.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


GridFile = Annotated[
    Path,
    typer.Argument(
        metavar="GRID.toml", help="TOML file with methods, datasets, simulations, backbones, seeds, exclusions."
    ),
]
Nproc = Annotated[
    int, typer.Option(min=1, help="Number of processes on one machine that train each run together, one per GPU.")
]


@sweep_app.command("run")
def sweep_run(
    grid: GridFile,
    executor: Annotated[
        Literal["local", "ray", "slurm"],
        typer.Option(
            help="local: one after another or together on this machine; ray: one task per run; slurm: one job per run."
        ),
    ] = "local",
    nproc: Nproc = 1,
    address: Annotated[
        str | None, typer.Option(help="Ray: address of a running cluster; default: start Ray on this machine.")
    ] = None,
    gpus: Annotated[
        float | None,
        typer.Option(
            "--gpus-per-run",
            min=0,
            help="Ray: number of GPUs, or a fraction; default: 1 if available. Slurm: number of GPUs; default: none.",
        ),
    ] = None,
    cpus: Annotated[
        float | None,
        typer.Option("--cpus-per-run", min=0.01, help="Ray, Slurm: CPU cores; default: 1.", show_default=False),
    ] = None,
    retries: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Number of retries: on Ray, after a worker or node dies; on Slurm, after the time limit; default: 3.",
        ),
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Slurm: partition that jobs are submitted to.")] = None,
    account: Annotated[str | None, typer.Option(help="Slurm: account that is charged.")] = None,
    time: Annotated[
        str | None,
        typer.Option(help="Slurm: time limit of a job, in sbatch's format, such as 4:00:00; default: one day."),
    ] = None,
    mem: Annotated[str | None, typer.Option(help="Slurm: memory of a job, such as 32G.")] = None,
    array_parallelism: Annotated[
        int | None,
        typer.Option(min=1, help="Slurm: maximum number of jobs at a time; default: no limit."),
    ] = None,
    slurm_option: Annotated[
        list[str] | None, typer.Option(help="Slurm: another option of sbatch, such as qos=high; may be repeated.")
    ] = None,
    job_logs: Annotated[
        Path | None,
        typer.Option(help="Slurm: folder for the jobs' logs, on a shared disk; default: slurm in the runs folder."),
    ] = None,
    leave_jobs: Annotated[
        bool,
        typer.Option("--leave-jobs", help="Slurm: leave the jobs in the queue on Ctrl-C, instead of cancelling them."),
    ] = False,
    slurm_cluster: Annotated[
        Literal["slurm", "local"] | None,
        typer.Option(help="Slurm: local runs the jobs as processes on this machine, for testing; default: slurm."),
    ] = None,
    dry_run: DryRun = False,
    device: opt.Device = None,
    workers: opt.Workers = None,
    decode: opt.Decode = None,
    compile: opt.Compile = False,
    save_every: opt.SaveEvery = None,
    track: opt.Track = None,
    plugin: opt.Plugins = None,
    runs: opt.Runs = opt.RUNS,
    quiet: opt.Quiet = False,
    as_json: opt.AsJson = False,
) -> None:
    """Train the missing runs of a grid.

    Repeat the command to continue after an interruption. `plbench sweep GRID.toml` is short for this command.
    """
    from plbench.runs import schedule
    from plbench.runs.estimate.estimate import estimate_runs

    of_ray = {"address": address}
    of_slurm = {
        "partition": partition,
        "account": account,
        "time": time,
        "mem": mem,
        "array_parallelism": array_parallelism,
        "slurm_option": slurm_option,
        "job_logs": job_logs,
        "leave_jobs": leave_jobs,
        "slurm_cluster": slurm_cluster,
    }
    shared = {"cpus_per_run": cpus, "gpus_per_run": gpus, "retries": retries}
    cluster = _cluster(executor, nproc, shared, of_ray, of_slurm)
    given = {"device": device, "workers": workers, "decode": decode, "compile": compile, "save_every": save_every}
    expanded = _expand(grid, {**given, "track": track, "plugin": plugin, "runs": runs, "quiet": quiet}, nproc)
    workspace, plans = expanded.workspace, expanded.plans
    every, states = _standings(expanded)
    missing = [plan for key, plan in every.items() if states[key].state != "done"]
    found = estimate_runs(missing, workspace, processes=nproc) if missing else None
    totals: dict[str, Any] = {"seconds": 0.0, "steps": 0, "peak_memory_mb": None} if found is None else found.totals()
    text = f"{grid}: {counted(len(plans), 'run')}"
    text += f" and {len(every) - len(plans)} that they need first" if len(every) > len(plans) else ""
    if found is None:
        text += ", all done already"
    else:
        text += f", {len(every) - len(missing) or 'none'} of them done already, {len(missing)} missing; {found.words}"
        text += "" if cluster is None else ", or less if they train in parallel"
    if dry_run:
        rows = _rows(expanded, states)
        content = {"runs": rows, "missing": len(missing), "text": text, **totals}
        emit(content, as_json, lambda: _print_states(expanded, rows, text, None))
        return
    workspace.reporter.line(text)
    if cluster is None:
        results = schedule.run_here(plans, workspace, totals["seconds"])
    else:
        results = cluster(plans, workspace, plugin or (), totals["seconds"])
    over = typed(nproc=None if nproc == 1 else nproc)
    _conclude(expanded, results, command("sweep", "status", str(grid), *over, runs=runs, plugin=plugin), as_json)


@sweep_app.command("status")
def sweep_status(
    grid: GridFile,
    nproc: Nproc = 1,
    device: opt.Device = None,
    plugin: opt.Plugins = None,
    runs: opt.Runs = opt.RUNS,
    quiet: opt.Quiet = False,
    as_json: opt.AsJson = False,
) -> None:
    """Show which runs are done, failed, running or missing."""
    expanded = _expand(grid, {"device": device, "plugin": plugin, "runs": runs, "quiet": quiet}, nproc)
    every, states = _standings(expanded)
    own = {plan.spec.key: states[plan.spec.key].state for plan in expanded.plans}
    first = [states[key].state for key in every if key not in own]
    rows = _rows(expanded, states)
    text = f"{grid}: {counted(len(own), 'run')}: {_counts(own.values())}"
    if first:
        text += f"; {len(first)} that they need first: {_counts(first)}"
    is_open = any(state.state in ("missing", "failed") for state in states.values())
    over = typed(nproc=None if nproc == 1 else nproc)
    step = command("sweep", str(grid), *over, runs=runs, plugin=plugin) if is_open else None
    content = {
        "runs": rows,
        "counts": dict(Counter(own.values())),
        "first": dict(Counter(first)),
        **_not_there(expanded),
        "next": step,
    }

    emit(content, as_json, lambda: _print_states(expanded, rows, text, step))


def _cluster(
    executor: str, nproc: int, shared: opt.Setting, of_ray: opt.Setting, of_slurm: opt.Setting
) -> Callable[..., list[Result]] | None:
    """Return a function that runs plans on a cluster; None if local.

    Args:
        executor: "local", "ray" or "slurm".
        nproc: processes per run.
        shared: options of both clusters, by name.
        of_ray, of_slurm: options of one of them.
    """
    others = {"local": {**shared, **of_ray, **of_slurm}, "ray": of_slurm, "slurm": of_ray}[executor]
    if given := typed(**others):
        own = [name for name, options in (("ray", of_ray), ("slurm", of_slurm)) if given[0] in typed(**options)]
        fits = f"--executor {own[0]}" if own else "--executor ray or slurm"
        raise PlbenchError(f"{given[0]} is for a cluster; add {fits}, or leave it out")
    if executor == "local":
        return None
    cpus, gpus, retries = (shared[name] for name in ("cpus_per_run", "gpus_per_run", "retries"))
    if gpus is not None and (gpus > 1 or executor == "slurm") and gpus != int(gpus):
        share = "a share below 1, such as 0.5, or " if executor == "ray" else ""
        raise PlbenchError(f"--gpus-per-run {gpus:g}: give {share}a whole number of GPUs")
    if gpus and gpus < nproc and nproc > 1:
        raise PlbenchError(f"--gpus-per-run {gpus:g}: each of the {nproc} processes of --nproc needs its own GPU")
    retries = 3 if retries is None else retries
    if executor == "ray":
        from plbench.sweeps.ray import driver
        from plbench.sweeps.ray.cluster import Cluster

        cluster = Cluster(of_ray["address"], 1.0 if cpus is None else cpus, gpus, retries)
        return lambda plans, workspace, *rest: driver.run_all(plans, workspace, cluster, *rest)
    from plbench.sweeps import slurm

    if cpus is not None and cpus != int(cpus):
        raise PlbenchError(f"--cpus-per-run {cpus:g}: give a whole number of CPU cores")
    if of_slurm["mem"] is not None and not re.fullmatch(r"[1-9]\d*[KMGT]?", of_slurm["mem"]):
        raise PlbenchError(f"--mem {of_slurm['mem']}: give a number with its unit (K, M, G, T), such as --mem 32G")
    jobs = slurm.Jobs(
        partition=of_slurm["partition"],
        account=of_slurm["account"],
        minutes=slurm.MINUTES if of_slurm["time"] is None else slurm.minutes_of(of_slurm["time"]),
        memory=of_slurm["mem"],
        cpus=int(cpus or 1),
        gpus=int(gpus or 0),
        parallel=of_slurm["array_parallelism"],
        retries=retries,
        options=parse_assignments(of_slurm["slurm_option"], "--slurm-option", "qos=high"),
        logs=of_slurm["job_logs"],
        is_left=of_slurm["leave_jobs"],
        cluster=of_slurm["slurm_cluster"] or "slurm",
    )
    return lambda plans, workspace, *rest: slurm.run_all(plans, workspace, jobs, *rest)


def _expand(grid: Path, given: opt.Setting, nproc: int) -> Expansion:
    """Return the runs of a grid, in the workspace given by these options, and report those left out."""
    from plbench.sweeps.expansion import expand
    from plbench.sweeps.grid import read_grid

    said = read_grid(grid)
    workspace = replace(workspace_for(given), nproc=nproc)
    try:
        expanded = expand(said, workspace)
    except PlbenchError as error:
        raise type(error)(f"{grid}: {error}") from error
    for entry in expanded.left_out:
        workspace.reporter.line(f"Left out: {entry.who}: {entry.why}")
    return expanded


def _standings(expanded: Expansion) -> tuple[dict[str, ResolvedRun], dict[str, Standing]]:
    """Return all runs and their prerequisites in order, and the state of each, by key."""
    from plbench.runs.plan.resolved import in_order
    from plbench.runs.schedule import standings

    every = in_order(expanded.plans)
    return every, dict(zip(every, standings(list(every.values()), expanded.workspace.store), strict=True))


def _counts(states: Iterable[str]) -> str:
    counts = Counter(states)
    return ", ".join(f"{counts[name]} {name}" for name in ("done", "failed", "under way", "missing") if counts[name])


def _not_there(expanded: Expansion) -> dict[str, Any]:
    """Return values of the grid without a run, for JSON."""
    left_out = [{"who": entry.who, "why": in_options(entry.why)} for entry in expanded.left_out]
    return {"left_out": left_out, "excluded": expanded.num_excluded}


def _rows(expanded: Expansion, states: Mapping[str, Standing]) -> list[dict[str, Any]]:
    """Return the state of each run in plain values."""
    return [
        {
            "run": run.plan.spec.key,
            "values": run.cell.values,
            "protocol": run.plan.spec.protocol.name,
            "state": state.state,
            "map_c": None if state.record is None else state.record.test.map_c.value,
            "why": None if state.why is None else in_options(state.why),
        }
        for run in expanded.runs
        for state in (states[run.plan.spec.key],)
    ]


def _print_states(expanded: Expansion, rows: Sequence[dict[str, Any]], text: str, step: str | None) -> None:
    """Print the table of runs, with columns that differ between them, then a summary."""
    from plbench.cli.display import tables

    shown = [
        {
            **{name: row["values"].get(name) for name in expanded.columns},
            "state": row["state"],
            "mAP(C)": tables.percent(row["map_c"]),
            "run": row["run"],
        }
        for row in rows
    ]
    tables.print_rows(None, shown, right=("seed", "mAP(C)"))
    for row in rows:
        tables.print_copied(f"Failed: {row['run']}", row["why"])
    echo(text)
    tables.print_copied("Next", step)


def _conclude(expanded: Expansion, results: Sequence[Result], status: str, as_json: bool) -> None:
    """Print runs side by side, then failures, if any with exit code 2."""
    from plbench.cli.display import tables
    from plbench.comparison.compare import compare
    from plbench.runs.record import Record

    folder = expanded.workspace.store.run_folder
    with expanded.workspace.reporter.patience("Comparing the runs"):
        done = [(folder(result.key), result) for result in results if isinstance(result, Record)]
        settings = compare(done, expanded.workspace.registry)
    failed = {
        plan.spec.key: in_options(str(result))
        for plan, result in zip(expanded.plans, results, strict=True)
        if isinstance(result, TrainingError)
    }
    content = {
        "settings": [setting.as_dict() for setting in settings],
        "failed": failed,
        **_not_there(expanded),
        "next": status,
    }

    def show() -> None:
        if settings:
            tables.print_settings(settings)
        for key, why in failed.items():
            tables.print_copied(f"Failed: {key}", why)
        tables.print_copied("Next", status)

    emit(content, as_json, show)
    if failed:
        number = len(failed)
        raise PlbenchError(f"{number} of {len(results)} runs failed; fix the problems above, and repeat the command")

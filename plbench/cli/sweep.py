"""`plbench sweep`: many runs from one file."""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from plbench.cli.once import CommandGroup
from plbench.cli.options import (
    RUNS,
    AsJson,
    Compile,
    Decode,
    Device,
    Plugins,
    Quiet,
    Runs,
    SaveEvery,
    Track,
    Workers,
    emit,
)
from plbench.cli.setting import DryRun, workspace_for
from plbench.cli.wording import in_options
from plbench.errors import PlbenchError, TrainingError

if TYPE_CHECKING:
    from plbench.runs.schedule import Result, Standing
    from plbench.sweeps.expansion import Expansion
    from plbench.sweeps.ray.cluster import Cluster


class _RunUnlessNamed(TyperGroup):
    """`plbench sweep grid.toml` is `plbench sweep run grid.toml`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["run", *args]
        return super().parse_args(ctx, args)


sweep_app = CommandGroup(
    cls=_RunUnlessNamed,
    help="Many runs from one file, here or on a Ray cluster: plbench sweep grid.toml, plbench sweep status grid.toml.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


GridFile = Annotated[
    Path, typer.Argument(metavar="GRID.toml", help="Methods, datasets, simulations, backbones, seeds, exclusions.")
]


@sweep_app.command("run")
def sweep_run(
    grid: GridFile,
    executor: Annotated[
        Literal["local", "ray"],
        typer.Option("--executor", help="Here, one after another or together; or a task each on Ray."),
    ] = "local",
    address: Annotated[
        str | None, typer.Option("--address", help="Of a Ray cluster to join; without it one starts on this machine.")
    ] = None,
    gpus: Annotated[
        float | None,
        typer.Option("--gpus-per-run", min=0, help="Ray: share or number of GPUs; default: 1 where there are any."),
    ] = None,
    cpus: Annotated[
        float | None, typer.Option("--cpus-per-run", min=0.01, help="Ray: CPU cores; default: 1.", show_default=False)
    ] = None,
    retries: Annotated[
        int | None, typer.Option("--retries", min=0, help="Ray: after a worker or node died; default: 3.")
    ] = None,
    dry_run: DryRun = False,
    device: Device = None,
    workers: Workers = None,
    decode: Decode = None,
    compile: Compile = False,
    save_every: SaveEvery = None,
    track: Track = None,
    plugin: Plugins = None,
    runs: Runs = RUNS,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Make all runs of a grid, but for those that are done.

    What was stopped goes on by the same command. Without a name of a command, this is what plbench sweep does.
    """
    from plbench.runs import schedule
    from plbench.runs.estimate.estimate import estimate_runs
    from plbench.runs.plan.resolved import in_order

    cluster = _cluster(executor, address, cpus, gpus, retries)
    given = {"device": device, "workers": workers, "decode": decode, "compile": compile, "save_every": save_every}
    expanded = _expand(grid, {**given, "track": track, "plugin": plugin, "runs": runs, "quiet": quiet})
    workspace, plans = expanded.workspace, expanded.plans
    _say_what_is_left_out(expanded)
    every = in_order(plans)
    states = dict(zip(every, schedule.standings(list(every.values()), workspace.store), strict=True))
    missing = [plan for key, plan in every.items() if states[key].state != "done"]
    found = estimate_runs(missing, workspace) if missing else None
    totals: dict[str, Any] = {"seconds": 0.0, "steps": 0, "peak_memory_mb": None} if found is None else found.totals()
    text = f"{grid}: {_counted(len(plans), len(every), len(missing))}"
    if found is not None:
        text += f"; {found.words}{'' if cluster is None else ', or less where they train side by side'}"
    if dry_run:
        rows = _rows(expanded, [states[plan.spec.key] for plan in plans])
        content = {"runs": rows, "missing": len(missing), "text": text, **totals}
        emit(content, as_json, lambda: _print_states(expanded, rows, text))
        return
    workspace.reporter.line(text)
    if cluster is None:
        results = schedule.run_here(plans, workspace, totals["seconds"])
    else:
        from plbench.sweeps.ray import driver

        results = driver.run_all(plans, workspace, cluster, plugin or (), totals["seconds"])
    _conclude(expanded, results, _words("status", grid, runs, plugin), as_json)


@sweep_app.command("status")
def sweep_status(
    grid: GridFile,
    device: Device = None,
    plugin: Plugins = None,
    runs: Runs = RUNS,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Show which runs are done, failed, under way, missing."""
    from plbench.runs import schedule
    from plbench.runs.plan.resolved import in_order

    expanded = _expand(grid, {"device": device, "plugin": plugin, "runs": runs, "quiet": quiet})
    store = expanded.workspace.store
    every = in_order(expanded.plans)
    states = dict(zip(every, schedule.standings(list(every.values()), store), strict=True))
    own = [states[plan.spec.key] for plan in expanded.plans]
    keys = {plan.spec.key for plan in expanded.plans}
    first = [state for key, state in states.items() if key not in keys]
    rows = _rows(expanded, own)
    text = f"{grid}: {len(own)} {_plural('run', len(own))}: {_count_states(own)}"
    if first:
        text += f"; {len(first)} that must come first: {_count_states(first)}"
    open_ones = [state for state in states.values() if state.state in ("missing", "failed")]
    command = _words("run", grid, runs, plugin) if open_ones else None
    content = {
        "runs": rows,
        "counts": dict(Counter(state.state for state in own)),
        "first": dict(Counter(state.state for state in first)),
        "left_out": [{"who": entry.who, "why": in_options(entry.why)} for entry in expanded.left_out],
        "excluded": expanded.num_excluded,
        "next": command,
    }

    def show() -> None:
        _print_states(expanded, rows, text)
        if command is not None:
            typer.echo(f"Next: {command}")

    _say_what_is_left_out(expanded)
    emit(content, as_json, show)


def _cluster(
    executor: str, address: str | None, cpus: float | None, gpus: float | None, retries: int | None
) -> Cluster | None:
    """Return what runs take of a cluster; None where there is none."""
    given = {"--address": address, "--cpus-per-run": cpus, "--gpus-per-run": gpus, "--retries": retries}
    if executor == "local":
        for name, value in given.items():
            if value is not None:
                raise PlbenchError(f"{name} is for a cluster; add --executor ray, or leave it out")
        return None
    if gpus is not None and gpus > 1 and gpus != int(gpus):
        raise PlbenchError(f"--gpus-per-run {gpus:g}: a share below 1, such as 0.5, or a whole number of GPUs")
    from plbench.sweeps.ray.cluster import Cluster

    return Cluster(address, 1.0 if cpus is None else cpus, gpus, 3 if retries is None else retries)


def _expand(grid: Path, given: Mapping[str, Any]) -> Expansion:
    """Return the runs of a grid, in the workspace that these options make; what the grid says itself is no option."""
    from plbench.sweeps.expansion import expand
    from plbench.sweeps.grid import read_grid

    said = read_grid(grid)
    workspace = workspace_for(defaultdict(lambda: None, given))
    try:
        return expand(said, workspace)
    except PlbenchError as error:
        raise type(error)(f"{grid}: {error}") from error


def _say_what_is_left_out(expanded: Expansion) -> None:
    for entry in expanded.left_out:
        expanded.workspace.reporter.line(f"Left out: {entry.who}: {entry.why}")


def _plural(word: str, number: int) -> str:
    return word if number == 1 else f"{word}s"


def _counted(own: int, every: int, missing: int) -> str:
    first = f" and {every - own} that must come first" if every > own else ""
    done = "all done already" if not missing else f"{every - missing or 'none'} of them done already, {missing} to make"
    return f"{own} {_plural('run', own)}{first}, {done}"


def _count_states(states: Sequence[Standing]) -> str:
    counts = Counter(state.state for state in states)
    return ", ".join(f"{counts[name]} {name}" for name in ("done", "failed", "under way", "missing") if counts[name])


def _rows(expanded: Expansion, states: Sequence[Standing]) -> list[dict[str, Any]]:
    """Return what is known of each run, in plain values."""
    return [
        {
            "run": run.plan.spec.key,
            "values": run.cell.values,
            "protocol": run.plan.spec.protocol.name,
            "state": state.state,
            "map_c": None if state.record is None else state.record.test.map_c.value,
            "why": None if state.why is None else in_options(state.why),
        }
        for run, state in zip(expanded.runs, states, strict=True)
    ]


def _print_states(expanded: Expansion, rows: Sequence[dict[str, Any]], text: str) -> None:
    """Print the table of runs, then what it comes to. Columns are what differs between the runs."""
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
        if row["why"] is not None:
            typer.echo(f"Failed: {row['run']}: {row['why']}")
    typer.echo(text)


def _words(command: str, grid: Path, runs: Path, plugin: list[Path] | None) -> str:
    """Return the command that does this with the same grid, as it can be typed."""
    words = ["plbench", "sweep", *([] if command == "run" else [command]), str(grid)]
    words += [word for path in plugin or () for word in ("--plugin", str(path))]
    return shlex.join([*words, *([] if runs == RUNS else ["--runs", str(runs)])])


def _conclude(expanded: Expansion, results: Sequence[Result], status: str, as_json: bool) -> None:
    """Print runs side by side, and what failed: then the command leaves with 2."""
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
        "left_out": [{"who": entry.who, "why": in_options(entry.why)} for entry in expanded.left_out],
        "excluded": expanded.num_excluded,
        "next": status,
    }

    def show() -> None:
        if settings:
            tables.print_settings(settings)
        for key, why in failed.items():
            typer.echo(f"Failed: {key}: {why}")
        typer.echo(f"Next: {status}")

    emit(content, as_json, show)
    if failed:
        number = len(failed)
        raise PlbenchError(f"{number} of {len(results)} runs failed; fix what they say, and give the command again")

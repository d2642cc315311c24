"""`plbench run`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plbench.cli.options import Dataset, Method, Param, SelectionOption, emit
from plbench.cli.setting import DryRun, Setting, estimating_without_weights, with_setting, workspace_among_others
from plbench.errors import PlbenchError
from plbench.training.interruption import Stopped

if TYPE_CHECKING:
    from plbench.runs.workspace import Workspace


@with_setting
def run(
    setting: Setting,
    method: Method = None,
    dataset: Dataset = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="A run written down, such as runs/KEY/spec.toml; excludes the rest."),
    ] = None,
    param: Param = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Default: 0.")] = None,
    selection: Annotated[
        SelectionOption | None, typer.Option("--selection", help="What chooses the epoch; default: last.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run again even if it is done.")] = False,
    nproc: Annotated[
        int, typer.Option("--nproc", min=1, help="Processes on this machine that train together, one for each GPU.")
    ] = 1,
    profile: Annotated[bool, typer.Option("--profile", help="Trace some steps into runs/KEY/profile.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Train one method on one dataset, evaluate it, save its record."""
    if nproc > 1 and not dry_run:
        _in_processes(nproc, setting["device"])
        return
    own = {"method": method, "dataset": dataset, "param": param, "seed": seed, "selection": selection}
    with workspace_among_others(setting) as workspace:
        workspace = replace(workspace, profiles=profile)
        _run({**setting, **own}, workspace, config=config, force=force, dry_run=nproc if dry_run else 0)


def _run(given: Setting, workspace: Workspace, *, config: Path | None, force: bool, dry_run: int) -> None:
    """Makes the run, or says what `dry_run` processes would do where that is not 0."""
    from plbench.cli.display import tables
    from plbench.runs import run as runner
    from plbench.runs.estimate.estimate import describe, estimate_runs
    from plbench.runs.plan import options
    from plbench.runs.plan.resolve import parse_assignments

    world, as_json = workspace.world, given["as_json"]
    with estimating_without_weights(workspace, given["method"] or "", parse_assignments(given["param"] or ())):
        if config is not None:
            plan = options.plan_from_file(config, given, workspace)
        else:
            plan = options.plan_from_options(given, workspace)
    if world.size > 1:
        world.check_same({name: str(value) for name, value in plan.spec.model_dump(mode="json").items()})
    if dry_run:
        from plbench.cli.display.dry_run import print_dry_run

        found = estimate_runs([plan], workspace, force=force, processes=dry_run, thorough=True)
        emit(found.as_dict(), as_json, lambda: print_dry_run(found))
        return
    was_done = not force and world.shared(lambda: plan.finished(workspace.store)) is not None
    if not was_done and world.is_main:
        workspace.reporter.line(describe(plan, workspace, force=force))
        if world.size > 1:
            whose = "all of them" if workspace.device.type == "cuda" else "each one's share"
            workspace.reporter.line(
                f"{world.size} processes share each batch of {plan.spec.plan.batch_size}; batch normalisation takes "
                f"its statistics over {whose}"
            )
    record = runner.run(plan, workspace, force=force)
    if world.is_main:
        folder = workspace.store.run_folder(record.key)
        steps = options.next_steps(plan, workspace, was_done)
        emit(record, as_json, lambda: tables.print_result(record, folder, steps))


def _in_processes(number: int, device: str | None) -> None:
    """The same command once in each process."""
    from plbench.training.distributed import is_launched
    from plbench.training.launch import arguments_without, launch

    if is_launched():
        raise PlbenchError("--nproc starts processes, and this is already one of several; leave it out under torchrun")
    code, text = launch(number, arguments_without("--nproc"), device)
    if text:
        typer.echo(text, err=True)
    if code in (130, 143):
        raise Stopped(code - 128)
    if code:
        raise typer.Exit(code)

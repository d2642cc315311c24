"""`plbench run`."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plbench.cli.options import (
    Dataset,
    Method,
    NoRetrain,
    Param,
    Selection,
    Setting,
    echo,
    emit,
    open_store,
    parse_assignments,
)
from plbench.cli.setting import DryRun, estimating_what_is_missing, with_setting, workspace_among_others
from plbench.cli.wording import in_options
from plbench.errors import PlbenchError, StoreError
from plbench.training.interruption import Stopped

if TYPE_CHECKING:
    from plbench.runs.record import Record
    from plbench.runs.workspace import Workspace


@with_setting
def run(
    setting: Setting,
    method: Method = None,
    dataset: Dataset = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Repeat the run that a file describes, such as runs/KEY/spec.toml."),
    ] = None,
    param: Param = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the run; default: 0.")] = None,
    selection: Selection = None,
    no_retrain: NoRetrain = None,
    force: Annotated[bool, typer.Option("--force", help="Run again even if the run is finished.")] = False,
    nproc: Annotated[
        int, typer.Option(min=1, help="Number of processes on this machine that train the run together, one per GPU.")
    ] = 1,
    profile: Annotated[
        bool, typer.Option("--profile", help="Write a profiler trace of some steps to runs/KEY/profile.")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Train one method on one dataset, evaluate it, save its record."""
    if nproc > 1 and not dry_run:
        _in_processes(nproc, setting["device"])
        return
    own = {"method": method, "dataset": dataset, "param": param, "seed": seed, "selection": selection}
    given, identity = {**setting, **own, "no_retrain": no_retrain}, None
    from plbench.runs import answered

    if not (force or profile or dry_run or setting["track"] or setting["plugin"] or setting["decode"]):
        with contextlib.suppress(OSError):  # an unreadable or missing folder is reported by resolving the request
            if "RANK" not in os.environ:
                identity = answered.command_sha256({**given, "config": config, "quiet": None, "as_json": None})
    if identity is not None and _print_answer(identity, given):
        return
    with workspace_among_others(setting) as workspace:
        workspace = replace(workspace, profiles=profile)
        _run(given, workspace, config=config, force=force, dry_run=nproc if dry_run else 0, identity=identity)


def _print_answer(identity: str, given: Setting) -> bool:
    """Print the result of a command's run if it is known and done, without importing torch, which takes seconds."""
    from plbench.cli.console import ConsoleReporter
    from plbench.runs.answered import recall

    store = open_store(given["runs"])
    found = recall(store, identity)
    if found is None:
        return False
    record, notes, next_steps = found
    reporter = ConsoleReporter(quiet=given["quiet"])
    for note in notes:
        reporter.note(note)
    _print(record, store.run_folder(record.key), next_steps, given["as_json"])
    return True


def _print(record: Record, folder: Path, next_steps: list[str], as_json: bool) -> None:
    from plbench.cli.display import tables

    emit(record, as_json, lambda: tables.print_result(record, folder, next_steps))


def _run(
    given: Setting, workspace: Workspace, *, config: Path | None, force: bool, dry_run: int, identity: str | None
) -> None:
    """Run, or print the plan for `dry_run` processes unless that is 0; store which command the run answers."""
    from plbench.cli.request import next_steps, plan_from_file, plan_from_options
    from plbench.data.digests import watching
    from plbench.runs import answered
    from plbench.runs import run as runner
    from plbench.runs.estimate.estimate import describe, estimate_runs

    world = workspace.world
    with (
        watching() as watched,
        estimating_what_is_missing(workspace, given["method"] or "", parse_assignments(given["param"]), given),
    ):
        plan = plan_from_options(given, workspace) if config is None else plan_from_file(config, given, workspace)
    if world.size > 1:
        world.check_same({name: str(value) for name, value in plan.spec.model_dump(mode="json").items()})
    if dry_run:
        from plbench.cli.display.dry_run import print_dry_run

        found = estimate_runs([plan], workspace, force=force, processes=dry_run, thorough=True)
        found = replace(found, notes=tuple(map(in_options, found.notes)))
        emit(found.as_dict(), given["as_json"], lambda: print_dry_run(found))
        return
    basis = None if identity is None else answered.basis(plan, workspace, watched)
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
        if identity is not None and basis is not None:
            with contextlib.suppress(StoreError):  # on a full disk, the request is resolved again next time
                steps = next_steps(plan, workspace, was_done=True)
                answered.remember(workspace.store, identity, record.key, steps, basis)
        folder = workspace.store.run_folder(record.key)
        _print(record, folder, next_steps(plan, workspace, was_done), given["as_json"])


def _in_processes(number: int, device: str | None) -> None:
    """Run the same command in several processes."""
    from plbench.training.distributed import is_launched
    from plbench.training.launch import arguments_without, launch

    if is_launched():
        raise PlbenchError("--nproc starts processes, but this is already one of several; leave it out with torchrun")
    code, text = launch(number, arguments_without("--nproc"), device)
    if text:
        echo(text, err=True)
    if code in (130, 143):
        raise Stopped(code - 128)
    if code:
        raise typer.Exit(code)

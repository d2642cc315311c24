"""`plbench run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plbench.cli.setting import DryRun, Setting, with_setting, workspace_for
from plbench.cli.terms import Dataset, Method, Param, SelectionOption, emit


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
    dry_run: DryRun = False,
) -> None:
    """Train one method on one dataset, evaluate it, leave a record."""
    own = {"method": method, "dataset": dataset, "param": param, "seed": seed, "selection": selection}
    from plbench import forecast, options, runner, tables

    given, workspace, as_json = {**setting, **own}, workspace_for(setting), setting["as_json"]
    if config is not None:
        plan = options.plan_from_file(config, given, workspace)
    else:
        plan = options.plan_from_options(given, workspace)
    if dry_run:
        from plbench.dry_run import dry_run as look_ahead
        from plbench.dry_run_table import print_dry_run

        found = look_ahead(plan, workspace, force=force)
        emit(found.as_dict(), as_json, lambda: print_dry_run(found))
        return
    was_done = not force and runner.finished(plan, workspace) is not None
    if not was_done:
        workspace.reporter.line(forecast.forecast(plan, workspace, force=force).text)
    record = runner.run(plan, workspace, force=force)
    folder = workspace.store.run_folder(record.key)
    steps = options.next_steps(plan, workspace, was_done)
    emit(record, as_json, lambda: tables.print_result(record, folder, steps))

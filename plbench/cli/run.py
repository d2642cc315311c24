"""`plbench run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plbench.cli.terms import (
    RUNS,
    AsJson,
    DataOption,
    DataRoot,
    HeadOption,
    Images,
    Labels,
    NegativeValue,
    Plugins,
    PoolingOption,
    PrecisionOption,
    Quiet,
    RegimeOption,
    Runs,
    SelectionOption,
    data_options,
    emit,
    make_workspace,
)


def run(
    method: Annotated[str | None, typer.Option("--method", "-m", help="Name of a method.")] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", "-d", help="Name of a dataset.")] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="A run written down, such as runs/KEY/spec.toml; excludes the rest."),
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", "-P", help="A parameter of the method, such as gamma_unann=4."),
    ] = None,
    simulate: Annotated[
        str | None,
        typer.Option(
            "--simulate",
            help="fpc=1000, rpa=0.5, single-positive, positive-only=0.5, frequency-biased=0.1 or none; without it the "
            "dataset's first protocol.",
        ),
    ] = None,
    simulation_seed: Annotated[int | None, typer.Option("--simulation-seed", min=0)] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="paper or quick; default: the dataset's first.")
    ] = None,
    regime: Annotated[RegimeOption | None, typer.Option("--regime", help="Default: the recipe's.")] = None,
    backbone: Annotated[str | None, typer.Option("--backbone", help="Any timm model.")] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="packaged, pretrained (timm's hub), random, or a file.")
    ] = None,
    pooling: Annotated[PoolingOption | None, typer.Option("--pooling")] = None,
    head: Annotated[HeadOption | None, typer.Option("--head")] = None,
    head_width: Annotated[int | None, typer.Option("--head-width")] = None,
    image_size: Annotated[int | None, typer.Option("--image-size", help="Side of the square, px.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Images per optimiser step.")] = None,
    accumulate: Annotated[int | None, typer.Option("--accumulate", help="Pieces that a batch is computed in.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Peak learning rate.")] = None,
    weight_decay: Annotated[float | None, typer.Option("--weight-decay")] = None,
    optimizer: Annotated[str | None, typer.Option("--optimizer", help="adamw or adam-coupled.")] = None,
    clip_grad: Annotated[float | None, typer.Option("--clip-grad", help="Largest global norm of the gradient.")] = None,
    precision: Annotated[
        PrecisionOption | None, typer.Option("--precision", help="Default: bfloat16 on a GPU, else float32.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Default: 0.")] = None,
    selection: Annotated[
        SelectionOption | None, typer.Option("--selection", help="What chooses the epoch; default: last.")
    ] = None,
    data_root: DataRoot = None,
    labels: Labels = None,
    images: Images = None,
    negative_value: NegativeValue = None,
    data_option: DataOption = None,
    device: Annotated[str | None, typer.Option("--device", help="Default: a GPU where there is one.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", min=0, help="Processes that decode images.")] = None,
    skip_unreadable: Annotated[bool, typer.Option("--skip-unreadable", help="Go on without broken images.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Run again even if it is done.")] = False,
    plan_only: Annotated[bool, typer.Option("--plan", help="Say what would run and how long, then stop.")] = False,
    plugin: Plugins = None,
    runs: Runs = RUNS,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train one method on one dataset, evaluate it, leave a record."""
    given = {k: v for k, v in locals().items() if k not in ("config", "device", "workers", "as_json", "quiet")}
    from plbench import forecast, options, runner, tables

    file = Path(weights) if weights not in (None, "packaged", "pretrained", "random") else None
    workspace = make_workspace(
        runs,
        plugin,
        data_root,
        device=device,
        workers=workers,
        quiet=quiet,
        weights_file=file,
        data_options=data_options(labels, images, negative_value, data_option),
    )
    if config is not None:
        plan = options.plan_from_file(config, given, workspace)
    else:
        plan = options.plan_from_options(given, workspace)
    was_done = not force and runner.finished(plan, workspace) is not None
    if plan_only or not was_done:
        foreseen = forecast.forecast(plan, workspace, force=force)
        workspace.reporter.line(foreseen.text)
    if plan_only:
        emit({"spec": plan.spec, "seconds": foreseen.seconds}, as_json, lambda: typer.echo(foreseen.text))
        return
    record = runner.run(plan, workspace, force=force)
    folder = workspace.store.run_folder(record.key)
    steps = options.next_steps(plan, workspace, was_done)
    emit(record, as_json, lambda: tables.print_result(record, folder, steps))

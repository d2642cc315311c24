"""The commands: parse, call one function, print. What is slow to import is imported inside a command."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plbench import __version__
from plbench.errors import PlbenchError

if TYPE_CHECKING:
    from plbench.record import Record
    from plbench.registry import Registry
    from plbench.store import Store
    from plbench.workspace import Workspace

app = typer.Typer(
    help="The benchmark suite for learning from images whose labels are only partly known.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
methods_app = typer.Typer(help="The methods that are installed.", no_args_is_help=True, rich_markup_mode=None)
data_app = typer.Typer(help="The datasets that are installed.", no_args_is_help=True, rich_markup_mode=None)
runs_app = typer.Typer(help="The runs that were made.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(methods_app, name="methods")
app.add_typer(data_app, name="data")
app.add_typer(runs_app, name="runs")


class RegimeOption(StrEnum):
    """How a model is trained."""

    FINETUNE = "finetune"
    PROBE = "probe"


class SelectionOption(StrEnum):
    """What chooses the epoch that is reported."""

    LAST = "last"
    VALIDATION = "validation"
    BEST_ON_TEST = "best-on-test"


class HeadOption(StrEnum):
    """What stands on the backbone."""

    LINEAR = "linear"
    MLP = "mlp"
    BOTTLENECK = "bottleneck"


class PoolingOption(StrEnum):
    """How the last feature map is pooled."""

    MEAN = "mean"
    MEAN_MAX = "mean+max"


class PrecisionOption(StrEnum):
    """Of the forward pass; losses are in float32."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


Runs = Annotated[Path, typer.Option("--runs", envvar="PLBENCH_RUNS", help="Folder of runs.", show_default=True)]
Plugins = Annotated[
    list[Path] | None,
    typer.Option("--plugin", help="A Python file with methods or datasets; may be repeated."),
]
DataRoot = Annotated[Path | None, typer.Option("--data-root", help="The dataset's own folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
RUNS = Path("runs")


@app.command()
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
    workspace = _workspace(runs, plugin, data_root, device=device, workers=workers, quiet=quiet, weights_file=file)
    if config is not None:
        plan = options.plan_from_file(config, given, workspace)
    else:
        plan = options.plan_from_options(given, workspace)
    was_done = not force and runner.finished(plan, workspace) is not None
    if plan_only or not was_done:
        foreseen = forecast.forecast(plan, workspace, force=force)
        workspace.reporter.line(foreseen.text)
    if plan_only:
        _emit({"spec": plan.spec, "seconds": foreseen.seconds}, as_json, lambda: typer.echo(foreseen.text))
        return
    record = runner.run(plan, workspace, force=force)
    folder = workspace.store.run_folder(record.key)
    steps = options.next_steps(plan, workspace, was_done)
    _emit(record, as_json, lambda: tables.print_result(record, folder, steps))


@methods_app.command("list")
def methods_list(plugin: Plugins = None, as_json: AsJson = False) -> None:
    """All methods, broken ones with the reason."""
    from plbench import catalogue, tables

    rows = catalogue.list_methods(_registry(plugin))
    _emit(rows, as_json, lambda: tables.print_rows(None, rows))


@methods_app.command("show")
def methods_show(name: str, plugin: Plugins = None, as_json: AsJson = False) -> None:
    """One method: its reference, formula and parameters."""
    from plbench import catalogue, tables

    description = catalogue.describe_method(_registry(plugin), name)
    _emit(description, as_json, lambda: tables.print_description(description))


@data_app.command("list")
def data_list(plugin: Plugins = None, data_root: DataRoot = None, runs: Runs = RUNS, as_json: AsJson = False) -> None:
    """All datasets: whether their files are here, and how to get them."""
    from plbench import catalogue, tables

    rows = catalogue.list_datasets(_workspace(runs, plugin, data_root))
    _emit(rows, as_json, lambda: tables.print_datasets(rows))


@data_app.command("show")
def data_show(
    name: str,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write a contact sheet: a PNG of images and labels.")
    ] = None,
    split: Annotated[str, typer.Option("--split")] = "train",
    images: Annotated[int, typer.Option("--images", min=1, max=400, help="How many images on the sheet.")] = 24,
    plugin: Plugins = None,
    data_root: DataRoot = None,
    runs: Runs = RUNS,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """One dataset: licence, protocols and recipes; with --out a picture of it."""
    from plbench import catalogue, pictures, tables
    from plbench.workspace import open_dataset

    workspace = _workspace(runs, plugin, data_root, quiet=quiet)
    description = catalogue.describe_dataset(name, workspace)
    if out is not None:
        pictures.contact_sheet(open_dataset(name, workspace).split(split), out, images)
        description["sheet"] = str(out)
    _emit(description, as_json, lambda: tables.print_description(description))


@data_app.command("stats")
def data_stats(
    name: str,
    simulate: Annotated[str | None, typer.Option("--simulate", help="As of plbench run.")] = None,
    plugin: Plugins = None,
    data_root: DataRoot = None,
    runs: Runs = RUNS,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Known positives and negatives of every class in train and test, under a protocol."""
    from plbench import catalogue, tables

    stats = catalogue.dataset_stats(name, simulate, _workspace(runs, plugin, data_root, quiet=quiet))
    _emit(stats, as_json, lambda: tables.print_stats(stats))


@runs_app.command("list")
def runs_list(runs: Runs = RUNS, as_json: AsJson = False) -> None:
    """All runs, newest last."""
    from plbench import tables

    found = _records(runs)
    _emit([record for _, record in found], as_json, lambda: tables.print_runs(found, runs))


@runs_app.command("show")
def runs_show(
    run: Annotated[str, typer.Argument(help="Key, the start of one, or a folder.")],
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Show the AP of this class, by name or id; may be repeated.")
    ] = None,
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """One run in full, or its average precision on single classes."""
    from plbench import tables
    from plbench.evaluation import read_per_class
    from plbench.record import read_record, whole_file

    folder = _store(runs).find(run)
    record = read_record(folder)
    if classes:
        rows = read_per_class(whole_file(folder, record, "per_class.csv"), classes)
        _emit(rows, as_json, lambda: tables.print_rows(record.title, rows, right=("ap", "positives", "negatives")))
        return
    _emit(record, as_json, lambda: tables.print_details(record, folder))


@runs_app.command("compare")
def runs_compare(
    run: Annotated[list[str] | None, typer.Argument(help="Keys; without any, all runs.")] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", "-d", help="Only runs on this dataset.")] = None,
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """Methods side by side: means over seeds, intervals, paired differences to the best."""
    from plbench import tables
    from plbench.compare import compare
    from plbench.record import read_record

    store = _store(runs)
    found = [(folder, read_record(folder)) for folder in map(store.find, run)] if run else _records(runs)
    settings = compare(item for item in found if dataset in (None, item[1].spec.protocol.dataset))
    if not settings:
        raise PlbenchError(f"there are no finished runs to compare in {runs}; make some with plbench run")
    _emit([setting.as_dict() for setting in settings], as_json, lambda: tables.print_settings(settings))


@app.command()
def doctor(plugin: Plugins = None, data_root: DataRoot = None, runs: Runs = RUNS, as_json: AsJson = False) -> None:
    """Versions, device, weights and data: what is here, what is missing, and what mends it."""
    from plbench import tables
    from plbench.doctor import examine

    report = examine(_workspace(runs, plugin, data_root))
    _emit(report, as_json, lambda: tables.print_diagnosis(report))


def main() -> None:
    """The entry point: errors that a person can mend are one sentence and exit code 2."""
    try:
        app()  # leaves by SystemExit: 0, or 2 after a mistyped option
    except PlbenchError as error:
        sys.exit(_say(f"error: {' '.join(str(error).splitlines())}", 2))
    except OSError as error:
        where = error.filename or ("a file or the output" if error.errno == errno.ENOSPC else None)
        if where is None or error.strerror is None:
            raise
        sys.exit(_say(f"error: {where}: {error.strerror}; free or permit it, or choose another place", 2))
    except SystemExit as leave:
        if leave.code == 130:  # what typer makes of Ctrl-C
            _say("stopped; the same command goes on from what was saved, or starts again where nothing was", 130)
        raise


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """The benchmark suite for learning from images whose labels are only partly known."""
    if version:
        typer.echo(f"plbench {__version__}")
        raise typer.Exit


def _say(text: str, code: int) -> int:
    typer.echo(f"plbench: {text}", err=True)
    return code


def _store(runs: Path) -> Store:
    from platformdirs import user_cache_path

    from plbench.store import Store

    cache = os.environ.get("PLBENCH_CACHE")
    return Store(runs, Path(cache) if cache else user_cache_path("plbench"))


def _registry(plugins: list[Path] | None) -> Registry:
    from plbench.registry import Registry

    return Registry.discover(tuple(plugins or ()))


def _workspace(
    runs: Path,
    plugins: list[Path] | None,
    data_root: Path | None,
    *,
    device: str | None = None,
    workers: int | None = None,
    quiet: bool = False,
    weights_file: Path | None = None,
) -> Workspace:
    from plbench.console import Reporter
    from plbench.environment import choose_device
    from plbench.workspace import Workspace

    return Workspace(
        store=_store(runs),
        registry=_registry(plugins),
        reporter=Reporter(quiet=quiet),
        device=choose_device(device),
        workers=min(8, os.cpu_count() or 1) if workers is None else workers,
        data_root=data_root,
        weights_file=weights_file,
    )


def _records(runs: Path) -> list[tuple[Path, Record]]:
    """All runs with a readable record, oldest first; one that cannot be read is named, and hides no other."""
    from plbench.record import read_record

    store = _store(runs)
    found = []
    for folder in map(store.run_folder, store.keys()):
        try:
            found.append((folder, read_record(folder)))
        except PlbenchError as error:
            _say(f"left out: {error}", 0)
    return sorted(found, key=lambda item: item[1].finished_at)


def _emit(content: Any, as_json: bool, show: Callable[[], None]) -> None:
    """JSON alone on standard output, or the readable form."""
    if not as_json:
        show()
        return
    from pydantic import BaseModel

    def plain(value: Any) -> Any:
        return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)

    typer.echo(json.dumps(content, default=plain, indent=1, allow_nan=False))


if __name__ == "__main__":
    main()

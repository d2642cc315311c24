"""Commands on methods, runs and the installation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from plbench.cli import completion
from plbench.cli import options as opt
from plbench.cli.once import CommandGroup
from plbench.cli.options import (
    Listing,
    all_records,
    echo,
    emit,
    listed,
    make_workspace,
    open_registry,
    open_store,
    parse_assignments,
)
from plbench.errors import PlbenchError
from plbench.progress import counted

if TYPE_CHECKING:
    from plbench.runs.removal import Room
    from plbench.runs.store import Store

methods_app = CommandGroup(help="List, show, check and create methods.", no_args_is_help=True, rich_markup_mode=None)
runs_app = CommandGroup(help="List, show, compare and delete runs.", no_args_is_help=True, rich_markup_mode=None)


@methods_app.command("list")
def methods_list(
    cost: Annotated[
        bool,
        typer.Option("--cost", help="Also time an epoch of each method, relative to cross-entropy; about a minute."),
    ] = False,
    plugin: opt.Plugins = None,
    quiet: opt.Quiet = False,
    as_json: opt.AsJson = False,
) -> None:
    """List all methods with paper, needs and cost, and why a plugin is broken."""
    from plbench.cli.display import tables

    def make() -> Listing:
        from plbench.cli.display import catalogue
        from plbench.runs.answered import files_of_strangers

        registry = open_registry(plugin)
        rows = catalogue.list_methods(registry)
        names = [row["name"] for row in rows if row["from"] is not None]
        return rows, files_of_strangers(map(registry.method, names)) if len(names) == len(rows) else None

    rows = make()[0] if cost or plugin else listed("methods", {}, opt.RUNS, make)
    if cost:
        registry = open_registry(plugin)
        from plbench.cli.console import ConsoleReporter
        from plbench.testing.cost import add_measured

        add_measured(rows, registry, ConsoleReporter(quiet=quiet))
    emit(rows, as_json, lambda: tables.print_rows(None, rows))


@methods_app.command("show")
def methods_show(
    name: Annotated[str, typer.Argument(help="Name of a method.", autocompletion=completion.method_names)],
    plugin: opt.Plugins = None,
    as_json: opt.AsJson = False,
) -> None:
    """Show a method: reference, formula and parameters."""
    from plbench.cli.display import catalogue, tables

    description = catalogue.describe_method(open_registry(plugin), name)
    emit(description, as_json, lambda: tables.print_description(description))


@methods_app.command("check")
def methods_check(
    name: Annotated[list[str], typer.Argument(help="Names of methods.", autocompletion=completion.method_names)],
    param: opt.Param = None,
    plugin: opt.Plugins = None,
    quiet: opt.Quiet = False,
    as_json: opt.AsJson = False,
) -> None:
    """Check a method plugin on small inputs. Exit with 1 on failure."""
    from plbench.cli.console import ConsoleReporter
    from plbench.cli.display.findings import report
    from plbench.testing.methods import check_methods

    params = parse_assignments(param) if param else None
    found = check_methods(name, open_registry(plugin), params, ConsoleReporter(quiet=quiet))
    report(", ".join(name), found, as_json)


@methods_app.command("new")
def methods_new(
    name: Annotated[str, typer.Argument(help="Lowercase letters, digits and hyphens, such as my-method.")],
    package: Annotated[
        bool, typer.Option("--package", help="Write an installable package with a test instead of one file.")
    ] = False,
    as_json: opt.AsJson = False,
) -> None:
    """Write a template for a new method, which runs as it is, to the current folder."""
    from plbench.testing.scaffold import new_method

    written = new_method(name, Path.cwd(), open_registry(None), package=package)
    emit(written.as_dict(), as_json, lambda: echo(written.text()))


@runs_app.command("list")
def runs_list(
    to: Annotated[
        Path | None,
        typer.Option(help="Write the table to a .csv or .parquet file; the same data frame as plbench.runs()."),
    ] = None,
    runs: opt.Runs = opt.RUNS,
    as_json: opt.AsJson = False,
) -> None:
    """List all runs, newest last."""
    from plbench.cli.display import tables

    if to is not None:
        from plbench.runs.listing import as_frame, check_table_name, write_frame

        check_table_name(to)
        table = as_frame(record for _, record in all_records(runs))
        write_frame(to, table)
        written = {"to": str(to), "runs": len(table)}
        emit(written, as_json, lambda: echo(f"Wrote {counted(len(table), 'run')} to {to}"))
        return
    found = all_records(runs)
    emit([record for _, record in found], as_json, lambda: tables.print_runs(found, runs))


@runs_app.command("show")
def runs_show(
    run: opt.Run,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Show the AP of this class, by name or id; may be repeated.")
    ] = None,
    runs: opt.Runs = opt.RUNS,
    as_json: opt.AsJson = False,
) -> None:
    """Show a run in full, or its average precision on single classes."""
    from plbench.cli.display import tables
    from plbench.runs.record import whole_file
    from plbench.runs.stored import read_run
    from plbench.runs.summary import read_per_class

    folder = open_store(runs).find(run)
    record = read_run(folder)
    if classes:
        rows = read_per_class(whole_file(folder, record, "per_class.csv"), classes)
        emit(rows, as_json, lambda: tables.print_rows(record.title, rows, right=("ap", "positives", "negatives")))
        return
    emit(record, as_json, lambda: tables.print_details(record, folder))


@runs_app.command("compare")
def runs_compare(
    run: Annotated[
        list[str] | None, typer.Argument(help="Keys of runs; default: all.", autocompletion=completion.run_keys)
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", "-d", help="Only runs on this dataset.", autocompletion=completion.dataset_names),
    ] = None,
    runs: opt.Runs = opt.RUNS,
    as_json: opt.AsJson = False,
) -> None:
    """Compare finished runs: means over seeds, intervals, paired differences."""
    from plbench.cli.display import tables
    from plbench.comparison.compare import compare
    from plbench.runs.stored import read_run

    store = open_store(runs)
    found = [(folder, read_run(folder)) for folder in map(store.find, run)] if run else all_records(runs)
    wanted = [item for item in found if dataset in (None, item[1].spec.protocol.dataset)]
    settings = compare(wanted, open_registry(None))
    if not settings:
        partial = any("validation" in record.metrics for _, record in wanted)
        but = ", except trials and folds, which are scored on a part of train" if partial else ""
        raise PlbenchError(f"there are no finished runs to compare in {runs}{but}; make some with plbench run")
    emit([setting.as_dict() for setting in settings], as_json, lambda: tables.print_settings(settings))


Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
OnlySay = Annotated[bool, typer.Option("--dry-run", help="Say what would be deleted, without deleting it.")]


@runs_app.command("remove")
def runs_remove(
    run: Annotated[
        list[str],
        typer.Argument(
            help="Keys of runs, finished or not; first characters are enough.", autocompletion=completion.run_keys
        ),
    ],
    dry_run: OnlySay = False,
    yes: Yes = False,
    runs: opt.Runs = opt.RUNS,
    as_json: opt.AsJson = False,
) -> None:
    """Delete runs with all of their files. Refuses to delete a run that another one needs."""
    from plbench.runs.removal import removable_runs

    store = open_store(runs)
    _delete(store, removable_runs(store, [store.find(key, begun=True) for key in run]), dry_run, yes, as_json)


@runs_app.command("prune")
def runs_prune(
    weights: Annotated[
        Literal["best", "first", "none", "all"],
        typer.Option(
            help="Weights to keep: those of each setting's best row (best), of its first seed (first), none, or all."
        ),
    ] = "best",
    features: Annotated[
        bool, typer.Option("--features", help="Also delete all cached features; they are computed again when needed.")
    ] = False,
    dry_run: OnlySay = False,
    yes: Yes = False,
    runs: opt.Runs = opt.RUNS,
    as_json: opt.AsJson = False,
) -> None:
    """Free disk space: delete weights that are not the best of their setting, and leftovers of killed processes.

    All runs keep their metrics and scores. A run without weights can no longer predict; --force trains it again.
    """
    from plbench.comparison.pruning import prunable

    store = open_store(runs)
    _delete(store, prunable(store, weights=weights, features=features), dry_run, yes, as_json)


def _delete(store: Store, room: Room, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Show what will be deleted, ask, and delete it."""
    from rich.filesize import decimal

    from plbench.cli.display import tables
    from plbench.runs import removal

    size = decimal(room.num_bytes)
    if not as_json and room.items:
        rows = [{**row, "bytes": decimal(row["bytes"])} for row in room.rows()]
        tables.print_rows(None, rows, right=("number", "bytes"))
    goes = bool(room.items) and not dry_run
    if goes and not yes and not typer.confirm(f"Delete {removal.in_words(room)}, {size}?", err=True):
        goes = False
    if goes:
        removal.remove(store, room)
    said = f"Freed {size}" if goes else f"Would free {size}" if room.items else "There is nothing to delete"
    emit({**room.as_dict(), "deleted": goes}, as_json, lambda: echo(said))


def doctor(
    plugin: opt.Plugins = None, data_root: opt.DataRoot = None, runs: opt.Runs = opt.RUNS, as_json: opt.AsJson = False
) -> None:
    """Check the installation: versions, device, weights and data."""
    from plbench.cli.display import catalogue, tables

    report = catalogue.examine(make_workspace({"plugin": plugin, "data_root": data_root, "runs": runs}))
    emit(report, as_json, lambda: tables.print_diagnosis(report))

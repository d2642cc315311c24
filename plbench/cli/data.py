"""`plbench data`: what datasets there are, fetching, packing, checking and looking at them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from plbench.cli.once import CommandGroup
from plbench.cli.options import (
    RUNS,
    AsJson,
    DataOption,
    DataRoot,
    Images,
    Labels,
    NegativeValue,
    Plugins,
    Quiet,
    Runs,
    data_options,
    emit,
    make_workspace,
    open_registry,
)
from plbench.cli.wording import in_options

Name = Annotated[str, typer.Argument(help="Name of a dataset.")]

data_app = CommandGroup(help="The datasets that are installed.", no_args_is_help=True, rich_markup_mode=None)


@data_app.command("list")
def data_list(plugin: Plugins = None, data_root: DataRoot = None, runs: Runs = RUNS, as_json: AsJson = False) -> None:
    """All datasets: whether their files are here, and how to get them."""
    from plbench.cli.display import catalogue, tables

    rows = catalogue.list_datasets(make_workspace(runs, plugin, data_root))
    emit(rows, as_json, lambda: tables.print_datasets(rows))


@data_app.command("download")
def data_download(
    name: Name,
    annotations_only: Annotated[bool, typer.Option("--annotations-only", help="Leave the images out.")] = False,
    split: Annotated[
        list[str] | None, typer.Option("--split", help="Only what this split needs; may be repeated.")
    ] = None,
    parallel: Annotated[int, typer.Option("--parallel", min=1, max=16, help="Files at a time.")] = 4,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before more than 500 GB.")] = False,
    plugin: Plugins = None,
    data_root: DataRoot = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Fetch the published files: resumed where it stopped, verified, unpacked."""
    from plbench.runs.inspect.download import fetch

    done = fetch(
        name,
        make_workspace(RUNS, plugin, data_root, quiet=quiet),
        annotations_only=annotations_only,
        splits=split or (),
        parallel=parallel,
        confirm=lambda question: yes or typer.confirm(question, err=True),
    )
    amount = f"{len(done.fetched)} files fetched, {len(done.present)} were there"
    emit(asdict(done), as_json, lambda: typer.echo(f"{done.folder}: {amount}"))


@data_app.command("make")
def data_make(
    name: Name,
    source: Annotated[Path, typer.Option("--from", help="Folder of the dataset that it is made from.")],
    plugin: Plugins = None,
    data_root: DataRoot = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Make a dataset that is a selection of another from that one's official files, such as coco-20k from COCO 2014."""
    from plbench.runs.inspect.make import make_dataset

    folder = make_dataset(name, source, make_workspace(RUNS, plugin, data_root, quiet=quiet))
    emit({"dataset": name, "folder": str(folder)}, as_json, lambda: typer.echo(f"made {name} in {folder}"))


@data_app.command("prepare")
def data_prepare(
    name: Name,
    out: Annotated[Path, typer.Option("--out", help="Folder to write; --data-root of later commands.")],
    short_side: Annotated[int, typer.Option("--short-side", min=32, help="Of larger images, px.")] = 256,
    quality: Annotated[int, typer.Option("--quality", min=1, max=95, help="Of the JPEGs that are written.")] = 92,
    split: Annotated[
        list[str] | None, typer.Option("--split", help="May be repeated; default: those that the protocols use.")
    ] = None,
    workers: Annotated[int | None, typer.Option("--workers", min=0, help="Processes that decode and encode.")] = None,
    labels: Labels = None,
    images: Images = None,
    negative_value: NegativeValue = None,
    data_option: DataOption = None,
    plugin: Plugins = None,
    data_root: DataRoot = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Resize the images and pack them into shards that are read sequentially, with their labels beside them."""
    from plbench.cli.display import tables
    from plbench.runs.inspect.prepare import prepare

    options = data_options(labels, images, negative_value, data_option)
    workspace = make_workspace(RUNS, plugin, data_root, quiet=quiet, workers=workers, data_options=options)
    made = prepare(name, workspace, out, short_side=short_side, quality=quality, splits=split or ())
    emit(made, as_json, lambda: tables.print_preparation(made))


@data_app.command("verify")
def data_verify(
    name: Name,
    decode: Annotated[bool, typer.Option("--decode", help="Also decode every image.")] = False,
    labels: Labels = None,
    images: Images = None,
    negative_value: NegativeValue = None,
    data_option: DataOption = None,
    plugin: Plugins = None,
    data_root: DataRoot = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Check counts, checksums and missing files; with --decode every image. Leaves with 2 where something is wrong."""
    from plbench.cli.display import tables
    from plbench.runs.inspect.verify import verify_dataset

    options = data_options(labels, images, negative_value, data_option)
    workspace = make_workspace(RUNS, plugin, data_root, quiet=quiet, data_options=options)
    checks = [asdict(check) for check in verify_dataset(name, workspace, decode=decode)]
    for check in checks:
        check["fix"] = None if check["fix"] is None else in_options(check["fix"])
    emit(checks, as_json, lambda: tables.print_checks(name, checks))
    if any(check["well"] is False for check in checks):
        raise typer.Exit(2)


@data_app.command("stats")
def data_stats(
    name: Name,
    simulate: Annotated[str | None, typer.Option("--simulate", help="As of plbench run.")] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Of the run whose labels are counted, where a simulation draws them.")
    ] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Draw them: a PNG, SVG or PDF.")] = None,
    labels: Labels = None,
    images: Images = None,
    negative_value: NegativeValue = None,
    data_option: DataOption = None,
    plugin: Plugins = None,
    data_root: DataRoot = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Count what is known in train and test under a protocol: by split, by class, by image."""
    from plbench.cli.display import tables
    from plbench.runs.inspect import statistics

    if out is not None:
        statistics.picture_format(out)  # a mistyped name is said before millions of labels are counted
    options = data_options(labels, images, negative_value, data_option)
    workspace = make_workspace(RUNS, plugin, data_root, quiet=quiet, data_options=options)
    stats = statistics.dataset_stats(name, simulate, workspace, seed)
    if out is not None:
        statistics.draw_stats(stats, out)
    emit(stats, as_json, lambda: tables.print_stats(stats))


@data_app.command("show")
def data_show(
    name: Name,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write a contact sheet: a PNG of images and labels.")
    ] = None,
    split: Annotated[str, typer.Option("--split")] = "train",
    number: Annotated[int, typer.Option("--number", min=1, max=400, help="How many images on the sheet.")] = 24,
    labels: Labels = None,
    images: Images = None,
    negative_value: NegativeValue = None,
    data_option: DataOption = None,
    plugin: Plugins = None,
    data_root: DataRoot = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """One dataset: licence, protocols and recipes; with --out a picture of it."""
    from plbench.cli.display import catalogue, tables
    from plbench.runs.inspect import pictures
    from plbench.runs.workspace import open_dataset

    options = data_options(labels, images, negative_value, data_option)
    workspace = make_workspace(RUNS, plugin, data_root, quiet=quiet, data_options=options)
    description = catalogue.describe_dataset(name, workspace)
    if out is not None:
        pictures.contact_sheet(open_dataset(name, workspace).split(split), out, number)
        description["sheet"] = str(out)
    emit(description, as_json, lambda: tables.print_description(description))


@data_app.command("check")
def data_check(
    name: Name,
    fixture: Annotated[
        bool, typer.Option("--fixture", help="Check it on the small imitation of its files that it makes itself.")
    ] = False,
    labels: Labels = None,
    images: Images = None,
    negative_value: NegativeValue = None,
    data_option: DataOption = None,
    plugin: Plugins = None,
    data_root: DataRoot = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Try whether a dataset does what it must: splits, ids, labels, protocols. Exit code 1 if anything does not."""
    from plbench.cli.display.findings import print_findings, with_options
    from plbench.testing.command import check_one_dataset

    options = data_options(labels, images, negative_value, data_option)
    workspace = make_workspace(RUNS, plugin, data_root, quiet=quiet, data_options=options)
    findings = with_options(check_one_dataset(name, workspace, fixture=fixture))
    emit([asdict(finding) for finding in findings], as_json, lambda: print_findings(name, findings))
    if any(finding.passed is False for finding in findings):
        raise typer.Exit(1)


@data_app.command("make-fixture")
def data_make_fixture(
    name: Name,
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Write a small imitation of a published layout, for tests and tutorials."""
    from plbench.cli.display.catalogue import make_fixture

    make_fixture(open_registry(plugin), name, folder)
    emit({"dataset": name, "folder": str(folder)}, as_json, lambda: typer.echo(f"a small {name} is in {folder}"))

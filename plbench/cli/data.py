"""`plbench data`: list, download, prepare, verify and show datasets."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from plbench.cli import completion
from plbench.cli import options as opt
from plbench.cli.issues import issues
from plbench.cli.once import CommandGroup
from plbench.cli.options import Listing, echo, emit, listed, make_workspace, open_registry, with_options
from plbench.cli.wording import in_options
from plbench.errors import PlbenchError

Name = Annotated[str, typer.Argument(help="Name of a dataset.", autocompletion=completion.dataset_names)]


def _options(
    labels: opt.Labels = None,
    images: opt.Images = None,
    negative_value: opt.NegativeValue = None,
    data_option: opt.DataOption = None,
    plugin: opt.Plugins = None,
    data_root: opt.DataRoot = None,
    quiet: opt.Quiet = False,
    as_json: opt.AsJson = False,
) -> None:
    """Declare common options; only the signature is used."""


_on_a_dataset = with_options(_options)
data_app = CommandGroup(
    help="List, download, check, prepare and show datasets.", no_args_is_help=True, rich_markup_mode=None
)
data_app.command("issues")(issues)


@data_app.command("list")
def data_list(
    plugin: opt.Plugins = None, data_root: opt.DataRoot = None, runs: opt.Runs = opt.RUNS, as_json: opt.AsJson = False
) -> None:
    """List all datasets, whether their files are available, and how to get them."""
    from plbench.cli.display import tables

    def make() -> Listing:
        from plbench.cli.display import catalogue
        from plbench.runs.answered import files_of_strangers

        workspace = make_workspace({"runs": runs, "plugin": plugin, "data_root": data_root})
        rows = catalogue.list_datasets(workspace)
        if any(row["state"] in (None, "not usable") for row in rows):  # the reason depends on unknown files
            return rows, None
        files = files_of_strangers(workspace.registry.dataset(row["name"]) for row in rows)
        for root in {Path(row["folder"]) for row in rows if row["folder"]}:
            inner = [path for path in root.glob("*/*") if path.is_dir()]  # created or deleted files change their folder
            files |= set(map(str, (root, *root.glob("*"), *inner)))
        return rows, files

    rows = make()[0] if plugin else listed("datasets", {"data_root": data_root}, runs, make)
    emit(rows, as_json, lambda: tables.print_datasets(rows))


@data_app.command("download")
def data_download(
    name: Name,
    annotations_only: Annotated[bool, typer.Option("--annotations-only", help="Download only annotations.")] = False,
    split: Annotated[
        list[str] | None, typer.Option(help="Download only the files of this split; may be repeated.")
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, max=16, help="Number of parallel downloads.")] = 4,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before downloading more than 500 GB.")] = False,
    plugin: opt.Plugins = None,
    data_root: opt.DataRoot = None,
    quiet: opt.Quiet = False,
    as_json: opt.AsJson = False,
) -> None:
    """Download, verify and unpack the published files. Resumes when interrupted."""
    from plbench.runs.inspect.download import fetch

    done = fetch(
        name,
        make_workspace({"plugin": plugin, "data_root": data_root, "quiet": quiet}),
        annotations_only=annotations_only,
        splits=split or (),
        parallel=parallel,
        confirm=lambda question: yes or typer.confirm(question, err=True),
    )
    amount = f"{len(done.fetched)} files downloaded, {len(done.present)} already present"
    emit(asdict(done), as_json, lambda: echo(f"{done.folder}: {amount}"))


@data_app.command("make")
def data_make(
    name: Name,
    source: Annotated[Path, typer.Option("--from", help="Folder of the source dataset.")],
    plugin: opt.Plugins = None,
    data_root: opt.DataRoot = None,
    quiet: opt.Quiet = False,
    as_json: opt.AsJson = False,
) -> None:
    """Make a dataset from the official files of another, such as coco-20k from COCO 2014."""
    from plbench.runs.inspect.make import make_dataset

    workspace = make_workspace({"plugin": plugin, "data_root": data_root, "quiet": quiet})
    folder = make_dataset(name, source, workspace)
    emit({"dataset": name, "folder": str(folder)}, as_json, lambda: echo(f"made {name} in {folder}"))


@data_app.command("prepare")
@_on_a_dataset
def data_prepare(
    setting: opt.Setting,
    name: Name,
    out: Annotated[Path, typer.Option(help="Folder to write; pass it to later commands as --data-root.")],
    short_side: Annotated[
        int, typer.Option(min=32, help="Short side in pixels to which larger images are scaled.")
    ] = 256,
    quality: Annotated[int, typer.Option(min=1, max=95, help="JPEG quality.")] = 92,
    split: Annotated[
        list[str] | None, typer.Option(help="A split; may be repeated; default: the splits that the protocols use.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Number of processes that decode and encode.")] = None,
) -> None:
    """Resize the images and pack them, with labels, into shards that are read sequentially."""
    from plbench.cli.display import tables
    from plbench.runs.inspect.prepare import prepare

    workspace = make_workspace({**setting, "workers": workers})
    made = prepare(name, workspace, out, short_side=short_side, quality=quality, splits=split or ())
    emit(made, setting["as_json"], lambda: tables.print_preparation(made))


@data_app.command("embeddings")
@_on_a_dataset
def data_embeddings(
    setting: opt.Setting,
    name: Name,
    model: Annotated[str, typer.Option(help="A transformers model: its name on the hub, or a folder.")],
    out: Annotated[Path, typer.Option(help="File to write (.npz); pass it to later commands as --embeddings.")],
    prompt: Annotated[
        str | None, typer.Option(help="Prompt, with {} for the class name; default: a photo of a {}.")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="A split; may be repeated; default: the splits that the protocols use.")
    ] = None,
    device: opt.Device = None,
    workers: opt.Workers = None,
) -> None:
    """Compute a vision-language model's embeddings of all images and class names."""
    from plbench.runs.inspect.embed import PROMPT, embed

    workspace = make_workspace({**setting, "device": device, "workers": workers})
    made = embed(name, workspace, model, out, prompt=PROMPT if prompt is None else prompt, splits=split or ())
    images = ", ".join(f"{number:,} {split} images" for split, number in made["images"].items())
    what = f"{made['classes']:,} classes and {images}, {made['numbers']:,} numbers each"
    emit(made, setting["as_json"], lambda: echo(f"{out}: {what}"))


@data_app.command("verify")
@_on_a_dataset
def data_verify(
    setting: opt.Setting,
    name: Name,
    decode: Annotated[bool, typer.Option("--decode", help="Also decode every image.")] = False,
) -> None:
    """Check counts, checksums and missing files; exit with 2 if something is wrong."""
    from plbench.cli.display import tables
    from plbench.runs.inspect.verify import verify_dataset

    workspace = make_workspace(setting)
    checks = [
        {**asdict(check), "fix": check.fix and in_options(check.fix)}
        for check in verify_dataset(name, workspace, decode=decode)
    ]
    emit(checks, setting["as_json"], lambda: tables.print_checks(name, checks))
    if any(check["well"] is False for check in checks):
        raise typer.Exit(2)


@data_app.command("stats")
@_on_a_dataset
def data_stats(
    setting: opt.Setting,
    name: Name,
    simulate: Annotated[str | None, typer.Option(help="Simulation, as in plbench run.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the simulated labels.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Also plot the statistics to a .png, .svg or .pdf file.")] = None,
) -> None:
    """Count the known labels by split, class and image."""
    from plbench.cli.display import tables
    from plbench.runs.inspect import statistics

    if out is not None:
        statistics.picture_format(out)  # check the name before counting millions of labels
    workspace = make_workspace(setting)
    stats = statistics.dataset_stats(name, simulate, workspace, seed)
    if out is not None:
        statistics.draw_stats(stats, out)
    emit(stats, setting["as_json"], lambda: tables.print_stats(stats))


@data_app.command("show")
@_on_a_dataset
def data_show(
    setting: opt.Setting,
    name: Name,
    out: Annotated[
        Path | None, typer.Option(help="Write a contact sheet of images and labels: .png, .jpg or .pdf.")
    ] = None,
    split: str = "train",
    number: Annotated[int, typer.Option(min=1, max=400, help="Number of images on the sheet.")] = 24,
) -> None:
    """Show a dataset: licence, protocols and recipes; with --out a contact sheet."""
    from plbench.cli.display import catalogue, tables
    from plbench.runs.inspect import pictures
    from plbench.runs.workspace import open_dataset

    workspace = make_workspace(setting)
    description = catalogue.describe_dataset(name, workspace)
    if out is not None:
        pictures.contact_sheet(open_dataset(name, workspace).split(split), out, number)
        description["sheet"] = str(out)
    emit(description, setting["as_json"], lambda: tables.print_description(description))


@data_app.command("check")
@_on_a_dataset
def data_check(
    setting: opt.Setting,
    name: Name,
    fixture: Annotated[
        bool, typer.Option("--fixture", help="Check it on a small fixture that it writes itself.")
    ] = False,
) -> None:
    """Check a dataset plugin: splits, ids, labels, protocols. Exit with 1 on failure."""
    from plbench.cli.display.findings import report
    from plbench.testing.datasets import check_one_dataset

    workspace = make_workspace(setting)
    report(name, check_one_dataset(name, workspace, fixture=fixture), setting["as_json"])


@data_app.command("make-fixture")
def data_make_fixture(
    name: Name,
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    plugin: opt.Plugins = None,
    as_json: opt.AsJson = False,
) -> None:
    """Write a small fixture in the published layout, for tests and tutorials."""
    from plbench.files import unwritable

    dataset = open_registry(plugin).dataset(name)(folder)
    try:
        if folder.exists() and any(folder.iterdir()):
            raise PlbenchError(f"{folder} holds other files; give a new or empty folder")
        dataset.make_fixture()
    except OSError as error:
        raise unwritable(folder, error) from error
    emit({"dataset": name, "folder": str(folder)}, as_json, lambda: echo(f"wrote a {name} fixture to {folder}"))

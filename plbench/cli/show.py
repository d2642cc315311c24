"""`plbench show`."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from plbench.cli import options as opt
from plbench.cli.options import Setting, emit, make_workspace, with_options


def _where(
    data_root: opt.DataRoot = None,
    labels: opt.Labels = None,
    images: opt.Images = None,
    negative_value: opt.NegativeValue = None,
    data_option: opt.DataOption = None,
    plugin: opt.Plugins = None,
    runs: opt.Runs = opt.RUNS,
    quiet: opt.Quiet = False,
    as_json: opt.AsJson = False,
) -> None:
    """Declare common options; only the signature is used."""


@with_options(_where)
def show(
    setting: Setting,
    run: opt.RunKey,
    out: Annotated[
        Path | None, typer.Option(help="The .html file to write; default: page.html in the run's folder.")
    ] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Write the page without opening a browser.")] = False,
) -> None:
    """Open the page of a run in a browser.

    It has curves, classes with intervals, mistakes with their images, labels and cost.

    The page is a single file that works offline. Images are shown if the dataset is on this machine.
    """
    from plbench.runs.page.page import write_page

    workspace = make_workspace(setting)
    folder = workspace.store.find(run, begun=True)
    path = write_page(folder, workspace, out)
    is_open = not no_open and webbrowser.open(path.absolute().as_uri())

    def tell() -> None:
        from plbench.cli.display.tables import print_copied, print_lines

        print_copied("Page", str(path))
        if not (no_open or is_open):
            print_lines("No browser was found on this machine; open the file in one.")

    emit({"run": folder.name, "page": str(path), "opened": is_open}, setting["as_json"], tell)

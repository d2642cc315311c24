"""`plbench export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from plbench.cli import options as opt
from plbench.cli.options import Setting, emit, make_workspace, with_options
from plbench.errors import PlbenchError

HUB = "hub"


def _where(
    weights: Annotated[
        Path | None, typer.Option(help="Weights of the backbone, if the run was trained with --weights FILE.")
    ] = None,
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
def export(
    setting: Setting,
    run: Annotated[
        str, typer.Argument(metavar="KEY", help="Key of a run (its first characters are enough), or its folder.")
    ],
    to: Annotated[
        Literal["onnx", "torchscript", "safetensors", "timm-hub-folder", "hub"],
        typer.Option(help="The format; hub uploads to the Hugging Face Hub."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="File to write (.onnx, .pt, .safetensors), or folder (timm-hub-folder).")
    ] = None,
    repo: Annotated[str | None, typer.Option(help="With --to hub: USER/NAME of the repository.")] = None,
    private: Annotated[
        bool, typer.Option("--private", help="With --to hub: create the repository as private.")
    ] = False,
) -> None:
    """Write the model of a run for other programs, with preprocessing and class names, and check its scores there."""
    from plbench.cli.display.tables import print_copied, print_lines

    _check(to, out, repo, private)
    workspace = make_workspace(setting)
    folder = workspace.store.find(run)
    if repo is not None:
        from plbench.runs.export.formats import FORMATS
        from plbench.runs.export.hub import upload_run

        uploaded = upload_run(folder, repo, workspace, private=private)

        def show_uploaded() -> None:
            print_copied("Uploaded to", uploaded.url)
            print_lines(f"Files: {', '.join(uploaded.files)}")
            print_lines(*(_compared(value, FORMATS[name].reader) for name, value in uploaded.differences.items()))

        emit(asdict(uploaded), setting["as_json"], show_uploaded)
        return
    from plbench.runs.export.export import export_run

    assert out is not None
    written = export_run(folder, to, out, workspace)

    def show() -> None:
        from rich.filesize import decimal

        print_copied("Wrote", f"{out} ({decimal(written.num_bytes)})")
        print_lines(_compared(written.difference, written.reader))
        if written.precision_difference is not None:
            print_lines(
                f"That is in float32, in which the export computes. The run, and so plbench predict, computes in "
                f"{written.precision}, which changes these scores by up to {written.precision_difference:.1e}"
            )

    emit({**asdict(written), "path": str(out)}, setting["as_json"], show)


def _check(to: str, out: Path | None, repo: str | None, private: bool) -> None:
    """Reject invalid combinations of options with one sentence."""
    if to == HUB and (repo is None or out is not None):
        raise PlbenchError("--to hub uploads the model; give --repo USER/NAME, and leave out --out")
    if to != HUB and (out is None or repo is not None or private):
        raise PlbenchError(f"--to {to} writes to this machine: give --out PATH, and neither --repo nor --private")


def _compared(difference: float, reader: str) -> str:
    return (
        f"Read back by {reader}: scores of 8 pictures differ by at most {difference:.1e} from those of plbench predict"
    )

"""`plbench predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plbench.cli import options as opt
from plbench.cli.options import Setting, emit, make_workspace, with_options
from plbench.errors import PlbenchError

if TYPE_CHECKING:
    import numpy as np

    from plbench.runs.trained import TrainedModel

CHOSEN = "validation"


def _where_and_how(
    weights: Annotated[
        Path | None, typer.Option(help="The backbone's weights, of a run that was made with --weights FILE.")
    ] = None,
    data_root: opt.DataRoot = None,
    labels: opt.Labels = None,
    images: opt.Images = None,
    negative_value: opt.NegativeValue = None,
    data_option: opt.DataOption = None,
    device: opt.Device = None,
    workers: opt.Workers = None,
    decode: opt.Decode = None,
    plugin: opt.Plugins = None,
    runs: opt.Runs = opt.RUNS,
    quiet: opt.Quiet = False,
    as_json: opt.AsJson = False,
) -> None:
    """Only its signature is read."""


@with_options(_where_and_how)
def predict(
    setting: Setting,
    run: Annotated[str, typer.Argument(metavar="KEY", help="Key of a run, the start of one, or its folder.")],
    places: Annotated[
        list[Path], typer.Argument(metavar="IMAGES", help="A folder of images, with all below it, or image files.")
    ],
    out: Annotated[Path, typer.Option(help="File to write: .csv, .parquet or .jsonl.")],
    threshold: Annotated[
        str | None,
        typer.Option(
            help="Also write the labels of each image: classes whose score is at least a number, such as 0.5, or the "
            f"threshold that the run chose for each class ({CHOSEN})."
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(min=1, help="Also write the labels of each image: the classes with its highest scores."),
    ] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out images that cannot be read, and list them.")
    ] = False,
) -> None:
    """Score new images with the model of a run. Continues where an interrupted call stopped."""
    from plbench.data.images import files_at
    from plbench.files import try_folder
    from plbench.runs.predict import predictions
    from plbench.runs.scores_file import check_name, write_predictions
    from plbench.runs.trained import load_model

    check_name(out)
    try_folder(out.parent)
    workspace = make_workspace(setting)
    images = files_at(places)
    model = load_model(workspace.store.find(run), workspace)
    limits = None if threshold is None else _thresholds(threshold, model)
    with predictions(model, images, workspace, skip_unreadable=skip_unreadable) as found:
        has_labels = limits is not None or top_k is not None
        write_predictions(out, found, found.labels(limits, top_k) if has_labels else None)
        skipped = [{"image": name, "why": why} for name, why in found.unreadable.items()]
        content = {"run": model.record.key, "out": str(out), "images": len(found.images), "skipped": skipped}

    def show() -> None:
        from plbench.cli.display.tables import print_lines

        print_lines(f"Wrote scores of {len(found.images):,} images and {len(found.class_names):,} classes to {out}")
        print_lines(*(f"Skipped: {entry['why']}" for entry in skipped))

    emit(content, setting["as_json"], show)


def _thresholds(text: str, model: TrainedModel) -> float | np.ndarray:
    if text == CHOSEN:
        return model.thresholds()
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise PlbenchError(f"--threshold {text}: give a number from 0 to 1, or {CHOSEN} for what the run chose there")
    return value

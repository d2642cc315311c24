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
    from plbench.runs.workspace import Workspace

CHOSEN = "validation"
ON_SHEET = 12


def where_and_how(
    weights: Annotated[
        Path | None, typer.Option(help="Weights of the backbone, if the run was trained with --weights FILE.")
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
    """Declare common options; only the signature is used."""


@with_options(where_and_how)
def predict(
    setting: Setting,
    run: opt.RunKey,
    places: Annotated[
        list[Path], typer.Argument(metavar="IMAGES", help="Image files, or a folder (with its subfolders).")
    ],
    out: Annotated[Path, typer.Option(help="File to write: .csv, .parquet or .jsonl.")],
    threshold: Annotated[
        str | None,
        typer.Option(
            help="Also write the labels of each image: classes whose score is at least a number, such as 0.5; the "
            f"threshold that the run chose for each class by F1 ({CHOSEN}); or the lowest one that reaches "
            "this precision on the validation part (precision=0.9)."
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(min=1, help="Also write the labels of each image: the classes with its highest scores."),
    ] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out images that cannot be read, and list them.")
    ] = False,
    contact_sheet: Annotated[
        Path | None,
        typer.Option(help="Also draw the images about which the model is most and least certain: .png, .jpg or .pdf."),
    ] = None,
    contact_sheet_images: Annotated[
        int | None, typer.Option(min=1, max=400, help=f"Images of each kind on that sheet; default: {ON_SHEET}.")
    ] = None,
) -> None:
    """Score new images with the model of a run. Continues where an interrupted call stopped."""
    from plbench.data.images import files_at
    from plbench.files import try_folder
    from plbench.runs.inspect.pictures import certainty_sheet
    from plbench.runs.inspect.sheets import check_sheet_name
    from plbench.runs.predict import predictions
    from plbench.runs.scores_file import check_name, write_predictions
    from plbench.runs.trained import load_model

    wanted = None if threshold is None else _parse_threshold(threshold)
    check_name(out)
    try_folder(out.parent)
    if contact_sheet is not None:
        check_sheet_name(contact_sheet)
        try_folder(contact_sheet.parent)
    elif contact_sheet_images is not None:
        raise PlbenchError("--contact-sheet-images needs a contact sheet; add --contact-sheet FILE")
    workspace = make_workspace(setting)
    images = files_at(places)
    model = load_model(workspace.store.find(run), workspace)
    limits = None if wanted is None else _thresholds(wanted, model, workspace)
    with predictions(model, images, workspace, skip_unreadable=skip_unreadable) as found:
        has_labels = limits is not None or top_k is not None
        write_predictions(out, found, found.labels(limits, top_k) if has_labels else None)
        if contact_sheet is not None:
            with workspace.reporter.patience("Drawing the contact sheet"):
                certainty_sheet(found, images, contact_sheet, contact_sheet_images or ON_SHEET)
        skipped = [{"image": name, "why": why} for name, why in found.unreadable.items()]
        sheet = {} if contact_sheet is None else {"contact_sheet": str(contact_sheet)}
        content = {"run": model.record.key, "out": str(out), **sheet, "images": len(found.images), "skipped": skipped}

    def show() -> None:
        from plbench.cli.display.tables import print_copied, print_lines

        print_lines(f"Wrote scores of {len(found.images):,} images and {len(found.class_names):,} classes to {out}")
        print_copied("Contact sheet", *sheet.values())
        print_lines(*(f"Skipped: {entry['why']}" for entry in skipped))

    emit(content, setting["as_json"], show)


def _parse_threshold(text: str) -> float | tuple[str, float]:
    """Return a number, or another rule for thresholds: "validation", or "precision" with the target."""
    name, _, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if text == CHOSEN:
        return CHOSEN, 0.0
    if name == "precision" and 0 < value <= 1:
        return name, value
    if name == "" and 0 <= value <= 1:
        return value
    raise PlbenchError(
        f"--threshold {text}: give a number from 0 to 1, {CHOSEN} for the thresholds that the run chose there "
        "by F1, or precision=0.9 for the lowest thresholds that reach this precision there"
    )


def _thresholds(wanted: float | tuple[str, float], model: TrainedModel, workspace: Workspace) -> float | np.ndarray:
    if isinstance(wanted, float):
        return wanted
    rule, value = wanted
    if rule == CHOSEN:
        return model.thresholds()
    limits, held_out = model.thresholds_for_precision(value, workspace)
    never = int((limits > 1).sum())
    if never:
        workspace.reporter.note(
            f"{never:,} of {len(limits):,} classes never reach this precision, and are assigned to no image"
        )
    if not held_out:
        workspace.reporter.note(
            "the thresholds come from images that the model was also trained on, where its precision is higher than on "
            "new ones; runs with --selection validation choose them on images that it was not trained on"
        )
    return limits

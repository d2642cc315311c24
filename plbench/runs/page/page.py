"""A run as one HTML file without network access: results, classes, and how it was made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from plbench.data.images import ImageSource
from plbench.errors import PlbenchError
from plbench.files import write_text
from plbench.metrics.cells import Cells
from plbench.runs.page import account, view
from plbench.runs.page.html import SHARED, asset, content_hash, harmless, reference_link, script, template_of
from plbench.runs.page.images import DataAtHand, Thumbnails, data_at_hand
from plbench.runs.page.reading import RunFiles, read_files
from plbench.runs.store import SPEC
from plbench.runs.tables import PER_CLASS
from plbench.runs.workspace import Workspace

PAGE = "page.html"
"""Name of the page in a run's folder."""

_TALL = 40  # rows above which a table scrolls within the page
_MAX_SPEC = 20_000  # maximum characters of a spec on the page


def write_page(folder: Path, workspace: Workspace, path: Path | None = None) -> Path:
    """Write the page of a run.

    Args:
        folder: of the run, finished or not.
        workspace: location of its dataset, whose images are shown if available.
        path: of the file; None for `page.html` in the folder.

    Returns:
        Path of the page.

    Raises:
        PlbenchError: if the file's name does not end in .html. StoreError: if the run's files are damaged, or the page
            cannot be written.
    """
    path = folder / PAGE if path is None else path
    if path.suffix.lower() not in (".html", ".htm"):
        raise PlbenchError(f"`out={path}`: a page is an HTML file; give a name that ends in .html")
    write_text(path, run_page(folder, workspace, path.parent))
    return path


def run_page(folder: Path, workspace: Workspace, place: Path | None = None) -> str:
    """Return the page of a run.

    Args:
        folder: of the run, finished or not.
        workspace: location of its dataset.
        place: folder of the page, for its link to the table of all classes; None for no link.

    Raises:
        StoreError: if the run's files are damaged.
    """
    files = read_files(folder)
    style = asset(SHARED, "style.css") + asset(SHARED, "run.css")
    code = script(*(asset(SHARED, name) for name in ("state.js", "tables.js", "run.js")))
    record, spec = files.record, files.spec
    spec_text = _spec_text(folder / SPEC)
    values = {
        "spec": spec,
        "record": record,
        "title": spec.method.name if record is None else record.title,
        "part": files.part,
        "state": _state(files, workspace),
        "saved_step": files.saved_step,
        "paper": ("", None) if record is None else (record.paper, reference_link(record.paper)),
        "training": view.training_charts(files),
        "settings": list(account.settings(files)),
        "cost": [] if record is None or record.cost is None else list(account.cost(record.cost)),
        "environment": [] if record is None else list(account.environment(record)),
        "is_plugin": record is not None and record.source_file is None,
        "spec_text": spec_text,
        "results": _results(files, workspace, place) if files.is_done else None,
        "tall": _TALL,
    }
    return template_of(SHARED, "run.html", cleans=True).render(
        **values,
        style=Markup(style),
        script=Markup(code),
        style_hash=content_hash(style),
        script_hash=content_hash(code),
    )


def _state(files: RunFiles, workspace: Workspace) -> str:
    """Return the state of the run: "done", "failed", "under way" or "interrupted"."""
    if files.record is not None:
        return files.record.status
    key = files.spec.key
    return "under way" if workspace.store.held([key]) else "interrupted"


def _spec_text(path: Path) -> Markup:
    """Return the text of the stored spec; empty if missing, too long, or unprintable."""
    if not path.is_file():
        return Markup("")
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text.splitlines()
    is_fit = len(text) <= _MAX_SPEC and all(harmless(line) == line for line in lines)
    return escape("\n".join(lines) if is_fit else "")


def _results(files: RunFiles, workspace: Workspace, place: Path | None) -> dict[str, Any]:
    """Return the content of the sections of a finished run."""
    record = files.record
    assert record is not None
    data = DataAtHand()
    if files.cells is not None and files.classes:
        data = data_at_hand(files, workspace)
        if data.why:
            workspace.reporter.note(f"the page shows no images: {data.why}")
    with workspace.reporter.task("Intervals of classes") as report:
        intervals = view.class_intervals(files, report)
    train = files.train or data.train
    num_classes = files.metrics.num_classes
    csv = None if place is None or not files.classes else os.path.relpath(files.folder / PER_CLASS, place)
    return {
        "headline": view.headline(record, files.part),
        "figures": list(view.other_figures(record, files.part)),
        "metrics": files.metrics,
        "absent": files.absent,
        "classes": view.class_table(files, intervals, train),
        "num_classes": num_classes,
        "has_train": train is not None,
        "has_groups": any(row.groups for row in files.classes),
        "has_perfect": any(row.ap == 100 for row in files.classes),
        "csv": csv,
        "class_chart": view.class_chart(files, intervals),
        "precision_recall": view.precision_recall_chart(files),
        "calibration": None if files.cells is None else view.calibration(files.cells),
        **_mistakes(files, files.cells, data),
        "labels": account.labels_in_training(record, num_classes),
        "num_unknown": account.num_unknown(record, num_classes),
        "marked": account.marked(record, num_classes),
    }


def _mistakes(files: RunFiles, cells: Cells | None, data: DataAtHand) -> dict[str, Any]:
    images: ImageSource | None = data.images
    thumbnails = None if images is None or cells is None else Thumbnails(images)
    worst = [] if thumbnails is None else view.worst_images(files, thumbnails)
    hardest = view.hardest(files, thumbnails)
    left_out = 0 if thumbnails is None else thumbnails.num_left_out
    unreadable = 0 if thumbnails is None else len(thumbnails.unreadable)
    return {"hardest": hardest, "worst": worst, "left_out": left_out, "unreadable": unreadable, "option": data.option}

"""The images that a run ranked worst, with thumbnails if the dataset is available."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from plbench.data.images import ImageSource
from plbench.data.labels import PartialLabels
from plbench.errors import DataError, PlbenchError
from plbench.metrics.cells import Cells
from plbench.runs.page.reading import RunFiles, TrainLabels
from plbench.runs.protocol import ProtocolData
from plbench.runs.workspace import Workspace, dataset_root, open_dataset

SIDE = 144
"""Longer side of a thumbnail in pixels."""

BUDGET = 700_000
"""Maximum number of characters of all thumbnails on a page."""

_QUALITY = 75


@dataclass(frozen=True)
class DataAtHand:
    """Information from a run's dataset.

    Attributes:
        images: scored images, in the order of the cells' rows; None if not available.
        train: known labels of the train part.
        why: reason if images are not available, otherwise empty. option: the option that would help: "data_root",
            "labels" or "plugin"; empty if they belong to another dataset.
    """

    images: ImageSource | None = None
    train: TrainLabels | None = None
    why: str = ""
    option: str = ""


def data_at_hand(files: RunFiles, workspace: Workspace) -> DataAtHand:
    """Open the dataset of a run in the default location, or where the workspace says.

    Nothing is downloaded or rendered. Its labels must be those that the run was scored on.
    """
    spec = files.spec
    try:
        kind = workspace.registry.dataset(spec.protocol.dataset)
    except PlbenchError as error:
        return DataAtHand(why=str(error), option="plugin")
    option = "data_root" if kind.needs_root else "labels"
    if not kind.needs_files and not dataset_root(kind, workspace).is_dir():
        return DataAtHand(
            why=f"{kind.title} have not been rendered on this machine yet; any run on them does that", option=option
        )
    try:
        dataset = open_dataset(spec.protocol.dataset, workspace)
        data = ProtocolData(dataset, spec.protocol, spec.skipped_images, spec.seed)
        part = data.held_out(spec.train_part) if spec.only_selects else data.whole(spec.protocol.test_split)
        if files.cells is not None and not _is_scored(files.cells, part.labels):
            return DataAtHand(why=f"the labels in {dataset.root} are not those that the run was scored on")
        train = None
        if files.train is None:
            labels = data.train(spec.train_part).labels
            positives, negatives = labels.counts()
            train = TrainLabels(positives.astype(np.int64), negatives.astype(np.int64), labels.num_images)
    except PlbenchError as error:
        return DataAtHand(why=str(error), option=option)
    return DataAtHand(part.images, train)


def _is_scored(cells: Cells, labels: PartialLabels) -> bool:
    """Return whether the known labels of a part are those of the cells; both are in row order."""
    rows, columns, values = labels.cells()
    same_size = labels.matrix.shape == (cells.num_images, cells.num_classes)
    pairs = (cells.rows, rows), (cells.class_index, columns), (cells.positives, values > 0)
    return same_size and all(np.array_equal(own, theirs) for own, theirs in pairs)


def most_wrong(cells: Cells, among: np.ndarray, most: int, of_class: int | None = None) -> list[int]:
    """Choose the cells that were ranked worst: the highest-scored negatives, or the lowest-scored positives.

    Args:
        cells: known cells.
        among: indices of cells to choose from: all negative, or all positive.
        most: maximum number of cells, each of another image.
        of_class: maximum number per class; None for any number.

    Returns:
        Indices of cells, the worst first, ties by position.
    """
    chosen: list[int] = []
    images: set[int] = set()
    classes: Counter[int] = Counter()
    if among.size == 0:
        return chosen
    worst_first = cells.scores[among] if cells.positives[among[0]] else -cells.scores[among]
    for cell in among[np.argsort(worst_first, kind="stable")].tolist():
        image, class_index = int(cells.rows[cell]), int(cells.class_index[cell])
        if image not in images and (of_class is None or classes[class_index] < of_class):
            chosen.append(cell)
            images.add(image)
            classes[class_index] += 1
        if len(chosen) == most:
            break
    return chosen


class Thumbnails:
    """Thumbnails as data URIs, within the page's budget."""

    def __init__(self, images: ImageSource, budget: int = BUDGET) -> None:
        """Set the images; nothing is read yet."""
        self._images, self._left = images, budget
        self.num_left_out = 0
        self.unreadable: list[str] = []

    def name(self, row: int) -> str:
        """Return the id of an image."""
        return str(self._images.ids[row])

    def address(self, row: int) -> tuple[Markup, int, int] | None:
        """Return a data URI with width and height in px; None if the image cannot be read or the budget is used up."""
        try:
            image = self._images.load(row, SIDE)
        except DataError as error:
            self.unreadable.append(str(error))
            return None
        image.thumbnail((SIDE, SIDE))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=_QUALITY, optimize=True)
        text = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
        if len(text) > self._left:
            self.num_left_out += 1
            return None
        self._left -= len(text)
        return Markup(text), image.width, image.height


def hardest_classes(ap: Sequence[float | None], most: int) -> list[int]:
    """Return the indices of the classes with the lowest AP, in ascending order; classes without AP are left out."""
    defined = [index for index, value in enumerate(ap) if value is not None]
    return sorted(defined, key=lambda index: (ap[index], index))[:most]

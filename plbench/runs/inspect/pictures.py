"""Contact sheets of a dataset: images with their labels, and those that a model is most and least certain of."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plbench.data.dataset import LabelledSplit
from plbench.data.images import ImageFiles
from plbench.data.lettering import drawable, drawable_names
from plbench.metrics.calibration import entropy_bits
from plbench.randomness import derive_seed, generator
from plbench.runs.inspect.sheets import BLACK, GREY, Line, Section, Tile, check_sheet_name, draw_sheet, fitted, wrapped
from plbench.runs.predict import Predictions

_MAX_LINES = 6
_MAX_ABSENT = 2  # lines of text
_TOP_CLASSES = 4
_ROWS = 4096  # at once


def contact_sheet(split: LabelledSplit, path: Path, num_images: int) -> None:
    """Write a picture of a reproducible random sample of images with their known labels.

    Names of present classes are black; verified absent ones are grey, if there is room.

    Raises:
        PlbenchError: if the path's suffix is unknown. DataError: if an image cannot be read. StoreError: if the file
            cannot be written.
    """
    check_sheet_name(path, "out")
    import torch

    order = torch.randperm(len(split.images), generator=generator(derive_seed(0, "contact-sheet")))
    names = drawable_names(split.labels.class_names, split.labels.class_ids)
    tiles = []
    for row in sorted(order[:num_images].tolist()):
        labels = split.labels.rows([row])[0]
        present = ", ".join(names[c] for c in np.flatnonzero(labels > 0)) or "(nothing known to be present)"
        absent = ", ".join(names[c] for c in np.flatnonzero(labels < 0))
        lines = [(line, BLACK) for line in wrapped(present, _MAX_LINES)]
        room = min(_MAX_LINES - len(lines), _MAX_ABSENT)
        lines += [(line, GREY) for line in wrapped(f"not {absent}", room)] if absent else []
        tiles.append(Tile(partial(split.images.load, row), lines))
    draw_sheet([Section(tiles)], path, _MAX_LINES)


def uncertainty(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the uncertainty of each image's labels: the entropy of its scores, summed over classes, in bits.

    Args:
        scores: [N, C] in [0, 1]; processed in blocks of a few thousand rows.

    Returns:
        [N], from 0 if every score is 0 or 1, to C if every score is 0.5.
    """
    found = np.empty(len(scores), np.float64)
    for start in range(0, len(scores), _ROWS):
        found[start : start + _ROWS] = entropy_bits(scores[start : start + _ROWS]).sum(axis=1)
    return found


def certainty_sheet(found: Predictions, images: ImageFiles, path: Path, num_images: int) -> None:
    """Write a picture of the images whose labels a model is most and least certain of, with their highest scores.

    Args:
        found: scores of all readable images.
        images: all images, with their names as ids.
        path: of a .png, .jpg or .pdf file.
        num_images: maximum number of each kind; at most half of all images.

    Raises:
        PlbenchError: if the path's suffix is unknown. DataError: if an image can no longer be read. StoreError: if the
            file cannot be written.
    """
    check_sheet_name(path)
    bits = uncertainty(found.scores)
    order = np.argsort(bits, kind="stable")
    num_least = min(num_images, len(order) // 2)
    row_of = {name: row for row, name in enumerate(images.ids)} if found.unreadable else None
    names = drawable_names(found.class_names, found.class_names)

    def tile(place: int) -> Tile:
        row = place if row_of is None else row_of[found.images[place]]
        top = np.argsort(-found.scores[place], kind="stable")[:_TOP_CLASSES].tolist()
        lines: list[Line] = [(fitted(names[c], f" {found.scores[place, c]:.2f}"), BLACK) for c in top]
        lines.append((f"uncertainty {bits[place]:.2f} bits", GREY))
        lines.append((fitted(drawable(found.images[place]), keeps_end=True), GREY))
        return Tile(partial(images.load, row), lines)

    most = order[: min(num_images, len(order) - num_least)].tolist()
    least = order[len(order) - num_least :][::-1].tolist()
    of_all = f"of {len(order):,} images"
    sections = [
        Section([tile(place) for place in most], f"Most certain: {len(most)} {of_all}"),
        Section([tile(place) for place in least], f"Least certain: {len(least)} {of_all}"),
    ]
    draw_sheet(sections, path, _TOP_CLASSES + 2)

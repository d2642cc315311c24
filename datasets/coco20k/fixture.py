"""A small imitation of coco-20k: drawn pictures under the first ids of its list, for tests and tutorials."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from ..coco.fixture import draw_presence
from ..coco.objects import weigh
from ..complete_table import write_table
from ..fixture_images import SIDE, box, write_image
from .objects import write_objects

if TYPE_CHECKING:
    from .dataset import Coco20k

SIZES = {"train": 60, "test": 30}
_PERCENTS = [60, 40, 30, 25, 20, 15, 12, 10] + [4] * 16  # the other 56 classes are in no picture


def write_fixture(dataset: Coco20k) -> None:
    """Write `images/`, `objects.csv` and `labels.csv` into the dataset's folder."""
    rows = []
    for split, size in SIZES.items():
        ids = [image_id for image_id, part in dataset.shipped_split.items() if part == split][:size]
        for image_id, present in zip(ids, draw_presence(size, _PERCENTS, seed=size), strict=True):
            write_image(dataset.root / dataset.image_path(image_id), present, seed=int(image_id))
            rows.append((image_id, split, present))
    presence = np.zeros((len(rows), len(dataset.class_ids)), bool)
    for row, (*_, present) in enumerate(rows):
        presence[row, present] = True
    at, columns = np.nonzero(presence)
    boxes = np.array([box(int(column)) for column in columns], np.float64)
    sides = np.full((len(boxes), 2), float(SIDE))
    weights = {by: weigh(by, boxes[:, 2] * boxes[:, 3], boxes, sides) for by in ("size", "place")}
    prominence = {by: sparse.csr_array((weight, (at, columns)), presence.shape) for by, weight in weights.items()}
    write_objects(dataset.root, [image_id for image_id, *_ in rows], dataset.class_ids, prominence)
    write_table(dataset, rows)

"""A small imitation of VAW.

What makes real files awkward is in it: train in two files, ids that are strings, boxes with fractions and beyond the
picture's edge, two crops of one picture, polygons that are null, photographs in two folders; an attribute that is
listed twice, and one that is both positive and negative; a crop of which nothing is known; an attribute of no type,
and one of two.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..coco.fixture import draw_presence
from ..fixture_images import write_image
from ..visual_genome import FOLDERS

_NUM_PICTURES = {"train": 30, "val": 5, "test": 15}
_BOXES = ((-3.5, 0.5, 88.25, 83.0), (0, 0, 84, 88.5))  # the first begins left of the picture
# name, number of the mark that shows it (in the three upper rows and left columns of four), per cent of the pictures
_ATTRIBUTES = (
    *(("black", 0, 40), ("red", 1, 30), ("navy blue", 2, 15), ("wooden", 4, 35)),
    *(("round", 5, 30), ("tall", 6, 25), ("sitting", 8, 20), ("wet", 9, 25), ("numbered", 10, 30)),
)
_CLASSES = {
    "attribute_index.json": {name: column for column, (name, _, _) in enumerate(_ATTRIBUTES)},
    "attribute_types.json": {
        "color": ["black", "red", "navy blue"],
        "material": ["wooden"],
        "shape": ["round"],
        "height": ["tall"],
        "pose": ["sitting"],
        "state": ["wet", "sitting"],
    },
    "attribute_parent_types.json": {
        "color": ["color"],
        "materia": ["material"],  # as they spell it
        "shape": ["shape"],
        "size": ["height"],
        "action": ["pose"],
        "state": ["state"],
    },
    "head_tail.json": {
        "head": ["black", "red", "wooden", "round"],
        "medium": ["tall", "wet", "numbered"],
        "tail": ["navy blue", "sitting"],
    },
}


def write_vaw_fixture(root: Path) -> None:
    """Write annotations and pictures."""
    (root / "data").mkdir(parents=True, exist_ok=True)
    for name, content in _CLASSES.items():
        (root / "data" / name).write_text(json.dumps(content))
    for place, (split, size) in enumerate(_NUM_PICTURES.items()):
        entries: list[dict[str, Any]] = []
        presence = draw_presence(size, [percent for *_, percent in _ATTRIBUTES] if size > 9 else [50] * 4, size)
        for row, present in enumerate(presence):
            image_id = 2_340_000 + 1000 * place + row
            folder = root / FOLDERS[row % 4 == 1]
            write_image(folder / f"{image_id}.jpg", [_ATTRIBUTES[column][1] for column in present], seed=image_id)
            entries += (_instance(image_id, crop, present) for crop in range(len(_BOXES)))
        entries[-1] |= {"positive_attributes": [], "negative_attributes": []}
        if split != "train":
            _write(root / "data" / f"{split}.json", entries)
            continue
        entries[5]["positive_attributes"] += entries[5]["positive_attributes"][:1]
        entries[7]["negative_attributes"] += entries[7]["positive_attributes"][:1]
        _write(root / "data" / "train_part1.json", entries[:35])
        _write(root / "data" / "train_part2.json", entries[35:])


def _instance(image_id: int, crop: int, present: Sequence[int]) -> dict[str, Any]:
    """Return what is said of one of the two crops of a picture: most of what it shows, and a part of what it does not.

    Args:
        image_id, crop: which. present: columns of the attributes in the picture.
    """
    listed = [
        column for column in range(len(_ATTRIBUTES)) if (image_id + column + crop) % (6 if column in present else 2)
    ]
    return {
        "image_id": str(image_id),
        "instance_id": f"{image_id}{crop:03d}",
        "instance_bbox": _BOXES[crop],
        "instance_polygon": [[[0.5, 0.5], [84.0, 0.5], [84.0, 88.0]]] if crop else None,
        "object_name": "shape",
        "positive_attributes": [_ATTRIBUTES[column][0] for column in listed if column in present],
        "negative_attributes": [_ATTRIBUTES[column][0] for column in listed if column not in present],
    }


def _write(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    path.write_text(json.dumps(list(entries)))

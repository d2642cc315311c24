"""A small imitation of ImageNet with reassessed labels.

What makes real files awkward is in it: val images that have no class, or several; a class that is in another order in
the file of names; files beside the images; and class numbers that are ranks of sorted synsets.
"""

from __future__ import annotations

import json
from pathlib import Path

from ..coco.fixture import draw_presence
from ..fixture_images import write_image

SYNSETS = tuple(f"n0{1_440_764 + 9001 * number:07d}" for number in range(12))
_NUM_TRAIN, _NUM_VAL, _NUM_EMPTY = 60, 34, 4


def write_imagenet_fixture(root: Path) -> None:
    """Write pictures, `real.json` and `LOC_synset_mapping.txt`, whose order is not that of the synsets."""
    for row in range(_NUM_TRAIN):
        number = row % len(SYNSETS)
        name = f"{SYNSETS[number]}_{100 + 7 * row}.JPEG"
        others = [(number + 5) % len(SYNSETS)] if row % 4 == 0 else []  # shown, and in no label
        write_image(root / "train" / SYNSETS[number] / name, [number, *others], seed=1000 + row)
    (root / "train" / "readme.txt").write_text("not an image\n")
    lists = draw_presence(_NUM_VAL, [12] * len(SYNSETS), seed=2012)
    lists = [classes or [row % len(SYNSETS)] for row, classes in enumerate(lists)]
    for row in range(_NUM_EMPTY):
        lists[3 + 8 * row] = []
    for row, classes in enumerate(lists, 1):
        write_image(root / "val" / f"ILSVRC2012_val_{row:08d}.JPEG", classes, seed=2000 + row)
    (root / "real.json").write_text(json.dumps(lists))
    names = [f"{synset} thing {number}, kind of thing\n" for number, synset in enumerate(SYNSETS)]
    (root / "LOC_synset_mapping.txt").write_text("".join(reversed(names)))

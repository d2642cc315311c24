"""A small imitation of Visual Genome with categories by number.

What makes real files awkward is in it: images in two folders, lists named after 500 for either size, images in no
order, a category twice in one list, images on no list and in the label file all the same, an image with no category
of the smaller size, a last line that does not end.
"""

from __future__ import annotations

import json
from pathlib import Path

from ..coco.fixture import draw_presence, mixed
from ..fixture_images import write_image
from ..visual_genome import FOLDERS

_SIZES = {"train": 60, "test": 30}
_NUM_SHOWN = 24  # categories that pictures show, the last third of them beyond the smaller size


def write_vg_fixture(root: Path, num_categories: int) -> None:
    """Write two lists, the label file of one size, and the pictures."""
    numbers = [*range(0, 192, 12), *range(200, 500, 38)][:_NUM_SHOWN]
    labels: dict[str, list[int]] = {"2300001.jpg": [numbers[0]]}  # on no list
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for place, (split, size) in enumerate(_SIZES.items()):
        names = []
        for row, present in enumerate(draw_presence(size, [18] * _NUM_SHOWN, seed=size)):
            name = f"{2_390_000 + 1000 * place + 3 * row}.jpg" if row % 7 else f"{100 * (place + 1) + row}.jpg"
            chosen = [numbers[shown] for shown in present if numbers[shown] < num_categories]
            labels[name] = chosen + chosen[:1] if row % 5 == 0 else chosen
            write_image(root / FOLDERS[row % 3 == 0] / name, present, seed=500 * place + row)
            names.append(name)
        order = mixed([{"name": name} for name in names])
        (root / f"{split}_list_500.txt").write_text("\n".join(entry["name"] for entry in order))
    (root / f"vg_category_{num_categories}_labels_index.json").write_text(json.dumps(labels))

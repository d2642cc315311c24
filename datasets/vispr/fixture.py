"""A small imitation of VISPR.

What makes real files awkward is in it: attributes that occur in no image of a split, or in none at all, paths as on the
authors' disk, files of more keys than are read, and a photograph that is listed as safe.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..coco.fixture import draw_presence
from ..fixture_images import write_image

_SIZES = {"train": 60, "test": 30}
_USED = 12  # attributes that occur, a0_safe not counted
_ONLY_IN_TRAIN = 7


def write_vispr_fixture(root: Path, attributes: Sequence[str]) -> None:
    """Write pictures and a JSON file beside each."""
    for split, size in _SIZES.items():
        folder = f"{split}2017"
        for row, drawn in enumerate(draw_presence(size, [20] * _USED, seed=size)):
            present = [number for number in drawn if split == "train" or number != _ONLY_IN_TRAIN]
            name = f"2017_{10_000_000 + 1000 * size + 37 * row}"
            write_image(root / folder / f"{name}.jpg", present, seed=100 * size + row)
            content = {
                "id": name,
                "image_path": f"images/{folder}/{name}.jpg",
                "labels": [attributes[3 * number + 1] for number in present] or ["a0_safe"],
                "openimages_id": f"{row:016x}",
                "safe": not present,
            }
            (root / folder / f"{name}.json").write_text(json.dumps(content))

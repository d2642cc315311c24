"""A small imitation of CUB-200-2011 with its attributes.

What makes real files awkward is in it: lines with words too many, attributes that are not visible, certainty that says
nothing of a present one, `attributes.txt` beside the folder and not in it.
"""

from __future__ import annotations

from pathlib import Path

from ..coco.fixture import draw_presence
from ..fixture_images import write_image

_SIZES = {"1": 60, "0": 30}  # by what train_test_split.txt says
_NUM_ATTRIBUTES = 24


def write_cub_fixture(root: Path) -> None:
    """Write four text files and the pictures."""
    folder = root / "CUB_200_2011"
    (folder / "attributes").mkdir(parents=True, exist_ok=True)
    names = [f"{number} has_part_{number}::colour_{number % 5}\n" for number in range(1, _NUM_ATTRIBUTES + 1)]
    (root / "attributes.txt").write_text("".join(names))
    images: list[str] = []
    splits: list[str] = []
    labels: list[str] = []
    for is_train, size in _SIZES.items():
        for row, present in enumerate(draw_presence(size, [20] * _NUM_ATTRIBUTES, seed=200 + size)):
            number = len(images) + 1
            bird = f"{row % 3 + 1:03d}.Some_Bird/Some_Bird_{number:04d}.jpg"
            write_image(folder / "images" / bird, present, seed=number)
            images.append(f"{number} {bird}\n")
            splits.append(f"{number} {is_train}\n")
            for column in range(_NUM_ATTRIBUTES):
                is_present = int(column in present)
                certainty = 1 if not is_present and (number + column) % 11 == 0 else 3 + column % 2
                extra = " 0" if number == 5 else ""  # as in some lines of the published file
                labels.append(f"{number} {column + 1} {is_present} {certainty} {column % 7}.25{extra}\n")
    (folder / "images.txt").write_text("".join(images))
    (folder / "train_test_split.txt").write_text("".join(splits))
    (folder / "attributes" / "image_attribute_labels.txt").write_text("".join(labels))

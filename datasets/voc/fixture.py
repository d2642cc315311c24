"""A small imitation of Pascal VOC as it is published.

What makes real files awkward is in it: two blanks before a 1, difficult labels (0), images of no class, and images in
`JPEGImages` that no list names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..coco.fixture import draw_presence
from ..fixture_images import write_image

_PERCENTS = [12] * 14 + [45] + [12] * 5  # person is the fifteenth


def write_voc_fixture(folder: Path, sizes: Mapping[str, int], classes: Sequence[str]) -> None:
    """Write lists and pictures into `folder`, which is the year's own.

    Args:
        folder: `VOCdevkit/VOCYEAR`.
        sizes: number of images by split.
        classes: [C] names, whose files are written.
    """
    (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    for number, (part, size) in enumerate(sizes.items()):
        first = 900_001 + 1000 * number
        names = [f"{first + row:06d}" for row in range(size)]
        presence = draw_presence(size, _PERCENTS, seed=first + size)
        for row, present in enumerate(presence):
            write_image(folder / "JPEGImages" / f"{names[row]}.jpg", present, seed=first + row)
        write_image(folder / "JPEGImages" / f"{names[-1][:-2]}99.jpg", [], seed=first)  # on no list
        (folder / "ImageSets" / "Main" / f"{part}.txt").write_text("".join(f"{name}\n" for name in names))
        for column, name in enumerate(classes):
            values = [1 if column in present else -1 for present in presence]
            for row in range(column % 7, size, 29):
                values[row] = 0 if row else values[row]
            lines = [f"{image} {value:2d}\n" for image, value in zip(names, values, strict=True)]
            (folder / "ImageSets" / "Main" / f"{name}_{part}.txt").write_text("".join(lines))

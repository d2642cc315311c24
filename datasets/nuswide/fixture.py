"""Small imitations of the three versions of NUS-WIDE."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..coco.fixture import draw_presence
from ..fixture_images import write_image

_SIZES = {"train": 60, "test": 30}
_PERCENTS = [25] * 12


def write_official(root: Path) -> None:
    """Write lists with backslashes, a file for each of 12 concepts, and folders in lower case."""
    concepts = [f"concept{number}" for number in range(len(_PERCENTS))]
    (root / "imagelist").mkdir(parents=True)
    (root / "groundtruth" / "TrainTestLabels").mkdir(parents=True)
    (root / "Concepts81.txt").write_text("".join(f"{name}\r\n" for name in concepts))
    for split, size in _SIZES.items():
        presence, names = draw_presence(size, _PERCENTS, seed=size), []
        for row, present in enumerate(presence):
            folder = ("actor", "zebra")[row % 2]
            names.append(f"{folder}\\{row:04d}_{size}{row}.jpg")
            write_image(root / "flickr" / folder / names[-1].partition("\\")[2], present, seed=100 * size + row)
        (root / "imagelist" / f"{split.capitalize()}Imagelist.txt").write_text("".join(f"{name}\n" for name in names))
        for column, concept in enumerate(concepts):
            path = root / "groundtruth" / "TrainTestLabels" / f"Labels_{concept}_{split.capitalize()}.txt"
            path.write_text("".join(f"{int(column in present)}\n" for present in presence))


def write_arrays(root: Path, num_concepts: int) -> None:
    """Write arrays of names and of labels; the first image of each split shows none of the concepts."""
    for split, size in _SIZES.items():
        labels, names = np.zeros((size, num_concepts)), []
        for row, present in enumerate(draw_presence(size, _PERCENTS, seed=size)):
            names.append(f"{size}{row}.jpg")
            labels[row, present] = 1
            write_image(root / "Flickr" / names[-1], present, seed=100 * size + row)
        part = "train" if split == "train" else "val"
        np.save(root / f"formatted_{part}_images.npy", np.array(names))
        np.save(root / f"formatted_{part}_labels.npy", labels)


def write_lists(root: Path) -> None:
    """Write two lists of images that show a concept."""
    for split, size in _SIZES.items():
        lines = []
        for row, present in enumerate(draw_presence(size + 1, _PERCENTS, seed=size)[1:]):
            shown = present or [row % len(_PERCENTS)]
            name = f"{row:03d}_{size}{row}_m.jpg"
            write_image(root / "images" / name, shown, seed=100 * size + row)
            lines.append(f"{name},{' '.join(map(str, shown))}\n")
        (root / f"nus_{'train' if split == 'train' else 'val'}.txt").write_text("".join(lines))

"""A small imitation of COCO as it is published: its folders, names and keys, and pictures that a network can learn.

What makes real files hard is in it: category ids with gaps, images in no order, an image without annotation, several
annotations of one class in an image, crowds with run-length masks. The pieces serve LVIS too, which shares the layout.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plbench.api import DataError

from ..fixture_images import SIDE, box, write_image

SIZES = {"train": 60, "val": 30}

# id, name, supercategory, per cent of the images
_CLASSES = (
    (1, "person", "person", 60),
    (3, "car", "vehicle", 40),
    (17, "cat", "animal", 30),
    (18, "dog", "animal", 25),
    (44, "bottle", "kitchen", 20),
    (53, "apple", "food", 15),
    (62, "chair", "furniture", 12),
    (90, "toothbrush", "indoor", 10),
)
_FIRST_IMAGE = {2014: 914_000_000, 2017: 917_000_000}  # above COCO's own, so that no photograph is written over

Json = dict[str, Any]


def write_coco_fixture(root: Path, year: int) -> None:
    """Write both splits of a year.

    Raises:
        DataError: if other annotations of these names lie there.
    """
    documents: dict[str, Json] = {}
    pictures: dict[str, Sequence[int]] = {}
    percents = [percent for *_, percent in _CLASSES]
    for split, size in SIZES.items():
        folder = f"{split}{year}"
        prefix = f"COCO_{folder}_" if year == 2014 else ""
        presence = draw_presence(size, percents, seed=year + size)
        ids = image_ids(_FIRST_IMAGE[year] + 100_000 * (split == "val"), size)
        names = [f"{prefix}{identity:012d}.jpg" for identity in ids]
        documents[f"annotations/instances_{folder}.json"] = _document(presence, ids, names, folder)
        pictures |= {f"{folder}/{name}": shown for name, shown in zip(names, presence, strict=True)}
    write_files(root, documents, pictures)


def _document(presence: Sequence[Sequence[int]], ids: Sequence[int], names: Sequence[str], folder: str) -> Json:
    annotations: list[Json] = []
    for row, shown in enumerate(presence):
        for number in shown:
            for copy in range(1 + (row + number) % 3 // 2):  # two of a class in every third image
                entry = annotation(len(annotations) + 1, ids[row], _CLASSES[number][0], number)
                is_crowd = (row + number) % 5 == 0 and copy == 0
                mask = {"segmentation": {"counts": [SIDE * SIDE - 40, 40], "size": [SIDE, SIDE]}} if is_crowd else {}
                annotations.append({**entry, **mask, "iscrowd": int(is_crowd)})
    images = [{**image(identity, folder, name), "file_name": name} for identity, name in zip(ids, names, strict=True)]
    return {
        "info": {"description": "An imitation of COCO for tests, drawn by plbench", "version": "1.0"},
        "licenses": LICENCES,
        "images": mixed(images),
        "annotations": mixed(annotations),
        "categories": [{"supercategory": above, "id": identity, "name": name} for identity, name, above, _ in _CLASSES],
    }


LICENCES = [{"id": 7, "name": "No known copyright restrictions", "url": "http://flickr.com/commons/usage/"}]


def draw_presence(num_images: int, percents: Sequence[int], seed: int) -> list[list[int]]:
    """Return the classes in each image; image 0 has none, and the next ones have one each for certain.

    Args:
        percents: [C] how often each class is in an image.
    """
    dice = np.random.PCG64(seed).random_raw(num_images * len(percents)) % 100
    present = dice.reshape(num_images, -1) < np.array(percents, np.uint64)
    present[0] = False
    present[1 + np.arange(len(percents)), np.arange(len(percents))] = True
    return [np.flatnonzero(row).tolist() for row in present]


def image_ids(first: int, number: int) -> list[int]:
    """Return ids with gaps."""
    return [first + 7 * row + row * row % 5 for row in range(number)]


def image(identity: int, folder: str, name: str) -> Json:
    """Return what COCO and LVIS both say of an image."""
    return {
        "license": 7,
        "coco_url": f"http://images.cocodataset.org/{folder}/{name}",
        "height": SIDE,
        "width": SIDE,
        "date_captured": "2013-11-14 11:18:45",
        "flickr_url": f"http://farm1.staticflickr.com/{identity}_z.jpg",
        "id": identity,
    }


def annotation(identity: int, image_id: int, category_id: int, number: int) -> Json:
    """Return what COCO and LVIS both say of an object; its polygon goes around the place of class `number`."""
    left, top, wide, high = box(number)
    return {
        "segmentation": [[left, top, left + wide, top, left + wide, top + high, left, top + high]],
        "area": float(wide * high),
        "image_id": image_id,
        "bbox": [left, top, wide, high],
        "category_id": category_id,
        "id": identity,
    }


def mixed(entries: Sequence[Json]) -> list[Json]:
    """Return the entries in an order that follows no id."""
    keys = np.random.PCG64(len(entries)).random_raw(len(entries))
    return [entries[row] for row in np.argsort(keys, kind="stable")]


def write_files(root: Path, documents: Mapping[str, Json], pictures: Mapping[str, Sequence[int]]) -> None:
    """Write annotation files and the pictures of the classes in each image, at paths relative to the root.

    Raises:
        DataError: if other annotations of these names lie there.
    """
    texts = {root / path: json.dumps(content).encode() for path, content in documents.items()}
    for path, text in texts.items():
        if path.exists() and path.read_bytes() != text:
            raise DataError(f"{path} already exists and is not part of a fixture; give an empty folder")
    for seed, (name, shown) in enumerate(pictures.items()):
        write_image(root / name, shown, seed)
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)

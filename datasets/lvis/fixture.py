"""A small imitation of LVIS as it is published, and pictures that a network can learn.

What makes real files hard is in it: classes of all three frequencies, verified absent ones, ones whose objects are
not all marked; val images that lie among COCO's train images (v1); file names of 2014 beside addresses of 2017 (v0.5);
the class of persons under the name `baby`; an image without annotation, and one of which nothing is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ..coco.fixture import (
    LICENCES,
    SIZES,
    Json,
    annotation,
    draw_presence,
    image,
    image_ids,
    mixed,
    write_files,
)

Version = Literal["v1", "v0.5"]

# id, name, synset, frequency, per cent of the images
_CLASSES = (
    (3, "airplane", "airplane.n.01", "f", 40),
    (12, "apple", "apple.n.01", "f", 35),
    (45, "banana", "banana.n.02", "f", 30),
    (139, "bench", "bench.n.01", "c", 25),
    (204, "camera", "camera.n.01", "c", 20),
    (390, "earring", "earring.n.01", "c", 15),
    (557, "hairpin", "hairpin.n.01", "r", 8),
    (793, "baby", "person.n.01", "f", 55),
    (1190, "walrus", "walrus.n.01", "r", 6),
)
_FIRST_IMAGE: dict[Version, int] = {"v1": 921_000_000, "v0.5": 920_500_000}  # above COCO's own


def write_lvis_fixture(root: Path, version: Version) -> None:
    """Write both splits of a version.

    Raises:
        DataError: if other annotations of these names lie there.
    """
    documents: dict[str, Json] = {}
    pictures: dict[str, Sequence[int]] = {}
    percents = [percent for *_, percent in _CLASSES]
    for split, size in SIZES.items():
        presence = [*draw_presence(size - 1, percents, seed=2019 + size), []]
        ids = image_ids(_FIRST_IMAGE[version] + 100_000 * (split == "val"), size)
        in_val = [split == "val" and (version == "v0.5" or row % 3 > 0) for row in range(size)]
        folders = ["val2017" if is_in_val else "train2017" for is_in_val in in_val]
        documents[f"annotations/lvis_{version}_{split}.json"] = _document(presence, ids, folders, version)
        paths = [f"{folder}/{identity:012d}.jpg" for folder, identity in zip(folders, ids, strict=True)]
        pictures |= dict(zip(paths, presence, strict=True))
    for content in documents.values():  # both files count what is in train
        content["categories"] = _categories(documents[f"annotations/lvis_{version}_train.json"])
    write_files(root, documents, pictures)


def _document(presence: Sequence[Sequence[int]], ids: Sequence[int], folders: Sequence[str], version: Version) -> Json:
    images: list[Json] = []
    annotations: list[Json] = []
    for row, (shown, identity, folder) in enumerate(zip(presence, ids, folders, strict=True)):
        absent = [entry[0] for number, entry in enumerate(_CLASSES) if number not in shown and (row + number) % 3 == 0]
        entry = {
            **image(identity, folder, f"{identity:012d}.jpg"),
            "neg_category_ids": absent if row else [],  # nothing is known of image 0
            "not_exhaustive_category_ids": [_CLASSES[number][0] for number in shown if (row + number) % 4 == 0],
        }
        if version == "v0.5":  # where the photograph lay in 2014, which is not where it lies now
            entry["file_name"] = f"COCO_{'val' if row % 2 else 'train'}2014_{identity:012d}.jpg"
        images.append(entry)
        for number in shown:
            for _ in range(1 + (row + number) % 3 // 2):
                annotations.append(annotation(len(annotations) + 1, identity, _CLASSES[number][0], number))
    return {
        "info": {"description": "An imitation of LVIS for tests, drawn by plbench", "version": version},
        "licenses": LICENCES,
        "images": mixed(images),
        "annotations": mixed(annotations),
    }


def _categories(train: Json) -> list[Json]:
    entries = []
    for identity, name, synset, frequency, _ in _CLASSES:
        of_class = [entry["image_id"] for entry in train["annotations"] if entry["category_id"] == identity]
        entries.append(
            {
                "id": identity,
                "name": name,
                "synset": synset,
                "synonyms": [name],
                "def": f"what the {name.replace('_', ' ')} of a picture stands for",
                "frequency": frequency,
                "image_count": len(set(of_class)),
                "instance_count": len(of_class),
            }
        )
    return entries

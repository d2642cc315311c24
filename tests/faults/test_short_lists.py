"""Short files can ask for much: thousands of images and of classes, whose labels together would fill the memory."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from readers import MAKERS, try_reading

MANY = range(1, 6001)


def lines(found: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in found).encode()


def of_coco() -> bytes:
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 8, "height": 8} for n in MANY]
    annotations = [{"id": n, "image_id": n, "category_id": n, "iscrowd": 0} for n in MANY]
    categories = [{"id": n, "name": f"c{n}"} for n in MANY]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories}).encode()


def of_l48(clips: bytes) -> bytes:
    (first, *_) = json.loads(clips)
    return json.dumps([{**first, "id": n} for n in MANY]).encode()


@pytest.mark.parametrize("name", ["cub-attributes", "vireo-food-172", "nus-wide", "l48", "coco"])
def test_they_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("made", "from", "in"):
        (tmp_path / folder).mkdir()
    reader = MAKERS[name](tmp_path / "made")
    monkeypatch.chdir(tmp_path / "from")
    changed = {
        "cub-attributes": lambda: {
            "CUB_200_2011/images.txt": lines(f"{n} a/{n}.jpg" for n in MANY),
            "CUB_200_2011/train_test_split.txt": lines(f"{n} 1" for n in MANY),
            "attributes.txt": lines(f"{n} a{n}" for n in MANY),
        },
        "vireo-food-172": lambda: {
            "SplitAndIngreLabel/TR.txt": lines(f"/1/{n}.jpg" for n in MANY),
            "SplitAndIngreLabel/IngredientList.txt": lines(f"c{n}" for n in MANY),
        },
        "nus-wide": lambda: {"Concepts81.txt": lines(f"c{n}" for n in MANY)},
        "l48": lambda: {
            "clips.json": of_l48(reader.files["clips.json"]),
            "taxa.csv": reader.files["taxa.csv"] + lines(f"x{n},Genus x{n},The x{n}" for n in MANY),
        },
        "coco": lambda: {"annotations/instances_train2017.json": of_coco()},
    }[name]()
    assert {*changed} <= {*reader.files}
    assert try_reading(reader, {**reader.files, **changed}, tmp_path / "in")["refused"]

from __future__ import annotations

import copy
import json
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plbench.datasets.coco import Coco2014, Coco2017
from plbench.errors import DataError
from plbench.protocol import is_official

MINI = Path(__file__).parents[3] / "shared" / "data" / "coco-mini"
CATEGORIES = {3: "bird", 7: "cat", 20: "dog", 21: "cow", 90: "hair drier"}
PRESENT = {11: {3, 90}, 2: {20}, 40: {7, 3, 21}, 5: set(), 700: {90}}  # by image id; 5 has no annotation

Document = dict[str, Any]


def document(present: dict[int, set[int]] = PRESENT) -> Document:
    """An annotation file with entries in an order of no meaning, annotations repeated, one of them a crowd."""
    annotations = [
        {"id": 10 * image + i, "image_id": image, "category_id": category, "iscrowd": i % 2, "bbox": [1, 2, 3, 4]}
        for image, categories in present.items()
        for i, category in enumerate([*categories, *categories])
    ]
    images = [{"id": image, "file_name": f"{image:012d}.jpg", "width": 32, "height": 32} for image in present]
    categories = [{"id": identity, "name": name, "supercategory": "any"} for identity, name in CATEGORIES.items()]
    for entries in (annotations, images, categories):
        random.Random(0).shuffle(entries)
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def write(root: Path, train: Any, test: Any = None, year: int = 2017) -> Coco2017 | Coco2014:
    """A COCO folder whose images are empty files: reading labels opens none. `train` may be bytes or a document."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for split, content in (("train", train), ("val", document() if test is None else test)):
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        (root / "annotations" / f"instances_{split}{year}.json").write_bytes(raw)
        (root / f"{split}{year}").mkdir(exist_ok=True)
        for image in PRESENT:
            (root / f"{split}{year}" / f"{image:012d}.jpg").write_bytes(b"pixels")
    return (Coco2014 if year == 2014 else Coco2017)(root)


def test_classes_are_ranks_of_ids_and_images_come_by_id(tmp_path: Path) -> None:
    split = write(tmp_path, document()).split("train")
    assert split.labels.class_ids == ("3", "7", "20", "21", "90")
    assert split.labels.class_names == ("bird", "cat", "dog", "cow", "hair drier")
    assert split.images.ids == ("2", "11", "40", "700")  # 5 has no annotation
    expected = [[-1, -1, 1, -1, -1], [1, -1, -1, -1, 1], [1, 1, -1, 1, -1], [-1, -1, -1, -1, 1]]
    assert split.labels.rows(np.arange(4)).tolist() == expected
    assert split.labels.is_complete


def test_polygons_are_not_needed_and_change_nothing(tmp_path: Path) -> None:
    with_polygons = document()
    for annotation in with_polygons["annotations"]:
        annotation["segmentation"] = [[0.5, 1.5] * 50]
    with_polygons["annotations"][0]["segmentation"] = {"counts": [1, 2, {"deep": []}], "size": [32, 32]}
    split = write(tmp_path, with_polygons, document()).split("train")
    assert split.labels.fingerprint() == Coco2017(tmp_path).split("test").labels.fingerprint()


@pytest.mark.parametrize(("kind", "year"), [(Coco2014, 2014), (Coco2017, 2017)])
def test_each_year_has_its_own_files(kind: type[Coco2014], year: int, tmp_path: Path) -> None:
    names = [f"annotations/instances_{split}{year}.json" for split in ("train", "val")]
    folders = [f"{split}{year}" for split in ("train", "val")]
    assert sorted(kind(tmp_path).missing()) == sorted(names + folders)
    assert str(tmp_path) in kind(tmp_path).fetch_hint()
    dataset = write(tmp_path, document(), year=year)
    assert type(dataset) is kind and dataset.missing() == []
    assert dataset.split("train").images.name(0) == str(tmp_path / f"train{year}" / "000000000002.jpg")
    assert dataset.split("test").images.name(0) == str(tmp_path / f"val{year}" / "000000000002.jpg")
    (tmp_path / names[1]).unlink()
    assert kind(tmp_path).missing() == [names[1]]


def test_a_file_name_of_2014_is_taken_as_it_stands(tmp_path: Path) -> None:
    named = document()
    for image in named["images"]:
        image["file_name"] = f"COCO_train2014_{image['id']:012d}.jpg"
    images = write(tmp_path, named, year=2014).split("train").images
    assert images.name(0).endswith("train2014/COCO_train2014_000000000002.jpg")


def test_there_is_no_third_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has splits train, test, not 'val'"):
        write(tmp_path, document()).split("val")


def test_the_fingerprint_follows_annotations_and_sizes_of_images(tmp_path: Path) -> None:
    first = write(tmp_path / "a", document()).fingerprint()
    assert write(tmp_path / "b", document()).fingerprint() == first  # wherever the files lie
    (tmp_path / "b" / "train2017" / "unused.jpg").write_bytes(b"not annotated")
    assert Coco2017(tmp_path / "b").fingerprint() == first
    seen = {first}
    for split in ("train", "val"):
        image = tmp_path / "b" / f"{split}2017" / f"{700:012d}.jpg"
        image.write_bytes(b"other pixels")
        seen.add(Coco2017(tmp_path / "b").fingerprint())
        image.unlink()
        seen.add(Coco2017(tmp_path / "b").fingerprint())
    changed = document()
    changed["annotations"][0]["category_id"] = 21
    seen.add(write(tmp_path / "a", changed).fingerprint())
    seen.add(write(tmp_path / "a", document(), changed).fingerprint())
    assert len(seen) == 7


def test_a_small_copy_is_not_the_official_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write(tmp_path, document())
    assert not is_official(dataset, dataset.protocols[0])
    monkeypatch.setattr(Coco2017, "official_num_images", {"train": 4, "test": 4})
    assert is_official(dataset, dataset.protocols[0])


def test_the_official_counts_are_those_of_the_annotated_images() -> None:
    assert Coco2014.official_num_images == {"train": 82081, "test": 40137}
    assert Coco2017.official_num_images == {"train": 117266, "test": 4952}


def changed(change: Callable[[Document], Any]) -> Document:
    content = copy.deepcopy(document())
    change(content)
    return content


def set_field(section: str, name: str, value: Any) -> Callable[[Document], Any]:
    return lambda content: content[section][0].__setitem__(name, value)


WHOLE = json.dumps(document()).encode()
BROKEN: dict[str, tuple[Any, str]] = {
    "truncated": (WHOLE[: len(WHOLE) // 2], "truncated"),
    "empty file": (b"", "not valid JSON at line 1"),
    "binary": (b"\x89PNG\r\n\x1a\n\x00\xff", "not valid JSON"),
    "UTF-16": (json.dumps(document()).encode("utf-16"), "not valid JSON"),
    "Latin-1": (WHOLE.replace(b"hair drier", b"s\xe8che-cheveux"), "not valid JSON"),
    "10,000 levels": (b"[" * 10_000 + b"]" * 10_000, "not valid JSON"),
    "10,000 levels of objects": (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "not valid JSON"),
    "number of 5,000 digits": (WHOLE.replace(b'"id": 700', b'"id": ' + b"7" * 5000), "not valid JSON"),
    "list": ([document()], "holds a JSON list"),
    "null": (b"null", "holds a JSON NoneType"),
    "no images": (changed(lambda c: c.pop("images")), "no list 'images'"),
    "no annotations": (changed(lambda c: c.pop("annotations")), "no list 'annotations'"),
    "no categories": (changed(lambda c: c.pop("categories")), "no list 'categories'"),
    "images no list": (changed(lambda c: c.update(images={"a": 1})), "no list 'images'"),
    "image without id": (changed(lambda c: c["images"][0].pop("id")), r"images\[0\] has no 'id'"),
    "image without file": (changed(lambda c: c["images"][0].pop("file_name")), r"images\[0\] has no 'file_name'"),
    "annotation without image": (changed(lambda c: c["annotations"][2].pop("image_id")), r"annotations\[2\]"),
    "category without name": (changed(lambda c: c["categories"][1].pop("name")), r"categories\[1\] has no 'name'"),
    "entry is text": (changed(lambda c: c["images"].append("x")), r"images\[5\] is a str"),
    "entry is null": (changed(lambda c: c["annotations"].append(None)), r"annotations\[\d+\] is a NoneType"),
    "id is text": (changed(set_field("images", "id", "11")), r"images\[0\]: id = '11'"),
    "id is null": (changed(set_field("categories", "id", None)), r"categories\[0\]: id = None"),
    "id is a list": (changed(set_field("annotations", "image_id", [1])), r"annotations\[0\]: image_id = \[1\]"),
    "id is NaN": (changed(set_field("annotations", "category_id", float("nan"))), "category_id = nan"),
    "file is a number": (changed(set_field("images", "file_name", 7)), r"images\[0\]: file_name = 7"),
    "unknown category": (changed(set_field("annotations", "category_id", 4)), "category_id 4, which the file does not"),
    "unknown image": (changed(set_field("annotations", "image_id", 404)), "image_id 404, which the file does not"),
    "image id twice": (changed(lambda c: c["images"].append(c["images"][0])), "image id appears twice"),
    "category id twice": (changed(lambda c: c["categories"].append(c["categories"][0])), "category id appears twice"),
    "file above the folder": (
        changed(set_field("images", "file_name", "../../secret.jpg")),
        "outside the image folder",
    ),
    "file anywhere": (changed(set_field("images", "file_name", "/etc/passwd")), "outside the image folder"),
    "empty annotations": (changed(lambda c: c.update(annotations=[])), "no image has an annotation"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_annotation_file_is_one_sentence_that_names_it(name: str, tmp_path: Path) -> None:
    content, says = BROKEN[name]
    dataset = write(tmp_path, content)
    with pytest.raises(DataError, match=says) as caught:
        dataset.split("train")
    message = str(caught.value)
    assert str(tmp_path / "annotations" / "instances_train2017.json") in message
    assert "\n" not in message and len(message) < 400


def test_an_annotation_file_that_is_a_folder_is_named(tmp_path: Path) -> None:
    dataset = write(tmp_path, document())
    path = tmp_path / "annotations" / "instances_train2017.json"
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=r"instances_train2017\.json cannot be read: Is a directory"):
        dataset.split("train")


@pytest.mark.parametrize("change", ["fewer", "other name"])
def test_both_files_must_have_the_same_categories(change: str, tmp_path: Path) -> None:
    other = document({2: {20}, 11: {3}})
    if change == "fewer":
        other["categories"] = [category for category in other["categories"] if category["id"] != 90]
    else:
        other["categories"][0]["name"] = "renamed"
    with pytest.raises(DataError, match=r"instances_val2017.json .* categories than instances_train2017.json"):
        write(tmp_path, document(), other).split("test")


@pytest.mark.skipif(not MINI.is_dir(), reason="needs ../shared/data/coco-mini")
@pytest.mark.parametrize(("split", "file", "num_images"), [("train", "train2017", 103), ("test", "val2017", 102)])
def test_real_annotations_are_read_as_they_stand(split: str, file: str, num_images: int) -> None:
    content = json.loads((MINI / "annotations" / f"instances_{file}.json").read_text())
    images_with: dict[int, set[int]] = defaultdict(set)
    for annotation in content["annotations"]:
        images_with[annotation["category_id"]].add(annotation["image_id"])
    found = Coco2017(MINI).split(split)
    assert len(found.images) == num_images == len(set().union(*images_with.values()))
    assert found.labels.num_classes == 80
    positives, negatives = found.labels.counts()
    by_id = {category["id"]: len(images_with[category["id"]]) for category in content["categories"]}
    assert dict(zip(map(int, found.labels.class_ids), positives.tolist(), strict=True)) == by_id
    assert np.all(positives + negatives == num_images)
    names = {str(category["id"]): category["name"] for category in content["categories"]}
    assert dict(zip(found.labels.class_ids, found.labels.class_names, strict=True)) == names
    assert found.images.absent() == []

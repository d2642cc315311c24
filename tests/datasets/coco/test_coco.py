from __future__ import annotations

import copy
import json
import os
import random
import tempfile
import tracemalloc
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_cli import SHORT, plbench

from plbench.datasets.coco import Coco2014, Coco2017
from plbench.datasets.fixture_images import NUM_CLASSES, SIDE, box, draw
from plbench.errors import DataError
from plbench.runs.protocol import is_official

MINI = Path(__file__).parents[4] / "shared" / "data" / "coco-mini"
CATEGORIES = {3: "bird", 7: "cat", 20: "dog", 21: "cow", 90: "hair drier"}
PRESENT = {11: {3, 90}, 2: {20}, 40: {7, 3, 21}, 5: set(), 700: {90}}  # by image id; 5 has no annotation

Document = dict[str, Any]


def quiet(done: int, total: int) -> None:
    """Reports nothing."""


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
    hint = kind(tmp_path).fetch_hint()
    assert str(tmp_path) in hint and f"plbench data download {kind.name}," in hint
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


def test_files_and_categories_whose_names_look_the_same(tmp_path: Path) -> None:
    content = document()
    names = {11: ("caf\u00e9.jpg", "cafe\u0301.JPG"), 2: ("a b.jpg", "a\u00a0b.jpg"), 40: ("x.jpg", "y.jpg")}
    for image in content["images"]:
        image["file_name"] = names.get(image["id"], (image["file_name"],))[0]
    next(c for c in content["categories"] if c["name"] == "cow")["name"] = "ca\u200bt"
    dataset = write(tmp_path, content)
    for _, there in names.values():
        (tmp_path / "train2017" / there).write_bytes(b"pixels")
    images = dataset.split("train").images
    assert [images.ids[row] for row in images.absent()] == ["40"]  # of another name
    assert images.read(list(images.ids).index("11")) == b"pixels"
    assert "'cat' and 'ca\\u200bt' look the same" in " ".join(dataset.notes()["train"])


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
    assert not is_official(dataset, dataset.protocols[0])  # as many images, but not of 80 classes
    monkeypatch.setattr(Coco2017, "official_num_classes", dataset.split("train").labels.num_classes)
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
    "truncated": (WHOLE[: len(WHOLE) // 2], "as JSON: .* truncated; .* plbench data download coco2017"),
    "empty file": (b"", "is empty; .* plbench data download coco2017"),
    "binary": (b"\x89PNG\r\n\x1a\n\x00\xff", r"as JSON: .* invalid character \(byte 0\); .* plbench data"),
    "UTF-16": (json.dumps(document()).encode("utf-16"), r"as JSON: .* \(byte 0\)"),
    "UTF-16 without a mark": (json.dumps(document()).encode("utf-16-be"), r"as JSON: .* \(byte 0\)"),
    "Latin-1": (
        WHOLE.replace(b"hair drier", b"s\xe8che-cheveux"),
        "as JSON: ('utf-8' codec can't decode byte 0xe8|Invalid UTF-8)",
    ),
    "10,000 levels": (b"[" * 10_000 + b"]" * 10_000, ": Expected `object`, got `array`"),
    "10,000 levels of objects": (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "as JSON: .* recursion depth"),
    "10,000 levels in a key that is not read": (
        WHOLE.replace(b'"iscrowd": 0', b'"segmentation": ' + b"[" * 10_000 + b"]" * 10_000, 1),
        "as JSON: .* recursion depth",
    ),
    "two documents": (WHOLE + WHOLE, r"as JSON: .* trailing characters \(byte \d+\)"),
    "number of 5,000 digits": (
        WHOLE.replace(b'"id": 700', b'"id": ' + b"7" * 5000),
        r"Integer value out of range - at `\$\.images\[3\]\.id`",
    ),
    "list": ([document()], ": Expected `object`, got `array`"),
    "null": (b"null", ": Expected `object`, got `null`"),
    "no images": (changed(lambda c: c.pop("images")), ": Object missing required field `images`"),
    "no annotations": (changed(lambda c: c.pop("annotations")), ": Object missing required field `annotations`"),
    "no categories": (changed(lambda c: c.pop("categories")), ": Object missing required field `categories`"),
    "images no list": (
        changed(lambda c: c.update(images={"a": 1})),
        r"Expected `array`, got `object` - at `\$\.images`",
    ),
    "image without id": (changed(lambda c: c["images"][0].pop("id")), r"required field `id` - at `\$\.images\[0\]`"),
    "image without file": (
        changed(lambda c: c["images"][0].pop("file_name")),
        r"required field `file_name` - at `\$\.images\[0\]`",
    ),
    "annotation without image": (changed(lambda c: c["annotations"][2].pop("image_id")), r"annotations\[2\]"),
    "category without name": (
        changed(lambda c: c["categories"][1].pop("name")),
        r"required field `name` - at `\$\.categories\[1\]`",
    ),
    "entry is text": (
        changed(lambda c: c["images"].append("x")),
        r"Expected `object`, got `str` - at `\$\.images\[5\]`",
    ),
    "entry is null": (
        changed(lambda c: c["annotations"].append(None)),
        r"Expected `object`, got `null` - at `\$\.annotations\[\d+\]`",
    ),
    "id is text": (changed(set_field("images", "id", "11")), r"Expected `int`, got `str` - at `\$\.images\[0\]\.id`"),
    "id is null": (
        changed(set_field("categories", "id", None)),
        r"Expected `int`, got `null` - at `\$\.categories\[0\]\.id`",
    ),
    "id is a list": (
        changed(set_field("annotations", "image_id", [1])),
        r"Expected `int`, got `array` - at `\$\.annotations\[0\]\.image_id`",
    ),
    "id is NaN": (
        changed(set_field("annotations", "category_id", float("nan"))),
        r"as JSON: .* invalid character \(byte \d+\)",
    ),
    "file is a number": (
        changed(set_field("images", "file_name", 7)),
        r"Expected `str`, got `int` - at `\$\.images\[0\]\.file_name`",
    ),
    "unknown category": (
        changed(set_field("annotations", "category_id", 4)),
        r"annotations\[0\]\.category_id = 4, but no entry",
    ),
    "unknown image": (
        changed(set_field("annotations", "image_id", 404)),
        r"annotations\[0\]\.image_id = 404, but no entry",
    ),
    "image id twice": (
        changed(lambda c: c["images"].append(c["images"][0])),
        r"images\[5\]\.id = 40 is that of images\[0\] too",
    ),
    "category id twice": (
        changed(lambda c: c["categories"].append(c["categories"][0])),
        r"categories\[5\]\.id = 20 is that of",
    ),
    "file above the folder": (
        changed(set_field("images", "file_name", "../../secret.jpg")),
        r"images\[0\]\.file_name = '../../secret.jpg' does not name a file inside",
    ),
    "file anywhere": (
        changed(set_field("images", "file_name", "/etc/passwd")),
        "'/etc/passwd' does not name a file inside",
    ),
    "file of no name": (changed(set_field("images", "file_name", "")), "'' does not name a file inside"),
    "file name with a NUL": (changed(set_field("images", "file_name", "a\0.jpg")), "does not name a file inside"),
    "file with backslashes": (changed(set_field("images", "file_name", "..\\\\x.jpg")), "does not name a file inside"),
    "empty images": (changed(lambda c: c.update(images=[])), "images is an empty list"),
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


@pytest.mark.parametrize(
    "change",
    ["fewer", "other name"],
)
def test_both_files_must_have_the_same_categories(change: str, tmp_path: Path) -> None:
    other = document({2: {20}, 11: {3}})
    if change == "fewer":
        other["categories"] = [category for category in other["categories"] if category["id"] != 90]
    else:
        other["categories"][0]["name"] = "renamed"
    dataset = write(tmp_path, document(), other)
    with pytest.raises(DataError, match=r"files of 'coco2017' in .* other classes for split 'test' than for 'train'"):
        dataset.prepare(quiet)


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


Labels = dict[str, dict[str, int]]  # by image id and class id, where known


def labels_of(dataset: Coco2014, split: str) -> Labels:
    found = dataset.split(split)
    rows, columns, values = (array.tolist() for array in found.labels.cells())
    labels: Labels = {image: {} for image in found.images.ids}
    for row, column, value in zip(rows, columns, values, strict=True):
        labels[found.images.ids[row]][found.labels.class_ids[column]] = value
    return labels


def naive_labels(content: Document) -> Labels:
    """What the file says, an annotation at a time."""
    labels: Labels = {}
    for entry in content["annotations"]:
        row = labels.setdefault(str(entry["image_id"]), {str(c["id"]): -1 for c in content["categories"]})
        row[str(entry["category_id"])] = 1
    return labels


IDS = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 20)


@st.composite
def documents(draw: st.DrawFn) -> Document:
    images = draw(st.lists(IDS, min_size=1, max_size=6, unique=True))
    categories = draw(st.lists(IDS, min_size=1, max_size=6, unique=True))
    cells = st.tuples(st.sampled_from(images), st.sampled_from(categories))
    return {
        "images": [{"id": image, "file_name": f"{number} é.jpg"} for number, image in enumerate(images)],
        "annotations": [
            {"image_id": image, "category_id": category, "segmentation": draw(st.just([[1.5]]) | st.none())}
            for image, category in draw(st.lists(cells, min_size=1, max_size=12))
        ],
        "categories": [{"id": category, "name": draw(st.text(max_size=4))} for category in categories],
    }


@settings(max_examples=60, deadline=None)
@given(content=documents(), as_text=st.booleans())
def test_any_file_is_read_as_a_naive_reader_reads_it(content: Document, as_text: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        dataset = write(Path(folder), json.dumps(content, ensure_ascii=as_text).encode())
        found = dataset.split("train")
        expected = naive_labels(content)
        assert labels_of(dataset, "train") == expected
        assert list(found.images.ids) == sorted(expected, key=int)
        categories = sorted(content["categories"], key=lambda category: category["id"])
        assert found.labels.class_ids == tuple(str(category["id"]) for category in categories)
        assert found.labels.class_names == tuple(category["name"] for category in categories)
        names = {str(image["id"]): f"train2017/{image['file_name']}" for image in content["images"]}
        assert list(found.images.paths) == [names[image] for image in found.images.ids]


def test_a_byte_order_mark_is_passed_over_and_said(tmp_path: Path) -> None:
    dataset = write(tmp_path, b"\xef\xbb\xbf" + WHOLE)
    assert labels_of(dataset, "train") == naive_labels(document())
    assert dataset.split("test").labels.is_complete
    assert dataset.notes() == {
        "train": (
            "instances_train2017.json starts with a UTF-8 byte-order mark, which was passed over",
            "1 of 5 images have no annotation and are left out",
        ),
        "test": ("1 of 5 images have no annotation and are left out",),
    }


def test_one_file_under_two_ids_is_said_where_they_agree(tmp_path: Path) -> None:
    content = document({1: {3}, 2: {3}, 3: {7, 20}})
    for entry in content["images"]:
        entry["file_name"] = "same.jpg" if entry["id"] < 3 else "other.jpg"
    dataset = write(tmp_path, content)
    assert len(dataset.split("train").images) == 3
    (note,) = dataset.notes()["train"]
    assert note.startswith("1 image files are listed under more than one id, such as train2017/same.jpg under 1 and 2")


@pytest.mark.parametrize("present", [{1: {3}, 2: {7}}, {1: {3, 7}, 2: {3}}, {5: {20}, 6: {90}, 7: {20}}])
def test_one_file_under_two_ids_is_refused_where_they_disagree(tmp_path: Path, present: dict[int, set[int]]) -> None:
    content = document(present)
    for entry in content["images"]:
        entry["file_name"] = "same.jpg"
    with pytest.raises(DataError, match=r"same file train2017/same\.jpg, which one says to show '.*' and"):
        write(tmp_path, content).split("train")


def test_progress_is_told_in_bytes(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write(tmp_path, document()).prepare(lambda done, total: seen.append((done, total)))
    sizes = [path.stat().st_size for path in sorted((tmp_path / "annotations").iterdir())]
    assert seen == [(0, sizes[0]), (sizes[0], sizes[0]), (0, sizes[1]), (sizes[1], sizes[1])]


@pytest.mark.parametrize("what", ["polygons", "depth"])
def test_a_large_file_takes_little_memory(what: str, tmp_path: Path) -> None:
    heavy = document()
    heavy["annotations"][0]["segmentation"] = "here"
    text = (
        json.dumps([[number / 8 for number in range(2_000_000)]]) if what == "polygons" else "[" * 10**7 + "]" * 10**7
    )
    dataset = write(tmp_path, json.dumps(heavy).replace('"here"', text).encode())
    assert (tmp_path / "annotations" / "instances_train2017.json").stat().st_size > 15e6
    del text
    tracemalloc.start()
    try:
        if what == "polygons":
            assert dataset.split("train").labels.num_images == 4
        else:
            with pytest.raises(DataError, match=r"as JSON: .* recursion depth"):
                dataset.split("train")
        assert tracemalloc.get_traced_memory()[1] < 2e6
    finally:
        tracemalloc.stop()


def test_a_file_is_read_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, document())
    path = tmp_path / "annotations" / "instances_train2017.json"
    os.utime(path, (1e9, 1e9))  # long ago: its sha256 may be noted
    first = Coco2017(tmp_path, cache=tmp_path / "cache").split("train")
    reads: list[str] = []
    read = Coco2017.read
    monkeypatch.setattr(Coco2017, "read", lambda self, split, report: reads.append(split) or read(self, split, report))
    second = Coco2017(tmp_path, cache=tmp_path / "cache").split("train")
    assert reads == [] and second.labels.fingerprint() == first.labels.fingerprint()
    assert second.images.paths == first.images.paths and second.images.ids == first.images.ids
    content = document()
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != 40]
    path.write_text(json.dumps(content))
    third = Coco2017(tmp_path, cache=tmp_path / "cache").split("train")
    assert reads == ["train"] and list(third.images.ids) == ["2", "11", "700"]


class TestFixture:
    @pytest.fixture(params=[Coco2014, Coco2017])
    def dataset(self, request: pytest.FixtureRequest, tmp_path: Path) -> Coco2014:
        dataset: Coco2014 = request.param(tmp_path / "data")
        dataset.make_fixture()
        return dataset

    def content(self, dataset: Coco2014, split: str) -> Document:
        return json.loads(dataset.annotation_files(split)[0].read_text())

    def test_it_is_laid_out_as_coco_is(self, dataset: Coco2014) -> None:
        assert dataset.missing() == []
        for split, folder in (("train", f"train{dataset.year}"), ("test", f"val{dataset.year}")):
            content = self.content(dataset, split)
            assert list(content) == ["info", "licenses", "images", "annotations", "categories"]
            name = "COCO_{}_{:012d}.jpg" if dataset.year == 2014 else "{1:012d}.jpg"
            assert all(entry["file_name"] == name.format(folder, entry["id"]) for entry in content["images"])
            assert all(entry["coco_url"].endswith(f"/{folder}/{entry['file_name']}") for entry in content["images"])
            annotated = {entry["image_id"] for entry in content["annotations"]}
            assert len(content["images"]) - len(annotated) >= 1  # some image has none
            cells = [(entry["image_id"], entry["category_id"]) for entry in content["annotations"]]
            assert len(set(cells)) < len(cells)  # some class more than once
            crowds = [entry for entry in content["annotations"] if entry["iscrowd"]]
            assert crowds and all(set(entry["segmentation"]) == {"counts", "size"} for entry in crowds)
            found = dataset.split(split)
            assert found.images.absent() == []
            assert found.images.load(0).size == (SIDE, SIDE)

    def test_figures_are_those_of_the_json(self, dataset: Coco2014) -> None:
        assert dataset.used_splits() == ("train", "test")
        for split in ("train", "test"):
            labels = dataset.split(split).labels
            content = self.content(dataset, split)
            images_with = {
                category["id"]: len(
                    {a["image_id"] for a in content["annotations"] if a["category_id"] == category["id"]}
                )
                for category in content["categories"]
            }
            assert labels_of(dataset, split) == naive_labels(content)
            positives, negatives = labels.counts()
            assert positives.tolist() == [images_with[int(identity)] for identity in labels.class_ids]
            assert (positives + negatives).tolist() == [labels.num_images] * 8 and labels.density == 1
            assert positives.min() > 0 and negatives.min() > 0

    def test_it_is_the_same_every_time(self, dataset: Coco2014, tmp_path: Path) -> None:
        other = type(dataset)(tmp_path / "other")
        other.make_fixture()
        other.make_fixture()
        files = [
            {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
            for root in (dataset.root, other.root)
        ]
        assert files[0] == files[1] and len(files[0]) == 92

    def test_it_is_not_written_over_a_persons_files(self, dataset: Coco2014) -> None:
        path = dataset.annotation_files("test")[0]
        path.write_text("{}")
        with pytest.raises(DataError, match="already exists and is not part of a fixture; give an empty folder"):
            dataset.make_fixture()
        assert path.read_text() == "{}"

    def test_pictures_show_their_classes(self) -> None:
        marks = [np.asarray(draw([number], 3)) for number in range(NUM_CLASSES)]
        assert len({mark.tobytes() for mark in marks}) == NUM_CLASSES
        empty = np.asarray(draw([], 3))
        for number, mark in enumerate(marks):
            left, top, wide, high = box(number)
            changed = np.argwhere((mark != empty).any(axis=2))
            assert len(changed) > 50
            assert changed.min(axis=0).tolist() >= [top, left] and changed.max(axis=0).tolist() < [
                top + high,
                left + wide,
            ]
        with pytest.raises(ValueError, match="no mark for class 48"):
            draw([0, 48], 3)
        assert isinstance(draw([1], 0), Image.Image)


@pytest.mark.slow
@pytest.mark.parametrize("regime", ["probe", "finetune"])
@pytest.mark.parametrize("name", ["coco", "coco2017"])
def test_a_run_on_the_fixture(name: str, regime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLBENCH_CACHE", str(tmp_path / "cache"))
    kind = {"coco": Coco2014, "coco2017": Coco2017}[name]
    kind(tmp_path / "data").make_fixture()
    where = ["--dataset", name, "--data-root", tmp_path / "data", "--runs", tmp_path / "runs"]
    record = plbench("run", "--method", "selective", *where, *SHORT, "--regime", regime, "--json").json
    assert record["status"] == "done" and record["spec"]["protocol"]["name"] == f"custom/{name}-fpc1000"
    test = record["metrics"]["test"]
    assert test["num_classes_scored"] == 8 and 0 < test["map_c"]["value"] <= 100

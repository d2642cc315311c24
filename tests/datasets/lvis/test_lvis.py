from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import SHORT, plbench

from plbench.datasets.lvis import Lvis, LvisV05
from plbench.errors import DataError
from plbench.runs.protocol import is_official

Document = dict[str, Any]
Labels = dict[str, dict[str, int]]  # by image id and class id, where known

KINDS = [Lvis, LvisV05]
CATEGORIES = [  # in no order; as text, 10 would come before 2
    (10, "hairpin", "hairpin.n.01", "r"),
    (793, "baby", "person.n.01", "f"),
    (2, "apple", "apple.n.01", "f"),
    (100, "bench", "bench.n.01", "c"),
]


def image(identity: int, negatives: list[int], not_exhaustive: list[int], folder: str = "train2017") -> Document:
    address = f"http://images.cocodataset.org/{folder}/{identity:012d}.jpg"
    return {
        "id": identity,
        "coco_url": address,
        "neg_category_ids": negatives,
        "not_exhaustive_category_ids": not_exhaustive,
    }


def document() -> Document:
    """Image 40 has apple twice and person not exhaustively; 7 only absent classes; 500 nothing that is known."""
    return {
        "info": {},
        "images": [image(40, [10], [793]), image(500, [], []), image(7, [793, 2], [])],
        "annotations": [
            {"id": 1, "image_id": 40, "category_id": 2, "segmentation": [[1.5, 2.5]]},
            {"id": 2, "image_id": 40, "category_id": 793},
            {"id": 3, "image_id": 40, "category_id": 2},
        ],
        "categories": [
            {"id": identity, "name": name, "synset": synset, "frequency": frequency}
            for identity, name, synset, frequency in CATEGORIES
        ],
    }


def write(root: Path, train: Any, test: Any = None, kind: type[Lvis] | type[LvisV05] = Lvis) -> Lvis | LvisV05:
    """An LVIS folder without images: reading labels opens none. `train` may be bytes or a document."""
    dataset = kind(root)
    for split, content in (("train", train), ("test", document() if test is None else test)):
        path = dataset.annotation_files(split)[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return dataset


def labels_of(dataset: Lvis | LvisV05, split: str = "train") -> Labels:
    found = dataset.split(split)
    rows, columns, values = (array.tolist() for array in found.labels.cells())
    labels: Labels = {identity: {} for identity in found.images.ids}
    for row, column, value in zip(rows, columns, values, strict=True):
        labels[found.images.ids[row]][found.labels.class_ids[column]] = value
    return labels


def naive_labels(content: Document) -> Labels:
    """What the file says, an entry at a time."""
    labels: Labels = {str(entry["id"]): {} for entry in content["images"]}
    for entry in content["images"]:
        labels[str(entry["id"])] |= {str(category): -1 for category in entry["neg_category_ids"]}
    for entry in content["annotations"]:
        labels[str(entry["image_id"])][str(entry["category_id"])] = 1
    return labels


class TestWhatTheFilesMean:
    def test_annotated_is_present_searched_in_vain_is_absent_the_rest_is_unknown(self, tmp_path: Path) -> None:
        labels = labels_of(write(tmp_path, document()))
        assert labels == {"7": {"2": -1, "793": -1}, "40": {"2": 1, "10": -1, "793": 1}, "500": {}}

    def test_images_without_annotation_count(self, tmp_path: Path) -> None:
        found = write(tmp_path, document()).split("train")
        assert found.images.ids == ("7", "40", "500") and found.labels.density == 5 / 12

    def test_not_exhaustive_stays_present(self, tmp_path: Path) -> None:
        assert labels_of(write(tmp_path, document()))["40"]["793"] == 1

    def test_not_exhaustive_without_annotation_says_nothing_and_is_counted(self, tmp_path: Path) -> None:
        loose = document()
        loose["images"][1]["not_exhaustive_category_ids"] = [2, 100, 2]
        dataset = write(tmp_path, loose)
        assert labels_of(dataset) == naive_labels(document())
        assert dataset.notes() == {
            "train": ("2 (image, class) cells are not_exhaustive without an annotation; taken as if they were not",)
        }

    def test_a_class_both_present_and_absent_is_an_error_that_names_both(self, tmp_path: Path) -> None:
        both = document()
        both["images"][0]["neg_category_ids"] = [10, 2]
        says = (
            r"category 2 is among the neg_category_ids of images\[0\] \(id 40\), which has an annotation of it \(1 such"
        )
        with pytest.raises(DataError, match=says) as caught:
            write(tmp_path, both).split("train")
        assert str(tmp_path / "annotations" / "lvis_v1_train.json") in str(caught.value)

    def test_classes_are_ranked_by_number_and_named_as_lvis_names_them(self, tmp_path: Path) -> None:
        labels = write(tmp_path, document()).split("train").labels
        assert labels.class_ids == ("2", "10", "100", "793")
        assert labels.class_names == ("apple", "hairpin", "bench", "baby")

    def test_names_that_look_the_same_are_two_classes_and_noted(self, tmp_path: Path) -> None:
        content = document()
        content["categories"][0]["name"] = "caf\u00e9"
        content["categories"][1]["name"] = "cafe\u0301"
        dataset = write(tmp_path, content, content)
        assert dataset.split("train").labels.num_classes == len(content["categories"])
        assert "look the same and have ids of their own" in " ".join(dataset.notes()["train"])

    def test_groups_by_frequency_and_persons_by_synset(self, tmp_path: Path) -> None:
        dataset = write(tmp_path, document())
        assert dataset.groups() == {
            "rare": ("10",),
            "common": ("100",),
            "frequent": ("2", "793"),
            "person": ("793",),
        }
        assert dataset.notes() == {}

    def test_without_persons_there_is_no_such_group_and_a_note(self, tmp_path: Path) -> None:
        without = document()
        del without["categories"][1]["synset"]
        dataset = write(tmp_path, without)
        assert set(dataset.groups()) == {"rare", "common", "frequent"}
        assert dataset.notes() == {"train": ("no category has the synset person.n.01: there is no group of persons",)}

    def test_the_address_says_where_an_image_lies_and_not_the_name_of_2014(self, tmp_path: Path) -> None:
        named = document()
        for number, entry in enumerate(named["images"]):
            entry["file_name"] = f"COCO_val2014_{number:012d}.jpg"
        paths = list(write(tmp_path, named, kind=LvisV05).split("train").images.paths)
        assert paths == [f"train2017/{identity:012d}.jpg" for identity in (7, 40, 500)]

    def test_val_draws_images_from_train2017_too(self, tmp_path: Path) -> None:
        mixed = document()
        mixed["images"] = [image(40, [], [], "val2017"), image(7, [], [])]
        paths = list(write(tmp_path, document(), mixed).split("test").images.paths)
        assert paths == ["train2017/000000000007.jpg", "val2017/000000000040.jpg"]

    @pytest.mark.parametrize("kind", KINDS)
    def test_each_version_has_its_own_files(self, kind: type[Lvis], tmp_path: Path) -> None:
        files = [f"annotations/lvis_{kind.version}_{split}.json" for split in ("train", "val")]
        assert kind(tmp_path).missing() == [*files, "train2017", "val2017"]
        write(tmp_path, document(), kind=kind)
        (tmp_path / "train2017").mkdir()
        assert kind(tmp_path).missing() == []  # an annotation file may name images of one folder only
        hint = kind(tmp_path).fetch_hint()
        assert f"plbench data download {kind.name}," in hint and str(tmp_path) in hint
        with pytest.raises(DataError, match="has splits train, test, not 'val'"):
            kind(tmp_path).split("val")

    def test_a_byte_order_mark_is_passed_over_and_said(self, tmp_path: Path) -> None:
        dataset = write(tmp_path, b"\xef\xbb\xbf" + json.dumps(document()).encode())
        assert labels_of(dataset) == naive_labels(document())
        assert "byte-order mark" in dataset.notes()["train"][0]


IDS = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 20)


@st.composite
def documents(draw: st.DrawFn) -> Document:
    image_ids = draw(st.lists(IDS, min_size=1, max_size=6, unique=True))
    category_ids = draw(st.lists(IDS, min_size=1, max_size=6, unique=True))
    cells = draw(
        st.dictionaries(
            st.tuples(st.sampled_from(image_ids), st.sampled_from(category_ids)),
            st.sampled_from([1, 2, -1]),
            max_size=12,
        )
    )
    positives = [cell for cell, value in cells.items() for _ in range(value)]  # none, one or two annotations
    images = []
    for identity in image_ids:
        negatives = [category for (owner, category), value in cells.items() if owner == identity and value < 0]
        marked = [category for owner, category in positives if owner == identity and draw(st.booleans())]
        entry = image(identity, draw(st.permutations(negatives)), marked)
        images.append(
            {**entry, "coco_url": f"https://host/a/{draw(st.sampled_from(['train', 'val']))}2017/{identity}.jpg"}
        )
    return {
        "images": images,
        "annotations": [{"image_id": i, "category_id": c, "id": 1} for i, c in draw(st.permutations(positives))],
        "categories": [
            {"id": identity, "name": draw(st.text(max_size=4)), "frequency": draw(st.sampled_from("rcf"))}
            for identity in category_ids
        ],
    }


@settings(max_examples=60, deadline=None)
@given(content=documents())
def test_any_file_is_read_as_a_naive_reader_reads_it(content: Document) -> None:
    with tempfile.TemporaryDirectory() as folder:
        dataset = write(Path(folder), content)
        found = dataset.split("train")
        assert labels_of(dataset) == naive_labels(content)
        assert list(found.images.ids) == sorted((str(entry["id"]) for entry in content["images"]), key=int)
        categories = sorted(content["categories"], key=lambda category: category["id"])
        assert found.labels.class_ids == tuple(str(category["id"]) for category in categories)
        assert found.labels.class_names == tuple(category["name"] for category in categories)
        paths = {str(entry["id"]): "/".join(entry["coco_url"].split("/")[-2:]) for entry in content["images"]}
        assert list(found.images.paths) == [paths[identity] for identity in found.images.ids]
        for name, letter in (("rare", "r"), ("common", "c"), ("frequent", "f")):
            ids = tuple(str(category["id"]) for category in categories if category["frequency"] == letter)
            assert dataset.groups().get(name, ()) == ids


def changed(change: Callable[[Document], Any]) -> Document:
    content = document()
    change(content)
    return content


def first_image(name: str, value: Any) -> Document:
    return changed(lambda content: content["images"][0].__setitem__(name, value))


def first_category(name: str, value: Any) -> Document:
    return changed(lambda content: content["categories"][0].__setitem__(name, value))


WHOLE = json.dumps(document()).encode()
BROKEN: dict[str, tuple[Any, str]] = {
    "truncated": (WHOLE[:-20], "as JSON: .* truncated; .* plbench data download lvis"),
    "no negatives": (
        changed(lambda c: c["images"][1].pop("neg_category_ids")),
        r"required field `neg_category_ids` - at `\$\.images\[1\]`",
    ),
    "no exhaustiveness": (
        changed(lambda c: c["images"][2].pop("not_exhaustive_category_ids")),
        r"required field `not_exhaustive_category_ids` - at `\$\.images\[2\]`",
    ),
    "no address": (
        changed(lambda c: c["images"][0].pop("coco_url")),
        r"required field `coco_url` - at `\$\.images\[0\]`",
    ),
    "no frequency": (
        changed(lambda c: c["categories"][3].pop("frequency")),
        r"required field `frequency` - at `\$\.categories\[3\]`",
    ),
    "frequency of another kind": (
        first_category("frequency", "x"),
        r"'x' - at .*categories\[0\]\.frequency",
    ),
    "negatives are one number": (
        first_image("neg_category_ids", 10),
        r"Expected `array`, got `int` - at `\$\.images\[0\]\.neg_category_ids`",
    ),
    "a negative is text": (
        first_image("neg_category_ids", [10, "2"]),
        r"Expected `int`, got `str` - at `\$\.images\[0\]\.neg_category_ids\[1\]`",
    ),
    "a negative is a fraction": (
        first_image("neg_category_ids", [1.5]),
        r"Expected `int`, got `float` - at `\$\.images\[0\]\.neg_category_ids\[0\]`",
    ),
    "unknown negative": (
        changed(lambda c: c["images"][2]["neg_category_ids"].append(4)),
        r"images\[2\]\.neg_category_ids\[2\] = 4, but no entry of categories has that id",
    ),
    "unknown not exhaustive": (
        first_image("not_exhaustive_category_ids", [793, 5]),
        r"images\[0\]\.not_exhaustive_category_ids\[1\] = 5, but no entry",
    ),
    "unknown category": (
        changed(lambda c: c["annotations"][2].update(category_id=3)),
        r"annotations\[2\]\.category_id = 3, but no entry of categories",
    ),
    "unknown image": (
        changed(lambda c: c["annotations"][1].update(image_id=1)),
        r"annotations\[1\]\.image_id = 1, but no entry of images",
    ),
    "image id twice": (
        changed(lambda c: c["images"].append(c["images"][0])),
        r"images\[3\]\.id = 40 is that of images\[0\]",
    ),
    "no images": (changed(lambda c: c.update(images=[], annotations=[])), "images is an empty list"),
    "address above the folder": (
        first_image("coco_url", "http://host/../x.jpg"),
        r"images\[0\]\.coco_url = 'http://host/",
    ),
    "address of a host and a file": (
        first_image("coco_url", "http://host/x.jpg"),
        "does not end in a folder and a file",
    ),
    "address of a folder": (first_image("coco_url", "http://host/train2017/"), "does not end in a folder and a file"),
    "address of no folder": (first_image("coco_url", "x.jpg"), "does not end in a folder and a file"),
    "address of nothing": (first_image("coco_url", ""), "does not end in a folder and a file"),
    "address with backslashes": (
        first_image("coco_url", "http://h/t/..\\x.jpg"),
        "does not end in a folder and a file",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_annotation_file_is_one_sentence_that_names_it(name: str, tmp_path: Path) -> None:
    content, says = BROKEN[name]
    with pytest.raises(DataError, match=says) as caught:
        write(tmp_path, content).split("train")
    message = str(caught.value)
    assert str(tmp_path / "annotations" / "lvis_v1_train.json") in message
    assert "\n" not in message and len(message) < 400


def test_a_file_is_read_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, document()).annotation_files("train")[0]
    os.utime(path, (1e9, 1e9))  # long ago: its sha256 may be noted
    first = Lvis(tmp_path, cache=tmp_path / "cache")
    assert labels_of(first) == naive_labels(document())
    reads: list[str] = []
    read = Lvis.read
    monkeypatch.setattr(Lvis, "read", lambda self, split, report: reads.append(split) or read(self, split, report))
    second = Lvis(tmp_path, cache=tmp_path / "cache")
    assert labels_of(second) == naive_labels(document()) and second.groups() == first.groups() and reads == []
    other = changed(lambda content: content["annotations"].pop(1))
    path.write_text(json.dumps(other))
    third = Lvis(tmp_path, cache=tmp_path / "cache")
    assert labels_of(third) == naive_labels(other) and reads == ["train"]
    assert third.notes()  # 793 is not exhaustive and has lost its annotation


class TestPublication:
    def test_official_counts(self, tmp_path: Path) -> None:
        assert Lvis.official_num_images == {"train": 100_170, "test": 19_809}
        assert not is_official(write(tmp_path, document()), Lvis.protocols[0])

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_protocol_takes_labels_as_they_come(self, kind: type[Lvis]) -> None:
        (protocol,) = kind.protocols
        assert protocol.name == f"{kind.name}/v1" and protocol.simulation == "none"
        assert protocol.validation_labels == "partial"
        gammas = {"gamma_pos": 0, "gamma_neg": 0, "gamma_unann": 1}
        assert protocol.suggested["pasl-negative"] == gammas
        assert protocol.suggested["selective"].items() >= gammas.items()
        assert "appendix A" in protocol.sources["gammas"] and "ours" in protocol.sources["top_k, eta"]
        recipe = kind.recipes[0]
        assert recipe.name == "paper" and recipe.model.backbone.startswith("tresnet_m")
        assert (recipe.plans["finetune"].lr, recipe.plans["finetune"].weight_decay) == (6e-4, 3e-4)

    @pytest.mark.parametrize("kind", KINDS)
    def test_downloads_make_what_would_be_missing(self, kind: type[Lvis], tmp_path: Path) -> None:
        made = [path for file in kind.downloads for path in file.makes]
        assert sorted(made) == sorted(kind(tmp_path).missing())
        of_test = {path for file in kind.downloads if file.split in (None, "test") for path in file.makes}
        assert ("train2017" in of_test) == (kind is Lvis)  # v1 tests on photographs of train2017 too


class TestFixture:
    @pytest.fixture(params=KINDS)
    def dataset(self, request: pytest.FixtureRequest, tmp_path: Path) -> Lvis:
        dataset: Lvis = request.param(tmp_path / "data")
        dataset.make_fixture()
        return dataset

    def content(self, dataset: Lvis, split: str) -> Document:
        return json.loads(dataset.annotation_files(split)[0].read_text())

    def test_it_is_laid_out_as_lvis_is(self, dataset: Lvis) -> None:
        assert dataset.missing() == [] and dataset.notes() == {}
        for split, number in (("train", 60), ("test", 30)):
            content = self.content(dataset, split)
            assert len(content["images"]) == number and dataset.split(split).images.absent() == []
            assert all(("file_name" in entry) == (dataset.version == "v0.5") for entry in content["images"])
            assert {category["frequency"] for category in content["categories"]} == {"r", "c", "f"}
            assert [c["name"] for c in content["categories"] if c["synset"] == "person.n.01"] == ["baby"]
            folders = {entry["coco_url"].split("/")[-2] for entry in content["images"]}
            in_train = {"train2017"} if split == "train" or dataset.version == "v1" else set()
            assert folders == in_train | ({"val2017"} if split == "test" else set())
        assert set(dataset.groups()) == {"rare", "common", "frequent", "person"}

    def test_it_has_every_trap(self, dataset: Lvis) -> None:
        content = self.content(dataset, "train")
        cells = [(entry["image_id"], entry["category_id"]) for entry in content["annotations"]]
        assert len(set(cells)) < len(cells)
        marked = {(e["id"], category) for e in content["images"] for category in e["not_exhaustive_category_ids"]}
        assert marked and marked < set(cells)
        bare = [entry for entry in content["images"] if entry["id"] not in {image for image, _ in cells}]
        assert {bool(entry["neg_category_ids"]) for entry in bare} == {True, False}
        if dataset.version == "v0.5":
            assert all("2014" in e["file_name"] and "2017" in e["coco_url"] for e in content["images"])

    def test_figures_are_those_of_the_json(self, dataset: Lvis) -> None:
        for split in ("train", "test"):
            content = self.content(dataset, split)
            labels = dataset.split(split).labels
            positives, negatives = labels.counts()
            for column, identity in enumerate(map(int, labels.class_ids)):
                with_it = {entry["image_id"] for entry in content["annotations"] if entry["category_id"] == identity}
                without = [entry for entry in content["images"] if identity in entry["neg_category_ids"]]
                assert (positives[column], negatives[column]) == (len(with_it), len(without))
            assert positives.min() > 0 and negatives.min() > 0
            cells = len(content["images"]) * len(content["categories"])
            assert labels.density == (positives.sum() + negatives.sum()) / cells < 0.6
            assert labels_of(dataset, split) == naive_labels(content)

    def test_it_is_the_same_every_time(self, dataset: Lvis, tmp_path: Path) -> None:
        other = type(dataset)(tmp_path / "other")
        other.make_fixture()
        other.make_fixture()
        files = [
            {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
            for root in (dataset.root, other.root)
        ]
        assert files[0] == files[1] and len(files[0]) == 92


@pytest.mark.slow
@pytest.mark.parametrize("regime", ["probe", "finetune"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_on_the_fixture(kind: type[Lvis], regime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLBENCH_CACHE", str(tmp_path / "cache"))
    kind(tmp_path / "data").make_fixture()
    where = ["--dataset", kind.name, "--data-root", tmp_path / "data", "--runs", tmp_path / "runs"]
    record = plbench("run", "--method", "selective", *where, *SHORT, "--regime", regime, "--json").json
    assert record["status"] == "done" and record["data"]["num_train"] == 60
    assert record["spec"]["method"]["params"]["gamma_unann"] == 1
    test = record["metrics"]["test"]
    assert test["num_classes_scored"] == 9 and 0 < test["map_c"]["value"] <= 100


def test_one_file_under_two_ids(tmp_path: Path) -> None:
    content = document()
    for entry in content["images"]:
        entry["coco_url"] = "http://images.cocodataset.org/train2017/1.jpg"
    content["images"][2]["neg_category_ids"] = [2]  # image 7 is sure that there is none, image 40 shows one
    with pytest.raises(DataError, match=r"ids 40 and 7 are the same file train2017/1\.jpg"):
        write(tmp_path, content).split("train")
    content["images"][2]["neg_category_ids"] = []
    dataset = write(tmp_path, content)
    dataset.split("train")
    assert any(note.startswith("1 image files are listed under more than one id") for note in dataset.notes()["train"])

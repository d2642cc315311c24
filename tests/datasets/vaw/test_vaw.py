"""VAW: crops as images, verified negatives, and groups as the published evaluation finds them."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plbench.data.images import find_unreadable
from plbench.datasets.vaw import Vaw
from plbench.datasets.vaw.crops import CroppedFiles
from plbench.errors import DataError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture."""
    root = tmp_path_factory.mktemp("vaw")
    Vaw(root).make_fixture()
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy to edit."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def entries(root: Path, *names: str) -> list[dict[str, Any]]:
    return [entry for name in names for entry in json.loads((root / "data" / name).read_text())]


def edit(root: Path, name: str, number: int, **changes: Any) -> None:
    content = entries(root, name)
    content[number] |= changes
    (root / "data" / name).write_text(json.dumps(content))


def test_train_is_both_files_in_order(made: Path) -> None:
    found = entries(made, "train_part1.json", "train_part2.json")
    assert list(Vaw(made).split("train").images.ids) == [entry["instance_id"] for entry in found]


def test_listed_attributes_are_known_and_others_are_not(made: Path) -> None:
    labels = Vaw(made).split("test").labels
    for row, entry in enumerate(entries(made, "test.json")):
        signs = dict(zip(labels.class_names, labels.rows([row])[0].tolist(), strict=True))
        expected = dict.fromkeys(labels.class_names, 0)
        expected |= dict.fromkeys(entry["positive_attributes"], 1) | dict.fromkeys(entry["negative_attributes"], -1)
        assert signs == expected
    assert 0.3 < labels.density < 0.9
    assert not labels.rows([29]).any()  # nothing is known of the last


def test_what_is_both_is_unknown_and_what_is_repeated_counts_once(made: Path) -> None:
    dataset = Vaw(made)
    labels = dataset.split("train").labels
    found = entries(made, "train_part1.json")
    (both,) = set(found[7]["positive_attributes"]) & set(found[7]["negative_attributes"])
    assert labels.rows([7])[0, labels.class_names.index(both)] == 0
    twice = found[5]["positive_attributes"][-1]
    assert found[5]["positive_attributes"].count(twice) == 2
    assert labels.rows([5])[0, labels.class_names.index(twice)] == 1
    notes = " ".join(dataset.notes()["train"])
    assert "1 labels repeat" in notes and "1 (image, class) cells are called both" in notes


def test_groups_are_those_of_the_published_evaluation(made: Path) -> None:
    dataset = Vaw(made)
    names = dict(zip(dataset.split("train").labels.class_ids, dataset.split("train").labels.class_names, strict=True))
    groups = {group: [names[member] for member in members] for group, members in dataset.groups().items()}
    assert groups["head"] == ["black", "red", "wooden", "round"]
    assert groups["materia"] == ["wooden"]
    assert groups["action"] == ["sitting"] and groups["state"] == ["wet"]  # the first type that lists it
    assert groups["other"] == ["numbered"]  # of no type
    assert sorted(groups["head"] + groups["medium"] + groups["tail"]) == sorted(names.values())


class TestCrops:
    @pytest.fixture
    def crops(self, tmp_path: Path) -> CroppedFiles:
        """Four boxes in two photographs, one of which has a pixel of its own everywhere; the last lies outside."""
        pixels = np.arange(40 * 30 * 3, dtype=np.uint16).reshape(30, 40, 3)
        Image.fromarray((pixels % 251).astype(np.uint8)).save(tmp_path / "a.png")
        Image.new("RGB", (400, 300), (200, 20, 20)).save(tmp_path / "b.jpg")
        boxes = np.array([[3, 4, 10, 5], [2.5, 3.5, 10.2, 5.2], [35, -2, 20, 12], [8, 8, 300, 200], [41, 0, 5, 5]])
        files = ("a.png", "a.png", "a.png", "b.jpg", "a.png")
        return CroppedFiles(tmp_path, files, boxes.astype(np.float64), tuple("stuvw"))

    def test_a_crop_is_the_box_widened_to_whole_pixels_within_the_image(self, crops: CroppedFiles) -> None:
        whole = np.asarray(Image.open(crops.root / "a.png"))
        assert np.array_equal(np.asarray(crops.load(0)), whole[4:9, 3:13])
        assert np.array_equal(np.asarray(crops.load(1)), whole[3:9, 2:13])
        assert np.array_equal(np.asarray(crops.load(2)), whole[0:10, 35:40])

    def test_it_is_not_made_smaller_than_asked_for(self, crops: CroppedFiles) -> None:
        assert crops.load(3, min_side=150).size == (300, 200)

    def test_what_is_read_decodes_to_what_is_loaded(self, crops: CroppedFiles) -> None:
        for row in range(4):
            stored = Image.open(io.BytesIO(crops.read(row)))
            assert np.array_equal(np.asarray(stored), np.asarray(crops.load(row)))

    def test_a_box_outside_is_unreadable_by_name(self, crops: CroppedFiles) -> None:
        failed = find_unreadable(crops)
        assert list(failed) == [4]
        assert "a.png, crop w (x, y, width, height 41, 0, 5, 5) cannot be cut out" in failed[4]
        assert "40 x 30 px" in failed[4]

    def test_checksums_tell_boxes_and_files_apart(self, crops: CroppedFiles, tmp_path: Path) -> None:
        before = crops.sha256s()
        assert len({row.tobytes() for row in before}) == 5
        again = CroppedFiles(crops.root, crops.files, crops.boxes, tuple("vwxyz"))
        assert np.array_equal(again.sha256s(), before)
        (tmp_path / "b.jpg").write_bytes((tmp_path / "b.jpg").read_bytes() + b"\0")
        assert (crops.sha256s() == before).all(axis=1).tolist() == [True, True, True, False, True]
        (tmp_path / "b.jpg").unlink()
        assert crops.sha256s().any(axis=1).tolist() == [True, True, True, False, True]
        assert crops.absent() == [3]

    def test_a_subset_is_in_the_order_given(self, crops: CroppedFiles) -> None:
        chosen = crops.subset(np.array([3, 0]))
        assert list(chosen.ids) == ["v", "s"]
        assert chosen.load(0).size == (300, 200) and chosen.load(1).size == (10, 5)
        assert np.array_equal(chosen.sha256s(), crops.sha256s()[[3, 0]])


def test_boxes_come_back_from_the_index_as_they_were(made: Path, tmp_path: Path) -> None:
    for _ in range(2):  # read from the files, then from the index
        images = Vaw(made, cache=tmp_path).split("val").images
        assert isinstance(images, CroppedFiles)
        assert images.boxes.tolist() == [entry["instance_bbox"] for entry in entries(made, "val.json")]


def test_ids_may_be_numbers(root: Path) -> None:
    before = list(Vaw(root).split("test").images.ids)
    first = entries(root, "test.json")[0]
    edit(root, "test.json", 0, image_id=int(first["image_id"]), instance_id=int(first["instance_id"]))
    assert list(Vaw(root).split("test").images.ids) == before


def test_a_box_without_width_is_counted(root: Path) -> None:
    edit(root, "val.json", 3, instance_bbox=[10, 10, 0, 5])
    dataset = Vaw(root)
    assert list(find_unreadable(dataset.split("val").images)) == [3]
    assert "boxes without width or height, of which nothing can be cut out: 1" in dataset.notes()["val"][-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"positive_attributes": ["shiny"]},
            r"val.json: \[4\] has attribute 'shiny', which attribute_index.json lacks",
        ),
        ({"instance_bbox": [1, 2, 3]}, r"val.json: \[4\].instance_bbox = \[1.0, 2.0, 3.0\]; expected x, y, width"),
        ({"image_id": "../1"}, r"val.json: \[4\] has ids '../1' and '\d+'; expected digits"),
        ({"negative_attributes": None}, r"val.json: Expected `array`, got `null` - at `\$\[4\].negative_attributes`"),
    ],
)
def test_a_malformed_entry_is_named(root: Path, changes: dict[str, Any], message: str) -> None:
    edit(root, "val.json", 4, **changes)
    with pytest.raises(DataError, match=message):
        Vaw(root).split("val")


def test_an_id_in_both_train_files_is_named(root: Path) -> None:
    again = entries(root, "train_part1.json")[2]["instance_id"]
    edit(root, "train_part2.json", 1, instance_id=again)
    with pytest.raises(DataError, match=rf"train_part2.json: \[1\].instance_id = {again} is that of an entry before"):
        Vaw(root).split("train")


def test_an_attribute_without_a_group_of_frequency_is_named(root: Path) -> None:
    path = root / "data" / "head_tail.json"
    path.write_text(path.read_text().replace('"navy blue", ', ""))
    with pytest.raises(DataError, match=r"head_tail.json: attribute 'navy blue' is in none of head, medium, tail"):
        Vaw(root).split("train")


def test_numbers_of_attributes_have_no_gap(root: Path) -> None:
    path = root / "data" / "attribute_index.json"
    path.write_text(path.read_text().replace('"numbered": 8', '"numbered": 9'))
    with pytest.raises(DataError, match=r"attribute_index.json: its 9 numbers are not 0 to 8"):
        Vaw(root).split("train")


def test_its_official_numbers() -> None:
    assert Vaw.official_num_images == {"train": 216_790, "val": 12_286, "test": 31_819}
    assert sum(Vaw.official_num_images.values()) == 260_895
    assert Vaw.official_num_classes == 620

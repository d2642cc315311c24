"""Pascal VOC: difficult labels three ways, and lists that do not fit together."""

from __future__ import annotations

from pathlib import Path

import pytest

from plbench.datasets.voc import Voc2007, Voc2012
from plbench.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The fixture of 2007."""
    Voc2007(tmp_path).make_fixture()
    return tmp_path


def voc(root: Path, **options: str) -> Voc2007:
    return Voc2007(root, options=Voc2007.Options.model_validate(options))


def test_difficult_labels_are_taken_as_the_option_says(root: Path) -> None:
    lists = root / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    words = [line.split() for path in lists.glob("*_trainval.txt") for line in path.read_text().splitlines()]
    counts = {value: sum(word[1] == value for word in words) for value in ("1", "0", "-1")}
    assert counts["0"] > 20
    found = {how: voc(root, difficult=how).split("trainval").labels for how in ("absent", "unknown", "present")}
    assert found["absent"].is_complete and found["present"].is_complete
    assert found["unknown"].num_known == counts["1"] + counts["-1"]
    assert found["absent"].counts()[0].sum() == counts["1"]
    assert found["present"].counts()[0].sum() == counts["1"] + counts["0"]


def test_two_blanks_before_a_1_are_one(root: Path) -> None:
    lists = root / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    assert "  1\n" in (lists / "person_trainval.txt").read_text()


def test_a_class_whose_file_lacks_images_is_unknown_there(root: Path) -> None:
    path = root / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / "cat_test.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-4]))
    dataset = voc(root)
    labels = dataset.split("test").labels
    assert 30 * 20 - labels.num_known == 4
    assert "4 labels are in no file of a class: unknown" in dataset.notes()["test"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("900999 1", "image '900999': not in trainval.txt"),
        ("900001 2", "value '2', expected 1, 0 or -1"),
        ("900001", "line 1: '900001'; expected an image and 1, 0 or -1"),
    ],
)
def test_a_malformed_line_is_named(root: Path, line: str, message: str) -> None:
    path = root / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / "cat_trainval.txt"
    path.write_text("\n".join([line, *path.read_text().splitlines()[1:]]))
    with pytest.raises(DataError, match=f"cat_trainval.*{message}"):
        voc(root).split("trainval")


def test_its_official_numbers() -> None:
    assert Voc2007.official_num_images == {"trainval": 5011, "test": 4952}
    assert Voc2012.official_num_images == {"train": 5717, "val": 5823}

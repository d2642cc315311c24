"""Visual Genome with numbered categories: two folders, two sizes, and what no list has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from plbench.datasets.vg import Vg200, Vg500
from plbench.errors import DataError

INDEX = "vg_category_{}_labels_index.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture of 500 categories."""
    root = tmp_path_factory.mktemp("vg")
    Vg500(root).make_fixture()
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy to edit."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def vg(root: Path, **options: str) -> Vg500:
    return Vg500(root, options=Vg500.Options.model_validate(options))


def listed(root: Path, split: str) -> tuple[list[str], dict[str, list[int]]]:
    names = (root / f"{split}_list_500.txt").read_text().splitlines()
    return names, json.loads((root / INDEX.format(500)).read_text())


def test_labels_are_those_of_the_list_in_its_order(made: Path) -> None:
    names, index = listed(made, "train")
    split = vg(made).split("train")
    assert list(split.images.ids) == [name.removesuffix(".jpg") for name in names]
    dense = split.labels.rows(np.arange(len(names)))
    assert [np.flatnonzero(row > 0).tolist() for row in dense] == [sorted(set(index[name])) for name in names]
    assert split.labels.is_complete and split.labels.num_classes == 500


def test_what_no_list_has_is_unknown_where_the_option_says_so(made: Path) -> None:
    dataset = vg(made, unlisted="unknown")
    labels = dataset.split("test").labels
    assert labels.counts()[1].sum() == 0
    assert labels.num_known == vg(made).split("test").labels.counts()[0].sum()
    assert any("taken for unknown" in note for note in dataset.notes()["test"])


def test_images_lie_in_either_folder(made: Path) -> None:
    images = vg(made).split("train").images
    assert images.absent() == []
    assert {images.name(row).split("/")[-2] for row in range(len(images))} == {"VG_100K", "VG_100K_2"}


def test_images_may_all_lie_in_the_first_folder(root: Path) -> None:
    before = vg(root).fingerprint()
    for path in (root / "VG_100K_2").iterdir():
        path.rename(root / "VG_100K" / path.name)
    (root / "VG_100K_2").rmdir()
    assert vg(root).split("train").images.absent() == []
    assert vg(root).missing() == []
    assert vg(root).fingerprint() == before


def test_an_image_that_is_nowhere_is_absent(root: Path) -> None:
    names, _ = listed(root, "test")
    next(root.glob(f"*/{names[2]}")).unlink()
    assert vg(root).split("test").images.absent() == [2]


def test_the_smaller_size_is_the_first_200_of_the_larger(root: Path) -> None:
    names, index = listed(root, "train")
    of_500 = vg(root).split("train").labels.rows(np.arange(60))
    dataset = Vg200(root)
    assert np.array_equal(dataset.split("train").labels.rows(np.arange(60)), of_500[:, :200])
    left_out = sum(number >= 200 for name in names for number in index[name])
    assert left_out and any(f"{left_out} labels of the others" in note for note in dataset.notes()["train"])
    few = {name: [number for number in numbers if number < 200] for name, numbers in index.items()}
    (root / INDEX.format(200)).write_text(json.dumps(few))
    own = Vg200(root)
    assert own.split("train").labels.fingerprint() == dataset.split("train").labels.fingerprint()
    assert not any("left out" in note for note in own.notes()["train"])


def test_a_category_beyond_the_size_is_named(root: Path) -> None:
    names, index = listed(root, "train")
    (root / INDEX.format(200)).write_text(json.dumps({**index, names[0]: [3, 200]}))
    with pytest.raises(DataError, match=f"200_labels_index.json: {names[0]} has category 200; expected 0 to 199"):
        Vg200(root).split("train")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{0}", "line 61: {0} is that of line 1 too"),
        ("9999.jpg", "line 61: 9999.jpg has no entry in vg_category_500_labels_index.json"),
        ("../1.jpg", "line 61: '../1.jpg'; expected the name of an image"),
        ("", "line 61: ''; expected the name of an image"),
    ],
)
def test_a_malformed_list_is_named(root: Path, line: str, message: str) -> None:
    names, _ = listed(root, "train")
    (root / "train_list_500.txt").write_text("\n".join([*names, line.format(*names)]) + "\n")
    with pytest.raises(DataError, match=f"train_list_500.txt, {message.format(*names)}"):
        vg(root).split("train")


def test_malformed_labels_are_named(root: Path) -> None:
    names, index = listed(root, "test")
    (root / INDEX.format(500)).write_text(json.dumps({**index, names[4]: [0, "a"]}))
    with pytest.raises(DataError, match=rf"500_labels_index.json: {names[4]} has '\[0, \"a\"\]'; expected a list"):
        vg(root).split("test")
    (root / INDEX.format(500)).write_text('{"1.jpg": [')
    with pytest.raises(DataError, match=r"500_labels_index.json is not valid JSON: Input data was truncated"):
        vg(root).split("test")


def test_their_official_numbers() -> None:
    for kind, number in ((Vg200, 200), (Vg500, 500)):
        assert kind.official_num_images == {"train": 82_904, "test": 10_000}
        assert kind.official_num_classes == number

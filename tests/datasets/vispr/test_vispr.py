"""VISPR: one list of attributes for all splits, and one file an image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plbench.datasets.vispr import Vispr
from plbench.datasets.vispr.dataset import ATTRIBUTES
from plbench.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The fixture."""
    Vispr(tmp_path).make_fixture()
    return tmp_path


def edit(root: Path, **changes: Any) -> Path:
    """Change keys of the second file of train; None takes one away."""
    path = sorted((root / "train2017").glob("*.json"))[1]
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


def test_an_attribute_that_a_split_lacks_keeps_its_column(root: Path) -> None:
    listed = {
        split: {
            label for path in (root / f"{split}2017").glob("*.json") for label in json.loads(path.read_text())["labels"]
        }
        for split in ("train", "test")
    }
    (lacking,) = listed["train"] - listed["test"]
    dataset = Vispr(root)
    column = ATTRIBUTES.index(lacking)
    train, test = (dataset.split(split).labels for split in ("train", "test"))
    assert train.class_ids == test.class_ids == ATTRIBUTES
    assert train.counts()[0][column] > 0 == test.counts()[0][column]
    assert "56 of 68 attributes are in no image of test" in dataset.notes()["test"]


def test_labels_and_paths_are_those_of_the_files(root: Path) -> None:
    split = Vispr(root).split("train")
    assert split.labels.is_complete and split.images.absent() == []
    for row, path in enumerate(sorted((root / "train2017").glob("*.json"))):
        content = json.loads(path.read_text())
        assert split.images.ids[row] == content["id"]
        present = np.flatnonzero(split.labels.rows([row])[0] > 0)
        assert {ATTRIBUTES[column] for column in present} == {*content["labels"]}


def test_both_may_lie_as_the_authors_keep_them(root: Path) -> None:
    before = Vispr(root).fingerprint()
    for folder in [root / "train2017", root / "test2017"]:
        for kind, ending in (("annotations", "json"), ("images", "jpg")):
            (root / kind / folder.name).mkdir(parents=True)
            for path in folder.glob(f"*.{ending}"):
                path.rename(root / kind / folder.name / path.name)
        folder.rmdir()
    assert Vispr(root).missing() == [] and Vispr(root).split("test").images.absent() == []
    assert Vispr(root).fingerprint() == before


def test_what_is_not_listed_may_be_unknown(root: Path) -> None:
    labels = Vispr(root, options=Vispr.Options(unlisted="unknown")).split("train").labels
    taken = Vispr(root).split("train").labels
    assert labels.counts()[1].sum() == 0
    assert labels.counts()[0].tolist() == taken.counts()[0].tolist()


def test_labels_beyond_the_list_and_bare_images_are_counted(root: Path) -> None:
    edit(root, labels=["a15_unused"])
    dataset = Vispr(root)
    dataset.split("train")
    assert "1 labels are none of the 68 attributes: left out" in dataset.notes()["train"]
    assert "1 images list no attribute, not even a0_safe" in dataset.notes()["train"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "missing required field `labels`"),
        ({"labels": "a0_safe"}, r"Expected `array`, got `str` - at `\$.labels`"),
        ({"image_path": 3}, r"Expected `str`, got `int` - at `\$.image_path`"),
        ({"id": "2017_10060000"}, "id = '2017_10060000' is that of another file of train"),
    ],
)
def test_a_malformed_file_is_named(root: Path, changes: dict[str, Any], message: str) -> None:
    path = edit(root, **changes)
    with pytest.raises(DataError, match=f"{path.name}.*{message}"):
        Vispr(root).split("train")


def test_a_path_that_leads_elsewhere_is_refused(root: Path) -> None:
    edit(root, image_path="../secret.jpg")
    with pytest.raises(DataError, match="leads out of its folder"):
        Vispr(root).split("train").images.load(1)


def test_a_folder_of_images_alone_is_missing_its_labels(root: Path) -> None:
    for path in (root / "test2017").glob("*.json"):
        path.unlink()
    assert Vispr(root).missing() == ["test2017/*.json"]


def test_its_official_numbers() -> None:
    assert Vispr.official_num_images == {"train": 10_000, "val": 4_167, "test": 8_000}
    assert Vispr.official_num_classes == len(ATTRIBUTES) == len({*ATTRIBUTES}) == 68

"""Vireo Food-172: one file of ingredients for all splits, and values that are neither 1 nor -1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plbench.datasets.vireo import VireoFood172
from plbench.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The fixture."""
    VireoFood172(tmp_path).make_fixture()
    return tmp_path


def labels_file(root: Path) -> Path:
    return root / "SplitAndIngreLabel" / "IngreLabel.txt"


def test_labels_are_found_by_path_in_the_order_of_the_split(root: Path) -> None:
    said = {line.split()[0]: line.split()[1:] for line in labels_file(root).read_text().splitlines()}
    listed = (root / "SplitAndIngreLabel" / "TR.txt").read_text().split()
    split = VireoFood172(root).split("train")
    assert len(said) == 98 and list(said)[:60] != listed
    assert [f"/{image_id}.jpg" for image_id in split.images.ids] == listed
    assert split.images.absent() == []
    for row, path in enumerate(listed):
        assert (split.labels.rows([row])[0] > 0).tolist() == [word == "1" for word in said[path]]


def test_a_value_that_is_neither_is_taken_as_the_option_says(root: Path) -> None:
    dataset = VireoFood172(root)
    assert dataset.split("train").labels.is_complete
    assert dataset.notes()["train"] == ("1 labels are 0, neither 1 nor -1: taken for absent",)
    unknown = VireoFood172(root, options=VireoFood172.Options(zero="unknown")).split("train").labels
    assert 60 * 12 - unknown.num_known == 1


def test_names_may_repeat_and_hold_commas(root: Path) -> None:
    labels = VireoFood172(root).split("test").labels
    assert labels.class_names[3] == "Egg, fried" and labels.class_names[2] == labels.class_names[7]
    assert labels.class_ids == tuple(map(str, range(1, 13)))


def test_a_malformed_line_is_named(root: Path) -> None:
    good = labels_file(root).read_text().splitlines()
    place = next(row for row, line in enumerate(good) if "/60_7.jpg " in line)
    for bad in (good[place].rpartition(" ")[0], good[place].replace("-1", "2", 1), f"{good[place]} 1"):
        labels_file(root).write_text("\n".join([*good[:place], bad, *good[place + 1 :]]))
        with pytest.raises(DataError, match=rf"IngreLabel.txt, line {place + 1}: '/4/60_7.jpg' with .*expected each"):
            VireoFood172(root).split("train")
    labels_file(root).write_text("\n".join([*good, good[place]]))
    with pytest.raises(DataError, match=r"IngreLabel.txt, line 99: '/4/60_7.jpg'"):
        VireoFood172(root).split("train")
    labels_file(root).write_text("\n".join([*good[:place], *good[place + 1 :]]))
    with pytest.raises(DataError, match=r"has no line for '4/60_7.jpg' of TR.txt"):
        VireoFood172(root).split("train")
    assert len(VireoFood172(root).split("test").images) == 30  # of which nothing changed


def test_a_split_that_lists_an_image_twice_is_refused(root: Path) -> None:
    path = root / "SplitAndIngreLabel" / "TE.txt"
    path.write_text(path.read_text() + "/1/30_0.jpg\n")
    with pytest.raises(DataError, match=r"TE.txt, line 31: '/1/30_0.jpg'; expected a path, each once"):
        VireoFood172(root).split("test")


def test_the_validation_split_is_there(root: Path) -> None:
    split = VireoFood172(root).split("val")
    assert len(split.images) == 8 and np.asarray(split.images.load(0)).shape == (112, 112, 3)


def test_its_official_numbers() -> None:
    assert VireoFood172.official_num_images == {"train": 66_071, "val": 11_016, "test": 33_154}
    assert sum(VireoFood172.official_num_images.values()) == 110_241
    assert VireoFood172.official_num_classes == 353

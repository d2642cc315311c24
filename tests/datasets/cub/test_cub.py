"""CUB's attributes: what is not visible, lines with words too many, and where the list of attributes lies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plbench.datasets.cub import CubAttributes, CubAttributesCole
from plbench.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The fixture."""
    CubAttributes(tmp_path).make_fixture()
    return tmp_path


def published(root: Path) -> np.ndarray:
    """The lines of the published file, five words each."""
    path = root / "CUB_200_2011" / "attributes" / "image_attribute_labels.txt"
    return np.array([line.split()[:5] for line in path.read_text().splitlines()], dtype=object)


def test_what_is_not_visible_is_unknown_or_absent(root: Path) -> None:
    lines = published(root)
    in_train = lines[:, 0].astype(int) <= 60
    hidden = int(np.sum(in_train & (lines[:, 3] == "1")))
    labels = CubAttributes(root).split("train").labels
    assert hidden > 50 and labels.num_known == 60 * 24 - hidden
    taken = CubAttributesCole(root)
    assert taken.split("train").labels.is_complete
    assert taken.split("train").labels.counts()[0].tolist() == labels.counts()[0].tolist()
    assert taken.notes()["train"] == (f"{hidden} attributes are not visible (certainty 1): absent",)


def test_lines_with_more_words_are_read(root: Path) -> None:
    fifth = CubAttributes(root).split("train").labels.rows([4])[0]
    assert [value for value in fifth if value] == [
        1 if present == "1" else -1 for number, _, present, certainty, _ in published(root)
        if number == "5" and certainty != "1"
    ]  # fmt: skip


def test_the_list_of_attributes_may_lie_in_the_folder(root: Path) -> None:
    beside = CubAttributes(root).split("test").labels.fingerprint()
    (root / "attributes.txt").rename(root / "CUB_200_2011" / "attributes.txt")
    assert CubAttributes(root).split("test").labels.fingerprint() == beside


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("999 1 0 3 1.0", "999 1 0; expected an image and an attribute of the lists"),
        ("1 99 0 3 1.0", "1 99 0; expected an image and an attribute of the lists"),
        ("1 1 2 3 1.0", "1 1 2; expected 1 or 0"),
        ("1 1", "'1 1'; expected 4 words or more"),
    ],
)
def test_a_malformed_line_is_named(root: Path, line: str, message: str) -> None:
    path = root / "CUB_200_2011" / "attributes" / "image_attribute_labels.txt"
    path.write_text("\n".join([*path.read_text().splitlines(), line]))
    with pytest.raises(DataError, match=f"image_attribute_labels.txt, line 2161: {message}"):
        CubAttributes(root).split("train")


def test_its_official_numbers() -> None:
    assert CubAttributes.official_num_images == {"train": 5994, "test": 5794}
    assert CubAttributes.official_num_classes == 312

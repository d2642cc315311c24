"""The checks of datasets can fail: each is shown a dataset with the very fault that it looks for."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plbench.api import BenchmarkProtocol, Dataset, LabelledSplit, PlbenchError
from plbench.runs.registry import Registry
from plbench.testing import CheckFailed, check_dataset

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-dataset.md"


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> type[Dataset]:
    """The example of the documentation, which passes."""
    path = tmp_path_factory.mktemp("plugin") / "rooms.py"
    example = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert example is not None
    path.write_text(example.group(1), encoding="utf-8")
    return Registry.discover((path,)).dataset("rooms")


def with_ids(images: Any, ids: Any) -> Any:
    return type(images)(images.root, images.paths, ids)


def repeated_ids(self: Any, name: str) -> LabelledSplit:
    split = super(type(self), self).split(name)
    ids = list(split.images.ids)
    return LabelledSplit(with_ids(split.images, [ids[0], *ids[:-1]]), split.labels)


def other_order(self: Any, name: str) -> LabelledSplit:
    split = super(type(self), self).split(name)
    order = np.random.default_rng().permutation(len(split.images))
    return split.subset(order)


def train_for_test(self: Any, name: str) -> LabelledSplit:
    return super(type(self), self).split("train")


def only_positives(self: Any, name: str) -> LabelledSplit:
    split = super(type(self), self).split(name)
    return LabelledSplit(split.images, split.labels.keep(split.labels.cells()[2] > 0))


def draws(self: Any, name: str) -> LabelledSplit:
    random.random()
    return super(type(self), self).split(name)


def any_split(self: Any, name: str) -> LabelledSplit:
    return super(type(self), self).split(name if name in self.splits else "train")


def broken_images(self: Any) -> None:
    super(type(self), self).make_fixture()
    (self.root / "train" / "train-0.png").write_bytes(b"no picture")


def transparent_images(self: Any) -> None:
    super(type(self), self).make_fixture()
    Image.new("RGBA", (64, 64)).save(self.root / "train" / "train-0.png")


FAULTS: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "a title with spaces": ({"title": " Rooms"}, "says what it is", ["title = ' Rooms'"]),
    "a source without https": ({"sources": ("http://example.org",)}, "says what it is", ["https://"]),
    "a protocol of another": (
        {"protocols": (BenchmarkProtocol(name="rooms/v1", dataset="halls"),)},
        "protocols",
        ["dataset = 'halls'"],
    ),
    "a protocol misnamed": (
        {"protocols": (BenchmarkProtocol(name="rooms/v1", dataset="rooms", simulation="fpc=9"),)},
        "protocols",
        ["rooms-fpc9/v1"],
    ),
    "no recipe": ({"recipes": ()}, "recipes", ["at least one recipe"]),
    "a hint without address": ({"fetch_hint": lambda self: "look for it"}, "says what is missing", ["https://"]),
    "nothing missing": ({"missing": lambda self: []}, "says what is missing", ["the files it needs"]),
    "repeated ids": ({"split": repeated_ids}, "ids", ["more than once in 'train'"]),
    "another order each time": ({"split": other_order}, "ids", ["the same ids in the same order"]),
    "train for test": ({"split": train_for_test}, "train apart from test", ["the same files as train images"]),
    "nothing to score": ({"split": only_positives}, "labels", ["has both a known positive and a known negative"]),
    "any split": ({"split": any_split}, "unknown split", ["a DataError", "no error"]),
    "global randomness": ({"split": draws}, "global randomness untouched", ["Python's random"]),
    "groups of nothing": ({"groups": lambda self: {"all": ("sofa",)}}, "groups", ["'sofa' in 'all'"]),
    "a broken image": ({"make_fixture": broken_images}, "images", ["train-0.png cannot be read"]),
    "a constant fingerprint": (
        {"fingerprint": lambda self: "0" * 64},
        "fingerprint follows the files",
        ["the same fingerprint though", "smallest input that fails: "],
    ),
    "a fingerprint of chance": (
        {"fingerprint": lambda self: f"{np.random.default_rng().integers(2**62):064x}"},
        "fingerprint is stable",
        ["the same fingerprint of the same files"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_explained(fault: str, rooms: type[Dataset]) -> None:
    changes, check, pieces = FAULTS[fault]
    with pytest.raises(CheckFailed) as raised:
        check_dataset(type("Faulty", (rooms,), {"__doc__": rooms.__doc__, **changes}))
    found = {finding.check: finding for finding in raised.value.findings}
    assert check in found, raised.value
    text = found[check].explained()
    assert all(piece in text for piece in pieces), text


def test_what_is_sound_passes(rooms: type[Dataset], tmp_path: Path) -> None:
    check_dataset(rooms)
    check_dataset(
        type("Sound", (rooms,), {"__doc__": rooms.__doc__, "make_fixture": transparent_images})
    )  # RGB when read
    rooms(tmp_path).make_fixture()
    check_dataset(rooms, root=tmp_path)


def test_without_files_and_fixture_nothing_is_checked(rooms: type[Dataset], tmp_path: Path) -> None:
    plain: Callable[[Any], None] = Dataset.make_fixture
    with pytest.raises(PlbenchError, match="comes with no fixture"):
        check_dataset(type("Bare", (rooms,), {"__doc__": rooms.__doc__, "make_fixture": plain}))
    with pytest.raises(PlbenchError, match="is not a folder"):
        check_dataset(rooms, root=tmp_path / "gone")

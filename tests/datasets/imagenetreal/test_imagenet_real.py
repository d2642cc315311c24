"""ImageNet with reassessed labels: empty lists, numbers that are ranks of synsets, both places of val images."""

from __future__ import annotations

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from plbench.datasets.imagenetreal import ImageNetReal
from plbench.datasets.imagenetreal.fixture import SYNSETS
from plbench.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The fixture."""
    ImageNetReal(tmp_path).make_fixture()
    return tmp_path


def edit(root: Path, lists: list[object]) -> None:
    (root / "real.json").write_text(json.dumps(lists))


def test_one_class_of_a_train_image_is_known(root: Path) -> None:
    split = ImageNetReal(root).split("train")
    positives, negatives = split.labels.counts()
    assert (split.labels.num_images, positives.sum(), negatives.sum()) == (60, 60, 0)
    for row in (0, 31, 59):
        assert split.labels.class_ids[np.argmax(split.labels.rows([row])[0])] == split.images.ids[row][:9]


def test_images_without_a_class_are_dropped_and_the_others_keep_their_numbers(root: Path) -> None:
    lists = json.loads((root / "real.json").read_text())
    dataset = ImageNetReal(root)
    split = dataset.split("test")
    kept = [number for number, classes in enumerate(lists, 1) if classes]
    assert (len(lists), len(kept)) == (34, 30)
    assert list(split.images.ids) == [f"ILSVRC2012_val_{number:08d}" for number in kept]
    assert split.labels.is_complete
    for row, number in enumerate(kept):
        assert np.flatnonzero(split.labels.rows([row])[0] > 0).tolist() == lists[number - 1]
    assert "4 of 34 images have no class in real.json: dropped" in dataset.notes()["test"]


def test_numbers_are_ranks_of_synsets_whatever_the_order_of_the_names(root: Path) -> None:
    labels = ImageNetReal(root).split("test").labels
    assert labels.class_ids == SYNSETS == tuple(sorted(SYNSETS))
    assert labels.class_names[3] == "thing 3, kind of thing"
    (root / "LOC_synset_mapping.txt").unlink()
    assert ImageNetReal(root).split("test").labels.class_names == SYNSETS


def test_what_is_not_listed_may_be_unknown(root: Path) -> None:
    options = ImageNetReal.Options(unlisted="unknown")
    positives, negatives = ImageNetReal(root, options=options).split("test").labels.counts()
    assert positives.sum() > 30 and negatives.sum() == 0


def test_val_images_may_lie_by_synset_and_all_of_it_as_kaggle_has_it(root: Path) -> None:
    images = ImageNetReal(root).split("test").images
    before = {images.ids[row]: images.read(row) for row in range(30)}
    kaggle = root / "ILSVRC" / "Data" / "CLS-LOC"
    for path in sorted((root / "val").iterdir()):
        folder = kaggle / "val" / SYNSETS[int(path.stem[-2:]) % 12]
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)
    (root / "val").rmdir()
    (root / "train").rename(kaggle / "train")
    dataset = ImageNetReal(root)
    images = dataset.split("test").images
    assert dataset.missing() == [] and images.absent() == []
    assert {images.ids[row]: images.read(row) for row in range(30)} == before
    assert len(dataset.split("train").images) == 60 and dataset.split("train").images.absent() == []


def test_files_beside_the_images_are_counted_and_the_listing_is_in_the_fingerprint(root: Path) -> None:
    dataset = ImageNetReal(root)
    before = dataset.fingerprint()
    assert any("1 files in train are not named" in note for note in dataset.notes()["train"])
    next((root / "train" / SYNSETS[2]).iterdir()).unlink()
    assert len(ImageNetReal(root).split("train").images) == 59
    assert ImageNetReal(root).fingerprint() != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lists: [[12], *lists[1:]], "list 0 has class 12; expected numbers below 12"),
        (lambda lists: lists[:-1], "has 33 lists; expected one for each val image, of which number 34 is there"),
        (lambda lists: [["cat"], *lists[1:]], r"Expected `int`, got `str` - at `\$\[0\]\[0\]`"),
        (lambda lists: {"a": lists}, "Expected `array`, got `object`"),
    ],
)
def test_malformed_labels_are_named(root: Path, change: object, message: str) -> None:
    edit(root, change(json.loads((root / "real.json").read_text())))  # type: ignore[operator]
    with pytest.raises(DataError, match=f"real.json.*{message}"):
        ImageNetReal(root).split("test")


def test_the_published_labels_that_come_with_timm_are_as_expected(root: Path) -> None:
    """timm has a copy, byte for byte; the number of classes is that of its list of synsets."""
    timm = find_spec("timm")
    assert timm is not None and timm.origin is not None
    content = (Path(timm.origin).parent / "data" / "_info" / "imagenet_real_labels.json").read_bytes()
    assert f"sha256:{hashlib.sha256(content).hexdigest()}" == ImageNetReal.downloads[0].checksum
    assert len(content) == ImageNetReal.downloads[0].size
    (root / "real.json").write_bytes(content)
    lists = ImageNetReal(root)._read_lists(1000)
    assert len(lists) == 50_000 and {number for classes in lists for number in classes} == {*range(1000)}
    assert sum(1 for classes in lists if classes) == ImageNetReal.official_num_images["test"]
    with pytest.raises(DataError, match="expected numbers below 12, the number of synsets"):
        ImageNetReal(root).split("test")  # of a folder with too few synsets, whose ranks would be others


def test_its_official_numbers() -> None:
    assert ImageNetReal.official_num_images == {"train": 1_281_167, "test": 50_000 - 3_163}
    assert ImageNetReal.official_num_classes == 1000

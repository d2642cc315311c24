"""The list of images that comes with plbench, reading them, and making them from COCO's own files."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plbench.datasets.coco20k import Coco20k
from plbench.datasets.coco20k import make as module
from plbench.errors import DataError

COPY = Path(__file__).parents[4] / "shared" / "data" / "coco-20k"


def quiet(done: int, total: int) -> None:
    """Reports nothing."""


class Three(Coco20k):
    """Of a list of three images."""

    @cached_property
    def shipped_split(self) -> dict[str, str]:
        return {"77": "train", "81": "train", "61": "test"}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """COCO 2014's train files with four images, 300 px high, one of them too small to be reduced."""
    folder = tmp_path / "coco"
    (folder / "train2014").mkdir(parents=True)
    (folder / "annotations").mkdir()
    names = {number: f"COCO_train2014_{number:012d}.jpg" for number in (61, 77, 81, 99)}
    for number, name in names.items():
        size = (400, 300) if number != 81 else (120, 90)
        Image.new("RGB", size, (number, 100, 200)).save(folder / "train2014" / name)
    shown = [(61, 1), (61, 90), (77, 3), (81, 1), (99, 1)]
    classes = zip(map(int, Coco20k.class_ids), Coco20k.class_names, strict=True)
    content = {
        "images": [{"id": one, "file_name": name, "width": 400, "height": 300} for one, name in names.items()],
        "annotations": [
            {"image_id": image, "category_id": category, "area": 30.0 * category, "bbox": [0, 0, 400, 10]}
            for image, category in shown
        ],
        "categories": [{"id": number, "name": name} for number, name in classes],
    }
    (folder / "annotations" / "instances_train2014.json").write_text(json.dumps(content))
    return folder


def test_the_list_has_each_image_once() -> None:
    split = Coco20k(Path("nowhere")).shipped_split
    assert len(split) == 20_000 and list(split) == sorted(split, key=int)
    assert sorted(map(list(split.values()).count, ("train", "test"))) == [4005, 15995]
    assert len(Coco20k.class_ids) == len(Coco20k.class_names) == 80 and Coco20k.class_ids[-1] == "90"


def test_it_is_made_from_the_files_of_coco(coco: Path, tmp_path: Path) -> None:
    made = Three(tmp_path / "made")
    made.make(coco, quiet)
    train, test = made.split("train"), made.split("test")
    assert list(train.images.ids) == ["77", "81"] and list(test.images.ids) == ["61"]
    sizes = [images.load(row).size for images in (train.images, test.images) for row in range(len(images))]
    assert sizes == [(213, 160), (120, 90), (213, 160)]
    present = [made.class_names[column] for column in np.flatnonzero(test.labels.rows([0])[0] > 0)]
    assert present == ["person", "toothbrush"] and test.labels.is_complete
    assert made.notes()["train"] == ("pixels: others than of the public copy, as made from COCO's own files",)


def test_objects_are_those_of_coco(coco: Path, tmp_path: Path) -> None:
    made = Three(tmp_path / "made")
    made.make(coco, quiet)
    areas = made.prominence("test", "size").toarray()[0]
    assert {made.class_ids[column]: areas[column] for column in np.flatnonzero(areas)} == {"1": 0.00025, "90": 0.0225}
    off_centre = made.prominence("train", "place").toarray()
    np.testing.assert_allclose(off_centre[off_centre > 0], [250 / 145] * 2, rtol=1e-5)
    table = tmp_path / "made" / "objects.csv"
    content, fingerprint = table.read_text(), made.fingerprint()
    for old, new in (("77,3", "77,4"), ("81,1,", "81,1,-"), ("81,1,", "81,1,few"), ("image", "picture")):
        table.write_text(content.replace(old, new, 1))
        with pytest.raises(DataError, match=r"objects\.csv (does not have one row|cannot be read)"):
            Three(tmp_path / "made").prominence("train", "size")
        assert Three(tmp_path / "made").fingerprint() != fingerprint  # runs on other objects are others
    table.unlink()
    bare = Three(tmp_path / "made")
    assert bare.split("train").labels.is_complete and bare.missing() == []
    with pytest.raises(DataError, match=r"has no objects\.csv, .*plbench data make coco-20k --from"):
        bare.prominence("train", "size")


def test_making_goes_on_where_it_was_interrupted(coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Three(tmp_path / "made")
    with monkeypatch.context() as patched:
        patched.setattr(module, "write_table", lambda dataset, rows: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            made.make(coco, quiet)
    assert made.missing() == ["labels.csv"]  # which is written last
    kept = (tmp_path / "made" / "images" / "000000000077.jpg").stat().st_mtime_ns
    told: list[int] = []
    made.make(coco, lambda done, total: told.append(done))
    assert told[0] == 3 and (tmp_path / "made" / "images" / "000000000077.jpg").stat().st_mtime_ns == kept
    assert made.split("train").labels.num_images == 2


def test_it_is_not_made_of_other_files(coco: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"instances_train2014\.json has no labels of image 86"):
        Coco20k(tmp_path / "made").make(coco, quiet)
    with pytest.raises(DataError, match=r"instances_train2014\.json is not there; run plbench data download coco"):
        Coco20k(tmp_path / "made").make(tmp_path, quiet)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("000000000077.jpg", "000000000999.jpg", "image '999' is not one of the 3 of coco-20k"),
        (",toothbrush", ",brush", "has a column 'brush'"),
        ("000000000077.jpg,train,0", "000000000077.jpg,train,", "has cells without 1 or 0"),
    ],
)
def test_a_table_of_other_things_is_refused(coco: Path, tmp_path: Path, old: str, new: str, message: str) -> None:
    made = Three(tmp_path / "made")
    made.make(coco, quiet)
    table = tmp_path / "made" / "labels.csv"
    content = table.read_text()
    assert old in content
    table.write_text(content.replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        Three(tmp_path / "made").split("train")


@pytest.mark.skipif(not COPY.is_dir(), reason="needs ../shared")
def test_the_copy_at_hand_is_read_as_its_readme_says(tmp_path: Path) -> None:
    dataset = Coco20k(COPY, cache=tmp_path)
    train, test = dataset.split("train").labels, dataset.split("test").labels
    assert (train.num_images, test.num_images) == (15_995, 4_005)
    positives, negatives = train.counts()
    assert (positives + negatives == 15_995).all() and positives.sum() / 15_995 == pytest.approx(3.1, abs=0.01)
    counts = dict(zip(train.class_names, positives.tolist(), strict=True))
    assert min(counts, key=counts.__getitem__) == "toaster" and counts["hair drier"] < 20
    assert {name: len(ids) for name, ids in dataset.groups().items()} == {"frequent": 8, "common": 44, "rare": 28}

"""Both layouts of the aerial photographs say the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from plbench.datasets.ucm17 import Ucm17
from plbench.errors import DataError

COPY = Path(__file__).parents[4] / "shared" / "data" / "ucm17"


def test_the_split_is_80_and_20_of_each_land_use() -> None:
    split = Ucm17(Path("nowhere")).shipped_split
    counted = Counter((image_id[:-2], part) for image_id, part in split.items())
    assert len(split) == 2_100 and len(counted) == 42
    assert {count for (_, part), count in counted.items() if part == "train"} == {80}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """The fixture: the published text file and TIFFs."""
    Ucm17(tmp_path / "published").make_fixture()
    return tmp_path / "published"


def test_the_published_layout_and_one_table_are_the_same(published: Path, tmp_path: Path) -> None:
    labels = pd.read_csv(published / "LandUse_Multilabeled.txt", sep="\t")
    labels.insert(0, "image", labels.pop("IMAGE\\LABEL") + ".jpg")
    labels.insert(1, "split", labels["image"].str[:-4].map(Ucm17(tmp_path).shipped_split))
    labels.insert(2, "scene", labels["image"].str[:-6])
    (tmp_path / "table" / "images").mkdir(parents=True)
    labels.to_csv(tmp_path / "table" / "labels.csv", index=False)
    one, other = Ucm17(published), Ucm17(tmp_path / "table")
    for split in ("train", "test"):
        assert list(one.split(split).images.ids) == list(other.split(split).images.ids)
        assert one.split(split).labels.fingerprint() == other.split(split).labels.fingerprint()
    assert one.split("train").labels.class_names == Ucm17.class_names  # the land use is no class
    assert np.asarray(one.split("train").images.load(0)).shape == (112, 112, 3)


def test_another_image_is_refused(published: Path) -> None:
    table = published / "LandUse_Multilabeled.txt"
    table.write_text(table.read_text().replace("\nairplane", "\nairport", 1))
    with pytest.raises(DataError, match=r"image 'airport.*' is not one of the 2,100 of ucm17"):
        Ucm17(published).split("train")


@pytest.mark.skipif(not COPY.is_dir(), reason="needs ../shared")
def test_the_copy_at_hand_is_read_as_its_readme_says() -> None:
    dataset = Ucm17(COPY)
    sizes = {split: dataset.split(split).labels.num_images for split in ("train", "test")}
    assert sizes == {"train": 1_680, "test": 420}
    positives = sum(int(dataset.split(split).labels.counts()[0].sum()) for split in sizes)
    assert positives / 2_100 == pytest.approx(3.3, abs=0.05)

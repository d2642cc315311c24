"""The three versions of NUS-WIDE: backslashes, the case of folders, images without a concept, malformed files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plbench.datasets.nuswide import NusWide, NusWideAsl, NusWideCole
from plbench.errors import DataError


def test_they_are_three_datasets_and_no_table_has_two() -> None:
    counts = [tuple(kind.official_num_images.values()) for kind in (NusWide, NusWideCole, NusWideAsl)]
    assert counts == [(161_789, 107_859), (150_000, 60_260), (119_103, 50_720)]
    names = [protocol.name for kind in (NusWide, NusWideCole, NusWideAsl) for protocol in kind.protocols]
    assert len(set(names)) == len(names)


def test_the_official_lists_have_backslashes_and_folders_any_case(tmp_path: Path) -> None:
    NusWide(tmp_path).make_fixture()
    train = NusWide(tmp_path).split("train")
    assert train.images.load(0).size == (112, 112) and "actor/" in train.images.name(0)
    column = (tmp_path / "groundtruth/TrainTestLabels/Labels_concept3_Train.txt").read_text().split()
    assert [int(value > 0) for value in train.labels.rows(range(60))[:, 3]] == [int(value) for value in column]
    assert train.labels.class_names[3] == "concept3"


def test_files_of_one_name_in_two_folders_are_two_images(tmp_path: Path) -> None:
    NusWide(tmp_path).make_fixture()
    path = tmp_path / "imagelist" / "TestImagelist.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(["zebra\\0000_300.jpg", "actor\\0000_300.jpg", *lines[2:]]))
    assert list(NusWide(tmp_path).split("test").images.ids)[:2] == ["flickr/zebra/0000_300", "flickr/actor/0000_300"]


def test_images_without_a_concept_stay_in_the_recrawl(tmp_path: Path) -> None:
    NusWideCole(tmp_path).make_fixture()
    dataset = NusWideCole(tmp_path)
    labels = dataset.split("train").labels
    bare = int(np.sum(labels.rows(range(60)).max(1) < 0))
    assert bare > 0 and labels.is_complete
    assert dataset.notes()["train"] == (f"{bare} of 60 images show none of the concepts",)


def test_a_list_of_numbers_says_what_is_present(tmp_path: Path) -> None:
    NusWideAsl(tmp_path).make_fixture()
    (tmp_path / "nus_val.txt").write_text("000_300_m.jpg,42 60 79\n001_301_m.jpg,0\n")
    labels = NusWideAsl(tmp_path).split("test").labels
    assert np.flatnonzero(labels.rows([0])[0] > 0).tolist() == [42, 60, 79] and labels.is_complete


def test_malformed_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    NusWideAsl(tmp_path / "a").make_fixture()
    (tmp_path / "a" / "nus_val.txt").write_text("000_300_m.jpg,42 81\n")
    with pytest.raises(DataError, match=r"nus_val.txt, line 1: '000_300_m.jpg,42 81'; expected an image"):
        NusWideAsl(tmp_path / "a").split("test")
    NusWide(tmp_path / "b").make_fixture()
    path = tmp_path / "b" / "groundtruth" / "TrainTestLabels" / "Labels_concept3_Test.txt"
    path.write_text(path.read_text()[:-2])
    with pytest.raises(DataError, match=r"Labels_concept3_Test.txt has 29 lines; expected 1 or 0 for each of 30"):
        NusWide(tmp_path / "b").split("test")
    NusWideCole(tmp_path / "c").make_fixture()
    np.save(tmp_path / "c" / "formatted_val_labels.npy", np.zeros((30, 80)))
    with pytest.raises(DataError, match=r"has shape \(30, 80\); expected 1 and 0 for 30 images by 81"):
        NusWideCole(tmp_path / "c").split("test")

"""OpenImages V6, V3 and the CSL authors' copy: what the published files mean, and that nothing wrong slips through."""

from __future__ import annotations

import csv
import json
import shutil
import tarfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_cli import plbench

from plbench.api import Dataset, IndexedDataset, PartialLabels
from plbench.data import digests
from plbench.data.images import find_unreadable
from plbench.data.shards.tars import TarImages
from plbench.datasets.openimages import OpenImagesV3, OpenImagesV6, OpenImagesV6Csl
from plbench.datasets.openimages.dataset import groups_by_count
from plbench.errors import DataError
from plbench.runs.protocol import is_official

Labels = dict[str, dict[str, int]]  # by image id and MID, where known

FIRST = "ImageID,Source,LabelName,Confidence"
MIDS = ("/m/04hgtk", "/m/01bqvp", "/m/0csby", "/g/11b5l")  # in no order
KINDS = [OpenImagesV6, OpenImagesV3]
ALL = [*KINDS, OpenImagesV6Csl]
PUBLISHED = Path(__file__).parents[4] / "shared" / "published.json"


def write(
    root: Path,
    train: str | bytes,
    test: str = "",
    *,
    kind: type[OpenImagesV6] | type[OpenImagesV3] = OpenImagesV6,
    classes: str = "\n".join(MIDS) + "\n",
    names: str = "/m/04hgtk,Face\n",
) -> OpenImagesV6 | OpenImagesV3:
    """An OpenImages folder without images: reading labels opens none. `train` and `test` are rows, or a whole file."""
    dataset = kind(root)
    if isinstance(dataset, OpenImagesV6):
        names = f"LabelName,DisplayName\n{names}"
    files = {dataset.class_list: classes, dataset.descriptions: names}
    for split, rows in (("train", train), ("test", test)):
        files[dataset.label_files[split]] = rows if isinstance(rows, bytes) else f"{FIRST}\n{rows}"
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content if isinstance(content, bytes) else content.encode())
    return dataset


def labels_of(dataset: Dataset, split: str = "train") -> Labels:
    found = dataset.split(split)
    rows, columns, values = (array.tolist() for array in found.labels.cells())
    labels: Labels = {identity: {} for identity in found.images.ids}
    for row, column, value in zip(rows, columns, values, strict=True):
        labels[found.images.ids[row]][found.labels.class_ids[column]] = value
    return labels


def naive_labels(path: Path, trainable: set[str]) -> tuple[Labels, list[int]]:
    """What the rows say, one at a time: cells by image, and how many are foreign, repeated and contradicted."""
    said: dict[tuple[str, str], Counter[float]] = {}
    labels: Labels = {}
    foreign = 0
    with path.open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            labels.setdefault(row["ImageID"], {})
            if row["LabelName"] not in trainable:
                foreign += 1
            else:
                said.setdefault((row["ImageID"], row["LabelName"]), Counter())[float(row["Confidence"])] += 1
    for (image, mid), signs in said.items():
        if len(signs) == 1:
            labels[image][mid] = 1 if 1.0 in signs else -1
    repeated = sum(sum(signs.values()) - len(signs) for signs in said.values())
    return labels, [foreign, repeated, sum(len(signs) == 2 for signs in said.values())]


@pytest.mark.parametrize("kind", KINDS)
class TestTraps:
    """One test for each of what the published files are known to hold."""

    def test_confidence_comes_in_two_spellings_in_one_file(self, kind: Any, tmp_path: Path) -> None:
        rows = "a,verification,/m/04hgtk,0\na,verification,/m/01bqvp,1\nb,v,/m/04hgtk,0.0\nb,v,/m/01bqvp,1.0\n"
        labels = labels_of(write(tmp_path, rows, kind=kind))
        assert labels == {"a": {"/m/04hgtk": -1, "/m/01bqvp": 1}, "b": {"/m/04hgtk": -1, "/m/01bqvp": 1}}

    @pytest.mark.parametrize("confidence", ["0.5", "2", "-1", "yes", "true", "", "nan"])
    def test_any_other_confidence_is_an_error(self, confidence: str, kind: Any, tmp_path: Path) -> None:
        dataset = write(tmp_path, f"a,v,/m/04hgtk,1\nb,v,/m/04hgtk,{confidence}\n", kind=kind)
        with pytest.raises(DataError, match=r"csv: .*Row #3: .*expected 0 or 1") as caught:
            dataset.split("train")
        assert str(tmp_path / dataset.label_files["train"]) in str(caught.value) and "\n" not in str(caught.value)

    def test_display_names_repeat_and_are_quoted(self, kind: Any, tmp_path: Path) -> None:
        names = '/m/04hgtk,Head\n/m/01bqvp,"Sky, ""blue"""\n/m/0unknown,Nobody\n/m/0csby,Head\n'
        labels = write(tmp_path, "a,v,/m/04hgtk,1\n", kind=kind, names=names).split("train").labels
        assert labels.class_ids == MIDS
        assert labels.class_names == ("Head", 'Sky, "blue"', "Head", "/g/11b5l")  # without a name, the MID

    def test_rows_of_other_classes_are_left_out_and_counted(self, kind: Any, tmp_path: Path) -> None:
        rows = "a,v,/m/0other,1\na,v,/m/04hgtk,1\nb,v,/m/0other,0\nb,v,,1\n"
        dataset = write(tmp_path, rows, kind=kind)
        assert labels_of(dataset) == {"a": {"/m/04hgtk": 1}, "b": {}}  # an image that is named counts
        assert dataset.notes()["train"][0] == "3 of 4 rows name classes that are not in the class list; left out"

    def test_a_row_that_comes_twice_counts_once(self, kind: Any, tmp_path: Path) -> None:
        dataset = write(tmp_path, "a,verification,/m/04hgtk,1\na,crowdsource-verification,/m/04hgtk,1.0\n", kind=kind)
        assert labels_of(dataset) == {"a": {"/m/04hgtk": 1}}
        assert dataset.notes()["train"][0] == "1 rows repeat what another says; each cell counts once"

    def test_present_and_absent_together_are_unknown_and_counted(self, kind: Any, tmp_path: Path) -> None:
        rows = "a,v,/m/04hgtk,1\na,v,/m/01bqvp,1\na,v,/m/04hgtk,0\nb,v,/m/0csby,0\nb,v,/m/0csby,1\n"
        dataset = write(tmp_path, rows, kind=kind)
        assert labels_of(dataset) == {"a": {"/m/01bqvp": 1}, "b": {}}
        said = "2 (image, class) cells are called both present and absent; taken as unknown"
        nameless = f"3 of 4 classes have no name in {dataset.descriptions}; named by id"
        assert dataset.notes()["train"] == (said, nameless)

    @pytest.mark.parametrize(
        ("rows", "first"),
        [
            ("a,v,/m/0other,1\nb,v,/m/0third,0\n", "/m/0other, line 2"),
            ("a,v,m_0csby,1\n", "m_0csby, line 2"),
            ("a,v,/M/0CSBY,1\na,v,/m/0csby ,0\n", "/M/0CSBY, line 2"),
        ],
    )
    def test_a_class_list_of_other_classes_is_refused(self, kind: Any, tmp_path: Path, rows: str, first: str) -> None:
        with pytest.raises(DataError, match=r"rows of train name classes that are not in .*trainable") as caught:
            write(tmp_path, rows, kind=kind).split("train")
        assert f"(the first: {first})" in str(caught.value) and "\n" not in str(caught.value)

    def test_classes_stand_in_the_order_of_the_list(self, kind: Any, tmp_path: Path) -> None:
        classes = "/m/0z\r\n/m/0a\r\n\r\n /m/0m \r\n"
        labels = write(tmp_path, "a,v,/m/0a,1\n", kind=kind, classes=classes).split("train").labels
        assert labels.class_ids == ("/m/0z", "/m/0a", "/m/0m")

    def test_columns_and_rows_may_come_in_another_order(self, kind: Any, tmp_path: Path) -> None:
        content = (
            b"\xef\xbb\xbfConfidence,LabelName,Source,ImageID\r\n1,/m/0csby,v,b\r\n0,/m/0csby,v,a\r\n0,/m/04hgtk,v,b"
        )
        dataset = write(tmp_path, content, kind=kind)
        assert labels_of(dataset) == {"b": {"/m/0csby": 1, "/m/04hgtk": -1}, "a": {"/m/0csby": -1}}

    @pytest.mark.parametrize("identity", ["../../etc/passwd", "a/b", "a b", "", "a.jpg", "{id}", "é", "C:", "a" + "\\"])
    def test_an_id_that_could_lead_elsewhere_is_refused(self, identity: str, kind: Any, tmp_path: Path) -> None:
        dataset = write(tmp_path, f"a,v,/m/04hgtk,1\n{identity},v,/m/04hgtk,1\n", kind=kind)
        with pytest.raises(DataError, match="is no id such as 000026e7ee790996") as caught:
            dataset.split("train")
        assert str(tmp_path / dataset.label_files["train"]) in str(caught.value) and repr(identity) in str(caught.value)


CLASS_LISTS: dict[str, tuple[str | bytes, str]] = {
    "a class twice": ("/m/04hgtk\n\n/m/01bqvp\n/m/04hgtk\n", ", line 4: /m/04hgtk comes twice"),
    "a name": ("/m/04hgtk\nTree\n", ", line 2: 'Tree' is no MID such as /m/04hgtk"),
    "a web page": ("<!DOCTYPE html>\n<html>\n", ", line 1: '<!DOCTYPE html>' is no MID"),
    "MID and name": ("/m/04hgtk Tree\n", ", line 1: '/m/04hgtk Tree' is no MID"),
    "one long line": ("/m/04hgtk," * 500, ", line 1: '/m/04hgtk,/m/04hgtk,/m/04hgtk,/m/04hgtk,' is no MID"),
    "nothing": ("", " is empty; expected one MID a line"),
    "blank lines": ("\n \n", " is empty; expected one MID a line"),
    "UTF-16": ("/m/04hgtk\n".encode("utf-16"), ": byte 0 is not UTF-8"),
}


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("name", CLASS_LISTS)
def test_a_broken_class_list_is_one_sentence(name: str, kind: Any, tmp_path: Path) -> None:
    content, says = CLASS_LISTS[name]
    if kind is OpenImagesV6Csl:
        dataset = write_csl(tmp_path, ["train/a.jpg,['/m/04hgtk'],[],train"])
        path = tmp_path / OpenImagesV6.class_list
    else:
        dataset = write(tmp_path, "a,v,/m/04hgtk,1\n", kind=kind)
        path = tmp_path / dataset.class_list
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        dataset.split("train")
    assert str(caught.value).startswith(f"{path}{says}") and "\n" not in str(caught.value)


DESCRIPTIONS: dict[str, tuple[str | bytes, str]] = {
    "a field too many": ("/m/04hgtk,Tree\n/m/01bqvp,Sky, blue\n", r", line [23]: no MID and name"),
    "a field too few": ("/m/04hgtk\n", r", line [12]: no MID and name"),
    "an open quote": ('/m/04hgtk,"Tree\n/m/01bqvp,Sky\n/m/0csby,Sea\n', ", line [34]: no MID and name"),
    "no text": (b"LabelName,DisplayName\n\xff\xfe", ": byte 22 is not UTF-8"),
    "a web page": ("<!DOCTYPE html>\n<p>a, b, c\n", r", line [12]: no MID and name"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_broken_descriptions_are_one_sentence(name: str, kind: Any, tmp_path: Path) -> None:
    content, says = DESCRIPTIONS[name]
    dataset = write(tmp_path, "a,v,/m/04hgtk,1\n", kind=kind, names=content if isinstance(content, str) else "")
    if isinstance(content, bytes):
        (tmp_path / dataset.descriptions).write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        dataset.split("train")
    assert str(caught.value).startswith(str(tmp_path / dataset.descriptions)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_other_classes_for_test_than_for_train_are_refused(kind: Any, tmp_path: Path) -> None:
    dataset = write(tmp_path, "a,v,/m/04hgtk,1\n", "b,v,/m/04hgtk,1\n", kind=kind)
    dataset.split("train")
    (tmp_path / dataset.class_list).write_text("/m/04hgtk\n")
    with pytest.raises(DataError, match="define other classes for split 'test' than for 'train'"):
        dataset.split("test")


@pytest.fixture(scope="module")
def fixtures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small imitations by dataset name: not to be written to."""
    roots = {kind.name: tmp_path_factory.mktemp(kind.name) for kind in ALL}
    for kind in ALL:
        kind(roots[kind.name]).make_fixture()
    return roots


class TestFixture:
    @pytest.mark.parametrize("split", ["train", "validation", "test"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_labels_are_those_that_the_csv_module_reads(self, kind: Any, split: str, fixtures: dict[str, Path]) -> None:
        dataset = kind(fixtures[kind.name])
        trainable = (dataset.root / dataset.class_list).read_text().split()
        labels, counts = naive_labels(dataset.root / dataset.label_files[split], set(trainable))
        assert labels_of(dataset, split) == labels
        found = dataset.split(split)
        assert list(found.images.ids) == list(labels) and found.labels.class_ids == tuple(trainable)
        assert [int(note.split()[0]) for note in dataset.notes()[split]] == counts == [1, 1, 1]

    def test_counts_by_class(self, fixtures: dict[str, Path]) -> None:
        labels = OpenImagesV6(fixtures["openimages-v6"]).split("train").labels
        with (fixtures["openimages-v6"] / OpenImagesV6.label_files["train"]).open(newline="") as file:
            rows = {(row["ImageID"], row["LabelName"], float(row["Confidence"])) for row in csv.DictReader(file)}
        rows = {row for row in rows if (*row[:2], 1 - row[2]) not in rows}
        for sign, counts in zip((1, 0), labels.counts(), strict=True):
            expected = Counter(mid for _, mid, confidence in rows if confidence == sign)
            assert counts.tolist() == [expected[mid] for mid in labels.class_ids]
            assert (counts > 0).all()

    @pytest.mark.parametrize("kind", KINDS)
    def test_names_repeat_and_need_quoting(self, kind: Any, fixtures: dict[str, Path]) -> None:
        names = kind(fixtures[kind.name]).split("train").labels.class_names
        assert 'Sign, "stop"' in names and Counter(names)["Person"] == 2 and "Outside" not in names
        assert "LabelName" not in names and "DisplayName" not in names

    @pytest.mark.parametrize("kind", ALL)
    def test_every_image_is_there_and_can_be_read(self, kind: Any, fixtures: dict[str, Path]) -> None:
        dataset = kind(fixtures[kind.name])
        assert dataset.missing() == []
        for split in kind.splits:
            images = dataset.split(split).images
            assert len(images) in (60, 16, 40) and find_unreadable(images) == {}

    def test_the_three_say_the_same_of_the_same_images(self, fixtures: dict[str, Path]) -> None:
        v6, v3, csl = (kind(fixtures[kind.name]) for kind in ALL)
        for split, short in (("train", "train"), ("validation", "val"), ("test", "test")):
            ours, theirs = labels_of(v6, split), labels_of(csl, short)
            assert ours == labels_of(v3, split) and set(ours) == set(theirs)
            # the table repeats and contradicts nothing: one cell more is known
            assert sum(theirs[image][mid] != ours[image].get(mid) for image in theirs for mid in theirs[image]) == 1
            images = {identity: row for row, identity in enumerate(csl.split(short).images.ids)}
            for row, identity in enumerate(v6.split(split).images.ids):
                ours_pixels = np.asarray(v6.split(split).images.load(row))
                assert np.array_equal(ours_pixels, np.asarray(csl.split(short).images.load(images[identity])))


LAYOUTS = ["flat", "by digit", "one tar", "tars by digit", "tars in a folder"]


def lay_out(pictures: dict[str, bytes], root: Path, layout: str, split: str) -> None:
    """Images in one of the forms that they are published or kept in."""
    for identity, content in pictures.items():
        folder = root / split / (f"{split}_{identity[0]}" if layout in ("by digit", "tars by digit") else "")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{identity}.jpg").write_bytes(content)
    if layout == "one tar":
        pack(root / split, root / f"{split}.tar")
    elif layout == "tars by digit":
        for folder in sorted((root / split).iterdir()):
            pack(folder, root / f"{folder.name}.tar")
        (root / split).rmdir()
    elif layout == "tars in a folder":
        pack(root / split, root / "all.tar")
        (root / split).mkdir()
        (root / "all.tar").rename(root / split / f"{split}_0.tar")


def pack(folder: Path, path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        tar.add(folder, folder.name)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def pictures(fixtures: dict[str, Path]) -> dict[str, bytes]:
    """Image files by id."""
    images = OpenImagesV6(fixtures["openimages-v6"]).split("train").images
    return {identity: images.read(row) for row, identity in enumerate(images.ids)}


class TestLayouts:
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("split", ["train", "test"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_every_layout_gives_the_same_images(
        self, kind: Any, split: str, layout: str, pictures: dict[str, bytes], tmp_path: Path
    ) -> None:
        rows = "".join(f"{identity},v,/m/04hgtk,1\n" for identity in pictures)
        dataset = write(tmp_path, **{"train": "", "test": "", split: rows}, kind=kind)
        assert f"{split}/" in dataset.missing()
        lay_out(pictures, tmp_path, layout, split)
        assert f"{split}/" not in dataset.missing()
        images = dataset.split(split).images
        assert isinstance(images, TarImages) == ("tar" in layout)
        assert images.absent() == [] and list(images.ids) == list(pictures)
        for row, content in enumerate(pictures.values()):
            assert images.read(row) == content

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_images_that_are_not_there_are_found(self, layout: str, pictures: dict[str, bytes], tmp_path: Path) -> None:
        rows = "".join(f"{identity},v,/m/04hgtk,1\n" for identity in ["0000", *pictures, "abcd"])
        dataset = write(tmp_path, rows)
        lay_out(pictures, tmp_path, layout, "train")
        images = dataset.split("train").images
        assert images.absent() == [0, len(pictures) + 1]
        assert "0000" in images.name(0)

    @pytest.mark.parametrize("place", ["train.tar.gz", "train/train_3.tar.gz"])
    def test_compressed_tars_are_refused_with_what_unpacks_them(self, place: str, tmp_path: Path) -> None:
        dataset = write(tmp_path, "a,v,/m/04hgtk,1\n")
        (tmp_path / "train").mkdir()
        (tmp_path / place).write_bytes(b"\x1f\x8b")
        says = r"gz is compressed, .*; plbench data download openimages-v6 --split train unpacks it, as does gunzip"
        with pytest.raises(DataError, match=says) as caught:
            dataset.missing()
        assert str(caught.value).startswith(str(tmp_path / place)) and "\n" not in str(caught.value)

    def test_the_scan_of_tars_is_kept_in_the_cache(
        self, pictures: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(digests, "_FRESH_NS", 0)
        write(tmp_path / "data", "".join(f"{identity},v,/m/04hgtk,1\n" for identity in pictures))
        lay_out(pictures, tmp_path / "data", "one tar", "train")
        for _ in range(2):
            dataset = OpenImagesV6(tmp_path / "data", cache=tmp_path / "cache")
            assert dataset.split("train").images.absent() == []
        assert len(list((tmp_path / "cache" / "index").glob("tar-*"))) == 1


class TestGroups:
    @settings(max_examples=40, deadline=None)
    @given(counts=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=23))
    def test_five_groups_by_rising_number_of_annotations(self, counts: list[tuple[int, int]]) -> None:
        dense = np.zeros((18, len(counts)), np.int8)
        for column, (positives, negatives) in enumerate(counts):
            dense[:positives, column], dense[positives : positives + negatives, column] = 1, -1
        labels = PartialLabels.from_dense(dense, [f"/m/{column}" for column in range(len(counts))])
        groups = groups_by_count(labels)
        assert list(groups) == [f"group_{number}" for number in range(1, 6)]
        assert sorted(mid for group in groups.values() for mid in group) == sorted(labels.class_ids)
        sizes = [len(group) for group in groups.values()]
        assert max(sizes) - min(sizes) <= 1
        known = {mid: sum(counts[column]) for column, mid in enumerate(labels.class_ids)}
        for fewer, more in pairwise([group for group in groups.values() if group]):
            assert max(known[mid] for mid in fewer) <= min(known[mid] for mid in more)

    def test_they_are_those_of_train_and_of_v3_alone(self, fixtures: dict[str, Path], tmp_path: Path) -> None:
        root = fixtures["openimages-v3"]
        dataset = OpenImagesV3(root, cache=tmp_path)
        groups = dataset.groups()
        assert groups == groups_by_count(dataset.split("train").labels) != groups_by_count(dataset.split("test").labels)
        assert [len(group) for group in groups.values()] == [2] * 5
        assert OpenImagesV3(root, cache=tmp_path).groups() == groups  # from the index
        assert OpenImagesV6(fixtures["openimages-v6"]).groups() == {}
        assert OpenImagesV6Csl(fixtures["openimages-v6-csl"]).groups() == {}


def write_csl(root: Path, lines: list[str], first: str = "filepath,label,label_neg,split_name") -> OpenImagesV6Csl:
    """The authors' table; lists are quoted where the line has more commas than the table columns."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "data.csv").write_text("\n".join([first, *lines]) + "\n")
    return OpenImagesV6Csl(root)


class TestCslTable:
    def test_lists_of_classes_are_read_whatever_their_quotes(self, tmp_path: Path) -> None:
        lines = [
            """train/0a.jpg,"['/m/1', '/m/2']","['/m/3']",train""",
            """train/0b.jpg,"[""/m/2""]",[],train""",
            """train/0c.jpg,[],,train""",
            """val/0d.jpg,[/m/9],"[/m/1,/m/2]",val""",
        ]
        dataset = write_csl(tmp_path, lines)
        assert labels_of(dataset) == {"0a": {"/m/1": 1, "/m/2": 1, "/m/3": -1}, "0b": {"/m/2": 1}, "0c": {}}
        assert labels_of(dataset, "val") == {"0d": {"/m/9": 1, "/m/1": -1, "/m/2": -1}}
        assert list(dataset.split("train").images.paths) == ["train/0a.jpg", "train/0b.jpg", "train/0c.jpg"]

    def test_without_a_class_list_the_classes_are_all_that_are_named(self, tmp_path: Path) -> None:
        dataset = write_csl(tmp_path, ["a.jpg,[/m/7],[],train", "b.jpg,[],[/m/10],test"])
        assert dataset.split("train").labels.class_ids == dataset.split("test").labels.class_ids == ("/m/10", "/m/7")
        assert dataset.split("train").labels.class_names == ("/m/10", "/m/7") and dataset.notes() == {}

    def test_with_a_class_list_it_decides(self, tmp_path: Path) -> None:
        (tmp_path / OpenImagesV6.class_list).write_text("/m/7\n/m/8\n/m/10\n")
        (tmp_path / OpenImagesV6.descriptions).write_text("LabelName,DisplayName\n/m/8,Eight\n/m/9,Nine\n")
        dataset = write_csl(tmp_path, ['a.jpg,"[/m/7, /m/9]",[/m/9],train', "b.jpg,[],[/m/10],test"])
        assert labels_of(dataset) == {"a": {"/m/7": 1}}
        assert dataset.split("train").labels.class_ids == ("/m/7", "/m/8", "/m/10")
        assert dataset.split("train").labels.class_names == ("/m/7", "Eight", "/m/10")
        said = "2 of 3 labels name classes that are not in the class list; left out"
        assert dataset.notes()["train"] == (said,)

    def test_a_class_list_that_matches_no_label_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / OpenImagesV6.class_list).write_text("/m/70\n/m/80\n")
        with pytest.raises(DataError, match=r"2 of 2 labels name classes that are not in .*\(such as /m/7\)"):
            write_csl(tmp_path, ["a.jpg,[/m/7],[/m/8],train", "b.jpg,[],[/m/8],test"]).split("train")

    def test_repeats_count_once_and_contradictions_are_unknown(self, tmp_path: Path) -> None:
        lines = ['a.jpg,"[/m/1, /m/1, /m/2]","[/m/2, /m/3]",train', "b.jpg,[/m/2],[/m/2],train"]
        dataset = write_csl(tmp_path, lines)
        assert labels_of(dataset) == {"a": {"/m/1": 1, "/m/3": -1}, "b": {}}
        assert [note.split()[0] for note in dataset.notes()["train"]] == ["1", "2"]

    def test_the_index_follows_the_class_list(self, tmp_path: Path) -> None:
        write_csl(tmp_path / "data", ["a.jpg,[/m/7],[/m/8],train"])

        def classes() -> tuple[str, ...]:
            dataset = OpenImagesV6Csl(tmp_path / "data", cache=tmp_path / "cache")
            return dataset.split("train").labels.class_ids

        assert classes() == classes() == ("/m/7", "/m/8")
        (tmp_path / "data" / OpenImagesV6.class_list).write_text("/m/8\n")
        assert classes() == ("/m/8",)

    @pytest.mark.parametrize(
        "path", ["/etc/passwd", "../a.jpg", "train/../../a.jpg", "train/..", "..", "", "a\\..\\b.jpg", "a\tb.jpg"]
    )
    def test_a_path_that_points_outside_is_refused(self, path: str, tmp_path: Path) -> None:
        dataset = write_csl(tmp_path, ["a.jpg,[/m/7],[],train", f"{path},[/m/7],[],train"])
        with pytest.raises(DataError, match="points outside the folder; expected one relative to it") as caught:
            dataset.split("train")
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / 'data.csv'}: filepath {path!r}") and message.isprintable()

    @pytest.mark.parametrize("path", ["a..jpg", "..a/b.jpg", "train/a...b.jpg", "é/ü.jpg"])
    def test_dots_in_names_are_names(self, path: str, tmp_path: Path) -> None:
        assert list(write_csl(tmp_path, [f"{path},[/m/7],[],train"]).split("train").images.paths) == [path]

    @pytest.mark.parametrize(
        ("lines", "says"),
        [
            (
                ["1/a.jpg,[/m/7],[],train"] * 3 + ["b.jpg,[],[],train"] * 2,
                "image 'a' has 3 rows; expected one row an image",
            ),
            (["a.jpg,[/m/7],[],training"], "no row with split_name 'train'; it has 'training'"),
            ([], "no row with split_name 'train'; it has none"),
            (["a.jpg,[/m/7],[]"], "Row #2: Expected 4 columns, got 3"),
            (["a.jpg,[Tree],[],train"], "label lists 'Tree', which is no MID; expected lists like"),
            (["a.jpg,[],/m/1 /m/2,train"], "label_neg lists '/m/1/m/2', which is no MID"),
            (["a.jpg,{'/m/1': 3},[],train"], "label lists"),
        ],
        ids=["an image twice", "other splits", "no rows", "a short row", "names", "spaces", "a dictionary"],
    )
    def test_a_broken_table_is_one_sentence(self, lines: list[str], says: str, tmp_path: Path) -> None:
        with pytest.raises(DataError) as caught:
            write_csl(tmp_path, lines).split("train")
        message = str(caught.value)
        assert message.startswith(str(tmp_path / "data.csv")) and says in message and message.isprintable()

    def test_another_first_line_is_one_sentence(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"data\.csv needs one column 'label_neg'; its first line has 'filepath', "):
            write_csl(tmp_path, ["a.jpg,[/m/7],train"], "filepath,label,split_name").split("train")

    def test_many_splits_make_no_long_sentence(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no row with split_name 'train'") as caught:
            write_csl(tmp_path, [f"{row}.jpg,[/m/7],[],{'x' * 40}{row}" for row in range(500)]).split("train")
        assert len(str(caught.value)) - len(str(tmp_path)) < 400

    def test_rows_keep_their_image_over_batches(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("plbench.data.annotations.delimited._BLOCK", 512)
        splits = ["train", "test"]
        lines = [
            f'{row}.jpg,"[/m/{row % 7}, /m/{row % 5}]",[/m/{10 + row % 3}],{splits[row % 2]}' for row in range(200)
        ]
        dataset = write_csl(tmp_path, lines)
        assert labels_of(dataset, "test") == {
            str(row): {f"/m/{row % 7}": 1, f"/m/{row % 5}": 1, f"/m/{10 + row % 3}": -1} for row in range(1, 200, 2)
        }

    def test_the_folder_of_the_copy_is_told_from_that_of_v6(self, fixtures: dict[str, Path], tmp_path: Path) -> None:
        with pytest.raises(DataError, match='give `dataset="openimages-v6-csl"`'):
            OpenImagesV6(fixtures["openimages-v6-csl"]).missing()
        assert OpenImagesV6Csl(tmp_path).missing() == ["data.csv"]


class TestPublication:
    def test_official_counts(self, fixtures: dict[str, Path]) -> None:
        assert OpenImagesV6.official_num_images == {"train": 9_011_219, "validation": 41_620, "test": 125_436}
        assert OpenImagesV3.official_num_classes == 5000
        for kind in ALL:
            assert not is_official(kind(fixtures[kind.name]), kind.protocols[0])

    @pytest.mark.parametrize("kind", ALL)
    def test_the_protocol_takes_labels_as_they_come(self, kind: type[Dataset]) -> None:
        (protocol,) = kind.protocols
        assert protocol.name == f"{kind.name}/v1" and protocol.simulation == "none"
        assert (protocol.train_split, protocol.test_split) == ("train", "test")
        gammas = {"gamma_pos": 0, "gamma_neg": 2, "gamma_unann": 7}
        assert protocol.suggested["pasl-negative"] == gammas
        assert protocol.suggested["selective"] == {**gammas, "eta": 0.05}
        assert "figure 8" in protocol.sources["gammas"]

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_file_that_is_needed_can_be_fetched(self, kind: Any, tmp_path: Path) -> None:
        made = [path for file in kind.downloads for path in (file.makes or (file.path,))]
        needed = [
            str(path.relative_to(tmp_path)) for split in kind.splits for path in kind(tmp_path).annotation_files(split)
        ]
        assert set(needed) <= set(made) and len(made) == len(set(made))
        folders = {f"train/train_{digit}" for digit in "0123456789abcdef"} | {"validation", "test"}
        assert {path for file in kind.downloads if file.kind == "images" for path in file.makes} == folders
        assert {file.split for file in kind.downloads if file.kind == "images"} == set(kind.splits)
        hint = kind(tmp_path).fetch_hint()
        assert f"plbench data download {kind.name}" in hint and "1.7 million" in hint

    def test_what_is_missing_is_named(self, tmp_path: Path) -> None:
        assert OpenImagesV6(tmp_path).missing() == [
            "oidv6-class-descriptions.csv",
            "oidv6-classes-trainable.txt",
            "oidv6-train-annotations-human-imagelabels.csv",
            "test-annotations-human-imagelabels.csv",
            "train/",
            "test/",
        ]
        dataset = write(tmp_path, "", kind=OpenImagesV3)
        (tmp_path / "train" / "train_7").mkdir(parents=True)
        assert dataset.missing() == ["test/"]

    @pytest.mark.skipif(not PUBLISHED.exists(), reason="needs ../shared/published.json")
    def test_recipes_are_what_was_published(self) -> None:
        published: dict[str, Any] = json.loads(PUBLISHED.read_text())
        backbones = {
            table["board"]: table["backbone"] for table in reversed(published["tables"]) if "backbone" in table
        }
        training = published["training"]["openimages_v6"]
        v6, v3 = OpenImagesV6.recipes[0].model, OpenImagesV3.recipes[0].model
        assert OpenImagesV6Csl.recipes[0] == OpenImagesV6.recipes[0]
        assert v6.image_size == training["image_size"] and v6.head == training["head"].partition(":")[0]
        assert training["head"] == f"{v6.head}: features -> {v6.head_width} -> classes"
        assert backbones["openimages-v6"] == "TResNet-M" and v6.backbone.startswith("tresnet_m")
        assert backbones["openimages-v3"].startswith("ResNet-101") and v3.backbone.startswith("resnet101.")
        table = next(table for table in published["tables"] if table["board"] == "openimages-v3")
        assert set(table["metrics"]) - {"map_c"} == {f"group_{number}" for number in range(1, 6)}


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("change", ["labels", "classes", "images"])
def test_the_fingerprint_tells_other_labels_classes_and_images(
    kind: Any, change: str, fixtures: dict[str, Path], tmp_path: Path
) -> None:
    root = tmp_path / "data"
    shutil.copytree(fixtures[kind.name], root)
    before: str = kind(root, cache=tmp_path / "cache").fingerprint()
    assert kind(fixtures[kind.name]).fingerprint() == before  # wherever it lies, with and without a cache
    dataset: IndexedDataset = kind(root)
    if change == "labels":
        path = dataset.annotation_files("test")[0]
        path.write_text(path.read_text().removesuffix("\n"))
    elif change == "classes":
        (root / getattr(dataset, "class_list", OpenImagesV6.class_list)).write_text("/m/00fx\n")
    else:
        Image.new("RGB", (8, 8)).save(next((root / "train").rglob("*.jpg")))
    assert kind(root, cache=tmp_path / "cache").fingerprint() != before


QUICK = ["--recipe", "quick", "--image-size", "32", "--epochs", "1", "--workers", "0", "--json"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.mark.slow
@pytest.mark.parametrize("regime", ["probe", "finetune"])
@pytest.mark.parametrize("name", [kind.name for kind in ALL])
def test_a_run_from_the_files_to_the_record(
    name: str, regime: str, home: Path, fixtures: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLBENCH_CACHE", str(home / "cache"))
    where = ["--data-root", fixtures[name], "--runs", home / "runs"]
    record = plbench("run", "--method", "selective", "--dataset", name, "--regime", regime, *where, *QUICK).json
    assert record["status"] == "done" and record["spec"]["protocol"]["name"] == f"custom/{name}"
    assert (record["data"]["num_train"], record["data"]["num_test"]) == (60, 40)
    params = record["spec"]["method"]["params"]
    assert [params[gamma] for gamma in ("gamma_pos", "gamma_neg", "gamma_unann")] == [0, 2, 7] and params["eta"] == 0.05
    test = record["metrics"]["test"]
    assert 0 <= test["map_c"]["value"] <= 100
    assert ("group_1" in json.dumps(record["metrics"])) == (name == "openimages-v3")

"""What a dataset promises, what it is told by `-D`, and the commands that need no more than that."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from test_cli import plbench

from plbench.api import (
    Annotations,
    BenchmarkProtocol,
    DatasetOptions,
    ImageFiles,
    IndexedDataset,
    LabelledSplit,
    PartialLabels,
    ProgressReport,
    TextColumn,
)
from plbench.cli.options import data_options
from plbench.errors import DataError, PlbenchError
from plbench.python.settings import workspace_of
from plbench.runs.workspace import Workspace, locate_dataset, open_dataset

FIXTURES = ["openimages-v6", "openimages-v6-csl", "openimages-v3"]
LABELS = PartialLabels.from_dense([[1, -1], [0, 1]], ["x", "y"])


def silent(done: int, total: int) -> None:
    """Reports nothing."""


class Written(IndexedDataset):
    """Images named in a text file by split, each with one class; a file of its own tells the classes."""

    name = "written"
    title = "Written"
    licence = "CC0"
    protocols = (
        BenchmarkProtocol(name="written-a/v1", dataset="written"),
        BenchmarkProtocol(name="written-b/v1", dataset="written", train_split="extra"),
    )
    recipes = ()
    splits = ("train", "test", "extra", "unused")
    readings: list[str]

    class Options(DatasetOptions):
        upper: bool = False
        where: Path = Path("here")

    def fetch_hint(self) -> str:
        return "write it"

    def annotation_files(self, split: str) -> list[Path]:
        return [self.root / f"{split}.txt", self.root / "classes.txt"]

    def read(self, split: str, report: ProgressReport) -> Annotations:
        type(self).readings.append(split)
        file, classes = self.annotation_files(split)
        ids = file.read_text().split()
        names = classes.read_text().split()
        if self.options.upper:
            names = [name.upper() for name in names]
        labels = PartialLabels.from_dense(np.eye(len(ids), len(names), dtype=np.int8), names)
        report(1, 1)
        paths = TextColumn.of(f"{split}/{identity}.png" for identity in ids)
        return Annotations(TextColumn.of(ids), labels, paths, {f"of {split}": (names[0],)}, (f"{split} was read",))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "written"
    root.mkdir()
    (root / "classes.txt").write_text("a b c")
    for split in Written.splits:
        (root / f"{split}.txt").write_text(f"{split}-1 {split}-2")
    monkeypatch.setattr(Written, "readings", [], raising=False)
    return root


class TestIndexed:
    def test_preparing_reads_the_splits_that_protocols_use_once(self, root: Path, tmp_path: Path) -> None:
        for cache in (None, tmp_path / "cache"):
            Written.readings.clear()
            dataset = Written(root, cache=cache)
            assert Written.readings == []
            dataset.prepare(silent)
            assert Written.readings == ["train", "test", "extra"] == list(dataset.used_splits())
            for split in dataset.used_splits():
                assert dataset.split(split) is dataset.split(split)
                assert list(dataset.split(split).images.ids) == [f"{split}-1", f"{split}-2"]
            assert dataset.groups() == {"of train": ("a",)} and len(Written.readings) == 3
        Written.readings.clear()
        Written(root, cache=tmp_path / "cache").prepare(silent)
        assert Written.readings == []

    def test_images_are_where_the_annotations_say(self, root: Path) -> None:
        images = Written(root).split("test").images
        assert isinstance(images, ImageFiles)
        assert list(images.paths) == ["test/test-1.png", "test/test-2.png"] and images.root == root

    def test_notes_are_those_of_what_is_open(self, root: Path) -> None:
        dataset = Written(root)
        assert dataset.notes() == {}
        dataset.split("test")
        assert dataset.notes() == {"test": ("test was read",)}

    def test_there_is_no_other_split(self, root: Path) -> None:
        with pytest.raises(DataError, match="'written' has splits train, test, extra, unused, not 'val'"):
            Written(root).split("val")

    def test_splits_agree_on_their_classes(self, root: Path) -> None:
        dataset = Written(root)
        dataset.split("train")
        (root / "classes.txt").write_text("a b d")
        with pytest.raises(DataError, match="define other classes for split 'test' than for 'train'; take both from"):
            dataset.split("test")

    def test_the_fingerprint_follows_files_options_and_images(self, root: Path, tmp_path: Path) -> None:
        def fingerprint(**options: Any) -> str:
            return Written(root, cache=tmp_path / "cache", options=Written.Options(**options)).fingerprint()

        found = [fingerprint()]
        assert fingerprint() == fingerprint(where="there") == Written(root).fingerprint() == found[0]
        found.append(fingerprint(upper=True))
        (root / "unused.txt").write_text("other")
        assert fingerprint() == found[0]
        (root / "train").mkdir()
        (root / "train" / "train-1.png").write_bytes(b"123")
        found.append(fingerprint())
        (root / "extra.txt").write_text("extra-1 extra-3")
        found.append(fingerprint())
        assert len(set(found)) == 4

    def test_who_opens_it_is_told_how_far_it_is(self, root: Path) -> None:
        seen: list[tuple[int, int]] = []
        Written(root).prepare(lambda done, total: seen.append((done, total)))
        assert seen == [(1, 1)] * 3


def test_images_and_labels_are_as_many(tmp_path: Path) -> None:
    images = ImageFiles(tmp_path, ("a", "b"), ("1", "2"))
    split = LabelledSplit(images, LABELS)
    part = split.subset(np.array([1, 1, 0]))
    assert list(part.images.ids) == ["2", "2", "1"] and part.labels.rows([0, 2]).tolist() == [[0, 1], [1, -1]]
    with pytest.raises(DataError, match="3 images but 2 rows of labels"):
        LabelledSplit(ImageFiles(tmp_path, ("a", "b", "c"), ("1", "2", "3")), LABELS)


def test_options_are_strict_and_immutable() -> None:
    options = Written.Options(upper=True)
    assert options.meaning() == {"upper": True}  # where it lies means nothing
    with pytest.raises(ValidationError):
        Written.Options(uper=True)
    with pytest.raises(ValidationError):
        options.upper = False  # type: ignore[misc]


class TestDataOptions:
    @pytest.fixture
    def workspace(self, make_workspace: Callable[..., Workspace], root: Path) -> Workspace:
        return replace(make_workspace(Written), data_root=root)

    def test_names_and_values(self) -> None:
        others = ["layout=wide", "text=a=b", "empty="]
        given = {"labels": Path("a.csv"), "negative_value": "0", "data_option": others, "images": None}
        assert data_options(given) == {"layout": "wide", "text": "a=b", "empty": ""}
        own = {"labels": Path("a.csv"), "negative_value": "0"}
        assert workspace_of({**given, "data_options": data_options(given)}).data_options == own | data_options(given)
        assert data_options({"data_option": None}) == {}

    @pytest.mark.parametrize("text", ["layout", "=wide", "", "="])
    def test_another_form(self, text: str) -> None:
        with pytest.raises(PlbenchError, match="is not of the form name=value, such as -D layout=wide"):
            data_options({"data_option": [text]})

    @pytest.mark.parametrize("others", [["layout=a", "layout=b"], ["labels=b.csv"]])
    def test_twice(self, others: list[str]) -> None:
        with pytest.raises(PlbenchError, match=rf"-D {others[-1][:6]} is given twice"):
            data_options({"labels": Path("a.csv"), "data_option": others})

    def test_they_reach_the_dataset(self, workspace: Workspace) -> None:
        dataset = open_dataset("written", replace(workspace, data_options={"upper": "true"}))
        assert dataset.options.upper is True and dataset.split("train").labels.class_ids == ("A", "B", "C")

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"uper": "1"}, r"dataset 'written' has no option 'uper'; did you mean upper\? \(known: upper, where\)"),
            (
                {"upper": "perhaps"},
                "'written': upper = 'perhaps' is not valid: expected true or false",
            ),
        ],
    )
    def test_what_the_dataset_does_not_take(self, options: dict[str, str], says: str, workspace: Workspace) -> None:
        with pytest.raises(PlbenchError, match=says):
            locate_dataset("written", replace(workspace, data_options=options))

    @pytest.mark.parametrize("command", ["run", "verify", "stats", "show", "prepare"])
    @pytest.mark.parametrize(
        ("option", "says"),
        [
            ("nonsense", "-D 'nonsense' is not of the form name=value"),
            ("split=2", "dataset 'openimages-v6' has no option 'split'; it takes none"),
        ],
    )
    def test_every_command_says_it_in_one_sentence(self, option: str, says: str, command: str, tmp_path: Path) -> None:
        start: list[object] = ["data", command, "openimages-v6", "--data-root", tmp_path]
        if command == "run":
            start = ["run", "-m", "ce-ignore", "-d", "openimages-v6", "--data-root", tmp_path]
        said = plbench(*start, *(["--out", tmp_path / "out"] if command == "prepare" else []), "-D", option)
        assert said.code == 2 and said.out == "" and says in said.err
        assert said.err.startswith("plbench: error: ") and said.err.count("\n") == 1
        assert list(tmp_path.iterdir()) == []


class TestMakeFixture:
    @pytest.mark.parametrize("name", FIXTURES)
    def test_it_is_a_dataset_that_lacks_nothing(self, name: str, tmp_path: Path) -> None:
        said = plbench("data", "make-fixture", name, tmp_path / "new" / "folder")
        assert said.code == 0 and said.out == f"wrote a {name} fixture to {tmp_path / 'new' / 'folder'}\n"
        shown = plbench("data", "show", name, "--data-root", tmp_path / "new" / "folder", "--json").json
        assert shown["state"] == "here"
        again = plbench("data", "make-fixture", name, tmp_path / "again", "--json").json
        assert again == {"dataset": name, "folder": str(tmp_path / "again")}
        files = [
            {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
            for folder in (tmp_path / "new" / "folder", tmp_path / "again")
        ]
        assert files[0] == files[1] and len(files[0]) > 60

    @pytest.mark.parametrize("name", FIXTURES)
    def test_a_folder_with_something_in_it_is_left_alone(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text("mine")
        said = plbench("data", "make-fixture", name, tmp_path)
        assert said.code == 2 and f"{tmp_path} holds other files; give a new or empty folder" in said.err
        assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

    def test_an_empty_folder_is_filled_and_a_file_is_refused(self, tmp_path: Path) -> None:
        assert plbench("data", "make-fixture", "openimages-v3", tmp_path).code == 0
        said = plbench("data", "make-fixture", "openimages-v3", tmp_path / "test.tar")
        assert said.code == 2 and said.err.count("\n") == 1 and "test.tar" in said.err

    def test_a_dataset_without_one_says_so(self, tmp_path: Path) -> None:
        said = plbench("data", "make-fixture", "scenes", tmp_path / "new")
        assert said.code == 2 and "dataset 'scenes' comes with no fixture" in said.err
        assert not (tmp_path / "new").exists()


def cpu_seconds(*arguments: str) -> float:
    """Of one `plbench ARGUMENTS` in a process of its own."""
    process = subprocess.Popen([sys.executable, "-m", "plbench", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("command", [(), ("data",), ("data", "prepare")])
def test_help_imports_nothing_slow(command: tuple[str, ...]) -> None:
    assert min(cpu_seconds(*command, "--help") for _ in range(3)) < 0.5

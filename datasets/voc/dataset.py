"""Pascal VOC as a multi-label dataset: 20 classes, each present, absent or difficult in every image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from plbench.api import (
    Annotations,
    DataError,
    DatasetOptions,
    IndexedDataset,
    PartialLabels,
    ProgressReport,
    Recipe,
    RemoteFile,
    TextColumn,
)
from plbench.data.recipes import cole2021_recipe, mlr_pl_recipe, quick_recipe

from ..checksums import published_file
from ..complete_labels import simulated_protocols
from .fixture import write_voc_fixture

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_VALUES = {"1": 1, "0": 0, "-1": -1}
_TAKEN_FOR = {"absent": -1, "unknown": 0, "present": 1}


class VocOptions(DatasetOptions):
    """What a difficult label is taken for."""

    difficult: Literal["absent", "unknown", "present"] = Field(
        "absent", description="what 0 in the files means; a simulation needs absent or present"
    )


class _Voc(IndexedDataset):
    """Both years: `VOCdevkit/VOCYEAR/ImageSets/Main/SPLIT.txt`, `CLASS_SPLIT.txt` beside it, and `JPEGImages`.

    A line names an image and says 1, -1, or 0 for a class whose every object in it is marked difficult. The official
    evaluation leaves those out (`difficult=unknown`); papers on partial labels take them for absent, as Cole et al.
    (CVPR 2021) do, which is the default here; some loaders take them for present.
    """

    licence = "Flickr's terms of use; annotations by the Pascal VOC organisers, for research"
    sources: ClassVar = ("https://host.robots.ox.ac.uk/pascal/VOC/",)
    recipes: ClassVar[tuple[Recipe, ...]] = (quick_recipe(image_size=224),)
    collections = ("voc",)
    official_num_classes = 20
    options: VocOptions
    year: ClassVar[int]

    class Options(VocOptions):
        """What a difficult label is taken for."""

    @property
    def _lists(self) -> Path:
        return self.root / "VOCdevkit" / f"VOC{self.year}" / "ImageSets" / "Main"

    def annotation_files(self, split: str) -> Sequence[Path]:
        """Return the list of images, and one file a class."""
        return [self._lists / f"{name}{split}.txt" for name in ("", *(f"{one}_" for one in CLASSES))]

    def missing(self) -> list[str]:
        """Return the lists and the folder of images that are not there."""
        lists = [path for split in self.used_splits() for path in self.annotation_files(split)]
        needed = (*lists, self._lists.parents[1] / "JPEGImages")
        return [str(path.relative_to(self.root)) for path in needed if not path.exists()]

    def fetch_hint(self) -> str:
        """Return the command that gets VOC, and where it is published."""
        return f"run plbench data download {self.name}, or unpack the archives of {self.sources[0]} in {self.root}"

    def read(self, split: str, report: ProgressReport) -> Annotations:
        """Return the labels of one split, in the order of its list; what a class's file leaves out is unknown.

        Raises:
            DataError: if a line is malformed, or a class's file has an image that the list of the split has not.
        """
        listed, *files = self.annotation_files(split)
        rows = {name: row for row, (name,) in enumerate(_read_lines(listed, "an image", 1))}
        values = np.zeros((len(rows), len(CLASSES)), np.int8)
        said = np.zeros(len(CLASSES), np.int64)
        difficult = _TAKEN_FOR[self.options.difficult]
        num_difficult = 0
        for column, path in enumerate(files):
            for name, value in _read_lines(path, "an image and 1, 0 or -1", 2):
                if name not in rows or value not in _VALUES:
                    what = f"value {value!r:.20}, expected 1, 0 or -1" if name in rows else f"not in {listed.name}"
                    raise DataError(f"{path}: image {name!r:.40}: {what}")
                values[rows[name], column] = _VALUES[value] or difficult
                num_difficult += value == "0"
                said[column] += 1
            report(column + 1, len(files))
        notes = [f"{num_difficult:,} labels are difficult (0 in the files): taken for {self.options.difficult}"]
        if lacking := int(len(rows) * len(CLASSES) - said.sum()):
            notes.append(f"{lacking:,} labels are in no file of a class: unknown")
        return Annotations(
            TextColumn.of(rows),
            PartialLabels.from_dense(values, class_ids=CLASSES, class_names=CLASSES),
            TextColumn.of(f"VOCdevkit/VOC{self.year}/JPEGImages/{name}.jpg" for name in rows),
            notes=tuple(notes),
        )

    def make_fixture(self) -> None:
        """Write 60 and 30 pictures with labels of all classes, some of them difficult, laid out as VOC is."""
        sizes = dict(zip(self.used_splits(), (60, 30), strict=True))
        write_voc_fixture(self._lists.parents[1], sizes, CLASSES)


def _read_lines(path: Path, expected: str, num_words: int) -> list[list[str]]:
    """Return the words of each line, with blanks between them, the first of each line once."""
    try:
        lines = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    seen = set()
    for number, words in enumerate(lines, 1):
        if len(words) != num_words or words[0] in seen:
            raise DataError(f"{path}, line {number}: {' '.join(words)!r:.60}; expected {expected}, each image once")
        seen.add(words[0])
    return lines


def _archive(year: int, name: str, split: str) -> RemoteFile:
    made = f"VOCdevkit/VOC{year}/ImageSets/Main/person_{split}.txt"
    address = f"https://thor.robots.ox.ac.uk/pascal/VOC/voc{year}/{name}"
    return published_file(address, kind="images", unpack=".", makes=(made,))


class Voc2007(_Voc):
    """Pascal VOC 2007: 5,011 trainval and 4,952 test images, whose labels are public.

    Average precision here is the area under the curve, as for all datasets; VOC 2007's own is a mean over 11 points.
    """

    name = "voc2007"
    title = "Pascal VOC 2007"
    year = 2007
    splits = ("train", "val", "trainval", "test")
    recipes = (*_Voc.recipes, mlr_pl_recipe())
    protocols = simulated_protocols(
        "voc2007", ("single-positive", "rpa=0.5", "none"), train_split="trainval", test_split="test"
    )
    official_num_images: ClassVar = {"trainval": 5011, "test": 4952}
    downloads = (
        _archive(2007, "VOCtrainval_06-Nov-2007.tar", "trainval"),
        _archive(2007, "VOCtest_06-Nov-2007.tar", "test"),
    )


class Voc2012(_Voc):
    """Pascal VOC 2012: 5,717 train and 5,823 val images; the labels of its own test set are not public."""

    name = "voc2012"
    title = "Pascal VOC 2012"
    year = 2012
    splits = ("train", "val", "trainval")
    recipes = (*_Voc.recipes, cole2021_recipe(8, 1e-5))
    protocols = simulated_protocols(
        "voc2012", ("single-positive", "rpa=0.5", "none", "cole2021"), train_split="train", test_split="val"
    )
    official_num_images: ClassVar = {"train": 5717, "val": 5823}
    downloads = (_archive(2012, "VOCtrainval_11-May-2012.tar", "val"),)

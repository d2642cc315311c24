"""Visual Genome as a multi-label dataset: its 200 or 500 most frequent categories."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import msgspec
import numpy as np
from pydantic import Field

from plbench.api import (
    Annotations,
    DataError,
    DatasetOptions,
    ImageFiles,
    ImageSource,
    IndexedDataset,
    PartialLabels,
    ProgressReport,
    Recipe,
    RemoteFile,
    TextColumn,
)
from plbench.data.recipes import mlr_pl_recipe, quick_recipe

from ..complete_labels import COMMON, MLR_PL, complete_labels, simulated_protocols
from ..json_file import read_json
from ..visual_genome import COLLECTIONS, IMAGE_ARCHIVES, image_paths, missing_folders
from .fixture import write_vg_fixture

NUM_INDEXED = 500  # categories in the larger label file
_NAME = re.compile(r"[^/\\\s]+\.jpg")
_LISTS_AT = "https://raw.githubusercontent.com/HCPLab-SYSU/SSGRL/master/data/VG"
_LISTS = tuple(
    RemoteFile(url=f"{_LISTS_AT}/{name}", path=name, kind="annotations")
    for name in ("train_list_500.txt", "test_list_500.txt", "vg_category_500_labels_index.json")
)


class VgOptions(DatasetOptions):
    """What a category that an image's list leaves out is taken for."""

    unlisted: Literal["absent", "unknown"] = Field(
        "absent", description="what a category is that no list has; a simulation needs absent"
    )


class _Vg(IndexedDataset):
    """Both sizes: `{train,test}_list_500.txt`, and for each image the numbers of its categories.

    `vg_category_{200,500}_labels_index.json` is one object, `{"2360596.jpg": [3, 41], ...}`; the images lie in
    `VG_100K` and `VG_100K_2`, or all in the first. The categories were collected from annotated objects; nobody
    verified that another is absent. Published evaluations (SSGRL, ICCV 2019; SST and SARB, AAAI 2022) take it for
    absent, which is the default here. The files have no names of categories: they are called by their numbers.
    """

    licence = "annotations CC BY 4.0 (Visual Genome); photographs under their own Flickr licences"
    sources: ClassVar = ("https://github.com/HCPLab-SYSU/SSGRL", "https://visualgenome.org/")
    recipes: ClassVar[tuple[Recipe, ...]] = (quick_recipe(image_size=224),)
    collections = COLLECTIONS
    official_num_images: ClassVar = {"train": 82_904, "test": 10_000}
    downloads = (*_LISTS, *IMAGE_ARCHIVES)
    options: VgOptions

    class Options(VgOptions):
        """What a category that an image's list leaves out is taken for."""

    @property
    def num_categories(self) -> int:
        """C."""
        assert self.official_num_classes is not None
        return self.official_num_classes

    @property
    def _index_file(self) -> Path:
        """The label file of this size; that of all 500 where it is not there, whose first 200 are the smaller's."""
        own = self.root / f"vg_category_{self.num_categories}_labels_index.json"
        return own if own.exists() else self.root / f"vg_category_{NUM_INDEXED}_labels_index.json"

    def annotation_files(self, split: str) -> Sequence[Path]:
        """Return the list of the split's images, and the label file."""
        return [self.root / f"{split}_list_500.txt", self._index_file]

    def missing(self) -> list[str]:
        """Return the lists and the label file that are not there, and the folders of images where neither is."""
        needed = dict.fromkeys(path for split in self.splits for path in self.annotation_files(split))
        return [path.name for path in needed if not path.exists()] + missing_folders(self.root)

    def fetch_hint(self) -> str:
        """Return the command that gets it, and where it is published."""
        return (
            f"run plbench data download {self.name}, or put the lists and labels of {self.sources[0]} (data/VG) and "
            f"the images of {self.sources[1]} in {self.root}"
        )

    def read(self, split: str, report: ProgressReport) -> Annotations:
        """Return the labels of one split, in the order of its list, which published masks follow.

        Raises:
            DataError: if a list names an image twice or one without labels, or a category has another number.
        """
        list_file, index_file = self.annotation_files(split)
        names = _read_names(list_file)
        index = read_json(index_file, dict[str, msgspec.Raw])
        from_all = index_file.name != f"vg_category_{self.num_categories}_labels_index.json"
        limit = NUM_INDEXED if from_all else self.num_categories
        present = np.zeros((len(names), self.num_categories), np.bool_)
        num_left_out = 0
        for row, name in enumerate(names):
            if name not in index:
                raise DataError(f"{list_file}, line {row + 1}: {name} has no entry in {index_file.name}")
            for number in _numbers(index_file, name, index[name]):
                if not 0 <= number < limit:
                    raise DataError(f"{index_file}: {name} has category {number}; expected 0 to {limit - 1}")
                if number < self.num_categories:
                    present[row, number] = True
                else:
                    num_left_out += 1
        report(len(names), len(names))
        num_unlisted = present.size - int(present.sum())
        notes = [f"{num_unlisted:,} labels are not listed, and verified by nobody: taken for {self.options.unlisted}"]
        if from_all:
            notes.append(
                f"labels come from {index_file.name}: its first {self.num_categories} categories; {num_left_out:,} "
                "labels of the others are left out"
            )
        if num_empty := int((~present.any(axis=1)).sum()):
            notes.append(f"images with none of the {self.num_categories} categories: {num_empty:,}; they stay")
        ids = _class_ids(self.num_categories)
        is_complete = self.options.unlisted == "absent"
        labels = complete_labels(present, ids, ids) if is_complete else PartialLabels.from_dense(present, ids)
        return Annotations(
            TextColumn.of(name.removesuffix(".jpg") for name in names),
            labels,
            notes=tuple(notes),
        )

    def images(self, split: str, annotations: Annotations) -> ImageSource:
        """Return files in whichever of the two folders has them."""
        ids = annotations.image_ids
        return ImageFiles(self.root, image_paths(self.root, (f"{image_id}.jpg" for image_id in ids)), ids)

    def make_fixture(self) -> None:
        """Write 60 train and 30 test pictures in two folders, their lists and labels."""
        write_vg_fixture(self.root, self.num_categories)


def _class_ids(number: int) -> tuple[str, ...]:
    return tuple(map(str, range(number)))


def _numbers(path: Path, name: str, text: msgspec.Raw) -> list[int]:
    try:
        return msgspec.json.decode(text, type=list[int])
    except msgspec.ValidationError as error:
        raise DataError(
            f"{path}: {name} has {bytes(text).decode(errors='replace')!r:.60}; expected a list of numbers"
        ) from error


def _read_names(path: Path) -> list[str]:
    """Return file names, one a line; the last line need not end."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not _NAME.fullmatch(line.strip()):
            raise DataError(f"{path}, line {number}: {line!r:.60}; expected the name of an image, such as 2360596.jpg")
        if (first := seen.setdefault(line.strip(), number)) != number:
            raise DataError(f"{path}, line {number}: {line.strip()} is that of line {first} too; expected each once")
    return list(seen)


class Vg200(_Vg):
    """Visual Genome, the 200 most frequent categories: 82,904 train and 10,000 test photographs.

    The lists are those of 500 categories, and the categories are the first 200 of them: public scripts make the
    smaller label file by keeping the numbers below 200. `mlr-pl0.1` to `0.9` are the masks of SST and SARB
    (HCP-MLR-PL), whose rows follow the list.
    """

    name = "vg-200"
    title = "Visual Genome, 200 categories"
    recipes = (*_Vg.recipes, mlr_pl_recipe())
    official_num_classes = 200
    protocols = simulated_protocols("vg-200", (*MLR_PL, *COMMON))


class Vg500(_Vg):
    """Visual Genome, the 500 most frequent categories, as SSGRL has them: 82,904 train and 10,000 test photographs."""

    name = "vg-500"
    title = "Visual Genome, 500 categories"
    official_num_classes = 500
    protocols = simulated_protocols("vg-500", COMMON)

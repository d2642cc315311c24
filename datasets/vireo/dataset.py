"""Vireo Food-172: photographs of Chinese dishes, 353 ingredients, each present or absent in every image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    TextColumn,
)
from plbench.data.recipes import quick_recipe

from ..complete_labels import COMMON, check_size, simulated_protocols
from .fixture import write_vireo_fixture

_LISTS = {"train": "TR.txt", "val": "VAL.txt", "test": "TE.txt"}
_ZERO = {"absent": -1, "unknown": 0}


class VireoFood172(IndexedDataset):
    """66,071 train, 11,016 val and 33,154 test photographs of 172 dishes with 353 ingredients.

    Chen and Ngo, "Deep-based Ingredient Recognition for Cooking Recipe Retrieval" (ACM MM 2016); public loaders state
    the numbers. `SplitAndIngreLabel/{TR,VAL,TE}.txt` list paths that begin with `/`, below `ready_chinese_food`;
    `IngreLabel.txt` has a path and 353 values a line, 1 for an ingredient that is visible; `IngredientList.txt` names
    them, a line each. Loaders read -1 as absent, and differ in what else they take for it, hence the option.
    """

    name = "vireo-food-172"
    title = "Vireo Food-172 (ingredients)"
    licence = "for research, on request to its authors"
    sources = ("https://fvl.fudan.edu.cn/dataset/vireofood172/list.htm",)
    recipes = (quick_recipe(image_size=224),)
    splits = ("train", "val", "test")
    official_num_images: ClassVar = {"train": 66_071, "val": 11_016, "test": 33_154}
    official_num_classes = 353
    protocols = simulated_protocols("vireo-food-172", COMMON)

    class Options(DatasetOptions):
        """What 0 in the file of ingredients is taken for, if there is any."""

        zero: Literal["absent", "unknown"] = Field("absent", description="what 0 means; a simulation needs absent")

    options: Options

    @property
    def _folder(self) -> Path:
        return self.root / "SplitAndIngreLabel"

    def annotation_files(self, split: str) -> Sequence[Path]:
        """Return the list of the split, the ingredients of all images, and the ingredients' names."""
        return [self._folder / name for name in (_LISTS[split], "IngreLabel.txt", "IngredientList.txt")]

    def missing(self) -> list[str]:
        """Return the text files and the folder of images that are not there."""
        files = dict.fromkeys(path for split in self.used_splits() for path in self.annotation_files(split))
        needed = (*files, self.root / "ready_chinese_food")
        return [str(path.relative_to(self.root)) for path in needed if not path.exists()]

    def fetch_hint(self) -> str:
        """Return where both parts are published."""
        return (
            f"ask for it at {self.sources[0]}, and unpack SplitAndIngreLabel.zip and the images (ready_chinese_food) "
            f"in {self.root}"
        )

    def read(self, split: str, report: ProgressReport) -> Annotations:
        """Return the labels of one split, in the order of its list.

        Raises:
            DataError: if a line is malformed, or an image of the list has no ingredients or has them twice.
        """
        listed, labels_path, names_path = self.annotation_files(split)
        names = tuple(line for _, line in _lines(names_path))
        row_of: dict[str, int] = {}
        for number, path in _lines(listed):
            if path in row_of or " " in path:
                raise DataError(f"{listed}, line {number}: {path!r:.80}; expected a path, each once")
            row_of[path] = len(row_of)
        value_of = {"1": 1, "-1": -1, "0": _ZERO[self.options.zero]}
        check_size(len(row_of), len(names), labels_path)
        values = np.zeros((len(row_of), len(names)), np.int8)
        met, zeros, size = np.zeros(len(row_of), bool), 0, labels_path.stat().st_size
        for number, line in _lines(labels_path):
            path, _, rest = line.partition(" ")
            if (row := row_of.get(path)) is None:
                continue  # of another split
            words = rest.split()
            if met[row] or len(words) != len(names) or not value_of.keys() >= {*words}:
                raise DataError(
                    f"{labels_path}, line {number}: {path!r:.80} with {len(words)} values; expected each image once, "
                    f"with 1, 0 or -1 for each of {len(names)} ingredients"
                )
            met[row] = True
            values[row] = [value_of[word] for word in words]
            zeros += words.count("0")
            if number % 1000 == 0:
                report(min(size, number * len(line)), size)
        paths = [path.lstrip("/") for path in row_of]
        if not met.all():
            raise DataError(f"{labels_path} has no line for {paths[int(np.argmin(met))]!r:.80} of {listed.name}")
        return Annotations(
            TextColumn.of(path.rpartition(".")[0] or path for path in paths),
            PartialLabels.from_dense(
                values, class_ids=tuple(str(number) for number in range(1, len(names) + 1)), class_names=names
            ),
            TextColumn.of(f"ready_chinese_food/{path}" for path in paths),
            notes=(f"{zeros:,} labels are 0, neither 1 nor -1: taken for {self.options.zero}",) if zeros else (),
        )

    def make_fixture(self) -> None:
        """Write 60 train and 30 test pictures of dishes with 12 ingredients, laid out as Vireo Food-172 is."""
        write_vireo_fixture(self.root)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not empty, numbered, without blanks around them."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if text := line.strip():
                    yield number, text
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error

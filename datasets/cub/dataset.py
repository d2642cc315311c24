"""Caltech-UCSD Birds 200-2011: 312 attributes of birds, each present, absent or not visible in every photograph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from plbench.api import (
    Annotations,
    BenchmarkProtocol,
    DataError,
    IndexedDataset,
    PartialLabels,
    ProgressReport,
    Recipe,
    TextColumn,
)
from plbench.data.recipes import cole2021_recipe, quick_recipe

from ..complete_labels import check_size, simulated_protocols
from .fixture import write_cub_fixture

NOT_VISIBLE = "1"  # of the four levels of certainty


class CubAttributes(IndexedDataset):
    """5,994 train and 5,794 test photographs of birds, 312 attributes; what is "not visible" is unknown.

    `CUB_200_2011/{images.txt, train_test_split.txt, attributes/image_attribute_labels.txt, images/}`, and
    `attributes.txt` beside that folder, as the archive has it.
    """

    name = "cub-attributes"
    title = "CUB-200-2011, attributes"
    licence = "for research and education, non-commercial; photographs by their photographers"
    sources = ("https://www.vision.caltech.edu/datasets/cub_200_2011/",)
    recipes: ClassVar[tuple[Recipe, ...]] = (quick_recipe(image_size=224),)
    official_num_images: ClassVar = {"train": 5994, "test": 5794}
    official_num_classes = 312
    protocols: ClassVar[tuple[BenchmarkProtocol, ...]] = (
        BenchmarkProtocol(name="cub-attributes/v1", dataset="cub-attributes"),
    )
    not_visible: ClassVar[int] = 0  # the label that it is given

    @property
    def _folder(self) -> Path:
        return self.root / "CUB_200_2011"

    def annotation_files(self, split: str) -> Sequence[Path]:
        """Return the four text files, of both splits."""
        names = ("images.txt", "train_test_split.txt", "attributes/image_attribute_labels.txt")
        inside = self._folder / "attributes.txt"  # where some copies have it
        return [*(self._folder / name for name in names), inside if inside.exists() else self.root / "attributes.txt"]

    def missing(self) -> list[str]:
        """Return the text files and the folder of images that are not there."""
        needed = (*self.annotation_files("train"), self._folder / "images")
        return [str(path.relative_to(self.root)) for path in needed if not path.exists()]

    def fetch_hint(self) -> str:
        """Return where it is published."""
        return f"download CUB_200_2011.tgz from {self.sources[0]} and unpack it in {self.root}"

    def read(self, split: str, report: ProgressReport) -> Annotations:
        """Return the labels of one split, in the order of the list of images.

        Raises:
            DataError: if a line is malformed, or names an image or attribute that is not listed.
        """
        images_path, split_path, labels_path, attributes_path = self.annotation_files(split)
        attributes = {number: name for _, (number, name) in _lines(attributes_path, 2)}
        paths = {number: path for _, (number, path) in _lines(images_path, 2)}
        wanted = "1" if split == "train" else "0"
        chosen = [number for _, (number, is_train) in _lines(split_path, 2) if is_train == wanted]
        if lost := next((number for number in chosen if number not in paths), None):
            raise DataError(f"{split_path}: image {lost} is not in {images_path.name}")
        row_of = {number: row for row, number in enumerate(chosen)}
        column_of = {number: column for column, number in enumerate(attributes)}
        check_size(len(chosen), len(attributes), labels_path)
        values = np.zeros((len(chosen), len(attributes)), np.int8)
        size, hidden = labels_path.stat().st_size, 0
        for place, (number, attribute, present, certainty) in _lines(labels_path, 4):
            if number not in paths or attribute not in column_of or present not in ("0", "1"):
                what = (
                    "1 or 0" if number in paths and attribute in column_of else "an image and an attribute of the lists"
                )
                raise DataError(f"{labels_path}, line {place}: {number} {attribute} {present}; expected {what}")
            if (row := row_of.get(number)) is not None:
                is_hidden = certainty == NOT_VISIBLE
                hidden += is_hidden
                values[row, column_of[attribute]] = self.not_visible if is_hidden else 2 * int(present) - 1
            if place % 100_000 == 0:
                report(min(size, size * place // (len(paths) * len(attributes))), size)
        return Annotations(
            TextColumn.of(chosen),
            PartialLabels.from_dense(values, class_ids=tuple(attributes), class_names=tuple(attributes.values())),
            TextColumn.of(f"CUB_200_2011/images/{paths[number]}" for number in chosen),
            notes=(
                f"{hidden:,} attributes are not visible (certainty 1): {'absent' if self.not_visible else 'unknown'}",
            ),
        )

    def make_fixture(self) -> None:
        """Write 60 train and 30 test pictures with 24 attributes, laid out as CUB is."""
        write_cub_fixture(self.root)


class CubAttributesCole(CubAttributes):
    """The same photographs as Cole et al. (CVPR 2021) have them: what is not visible is absent, so all is known."""

    name = "cub-attributes-cole"
    title = "CUB-200-2011, attributes, complete"
    recipes = (*CubAttributes.recipes, cole2021_recipe(8, 1e-4))
    protocols = simulated_protocols("cub-attributes-cole", ("single-positive", "cole2021", "rpa=0.5", "none"))
    not_visible = -1


def _lines(path: Path, num_words: int) -> Iterator[tuple[int, list[str]]]:
    """Yield number and first words of each line; some lines of the published labels have words too many."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                words = line.split()
                if len(words) < num_words:
                    raise DataError(f"{path}, line {number}: {line.strip()!r:.60}; expected {num_words} words or more")
                yield number, words[:num_words]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error

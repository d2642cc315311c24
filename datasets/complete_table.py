"""Photographs with complete labels in one table, and a split that comes with plbench."""

from __future__ import annotations

import csv
import lzma
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from importlib.resources import files
from io import StringIO
from pathlib import Path
from typing import ClassVar

import numpy as np

from plbench.api import (
    Annotations,
    DataError,
    IndexedDataset,
    PartialLabels,
    ProgressReport,
    TextColumn,
)
from plbench.files import write_text

from .table.csv_file import open_table
from .table.layouts import read_table
from .table.options import TableOptions


class CompleteTable(IndexedDataset):
    """One wide table: a row for every image, 1 or 0 for every class; its images are a list that comes with plbench.

    Class attributes:
        class_names: [C] in the order of the labels; class_ids: [C], their names where left out.
    """

    class_names: ClassVar[tuple[str, ...]]
    class_ids: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def image_id(self, name: str) -> str:
        """Return the id by which the list of the split knows what the table calls an image."""

    @abstractmethod
    def table_options(self) -> TableOptions:
        """Return how the table is to be read."""

    @abstractmethod
    def image_path(self, image_id: str) -> str:
        """Return where an image lies below the root."""

    @cached_property
    def shipped_split(self) -> dict[str, str]:
        """`train` or `test` by image id, in the order of the labels."""
        content = (files(self.__class__.__module__.rpartition(".")[0]) / "split.csv.xz").read_bytes()
        _, *lines = lzma.decompress(content).decode().splitlines()
        return dict(line.split(",") for line in lines)

    def read(self, split: str, report: ProgressReport) -> Annotations:
        """Return complete labels of one split, in the order of the list.

        Raises:
            DataError: if the table is malformed, has other classes, or images that are not on the list.
        """
        path = self.annotation_files(split)[0]
        found, _ = read_table(open_table(path, self.table_options()), self.table_options(), report)
        labels = self._checked(found.labels, path)
        rows = {self.image_id(name): row for row, name in enumerate(found.image_ids)}
        for image_id in rows:
            if image_id not in self.shipped_split:
                raise DataError(
                    f"{path}: image {image_id!r:.80} is not one of the {len(self.shipped_split):,} of {self.name}"
                )
        chosen = [image_id for image_id, part in self.shipped_split.items() if part == split and image_id in rows]
        part_labels = labels.subset(np.array([rows[image_id] for image_id in chosen], np.int64))
        return Annotations(
            TextColumn.of(chosen),
            part_labels,
            TextColumn.of(map(self.image_path, chosen)),
            self.class_groups(part_labels) if split == "train" else {},
        )

    def class_groups(self, train: PartialLabels) -> dict[str, tuple[str, ...]]:
        """Return named groups of class ids, from the complete labels of train; tables report them."""
        return {}

    def _checked(self, labels: PartialLabels, path: Path) -> PartialLabels:
        """Return the table's labels with the classes in the order of this dataset."""
        names = labels.class_names
        if other := sorted({*self.class_names} ^ {*names}):
            state = "has" if other[0] in names else "lacks"
            raise DataError(
                f"{path} {state} a column {other[0]!r:.60}; {self.title} has the {len(self.class_names)} classes "
                f"{', '.join(self.class_names[:3])}, …"
            )
        if not labels.is_complete:
            raise DataError(f"{path} has cells without 1 or 0; every label of {self.title} is known")
        columns = np.array([names.index(name) for name in self.class_names])
        dense = labels.rows(np.arange(labels.num_images))[:, columns]
        return PartialLabels.from_dense(
            dense, class_ids=self.class_ids or self.class_names, class_names=self.class_names
        )


def write_table(dataset: CompleteTable, rows: Iterable[tuple[str, str, Sequence[int]]]) -> None:
    """Write `labels.csv` into the dataset's folder.

    Args:
        dataset: whose classes and folder.
        rows: id, split, and columns of the classes that are present, of each image.
    """
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "split", *dataset.class_names])
    for image_id, split, present in rows:
        shown = {*present}
        name = dataset.image_path(image_id).rpartition("/")[2]
        writer.writerow([name, split, *(int(column in shown) for column in range(len(dataset.class_names)))])
    write_text(dataset.root / "labels.csv", text.getvalue())

"""A person's own labels: a table in CSV or Parquet, and a folder of images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from plbench.api import (
    Annotations,
    BenchmarkProtocol,
    DataError,
    ImageFiles,
    ImageSource,
    IndexedDataset,
    ProgressReport,
    TextColumn,
)
from plbench.data.recipes import quick_recipe

from ..coco.dataset import PAPER_RECIPE
from .columns import ColumnFinder
from .csv_file import open_table
from .fixture import write_fixture
from .images import check_different, check_names, find_files
from .layouts import SPLITS, read_table
from .options import TableOptions


class Table(IndexedDataset):
    """Your own labels in CSV or Parquet, with a folder of images: docs/your-own-data.md shows how.

    Long: `image,label,value`, a row for every label. Wide: `image` and a column for every class. A `split` column
    names train, test and val; without one, a share of the images tests, by a hash of their names.
    """

    name = "table"
    needs_root = False
    reader_version = "2"
    title = "Your own table"
    licence = "your own"
    protocols = (BenchmarkProtocol(name="custom/table", dataset="table"),)
    recipes = (
        quick_recipe(image_size=224),
        PAPER_RECIPE.model_copy(update={"sources": {"all": "ours: the recipe of COCO; not fitted to your data"}}),
    )
    splits = SPLITS
    options: TableOptions

    class Options(TableOptions):
        """Which files, and how to read what can be read in two ways."""

    def __init__(self, root: Path, *, cache: Path | None = None, options: TableOptions | None = None) -> None:
        """Nothing is read yet. The root is where the fixture goes; images are where the options say."""
        super().__init__(root, cache=cache, options=options)
        if self.options.images is not None:
            self.root = self.options.images
        self._read: dict[str, Annotations] = {}

    def missing(self) -> list[str]:
        """Return what the options do not name.

        Raises:
            DataError: if they name a file or folder that is not there.
        """
        if self.options.labels is None and self.options.images is None:
            return ["`labels=FILE` and `images=DIR`"]
        self._places()
        return []

    def _places(self) -> tuple[Path, Path]:
        """Return table and folder, which are there."""
        labels, images = self.options.labels, self.options.images
        if labels is None or images is None:
            raise DataError(f"dataset 'table' needs `labels=FILE` and `images=DIR`; {self.fetch_hint()}")
        if not labels.is_file():
            what = "is a folder" if labels.is_dir() else "does not exist"
            raise DataError(f'`labels="{labels}"` {what}; expected a CSV or Parquet file')
        if not images.is_dir():
            what = "is a file" if images.exists() else "does not exist"
            raise DataError(f"`images='{images}'` {what}; expected the folder that the table's image names start from")
        return labels, images

    def fetch_hint(self) -> str:
        """Return how to name one's own files."""
        return (
            'give a table of your own labels and the folder of its images, such as `labels="labels.csv"` '
            "`images='photos'` (plbench data make-fixture table DIR writes both to try)"
        )

    def annotation_files(self, split: str) -> Sequence[Path]:
        """Return the table, for every split."""
        return [self._places()[0]]

    def read(self, split: str, report: ProgressReport) -> Annotations:
        """Return what the table says of one split; the others are kept until they are asked for."""
        if split not in self._read:
            table = open_table(self._places()[0], self.options)
            found, splits = read_table(table, self.options, report)
            check_names(found.image_ids, table.path, self._where)
            splits, said = self._assigned(found.image_ids, splits)
            order = pc.array_sort_indices(found.image_ids.array).to_numpy().astype(np.int64)
            for number, name in enumerate(SPLITS):
                rows = order[splits[order] == number]  # whatever the order of rows, it is the same data
                notes = (*table.notes, *found.notes, *said) if name == "train" else ()  # each sentence once
                self._read[name] = Annotations(found.image_ids.take(rows), found.labels.subset(rows), notes=notes)
        return self._read.pop(split)

    def _assigned(
        self, image_ids: TextColumn, splits: npt.NDArray[np.int8] | None
    ) -> tuple[npt.NDArray[np.int8], tuple[str, ...]]:
        """Return [N] index into `SPLITS`, as the table has it or drawn, and notes on how images came to test."""
        labels, column = self._places()[0], self.options.split_column
        train, test, val = range(len(SPLITS))
        notes: tuple[str, ...] = ()
        if splits is None:
            # for good, whatever other images there are
            digests = (hashlib.sha256(f"plbench-table-test:{name}".encode()).digest() for name in image_ids)
            shares = (int.from_bytes(digest[:8], "big") / 2**64 for digest in digests)
            splits = np.fromiter((share < self.options.test_share for share in shares), np.int8, len(image_ids))
            said = f"{splits.sum():,} of {len(splits):,} images test, by a hash of their names"
            none = "no column of splits is used" if column == "none" else f"there is no column {column!r}"
            notes = (f"{none}: {said} (test_share = {self.options.test_share:g})",)
            fix = "add images, a column 'split' of train and test, or give `options.test_share=0.5`"
        elif "test_share" in self.options.model_fields_set:
            raise DataError(
                f"{labels} has a column of splits, so that `options.test_share={self.options.test_share:g}` has no "
                "effect; leave it out, or give `options.split_column='none'` to go by the share"
            )
        else:
            if not np.any(splits == test):
                splits = np.where(splits == val, np.int8(test), splits)
                notes = ("no image is in split test: those in val test",)
            elif num_val := np.count_nonzero(splits == val):
                notes = (f"{num_val:,} images in split val neither train nor test; call them train to train on them",)
            fix = f"column {column!r} must name train, and test or val"
        for split in (train, test):
            if not np.any(splits == split):
                raise DataError(f"{labels}: none of its {len(splits):,} images is in split {SPLITS[split]}; {fix}")
        return splits, notes

    def images(self, split: str, annotations: Annotations) -> ImageSource:
        """Return the files in the folder that the options name."""
        return ImageFiles(self._places()[1], self._paths[split], annotations.image_ids)

    @cached_property
    def _paths(self) -> dict[str, TextColumn]:
        """Files by split; all splits at once, since a file may have two names."""
        folder = self._places()[1]
        ids = {split: self.annotations(split).image_ids for split in SPLITS}
        paths = {split: find_files(names, folder, self._where) for split, names in ids.items()}
        if any(paths[split] is not names for split, names in ids.items()):
            check_different(ids.values(), paths.values(), self._where)
        return paths

    def _where(self, image: str) -> str:
        table = open_table(self._places()[0], self.options)
        return table.where(ColumnFinder(table, self.options).find().image, image)

    def make_fixture(self) -> None:
        """Write `images/`, and the same labels as labels-long.csv, labels-wide.csv and labels.parquet."""
        write_fixture(self.root)

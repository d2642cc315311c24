"""OpenImages V6 as the authors of CSL publish it: same images, one table, a protocol of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plbench.api import Annotations, DataError, IndexedDataset, ProgressReport, TextColumn
from plbench.data.annotations.collect import settle_cells
from plbench.data.annotations.delimited import text_batches
from plbench.data.recipes import quick_recipe
from plbench.files.paths import UNSAFE

from .dataset import V6_RECIPE, OpenImagesV6, protocols
from .files import read_class_list, read_descriptions
from .fixture import write_csl_table

_COLUMNS = dict.fromkeys(("filepath", "label", "label_neg", "split_name"), pa.string())


class OpenImagesV6Csl(IndexedDataset):
    """OpenImages V6 as the authors of CSL publish it: one data.csv, images with a short side of 256 px."""

    name = "openimages-v6-csl"
    title = "OpenImages V6, the CSL authors' copy"
    licence = OpenImagesV6.licence
    sources = ("https://github.com/Alibaba-MIIL/PartialLabelingCSL/blob/main/OpenImages.md",)
    splits = ("train", "val", "test")
    protocols = protocols("openimages-v6-csl")
    official_num_images: ClassVar[Mapping[str, int]] = {"train": 9_011_219, "test": 125_436}  # the same images
    recipes = (V6_RECIPE, quick_recipe(image_size=224))
    collections = ("openimages",)

    def annotation_files(self, split: str) -> Sequence[Path]:
        """Return the table, and class list and names where they lie beside it."""
        beside = [self.root / name for name in (OpenImagesV6.class_list, OpenImagesV6.descriptions)]
        return [self.root / "data.csv", *(path for path in beside if path.is_file())]

    def missing(self) -> list[str]:
        """Return the table, where it is not there."""
        return [] if (self.root / "data.csv").is_file() else ["data.csv"]

    def fetch_hint(self) -> str:
        """Return where the authors say how to get it."""
        return f"its authors say where it is: {self.sources[0]}"

    def make_fixture(self) -> None:
        """Write the published layout with ten classes and 116 images."""
        write_csl_table(self.root)

    def read(self, split: str, report: ProgressReport) -> Annotations:
        """Return the rows of one split: filepath, label, label_neg (lists of MIDs as text), split_name.

        Without a class list beside the table, the classes are those that it names at all.

        Raises:
            DataError: if the table is malformed, or is of another release than the class list.
        """
        path = self.root / "data.csv"
        files: list[pa.Array] = []
        rows, mids, present = [], [], []
        named: set[str] = set()
        splits: set[str] = set()
        num_images = 0
        for batch in text_batches(path, _COLUMNS, report):
            splits.update(pc.unique(batch["split_name"]).to_pylist())
            is_ours = pc.equal(batch["split_name"], split)
            numbers = num_images + np.cumsum(is_ours.to_numpy(zero_copy_only=False)) - 1
            for column in ("label", "label_neg"):
                lines, items = _listed(batch[column])
                _check_mids(pc.unique(items), column, path)
                named.update(pc.unique(items).to_pylist())
                chosen = is_ours.take(lines)
                rows.append(numbers[lines.filter(chosen).to_numpy()])
                mids.append(items.filter(chosen))
                present.append(np.full(len(rows[-1]), column == "label"))
            files.append(batch["filepath"].filter(is_ours))
            num_images += len(files[-1])
        if num_images == 0:
            found = ", ".join(repr(name[:20]) for name in sorted(splits)[:8]) or "none"
            raise DataError(f"{path} has no row with split_name {split!r}; it has {found}")
        listed, described = self.root / OpenImagesV6.class_list, self.root / OpenImagesV6.descriptions
        class_ids = read_class_list(listed) if listed.is_file() else sorted(named)
        names = read_descriptions(described) if described.is_file() else {}
        known = pa.array(class_ids, pa.string())
        columns = np.concatenate([pc.fill_null(pc.index_in(part, value_set=known), -1).to_numpy() for part in mids])
        if columns.size and columns.max() < 0:
            raise DataError(
                f"{path}: {columns.size:,} of {columns.size:,} labels name classes that are not in {listed.name} (such "
                f"as {min(named)}); take both from one release, or move that list away"
            )
        labels, notes = settle_cells(
            np.concatenate(rows),
            columns,
            np.concatenate(present),
            num_images=num_images,
            class_ids=class_ids,
            class_names=[names.get(mid, mid) for mid in class_ids],
        )
        paths = TextColumn.of_arrow(pa.chunked_array(files, pa.string()))
        outside = pc.match_substring_regex(paths.array, UNSAFE)
        if pc.any(outside).as_py():
            first = paths.array.filter(outside)[0].as_py()
            raise DataError(f"{path}: filepath {first[:60]!r} points outside the folder; expected one relative to it")
        ids = pc.replace_substring_regex(paths.array, pattern=r"^.*/|\.[^./]*$", replacement="")
        counts = pc.value_counts(ids)
        repeated = counts.filter(pc.greater(counts.field("counts"), 1))
        if len(repeated):
            first, num_rows = repeated.field("values")[0].as_py(), repeated.field("counts")[0].as_py()
            raise DataError(f"{path}: image {first[:40]!r} has {num_rows:,} rows; expected one row an image")
        return Annotations(TextColumn.of_arrow(ids), labels, image_paths=paths, notes=notes)


def _listed(texts: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Return row number and item of every item in lists written as text: ['/m/04hgtk', '/m/01bqvp']."""
    bare = pc.replace_substring_regex(texts, pattern=r"[\[\]'\" ]", replacement="")
    lists = pc.split_pattern(bare, pattern=",")
    rows, items = pc.list_parent_indices(lists), pc.list_flatten(lists)
    filled = pc.not_equal(items, "")
    return rows.filter(filled), items.filter(filled)


def _check_mids(named: pa.Array, column: str, path: Path) -> None:
    wrong = named.filter(pc.invert(pc.match_substring_regex(named, r"^/[a-z]+/[0-9a-zA-Z_]+$")))
    if len(wrong):
        first = wrong[0].as_py()
        raise DataError(f"{path}: {column} lists {first[:40]!r}, which is no MID; expected lists like ['/m/04hgtk']")

"""ImageNet with one known class an image to train on, and the reassessed labels (ReaL) to test on."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from scipy import sparse

from plbench.api import (
    Annotations,
    BenchmarkProtocol,
    DataError,
    DatasetOptions,
    IndexedDataset,
    PartialLabels,
    ProgressReport,
    TextColumn,
)
from plbench.data.annotations.index import Index
from plbench.data.recipes import quick_recipe

from ..checksums import published_file
from ..json_file import read_json
from .fixture import write_imagenet_fixture

_ADDRESS = "https://raw.githubusercontent.com/google-research/reassessed-imagenet/master/real.json"
_TRAIN = re.compile(r"(n\d{8})/\1_\d+\.jpe?g", re.IGNORECASE)
_VAL = re.compile(r"(?:n\d{8}/)?ILSVRC2012_val_(\d{8})\.jpe?g", re.IGNORECASE)
_UNLISTED = {"absent": -1, "unknown": 0}


class ImageNetReal(IndexedDataset):
    """1,281,167 train images with one class known, and the 46,837 val images to which ReaL gives a class.

    Beyer et al., "Are we done with ImageNet?", 2020. `real.json` has a list of classes, as ranks of the sorted synsets,
    for each of the 50,000 val images by number; 3,163 lists are empty, and those images are dropped, as its authors do.
    What it does not list is absent in test, as in its evaluation and in the mAP of Verelst et al. (WACV 2023). In train
    all but the one class is unknown. `train/SYNSET/`, and `val/`, flat or by synset, lie in the root or, as in Kaggle's
    archive, in `ILSVRC/Data/CLS-LOC`; names of classes come from `LOC_synset_mapping.txt` where it is there. Which
    images train has is what its folders hold, so the listing is part of the fingerprint.
    """

    name = "imagenet-real"
    title = "ImageNet, tested on ReaL"
    licence = (
        "images for non-commercial research under ImageNet's terms of access; reassessed labels by Google Research"
    )
    sources = ("https://github.com/google-research/reassessed-imagenet", "https://www.image-net.org/download.php")
    recipes = (quick_recipe(image_size=224),)
    collections = ("imagenet-1k", "imagenet-12k", "imagenet-21k")
    official_num_images: ClassVar = {"train": 1_281_167, "test": 46_837}
    official_num_classes = 1000
    protocols = (BenchmarkProtocol(name="imagenet-real/v1", dataset="imagenet-real"),)
    downloads = (published_file(_ADDRESS, kind="annotations", split="test"),)

    class Options(DatasetOptions):
        """What a class is taken for that the reassessed labels of a test image do not list."""

        unlisted: Literal["absent", "unknown"] = Field(
            "absent", description="what a class means that ReaL does not list; nothing can be scored if it is unknown"
        )

    options: Options

    @property
    def _folder(self) -> Path:
        kaggle = self.root / "ILSVRC" / "Data" / "CLS-LOC"
        return kaggle if kaggle.is_dir() else self.root

    def annotation_files(self, split: str) -> Sequence[Path]:
        """Return the reassessed labels, of test, and the names of the classes where they are there."""
        names = self.root / "LOC_synset_mapping.txt"
        return [*([] if split == "train" else [self.root / "real.json"]), *([names] if names.exists() else [])]

    def missing(self) -> list[str]:
        """Return `real.json` and the folders of images that are not there."""
        needed = (self.root / "real.json", self._folder / "train", self._folder / "val")
        return [str(path.relative_to(self.root)) for path in needed if not path.exists()]

    def fetch_hint(self) -> str:
        """Return the command that gets the labels, and where the images are to be asked for."""
        return (
            f"run plbench data download {self.name} for the labels of {self.sources[0]}, and unpack the images of "
            f"{self.sources[1]} into {self.root} as train/SYNSET and val"
        )

    def _index(self, split: str) -> Index:
        listed = [*self._listing("train"), *([] if split == "train" else self._listing("val"))]
        digest = hashlib.sha256("\n".join(listed).encode("utf-8", "surrogateescape")).hexdigest()
        meaning = f"{self.reader_version} {self.options.model_dump_json()} {digest}"
        return Index(self.cache, f"{self.name}-{split}", meaning, self.annotation_files(split), lambda s: self.warn(s))

    @cached_property
    def _listings(self) -> dict[str, list[str]]:
        return {}

    def _listing(self, part: str) -> list[str]:
        """Return the files of `train` or `val` and of the folders there, sorted, listed once for an instance."""
        if part not in self._listings:
            found: list[str] = []
            try:
                for entry in os.scandir(self._folder / part):
                    inside = [f"{entry.name}/{name}" for name in os.listdir(entry.path)] if entry.is_dir() else None
                    found += [entry.name] if inside is None else inside
            except OSError as error:
                raise DataError(f"{self._folder / part} cannot be listed: {error}") from error
            self._listings[part] = sorted(found)
        return self._listings[part]

    def read(self, split: str, report: ProgressReport) -> Annotations:
        """Return the single labels of train in the order of the sorted paths, or those of ReaL by number of the image.

        Raises:
            DataError: if a file is malformed, or the labels do not fit the folders.
        """
        listed = self._listing("train")
        matches = [match for match in map(_TRAIN.fullmatch, listed) if match]
        synsets = sorted({match[1] for match in matches})
        names = self._read_names()
        classes = {"class_ids": tuple(synsets), "class_names": tuple(names.get(synset, synset) for synset in synsets)}
        below = (self._folder / ("train" if split == "train" else "val")).relative_to(self.root).as_posix()
        if split == "train":
            paths = [match[0] for match in matches]
            columns = np.searchsorted(synsets, [match[1] for match in matches])
            labels = PartialLabels.from_cells(
                np.arange(len(paths)), columns, np.ones(len(paths), np.int8), num_rows=len(paths), **classes
            )
            notes = [f"one class of each image is known, the other {len(synsets) - 1:,} are unknown"]
            if other := len(listed) - len(paths):
                notes.append(f"{other:,} files in {below} are not named SYNSET/SYNSET_NUMBER.JPEG: left out")
        else:
            lists = self._read_lists(len(synsets))
            place = self._val_places(len(lists))
            kept = [number for number, present in enumerate(lists, 1) if present]
            values = np.full((len(kept), len(synsets)), _UNLISTED[self.options.unlisted], np.int8)
            for row, number in enumerate(kept):
                values[row, lists[number - 1]] = 1
            labels = PartialLabels(sparse.csr_array(values), **classes)
            paths = [place.get(number, f"ILSVRC2012_val_{number:08d}.JPEG") for number in kept]
            notes = [
                f"{len(lists) - len(kept):,} of {len(lists):,} images have no class in real.json: dropped",
                f"classes that real.json does not list are taken for {self.options.unlisted}",
            ]
        ids = (path.rpartition("/")[2].rpartition(".")[0] for path in paths)
        return Annotations(TextColumn.of(ids), labels, TextColumn.of(f"{below}/{p}" for p in paths), notes=tuple(notes))

    def _read_names(self) -> dict[str, str]:
        path = self.root / "LOC_synset_mapping.txt"
        try:
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        pairs = [line.strip().partition(" ") for line in lines if line.strip()]
        return {synset: name for synset, _, name in pairs if name}

    def _read_lists(self, num_classes: int) -> list[list[int]]:
        path = self.root / "real.json"
        lists = read_json(path, list[list[int]])
        for entry, classes in enumerate(lists):
            if bad := [number for number in classes if not 0 <= number < num_classes]:
                raise DataError(
                    f"{path}: list {entry} has class {bad[0]}; expected numbers below {num_classes:,}, the number of "
                    f"synsets in {self._folder / 'train'}, of which ImageNet has {self.official_num_classes:,}"
                )
        return lists

    def _val_places(self, num_lists: int) -> dict[int, str]:
        """Return where each val image lies, by its number."""
        matches = [match for match in map(_VAL.fullmatch, self._listing("val")) if match]
        place = {int(match[1]): match[0] for match in matches}
        if place and max(place) > num_lists:
            raise DataError(
                f"{self.root / 'real.json'} has {num_lists:,} lists; expected one for each val image, of which number "
                f"{max(place)} is there"
            )
        return place

    def make_fixture(self) -> None:
        """Write 60 train pictures in folders of 12 synsets, and 34 val pictures, of which ReaL gives 30 a class."""
        write_imagenet_fixture(self.root)

"""Base classes of datasets: images with labels, from files in a folder. Import them from `plbench.api`."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy import sparse

from plbench.data.annotations.collect import Annotations, note_on_repeated_files
from plbench.data.annotations.index import Index
from plbench.data.digests import Sha256s, sha256_of
from plbench.data.download.remote import RemoteFile
from plbench.data.images import ImageFiles, ImageSource
from plbench.data.labels import IntArray, PartialLabels
from plbench.data.pixels import PIXELS
from plbench.errors import DataError, PlbenchError
from plbench.progress import ProgressReport
from plbench.spec import Protocol, Recipe

FINGERPRINT_FORMAT = 2
"""Increased when fingerprints are computed differently, so that data stored under old ones is not used."""


@dataclass(frozen=True)
class LabelledSplit:
    """Images of one split and their labels, row by row."""

    images: ImageSource
    labels: PartialLabels

    def __post_init__(self) -> None:
        """Check that there are as many images as rows of labels."""
        if len(self.images) != self.labels.num_images:
            raise DataError(f"{len(self.images)} images but {self.labels.num_images} rows of labels")

    def subset(self, index: np.ndarray) -> LabelledSplit:
        """Return the chosen rows, in the order given."""
        return LabelledSplit(self.images.subset(index), self.labels.subset(index))


class DatasetOptions(BaseModel):
    """Base of a dataset's `Options`, its settings besides the folder. Immutable; rejects unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def meaning(self) -> dict[str, Any]:
        """Return the options that affect how files are read, without those that only give locations."""
        values = self.model_dump(mode="json")
        return {name: value for name, value in values.items() if not isinstance(getattr(self, name), Path)}


class Dataset(ABC):
    """Images with labels, from files in a folder.

    Class attributes:
        name, title, licence: used on the command line, printed in tables, and of the data. sources: official URLs.
        protocols: evaluation settings; the first is the default.
        recipes: training recipes; the first is the default.
        needs_files: False if the dataset generates its own files, so that no folder has to be given.
        needs_root: False if its options give the location of its files, so that it has no folder of its own.
        official_num_images, official_num_classes: as published, if known; runs with other numbers are `custom/…`.
        collections: image collections that its test images come from, such as "coco"; weights trained on one of them
            may have seen the test images.
        expected_positives: published mean number of positives per image; None to compute it from complete train labels
            or, if there are none, to leave it to the user.
        downloads: the published files, for `plbench data download`.
        Options: settings besides the folder, such as a label file.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    licence: ClassVar[str]
    sources: ClassVar[tuple[str, ...]] = ()
    protocols: ClassVar[tuple[Protocol, ...]]
    recipes: ClassVar[tuple[Recipe, ...]]
    needs_files: ClassVar[bool] = True
    needs_root: ClassVar[bool] = True
    official_num_images: ClassVar[Mapping[str, int]] = {}
    official_num_classes: ClassVar[int | None] = None
    collections: ClassVar[tuple[str, ...]] = ()
    expected_positives: ClassVar[float | None] = None
    downloads: ClassVar[tuple[RemoteFile, ...]] = ()

    class Options(DatasetOptions):
        """A dataset without options."""

    def __init__(self, root: Path, *, cache: Path | None = None, options: Any = None) -> None:
        """Store the settings; nothing is read yet.

        Args:
            root: folder of the dataset's files, which may not exist yet.
            cache: folder for derived data; None for none.
            options: an instance of `Options`; None for its defaults.
        """
        self.root, self.cache = root, cache
        self.options = self.Options() if options is None else options
        self._sha256s: dict[str, Sha256s | None] = {}

    def missing(self) -> list[str]:
        """Return required files and folders that are missing, relative to the root."""
        return []

    @abstractmethod
    def fetch_hint(self) -> str:
        """Return how to get missing files: one clause with a URL or a command."""

    def prepare(self, report: ProgressReport) -> None:  # noqa: B027  (optional hook)
        """Generate or index files once, if needed. Safe to interrupt and to repeat."""

    def make(self, source: Path, report: ProgressReport) -> None:
        """Derive this dataset's files from another dataset's folder. Safe to interrupt and to repeat.

        Raises:
            PlbenchError: if it is not derived from another dataset.
        """
        raise PlbenchError(f"dataset {self.name!r} is not made from another; {self.fetch_hint()}")

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a sha256 that changes whenever images or labels do."""

    def image_sha256s(self, split: str, report: ProgressReport = lambda done, total: None) -> Sha256s | None:
        """Return the sha256 of each image's bytes, [N, 32], computed once per instance; None if not available.

        Args:
            report: receives the number of images done and in total, if this takes long.
        """
        if split not in self._sha256s:
            give = getattr(self.split(split).images, "sha256s", None)
            self._sha256s[split] = None if give is None else give(self.cache, report)
        return self._sha256s[split]

    def warn(self, sentence: str) -> None:  # noqa: B027  (replaced by the caller to show warnings)
        """Report a warning on the stored files; ignored by default."""

    @abstractmethod
    def split(self, name: str) -> LabelledSplit:
        """Return one split by name.

        Raises:
            DataError: if the files are malformed, or there is no such split.
        """

    def published_rows(self, split: str, procedure: str) -> tuple[IntArray, int]:
        """Return the position [N] of each image in the order of a published label sampling procedure, and its length.

        By default, it is the order of the split.

        Args:
            split: of the dataset.
            procedure: a kind of `plbench.data.simulation` that reproduces published masks, such as "cole2021".
        """
        num_images = len(self.split(split).images)
        return np.arange(num_images), num_images

    def prominence(self, split: str, by: Literal["size", "place"]) -> sparse.csr_array:
        """Return the prominence of the objects of each present class in each image, from the annotations.

        Args:
            split: name of a split with complete labels.
            by: "size" for the share of the image area covered by the objects, "place" for the sum of the inverse
                distances of their centres from the image centre, in units of half the diagonal.

        Returns:
            [N, C] in canonical form, above 0 for present classes, not stored elsewhere.

        Raises:
            DataError: if the dataset has no bounding boxes, or they are malformed.
        """
        raise DataError(
            f"dataset {self.name!r} in {self.root} does not say how large its objects are and where; labels that are "
            "known by size or place need annotations with boxes, such as those of COCO as published"
        )

    @classmethod
    def validation_unit(cls, image_id: str) -> str:
        """Return the unit that is held out for validation as a whole, such as a patient; by default the image."""
        return image_id

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Return named groups of class ids for which tables report separate figures."""
        return {}

    def notes(self) -> dict[str, tuple[str, ...]]:
        """By split: sentences on irregularities in its files and how they were handled."""
        return {}

    def make_fixture(self) -> None:
        """Write a small imitation of the published files into the root, for tests and tutorials.

        Raises:
            PlbenchError: if this dataset has no fixture.
        """
        raise PlbenchError(f"dataset {self.name!r} comes with no fixture")

    @classmethod
    def used_splits(cls) -> tuple[str, ...]:
        """Return the splits that its protocols train and test on, in that order."""
        names = [name for protocol in cls.protocols for name in (protocol.train_split, protocol.test_split)]
        return tuple(dict.fromkeys(names))


class IndexedDataset(Dataset):
    """A dataset published as annotation files and folders of images.

    A subclass lists the files and reads them; annotations are read once, indexed by content in the cache, and
    memory-mapped from then on.

    Class attributes:
        splits: names of all splits, including those that no protocol uses.
        reader_version: increase it when `read` returns something different for the same files.
    """

    splits: ClassVar[tuple[str, ...]] = ("train", "test")
    reader_version: ClassVar[str] = "1"

    def __init__(self, root: Path, *, cache: Path | None = None, options: Any = None) -> None:
        """Store the settings; nothing is read yet."""
        super().__init__(root, cache=cache, options=options)
        self._annotations: dict[str, Annotations] = {}
        self._splits: dict[str, LabelledSplit] = {}

    @abstractmethod
    def annotation_files(self, split: str) -> Sequence[Path]:
        """Return the files on which `read` depends for a split."""

    @abstractmethod
    def read(self, split: str, report: ProgressReport) -> Annotations:
        """Return the annotations of a split from its files.

        Args:
            split: one of `splits`.
            report: called with bytes read and in total.

        Raises:
            DataError: if a file is malformed; names file, row or key, what was found, and what was expected.
        """

    def images(self, split: str, annotations: Annotations) -> ImageSource:
        """Return the images of a split: by default files at the annotations' paths below the root."""
        assert annotations.image_paths is not None
        return ImageFiles(self.root, annotations.image_paths, annotations.image_ids)

    def _index(self, split: str) -> Index:
        meaning = json.dumps([self.reader_version, self.options.meaning()], sort_keys=True)
        return Index(self.cache, f"{self.name}-{split}", meaning, self.annotation_files(split), lambda s: self.warn(s))

    def annotations(self, split: str, report: ProgressReport = lambda done, total: None) -> Annotations:
        """Return the annotations of a split, from the index if available; errors are those of `split`."""
        if split not in self.splits:
            raise DataError(f"dataset {self.name!r} has splits {', '.join(self.splits)}, not {split!r}")
        if split not in self._annotations:
            found = self._index(split).get(lambda: self.read(split, report))
            said = note_on_repeated_files(found, f"split {split!r} of {self.name!r}")
            found = replace(found, notes=(*found.notes, *said))
            classes = found.labels.class_ids, found.labels.class_names
            for other, known in self._annotations.items():
                if (known.labels.class_ids, known.labels.class_names) != classes:
                    raise DataError(
                        f"the files of {self.name!r} in {self.root} define other classes for split {split!r} than for "
                        f"{other!r}; take both from one release"
                    )
            self._annotations[split] = found
        return self._annotations[split]

    def prepare(self, report: ProgressReport) -> None:
        """Build the index of every split that a protocol uses."""
        for split in self.used_splits():
            self.annotations(split, report)

    def split(self, name: str) -> LabelledSplit:
        """Return one split by name; DataError if its files are malformed, or there is no such split."""
        if name not in self._splits:
            annotations = self.annotations(name)
            self._splits[name] = LabelledSplit(self.images(name, annotations), annotations.labels)
        return self._splits[name]

    def fingerprint(self) -> str:
        """Return a sha256 of the annotations and images of the splits in use, and of the image decoding rules.

        Images are hashed once per instance, and hashes are cached: see `plbench.data.digests`.
        """
        content: dict[str, Any] = {"format": FINGERPRINT_FORMAT, "pixels": PIXELS}
        for split in self.used_splits():
            sha256s = self.image_sha256s(split)
            images = self.split(split).images.fingerprint() if sha256s is None else sha256_of(sha256s)
            content[split] = [self._index(split).key(), images]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Return the groups defined in the annotation files."""
        return dict(self.annotations(self.used_splits()[0]).groups)

    def notes(self) -> dict[str, tuple[str, ...]]:
        """Return the notes on the files of the open splits."""
        return {split: annotations.notes for split, annotations in self._annotations.items() if annotations.notes}

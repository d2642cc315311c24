"""NUS-WIDE: photographs of Flickr with 81 concepts, in three versions whose figures do not compare."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from plbench.api import (
    Annotations,
    DataError,
    IndexedDataset,
    PartialLabels,
    ProgressReport,
    Recipe,
    TextColumn,
)
from plbench.data.recipes import cole2021_recipe, quick_recipe, robust_loss_recipe
from plbench.files.arrays import damage_in_words, usable

from ..complete_labels import simulated_protocols
from .fixture import write_arrays, write_lists, write_official

NUM_CONCEPTS = 81
_CONCEPT = re.compile(r"[\w -]{1,60}")  # files are named after it

BoolArray = npt.NDArray[np.bool_]


class _NusWide(IndexedDataset):
    """What the three have in common: complete labels of 81 concepts, images named by their place on Flickr."""

    licence = "photographs under their own Flickr licences; annotations for research"
    sources = ("https://lms.comp.nus.edu.sg/wp-content/uploads/2019/research/nuswide/NUS-WIDE.html",)
    recipes: ClassVar[tuple[Recipe, ...]] = (quick_recipe(image_size=224),)
    collections = ("nus-wide",)
    official_num_classes = NUM_CONCEPTS

    @abstractmethod
    def read_present(self, split: str, report: ProgressReport) -> tuple[list[str], BoolArray]:
        """Return the paths of the images below the root, and [N, C] which concepts are present."""

    def class_names(self) -> Sequence[str]:
        """Return the concepts' names: as their list has them, or numbers where the version comes without a list."""
        return [str(column) for column in range(NUM_CONCEPTS)]

    def missing(self) -> list[str]:
        """Return the annotation files that are not there."""
        files = [path for split in self.splits for path in self.annotation_files(split)]
        return [str(path.relative_to(self.root)) for path in dict.fromkeys(files) if not path.exists()]

    def fetch_hint(self) -> str:
        """Return where the version comes from."""
        return f"{self.sources[0]} says how to get it; put it into {self.root}"

    def read(self, split: str, report: ProgressReport) -> Annotations:
        """Return complete labels of one split, in the order of its list.

        Raises:
            DataError: if a file is malformed.
        """
        paths, present = self.read_present(split, report)
        names = tuple(self.class_names())
        labels = PartialLabels.from_dense(2 * present.astype(np.int8) - 1, class_ids=names, class_names=names)
        ids = [path.rpartition("/")[2].rpartition(".")[0] for path in paths]
        if len({*ids}) < len(ids):  # two folders may hold files of one name
            ids = [path.rpartition(".")[0] for path in paths]
        bare = int(np.sum(~present.any(1)))
        notes = (f"{bare:,} of {len(paths):,} images show none of the concepts",) if bare else ()
        return Annotations(TextColumn.of(ids), labels, TextColumn.of(paths), notes=notes)


class NusWide(_NusWide):
    """The official split: 161,789 train and 107,859 test photographs.

    `Concepts81.txt`, `ImageList/{Train,Test}Imagelist.txt` (with backslashes),
    `Groundtruth/TrainTestLabels/Labels_CONCEPT_{Train,Test}.txt`, images in `Flickr/`; the case of folders varies.
    Many photographs are no longer on Flickr: what is missing is left out and makes the run `custom/…`.
    """

    name = "nus-wide"
    title = "NUS-WIDE"
    protocols = simulated_protocols("nus-wide", ("single-positive", "rpa=0.5", "none"))
    official_num_images: ClassVar = {"train": 161_789, "test": 107_859}

    def _find(self, *parts: str) -> Path:
        """Return a path below the root whose folders may be written in another case."""
        found = self.root
        for part in parts:
            alike = [path for path in found.glob("*") if path.name.lower() == part.lower()] if found.is_dir() else []
            found = alike[0] if len(alike) == 1 else found / part
        return found

    def class_names(self) -> Sequence[str]:
        """Return the names of the list of concepts."""
        return _lines(self._find("Concepts81.txt"))

    def annotation_files(self, split: str) -> Sequence[Path]:
        """Return the list of concepts, the list of images, and one file a concept."""
        concepts, part = self._find("Concepts81.txt"), split.capitalize()
        names = _lines(concepts) if concepts.exists() else []
        if len(names) > NUM_CONCEPTS:
            raise DataError(f"{concepts} has {len(names):,} lines; expected the {NUM_CONCEPTS} concepts, one a line")
        if odd := next((name for name in names if not _CONCEPT.fullmatch(name)), None):
            raise DataError(f"{concepts}: {odd!r:.60} is no name of a concept, after which a file could be called")
        labels = [self._find("Groundtruth", "TrainTestLabels", f"Labels_{name}_{part}.txt") for name in names]
        return [concepts, self._find("ImageList", f"{part}Imagelist.txt"), *labels]

    def read_present(self, split: str, report: ProgressReport) -> tuple[list[str], BoolArray]:
        """Return images and concepts of one split."""
        _, image_list, *label_files = self.annotation_files(split)
        folder = self._find("Flickr").name
        paths = [f"{folder}/{line.replace(chr(92), '/').lstrip('/')}" for line in _lines(image_list)]
        present = np.zeros((len(paths), len(label_files)), bool)
        for column, path in enumerate(label_files):
            values = _lines(path)
            if len(values) != len(paths) or not {*values} <= {"0", "1"}:
                raise DataError(f"{path} has {len(values):,} lines; expected 1 or 0 for each of {len(paths):,} images")
            present[:, column] = np.array(values) == "1"
            report(column + 1, len(label_files))
        return paths, present

    def make_fixture(self) -> None:
        """Write 60 train and 30 test pictures in the official layout, with folders in another case."""
        write_official(self.root)


class NusWideCole(_NusWide):
    """The recrawl of Cole et al. (CVPR 2021): 150,000 train and 60,260 test images.

    `formatted_{train,val}_{images,labels}.npy`, which their scripts make, and `Flickr/`. 33,410 and 13,412 images show
    none of the concepts; all their labels are absent.
    """

    name = "nus-wide-cole"
    title = "NUS-WIDE, recrawl of Cole et al."
    official_num_images: ClassVar = {"train": 150_000, "test": 60_260}
    origin = (
        "github.com/elijahcole/single-positive-multi-label says how to make formatted_train_images.npy and the others"
    )
    recipes = (*_NusWide.recipes, cole2021_recipe(16, 1e-5))
    protocols = simulated_protocols("nus-wide-cole", ("single-positive", "cole2021", "rpa=0.5", "none"))

    def annotation_files(self, split: str) -> Sequence[Path]:
        """Return the arrays of images and of labels."""
        part = "train" if split == "train" else "val"
        return [self.root / f"formatted_{part}_{what}.npy" for what in ("images", "labels")]

    def read_present(self, split: str, report: ProgressReport) -> tuple[list[str], BoolArray]:
        """Return images and concepts of one split."""
        arrays = []
        for path in self.annotation_files(split):
            try:
                with path.open("rb") as file, damage_in_words():
                    arrays.append(usable(np.load(file, allow_pickle=False)))
            except (OSError, ValueError) as error:
                raise DataError(f"{path} is not an array saved by numpy without objects: {error}") from error
        images, labels = arrays
        if images.ndim != 1 or images.dtype.kind != "U":
            raise DataError(
                f"{self.annotation_files(split)[0]} is of shape {images.shape} and type {images.dtype}; expected a "
                "list of names of files"
            )
        if labels.shape != (len(images), NUM_CONCEPTS) or not np.isin(labels, (0, 1)).all():
            raise DataError(
                f"{self.annotation_files(split)[1]} has shape {labels.shape}; expected 1 and 0 for {len(images):,} "
                f"images by {NUM_CONCEPTS}"
            )
        return [f"Flickr/{name}" for name in images.tolist()], labels == 1

    def make_fixture(self) -> None:
        """Write 60 train and 30 test pictures with their arrays, some images without a concept."""
        write_arrays(self.root, NUM_CONCEPTS)


class NusWideAsl(_NusWide):
    """The list that ASL's and SPLC's authors use: 119,103 train and 50,720 test images that show a concept.

    `nus_{train,val}.txt` with lines `NNN_x_m.jpg,42 60 79`, images in `images/`.
    """

    name = "nus-wide-asl"
    title = "NUS-WIDE, list of ASL and SPLC"
    recipes = (*_NusWide.recipes, robust_loss_recipe())
    protocols = simulated_protocols("nus-wide-asl", ("single-positive", "rpa=0.5", "none"))
    official_num_images: ClassVar = {"train": 119_103, "test": 50_720}
    sources = ("https://github.com/xinyu1205/robust-loss-mlml",)

    def annotation_files(self, split: str) -> Sequence[Path]:
        """Return the list."""
        return [self.root / f"nus_{'train' if split == 'train' else 'val'}.txt"]

    def read_present(self, split: str, report: ProgressReport) -> tuple[list[str], BoolArray]:
        """Return images and concepts of one split."""
        path = self.annotation_files(split)[0]
        lines = _lines(path)
        present = np.zeros((len(lines), NUM_CONCEPTS), bool)
        paths = []
        for row, line in enumerate(lines):
            name, comma, numbers = line.partition(",")
            columns = numbers.split()
            if not comma or not all(one.isdecimal() and len(one) < 10 and int(one) < NUM_CONCEPTS for one in columns):
                raise DataError(
                    f"{path}, line {row + 1}: {line!r:.60}; expected an image, a comma, and numbers below 81"
                )
            present[row, [int(one) for one in columns]] = True
            paths.append(f"images/{name.strip()}")
        return paths, present

    def make_fixture(self) -> None:
        """Write 60 train and 30 test pictures with their two lists."""
        write_lists(self.root)


def _lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty, without blanks around them."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error

"""COCO as a multi-label dataset: 80 classes, complete labels, which a protocol makes partial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from scipy import sparse

from plbench.api import (
    Annotations,
    BenchmarkProtocol,
    IndexedDataset,
    ModelSpec,
    Plan,
    ProgressReport,
    Recipe,
    RemoteFile,
    TextColumn,
)
from plbench.data.recipes import cole2021_recipe, mlr_pl_recipe, quick_recipe, robust_loss_recipe

from ..checksums import published_file
from ..coco_json import (
    AnnotationFile,
    Category,
    Document,
    Ids,
    Image,
    IntArray,
    annotated_cells,
    first_outside,
    say_alike,
)
from ..complete_labels import MLR_PL, check_size, complete_labels, simulated_protocols
from .fixture import write_coco_fixture
from .objects import read_prominence

CSL_README = "README of the CSL authors' code"

PAPER_RECIPE = Recipe(
    name="paper",
    title="TResNet-M at 448 px, 30 epochs",
    regime="finetune",
    model=ModelSpec(backbone="tresnet_m.miil_in21k", weights="pretrained", image_size=448),
    plans={
        "finetune": Plan(
            epochs=30,
            batch_size=64,
            lr=2e-4,
            weight_decay=1e-4,
            pct_start=0.2,
            ema_decay=0.9997,
            ema_horizon=0.1,
            randaugment="rand-m9-mstd0.5",
            cutout=0.5,
        ),
        "probe": Plan(epochs=10, batch_size=128, lr=1e-3, weight_decay=1e-2),
    },
    sources={
        "model, finetune plan": "the CSL authors' code (published.json, training.coco); ImageNet-21k weights",
        "weight_decay": "decoupled, as the paper says; its code couples it to a summed loss (optimizer = adam-coupled)",
        "randaugment": "the code says RandAugment; magnitude 9 is timm's usual, ours",
        "cutout": "the code's factor 0.5, by timm's random erasing",
        "ema_horizon": "ours: leaves 0.9997 as it is at the paper's 38,000 steps",
        "probe plan": "ours",
    },
)


def _protocols(name: str) -> tuple[BenchmarkProtocol, ...]:
    return simulated_protocols(
        name,
        {"fpc=1000": 3.0, "rpa=0.5": 1.0, "single-positive": 1.0, "none": 1.0},
        version=2,  # of version 1, all runs had the labels of seed 0
        selective={"top_k": 5, "eta": 0.5},
        sources={"suggested": CSL_README},
    )


def coco_images(folder: str, split: str | None) -> RemoteFile:
    """Return the published archive of one of COCO's folders of images, such as `train2017`."""
    url = f"http://images.cocodataset.org/zips/{folder}.zip"
    return published_file(url, kind="images", split=split, unpack=".", makes=(folder,))


def _downloads(year: int) -> tuple[RemoteFile, ...]:
    made = tuple(f"annotations/instances_{split}{year}.json" for split in ("train", "val"))
    url = f"http://images.cocodataset.org/annotations/annotations_trainval{year}.zip"
    annotations = published_file(url, kind="annotations", unpack=".", makes=made)
    return annotations, coco_images(f"train{year}", "train"), coco_images(f"val{year}", "test")


class _Coco(IndexedDataset):
    """Both years: `annotations/instances_{train,val}YEAR.json` and the folders of images beside them."""

    licence = "annotations CC BY 4.0 (COCO Consortium); photographs under their own Flickr licences"
    sources = ("https://cocodataset.org/#download",)
    recipes: ClassVar[tuple[Recipe, ...]] = (PAPER_RECIPE, quick_recipe(image_size=224))
    collections = ("coco",)
    expected_positives = 2.9  # Cole et al., CVPR 2021
    year: ClassVar[int]

    def _folder(self, split: str) -> str:
        return f"{'train' if split == 'train' else 'val'}{self.year}"

    def annotation_files(self, split: str) -> Sequence[Path]:
        """Return the one file of instances; `test` is COCO's val."""
        return [self.root / "annotations" / f"instances_{self._folder(split)}.json"]

    def missing(self) -> list[str]:
        """Return the annotation files and image folders that are not there."""
        folders = [self._folder(split) for split in self.splits]
        needed = [path for folder in folders for path in (f"annotations/instances_{folder}.json", folder)]
        return [path for path in needed if not (self.root / path).exists()]

    def fetch_hint(self) -> str:
        """Return the command that gets COCO, and where it is published."""
        names = " and ".join(map(self._folder, self.splits))
        return (
            f"run plbench data download {self.name}, or download images {names} and their annotations from "
            f"{self.sources[0]} and unzip them into {self.root}"
        )

    def read(self, split: str, report: ProgressReport) -> Annotations:
        """Return complete labels of the images that have an annotation, by rising image id; crowds count as present.

        Raises:
            DataError: if the file is malformed.
        """
        file = AnnotationFile(self.annotation_files(split)[0], self.name)
        document, notes = file.decode(Document[Image, Category], report)
        images = Ids.of(file, "images", document.images)
        categories = Ids.of(file, "categories", document.categories)
        folder = self._folder(split)
        if (entry := first_outside(image.file_name for image in document.images)) is not None:
            raise file.error(
                f": images[{entry}].file_name = {document.images[entry].file_name!r:.60} does not name a file inside "
                f"the image folder {folder}"
            )
        rows, columns = annotated_cells(document, images, categories)
        annotated, rows = np.unique(rows, return_inverse=True)  # only images with an annotation count
        if len(annotated) == 0:
            raise file.error(": no image has an annotation; COCO's own file has them for most images")
        check_size(len(annotated), len(categories), file.path)
        present = np.zeros((len(annotated), len(categories)), bool)
        present[rows, columns] = True
        names = tuple(document.categories[entry].name for entry in categories.order)
        labels = complete_labels(present, tuple(categories.texts()), names)
        if bare := len(images) - len(annotated):
            notes += (f"{bare:,} of {len(images):,} images have no annotation and are left out",)
        chosen = [document.images[entry] for entry in images.order[annotated]]
        return Annotations(
            TextColumn.of(str(image.id) for image in chosen),
            labels,
            TextColumn.of(f"{folder}/{image.file_name}" for image in chosen),
            notes=(*notes, *say_alike(names)),
        )

    def published_rows(self, split: str, procedure: str) -> tuple[IntArray, int]:
        """Return places by the image id as text (Cole et al.), or by the file's list of all images (HCP-MLR-PL)."""
        ids = list(self.annotations(split).image_ids)
        if procedure != "mlr-pl":
            order = sorted(range(len(ids)), key=ids.__getitem__)
            rows = np.empty(len(ids), np.int64)
            rows[order] = np.arange(len(ids))
            return rows, len(ids)
        document, _ = AnnotationFile(self.annotation_files(split)[0], self.name).decode(Document[Image, Category])
        place = {str(image.id): row for row, image in enumerate(document.images)}
        return np.array([place[image_id] for image_id in ids], np.int64), len(place)

    def prominence(self, split: str, by: Literal["size", "place"]) -> sparse.csr_array:
        """Return the areas that each class's objects cover, or how central they are: `read_prominence` says how."""
        return read_prominence(AnnotationFile(self.annotation_files(split)[0], self.name), by)

    def make_fixture(self) -> None:
        """Write 60 train and 30 val pictures with annotations of eight classes, laid out as COCO is.

        Raises:
            DataError: if other annotations of these names lie there.
        """
        write_coco_fixture(self.root, self.year)


class Coco2014(_Coco):
    """COCO 2014, the split of the paper: 82,081 train and 40,137 val images that have annotations."""

    name = "coco"
    title = "COCO 2014"
    year = 2014
    recipes = (*_Coco.recipes, cole2021_recipe(16, 1e-5), mlr_pl_recipe(), robust_loss_recipe())
    protocols = (*_protocols("coco"), *simulated_protocols("coco", ("cole2021", *MLR_PL)))
    downloads = _downloads(2014)
    official_num_images: ClassVar[Mapping[str, int]] = {"train": 82081, "test": 40137}
    official_num_classes = 80


class Coco2017(_Coco):
    """COCO 2017: 117,266 train and 4,952 val images that have annotations."""

    name = "coco2017"
    title = "COCO 2017"
    year = 2017
    protocols = _protocols("coco2017")
    downloads = _downloads(2017)
    official_num_images: ClassVar[Mapping[str, int]] = {"train": 117266, "test": 4952}
    official_num_classes = 80

"""20,000 photographs of COCO 2014 train at 160 px with complete labels, to compare methods on two cores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from scipy import sparse

from plbench.api import DataError, PartialLabels, ProgressReport
from plbench.data.digests import sha256_of
from plbench.data.recipes import quick_recipe

from ..coco.dataset import PAPER_RECIPE
from ..complete_labels import CSL_README, simulated_protocols
from ..complete_table import CompleteTable
from ..table.options import TableOptions
from .fixture import write_fixture
from .make import make_from_coco
from .objects import OBJECTS, read_objects

SHORT_SIDE = 160  # px

PUBLIC_COPY = "the public copy whose long side is at most 320 px (github Mike0429/COMP5329DeepLearningA2_ViT), reduced"
_COPY_SHA256 = "8903c54ed30eebcf9c516877265de0d3d550fbfd3a794456d06236afa676c2db"
"""sha256 over the sha256s of the copy's images, first train, then test."""

_ABSENT_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)  # gaps in COCO's numbers

_NAMES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,"
    "cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
    "refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)


class Coco20k(CompleteTable):
    """20,000 photographs of COCO 2014 train, 160 px: 15,995 train, 4,005 test, 80 classes, every label known.

    They are selected pictures (ids that show one of COCO's first 18 categories come first), so that results do not
    compare with published COCO figures. Person is in 76 % of train; the rarest class, toaster, has 9 positives.
    """

    name = "coco-20k"
    title = "COCO-20k (photographs)"
    licence = "annotations CC BY 4.0 (COCO Consortium); photographs under their own Flickr licences"
    sources = ("https://cocodataset.org/#download",)
    recipes = (quick_recipe(image_size=SHORT_SIDE), PAPER_RECIPE)
    collections = ("coco",)
    official_num_images: ClassVar = {"train": 15995, "test": 4005}
    official_num_classes = 80
    class_names = tuple(_NAMES.split(","))
    class_ids = tuple(str(number) for number in range(1, 91) if number not in _ABSENT_IDS)
    protocols = simulated_protocols(
        "coco-20k",
        {"fpc=300": 3.0, "rpa=0.5": 1.0, "rpa=0.9": 1.0, "single-positive": 1.0, "none": 1.0},
        selective={"top_k": 5, "eta": 0.5},
        sources={"gammas": CSL_README, "top_k, eta": CSL_README + "; the same 80 classes"},
    )

    def annotation_files(self, split: str) -> Sequence[Path]:
        """Return the table, and what is known of the objects where that is there: the public copy lacks it."""
        files = [self.root / "labels.csv", self.root / OBJECTS]
        return [path for path in files if path.exists() or path.name != OBJECTS]

    def missing(self) -> list[str]:
        """Return `labels.csv` and `images` where they are not there."""
        return [name for name in ("labels.csv", "images") if not (self.root / name).exists()]

    def fetch_hint(self) -> str:
        """Return the command that makes it from COCO's own files."""
        return (
            "make it from the train images and annotations of COCO 2014 (https://cocodataset.org/#download) with "
            f"plbench data make {self.name} --from FOLDER"
        )

    def table_options(self) -> TableOptions:
        """Return that 0 is absent."""
        return TableOptions(layout="wide", negative_value="0")

    def image_id(self, name: str) -> str:
        """Return COCO's id, as `coco` has it too."""
        return name.removesuffix(".jpg").lstrip("0")

    def image_path(self, image_id: str) -> str:
        """Return the file of 12 digits in `images`."""
        return f"images/{int(image_id):012d}.jpg"

    def class_groups(self, train: PartialLabels) -> dict[str, tuple[str, ...]]:
        """Return classes by their positives in train: of rare ones, FPC-300 knows every positive."""
        counts, _ = train.counts()
        bounds = {"frequent": (1000, math.inf), "common": (300, 1000), "rare": (0, 300)}
        groups = {
            name: tuple(one for one, count in zip(self.class_ids, counts, strict=True) if low <= count < high)
            for name, (low, high) in bounds.items()
        }
        return {name: ids for name, ids in groups.items() if ids}

    def prominence(self, split: str, by: Literal["size", "place"]) -> sparse.csr_array:
        """Return the areas that each class's objects cover, or how central they are, as COCO's files say.

        Raises:
            DataError: if `objects.csv` is not there, or malformed.
        """
        if not (self.root / OBJECTS).exists():
            raise DataError(
                f"{self.root} has no {OBJECTS}, which says how large objects are and where; {self.fetch_hint()}, in "
                "another folder"
            )
        annotations = self.annotations(split)
        return read_objects(self.root, by, list(annotations.image_ids), annotations.labels)

    def notes(self) -> dict[str, tuple[str, ...]]:
        """Return which pixels they are, beside what was found in the table: two sets differ a little."""
        noted = super().notes()
        sha256s = [self.image_sha256s(split) for split in self.splits]
        digest = sha256_of(np.concatenate([one for one in sha256s if one is not None]))
        which = (
            PUBLIC_COPY if digest == _COPY_SHA256 else "others than of the public copy, as made from COCO's own files"
        )
        return {**noted, "train": (*noted.get("train", ()), f"pixels: {which}")}

    def make(self, source: Path, report: ProgressReport) -> None:
        """Make the images, their table and `objects.csv` from the folder of COCO 2014.

        Raises:
            DataError: if an image or its labels are not there, or malformed.
        """
        make_from_coco(self, source, SHORT_SIDE, report)

    def make_fixture(self) -> None:
        """Write 60 train and 30 test pictures of the list's first ids, with three or more classes each."""
        write_fixture(self)

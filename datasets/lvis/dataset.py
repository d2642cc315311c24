"""LVIS: photographs of COCO 2017, each searched for a few of some 1,200 classes, so that its labels are partial."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import msgspec
import numpy as np

from plbench.api import (
    Annotations,
    BenchmarkProtocol,
    IndexedDataset,
    PartialLabels,
    ProgressReport,
    RemoteFile,
    TextColumn,
)
from plbench.data.annotations.collect import settle_cells
from plbench.data.recipes import quick_recipe

from ..checksums import published_file
from ..coco import dataset as coco
from ..coco_json import (
    AnnotationFile,
    Category,
    Document,
    Id,
    Ids,
    IntArray,
    annotated_cells,
    first_outside,
    say_alike,
)
from ..suggested import suggested_values
from .fixture import Version, write_lvis_fixture

APPENDIX = "the paper's appendix A as quoted by a reader in issue 3 of its repository (published.json, training.lvis)"
PERSON = "person.n.01"  # a synset, since LVIS itself names the class `baby`, the first of its synonyms
_ADDRESS = re.compile(r"(?:\w+://[^/]*/)?+(?:.*/)?([^/]+/[^/]+)")  # possessive: the host is no folder
FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}

PAPER_RECIPE = coco.PAPER_RECIPE.model_copy(
    update={
        "plans": {
            **coco.PAPER_RECIPE.plans,
            "finetune": coco.PAPER_RECIPE.plans["finetune"].model_copy(update={"lr": 6e-4, "weight_decay": 3e-4}),
        },
        "sources": {
            "lr, weight_decay": APPENDIX,
            "model.backbone": "the paper's table 4",
            "model.weights, model.image_size": "ours: as on COCO; no source states them for LVIS",
            "epochs, batch_size": "ours: as on COCO; no source states them for LVIS",
            "optimizer, schedule, ema, randaugment, cutout": "ours: as on COCO",
            "probe plan": "ours",
        },
    }
)


def _protocol(name: str) -> BenchmarkProtocol:
    gammas = {"gamma_pos": 0.0, "gamma_neg": 0.0, "gamma_unann": 1.0}
    return BenchmarkProtocol(
        name=f"{name}/v1",
        dataset=name,
        suggested=suggested_values(gammas, {"top_k": 5, "eta": 0.5}),
        sources={"gammas": APPENDIX, "top_k, eta": "ours: COCO's values; no source states them for LVIS"},
    )


def _downloads(version: Version, train_images_for: str | None) -> tuple[RemoteFile, ...]:
    annotations = tuple(
        published_file(
            f"https://dl.fbaipublicfiles.com/LVIS/{name}.zip",
            kind="annotations",
            split=split,
            unpack="annotations",
            makes=(f"annotations/{name}",),
        )
        for split, name in (("train", f"lvis_{version}_train.json"), ("test", f"lvis_{version}_val.json"))
    )
    return (*annotations, coco.coco_images("train2017", train_images_for), coco.coco_images("val2017", "test"))


class LvisCategory(Category, gc=False):
    """A class, the WordNet synset that it stands for, and whether it is rare, common or frequent: `r`, `c` or `f`."""

    frequency: Literal["r", "c", "f"]
    synset: str = ""


class LvisImage(msgspec.Struct, gc=False):
    """An image: where it lies, and what was found out about it beside the objects that are marked.

    v0.5 also says `file_name`, which is that of 2014 and leads nowhere.
    """

    id: Id
    coco_url: str
    neg_category_ids: list[Id]
    not_exhaustive_category_ids: list[Id]


class _Lvis(IndexedDataset):
    """Both versions: `annotations/lvis_VERSION_{train,val}.json` beside COCO's `train2017` and `val2017`."""

    licence = "annotations CC BY 4.0; COCO's photographs under their own Flickr licences"
    sources = ("https://www.lvisdataset.org/dataset",)
    recipes = (PAPER_RECIPE, quick_recipe(image_size=224))
    collections = ("coco",)
    version: ClassVar[Version]

    def annotation_files(self, split: str) -> Sequence[Path]:
        """Return the one file of a split; `test` is LVIS's val, since the labels of its own test are not public."""
        return [self.root / "annotations" / f"lvis_{self.version}_{'train' if split == 'train' else 'val'}.json"]

    def missing(self) -> list[str]:
        """Return the annotation files that are not there, and COCO's image folders where neither is."""
        needed = [path for split in self.splits for path in self.annotation_files(split)]
        folders = [self.root / "train2017", self.root / "val2017"]
        if not any(folder.exists() for folder in folders):  # what one of them lacks is told of image by image
            needed += folders
        return [str(path.relative_to(self.root)) for path in needed if not path.exists()]

    def fetch_hint(self) -> str:
        """Return the command that gets LVIS, and where it is published."""
        return (
            f"run plbench data download {self.name}, or download the annotations from {self.sources[0]} into "
            f"{self.root / 'annotations'} and unzip COCO's images train2017 and val2017 into {self.root}"
        )

    def read(self, split: str, report: ProgressReport) -> Annotations:
        """Return partial labels of every image that the file lists, by rising image id.

        A class is present where it has an annotation, absent where it is among `neg_category_ids`, else unknown.

        Raises:
            DataError: if the file is malformed, or calls a class both present and absent in one image.
        """
        file = AnnotationFile(self.annotation_files(split)[0], self.name)
        document, notes = file.decode(Document[LvisImage, LvisCategory], report)
        images = Ids.of(file, "images", document.images)
        categories = Ids.of(file, "categories", document.categories)
        matches = [_ADDRESS.fullmatch(image.coco_url) for image in document.images]
        paths = [match[1] if match else "" for match in matches]  # such as train2017/000000391895.jpg
        if (entry := first_outside(paths)) is not None:
            raise file.error(
                f": images[{entry}].coco_url = {document.images[entry].coco_url!r:.80} does not end in a folder and a "
                "file, such as train2017/000000391895.jpg"
            )
        groups = _groups(document.categories)
        labels, said = _labels(file, document, images, categories)
        if "person" not in groups:
            said.append(f"no category has the synset {PERSON}: there is no group of persons")
        ordered = TextColumn.of(paths[entry] for entry in images.order)
        return Annotations(TextColumn.of(images.texts()), labels, ordered, groups, (*notes, *said))

    def make_fixture(self) -> None:
        """Write 60 train and 30 val pictures with annotations of nine classes, laid out as LVIS is.

        Raises:
            DataError: if other annotations of these names lie there.
        """
        write_lvis_fixture(self.root, self.version)


def _groups(entries: Sequence[LvisCategory]) -> Mapping[str, tuple[str, ...]]:
    """Return class ids by frequency, and that of persons, which the paper reports by itself, where there is one."""
    rising = sorted(entries, key=lambda category: category.id)
    groups = {
        name: tuple(str(category.id) for category in rising if category.frequency == letter)
        for letter, name in FREQUENCIES.items()
    }
    groups["person"] = tuple(str(category.id) for category in rising if category.synset == PERSON)
    return {name: ids for name, ids in groups.items() if ids}


def _labels(
    file: AnnotationFile, document: Document[LvisImage, LvisCategory], images: Ids, categories: Ids
) -> tuple[PartialLabels, list[str]]:
    """Return labels [N, C] of the images in rising order of id, and notes on what the file says twofold."""
    listed = [document.images[entry] for entry in images.order]
    names = tuple(document.categories[entry].name for entry in categories.order)

    def cells_of(field: str) -> IntArray:
        def where(row: int, position: int) -> str:
            return f"images[{images.order[row]}].{field}[{position}]"

        rows, columns = categories.nested_ranks([getattr(image, field) for image in listed], where)
        return np.unique(rows * len(categories) + columns)

    rows, columns = annotated_cells(document, images, categories)
    present = np.unique(rows * len(categories) + columns)
    absent = cells_of("neg_category_ids")
    if (both := np.intersect1d(present, absent, assume_unique=True)).size:
        row, column = divmod(int(both[0]), len(categories))
        raise file.error(
            f": category {categories.values[column]} is among the neg_category_ids of images[{images.order[row]}] (id "
            f"{images.values[row]}), which has an annotation of it ({both.size:,} such cells in all); it is one or the "
            "other"
        )
    rows, columns = np.divmod(np.concatenate([present, absent]), len(categories))
    labels, _ = settle_cells(
        rows,
        columns,
        np.arange(len(rows)) < len(present),
        num_images=len(images),
        class_ids=categories.texts(),
        class_names=names,
    )
    loose = np.setdiff1d(cells_of("not_exhaustive_category_ids"), present, assume_unique=True)
    notes = [f"{loose.size:,} (image, class) cells are not_exhaustive without an annotation; taken as if they were not"]
    return labels, [*say_alike(names), *(notes if loose.size else [])]


class Lvis(_Lvis):
    """LVIS v1: 1,203 classes, 100,170 train and 19,809 val images; val lies in COCO's train2017 and val2017."""

    name = "lvis"
    title = "LVIS v1"
    version = "v1"
    protocols = (_protocol("lvis"),)
    downloads = _downloads("v1", None)
    # The paper says 19,822 test images: that is the size of LVIS's own test set, whose labels are not public.
    official_num_images: ClassVar[Mapping[str, int]] = {"train": 100_170, "test": 19_809}
    official_num_classes = 1203


class LvisV05(_Lvis):
    """LVIS v0.5: 1,230 classes of photographs in COCO's train2017, tested on val2017."""

    name = "lvis-v0.5"
    title = "LVIS v0.5"
    version = "v0.5"
    protocols = (_protocol("lvis-v0.5"),)
    official_num_classes = 1230  # no source at hand states its numbers of images
    downloads = _downloads("v0.5", "train")

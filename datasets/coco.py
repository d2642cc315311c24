"""COCO as a multi-label dataset: 80 classes, complete labels, which a protocol makes partial."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from plbench.api import (
    BenchmarkProtocol,
    DataError,
    Dataset,
    ImageFiles,
    LabelledSplit,
    ModelSpec,
    PartialLabels,
    Plan,
    Recipe,
)
from plbench.recipes import quick_recipe

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
        "weight_decay": "decoupled, as the paper says; its code couples it (optimizer = adam-coupled)",
        "randaugment": "the code says RandAugment; magnitude 9 is timm's usual, ours",
        "cutout": "the code's factor 0.5, by timm's random erasing",
        "ema_horizon": "ours: leaves 0.9997 as it is at the paper's 38,000 steps",
        "probe plan": "ours",
    },
)


def _protocols(name: str) -> tuple[BenchmarkProtocol, ...]:
    csl_fpc = {"gamma_pos": 0.0, "gamma_neg": 3.0, "gamma_unann": 4.0}
    csl_rpa = {"gamma_pos": 0.0, "gamma_neg": 1.0, "gamma_unann": 4.0}
    start = {"top_k": 5, "eta": 0.5}
    sources = {"suggested": CSL_README}

    def protocol(variant: str, simulation: str, gammas: dict[str, Any], **rules: Any) -> BenchmarkProtocol:
        suggested = {"pasl-negative": gammas, "selective": {**gammas, **start}}
        return BenchmarkProtocol(
            name=f"{name}-{variant}/v1",
            dataset=name,
            simulation=simulation,
            suggested=suggested,
            sources=sources,
            **rules,
        )

    return (
        protocol("fpc1000", "fpc=1000", csl_fpc),
        protocol("rpa0.5", "rpa=0.5", csl_rpa),
        protocol("single-positive", "single-positive", csl_rpa, validation_labels="complete"),
        protocol("complete", "none", csl_rpa),
    )


class _Coco(Dataset):
    """Both years: `annotations/instances_{train,val}YEAR.json` and the folders of images beside them."""

    licence = "annotations CC BY 4.0 (COCO Consortium); photographs under their own Flickr licences"
    sources = ("https://cocodataset.org/#download",)
    recipes = (PAPER_RECIPE, quick_recipe(image_size=224))
    year: ClassVar[int]

    @property
    def _folders(self) -> dict[str, str]:
        return {"train": f"train{self.year}", "test": f"val{self.year}"}

    def _annotations(self, split: str) -> Path:
        return self.root / "annotations" / f"instances_{self._folders[split]}.json"

    def missing(self) -> list[str]:
        """The annotation files and image folders that are not there."""
        needed = [path for split in self._folders for path in (self._annotations(split), self._images(split))]
        return [str(path.relative_to(self.root)) for path in needed if not path.exists()]

    def _images(self, split: str) -> Path:
        return self.root / self._folders[split]

    def fetch_hint(self) -> str:
        """Where COCO is published."""
        names = " and ".join(self._folders.values())
        return f"download images {names} and their annotations from {self.sources[0]} and unzip them into {self.root}"

    def fingerprint(self) -> str:
        """sha256 over both annotation files and the size of every image that they use."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for split in self._folders:
            with self._annotations(split).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
            sizes = {path.name: path.stat().st_size for path in self._images(split).iterdir()}
            images = self._index[split].images
            files = [Path(images.name(row)).name for row in range(len(images))]
            digest.update(json.dumps([[file, sizes.get(file)] for file in files]).encode())
        return digest.hexdigest()

    @cached_property
    def _index(self) -> dict[str, LabelledSplit]:
        index = {split: self._read(split) for split in self._folders}
        classes = {(split.labels.class_ids, split.labels.class_names) for split in index.values()}
        if len(classes) > 1:
            train, test = map(self._annotations, index)
            raise DataError(f"{test} defines other categories than {train.name}; take both files from one release")
        return index

    def split(self, name: str) -> LabelledSplit:
        """`train`, or `test`, which is COCO's val.

        Raises:
            DataError: if an annotation file is malformed, or there is no such split.
        """
        if name not in self._folders:
            raise DataError(f"dataset {self.name!r} has splits {', '.join(self._folders)}, not {name!r}")
        return self._index[name]

    def _read(self, split: str) -> LabelledSplit:
        path = self._annotations(split)
        content = read_json(path)
        category_ids, names = _categories(content, path)
        image_ids, files = _images(content, path)
        rows, columns = _present(content, path, category_ids, image_ids)
        annotated = np.unique(rows)
        if len(annotated) == 0:
            raise DataError(f"{path}: no image has an annotation; COCO's own file has them for most images")
        present = np.zeros((len(annotated), len(category_ids)), np.int8)
        present[np.searchsorted(annotated, rows), columns] = 1
        labels = PartialLabels.from_dense(2 * present - 1, class_ids=[str(i) for i in category_ids], class_names=names)
        folder = self._folders[split]
        images = ImageFiles(
            root=self.root,
            paths=tuple(f"{folder}/{files[row]}" for row in annotated),
            ids=tuple(str(image_ids[row]) for row in annotated),
        )
        return LabelledSplit(images, labels)


class Coco2014(_Coco):
    """COCO 2014, the split of the paper: 82,081 train and 40,137 val images that have annotations."""

    name = "coco"
    title = "COCO 2014"
    year = 2014
    protocols = _protocols("coco")
    official_num_images: ClassVar[Mapping[str, int]] = {"train": 82081, "test": 40137}


class Coco2017(_Coco):
    """COCO 2017: 117,266 train and 4,952 val images that have annotations."""

    name = "coco2017"
    title = "COCO 2017"
    year = 2017
    protocols = _protocols("coco2017")
    official_num_images: ClassVar[Mapping[str, int]] = {"train": 117266, "test": 4952}


def read_json(path: Path) -> dict[str, Any]:
    """An annotation file without its polygons, which are most of it and are dropped as they are read.

    Raises:
        DataError: if it is not valid JSON, or not an object.
    """

    def without_polygons(item: dict[str, Any]) -> dict[str, Any]:
        item.pop("segmentation", None)
        return item

    try:
        with path.open(encoding="utf-8") as file:
            content = json.load(file, object_hook=without_polygons)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is not valid JSON at line {error.lineno}, column {error.colno} ({error.msg}); it may be "
            "truncated: download it again"
        ) from error
    except (ValueError, RecursionError) as error:  # wrong encoding, numbers of thousands of digits, deep nesting
        raise DataError(f"{path} is not valid JSON: {error}; download it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a JSON {type(content).__name__}; COCO's files hold an object")
    return content


def _field(content: dict[str, Any], section: str, fields: Mapping[str, type], path: Path) -> list[tuple[Any, ...]]:
    """The named values of every entry of a section, each of the type wanted."""
    entries = content.get(section)
    if not isinstance(entries, list):
        raise DataError(f"{path} has no list {section!r}; COCO's files have images, annotations and categories")
    values = []
    for number, entry in enumerate(entries):
        where = f"{path}: {section}[{number}]"
        if not isinstance(entry, dict):
            raise DataError(f"{where} is a {type(entry).__name__}; expected an object with {', '.join(fields)}")
        for name, kind in fields.items():
            if name not in entry:
                raise DataError(f"{where} has no {name!r}; expected {', '.join(fields)}")
            if type(entry[name]) is not kind:
                raise DataError(f"{where}: {name} = {entry[name]!r:.40} is not of type {kind.__name__}")
        values.append(tuple(entry[name] for name in fields))
    return values


def _categories(content: dict[str, Any], path: Path) -> tuple[list[int], list[str]]:
    """Category ids in rising order (they have gaps: class index is the rank) and their names."""
    categories = sorted(_field(content, "categories", {"id": int, "name": str}, path))
    ids = [identity for identity, _ in categories]
    _check_unique(ids, "a category id", path)
    return ids, [name for _, name in categories]


def _images(content: dict[str, Any], path: Path) -> tuple[list[int], list[str]]:
    images = sorted(_field(content, "images", {"id": int, "file_name": str}, path))
    ids = [identity for identity, _ in images]
    _check_unique(ids, "an image id", path)
    for _, name in images:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(f"{path}: file_name {name!r} points outside the image folder")
    return ids, [name for _, name in images]


def _check_unique(ids: list[int], what: str, path: Path) -> None:
    if len(set(ids)) != len(ids):
        raise DataError(f"{path}: {what} appears twice; ids must be unique")


def _present(
    content: dict[str, Any], path: Path, category_ids: list[int], image_ids: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of every annotation."""
    row_of = {identity: row for row, identity in enumerate(image_ids)}
    column_of = {identity: column for column, identity in enumerate(category_ids)}
    cells = []
    fields = {"image_id": int, "category_id": int}
    for number, (image, category) in enumerate(_field(content, "annotations", fields, path)):
        if image not in row_of or category not in column_of:
            what = f"image_id {image}" if image not in row_of else f"category_id {category}"
            raise DataError(f"{path}: annotations[{number}] has {what}, which the file does not define")
        cells.append((row_of[image], column_of[category]))
    pairs = np.array(cells, np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]

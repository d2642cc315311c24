"""Visual Attributes in the Wild: crops of photographs, each with attributes that somebody verified."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np

from plbench.api import (
    Annotations,
    BenchmarkProtocol,
    DataError,
    ImageSource,
    IndexedDataset,
    ProgressReport,
    RemoteFile,
    TextColumn,
)
from plbench.data.annotations.collect import settle_cells
from plbench.data.recipes import quick_recipe

from ..json_file import read_json
from ..visual_genome import COLLECTIONS, IMAGE_ARCHIVES, image_paths, missing_folders
from .crops import CroppedFiles
from .fixture import write_vaw_fixture

FILES = {"train": ("train_part1.json", "train_part2.json"), "val": ("val.json",), "test": ("test.json",)}
_OF_CLASSES = ("attribute_index.json", "attribute_types.json", "attribute_parent_types.json", "head_tail.json")
_NUMBER = re.compile(r"[0-9]{1,18}")
_AT = "https://raw.githubusercontent.com/adobe-research/vaw_dataset/main/data"


class Instance(msgspec.Struct, gc=False):
    """An object in a photograph; ids are strings of digits, though the README calls them integers."""

    image_id: int | str
    instance_id: int | str
    instance_bbox: list[float]
    positive_attributes: list[str]
    negative_attributes: list[str]


class Vaw(IndexedDataset):
    """VAW (Pham et al., CVPR 2021): 216,790 train, 12,286 val and 31,819 test crops of 72,274 photographs.

    Read as published: the repository's `data/*.json` beside Visual Genome's `VG_100K` and `VG_100K_2`. An image is the
    crop of `instance_bbox` [x, y, width, height], which has fractions, without anything around it (papers widen it,
    each in its own way). Positive attributes are present, negative ones verified absent, all others unknown, as the
    published evaluation has it: average precision over what is labelled. Groups are its own: head, medium and tail,
    and eight types, of which one is spelled "materia" there. Its authors changed them after the paper.

    The splits add up to the README's 260,895, and agree with Hugging Face's rounded numbers of mikewang/vaw (217k,
    12.3k, 31.8k). A hold-out part is drawn by crops, so that one photograph may be on both sides; the published `val`
    is a split of its own.
    """

    name = "vaw"
    title = "VAW (visual attributes of objects)"
    licence = "annotations for noncommercial research (Adobe); photographs under their own Flickr licences"
    sources = ("https://github.com/adobe-research/vaw_dataset", "https://visualgenome.org/")
    recipes = (quick_recipe(image_size=224),)
    collections = COLLECTIONS
    splits = ("train", "val", "test")
    protocols = (BenchmarkProtocol(name="vaw/v1", dataset="vaw"),)
    official_num_images: ClassVar = {"train": 216_790, "val": 12_286, "test": 31_819}
    official_num_classes = 620
    downloads = (
        *(
            RemoteFile(url=f"{_AT}/{name}", path=f"data/{name}", kind="annotations")
            for name in (*FILES["train"], *FILES["val"], *FILES["test"], *_OF_CLASSES)
        ),
        *IMAGE_ARCHIVES,
    )

    def annotation_files(self, split: str) -> Sequence[Path]:
        """Return the files on classes, and those of the split: train has two."""
        return [self.root / "data" / name for name in (*_OF_CLASSES, *FILES[split])]

    def missing(self) -> list[str]:
        """Return the files that are not there, and the folders of images where neither is."""
        needed = dict.fromkeys(path for split in self.used_splits() for path in self.annotation_files(split))
        absent = [str(path.relative_to(self.root)) for path in needed if not path.exists()]
        return absent + missing_folders(self.root)

    def fetch_hint(self) -> str:
        """Return the command that gets it, and where it is published."""
        return (
            f"run plbench data download {self.name}, or put the folder data of {self.sources[0]} and the images of "
            f"{self.sources[1]} in {self.root}"
        )

    def read(self, split: str, report: ProgressReport) -> Annotations:
        """Return partial labels of each crop, in the order of the files.

        Raises:
            DataError: if a file is malformed, an id occurs twice, or an attribute is none of the index.
        """
        of_classes, of_split = self.annotation_files(split)[:4], self.annotation_files(split)[4:]
        attributes = _attributes(of_classes[0])
        column_of = {name: column for column, name in enumerate(attributes)}
        ids: dict[str, str] = {}  # of instances, with what is needed to cut them out
        rows: list[int] = []
        columns: list[int] = []
        signs: list[bool] = []
        num_empty = 0
        for number, path in enumerate(of_split, 1):
            for entry, one in enumerate(read_json(path, list[Instance])):
                where, instance = f"{path}: [{entry}]", str(one.instance_id)
                if not (_NUMBER.fullmatch(instance) and _NUMBER.fullmatch(str(one.image_id))):
                    raise DataError(f"{where} has ids {one.image_id!r:.30} and {instance!r:.30}; expected digits")
                if len(one.instance_bbox) != 4:
                    raise DataError(f"{where}.instance_bbox = {one.instance_bbox!r:.60}; expected x, y, width, height")
                if instance in ids:
                    raise DataError(f"{where}.instance_id = {instance} is that of an entry before; ids must be unique")
                for is_present, listed in ((True, one.positive_attributes), (False, one.negative_attributes)):
                    for name in listed:
                        if name not in column_of:
                            raise DataError(f"{where} has attribute {name!r:.60}, which {of_classes[0].name} lacks")
                        rows.append(len(ids))
                        columns.append(column_of[name])
                        signs.append(is_present)
                num_empty += min(one.instance_bbox[2:]) <= 0
                ids[instance] = " ".join(map(str, (one.image_id, instance, *one.instance_bbox)))
            report(number, len(of_split))
        labels, notes = settle_cells(
            np.array(rows, np.int64),
            np.array(columns, np.int64),
            np.array(signs, np.bool_),
            num_images=len(ids),
            class_ids=[str(column) for column in range(len(attributes))],
            class_names=attributes,
        )
        if num_empty:
            notes = (*notes, f"boxes without width or height, of which nothing can be cut out: {num_empty:,}")
        return Annotations(
            TextColumn.of(ids), labels, TextColumn.of(ids.values()), _groups(of_classes, attributes), notes
        )

    def images(self, split: str, annotations: Annotations) -> ImageSource:
        """Return the crops; for each of them `image_paths` has photograph, id and box."""
        assert annotations.image_paths is not None
        words = [text.split() for text in annotations.image_paths]
        files = image_paths(self.root, (f"{photograph}.jpg" for photograph, *_ in words))
        boxes = np.array([box for _, _, *box in words], np.float64).reshape(-1, 4)
        return CroppedFiles(self.root, files, boxes, annotations.image_ids)

    def make_fixture(self) -> None:
        """Write 60 train, 10 val and 30 test crops, two of each picture, laid out as VAW is."""
        write_vaw_fixture(self.root)


def _attributes(path: Path) -> list[str]:
    """Return the names of attributes in the order of their numbers."""
    index = read_json(path, dict[str, int])
    if sorted(index.values()) != list(range(len(index))):
        raise DataError(f"{path}: its {len(index)} numbers are not 0 to {len(index) - 1}, each once")
    return sorted(index, key=index.__getitem__)


def _groups(paths: Sequence[Path], attributes: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """Return class ids by frequency and by type, as the published evaluation finds them: the first that lists it.

    Raises:
        DataError: if an attribute is in no group of frequency. One of no type is of type "other".
    """
    types, parents, frequencies = (read_json(path, dict[str, list[str]]) for path in paths[1:])
    members: dict[str, list[str]] = {name: [] for name in (*frequencies, *parents, "other")}
    for column, name in enumerate(attributes):
        frequency = next((group for group, names in frequencies.items() if name in names), None)
        if frequency is None:
            raise DataError(f"{paths[3]}: attribute {name!r:.60} is in none of {', '.join(frequencies):.200}")
        kind = next((one for one, names in types.items() if name in names), "other")
        parent = next((one for one, kinds in parents.items() if kind in kinds), "other")
        members[frequency].append(str(column))
        members[parent].append(str(column))
    return {name: tuple(ids) for name, ids in members.items() if ids}

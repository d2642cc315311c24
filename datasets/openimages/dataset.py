"""OpenImages, human-verified image-level labels: V6, V3, and V6 as the authors of CSL publish it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from plbench.api import (
    Annotations,
    BenchmarkProtocol,
    CellCollector,
    DataError,
    ImageFiles,
    ImageSource,
    IndexedDataset,
    ModelSpec,
    PartialLabels,
    Plan,
    ProgressReport,
    Recipe,
    RemoteFile,
)
from plbench.data.annotations.delimited import text_batches
from plbench.data.recipes import quick_recipe
from plbench.data.shards.tars import TarImages
from plbench.data.text_column import PatternColumn
from plbench.metrics import count_quintiles

from ..checksums import published_file
from ..suggested import suggested_values
from .files import check_ids, read_class_list, read_descriptions
from .fixture import FixtureRows, pack_tar, write_classes, write_labels

_CSL = "CSL (arXiv 2110.10955)"
_LABELS = {"ImageID": pa.string(), "LabelName": pa.string(), "Confidence": pa.bool_()}
_GOOGLE = "https://storage.googleapis.com/openimages"
_AMAZON = "https://open-images-dataset.s3.amazonaws.com/tar"
_FIRST_DIGITS = "0123456789abcdef"

PROBE = Plan(epochs=10, batch_size=128, lr=1e-3, weight_decay=1e-2)

V6_RECIPE = Recipe(
    name="paper",
    title="TResNet-M at 224 px, bottleneck head",
    regime="finetune",
    model=ModelSpec(
        backbone="tresnet_m.miil_in21k", weights="pretrained", image_size=224, head="bottleneck", head_width=200
    ),
    plans={
        "finetune": Plan(
            epochs=7,
            batch_size=256,
            lr=2e-4,
            weight_decay=1e-4,
            ema_horizon=0.1,
            randaugment="rand-m9-mstd0.5",
            cutout=0.5,
        ),
        "probe": PROBE,
    },
    sources={
        "model": f"{_CSL}: TResNet-M; its authors' demo: 224 px, features -> 200 -> classes (published.json)",
        "model.weights": "ours: ImageNet-21k, as on COCO",
        "finetune plan": "ours: no source states epochs, batch or rate on OpenImages; augmentation as on COCO",
        "probe plan": "ours",
    },
)

V3_RECIPE = Recipe(
    name="paper",
    title="ResNet-101 (ImageNet) at 224 px",
    regime="finetune",
    model=ModelSpec(
        backbone="resnet101.tv_in1k",
        weights="pretrained",
        image_size=224,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
    plans=V6_RECIPE.plans,
    sources={
        "model.backbone": f"{_CSL}, table 3: ResNet-101 (ImageNet); the weights are torchvision's",
        "model.image_size, finetune plan, probe plan": "ours: no source states them for V3",
    },
)


def protocols(name: str) -> tuple[BenchmarkProtocol, ...]:
    """Return the one question of an OpenImages dataset: its labels as they come, scored on test."""
    gammas = {"gamma_pos": 0.0, "gamma_neg": 2.0, "gamma_unann": 7.0}
    return (
        BenchmarkProtocol(
            name=f"{name}/v1",
            dataset=name,
            suggested=suggested_values(gammas, {"eta": 0.05}),
            sources={
                "gammas": f"{_CSL}, figure 8",
                "eta": f"{_CSL}, its default",
                "top_k": "the method's default: no source states K on OpenImages (figure 9 sweeps it)",
            },
        ),
    )


def _image_tar(split: str, folder: str) -> RemoteFile:
    path = Path(folder)
    url = f"{_AMAZON}/{path.name}.tar.gz"
    return published_file(url, kind="images", split=split, unpack=str(path.parent), makes=(folder,))


# The photographs as Amazon keeps them, train in 16 parts by the first digit of the id. They hold all of validation and
# test, but of train only the 1,743,042 images that have boxes; OpenImages' image lists have the others' addresses.
_IMAGE_TARS = (
    *(_image_tar("train", f"train/train_{digit}") for digit in _FIRST_DIGITS),
    _image_tar("validation", "validation"),
    _image_tar("test", "test"),
)


class _OpenImages(IndexedDataset):
    """What V6 and V3 have in common: CSV files of verified labels, a class list, names, and folders of images."""

    licence = "annotations CC BY 4.0 (Google LLC); photographs CC BY 2.0 as listed by OpenImages"
    sources = ("https://storage.googleapis.com/openimages/web/index.html",)
    splits = ("train", "validation", "test")
    class_list: ClassVar[str]
    descriptions: ClassVar[str]
    label_files: ClassVar[Mapping[str, str]]
    descriptions_have_header: ClassVar[bool]

    def annotation_files(self, split: str) -> Sequence[Path]:
        """Return the labels of the split, the classes that count, and their names."""
        return [self.root / name for name in (self.label_files[split], self.class_list, self.descriptions)]

    def missing(self) -> list[str]:
        """Return annotation files, and the images of the splits that are trained and tested on."""
        files = {path for split in self.used_splits() for path in self.annotation_files(split)}
        absent = sorted(str(path.relative_to(self.root)) for path in files if not path.is_file())
        return absent + [f"{split}/" for split in self.used_splits() if not self._places(split)]

    def fetch_hint(self) -> str:
        """Return the command that fetches it."""
        return (
            f"plbench data download {self.name} fetches annotations, validation and test, and the 1.7 million train "
            "images that have boxes (`annotations_only=True`: no images); all images belong in SPLIT/ID.jpg, "
            f"SPLIT/SPLIT_0/ID.jpg to SPLIT_f, or tar files; the others' addresses are listed at {self.sources[0]}"
        )

    def read(self, split: str, report: ProgressReport) -> Annotations:
        """Return known labels of every image that the file names; classes outside the trainable list are left out."""
        path = self.root / self.label_files[split]
        class_ids = read_class_list(self.root / self.class_list)
        names = read_descriptions(self.root / self.descriptions)
        collector = CellCollector(class_ids, [names.get(mid, mid) for mid in class_ids])
        for batch in text_batches(path, _LABELS, report):
            image_ids, labels, present = batch.columns
            collector.add(image_ids, labels, present.to_numpy(zero_copy_only=False))
        annotations = collector.finish()
        check_ids(annotations.image_ids, path)
        if collector.first_outside is not None and collector.num_outside == collector.num_rows:
            row, mid = collector.first_outside
            raise DataError(
                f"{path}: {collector.num_outside:,} of {collector.num_rows:,} rows of {split} name classes that are "
                f"not in {self.class_list} (the first: {mid[:40]}, line {row + 2}); take both from one release"
            )
        if nameless := sum(mid not in names for mid in class_ids):
            said = f"{nameless:,} of {len(class_ids):,} classes have no name in {self.descriptions}; named by id"
            annotations = replace(annotations, notes=(*annotations.notes, said))
        return annotations

    def images(self, split: str, annotations: Annotations) -> ImageSource:
        """Return the images of a split, from whichever of the published layouts is there."""
        ids = annotations.image_ids
        places = self._places(split)
        if places and places[0].suffix == ".tar":
            return TarImages.open(places, ids, self.cache)
        by_digit = any(place.name == f"{split}_{place.name[-1]}" for place in places)
        pattern = f"{split}/{split}_{{id[0]}}/{{id}}.jpg" if by_digit else f"{split}/{{id}}.jpg"
        return ImageFiles(self.root, PatternColumn(ids, pattern), ids)

    def make_fixture(self) -> None:
        """Write the published layout with ten classes and 116 images; train by first digit, test in a tar file."""
        write_classes(self.root / self.class_list, self.root / self.descriptions, header=self.descriptions_have_header)
        for split in self.splits:
            write_labels(self.root / self.label_files[split], split)
            pattern = "train/train_{id[0]}/{id}.jpg" if split == "train" else f"{split}/{{id}}.jpg"
            FixtureRows(split).draw(self.root, pattern)
        pack_tar(self.root, "test")

    def _places(self, split: str) -> list[Path]:
        """Return where the images of a split are: folders by first digit, one folder, or tar files.

        Nothing where they lack.

        Raises:
            DataError: if there are only compressed tar files, which cannot be read out of order.
        """
        folder = self.root / split
        by_digit = [folder / f"{split}_{digit}" for digit in _FIRST_DIGITS]
        if found := [place for place in by_digit if place.is_dir()]:
            return found
        if tars := sorted([*self.root.glob(f"{split}*.tar"), *folder.glob(f"{split}*.tar")]):
            return tars
        if packed := sorted([*self.root.glob(f"{split}*.tar.gz"), *folder.glob(f"{split}*.tar.gz")]):
            raise DataError(
                f"{packed[0]} is compressed, so its images cannot be read one by one; plbench data download "
                f"{self.name} --split {split} unpacks it, as does gunzip"
            )
        return [folder] if folder.is_dir() else []


class OpenImagesV6(_OpenImages):
    """OpenImages V6: 9,011,219 train, 41,620 validation and 125,436 test images, about 9,600 trainable classes.

    57 million verified labels in train, 0.07 % of all (image, class) pairs. The paper writes 125,456 test images.
    """

    name = "openimages-v6"
    title = "OpenImages V6"
    class_list = "oidv6-classes-trainable.txt"
    descriptions = "oidv6-class-descriptions.csv"
    descriptions_have_header = True
    label_files: ClassVar[Mapping[str, str]] = {
        "train": "oidv6-train-annotations-human-imagelabels.csv",
        "validation": "validation-annotations-human-imagelabels.csv",
        "test": "test-annotations-human-imagelabels.csv",
    }
    protocols = protocols("openimages-v6")
    recipes = (V6_RECIPE, quick_recipe(image_size=224))
    collections = ("openimages",)
    official_num_images: ClassVar[Mapping[str, int]] = {"train": 9_011_219, "validation": 41_620, "test": 125_436}
    downloads = (
        *(
            published_file(f"{_GOOGLE}/{folder}/{name}", kind="annotations", split=split)
            for folder, name, split in (
                ("v6", label_files["train"], "train"),
                ("v5", label_files["validation"], "validation"),
                ("v5", label_files["test"], "test"),
                ("v6", class_list, None),
                ("v6", descriptions, None),
            )
        ),
        *_IMAGE_TARS,
    )

    def missing(self) -> list[str]:
        """Return what is not there; where the folder is the authors' copy, the dataset that reads it is named."""
        if (self.root / "data.csv").is_file() and not (self.root / self.class_list).is_file():
            raise DataError(
                f"{self.root} holds a data.csv, as the authors of CSL publish V6; it has a protocol of its own: "
                'give `dataset="openimages-v6-csl"`'
            )
        return super().missing()


class OpenImagesV3(_OpenImages):
    """OpenImages V3 (November 2017): 5,000 trainable classes, in five groups by number of annotations in train."""

    name = "openimages-v3"
    title = "OpenImages V3"
    class_list = "2017_11/classes-trainable.txt"
    descriptions = "2017_11/class-descriptions.csv"
    descriptions_have_header = False
    label_files: ClassVar[Mapping[str, str]] = {
        split: f"2017_11/{split}/annotations-human.csv" for split in ("train", "validation", "test")
    }
    protocols = protocols("openimages-v3")
    official_num_classes = 5000
    recipes = (V3_RECIPE, quick_recipe(image_size=224))
    collections = ("openimages",)
    downloads = (
        *(
            published_file(f"{_GOOGLE}/2017_11/{name}_2017_11.tar.gz", kind="annotations", unpack=".", makes=makes)
            for name, makes in (
                ("annotations_human", tuple(label_files.values())),
                ("classes", (class_list, descriptions)),
            )
        ),
        *_IMAGE_TARS,
    )

    def read(self, split: str, report: ProgressReport) -> Annotations:
        """As V6; train also says which class is in which group."""
        found = super().read(split, report)
        if split != "train":
            return found
        return replace(found, groups=groups_by_count(found.labels))


def groups_by_count(labels: PartialLabels) -> dict[str, tuple[str, ...]]:
    """Return V3's five equal groups: classes by their number of annotations in train, fewest first (CSL, table 3)."""
    positives, negatives = labels.counts()
    parts = count_quintiles(positives + negatives)
    return {f"group_{n}": tuple(labels.class_ids[c] for c in part) for n, part in enumerate(parts, 1)}

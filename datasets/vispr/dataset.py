"""VISPR: photographs with 68 attributes of private matters, one JSON file an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import msgspec
import numpy as np
from pydantic import Field

from plbench.api import (
    Annotations,
    DataError,
    DatasetOptions,
    ImageFiles,
    ImageSource,
    IndexedDataset,
    PartialLabels,
    ProgressReport,
    RemoteFile,
    TextColumn,
)
from plbench.data.recipes import quick_recipe

from ..checksums import published_file
from ..complete_labels import COMMON, simulated_protocols
from ..json_file import read_json
from .fixture import write_vispr_fixture

ATTRIBUTES = (
    *("a0_safe", "a1_age_approx", "a2_weight_approx", "a3_height_approx", "a4_gender", "a5_eye_color"),
    *("a6_hair_color", "a7_fingerprint", "a8_signature", "a9_face_complete", "a10_face_partial", "a11_tattoo"),
    *("a12_semi_nudity", "a13_full_nudity", "a16_race", "a17_color", "a18_ethnic_clothing", "a19_name_full"),
    *("a20_name_first", "a21_name_last", "a23_birth_city", "a24_birth_date", "a25_nationality", "a26_handwriting"),
    *("a27_marital_status", "a29_ausweis", "a30_credit_card", "a31_passport", "a32_drivers_license"),
    *("a33_student_id", "a35_mail", "a37_receipt", "a38_ticket", "a39_disability_physical", "a41_injury"),
    *("a43_medicine", "a46_occupation", "a48_occassion_work", "a49_phone", "a55_religion"),
    *("a56_sexual_orientation", "a57_culture", "a58_hobbies", "a59_sports", "a60_occassion_personal"),
    *("a61_opinion_general", "a62_opinion_political", "a64_rel_personal", "a65_rel_social"),
    *("a66_rel_professional", "a67_rel_competitors", "a68_rel_spectators", "a69_rel_views"),
    *("a70_education_history", "a73_landmark", "a74_address_current_complete", "a75_address_current_partial"),
    *("a78_address_home_complete", "a79_address_home_partial", "a82_date_time", "a85_username", "a90_email"),
    *("a92_email_content", "a97_online_conversation", "a99_legal_involvement", "a102_vehicle_ownership"),
    *("a103_license_plate_complete", "a104_license_plate_partial"),
)
_UNLISTED = {"absent": -1, "unknown": 0}


class Picture(msgspec.Struct, gc=False):
    """An image: its path as on the authors' disk, such as `images/train2017/2017_1.jpg`, and what is present."""

    id: str | int
    image_path: str
    labels: list[str]


def _downloads(split: str) -> tuple[RemoteFile, RemoteFile]:
    address, folder = "https://datasets.d2.mpi-inf.mpg.de/orekondy17iccv", f"{split}2017"
    return (
        published_file(f"{address}/{folder}_anno.tar.gz", kind="annotations", split=split, unpack="."),
        published_file(
            f"{address}/{folder}.tar.gz", path=f"{folder}-images.tar.gz", kind="images", split=split, unpack="."
        ),
    )


class Vispr(IndexedDataset):
    """10,000 train, 4,167 val and 8,000 test photographs from OpenImages; 68 attributes, of which one is "safe".

    Orekondy, Schiele and Fritz, "Towards a Visual Privacy Advisor" (ICCV 2017), whose page has the addresses and
    rounded numbers; the exact ones are those of public copies, 22,167 in all. `{train,val,test}2017/ID.json` beside
    `ID.jpg`, or, as the authors keep them, below `annotations` and `images`. Some attributes occur in no image of a
    split, so the list of classes stands here, as loaders have it. What a file does not list is absent, as in the
    authors' code and evaluation (mean of the average precisions of all attributes).
    """

    name = "vispr"
    title = "VISPR (privacy)"
    licence = "annotations CC BY-NC 4.0; photographs under their own licences"
    sources = ("https://tribhuvanesh.github.io/vpa/",)
    recipes = (quick_recipe(image_size=224),)
    collections = ("openimages",)
    splits = ("train", "val", "test")
    official_num_images: ClassVar = {"train": 10_000, "val": 4_167, "test": 8_000}
    official_num_classes = 68
    protocols = simulated_protocols("vispr", COMMON)
    downloads = (*_downloads("train"), *_downloads("val"), *_downloads("test"))

    class Options(DatasetOptions):
        """What an attribute is taken for that an image's file does not list."""

        unlisted: Literal["absent", "unknown"] = Field(
            "absent", description="what an attribute means that is not listed; a simulation needs absent"
        )

    options: Options

    def _below(self, name: str) -> Path:
        return self.root / name if (self.root / name).is_dir() else self.root

    def annotation_files(self, split: str) -> Sequence[Path]:
        """Return one file an image, by name."""
        return sorted((self._below("annotations") / f"{split}2017").glob("*.json"))

    def images(self, split: str, annotations: Annotations) -> ImageSource:
        """Return the photographs, which may lie below `images`."""
        assert annotations.image_paths is not None
        return ImageFiles(self._below("images"), annotations.image_paths, annotations.image_ids)

    def missing(self) -> list[str]:
        """Return the folders in use that hold no annotation."""
        return [f"{split}2017/*.json" for split in self.used_splits() if not self.annotation_files(split)]

    def fetch_hint(self) -> str:
        """Return the command that gets both parts, and where they are published."""
        return f"run plbench data download {self.name}, or unpack the archives of {self.sources[0]} in {self.root}"

    def read(self, split: str, report: ProgressReport) -> Annotations:
        """Return the labels of one split, in the order of the files' names.

        Raises:
            DataError: if a file is malformed, or two are of one image.
        """
        files = self.annotation_files(split)
        column_of = {name: column for column, name in enumerate(ATTRIBUTES)}
        values = np.full((len(files), len(ATTRIBUTES)), _UNLISTED[self.options.unlisted], np.int8)
        paths: dict[str, str] = {}
        other = bare = 0
        for row, file in enumerate(files):
            picture = read_json(file, Picture)
            if str(picture.id) in paths:
                raise DataError(f"{file}: id = {picture.id!r} is that of another file of {split}; expected each once")
            paths[str(picture.id)] = picture.image_path.removeprefix("images/")
            columns = [column_of[label] for label in picture.labels if label in column_of]
            values[row, columns] = 1
            other += len(picture.labels) - len(columns)
            bare += not columns
            report(row + 1, len(files))
        counted = (
            (other, "labels are none of the 68 attributes: left out"),
            (bare, "images list no attribute, not even a0_safe"),
            (int(np.sum(~(values > 0).any(0))), f"of 68 attributes are in no image of {split}"),
        )
        return Annotations(
            TextColumn.of(paths),
            PartialLabels.from_dense(values, class_ids=ATTRIBUTES, class_names=ATTRIBUTES),
            TextColumn.of(paths.values()),
            notes=(
                f"attributes that are not listed are taken for {self.options.unlisted}",
                *(f"{number:,} {what}" for number, what in counted if number),
            ),
        )

    def make_fixture(self) -> None:
        """Write 60 train and 30 test pictures with a file each, laid out as VISPR is."""
        write_vispr_fixture(self.root, ATTRIBUTES)

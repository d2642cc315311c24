"""Merlin L48: three seconds of sound as a spectrogram, 100 birds, each present, absent or unknown."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from plbench.api import (
    Annotations,
    BenchmarkProtocol,
    DataError,
    IndexedDataset,
    PartialLabels,
    ProgressReport,
    RemoteFile,
    TextColumn,
)
from plbench.data.recipes import quick_recipe
from plbench.files.arrays import damage_in_words, usable

from ..complete_labels import check_size
from ..json_file import read_json
from .fixture import write_l48_fixture

BoolArray = npt.NDArray[np.bool_]
_ADDRESS = "https://msid-ml48s.s3.amazonaws.com/v0/ml48s.tar.gz"
_NAME_COLUMNS = ("common_name", "scientific_name", "species_code")


class Asset(msgspec.Struct, gc=False):
    """A recording: its split, the bird it was made for, and the birds that may be heard where and when it was made."""

    id: int
    split: Literal["train", "test"]
    target_species_code: str
    possible_species_codes: list[str]
    observed_species_codes: list[str]


class Clip(msgspec.Struct, gc=False):
    """Three seconds of a recording, and what is said of each bird."""

    id: int
    asset_id: int
    file_path: str
    present_species_codes: list[str]
    absent_species_codes: list[str]
    unknown_species_codes: list[str]


class L48(IndexedDataset):
    """85,193 train images of 7,000 recordings, of which 38,975 are fully annotated; the labels are as annotated.

    Sun, Maji and Van Horn, "Merlin L48 Spectrogram Dataset" (NeurIPS 2025), whose README states the format and the
    numbers. `clips.json`, `assets.json`, `taxa.csv` and the images lie in the root or in `ml48s/`; `val_split.npy` of
    the authors' code, in either, has the ids of 1,000 recordings that validate, for which `assets.json` says train. A
    bird that no list of a clip names, or two lists contradict on, is unknown. Test is `test-full`, since the published
    evaluation takes fully annotated images alone; `test` has all 31,365.
    """

    name = "l48"
    title = "L48, labels as annotated"
    licence = "its own terms of use, agreed to by downloading it (TOU.pdf of its repository)"
    sources = ("https://github.com/visipedia/ml48s", "https://github.com/cvl-umass/ml48s-benchmarking")
    recipes = (quick_recipe(image_size=224),)
    splits = ("train", "val", "test", "test-full")
    official_num_images: ClassVar[Mapping[str, int]] = {"train": 85_193, "val": 12_448, "test": 31_365}
    official_num_classes = 100
    downloads = (RemoteFile(_ADDRESS, "ml48s.tar.gz", kind="images", unpack="."),)
    protocols: ClassVar[tuple[BenchmarkProtocol, ...]] = (
        BenchmarkProtocol(name="l48/v1", dataset="l48", test_split="test-full"),
    )

    @property
    def _folder(self) -> Path:
        inside = self.root / "ml48s"
        return inside if inside.is_dir() else self.root

    def annotation_files(self, split: str) -> Sequence[Path]:
        """Return the four files, which serve all splits."""
        array = self.root / "val_split.npy"
        files = [self._folder / name for name in ("clips.json", "assets.json", "taxa.csv")]
        return [*files, array if array.exists() else self._folder / array.name]

    def missing(self) -> list[str]:
        """Return the files and the folder of images that are not there."""
        needed = (*self.annotation_files("train"), self._folder / "images")
        return [str(path.relative_to(self.root)) for path in needed if not path.exists()]

    def fetch_hint(self) -> str:
        """Return where both parts are published."""
        return (
            f"run plbench data download {self.name} if you agree to the terms of {self.sources[0]}, and put "
            f"val_split.npy of {self.sources[1]} into {self.root}"
        )

    def read(self, split: str, report: ProgressReport) -> Annotations:
        """Return the labels of the clips of one split, in the order of the file.

        Raises:
            DataError: if a file is malformed, or they do not fit together.
        """
        clips_path, assets_path, taxa_path, val_path = self.annotation_files(split)
        species = _read_species(taxa_path)
        assets = {asset.id: asset for asset in read_json(assets_path, list[Asset])}
        validating = _read_validating(val_path, assets)
        chosen, ids = [], set()
        for number, clip in enumerate(read_json(clips_path, list[Clip])):
            if (asset := assets.get(clip.asset_id)) is None:
                raise DataError(f"{clips_path}: [{number}].asset_id = {clip.asset_id} is not in {assets_path.name}")
            if clip.id in ids:
                raise DataError(f"{clips_path}: [{number}].id = {clip.id} stands there twice; expected each once")
            ids.add(clip.id)
            if split.partition("-")[0] == ("val" if asset.id in validating else asset.split):
                chosen.append(clip)
        check_size(len(chosen), len(species), clips_path)
        values, notes = _annotated(chosen, species)
        complete = np.count_nonzero(values, axis=1) == len(species)
        if split == "test-full":
            notes.append(
                f"{np.sum(complete):,} of {len(complete):,} test images are fully annotated: the others left out"
            )
            keep = complete
        elif split == "train":
            values, keep, said = self.train_labels(values, [assets[clip.asset_id] for clip in chosen], species)
            notes += said
        else:
            keep = np.ones(len(chosen), bool)
        kept = [clip for clip, is_kept in zip(chosen, keep, strict=True) if is_kept]
        below = self._folder.relative_to(self.root)
        return Annotations(
            TextColumn.of(str(clip.id) for clip in kept),
            PartialLabels.from_dense(values[keep], class_ids=tuple(species), class_names=tuple(species.values())),
            TextColumn.of((below / clip.file_path).as_posix() for clip in kept),
            notes=tuple(notes),
        )

    def train_labels(
        self, values: npt.NDArray[np.int8], assets: Sequence[Asset], species: Mapping[str, str]
    ) -> tuple[npt.NDArray[np.int8], BoolArray, list[str]]:
        """Return the labels [N, C] to train on, which images [N] are kept, and notes; here all that was annotated."""
        return values, np.ones(len(values), bool), []

    def make_fixture(self) -> None:
        """Write 60 train, 8 val and 30 test pictures of 12 birds, laid out as L48 is."""
        write_l48_fixture(self.root)


class L48Target(L48):
    """L48 as single positives: of a train image only the bird is known that its recording was made for, if present.

    As the authors' code has it, train images without any known label are left out.
    """

    name = "l48-target"
    title = "L48, single positives"
    official_num_images: ClassVar = {"val": 12_448, "test": 31_365}
    protocols = (BenchmarkProtocol(name="l48-target/v1", dataset="l48-target", test_split="test-full"),)

    def ruled_in(self, asset: Asset) -> list[str] | None:
        """Return the birds that may be heard in a recording, so that others are absent; None if that is not used."""
        return None

    def train_labels(
        self, values: npt.NDArray[np.int8], assets: Sequence[Asset], species: Mapping[str, str]
    ) -> tuple[npt.NDArray[np.int8], BoolArray, list[str]]:
        """Return the target where it is present, and what the prior rules out as absent."""
        column_of = {code: column for column, code in enumerate(species)}
        taken = np.zeros_like(values)
        for row, asset in enumerate(assets):
            if (may_be := self.ruled_in(asset)) is not None:
                taken[row] = -1
                taken[row, [column_of[code] for code in may_be if code in column_of]] = 0
            if (column := column_of.get(asset.target_species_code)) is not None:
                taken[row, column] = int(values[row, column] > 0)
        keep = np.count_nonzero(taken, axis=1) > 0
        counted = (
            (int(np.sum(~keep)), f"of {len(keep):,} train images have no known label: left out"),
            (int(np.sum((taken < 0) & (values > 0))), "labels are absent by the prior though annotated as present"),
        )
        return taken, keep, _said(counted)


class L48Geo(L48Target):
    """L48 as single positives, and absent what is not found at the place and time of the recording."""

    name = "l48-geo"
    title = "L48, single positives and negatives by range"
    protocols = (BenchmarkProtocol(name="l48-geo/v1", dataset="l48-geo", test_split="test-full"),)

    def ruled_in(self, asset: Asset) -> list[str]:
        """Return the birds whose range and season fit."""
        return asset.possible_species_codes


class L48Checklist(L48Target):
    """L48 as single positives, and absent what the recordist's checklist does not name."""

    name = "l48-checklist"
    title = "L48, single positives and negatives by checklist"
    protocols = (BenchmarkProtocol(name="l48-checklist/v1", dataset="l48-checklist", test_split="test-full"),)

    def ruled_in(self, asset: Asset) -> list[str]:
        """Return the birds on the checklist."""
        return asset.observed_species_codes


def _read_species(path: Path) -> dict[str, str]:
    """Return the birds' names by their codes, in the order of the file."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    species: dict[str, str] = {}
    for number, row in enumerate(rows, 2):
        code = row.get("species_code")
        if not code or code in species:
            raise DataError(f"{path}, line {number}: species_code = {code!r}; expected a code, each once")
        species[code] = next(row[name] for name in _NAME_COLUMNS if row.get(name))
    return species


def _read_validating(path: Path, assets: Mapping[int, Asset]) -> set[int]:
    """Return the ids of the recordings that validate."""
    try:
        with damage_in_words():
            found = {int(number) for number in usable(np.load(path, allow_pickle=False)).ravel()}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as an array of asset ids: {error}") from error
    if bad := sorted(number for number in found if number not in assets or assets[number].split != "train"):
        raise DataError(f"{path} has asset {bad[0]}; expected ids of train assets")
    return found


def _annotated(clips: Sequence[Clip], species: Mapping[str, str]) -> tuple[npt.NDArray[np.int8], list[str]]:
    """Return what was annotated [N, C], and notes on what was not taken."""
    column_of = {code: column for column, code in enumerate(species)}
    outside = 0

    def marked(lists: Iterable[list[str]]) -> BoolArray:
        nonlocal outside
        marks = np.zeros((len(clips), len(species)), bool)
        for row, codes in enumerate(lists):
            columns = [column_of[code] for code in codes if code in column_of]
            outside += len(codes) - len(columns)
            marks[row, columns] = True
        return marks

    present = marked(clip.present_species_codes for clip in clips)
    absent = marked(clip.absent_species_codes for clip in clips)
    unknown = marked(clip.unknown_species_codes for clip in clips)
    clash = (present & absent) | (present & unknown) | (absent & unknown)
    values = np.where(clash | unknown, 0, present.astype(np.int8) - absent).astype(np.int8)
    counted = (
        (outside, "labels are of birds that are not in taxa.csv: left out"),
        (int(clash.sum()), "labels are in two lists of one clip: unknown"),
    )
    return values, _said(counted)


def _said(counted: Sequence[tuple[int, str]]) -> list[str]:
    return [f"{number:,} {what}" for number, what in counted if number]

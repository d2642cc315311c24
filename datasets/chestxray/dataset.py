"""Chest radiographs with fourteen observations that a program read from the radiologists' reports."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field

from plbench.api import (
    Annotations,
    BenchmarkProtocol,
    DataError,
    DatasetOptions,
    IndexedDataset,
    PartialLabels,
    ProgressReport,
    TextColumn,
)
from plbench.data.recipes import quick_recipe

from .files import OBSERVATIONS, UNCERTAIN, UNLABELLED, UNMENTIONED, read_observations, read_rows
from .fixture import write_chexpert, write_mimic

_TAKEN_FOR = {"present": 1, "absent": -1, "unknown": 0}
_FIVE = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
_PATH = re.compile(r"(?:CheXpert-v1\.0(?:-small)?/)?((\w+)/(patient\d+/study\d+/view\d+_(frontal|lateral))\.jpg)")
_VIEWS = {"AP": "frontal", "PA": "frontal", "LATERAL": "lateral", "LL": "lateral"}  # others: neither


class ChestXrayOptions(DatasetOptions):
    """What the labels of train are taken for, and which views are kept."""

    uncertain: Literal["unknown", "absent", "present"] = Field("unknown", description="what -1 means in train")
    unmentioned: Literal["unknown", "absent"] = Field("absent", description="what a blank means in train")
    views: Literal["all", "frontal", "lateral"] = Field("all", description="radiographs to keep, in every split")


class Radiograph(NamedTuple):
    """An image: its id starts with the patient, `view` is frontal, lateral or what the file says, `codes` [14]."""

    image_id: str
    path: str
    view: str
    codes: bytes


class _ChestXrays(IndexedDataset):
    """What both have in common: 1, 0, -1 and blank, studies of one or more images, splits by patient.

    CheXpert's paper (Irvin et al., AAAI 2019) takes a blank for negative, as its author says in issue 9 of
    stanfordmlgroup/chexpert-labeler, and compares what to make of -1; the defaults are its U-Ignore.
    `uncertain=absent` is U-Zeros, `uncertain=present` U-Ones; many papers choose one of the two for each class.
    Other splits than train are read one way whatever the options, so that figures compare: -1 is
    left out, a blank is absent. "No Finding" is 1 or blank in train, never 0. The field reports AUROC, often the mean
    of the five classes of the group `competition`, and CheXpert's own evaluation takes the maximum over the images of
    a study; figures here are of images.
    """

    recipes = (quick_recipe(image_size=224),)
    official_num_classes = 14
    options: ChestXrayOptions

    class Options(ChestXrayOptions):
        """What the labels of train are taken for, and which views are kept."""

    @abstractmethod
    def radiographs(self, split: str, report: ProgressReport) -> Iterator[Radiograph]:
        """Yield all images of a split, in the order of its file."""

    @classmethod
    def validation_unit(cls, image_id: str) -> str:
        """Return the patient, whose images are held out together."""
        return image_id.partition("/")[0]

    def read(self, split: str, report: ProgressReport) -> Annotations:
        """Return the labels of one split, in the order of its file.

        Raises:
            DataError: if a file is malformed, or lists an image twice.
        """
        options = self.options if split == "train" else self.Options(views=self.options.views)
        listed = list(self.radiographs(split, report))
        chosen = [one for one in listed if options.views in ("all", one.view)]
        ids = [one.image_id for one in chosen]
        if len({*ids}) < len(ids):
            twice = next(one for one in ids if ids.count(one) > 1)
            raise DataError(f"{self.annotation_files(split)[0]}: image {twice!r:.80} is there twice; expected once")
        codes = np.frombuffer(b"".join(one.codes for one in chosen), np.uint8).reshape(-1, len(OBSERVATIONS))
        meant = np.array([1, -1, _TAKEN_FOR[options.uncertain], _TAKEN_FOR[options.unmentioned], 0], np.int8)
        counts = np.bincount(codes.ravel(), minlength=len(meant)).tolist()
        said = (
            (counts[UNCERTAIN], f"labels are uncertain (-1): taken for {options.uncertain}"),
            (counts[UNMENTIONED], f"labels are blank (not mentioned): taken for {options.unmentioned}"),
            (counts[UNLABELLED], "labels are of studies that have no row: unknown"),
            (len(listed) - len(chosen), f"of {len(listed):,} images are not {options.views}: left out"),
        )
        return Annotations(
            TextColumn.of(ids),
            PartialLabels.from_dense(meant[codes], class_ids=OBSERVATIONS, class_names=OBSERVATIONS),
            TextColumn.of(one.path for one in chosen),
            {"competition": _FIVE},
            tuple(f"{number:,} {sentence}" for number, sentence in said if number),
        )


class Chexpert(_ChestXrays):
    """CheXpert: 223,414 train images of Stanford, tested on the 234 of `valid.csv`, as most papers do.

    Three radiologists labelled those from the images; train is labelled by a program. `CheXpert-v1.0` or
    `CheXpert-v1.0-small`, with `{train,valid}.csv` and the folders `train` and `valid`, or that folder itself as the
    root. The full version comes as archives whose folders are to be moved together like that. Counts: the dataset's
    card on Hugging Face (danjacobellis/chexpert).
    """

    name = "chexpert"
    title = "CheXpert"
    licence = "Stanford University Dataset Research Use Agreement: research, not to be passed on"
    sources: ClassVar[tuple[str, ...]] = ("https://stanfordmlgroup.github.io/competitions/chexpert/",)
    collections = ("chexpert",)
    splits = ("train", "valid", "test")
    protocols: ClassVar[tuple[BenchmarkProtocol, ...]] = (
        BenchmarkProtocol(name="chexpert/v1", dataset="chexpert", test_split="valid"),
    )
    official_num_images: ClassVar = {"train": 223_414, "valid": 234, "test": 668}

    @property
    def _folder(self) -> Path:
        found = [self.root / name for name in ("CheXpert-v1.0", "CheXpert-v1.0-small", ".")]
        return next((folder for folder in found if (folder / "train.csv").exists()), found[0])

    def annotation_files(self, split: str) -> Sequence[Path]:
        """Return the one file of a split; that of test may be called `test_labels.csv`, as CheXlocalize has it."""
        other = self._folder / f"{split}_labels.csv"
        return [other if split == "test" and other.exists() else self._folder / f"{split}.csv"]

    def missing(self) -> list[str]:
        """Return files and folders of images that are not there."""
        needed = [
            path for split in self.used_splits() for path in (*self.annotation_files(split), self._folder / split)
        ]
        return [str(path.relative_to(self.root)) for path in needed if not path.exists()]

    def fetch_hint(self) -> str:
        """Return where it is given out."""
        return f"sign the agreement at {self.sources[0]} and put its folder CheXpert-v1.0-small into {self.root}"

    def radiographs(self, split: str, report: ProgressReport) -> Iterator[Radiograph]:
        """Yield the images of one file; the column `Path` starts with a folder's name in train and valid, not in test.

        Raises:
            DataError: if a path is not of this split, or does not say the view.
        """
        path = self.annotation_files(split)[0]
        folder = "" if self._folder == self.root else f"{self._folder.name}/"
        columns = ("Path", OBSERVATIONS[0])  # two, so that a row is a tuple
        for number, (name, _), codes in read_observations(path, columns):
            if (match := _PATH.fullmatch(name)) is None or match[2] != split:
                raise DataError(
                    f"{path}, line {number}: Path = {name!r:.80}; expected such as {split}/patient00001/study1/"
                    "view1_frontal.jpg"
                )
            yield Radiograph(match[3], folder + match[1], match[4], codes)
        report(1, 1)

    def make_fixture(self) -> None:
        """Write 60 train and 30 test pictures with their two files, laid out as the small version is."""
        write_chexpert(self.root, self.used_splits()[1])


class ChexpertTest(Chexpert):
    """CheXpert, tested on the 668 images of 500 patients that five radiologists labelled: the official test set.

    `test.csv` (or `test_labels.csv`) and `test/` come with CheXlocalize, beside `train.csv`. A file `groundtruth.csv`
    that is also public has labels of studies, not of images. Counts: CheXlocalize's README.
    """

    name = "chexpert-test"
    title = "CheXpert, official test set"
    sources = (
        *Chexpert.sources,
        "https://stanfordaimi.azurewebsites.net/datasets/23c56a0d-15de-405b-87c8-99c30138950c",
    )
    protocols = (BenchmarkProtocol(name="chexpert-test/v1", dataset="chexpert-test"),)

    def fetch_hint(self) -> str:
        """Return where both parts are given out."""
        return f"{super().fetch_hint()}, and the labels and images of test from {self.sources[1]} beside train.csv"


class MimicCxrJpg(_ChestXrays):
    """MIMIC-CXR-JPG: 368,960 train and 5,159 test images of Beth Israel Deaconess, labelled by CheXpert's program.

    `mimic-cxr-2.0.0-{split,metadata,chexpert}.csv`, gzipped or not, and `files/p10/p10000032/s50414267/DICOM.jpg`. The
    split is of images, by patient; labels are of studies, of which eight have none. Views: AP and PA are frontal,
    LATERAL and LL lateral, others (some are blank) neither. Test is labelled as train is, by the program, as papers
    report it; the labels of one radiologist for 687 studies (2.1.0) are not read. Counts: github.com/WissingChen/CMCRL,
    issue 17, whose sum is the 377,110 images that PhysioNet states.
    """

    name = "mimic-cxr-jpg"
    title = "MIMIC-CXR-JPG"
    licence = "PhysioNet Credentialed Health Data License 1.5.0: credentialed users, not to be passed on"
    sources = ("https://physionet.org/content/mimic-cxr-jpg/",)
    collections = ("mimic-cxr",)
    splits = ("train", "validate", "test")
    protocols: ClassVar[tuple[BenchmarkProtocol, ...]] = (
        BenchmarkProtocol(name="mimic-cxr-jpg/v1", dataset="mimic-cxr-jpg"),
    )
    official_num_images: ClassVar = {"train": 368_960, "validate": 2_991, "test": 5_159}

    def annotation_files(self, split: str) -> Sequence[Path]:
        """Return the three files, of all splits: which image is where, its view, and the labels of studies."""
        plain = [self.root / f"mimic-cxr-2.0.0-{what}.csv" for what in ("split", "metadata", "chexpert")]
        return [path if path.exists() else path.with_name(f"{path.name}.gz") for path in plain]

    def missing(self) -> list[str]:
        """Return files and the folder of images that are not there."""
        needed = (*self.annotation_files("train"), self.root / "files")
        return [str(path.relative_to(self.root)) for path in needed if not path.exists()]

    def fetch_hint(self) -> str:
        """Return where it is given out."""
        return f"become a credentialed user at {self.sources[0]} and download its files into {self.root}"

    def radiographs(self, split: str, report: ProgressReport) -> Iterator[Radiograph]:
        """Yield the images that the file of the split gives to this one.

        Raises:
            DataError: if an image has no view, a patient is in two splits, or a study has two rows.
        """
        split_path, metadata_path, labels_path = self.annotation_files(split)
        codes_of: dict[str, bytes] = {}
        for number, (subject, study), codes in read_observations(labels_path, ("subject_id", "study_id")):
            if codes_of.setdefault(study, codes) is not codes:
                raise DataError(
                    f"{labels_path}, line {number}: study {study} of {subject} again; expected one row each"
                )
        report(1, 3)
        view_of = {dicom: view for _, (dicom, view) in read_rows(metadata_path, ("dicom_id", "ViewPosition"))}
        report(2, 3)
        split_of: dict[str, str] = {}
        columns = ("dicom_id", "study_id", "subject_id", "split")
        for number, (dicom, study, subject, part) in read_rows(split_path, columns):
            if part not in self.splits:
                expected = ", ".join(self.splits)
                raise DataError(f"{split_path}, line {number}: split = {part!r:.20}; expected one of {expected}")
            if (before := split_of.setdefault(subject, part)) != part:
                raise DataError(
                    f"{split_path}, line {number}: patient {subject} is in {part}, and in {before} on a line before; "
                    "expected all images of a patient in one"
                )
            if dicom not in view_of:
                raise DataError(f"{split_path}, line {number}: {dicom!r:.60} is not in {metadata_path.name}")
            if part == split:
                place = f"p{subject}/s{study}/{dicom}"
                view = _VIEWS.get(view_of[dicom], view_of[dicom])
                codes = codes_of.get(study, bytes([UNLABELLED]) * len(OBSERVATIONS))
                yield Radiograph(place, f"files/p{subject[:2]}/{place}.jpg", view, codes)
        report(3, 3)

    def make_fixture(self) -> None:
        """Write 60 train, 30 test and 3 validation pictures with their three files, two of them gzipped."""
        write_mimic(self.root)

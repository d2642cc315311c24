"""Small imitations of CheXpert and MIMIC-CXR-JPG.

What makes real files awkward is in them: blanks and -1 in train, studies of two images and patients of two studies,
lateral views, grey images; a folder's name before the paths of one CSV and not of the other, whose columns are fewer
and in another order; studies without a row of labels, views that are blank.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path

from plbench.files import write_text

from ..coco.fixture import draw_presence
from ..fixture_images import draw
from .files import OBSERVATIONS

_SIZES = {"train": 60, "test": 30}


def write_chexpert(root: Path, test_split: str) -> None:
    """Write the small version: `train.csv` and the file of `test_split`, with their pictures."""
    folder = root / "CheXpert-v1.0-small"
    for split, size in (("train", _SIZES["train"]), (test_split, _SIZES["test"])):
        is_test = split == "test"
        columns = ["Path", *(() if is_test else ("Sex", "Age", "Frontal/Lateral", "AP/PA"))]
        observations = OBSERVATIONS[1:] + OBSERVATIONS[:1] if is_test else OBSERVATIONS
        rows = []
        for row, present in enumerate(_studies(size, seed=400 + size)):
            view = ("view1_frontal", "view2_lateral", "view1_frontal")[row % 3]
            number = (64_741 if is_test else 64_541 if split == "valid" else 1) + row // 3
            path = f"{split}/patient{number:05d}/study{1 + row % 3 // 2}/{view}.jpg"
            _write_grey(folder / path, present, seed=1000 * size + row)
            about = [] if is_test else ["Female", "63", view[6:].capitalize(), "" if row % 3 == 1 else "AP"]
            said = dict(zip(OBSERVATIONS, _said(present, row - (row % 3 == 1), split == "train"), strict=True))
            rows.append([path if is_test else f"{folder.name}/{path}", *about, *(said[name] for name in observations)])
        write_text(folder / f"{split}.csv", _csv([*columns, *observations], rows))


def write_mimic(root: Path) -> None:
    """Write the three files, that of the labels plain and the others gzipped, and the pictures."""
    images, views, labels = [], [], {}
    for first, split, size in ((10_000_100, "train", 60), (15_000_000, "validate", 3), (19_000_000, "test", 30)):
        for row, present in enumerate(_studies(size, seed=500 + size)):
            subject, study = first + row // 3, first + 40_000_000 + row - (row % 3 == 1)
            dicom = f"{study:08x}-{row:08x}-0f1e2d3c"
            path = root / "files" / f"p{str(subject)[:2]}" / f"p{subject}" / f"s{study}" / f"{dicom}.jpg"
            _write_grey(path, present, seed=1000 * size + row)
            images.append([dicom, study, subject, split])
            views.append([dicom, "" if row == 26 else ("AP", "LATERAL", "PA")[row % 3], 112, 112])
            if row != 29:  # a study that could not be labelled
                labels[study] = [subject, study, *_said(present, study, True)]
    write_text(root / "mimic-cxr-2.0.0-chexpert.csv", _csv(["subject_id", "study_id", *OBSERVATIONS], labels.values()))
    _write_gzip(root / "mimic-cxr-2.0.0-split.csv.gz", _csv(["dicom_id", "study_id", "subject_id", "split"], images))
    _write_gzip(root / "mimic-cxr-2.0.0-metadata.csv.gz", _csv(["dicom_id", "ViewPosition", "Rows", "Columns"], views))


def _studies(size: int, seed: int) -> list[list[int]]:
    """Return the observations of each image: of three, the first two are one study, whose labels they share."""
    presence = [[number + 1 for number in one] or [0] for one in draw_presence(max(size, 30), [25] * 13, seed)]
    return [presence[row - (row % 3 == 1)] for row in range(size)]


def _said(present: Sequence[int], study: int, by_program: bool) -> list[str]:
    """Return what a file says of each observation; a program leaves blanks and doubts, radiologists do not."""
    absent = ["", "0.0", "-1.0", "", "0.0"] if by_program else ["0.0"]
    said = ["1.0" if column in present else absent[(study + column) % len(absent)] for column in range(14)]
    return ["", *said[1:]] if by_program and said[0] != "1.0" else said  # a program never denies that nothing was found


def _write_grey(path: Path, present: Sequence[int], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(present, seed).convert("L").save(path, quality=90)


def _csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue()


def _write_gzip(path: Path, text: str) -> None:
    path.write_bytes(gzip.compress(text.encode(), mtime=0))

"""The default dataset: drawn scenes with complete truth, made on this machine, the same on every machine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from plbench.api import (
    DataError,
    Dataset,
    ImageFiles,
    LabelledSplit,
    PartialLabels,
    ProgressReport,
)
from plbench.data.recipes import quick_recipe
from plbench.files import fresh_folder

from ..complete_labels import CSL_README, simulated_protocols
from ..suggested import SELECTIVE_UNDER_OTHER_LOSSES
from .drawing import CLASSES, DRAWING_VERSION, IMAGE_SIZE, SPLIT_SIZES, draw

FINGERPRINT = "8183cf12a48184ef20a2e8a6a44d5a8cf2137202d3dc0cecac046b15251b5ba1"
"""sha256 over all pixels and labels, on every machine."""

ABOVE_MEAN = 21
"""Classes, of 56, that are present in more train images than the mean class."""

_CHUNK = 100  # images that a worker draws at a time


class Scenes(Dataset):
    """8,000 train and 3,000 test scenes: objects with a long tail, their colours, attributes of the whole scene."""

    name = "scenes"
    title = "Scenes (drawn)"
    licence = "Apache-2.0, as plbench"
    needs_files = False
    official_num_images = SPLIT_SIZES
    recipes = (quick_recipe(image_size=IMAGE_SIZE),)
    protocols = simulated_protocols(
        "scenes",
        {"fpc=300": 3.0, "fpc=100": 3.0, "rpa=0.5": 1.0, "single-positive": 3.0, "none": 3.0},
        version=2,  # of version 1, all runs had the labels of seed 0
        selective={"top_k": 3, "eta_top": ABOVE_MEAN},
        tuned_here=("selective", *SELECTIVE_UNDER_OTHER_LOSSES),
        sources={
            "gammas": CSL_README,
            "top_k": "ours: the trial that the dataset was designed by, before it was drawn as it is now",
            "eta_top": "ours: the number of classes whose complete labels in train are more frequent than those of the "
            "mean class (12.8 % of images); fixed by that rule alone, which no score had a part in. COCO's eta = 0.5 "
            "exceeds every prior here",
        },
    )

    @property
    def _drawn(self) -> Path:
        return self.root / f"v{DRAWING_VERSION}"

    def fetch_hint(self) -> str:
        """Nothing to fetch."""
        return "plbench draws it by itself"

    def prepare(self, report: ProgressReport) -> None:
        """Draw all images into PNG files, once.

        The files are drawn beside their place and moved there when all are whole.

        Raises:
            DataError: if the pixels are not those of every other machine.
        """
        if self._manifest() is not None:
            return
        self.root.mkdir(parents=True, exist_ok=True)
        for abandoned in self.root.glob(".drawing-*"):  # of a process that was killed
            shutil.rmtree(abandoned, ignore_errors=True)
        folder = fresh_folder(self.root, ".drawing-")
        try:
            fingerprint = _draw_all(folder, report)
            if fingerprint != FINGERPRINT:
                raise DataError(
                    f"the scenes drawn here have fingerprint {fingerprint[:16]}, not {FINGERPRINT[:16]}: their pixels "
                    "differ from every other machine's; please report this with the output of plbench doctor"
                )
            (folder / "manifest.json").write_text(json.dumps({"fingerprint": fingerprint}) + "\n")
            shutil.rmtree(self._drawn, ignore_errors=True)
            folder.rename(self._drawn)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def fingerprint(self) -> str:
        """As computed when the scenes were drawn.

        Raises:
            DataError: if they were not.
        """
        if (fingerprint := self._manifest()) is None:
            raise DataError(f"the scenes are not rendered in {self.root}; plbench run --dataset scenes renders them")
        return fingerprint

    def _manifest(self) -> str | None:
        """Return the fingerprint that says that a drawing is whole; None where there is none."""
        try:
            return str(json.loads((self._drawn / "manifest.json").read_text(encoding="utf-8"))["fingerprint"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def split(self, name: str) -> LabelledSplit:
        """Return `train` or `test`.

        Raises:
            DataError: if there is no such split.
        """
        if name not in SPLIT_SIZES:
            raise DataError(f"dataset {self.name!r} has splits {', '.join(SPLIT_SIZES)}, not {name!r}")
        size = SPLIT_SIZES[name]
        paths = tuple(f"{name}/{index:05d}.png" for index in range(size))
        ids = tuple(f"{name}-{index:05d}" for index in range(size))
        labels = PartialLabels.load(self._drawn / f"{name}.npz")
        return LabelledSplit(ImageFiles(self._drawn, paths, ids), labels)

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Return the three kinds of class."""
        kinds = dict.fromkeys(c.kind for c in CLASSES)
        return {kind: tuple(c.id for c in CLASSES if c.kind == kind) for kind in kinds}


def _draw_all(folder: Path, report: ProgressReport) -> str:
    """Draw every split below a folder, in worker processes, and return the fingerprint."""
    digest = hashlib.sha256(repr(CLASSES).encode())
    total, done = sum(SPLIT_SIZES.values()), 0
    report(0, total)
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for split, size in SPLIT_SIZES.items():
            (folder / split).mkdir()
            starts = range(0, size, _CHUNK)
            chunks = pool.map(_draw_chunk, *zip(*((folder, split, start, size) for start in starts), strict=True))
            rows = []
            for labels, pixel_digests in chunks:
                rows.append(labels)
                digest.update(b"".join(pixel_digests))
                digest.update(labels.tobytes())
                done += len(labels)
                report(done, total)
            ids, names = [c.id for c in CLASSES], [c.name for c in CLASSES]
            complete = PartialLabels.from_dense(2 * np.concatenate(rows) - 1, class_ids=ids, class_names=names)
            complete.save(folder / f"{split}.npz")
    return digest.hexdigest()


def _draw_chunk(folder: Path, split: str, start: int, size: int) -> tuple[np.ndarray, list[bytes]]:
    labels, digests = [], []
    for index in range(start, min(start + _CHUNK, size)):
        scene = draw(split, index)
        Image.fromarray(scene.pixels).save(folder / split / f"{index:05d}.png", compress_level=1)
        labels.append(scene.labels)
        digests.append(hashlib.sha256(scene.pixels.tobytes()).digest())
    return np.stack(labels).astype(np.int8), digests

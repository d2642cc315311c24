"""Crops of image files by row: an object in a photograph is an image of its own."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, floor
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from plbench.api import DataError, ImageFiles
from plbench.data.digests import Report, Sha256s, sha256_of
from plbench.data.text_column import take


@dataclass(frozen=True)
class CroppedFiles:
    """Boxes in files below a root folder. An `ImageSource`.

    Attributes:
        files: [N] the whole image of each row, relative to the root; several rows have one file.
        boxes: [N, 4] left, top, width and height in pixels of the image as it is shown, float64. They are widened to
            whole pixels, and cut off at the edges of the image.
        ids: [N] stable ids of the crops.
    """

    root: Path
    files: Sequence[str]
    boxes: npt.NDArray[np.float64]
    ids: Sequence[str]
    block_rows: ClassVar[int] = 1

    @cached_property
    def _whole(self) -> ImageFiles:
        return ImageFiles(self.root, self.files, self.ids)

    def __len__(self) -> int:
        """Return the number of crops."""
        return len(self.ids)

    def load(self, row: int, min_side: int = 0) -> Image.Image:
        """Return a crop in RGB at its full size: a fraction of the whole file could be too small for the crop.

        Raises:
            DataError: if the file cannot be read, or no part of the box lies in it.
        """
        whole = self._whole.load(row)
        left, top, wide, high = self.boxes[row].tolist()
        box = (
            max(0, floor(left)),
            max(0, floor(top)),
            min(whole.width, ceil(left + wide)),
            min(whole.height, ceil(top + high)),
        )
        if box[0] >= box[2] or box[1] >= box[3]:
            raise DataError(
                f"image {self.name(row)} cannot be cut out: no part of the box lies in its {whole.width} x "
                f"{whole.height} px"
            )
        return whole.crop(box)

    def read(self, row: int) -> bytes:
        """Return the crop as a PNG, which holds the very pixels of `load`; nothing of it is stored anywhere.

        Raises:
            DataError: as `load` does.
        """
        buffer = io.BytesIO()
        self.load(row).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def name(self, row: int) -> str:
        """Return the file, the crop's id and its box."""
        box = ", ".join(f"{number:g}" for number in self.boxes[row].tolist())
        return f"{self.root / self.files[row]}, crop {self.ids[row]} (x, y, width, height {box})"

    def absent(self) -> list[int]:
        """Return rows whose file is not there."""
        return self._whole.absent()

    def subset(self, index: np.ndarray) -> CroppedFiles:
        """Return the chosen rows, in the order given."""
        return CroppedFiles(self.root, take(self.files, index), self.boxes[index], take(self.ids, index))

    def expect(self, rows: range) -> None:
        """Read nothing ahead: the next row's file lies anywhere."""

    def sha256s(self, cache: Path | None = None, report: Report = lambda done, total: None) -> Sha256s:
        """Return a sha256 of what each crop is made of, [N, 32]: its file and its box; zeros where there is no file.

        Two rows have the same where they show the same part of the same bytes. No image is decoded for it.

        Args:
            cache: remembers what files hold, so that each is read once.
            report: is told files done and in all, where this takes a while.
        """
        places: dict[str, int] = {}
        rows = [places.setdefault(file, len(places)) for file in self.files]
        of_files = ImageFiles(self.root, tuple(places), tuple(places)).sha256s(cache, report)
        found = np.zeros((len(self), 32), np.uint8)
        for row, place in enumerate(rows):
            if of_files[place].any():
                content = of_files[place].tobytes() + self.boxes[row].astype("<f8").tobytes()
                found[row] = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
        return found

    def fingerprint(self) -> str:
        """Return sha256 over files and boxes."""
        return sha256_of(self.sha256s())

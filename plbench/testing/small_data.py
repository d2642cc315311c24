"""The data for checks of methods: complete labels of a few images, made partial by a protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from plbench.api import BenchmarkProtocol
from plbench.data.dataset import Dataset, LabelledSplit
from plbench.data.labels import PartialLabels
from plbench.errors import DataError
from plbench.progress import counted

NUM_FEATURES = 12
IMAGE_SIZE = 32
_PLACES = 4  # blocks per side of an image
_PROTOCOL = BenchmarkProtocol(name="custom/check", dataset="check", simulation="rpa=0.5")


@dataclass(frozen=True)
class Size:
    """Size of the data and length of the training."""

    rows: int = 44  # the last of three batches is short
    classes: int = 6
    batch_size: int = 16
    epochs: int = 3

    @property
    def steps_per_epoch(self) -> int:
        """Steps per epoch."""
        return -(-self.rows // self.batch_size)

    @property
    def num_steps(self) -> int:
        """Total number of steps."""
        return self.epochs * self.steps_per_epoch

    def __str__(self) -> str:
        steps = f"{counted(self.epochs, 'epoch')} of {counted(self.steps_per_epoch, 'step')}"
        return f"{self.rows} images, {self.classes} classes, {steps}"


SIZE = Size()


@dataclass(frozen=True)
class _Blocks:
    """An `ImageSource` in memory, with a bright block for each present class."""

    truth: np.ndarray
    rows: np.ndarray
    block_rows: ClassVar[int] = 1

    @property
    def ids(self) -> Sequence[str]:
        return [f"image-{row}" for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, row: int, min_side: int = 0) -> Image.Image:
        number, side = int(self.rows[row]), IMAGE_SIZE // _PLACES
        pixels = np.random.default_rng(number).integers(0, 80, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        for place in np.flatnonzero(self.truth[number] > 0):
            top, left = (side * part for part in divmod(int(place) % _PLACES**2, _PLACES))
            pixels[top : top + side, left : left + side] += np.uint8(150)
        return Image.fromarray(pixels)

    def read(self, row: int) -> bytes:
        return self.load(row).tobytes()

    def name(self, row: int) -> str:
        return f"image-{self.rows[row]}"

    def absent(self) -> list[int]:
        return []

    def subset(self, index: np.ndarray) -> _Blocks:
        return _Blocks(self.truth, self.rows[index])

    def fingerprint(self) -> str:
        return "drawn"  # images are determined by the labels

    def expect(self, rows: range) -> None: ...


class SmallDataset(Dataset):
    """Complete labels of a few images, frequent classes first, and features that separate the classes."""

    name = _PROTOCOL.dataset
    title = "Small data of a check"
    licence = "CC0"
    protocols = (_PROTOCOL,)
    recipes = ()
    needs_files = False
    expected_positives = 2.0  # fixed, so that it does not depend on the hidden labels

    def __init__(self, size: Size, known: PartialLabels | None = None) -> None:
        """Sample the labels.

        Args:
            size: number of images, classes and so on.
            known: labels that the protocol leaves visible; all others are then inverted.
        """
        super().__init__(Path("nowhere"))
        self.size = size
        draws = np.random.default_rng(3).random((size.rows, size.classes))
        self._drawn = np.where(draws < np.linspace(0.75, 0.2, size.classes), 1, -1).astype(np.int8)
        hidden = np.zeros_like(self._drawn, bool) if known is None else known.rows(np.arange(size.rows)) == 0
        self._truth = np.where(hidden, -self._drawn, self._drawn)

    def features(self) -> np.ndarray:
        """Return [N, D] float32: a linear map of the labels, plus noise."""
        rng = np.random.default_rng(4)
        mixing = rng.standard_normal((NUM_FEATURES, self.size.classes))
        noise = rng.standard_normal((self.size.rows, NUM_FEATURES))
        features: np.ndarray = (0.5 * self._drawn @ mixing.T + 0.5 * noise).astype(np.float32)
        return features

    def maps(self) -> np.ndarray:
        """Return [N, D, 2, 2] float32: the features at one place, and noise at the others."""
        noise = np.random.default_rng(5).standard_normal((self.size.rows, NUM_FEATURES, 2, 2))
        maps = (0.5 * noise).astype(np.float32)
        maps[:, :, 0, 1] = self.features()
        return maps

    def similarity(self) -> np.ndarray:
        """Return [N, C] float32: noisy cosine similarities, as from a vision-language model."""
        noise = np.random.default_rng(5).standard_normal(self._drawn.shape)
        similarity: np.ndarray = (0.2 + 0.03 * self._drawn + 0.02 * noise).astype(np.float32)
        return similarity

    def fetch_hint(self) -> str:
        """Return that there is nothing to download."""
        return "it is drawn"

    def fingerprint(self) -> str:
        """Return the fingerprint of the labels."""
        return self.split("train").labels.fingerprint()

    def split(self, name: str) -> LabelledSplit:
        """Return the train split.

        Raises:
            DataError: for any other split.
        """
        if name != "train":
            raise DataError(f"a method in training cannot use split {name!r}")
        class_ids = [f"class-{column}" for column in range(self.size.classes)]
        labels = PartialLabels.from_dense(self._truth, class_ids)
        return LabelledSplit(_Blocks(self._drawn, np.arange(self.size.rows)), labels)

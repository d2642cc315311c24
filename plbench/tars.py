"""Images inside plain tar files, read one by one in any order: each tar is scanned once for where its members lie."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from plbench.columns import TextColumn, take
from plbench.errors import DataError
from plbench.images import DECODING_ERRORS, decoded


@dataclass(frozen=True)
class TarImages:
    """Images by row in one or several tar files.

    Attributes:
        tars: the files. ids: [N] image ids.
        places: [N, 3] int64: number of the tar, offset and size in bytes; -1 where no tar holds the image.
    """

    tars: tuple[Path, ...]
    ids: Sequence[str]
    places: npt.NDArray[np.int64]
    block_rows: ClassVar[int] = 1
    _open: dict[int, int] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def open(cls, tars: Sequence[Path], ids: TextColumn, cache: Path | None) -> TarImages:
        """Finds each id's member by its name without suffix; the scans are kept in the cache.

        Raises:
            DataError: if a file is no plain tar.
        """
        places = np.full((len(ids), 3), -1, np.int64)
        for number, tar in enumerate(tars):
            stems, offsets, sizes = _members(tar, cache)
            position = pc.fill_null(pc.index_in(ids.array, value_set=stems.array), -1).to_numpy()
            rows = np.flatnonzero(position >= 0)
            places[rows] = np.column_stack([np.full(len(rows), number), offsets[position[rows]], sizes[position[rows]]])
        return cls(tuple(tars), ids, places)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)

    def read(self, row: int) -> bytes:
        """The encoded image.

        Raises:
            DataError: if no tar holds it, or its tar cannot be read.
        """
        number, offset, size = self.places[row].tolist()
        if number < 0:
            raise DataError(f"image {self.name(row)} cannot be read: it is in none of the tar files")
        try:
            if number not in self._open:
                self._open[number] = os.open(self.tars[number], os.O_RDONLY)
            return os.pread(self._open[number], size, offset)  # no position to share, so workers may fork
        except OSError as error:
            raise DataError(f"image {self.name(row)} cannot be read: {error}") from error

    def load(self, row: int, min_side: int = 0) -> Image.Image:
        """The image in RGB; JPEGs decode at a fraction of their size where that keeps `min_side`.

        Raises:
            DataError: if it cannot be read or decoded.
        """
        try:
            return decoded(io.BytesIO(self.read(row)), min_side)
        except DECODING_ERRORS as error:
            raise DataError(f"image {self.name(row)} cannot be read: {error}") from error

    def name(self, row: int) -> str:
        """The tar and the image's id."""
        number = int(self.places[row, 0])
        where = self.tars[number] if number >= 0 else self.tars[0].parent
        return f"{self.ids[row]} of {where}"

    def absent(self) -> list[int]:
        """Rows that no tar holds."""
        return [int(row) for row in np.flatnonzero(self.places[:, 0] < 0)]

    def subset(self, index: np.ndarray) -> TarImages:
        """The chosen rows, in the order given."""
        return TarImages(self.tars, take(self.ids, index), self.places[index])

    def expect(self, rows: range) -> None:
        """Nothing is read ahead: neighbouring rows lie anywhere in the tars."""

    def fingerprint(self) -> str:
        """sha256 over the sizes of all images."""
        return hashlib.sha256(self.places[:, 2].tobytes()).hexdigest()

    def __getstate__(self) -> dict[str, object]:
        """Everything but open files, which belong to this process."""
        return {**self.__dict__, "_open": {}}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Restores what `__getstate__` gave."""
        self.__dict__.update(state)


def _members(tar: Path, cache: Path | None) -> tuple[TextColumn, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Name without folder and suffix, offset and size of every regular member."""
    status = tar.stat()
    seen = hashlib.sha256(repr((str(tar.resolve()), status.st_size, status.st_mtime_ns)).encode()).hexdigest()
    kept = None if cache is None else cache / "index" / f"tar-{seen[:24]}"
    if kept is not None:
        with contextlib.suppress(DataError, OSError, ValueError):
            numbers = np.load(kept.with_suffix(".npy"), allow_pickle=False)
            return TextColumn.open(kept.with_suffix(".arrow")), numbers[0], numbers[1]
    stems, offsets, sizes = _scan(tar)
    column, numbers = TextColumn(pa.array(stems, pa.large_string())), np.array([offsets, sizes], np.int64)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        column.save(kept.with_suffix(".arrow"))
        np.save(kept.with_suffix(".npy"), numbers)
    return column, numbers[0], numbers[1]


def _scan(tar: Path) -> tuple[list[str], list[int], list[int]]:
    stems, offsets, sizes = [], [], []
    try:
        with tarfile.open(tar, "r:") as file:
            for member in file:
                if member.isreg():
                    stems.append(PurePosixPath(member.name).stem)
                    offsets.append(member.offset_data)
                    sizes.append(member.size)
                file.members = []  # type: ignore[attr-defined]  # it would keep every header of millions
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{tar} cannot be read as a plain tar file: {error}; download it again") from error
    return stems, offsets, sizes

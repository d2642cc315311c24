"""Image sources by row: reading, decoding, and finding broken images."""

from __future__ import annotations

import hashlib
import io
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from plbench.data.digests import Report, Sha256s, files_sha256, sha256_of
from plbench.data.labels import PartialLabels
from plbench.data.pixels import DECODING_ERRORS, decoded
from plbench.data.spelling import file_look, find_alike, list_by_look
from plbench.data.text_column import take
from plbench.errors import DataError
from plbench.files.paths import below

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Suffixes of image files, in lower case."""


class ImageSource(Protocol):
    """Images by row, from any kind of storage."""

    @property
    def ids(self) -> Sequence[str]:
        """Stable id of each image."""

    @property
    def block_rows(self) -> int:
        """Number of rows that are adjacent on disk and best read together; 1 if every image is its own file."""

    def __len__(self) -> int:
        """Return the number of images."""

    def load(self, row: int, min_side: int = 0) -> Image.Image:
        """Return the image of a row in RGB, as `plbench.data.pixels` decodes it; no side comes below `min_side`."""

    def read(self, row: int) -> bytes:
        """Return the encoded image of a row as it is stored."""

    def name(self, row: int) -> str:
        """Return the name of a row's image for messages."""

    def absent(self) -> list[int]:
        """Return rows whose image is missing, without decoding any."""

    def subset(self, index: np.ndarray) -> Self:
        """Return the chosen rows, in the order given."""

    def fingerprint(self) -> str:
        """Return a sha256 that changes when any image does; not used for sources with `EncodedImages.sha256s`."""

    def expect(self, rows: range) -> None:
        """Prefetch rows that will be read next."""


class EncodedImages(ABC):
    """Base of an `ImageSource` of encoded images; subclasses define how to read and name them."""

    @property
    def block_rows(self) -> int:
        """Number of rows that are best read together."""
        return 1

    @abstractmethod
    def read(self, row: int) -> bytes:
        """Return the encoded image of a row as it is stored; DataError if it cannot be read, with its name."""

    @abstractmethod
    def name(self, row: int) -> str:
        """Return the name of a row's image for messages."""

    @abstractmethod
    def sha256s(self, cache: Path | None = None, report: Report = lambda done, total: None) -> Sha256s:
        """Return the sha256 of each image's bytes, [N, 32]; zeros for missing images.

        Args:
            cache: folder of the cache of hashes.
            report: receives the number of images done and in total, if this takes long.
        """

    def load(self, row: int, min_side: int = 0) -> Image.Image:
        """Return the image in RGB; JPEGs are decoded at reduced size if that keeps `min_side`.

        Raises:
            DataError: if it cannot be read or decoded, with its name.
        """
        content = self.read(row)
        try:
            return decoded(io.BytesIO(content), min_side)
        except DECODING_ERRORS as error:
            raise DataError(f"image {self.name(row)} cannot be read: {undecodable(error)}") from error

    def fingerprint(self) -> str:
        """Return sha256 over the bytes of all images."""
        return sha256_of(self.sha256s())

    def expect(self, rows: range) -> None:  # noqa: B027  (optional hook)
        """Do nothing: images are not adjacent on disk."""


@dataclass(frozen=True)
class ImageFiles(EncodedImages):
    """Images in files below a root folder.

    Attributes:
        paths: [N] relative to the root. ids: [N] stable image ids, by which the validation part is split off.
    """

    root: Path
    paths: Sequence[str]
    ids: Sequence[str]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def path(self, row: int) -> Path:
        """Return the file of a row: its path below the root, or the only path that looks the same."""
        path = below(self.root, self.paths[row], "image")
        if path.exists():
            return path
        alike = find_alike(self.root, self.paths[row])
        return path if alike is None else below(self.root, alike, "image")

    def read(self, row: int) -> bytes:
        """Return the file's bytes."""
        try:
            return self.path(row).read_bytes()
        except OSError as error:
            raise DataError(f"image {self.name(row)} cannot be read: {error}") from error

    def name(self, row: int) -> str:
        """Return the file's path."""
        return str(self.root / self.paths[row])

    def absent(self) -> list[int]:
        """Return rows without a file of that or a similar-looking name, with one listing per folder."""
        folders: dict[str, set[str]] = {}
        alike: dict[str, Mapping[str, Sequence[str]]] = {}  # of folders with missing names
        absent = []
        for row, relative in enumerate(self.paths):  # no Path objects, for millions of rows
            folder, _, name = relative.rpartition("/")
            if folder not in folders:
                path = self.path(row).parent
                folders[folder] = set(os.listdir(path)) if path.is_dir() else set()
            if name in folders[folder]:
                continue
            if folder not in alike:
                alike[folder] = list_by_look(self.root, folder)[1]
            if len(alike[folder].get(file_look(name), ())) != 1:
                absent.append(row)
        return absent

    def subset(self, index: np.ndarray) -> ImageFiles:
        """Return the chosen rows, in the order given."""
        return ImageFiles(self.root, take(self.paths, index), take(self.ids, index))

    def sha256s(self, cache: Path | None = None, report: Report = lambda done, total: None) -> Sha256s:
        """Return the sha256 of each file; see `EncodedImages`."""
        return files_sha256(len(self), lambda row: os.path.abspath(self.path(row)), cache, report)


def files_at(places: Sequence[Path]) -> ImageFiles:
    """Return the images in folders (recursively) and single files, in the order of `places`.

    A folder's images are sorted by path, without hidden files and folders. Ids are the paths, relative to the folder if
    a single one is given.

    Raises:
        DataError: if a path does not exist, or there is no image.
    """
    found: list[tuple[str, str]] = []
    alone = len(places) == 1 and places[0].is_dir()
    for place in places:
        if place.is_file():
            found.append((str(place), os.path.abspath(place)))
            continue
        if not place.is_dir():
            raise DataError(f"{place} does not exist; give a folder of images, or image files")
        below_it: list[str] = []
        for folder, folders, names in os.walk(place):
            folders[:] = [name for name in folders if not name.startswith(".")]
            usual = (name for name in names if not name.startswith(".") and name.lower().endswith(SUFFIXES))
            below_it += (os.path.relpath(os.path.join(folder, name), place) for name in usual)
        for name in sorted(below_it):
            found.append((name if alone else str(place / name), os.path.abspath(place / name)))
    if not found:
        where = ", ".join(map(str, places)) or "the places given"
        raise DataError(f"there is no image in {where}; names of images end in {', '.join(SUFFIXES)}")
    root = os.path.commonpath([os.path.dirname(path) for _, path in found])
    paths = tuple(os.path.relpath(path, root) for _, path in found)
    return ImageFiles(Path(root), paths, tuple(name for name, _ in found))


class OpenFile:
    """A file for random access from several threads; closed when this object is garbage-collected."""

    def __init__(self, path: Path, flags: int = 0) -> None:
        """Open it. Raises OSError."""
        self.path, self.descriptor = path, os.open(path, os.O_RDONLY | flags)

    def read(self, begin: int, size: int) -> bytes:
        """Return bytes at an offset. A method, so that the object is referenced, and the file open, during the read."""
        return os.pread(self.descriptor, size, begin)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def undecodable(error: Exception) -> str:
    """Return why an image could not be decoded, in reproducible words."""
    unknown = isinstance(error, UnidentifiedImageError)  # its message contains a memory address
    return "it is not an image of a kind that Pillow reads" if unknown else str(error)


def hash_images(source: ImageSource) -> Sha256s:
    """Return the sha256 of each image's bytes, [N, 32], by reading them all; zeros for unreadable images."""

    def digest(row: int) -> bytes:
        try:
            return hashlib.sha256(source.read(row)).digest()
        except DataError:
            return bytes(32)

    with ThreadPoolExecutor() as pool:
        digests = b"".join(pool.map(digest, range(len(source))))
    return np.frombuffer(digests, np.uint8).reshape(-1, 32)


def image_set_id(source: ImageSource) -> str:
    """Return the sha256 of the image ids in order, which identifies the images independently of their folder."""
    return hashlib.sha256("\n".join(source.ids).encode()).hexdigest()


def find_unreadable(
    source: ImageSource,
    report: Callable[[int, int], None] = lambda done, total: None,
    oddities: Counter[str] | None = None,
) -> dict[int, str]:
    """Decode every image once and return the reason for each row that fails. Missing files are found first.

    Args:
        report: receives the number of images done and in total.
        oddities: counts images that are stored differently than displayed, by names of `plbench.data.pixels.ODDITIES`.
    """

    def reason(row: int) -> tuple[str | None, Iterable[str]]:
        try:
            image = source.load(row, min_side=1)  # JPEG at 1/8 size: still reads the whole file
        except DataError as error:
            return str(error), ()
        return None, image.info.get("oddities", ())

    failed = {row: f"image {source.name(row)} does not exist" for row in source.absent()}
    rows = [row for row in range(len(source)) if row not in failed]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for done, (row, (why, found)) in enumerate(zip(rows, pool.map(reason, rows), strict=True), 1):
            if why is not None:
                failed[row] = why
            if oddities is not None:
                oddities.update(found)
            report(done, len(rows))
    return failed


def ordered_batches(num_rows: int, batch_size: int) -> list[range]:
    """Return the rows of each evaluation batch: every row once, in order."""
    return [range(start, min(start + batch_size, num_rows)) for start in range(0, num_rows, batch_size)]


def label_tensor(labels: PartialLabels, rows: Tensor) -> Tensor:
    """Return dense labels of a batch, int8 [B, C]."""
    return torch.from_numpy(labels.rows(rows.numpy()))

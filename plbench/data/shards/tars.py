"""Images inside plain tar files, read one by one in any order: each tar is scanned once for where its members lie."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from plbench.data.digests import Report, Sha256s, remembered, settled, sha256_of, signature
from plbench.data.pixels import DECODING_ERRORS, decoded
from plbench.data.text_column import TextColumn, take
from plbench.errors import DataError
from plbench.files.checksums import Damaged, read_checked, set_aside, write_checked


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

    @classmethod
    def open(cls, tars: Sequence[Path], ids: TextColumn, cache: Path | None) -> TarImages:
        """Find each id's member by its name without suffix; the scans are kept in the cache.

        Raises:
            DataError: if a file is no plain tar.
        """
        places = np.full((len(ids), 3), -1, np.int64)
        for number, tar in enumerate(tars):
            members = _Members.of(tar, cache)
            position = pc.fill_null(pc.index_in(ids.array, value_set=members.stems), -1).to_numpy()
            rows = np.flatnonzero(position >= 0)
            found = position[rows]
            places[rows] = np.column_stack([np.full(len(rows), number), members.offsets[found], members.sizes[found]])
        return cls(tuple(tars), ids, places)

    @cached_property
    def _files(self) -> _OpenTars:
        return _OpenTars(self.tars)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    def read(self, row: int) -> bytes:
        """Return the encoded image.

        Raises:
            DataError: if no tar holds it, or its tar cannot be read.
        """
        number, offset, size = self.places[row].tolist()
        if number < 0:
            raise DataError(f"image {self.name(row)} cannot be read: it is in none of the tar files")
        try:
            return os.pread(self._files[number], size, offset)  # no position to share, so workers may fork
        except OSError as error:
            raise DataError(f"image {self.name(row)} cannot be read: {error}") from error

    def load(self, row: int, min_side: int = 0) -> Image.Image:
        """Return the image in RGB; JPEGs decode at a fraction of their size where that keeps `min_side`.

        Raises:
            DataError: if it cannot be read or decoded.
        """
        try:
            return decoded(io.BytesIO(self.read(row)), min_side)
        except DECODING_ERRORS as error:
            raise DataError(f"image {self.name(row)} cannot be read: {error}") from error

    def name(self, row: int) -> str:
        """Return the tar and the image's id."""
        number = int(self.places[row, 0])
        where = self.tars[number] if number >= 0 else self.tars[0].parent
        return f"{self.ids[row]} of {where}"

    def absent(self) -> list[int]:
        """Return rows that no tar holds."""
        return [int(row) for row in np.flatnonzero(self.places[:, 0] < 0)]

    def subset(self, index: np.ndarray) -> TarImages:
        """Return the chosen rows, in the order given."""
        return TarImages(self.tars, take(self.ids, index), self.places[index])

    def expect(self, rows: range) -> None:
        """Read nothing ahead: neighbouring rows lie anywhere in the tars."""

    def sha256s(self, cache: Path | None = None, report: Report = lambda done, total: None) -> Sha256s:
        """Return the sha256 of each image's bytes, [N, 32]; zeros where no tar holds it.

        Args:
            cache: remembers what the tars hold, so that each image is read once.
            report: is told images done and in all, where this takes a while.
        """
        paths = [os.path.abspath(tar) for tar in self.tars]
        statuses = [os.stat(path) for path in paths]

        def digest(row: int) -> bytes | None:
            try:
                return hashlib.sha256(self.read(row)).digest()
            except DataError:
                return None

        return remembered(
            len(self),
            lambda row: "\0".join((paths[self.places[row, 0]], *map(str, self.places[row, 1:].tolist()))),
            lambda row: statuses[self.places[row, 0]] if self.places[row, 0] >= 0 else None,
            digest,
            cache,
            report,
        )

    def fingerprint(self) -> str:
        """Return sha256 over the bytes of all images."""
        return sha256_of(self.sha256s())


@dataclass(frozen=True)
class _Members:
    """The regular members of a tar file: name without folder and suffix [M], offset and size in bytes [M]."""

    stems: pa.LargeStringArray
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]

    @classmethod
    def of(cls, tar: Path, cache: Path | None) -> _Members:
        """From the cache where the same file was scanned before, else from the tar."""
        try:
            status = tar.stat()
        except OSError as error:
            raise DataError(f"{tar} cannot be read: {error.strerror}") from error
        seen = hashlib.sha256(os.fsencode(tar.resolve()) + signature(status)).hexdigest()
        kept = None if cache is None or not settled(status) else cache / "index" / f"tar-{seen[:24]}.checked"
        if kept is not None:
            with contextlib.suppress(FileNotFoundError):
                try:
                    return cls._open(kept)
                except (Damaged, ValueError, KeyError, pa.ArrowException):  # scanned again
                    set_aside(kept)
        members = _scan(tar)
        if kept is not None:
            write_checked(kept, members._write)
        return members

    @classmethod
    def _open(cls, path: Path) -> _Members:
        batch = pa.ipc.open_file(pa.py_buffer(read_checked(path))).get_batch(0)
        batch.validate(full=True)
        return cls(batch["stem"], batch["offset"].to_numpy(), batch["size"].to_numpy())

    def _write(self, file: IO[bytes]) -> None:
        batch = pa.record_batch({"stem": self.stems, "offset": self.offsets, "size": self.sizes})
        with pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)


class _OpenTars:
    """File descriptors, opened when first needed and closed when nobody reads from them any more."""

    def __init__(self, tars: tuple[Path, ...]) -> None:
        self._tars = tars
        self._descriptors: dict[int, int] = {}

    def __getitem__(self, number: int) -> int:
        if number not in self._descriptors:
            opened = os.open(self._tars[number], os.O_RDONLY)
            if self._descriptors.setdefault(number, opened) != opened:
                os.close(opened)  # another thread was first
        return self._descriptors[number]

    def __del__(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def __reduce__(self) -> tuple[type[_OpenTars], tuple[tuple[Path, ...]]]:
        return _OpenTars, (self._tars,)  # a descriptor belongs to its process


def _scan(tar: Path) -> _Members:
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
    return _Members(pa.array(stems, pa.large_string()), np.array(offsets, np.int64), np.array(sizes, np.int64))

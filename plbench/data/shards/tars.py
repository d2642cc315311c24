"""Images in uncompressed tar files, read individually in any order; each tar is scanned once for offsets."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from plbench.data.digests import Report, Sha256s, remembered, settled, signature
from plbench.data.images import EncodedImages, OpenFile
from plbench.data.text_column import TextColumn, take, write_batch
from plbench.errors import DataError
from plbench.files.checksums import Damaged, read_checked, set_aside, write_checked


@dataclass(frozen=True)
class TarImages(EncodedImages):
    """Images by row in one or several tar files.

    Attributes:
        tars: the files. ids: [N] image ids.
        places: [N, 3] int64: number of the tar, offset and size in bytes; -1 for missing images.
    """

    tars: tuple[Path, ...]
    ids: Sequence[str]
    places: npt.NDArray[np.int64]

    @classmethod
    def open(cls, tars: Sequence[Path], ids: TextColumn, cache: Path | None) -> TarImages:
        """Find each id's member by its name without suffix; DataError if a file is not an uncompressed tar.

        Scans are cached.
        """
        places = np.full((len(ids), 3), -1, np.int64)
        for number, tar in enumerate(tars):
            members = _members(tar, cache)
            position = pc.fill_null(pc.index_in(ids.array, value_set=members["stem"]), -1).to_numpy()
            rows = np.flatnonzero(position >= 0)
            offsets, sizes = (members[name].to_numpy()[position[rows]] for name in ("offset", "size"))
            places[rows] = np.column_stack([np.full(len(rows), number), offsets, sizes])
        return cls(tuple(tars), ids, places)

    @cached_property
    def _open(self) -> Callable[[Path], OpenFile]:
        return lru_cache(None)(OpenFile)

    def __reduce__(self) -> tuple[type[TarImages], tuple[Any, ...]]:
        return TarImages, (self.tars, self.ids, self.places)  # a file descriptor belongs to its process

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    def read(self, row: int) -> bytes:
        """Return the encoded image; DataError also if it is in no tar."""
        number, offset, size = self.places[row].tolist()
        if number < 0:
            raise DataError(f"image {self.name(row)} cannot be read: it is in none of the tar files")
        try:
            return self._open(self.tars[number]).read(offset, size)
        except OSError as error:
            raise DataError(f"image {self.name(row)} cannot be read: {error}") from error

    def name(self, row: int) -> str:
        """Return the tar and the image's id."""
        number = int(self.places[row, 0])
        where = self.tars[number] if number >= 0 else self.tars[0].parent
        return f"{self.ids[row]} of {where}"

    def absent(self) -> list[int]:
        """Return rows that are in no tar."""
        return [int(row) for row in np.flatnonzero(self.places[:, 0] < 0)]

    def subset(self, index: np.ndarray) -> TarImages:
        """Return the chosen rows, in the order given."""
        return TarImages(self.tars, take(self.ids, index), self.places[index])

    def sha256s(self, cache: Path | None = None, report: Report = lambda done, total: None) -> Sha256s:
        """Return the sha256 of each image, as in `EncodedImages`; hashes of tar members are cached."""
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


def _members(tar: Path, cache: Path | None) -> pa.RecordBatch:
    """Return the regular members of a tar, as `_scan` does; cached while the file is unchanged."""
    try:
        status = tar.stat()
    except OSError as error:
        raise DataError(f"{tar} cannot be read: {error.strerror}") from error
    if cache is None or not settled(status):
        return _scan(tar)
    seen = hashlib.sha256(os.fsencode(tar.resolve()) + signature(status)).hexdigest()
    kept = cache / "index" / f"tar-{seen[:24]}.checked"
    with contextlib.suppress(FileNotFoundError):
        try:
            members = pa.ipc.open_file(pa.py_buffer(read_checked(kept))).get_batch(0)
            members.validate(full=True)
            return members.select(["stem", "offset", "size"])
        except (Damaged, ValueError, KeyError, pa.ArrowException):  # scan again
            set_aside(kept)
    members = _scan(tar)
    write_checked(kept, partial(write_batch, members))
    return members


def _scan(tar: Path) -> pa.RecordBatch:
    """Return each member's name without folder and suffix, and its offset and size in bytes."""
    stems, offsets, sizes = [], [], []
    try:
        with tarfile.open(tar, "r:") as file:
            for member in file:
                if member.size < 0:
                    raise tarfile.ReadError("a negative size")
                if member.isreg():
                    # a name that is not text belongs to no image
                    stems.append(PurePosixPath(member.name).stem.encode("utf-8", "backslashreplace").decode())
                    offsets.append(member.offset_data)
                    sizes.append(member.size)
                file.members = []  # type: ignore[attr-defined]  # it would keep every header of millions
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"{tar} cannot be read as a plain tar file: {error}; download it again") from error
    return pa.record_batch(
        {
            "stem": pa.array(stems, pa.large_string()),
            "offset": pa.array(offsets, pa.int64()),
            "size": pa.array(sizes, pa.int64()),
        }
    )

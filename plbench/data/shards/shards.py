"""Images packed into a few large files: the format, and reading by row in any order.

A packed split is a folder of Arrow IPC files `shard-00000.arrow`, … (columns id, image, width, height, sha256; record
batches of `BLOCK_ROWS` rows, uncompressed), `index.arrow` with each image's offset in its shard and its sha256, and
`packed.json`, which lists shards with sizes and checksums. `plbench.data.shards.packing` writes it.

The index is verified when opened, and each image whenever it is read.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from plbench.data.digests import Report, Sha256s, signature
from plbench.data.images import EncodedImages, OpenFile, find_unreadable
from plbench.data.pixels import PIXELS
from plbench.data.text_column import TextColumn
from plbench.errors import DataError, first_invalid
from plbench.files.checksums import hash_file
from plbench.files.paths import refuse_links

MANIFEST = "packed.json"
INDEX = "index.arrow"
BLOCK_ROWS = 64  # about 1 MB at a short side of 256: one read from a disk or an object store
ROWS_PER_SHARD = 64 * BLOCK_ROWS

INDEX_SCHEMA = pa.schema({"id": pa.large_string(), "begin": pa.int64(), "size": pa.int32(), "sha256": pa.binary(32)})

Count = Annotated[int, Field(ge=0, le=1 << 50)]
"""Number of images or bytes: larger than any real one, but safe in 64-bit arithmetic."""

_MAX_OPEN = 128  # open shards per process, far below the usual limit of 1,024 files
_ADVICE_BYTES = 128 << 10  # systems limit longer advice to the device's readahead, which may be as small as this
_MEND = "run plbench data prepare again, which makes what is missing"


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:05d}.arrow"


class PackSettings(BaseModel):
    """Everything that determines the bytes of a packed split; folders packed with other settings are rejected.

    Attributes:
        images: id of the packed image set (`plbench.data.images.image_set_id`).
        pixels: version of the image decoding rules (`plbench.data.pixels.PIXELS`); 1 if not stated.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[2] = 2
    short_side: int
    quality: int
    images: str
    num_images: Count
    rows_per_shard: Annotated[int, Field(ge=1, le=1 << 31)] = ROWS_PER_SHARD
    pixels: int = 1


class PackedFile(BaseModel):
    """A file of a packed split.

    Attributes:
        name: `shard_name` of its number, or the index's name; others are rejected.
        rows: number of its images. num_bytes: its size. taken: number of source images used, including unreadable ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    rows: Count
    num_bytes: Count
    sha256: str
    taken: Count

    @classmethod
    def of(cls, path: Path, rows: int, taken: int) -> PackedFile:
        """Describe a file that was just written."""
        return cls(name=path.name, rows=rows, num_bytes=path.stat().st_size, sha256=hash_file(path), taken=taken)


class PackedSplit(BaseModel):
    """The manifest of a packed split, complete or not.

    Attributes:
        unreadable: reasons, by id of each omitted image. taken: number of source images processed so far.
        index: None until everything is packed. encoder: versions of libraries that may affect the bytes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    settings: PackSettings
    encoder: str
    shards: tuple[PackedFile, ...] = ()
    taken: Count = 0
    unreadable: dict[str, str] = {}
    index: PackedFile | None = None

    @model_validator(mode="after")
    def _names_its_own_files(self) -> PackedSplit:
        """Reject other names: an untrusted manifest's names would become paths that are read, written and deleted."""
        named = {shard_name(number): shard for number, shard in enumerate(self.shards)} | {INDEX: self.index}
        for right, file in named.items():
            if file is not None and file.name != right:
                raise ValueError(f"it names a file {file.name!r:.80}, where {right} is expected")
        if any(shard.rows != self.settings.rows_per_shard for shard in self.shards[:-1]) or any(
            shard.rows > min(self.settings.rows_per_shard, shard.taken) for shard in self.shards
        ):
            raise ValueError("its shards have other numbers of images than its settings say")
        return self

    @property
    def num_images(self) -> int:
        """Number of packed images."""
        return sum(shard.rows for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        """Size of all shards in bytes."""
        return sum(shard.num_bytes for shard in self.shards)

    @classmethod
    def stored(cls, folder: Path) -> PackedSplit | None:
        """Read a folder's manifest; None if there is none, DataError if this version cannot read it."""
        path = folder / MANIFEST
        try:
            return cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValidationError) as error:
            why = str(error) if isinstance(error, OSError) else first_invalid(error)[1]
            raise DataError(
                f"{path} is not the manifest of a packed split: {why}; delete the folder and run plbench data prepare "
                "again"
            ) from error


class _OpenShard(OpenFile):
    def __init__(self, folder: Path, shards: tuple[PackedFile, ...], number: int) -> None:
        path, expected = folder / shards[number].name, shards[number].num_bytes
        refuse_links(folder, path)
        try:
            super().__init__(path, getattr(os, "O_NOFOLLOW", 0))
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}; {_MEND}") from error
        size = os.fstat(self.descriptor).st_size
        if size != expected:
            raise DataError(f"{path} has {size:,} bytes, not the {expected:,} packed; {_MEND}")

    def read(self, begin: int, size: int) -> bytes:
        """Read only these bytes; a page fault of a memory map would read more."""
        try:
            content = super().read(begin, size)
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}; {_MEND}") from error
        if len(content) < size:  # truncated since it was opened; with a memory map, this would have killed the process
            raise DataError(f"{self.path} ends before byte {begin + size:,}; {_MEND}")
        return content

    def expect(self, begin: int, end: int) -> None:
        """Ask the system, if it supports that, to read bytes into its cache in the background."""
        if hasattr(os, "posix_fadvise"):
            for start in range(begin, end, _ADVICE_BYTES):
                size = min(_ADVICE_BYTES, end - start)
                os.posix_fadvise(self.descriptor, start, size, os.POSIX_FADV_WILLNEED)


class ShardedImages(EncodedImages):
    """Images of a packed split, an `ImageSource`. Pickled by its folder, so that any worker process can open it.

    Attributes:
        rows: [N] int64, of the packed split. block_rows: number of rows best read together; 1 if `rows` are not
            ascending.
    """

    def __init__(self, folder: Path, rows: npt.NDArray[np.int64] | None = None) -> None:
        """Open a packed split, without its shards; DataError if it is missing or incomplete."""
        packed = PackedSplit.stored(folder)
        if packed is None or packed.index is None:
            state = (
                "does not exist" if packed is None else f"has {packed.taken:,} of {packed.settings.num_images:,} images"
            )
            raise DataError(f"the packed split {folder} {state}; {_MEND}")
        refuse_other_pixels(packed.settings.pixels, folder)
        self.folder, self.packed = folder, packed
        columns = _open_index(folder / INDEX, packed)
        self.rows = np.arange(packed.num_images) if rows is None else rows
        self._ids = columns["id"]
        self._begins, self._sizes = (columns[name].to_numpy(zero_copy_only=True) for name in ("begin", "size"))
        self._sha256s = np.frombuffer(columns["sha256"].buffers()[1], np.uint8).reshape(-1, 32)
        self._open = lru_cache(_MAX_OPEN)(partial(_OpenShard, folder, packed.shards))
        self._rows_per_shard = packed.settings.rows_per_shard

    def __reduce__(self) -> tuple[type[ShardedImages], tuple[Path, npt.NDArray[np.int64]]]:
        return ShardedImages, (self.folder, self.rows)

    @cached_property
    def ids(self) -> TextColumn:
        """Stable id of each image."""
        column = TextColumn(self._ids)
        return column if self._is_whole else column.take(self.rows)

    @property
    def block_rows(self) -> int:
        """Number of rows that are adjacent in a shard."""
        return BLOCK_ROWS if self._ascends else 1

    @cached_property
    def _ascends(self) -> bool:
        return bool((np.diff(self.rows) > 0).all())

    @property
    def _is_whole(self) -> bool:
        return len(self.rows) == len(self._begins) and self._ascends

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    def read(self, row: int) -> bytes:
        """Return the encoded image of a row; DataError also if it has changed since packing."""
        packed_row = int(self.rows[row])
        shard = self._open(packed_row // self._rows_per_shard)
        content = shard.read(int(self._begins[packed_row]), int(self._sizes[packed_row]))
        if hashlib.sha256(content).digest() != self._sha256s[packed_row].tobytes():  # takes 1 % of decoding
            raise DataError(f"image {self.name(row)} has other bytes than were packed; delete {shard.path} and {_MEND}")
        return content

    def name(self, row: int) -> str:
        """Return the image's id, and its location."""
        packed_row = int(self.rows[row])
        number, row_of_shard = divmod(packed_row, self._rows_per_shard)
        return f"{self._ids[packed_row].as_py()} (row {row_of_shard} of {self.packed.shards[number].name})"

    def absent(self) -> list[int]:
        """Return rows whose shard does not exist or has another size."""
        missing = [number for number, shard in enumerate(self.packed.shards) if not is_there(self.folder, shard)]
        found: list[int] = np.flatnonzero(np.isin(self.rows // self._rows_per_shard, missing)).tolist()
        return found

    def subset(self, index: npt.NDArray[np.integer]) -> ShardedImages:
        """Return the chosen rows, in the order given. Open shards are shared with this one."""
        part = object.__new__(ShardedImages)  # copy.copy would open everything again, through __reduce__
        part.__dict__.update({name: value for name, value in self.__dict__.items() if name not in ("ids", "_ascends")})
        part.rows = self.rows[index]
        return part

    def sha256s(self, cache: Path | None = None, report: Report = lambda done, total: None) -> Sha256s:
        """Return the sha256 of each image's bytes, [N, 32], from the index; nothing is read or cached."""
        return self._sha256s if self._is_whole else self._sha256s[self.rows]

    def fingerprint(self) -> str:
        """Return sha256 over the manifest's settings and checksums, and over the rows if they are a subset."""
        manifest = self.packed.model_dump_json(exclude={"encoder", "unreadable"})  # these may contain paths
        digest = hashlib.sha256(manifest.encode())
        if not self._is_whole:
            digest.update(self.rows.tobytes())
        return digest.hexdigest()

    def expect(self, rows: range) -> None:
        """Ask the system to read neighbouring rows into its cache in the background."""
        wanted = self.rows[rows.start : rows.stop]
        if not len(wanted):
            return
        cuts = np.diff(wanted // self._rows_per_shard) if self.block_rows > 1 else np.ones(len(wanted) - 1)
        for run in np.split(wanted, np.flatnonzero(cuts) + 1):
            first, last = int(run[0]), int(run[-1])
            shard = self._open(first // self._rows_per_shard)
            shard.expect(int(self._begins[first]), int(self._begins[last]) + int(self._sizes[last]))


def refuse_other_pixels(version: int, folder: Path) -> None:
    """Reject a packed folder whose images were decoded with a version of the rules other than `PIXELS`."""
    if version != PIXELS:
        age = "an older" if version < PIXELS else "a newer"
        raise DataError(
            f"{folder} was packed by {age} plbench, which decodes images with 16 bits, transparency or an EXIF "
            f"orientation differently (rules {version}, not {PIXELS}); delete the folder and run plbench data prepare "
            "again"
        )


def is_there(folder: Path, file: PackedFile) -> bool:
    """Return whether a packed file exists with its full size, and is not a link."""
    try:
        status = (folder / file.name).lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == file.num_bytes


def _open_index(path: Path, packed: PackedSplit) -> dict[str, pa.Array]:
    """Return columns of the index, memory-mapped: id, begin, size, sha256. DataError if it is not as written."""
    expected = packed.index
    assert expected is not None
    if not is_there(path.parent, expected):
        raise DataError(f"{path} is not there or not whole; {_MEND}")
    try:
        if _index_sha256(path, signature(path.stat())) != expected.sha256:
            raise DataError(f"{path} does not match its checksum in {path.parent / MANIFEST}; delete it and {_MEND}")
        with pa.memory_map(str(path)) as file:
            batch = pa.ipc.open_file(file).get_batch(0)
        batch.validate(full=True)
        if batch.schema != INDEX_SCHEMA or any(column.null_count for column in batch.columns):
            raise ValueError("its columns are not id, begin, size and sha256, each of its type")
        _check_places(batch, packed)
        return {name: batch.column(name) for name in batch.schema.names}
    except (OSError, pa.ArrowException, ValueError) as error:
        raise DataError(f"{path} is not an index of shards: {error}; delete it and {_MEND}") from error


def _check_places(batch: pa.RecordBatch, packed: PackedSplit) -> None:
    """Check that each image is inside its shard; ValueError otherwise."""
    if len(batch) != packed.num_images:
        raise ValueError(f"it has {len(batch):,} images, where {MANIFEST} counts {packed.num_images:,}")
    begins, sizes = (batch.column(name).to_numpy(zero_copy_only=True) for name in ("begin", "size"))
    rows = [shard.rows for shard in packed.shards]
    ends = np.repeat(np.array([shard.num_bytes for shard in packed.shards], np.int64), rows)
    outside = np.flatnonzero((begins < 0) | (sizes < 0) | (begins > ends - sizes))
    if outside.size:
        raise ValueError(f"image {int(outside[0]):,} lies outside its shard")


@lru_cache(_MAX_OPEN)
def _index_sha256(path: Path, seen: bytes) -> str:
    """Return the file's sha256, computed once per process while its metadata is unchanged, and inherited by forks."""
    return hash_file(path)


def verify(folder: Path, *, decode: bool, report: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
    """Verify the checksum of every file of a packed split; optionally decode every image.

    Args:
        report: receives bytes done and in total, then, when decoding, images done and in total.

    Returns:
        A sentence for each problem.

    Raises:
        DataError: if the packed split is missing or incomplete.
    """
    images = ShardedImages(folder)
    assert images.packed.index is not None
    problems, done = [], 0
    files = (*images.packed.shards, images.packed.index)
    for file in files:
        path = folder / file.name
        if not is_there(folder, file):
            problems.append(f"{path} is missing or not whole; {_MEND}")
        elif PackedFile.of(path, file.rows, file.taken) != file:
            problems.append(f"{path} has other bytes than were packed; delete it and {_MEND}")
        done += file.num_bytes
        report(done, sum(file.num_bytes for file in files))
    if decode:
        missing = set(images.absent())
        problems += [why for row, why in find_unreadable(images, report).items() if row not in missing]
    return problems

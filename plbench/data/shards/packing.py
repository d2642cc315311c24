"""Pack the images of a split into shards; resumable, with the same bytes after any number of interruptions."""

from __future__ import annotations

import hashlib
import io
import mmap
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import PIL
import pyarrow as pa
import torch
from filelock import FileLock
from PIL import Image, features
from torch.utils.data import DataLoader

from plbench.data.images import ImageSource, image_set_id, undecodable
from plbench.data.pixels import DECODING_ERRORS, PIXELS, is_plain, opened, shown, shown_size
from plbench.data.shards.shards import (
    BLOCK_ROWS,
    INDEX,
    INDEX_SCHEMA,
    MANIFEST,
    ROWS_PER_SHARD,
    PackedFile,
    PackedSplit,
    PackSettings,
    is_there,
    refuse_other_pixels,
    shard_name,
)
from plbench.data.text_column import write_batch
from plbench.data.workers import failures_in_words, ignore_interrupts
from plbench.errors import DataError
from plbench.files import unwritable, write_atomically, write_json
from plbench.files.paths import refuse_links

_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("sha256", pa.binary(32), nullable=False),
    ],
    metadata={"plbench": "packed images, format 2"},
)
_DRAFT_GAP = 1.5  # JPEGs are decoded at a reduced size of at least this times the target
_MAX_UNREADABLE = 64  # in a row; the order is random, so the disk must have failed


@dataclass(frozen=True)
class EncodedImage:
    """An image as stored in a shard."""

    id: str
    content: bytes
    width: int
    height: int


@dataclass(frozen=True)
class UnreadableImage:
    """An image that is left out, and the reason."""

    id: str
    reason: str


def pack(
    source: ImageSource,
    folder: Path,
    *,
    short_side: int,
    quality: int = 92,
    workers: int = 0,
    rows_per_shard: int = ROWS_PER_SHARD,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> PackedSplit:
    """Pack images in a fixed pseudo-random order, reduced to a short side of `short_side` pixels if larger.

    Plain JPEGs and PNGs that are small enough are copied unchanged. Others are stored as displayed, small PNGs as PNGs,
    the rest as JPEGs. Unreadable images are left out and listed.
    After an interruption, the next call continues; after completion, it only replaces missing files.

    Args:
        folder: of this split alone.
        quality: of new JPEGs (Pillow's scale, 4:2:0).
        workers: processes for decoding and encoding.
        report: receives the number of images done and in total.

    Raises:
        DataError: if the folder was packed with other settings or from other images, or most images cannot be read.
        PlbenchError: if the folder, or a file to be written in it, is a link.
        StoreError: if the folder cannot be written to.
    """
    settings = PackSettings(
        short_side=short_side,
        quality=quality,
        images=image_set_id(source),
        num_images=len(source),
        rows_per_shard=rows_per_shard,
        pixels=PIXELS,
    )
    refuse_links(folder.parent, folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            packed = _begun(folder, settings)
            for leftover in folder.glob(".*.tmp"):  # of a killed process
                leftover.unlink()
            return _Packing(source, folder, settings, workers, report).finish(packed)
    except OSError as error:
        raise unwritable(folder, error) from error


def packing_order(ids: Iterable[str]) -> npt.NDArray[np.int64]:
    """Return rows in the order of a hash of their ids, so that neighbours are unrelated."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=16).digest() for text in ids)
    keys = np.frombuffer(digests, ">u8").reshape(-1, 2)
    return np.lexsort((keys[:, 1], keys[:, 0]))


def encode(source: ImageSource, row: int, short_side: int, quality: int) -> EncodedImage:
    """Read one image and reduce its size; DataError if it cannot be decoded completely."""
    content, name = source.read(row), source.ids[row]
    try:
        with opened(io.BytesIO(content)) as image:
            width, height = shown_size(image)
            short, turned = min(width, height), (width, height) != image.size
            if short <= short_side and image.format in ("JPEG", "PNG") and is_plain(image):
                image.draft("RGB", (1, 1))  # decode a JPEG at 1/8 size: still reads the whole file
                image.load()
                return EncodedImage(name, content, width, height)
            if short > short_side:
                width, height = ((side * short_side + short // 2) // short for side in (width, height))
                wanted = int(width * _DRAFT_GAP), int(height * _DRAFT_GAP)
                image.draft("RGB", wanted[::-1] if turned else wanted)
            picture = shown(image)
            kind = "PNG" if image.format == "PNG" and short <= short_side else "JPEG"
        buffer = io.BytesIO()
        picture.resize((width, height), Image.Resampling.LANCZOS).save(buffer, kind, quality=quality)
    except DECODING_ERRORS as error:
        raise DataError(f"image {source.name(row)} cannot be read: {undecodable(error)}") from error
    return EncodedImage(name, buffer.getvalue(), width, height)


def _begun(folder: Path, settings: PackSettings) -> PackedSplit:
    """Return the state of an earlier call, or a new one; DataError if its settings differ."""
    packed = PackedSplit.stored(folder)
    if packed is None:
        encoder = f"Pillow {PIL.__version__}, libjpeg-turbo {features.version_feature('libjpeg_turbo')}"
        return PackedSplit(settings=settings, encoder=encoder)
    refuse_other_pixels(packed.settings.pixels, folder)
    before, now = packed.settings.model_dump(), settings.model_dump()
    other = [f"{name} {before[name]}, not {now[name]}" for name in now if before[name] != now[name]]
    if other:
        raise DataError(
            f"{folder} was packed with {', '.join(other)}; prepare with the same settings, or delete the folder to "
            "pack again"
        )
    return packed


@dataclass(frozen=True)
class _Items(torch.utils.data.Dataset[EncodedImage | UnreadableImage]):
    """Map-style dataset for torch's DataLoader."""

    source: ImageSource
    settings: PackSettings

    def __getitem__(self, row: int) -> EncodedImage | UnreadableImage:
        try:
            return encode(self.source, row, self.settings.short_side, self.settings.quality)
        except DataError as error:
            return UnreadableImage(self.source.ids[row], str(error))

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True)
class _Packing:
    """One call of `pack`."""

    source: ImageSource
    folder: Path
    settings: PackSettings
    workers: int
    report: Callable[[int, int], None]

    def finish(self, packed: PackedSplit) -> PackedSplit:
        """Write everything that is missing."""
        damaged = [number for number, shard in enumerate(packed.shards) if not is_there(self.folder, shard)]
        if packed.taken < len(self.source) or damaged:
            order = packing_order(self.source.ids)
            for number in damaged:
                self._repair(packed, number, order)
            packed = self._go_on(packed, order)
        if packed.index is None or not is_there(self.folder, packed.index):
            batch = _index(self.folder / shard.name for shard in packed.shards)
            write_atomically(self.folder / INDEX, partial(write_batch, batch))
            index = PackedFile.of(self.folder / INDEX, packed.num_images, packed.taken)
            packed = self._saved(packed, {"index": index})
        self.report(packed.taken, len(self.source))
        return packed

    def _go_on(self, packed: PackedSplit, order: npt.NDArray[np.int64]) -> PackedSplit:
        self.report(packed.taken, len(self.source))
        with closing(self._encoded(order[packed.taken :], packed.taken)) as stream:
            while packed.taken < len(self.source):
                shard, unreadable = self._write_shard(len(packed.shards), stream)
                update = {
                    "shards": (*packed.shards, shard) if shard.rows else packed.shards,
                    "taken": packed.taken + shard.taken,
                    "unreadable": packed.unreadable | unreadable,
                }
                packed = self._saved(packed, update)
        return packed

    def _repair(self, packed: PackedSplit, number: int, order: npt.NDArray[np.int64]) -> None:
        """Write one shard again; DataError if its bytes differ from before."""
        shard = packed.shards[number]
        start = sum(before.taken for before in packed.shards[:number])
        with closing(self._encoded(order[start : start + shard.taken], 0)) as stream:
            made, _ = self._write_shard(number, stream)
        if made != shard:
            (self.folder / shard.name).unlink(missing_ok=True)
            raise DataError(
                f"{self.folder / shard.name} was lost and cannot be made again as it was, because images or Pillow "
                "have changed since; delete the folder and run plbench data prepare again"
            )

    def _encoded(self, rows: npt.NDArray[np.int64], done: int) -> Generator[EncodedImage | UnreadableImage, None, None]:
        """Yield images of the rows in order, from worker processes."""
        blocks = [rows[start : start + BLOCK_ROWS] for start in range(0, len(rows), BLOCK_ROWS)]
        loader = DataLoader(
            _Items(self.source, self.settings),
            batch_sampler=(block.tolist() for block in blocks),
            num_workers=self.workers,
            collate_fn=list,
            generator=torch.Generator(),
            worker_init_fn=ignore_interrupts,
            prefetch_factor=4 if self.workers else None,
        )
        failed = 0
        blocks_made = iter(loader)
        while True:
            with failures_in_words():
                block = next(blocks_made, None)
            if block is None:
                return
            for image in block:
                failed = failed + 1 if isinstance(image, UnreadableImage) else 0
                if failed == _MAX_UNREADABLE:
                    raise DataError(f"{failed} images in a row cannot be read, the last because {image.reason}")
                yield image
            done += len(block)
            self.report(done, len(self.source))

    def _write_shard(
        self, number: int, stream: Iterator[EncodedImage | UnreadableImage]
    ) -> tuple[PackedFile, dict[str, str]]:
        """Write images until a shard is full or the stream ends; return it, and the unreadable images by id.

        A shard without images is described, but not written.
        """
        images: list[EncodedImage] = []
        unreadable: dict[str, str] = {}
        while len(images) < self.settings.rows_per_shard and (image := next(stream, None)) is not None:
            if isinstance(image, EncodedImage):
                images.append(image)
            else:
                unreadable[image.id] = image.reason
        path, taken = self.folder / shard_name(number), len(images) + len(unreadable)
        if not images:
            return PackedFile(name=path.name, rows=0, num_bytes=0, sha256="", taken=taken), unreadable

        def write(file: IO[bytes]) -> None:
            with pa.ipc.new_file(file, _SCHEMA) as writer:
                for start in range(0, len(images), BLOCK_ROWS):
                    block = images[start : start + BLOCK_ROWS]
                    rows = [
                        (image.id, image.content, image.width, image.height, hashlib.sha256(image.content).digest())
                        for image in block
                    ]
                    columns = zip(zip(*rows, strict=True), _SCHEMA, strict=True)
                    writer.write_batch(pa.record_batch([pa.array(c, f.type) for c, f in columns], schema=_SCHEMA))

        write_atomically(path, write)
        return PackedFile.of(path, len(images), taken), unreadable

    def _saved(self, packed: PackedSplit, update: dict[str, Any]) -> PackedSplit:
        packed = packed.model_copy(update=update)
        write_json(self.folder / MANIFEST, packed.model_dump(mode="json"))
        return packed


def _index(shards: Iterable[Path]) -> pa.RecordBatch:
    """Return id, first byte, size and sha256 of each image of all shards in one batch, without reading the images."""
    blocks = []
    for path in shards:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if hasattr(mmap, "MADV_RANDOM"):
            mapped.madvise(mmap.MADV_RANDOM)  # otherwise the system would read megabytes around every offset
        whole = pa.py_buffer(mapped)
        reader = pa.ipc.open_file(pa.BufferReader(whole))
        for number in range(reader.num_record_batches):
            block = reader.get_batch(number)
            _, offsets, content = block.column("image").buffers()
            bounds = np.frombuffer(offsets, np.int32, len(block) + 1).astype(np.int64)
            begins, sizes = content.address - whole.address + bounds[:-1], np.diff(bounds).astype(np.int32)
            columns = [block.column("id").cast(pa.large_string()), begins, sizes, block.column("sha256")]
            blocks.append(pa.record_batch(columns, schema=INDEX_SCHEMA))
    table = pa.Table.from_batches(blocks, schema=INDEX_SCHEMA)
    return pa.record_batch([column.combine_chunks() for column in table.columns], schema=INDEX_SCHEMA)

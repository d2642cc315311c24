"""Decoding, augmentation and loading of images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, Protocol, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from plbench.columns import take
from plbench.errors import DataError, PlbenchError
from plbench.labels import PartialLabels
from plbench.order import reading_ahead
from plbench.randomness import derive_seed, seeded
from plbench.spec import ModelSpec, Plan

Transform = Callable[[Image.Image], Any]

_MOST_SIZES = 150_000  # files whose size a fingerprint looks at: well under a second on a local disk

# What Pillow raises on broken, truncated, hostile or missing files.
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def decoded(file: Path | IO[bytes], min_side: int = 0) -> Image.Image:
    """An image file in RGB. JPEGs decode at a fraction of their size where that keeps `min_side`.

    Raises:
        OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError: `DECODING_ERRORS`, whatever is broken.
    """
    with Image.open(file) as image:
        if min_side:
            image.draft("RGB", (min_side, min_side))
        return image.convert("RGB")


class ImageSource(Protocol):
    """Images by row, wherever they are kept."""

    @property
    def ids(self) -> Sequence[str]:
        """Stable id of each image."""
        ...

    @property
    def block_rows(self) -> int:
        """Rows that lie side by side on disk and are best read together; 1 where every image is its own file."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def load(self, row: int, min_side: int = 0) -> Image.Image:
        """The image of a row in RGB; with `min_side`, it may come smaller, but no side below that many pixels."""
        ...

    def read(self, row: int) -> bytes:
        """The encoded image of a row as it is stored."""
        ...

    def name(self, row: int) -> str:
        """What to call the image of a row in a message."""
        ...

    def absent(self) -> list[int]:
        """Rows whose image is not there at all, found without decoding any."""
        ...

    def subset(self, index: np.ndarray) -> Self:
        """The chosen rows, in the order given."""
        ...

    def fingerprint(self) -> str:
        """sha256 that changes when images are replaced."""
        ...

    def expect(self, rows: range) -> None:
        """Told in time which rows will be asked for, so that they can be read ahead."""
        ...


@dataclass(frozen=True)
class ImageFiles:
    """Images in files below a root folder.

    Attributes:
        paths: [N] relative to the root. ids: [N] stable image ids, which hold-out parts are drawn by.
    """

    root: Path
    paths: Sequence[str]
    ids: Sequence[str]
    block_rows: ClassVar[int] = 1

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    def load(self, row: int, min_side: int = 0) -> Image.Image:
        """Decodes one file. JPEGs decode at a fraction of their size where that keeps `min_side`.

        Raises:
            DataError: if the file cannot be read, with its path.
        """
        try:
            return decoded(self.root / self.paths[row], min_side)
        except DECODING_ERRORS as error:
            raise DataError(f"image {self.name(row)} cannot be read: {error}") from error

    def read(self, row: int) -> bytes:
        """The file's bytes.

        Raises:
            DataError: if the file cannot be read, with its path.
        """
        try:
            return (self.root / self.paths[row]).read_bytes()
        except OSError as error:
            raise DataError(f"image {self.name(row)} cannot be read: {error}") from error

    def name(self, row: int) -> str:
        """The file's path."""
        return str(self.root / self.paths[row])

    def absent(self) -> list[int]:
        """Rows whose file does not exist: one listing per folder, not one look-up per file."""
        folders: dict[str, set[str]] = {}
        absent = []
        for row, relative in enumerate(self.paths):  # millions of rows: no Path objects here
            folder, _, name = relative.rpartition("/")
            if folder not in folders:
                path = self.root / folder
                folders[folder] = set(os.listdir(path)) if path.is_dir() else set()
            if name not in folders[folder]:
                absent.append(row)
        return absent

    def subset(self, index: np.ndarray) -> ImageFiles:
        """The chosen rows, in the order given."""
        return ImageFiles(self.root, take(self.paths, index), take(self.ids, index))

    def expect(self, rows: range) -> None:
        """Nothing is read ahead: the next row's file lies anywhere."""

    def fingerprint(self) -> str:
        """sha256 over the sizes of the files in bytes: of all, or of evenly spaced ones where they are millions.

        Tells that images were replaced, resized or encoded again without reading them.
        """
        step = -(-len(self) // _MOST_SIZES)
        digest = hashlib.sha256(f"{len(self)} every {step}".encode())
        for row in range(0, len(self), max(1, step)):
            try:
                size = os.stat(os.path.join(self.root, self.paths[row])).st_size
            except OSError:
                size = -1
            digest.update(size.to_bytes(8, "little", signed=True))
        return digest.hexdigest()


def image_set_id(source: ImageSource) -> str:
    """sha256 over the image ids in order: which images, whatever folder they lie in."""
    return hashlib.sha256("\n".join(source.ids).encode()).hexdigest()


def find_unreadable(
    source: ImageSource, report: Callable[[int, int], None] = lambda done, total: None
) -> dict[int, str]:
    """Decodes every image once and returns the reason for each row that fails. Absent files are found first."""

    def reason(row: int) -> str | None:
        try:
            source.load(row, min_side=1)  # JPEG at an eighth of its size: still reads the file to its end
        except DataError as error:
            return str(error)
        return None

    failed = {row: f"image {source.name(row)} does not exist" for row in source.absent()}
    rows = [row for row in range(len(source)) if row not in failed]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for done, (row, why) in enumerate(zip(rows, pool.map(reason, rows), strict=True), 1):
            if why is not None:
                failed[row] = why
            report(done, len(rows))
    return failed


@dataclass(frozen=True)
class EvalTransform:
    """Squash to a square, scale to [0, 1], normalise: the transform of everything that is not training."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, image: Image.Image) -> Tensor:
        """Image to float32 [3, size, size]."""
        return self.to_tensor(self.resize(image))

    def resize(self, image: Image.Image) -> Image.Image:
        """The whole image, squashed to size x size (as CSL trains; the aspect ratio is not kept)."""
        if image.size == (self.size, self.size):
            return image
        return image.resize((self.size, self.size), Image.Resampling.BILINEAR)

    def to_tensor(self, image: Image.Image) -> Tensor:
        """Normalised pixels, float32 [3, H, W]."""
        planes = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        # contiguous while it is converted: half the time of doing so afterwards
        pixels = planes.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        mean, std = torch.tensor(self.mean).view(3, 1, 1), torch.tensor(self.std).view(3, 1, 1)
        return pixels.sub_(mean).div_(std)


class TrainTransform:
    """RandAugment (timm), resize, normalise, cutout.

    Cutout is timm's random erasing at a fixed size: a square of `cutout` times the image's side, filled with zeros
    after normalisation. It differs from Cutout as CSL uses it in that the square always lies wholly inside the image
    and has no random colour.
    """

    def __init__(self, base: EvalTransform, plan: Plan) -> None:
        """Builds timm's augmentations for one plan.

        Raises:
            PlbenchError: if the RandAugment string is not one that timm reads.
        """
        import plbench.torchvision_ops  # noqa: F401  # isort: skip
        from timm.data.auto_augment import rand_augment_transform
        from timm.data.random_erasing import RandomErasing

        self.base = base
        fill = tuple(round(255 * channel) for channel in base.mean)
        options = {"translate_const": round(0.45 * base.size), "img_mean": fill}
        try:
            self.augment = rand_augment_transform(plan.randaugment, options) if plan.randaugment else None
        except (AssertionError, ValueError) as error:
            raise PlbenchError(
                f"randaugment = {plan.randaugment!r} is not one that timm reads, such as rand-m9-mstd0.5"
            ) from error
        area = plan.cutout**2
        self.erase = (
            RandomErasing(probability=1.0, min_area=area, max_area=area, min_aspect=1.0, mode="const", device="cpu")
            if area
            else None
        )

    def __call__(self, image: Image.Image) -> Tensor:
        """Image to float32 [3, size, size]. Draws from the global generators, which the loader seeds."""
        image = self.base.resize(image)
        if self.augment is not None:
            image = self.augment(image)
        pixels = self.base.to_tensor(image)
        return pixels if self.erase is None else self.erase(pixels)


def eval_transform(model: ModelSpec) -> EvalTransform:
    """The evaluation transform that a model's spec implies."""
    return EvalTransform(model.image_size, model.mean, model.std)


@dataclass(frozen=True)
class _Items(torch.utils.data.Dataset[tuple[Any, int]]):
    """Map-style dataset for torch's DataLoader. An item's augmentation follows from (seed, epoch, row)."""

    source: ImageSource
    transform: Transform
    min_side: int
    augment_seed: int | None = None
    epoch: int = 0

    def __getitem__(self, row: int) -> tuple[Any, int]:
        image = self.source.load(row, self.min_side)
        if self.augment_seed is None:
            return self.transform(image), row
        with seeded(derive_seed(self.augment_seed, "augment", self.epoch, row)):
            return self.transform(image), row

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True)
class _Announced:
    """Batches of rows of which the source is told in time. Iterated in the main process, ahead of the workers."""

    batches: Sequence[Sequence[int]]
    source: ImageSource

    def __iter__(self) -> Iterator[Sequence[int]]:
        return iter(self.batches) if self.source.block_rows == 1 else reading_ahead(self.batches, self.source.expect)

    def __len__(self) -> int:
        return len(self.batches)


def _collate(items: Sequence[tuple[Any, int]]) -> tuple[tuple[Tensor, ...], Tensor]:
    views, rows = zip(*items, strict=True)
    kinds = zip(*views, strict=True) if isinstance(views[0], tuple) else (views,)
    stacked = tuple(default_collate(list(kind)) for kind in kinds)  # in a worker, straight into shared memory
    return stacked, torch.tensor(rows, dtype=torch.int64)


def _single_thread(worker: int) -> None:
    torch.set_num_threads(1)


def image_batches(
    source: ImageSource,
    transform: Transform,
    batches: Sequence[Sequence[int]],
    *,
    min_side: int,
    workers: int,
    augment_seed: int | None = None,
    epoch: int = 0,
) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    """Decodes and transforms rows, batch by batch, in worker processes.

    Args:
        batches: rows of each batch, in order.
        min_side: images may be decoded smaller, but not below this.
        augment_seed: seeds the augmentation of each row anew in each epoch; None for transforms without chance.

    Yields:
        Views (each [B, 3, H, W]; one unless the transform makes more) and row index [B].
    """
    items = _Items(source, transform, min_side, augment_seed, epoch)
    loader = DataLoader(
        items,
        batch_sampler=_Announced(batches, source),  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # or it would draw the workers' seeds, which nothing uses, from the global one
        worker_init_fn=_single_thread,
        prefetch_factor=4 if workers else None,
    )
    try:
        yield from loader
    except DataError as error:  # torch wraps a worker's message in the worker's traceback; the sentence is its end
        error.__traceback__ = None  # a cycle through the loader, whose workers would be waited for late and for long
        raise DataError(str(error).strip().splitlines()[-1].rpartition("DataError: ")[2]) from None


def ordered_batches(num_rows: int, batch_size: int) -> list[range]:
    """Rows of each evaluation batch: every row once, in order."""
    return [range(start, min(start + batch_size, num_rows)) for start in range(0, num_rows, batch_size)]


def label_tensor(labels: PartialLabels, rows: Tensor) -> Tensor:
    """Dense labels of a batch, int8 [B, C]."""
    return torch.from_numpy(labels.rows(rows.numpy()))

"""Loading images batch by batch: worker processes decode, the device finishes."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from plbench.data.workers import failures_in_words, ignore_interrupts
from plbench.errors import PlbenchError
from plbench.loading.jpegs import JpegDecoder, JpegFiles
from plbench.loading.order import reading_ahead
from plbench.loading.prefetch import prefetched
from plbench.loading.routes import Route, UnscaledPixels, Views, WholeTransform
from plbench.loading.transforms import EvalTransform, TrainTransform, Transform
from plbench.randomness import derive_seed, reseed, seeded

if TYPE_CHECKING:
    from plbench.data.images import ImageSource

CPU = torch.device("cpu")


class ImageLoader:
    """Batches of one source through one transform, over several passes.

    Worker processes are reused by the next pass, which saves much time on small datasets; they end with this object. An
    error, or leaving a pass early, ends them at once.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Transform,
        *,
        min_side: int,
        workers: int,
        device: torch.device = CPU,
        augment_seed: int | None = None,
        decoder: JpegDecoder | None = None,
    ) -> None:
        """Store the settings; no worker is started yet.

        Args:
            source: the images.
            transform: of one image to a tensor, or to a tuple of tensors: several views.
            min_side: images may be decoded smaller, but not below this.
            workers: number of processes; 0 to load in this one.
            device: target device of batches.
            augment_seed: seed of the augmentation, per row and epoch; None for deterministic transforms.
            decoder: decodes JPEG files on the device, instead of Pillow in the workers.

        Raises:
            PlbenchError: if there is a decoder, but the transform needs Pillow images.
        """
        self._route = _route(source, transform, min_side, decoder)
        self._workers, self._device, self._augment_seed = workers, device, augment_seed
        self._kept: list[tuple[_Order, DataLoader[Any]]] = []  # at most one

    def batches(self, order: Sequence[Sequence[int]], epoch: int = 0) -> Generator[tuple[Views, Tensor], None, None]:
        """Yield one pass: views on the device, each [B, 3, H, W], one unless the transform makes more, and rows [B].

        Args:
            order: rows of each batch.
            epoch: determines augmentation together with the seed and the row.
        """
        route, device = self._route, self._device

        def move(loaded: tuple[Any, Tensor]) -> tuple[Any, Tensor]:
            batch, rows = loaded
            return route.move(batch, rows, device), rows

        # if a pass is left early, end its workers now, not at garbage collection
        with closing(prefetched(self._loaded(order, epoch), move, device)) as arriving:
            for moved, rows in arriving:
                yield route.finish(moved), rows

    def _loaded(self, order: Sequence[Sequence[int]], epoch: int) -> Generator[tuple[Any, Tensor], None, None]:
        """Yield batches from workers, in pinned memory for a GPU."""
        try:
            at, loader = self._kept.pop()
        except IndexError:  # the first pass, or another one is in progress, perhaps in another thread
            at = _Order(self._route.source)
            loader = DataLoader(
                _Items(self._route, self._augment_seed),
                # one object for all passes: the loader keeps its workers, and the order is replaced
                batch_sampler=at,
                num_workers=self._workers,
                collate_fn=partial(_collate, self._route),
                pin_memory=self._device.type == "cuda",
                generator=torch.Generator(),  # otherwise it would use the global generator for unused worker seeds
                worker_init_fn=_start,
                prefetch_factor=4 if self._workers else None,
                persistent_workers=self._workers > 0,
            )
        at.batches, at.epoch = order, epoch
        try:
            with failures_in_words():
                yield from loader
        except PlbenchError as error:
            # drop the loader, since whoever keeps the error keeps this frame, and its workers would end late and
            # slowly; also drop the traceback's frames, which hold the loader's iterator
            del loader
            error.__traceback__ = None
            raise
        # only reached at the end of a pass: workers of an aborted one would still hold its batches
        if not self._kept:
            self._kept.append((at, loader))


def _route(source: ImageSource, transform: Transform, min_side: int, decoder: JpegDecoder | None) -> Route:
    if type(transform) not in (EvalTransform, TrainTransform):  # a subclass may do anything else
        if decoder is not None:
            name = getattr(transform, "__name__", type(transform).__name__)
            raise PlbenchError(
                f"the method's own transform ({name}) works on images decoded by Pillow; use `decode='pil'`"
            )
        return WholeTransform(source, transform, min_side)
    assert isinstance(transform, (EvalTransform, TrainTransform))
    if decoder is None:
        return UnscaledPixels(source, transform, min_side)
    return JpegFiles(source, transform, min_side, decoder)


@dataclass
class _Order:
    """The batches of a pass, as (epoch, row), announced ahead of the workers for prefetching."""

    source: ImageSource
    batches: Sequence[Sequence[int]] = ()
    epoch: int = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        alone = self.source.block_rows == 1
        for rows in self.batches if alone else reading_ahead(self.batches, self.source.expect):
            # the epoch is sent with each row, since persistent workers were started before it
            yield [(self.epoch, row) for row in rows]

    def __len__(self) -> int:
        return len(self.batches)


@dataclass(frozen=True)
class _Items(torch.utils.data.Dataset[tuple[Any, int]]):
    """Map-style dataset for torch's DataLoader. An item's augmentation is determined by (seed, epoch, row)."""

    route: Route
    augment_seed: int | None

    def __getitem__(self, item: tuple[int, int]) -> tuple[Any, int]:
        epoch, row = item
        if self.augment_seed is None:
            return self.route.item(row), row
        seed = derive_seed(self.augment_seed, "augment", epoch, row)
        if get_worker_info() is not None:
            # not restored: a worker's generators have no other use
            reseed(seed)
            return self.route.item(row), row
        with seeded(seed):
            return self.route.item(row), row

    def __len__(self) -> int:
        return len(self.route.source)


def _collate(route: Route, items: Sequence[tuple[Any, int]]) -> tuple[Any, Tensor]:
    made, rows = zip(*items, strict=True)  # tensors are stacked in a worker, straight into shared memory
    return route.collate(made), torch.tensor(rows, dtype=torch.int64)


def _start(worker: int) -> None:
    ignore_interrupts(worker)
    # there are as many workers as cores (docs/loading.md)
    torch.set_num_threads(1)

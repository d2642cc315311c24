"""Inputs of the engine: images or cached features of one part of a dataset, with its partial labels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from plbench.data.images import ImageSource, label_tensor, ordered_batches
from plbench.data.labels import PartialLabels
from plbench.loading.batches import CPU, ImageLoader
from plbench.loading.jpegs import JpegDecoder
from plbench.loading.order import EpochOrder
from plbench.loading.transforms import EvalTransform
from plbench.method import Batch
from plbench.training.distributed import ALONE, World

_IN_MEMORY_BYTES = 4 << 30


Mixture = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""Function of rows int64 [B] and an epoch: rows and weights, [B, K], mixed into each input (`Method.mixture`)."""


class Inputs(Protocol):
    """Rows of one part of a dataset, in training order or in dataset order."""

    @property
    def labels(self) -> PartialLabels:
        """Partial labels of the rows."""
        ...

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def shuffled(self, batch_size: int, epoch: int, first_batch: int = 0, world: World = ALONE) -> Iterator[Batch]:
        """Return training batches of one epoch: every row once, shuffled, optionally from `first_batch` on.

        Of each global batch, this process's share; if it is empty, placeholder rows (see `EpochOrder`).
        """
        ...

    def ordered(self, batch_size: int, world: World = ALONE) -> Iterator[tuple[Tensor, Tensor]]:
        """Return evaluation batches, row index [b] on the CPU and inputs: every row once, in order, not augmented.

        Whole batches are distributed over processes in turn, so that results equal those of one process.
        """
        ...


@dataclass(frozen=True)
class ImageInputs:
    """Images read and decoded by worker processes, with the final transforms on the device.

    Attributes:
        train_transform: of training batches; None for a part that is only evaluated.
        seed: of the order and augmentation of training batches.
        device: target device of images.
        decoder: decodes JPEG files on the device, instead of Pillow in the workers.
        min_side: training images may be decoded smaller, but not below this; None for the models' input size.
        mixture: images mixed into each training input; None for one image each.
    """

    images: ImageSource
    labels: PartialLabels
    eval_transform: EvalTransform
    workers: int
    train_transform: Callable[[Any], Any] | None = None
    seed: int = 0
    device: torch.device = CPU
    decoder: JpegDecoder | None = None
    min_side: int | None = None
    mixture: Mixture | None = None

    def __post_init__(self) -> None:
        """Check now that training images can be loaded.

        Raises:
            PlbenchError: if there is a decoder, but the training transform needs Pillow images.
        """
        if self.train_transform is not None:
            # creating the loader performs the check; no worker is started yet
            assert self._training_loader is not None

    @cached_property
    def _training_loader(self) -> ImageLoader:
        """The loader, which keeps its workers between epochs."""
        assert self.train_transform is not None
        return self._loader(self.train_transform, self.min_side or self.eval_transform.size, self.seed)

    def _loader(self, transform: Callable[[Any], Any], min_side: int, augment_seed: int | None = None) -> ImageLoader:
        return ImageLoader(
            self.images,
            transform,
            min_side=min_side,
            workers=self.workers,
            device=self.device,
            augment_seed=augment_seed,
            decoder=self.decoder,
        )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def shuffled(self, batch_size: int, epoch: int, first_batch: int = 0, world: World = ALONE) -> Iterator[Batch]:
        """Yield augmented training batches; images that are adjacent on disk are read together."""
        ranks = {"rank": world.rank, "num_ranks": world.size, "first_batch": first_batch}
        order = EpochOrder(len(self), batch_size, self.seed, epoch, block_rows=self.images.block_rows, **ranks)
        if self.mixture is None:
            for views, rows in self._training_loader.batches(order, epoch):
                yield Batch(views[0], label_tensor(self.labels, rows), rows, views if len(views) > 1 else ())
            return
        # each image of a batch is decoded once, even if it is part of several inputs
        loaded = self._training_loader.batches(_Sources(order, self.mixture, epoch), epoch)
        for own, (images, sources) in zip(order, loaded, strict=True):
            index = torch.tensor(own, dtype=torch.int64)
            rows, weights = self.mixture(index, epoch)
            views = tuple(_weighted_sum(view, torch.searchsorted(sources, rows), weights) for view in images)
            yield Batch(views[0], label_tensor(self.labels, index), index, views if len(views) > 1 else ())

    def ordered(self, batch_size: int, world: World = ALONE) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield evaluation batches."""
        order = ordered_batches(len(self), batch_size)[world.rank :: world.size]
        for views, rows in self._loader(self.eval_transform, self.eval_transform.size).batches(order):
            yield rows, views[0]


@dataclass(frozen=True)
class _Sources(Sequence[list[int]]):
    """The distinct rows of the inputs of each batch, in order."""

    order: EpochOrder
    mixture: Mixture
    epoch: int

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[each] for each in range(len(self))[number]]
        rows, _ = self.mixture(torch.tensor(self.order[number], dtype=torch.int64), self.epoch)
        return rows.unique().tolist()


def _weighted_sum(values: Tensor, place: Tensor, weights: Tensor) -> Tensor:
    """Return weighted sums [B, …] of values [U, …] at positions int64 [B, K], with weights [B, K]."""
    place, weights = place.to(values.device), weights.to(values)
    shape = (-1, *(1 for _ in values.shape[1:]))
    # one after another: a mean of one image is bit-identical to it, and no tensor has the size of K batches
    total = values[place[:, 0]] * weights[:, 0].view(shape)
    for k in range(1, place.shape[1]):
        total = total + values[place[:, k]] * weights[:, k].view(shape)
    return total


class FeatureInputs:
    """Cached features of a frozen backbone.

    Attributes:
        features: [N, D], or maps [N, D, h, w], of the whole split, possibly on disk. rows: [n] those of this part.
        mixture: rows mixed into each training input; None for one row each.
    """

    mixture: Mixture | None = None

    def __init__(self, features: np.ndarray, rows: np.ndarray, labels: PartialLabels, seed: int = 0) -> None:
        """Load the part's rows into memory if they are small enough."""
        if len(rows) * features[:1].nbytes <= _IN_MEMORY_BYTES:
            features, rows = np.ascontiguousarray(features[rows]), np.arange(len(rows))
        self.features, self.rows, self.labels, self.seed = features, rows, labels, seed

    def reseeded(self, seed: int, labels: PartialLabels | None = None) -> FeatureInputs:
        """Return the same features with another order of training batches and, optionally, other labels."""
        # shallow: the features are shared and read-only
        other = copy.copy(self)
        other.seed = seed
        other.labels = self.labels if labels is None else labels
        return other

    def mixing(self, mixture: Mixture | None) -> FeatureInputs:
        """Return the same features with mixed training inputs."""
        other = copy.copy(self)
        other.mixture = mixture
        return other

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def _inputs(self, index: np.ndarray) -> Tensor:
        values = torch.from_numpy(np.asarray(self.features[self.rows[index]]))
        # feature maps are stored so, and heads expect them channels-last
        is_half = values.dtype == torch.float16
        return values.to(torch.float32, memory_format=torch.channels_last) if is_half else values

    def shuffled(self, batch_size: int, epoch: int, first_batch: int = 0, world: World = ALONE) -> Iterator[Batch]:
        """Yield training batches of features."""
        ranks = {"rank": world.rank, "num_ranks": world.size, "first_batch": first_batch}
        for rows in EpochOrder(len(self), batch_size, self.seed, epoch, **ranks):
            index = torch.tensor(rows, dtype=torch.int64)
            if self.mixture is None:
                values = self._inputs(index.numpy())
            else:
                sources, weights = self.mixture(index, epoch)
                sources, place = sources.unique(return_inverse=True)
                values = _weighted_sum(self._inputs(sources.numpy()), place, weights)
            yield Batch(values, label_tensor(self.labels, index), index)

    def ordered(self, batch_size: int, world: World = ALONE) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield evaluation batches of features."""
        for rows in ordered_batches(len(self), batch_size)[world.rank :: world.size]:
            index = torch.arange(rows.start, rows.stop)
            yield index, self._inputs(index.numpy())

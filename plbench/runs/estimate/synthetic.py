"""Inputs that stand for those of a run which is only measured: random numbers of the true shape, with true labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plbench.data.images import label_tensor
from plbench.data.labels import PartialLabels
from plbench.errors import PlbenchError
from plbench.method import Batch, Stage

_STAND_IN_ROWS = 1024  # that a stage's reduction gets to see
_MANY_STEPS = 1_000_000  # as many as a synthetic epoch claims to have


class SyntheticImages:
    """Inputs of random numbers with true labels: `plbench.training.inputs.Inputs` without an end."""

    def __init__(self, labels: PartialLabels, shape: tuple[int, ...], num_views: int) -> None:
        self._labels, self.shape, self.num_views = labels, shape, num_views
        self.batch_size = 1

    @property
    def labels(self) -> PartialLabels:
        """Of the rows of one batch: all that there is to see."""
        return self._labels.subset(np.arange(min(self.batch_size, self._labels.num_images)))

    def __len__(self) -> int:
        return self.batch_size * _MANY_STEPS

    def some_labels(self, number: int) -> Tensor:
        """Return labels [number, C] of the first rows, from the start again where there are no more."""
        return label_tensor(self._labels, torch.arange(number) % self._labels.num_images)

    def shuffled(self, batch_size: int, epoch: int, first_batch: int = 0, world: Any = None) -> Iterator[Batch]:
        """Yield the same batch again and again: making another would count as training."""
        inputs = synthetic(batch_size, *self.shape)
        views = tuple(inputs if place == 0 else synthetic(*inputs.shape) for place in range(self.num_views))
        index = torch.arange(batch_size) % self._labels.num_images
        batch = Batch(inputs, self.some_labels(batch_size), index, views)
        while True:
            yield batch

    def ordered(self, batch_size: int, world: Any = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one small batch, for a method that looks at its training images before it begins."""
        rows = torch.arange(min(self.batch_size, self._labels.num_images))
        yield rows, synthetic(len(rows), *self.shape)


class SyntheticView:
    """Scores that nobody trained: `plbench.method.TrainView` for a stage's reduction."""

    def __init__(self, labels: PartialLabels) -> None:
        self.labels = labels

    def predict(
        self, weights: Any = "ema", *, dropout: bool = False, passes: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one batch of all rows."""
        yield (
            torch.arange(self.labels.num_images),
            synthetic(self.labels.num_images, self.labels.num_classes).sigmoid(),
        )

    def compute(self, function: Any, weights: Any = "ema") -> Iterator[tuple[Tensor, Tensor]]:
        """There is no model yet.

        Raises:
            PlbenchError: always.
        """
        raise PlbenchError("a stage that looks into its model cannot be measured before that is trained")


def synthetic_artifact(stage: Stage, labels: PartialLabels) -> Tensor:
    """Return what a stage would hand on, of the right shape for a part of the rows."""
    return stage.reduce(SyntheticView(labels.subset(np.arange(min(_STAND_IN_ROWS, labels.num_images)))))


def synthetic(*shape: int) -> Tensor:
    """Return normal random numbers, without a draw from the global generator."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))

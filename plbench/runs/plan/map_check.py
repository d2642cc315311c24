"""Check that a method works on feature maps, before any are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plbench.data.images import label_tensor
from plbench.data.labels import PartialLabels
from plbench.errors import PlbenchError, PluginError
from plbench.method import Batch, Method, Progress
from plbench.models.backbones import GivenMaps, make_head
from plbench.randomness import seeded
from plbench.spec import ModelSpec
from plbench.training.hooks import Guarded

_SHAPE = (16, 2, 3)  # [D, h, w] of a map; all different, so that swapped axes are noticed
_NUM_IMAGES = 4


def check_takes_maps(make: Callable[[], Method], model: ModelSpec, labels: PartialLabels) -> None:
    """Run a method's first step on a few random feature maps.

    Args:
        make: builds the method.
        model: with a head for maps.
        labels: of its training part.

    Raises:
        PlbenchError: if that fails, although it works on pooled features.
    """
    own = type(make())
    if all(getattr(own, name) is getattr(Method, name) for name in ("build", "forward", "epoch_start")):
        return
    labels = labels.subset(np.arange(min(_NUM_IMAGES, labels.num_images)))
    pooled = model.model_copy(update={"pooling": "mean", "head": "linear"})
    if (error := _error(make(), model, labels)) and not _error(make(), pooled, labels):
        raise PlbenchError(
            f"method {own.name!r} uses pooled features itself, but head {model.head!r} gives it whole feature "
            'maps; give `head="mlp"`'
        ) from error


def _error(method: Method, model: ModelSpec, labels: PartialLabels) -> PluginError | None:
    """Return the error of a step on random features, if any."""
    shape = _SHAPE if model.is_spatial else _SHAPE[:1]
    features = torch.rand(labels.num_images, *shape, generator=torch.Generator().manual_seed(0))
    index, start, guarded = torch.arange(len(features)), Progress(0, 1, 0, 1), Guarded(method)
    batch = Batch(features, label_tensor(labels, index), index)
    try:
        with seeded(0):
            backbone = GivenMaps(shape[0]) if model.is_spatial else nn.Identity()
            made = guarded.build(backbone, lambda: make_head(model, shape[0], labels.num_classes))
            guarded.epoch_start(_View(made, features, labels), start)
            guarded.loss(guarded.forward(made, batch, start), batch, start)
    except PluginError as error:
        return error
    return None


@dataclass(frozen=True)
class _View:
    """Input of `epoch_start`: `plbench.method.TrainView`."""

    model: nn.Module
    features: Tensor
    labels: PartialLabels

    def predict(self, weights: Any = "ema", **options: Any) -> Iterator[tuple[Tensor, Tensor]]:
        yield torch.arange(len(self.features)), torch.full((len(self.features), self.labels.num_classes), 0.5)

    def compute(self, function: Any, weights: Any = "ema") -> Iterator[tuple[Tensor, Tensor]]:
        with torch.inference_mode():
            yield torch.arange(len(self.features)), function(self.model, self.features)

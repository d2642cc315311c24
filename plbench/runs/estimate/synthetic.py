"""Synthetic inputs for measuring runs: random numbers of the true shape, with true labels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plbench.data.images import label_tensor
from plbench.data.labels import PartialLabels
from plbench.errors import PlbenchError
from plbench.method import Batch, Method
from plbench.models.backbones import GivenMaps, make_head
from plbench.randomness import seeded
from plbench.runs.plan.resolved import ResolvedRun, make_task
from plbench.training import hooks
from plbench.training.engine import prepare_fit
from plbench.training.execution import Execution
from plbench.training.state import FitState

_STAND_IN_ROWS = 1024  # rows that a stage's reduction sees
_MANY_STEPS = 1_000_000  # length of a synthetic epoch


def synthetic(*shape: int) -> Tensor:
    """Return normal random numbers, without using the global generator."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def synthetic_batch(labels: PartialLabels, size: int, shape: tuple[int, ...], views: tuple[Tensor, ...] = ()) -> Batch:
    """Return a batch of random inputs with the labels of the first rows, repeated if there are too few.

    Args:
        labels: of the images that the inputs represent.
        size: number of inputs. shape: of each.
        views: of one image; all but the first are copied for every input. Empty for only the image itself.
    """
    inputs, index = synthetic(size, *shape), torch.arange(size) % labels.num_images
    copied = (inputs, *(torch.stack([view] * size) for view in views[1:])) if views else ()
    return Batch(inputs, label_tensor(labels, index), index, copied)


class SyntheticInputs:
    """Endless `plbench.training.inputs.Inputs`, of which only the first batch is visible."""

    def __init__(self, labels: PartialLabels, shape: tuple[int, ...], views: tuple[Tensor, ...] = ()) -> None:
        self._labels, self.shape, self._views = labels, shape, views
        self.batch_size = 1

    @property
    def labels(self) -> PartialLabels:
        """Labels of the rows of one batch, which are the only ones."""
        return self._labels.subset(np.arange(min(self.batch_size, self._labels.num_images)))

    def __len__(self) -> int:
        return self.batch_size * _MANY_STEPS

    def shuffled(self, batch_size: int, epoch: int, first_batch: int = 0, world: Any = None) -> Iterator[Batch]:
        """Yield the same batch repeatedly, since creating others would count as training time."""
        return itertools.repeat(synthetic_batch(self._labels, batch_size, self.shape, self._views))

    def ordered(self, batch_size: int, world: Any = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one small batch, for methods that look at their training images before they start."""
        number = self.labels.num_images
        yield torch.arange(number), synthetic(number, *self.shape)


class _SyntheticView:
    """Scores of an untrained model: `plbench.method.TrainView` for a stage's reduction."""

    def __init__(self, labels: PartialLabels, build: Callable[[], nn.Module]) -> None:
        self.labels, self._build = labels, build

    def predict(
        self, weights: Any = "ema", *, dropout: bool = False, passes: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        number = self.labels.num_images
        yield torch.arange(number), synthetic(number, self.labels.num_classes).sigmoid()

    def compute(self, function: Any, weights: Any = "ema") -> Iterator[tuple[Tensor, Tensor]]:
        raise PlbenchError("a stage that reads its model cannot be measured before that model is trained")

    def model(self, weights: Any = "ema") -> nn.Module:
        return self._build()


def about_to_train(
    plan: ResolvedRun, backbone: nn.Module | None, shape: tuple[int, ...], execution: Execution
) -> FitState:
    """Return the state of a run before its first step, with random weights that no step changes.

    Args:
        plan: the run. backbone: for the method's model; None if features are given.
        shape: of an image's features.
        execution: device and precision.

    Raises:
        PlbenchError: if a stage of the run cannot be simulated.
    """
    if backbone is None:
        backbone = nn.Identity() if len(shape) == 1 else GivenMaps(shape[0])
    method, model = _untrained(plan, backbone, shape[0])
    state = prepare_fit(model, method, plan.spec.plan, method.task.steps_per_epoch, execution)
    # a learning rate of 0 for any number of steps, since random weights on random inputs could diverge
    state.schedule = torch.optim.lr_scheduler.LambdaLR(state.optimizer, lambda step: 0.0)
    return state


def _untrained(plan: ResolvedRun, backbone: nn.Module, num_features: int) -> tuple[Method, nn.Module]:
    """Return a run's method and untrained model, with synthetic artifacts of its stages."""
    spec, labels = plan.spec, plan.protocol_data.train(plan.spec.train_part).labels
    # synthetic artifacts of the right shape, for some of the rows
    seen = labels.subset(np.arange(min(_STAND_IN_ROWS, labels.num_images)))
    artifacts = {
        name: stage.reduce(_SyntheticView(seen, lambda run=run: _untrained(run, backbone, num_features)[1]))  # type: ignore[misc]
        for name, (stage, run) in plan.stages.items()
    }
    method = hooks.construct(plan.method, plan.params, make_task(spec, plan.protocol_data, artifacts))
    with seeded(0):
        model = hooks.Guarded(method).build(backbone, lambda: make_head(spec.model, num_features, labels.num_classes))
    return method, model

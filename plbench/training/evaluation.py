"""The evaluation loop: a model's scores over a part of a dataset, without augmentation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from plbench.data.labels import PartialLabels
from plbench.errors import TrainingError
from plbench.method import Batch, Method, Progress
from plbench.metrics.cells import Cells, top_places
from plbench.randomness import derive_seed, seeded
from plbench.training import hooks
from plbench.training.distributed import World
from plbench.training.execution import Execution, evaluation_mode, widened
from plbench.training.inputs import Inputs
from plbench.training.state import FitState

EVAL_BATCH_SIZE = 256

Function = Callable[[nn.Module, Tensor], Tensor]
"""Function of a model and a batch of its inputs, [b, …]."""


class View:
    """A model's outputs on a part, without augmentation: `plbench.method.TrainView`."""

    def __init__(self, state: FitState, inputs: Inputs, execution: Execution) -> None:
        """Store the arguments of `predict`."""
        self.labels = inputs.labels
        self._state, self._inputs, self._execution = state, inputs, execution

    def predict(
        self, weights: Literal["ema", "raw"] = "ema", *, dropout: bool = False, passes: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Stream (row index, score) on the CPU; see `TrainView`."""
        state = self._state
        state.images_viewed += passes * len(self._inputs)
        # from the initial seed: sampling from the generator would change the method's later samples
        seed = derive_seed(state.method.task.generator.initial_seed(), "view", state.step) if dropout else None
        model = state.averaged(weights)
        yield from predict(model, state.method, self._inputs, self._execution, dropout_seed=seed, passes=passes)

    def model(self, weights: Literal["ema", "raw"] = "ema") -> nn.Module:
        """Return the model; see `TrainView`."""
        return self._state.averaged(weights)

    def compute(self, function: Function, weights: Literal["ema", "raw"] = "ema") -> Iterator[tuple[Tensor, Tensor]]:
        """Stream (row index [b], `function(model, inputs)` float32) on the CPU; see `TrainView`."""
        state, inputs, execution = self._state, self._inputs, self._execution
        state.images_viewed += len(inputs)
        model = state.averaged(weights)

        def evaluated(values: Tensor) -> Tensor:
            with evaluation_mode(model), torch.inference_mode(), execution.autocast():
                return function(model, execution.inputs(values)).float().cpu()

        # per-process batch statistics
        execution.world.copy_from_main_(model.buffers())
        own = ((rows, evaluated(values)) for rows, values in inputs.ordered(EVAL_BATCH_SIZE, execution.world))
        # a process without a batch computes one row to get the output's shape
        yield from _together(own, len(inputs), execution.world, lambda: evaluated(next(inputs.ordered(1))[1])[:0])


def predict(
    model: nn.Module,
    method: Method,
    inputs: Inputs,
    execution: Execution,
    *,
    dropout_seed: int | None = None,
    passes: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Do the same as `predict_share`, but return all rows in every process, in order."""
    own = predict_share(model, method, inputs, execution, dropout_seed=dropout_seed, passes=passes)
    return _together(own, len(inputs), execution.world, lambda: torch.empty(0, inputs.labels.num_classes))


def _together(
    own: Iterator[tuple[Tensor, Tensor]], num_rows: int, world: World, nothing: Callable[[], Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of all processes in every process; `nothing` returns an empty share, [0, …]."""
    if world.size == 1:
        yield from own
        return
    num_batches = math.ceil(num_rows / EVAL_BATCH_SIZE)
    for first in range(0, num_batches, world.size):
        # in the last round, processes without a batch contribute an empty share
        starts = [EVAL_BATCH_SIZE * min(number, num_batches) for number in range(first, first + world.size)]
        shares = [max(0, min(EVAL_BATCH_SIZE, num_rows - start)) for start in starts]
        values = world.gather(next(own)[1] if shares[world.rank] else nothing(), shares)
        for start, share, chunk in zip(starts, shares, values.split(shares), strict=True):
            if share:
                yield torch.arange(start, start + share), chunk


def predict_share(
    model: nn.Module,
    method: Method,
    inputs: Inputs,
    execution: Execution,
    *,
    dropout_seed: int | None = None,
    passes: int = 1,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Stream (row index [b], scores [b, C] float32) on the CPU, of this process's batches.

    The method gets no labels, since these are used for scoring.

    Args:
        model: put in eval mode for each batch.
        dropout_seed: seed for active dropout; None for no dropout.
        passes: number of passes whose scores are averaged.
        report: receives the approximate number of rows done, and the total.

    Raises:
        PlbenchError: if scores have a wrong shape, or are not finite.
    """
    num_classes, world, guarded, done = inputs.labels.num_classes, execution.world, hooks.Guarded(method), 0
    world.copy_from_main_(model.buffers())  # per-process batch statistics

    def scored(batch: Batch) -> Tensor:
        with execution.autocast():
            output = guarded.forward(model, batch, Progress(0, 1, 0, 1))
        return guarded.scores(widened(output), (len(batch.index), num_classes)).float()

    for rows, values in inputs.ordered(EVAL_BATCH_SIZE, world):
        with evaluation_mode(model, dropout=dropout_seed is not None), torch.inference_mode():
            batch = Batch(
                execution.inputs(values),
                # all unknown: the method must not see the labels used for scoring
                torch.zeros(len(rows), num_classes, dtype=torch.int8, device=execution.device),
                rows.to(execution.device),
            )
            # without dropout nothing is random, and several models may be scored in threads of one process
            first = int(rows[0])
            drawing = nullcontext() if dropout_seed is None else seeded(derive_seed(dropout_seed, "dropout", first))
            with drawing:
                scores = sum((scored(batch) for _ in range(passes)), torch.zeros((), device=execution.device)) / passes
        if not torch.isfinite(scores).all():
            raise TrainingError(
                f"method {method.name!r} gave scores that are not finite; in scores, or in forward without training, "
                "something is not",
                hooks.try_it(method),
            )
        # other processes are about as far; asking them would synchronize
        done += len(rows) * world.size
        report(min(done, len(inputs)), len(inputs))
        # outside the modes above, since the consumer's code runs during the yield
        yield rows, scores.cpu()


def collect_cells(stream: Iterator[tuple[Tensor, Tensor]], labels: PartialLabels) -> Cells:
    """Return scores at known cells only, from a stream of dense batches.

    Unknown cells only affect `Cells.in_top`, where they can be among the highest-scored classes.

    Args:
        stream: row index [b] and scores [b, C], from `predict`.
        labels: of all rows.
    """
    parts: list[tuple[np.ndarray, ...]] = []
    for rows, scores in stream:
        # batch by batch, so that the dense scores of a whole part are never in memory
        known = labels.rows(rows.numpy())
        row, column = np.nonzero(known)
        dense, cell = scores.numpy(), (row, column)
        parts.append((rows.numpy()[row], column, dense[cell], known[cell] > 0, top_places(dense)[cell]))
    nothing = (np.empty(0, int), np.empty(0, int), np.empty(0, np.float32), np.empty(0, bool), np.empty(0, bool))
    row_index, class_index, values, positives, in_top = (
        np.concatenate(part) for part in zip(*(parts or [nothing]), strict=True)
    )
    return Cells(row_index, class_index, values, positives, labels.num_images, labels.num_classes, in_top)

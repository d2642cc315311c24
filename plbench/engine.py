"""The training loop and the evaluation loop: one for every method, dataset and regime."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from plbench.api import Batch, Method, Progress
from plbench.cells import Cells
from plbench.errors import PlbenchError, TrainingError
from plbench.execution import Execution, evaluation_mode, widened
from plbench.inputs import Inputs
from plbench.labels import PartialLabels
from plbench.optimisation import make_average, make_optimizer
from plbench.randomness import derive_seed, seeded
from plbench.spec import Plan

EVAL_BATCH_SIZE = 256


@dataclass
class FitState:
    """All that changes while a model trains."""

    model: nn.Module
    ema: Any  # timm's ModelEmaV3, or None
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.OneCycleLR
    scaler: torch.amp.GradScaler
    method: Method
    epoch: int = 0
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def averaged(self, weights: Literal["ema", "raw"] = "ema") -> nn.Module:
        """The model with averaged weights where there are any, or with the last ones."""
        return self.ema.module if weights == "ema" and self.ema is not None else self.model

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values from which the training can go on at the end of an epoch."""
        return {
            **self.weights(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": _plain(self.schedule.state_dict()),
            "scaler": self.scaler.state_dict(),
            "method": self.method.state_dict(),
            "generator": self.method.task.generator.get_state(),
            "epoch": self.epoch,
            "step": self.step,
            "history": self.history,
        }

    def weights(self) -> dict[str, Any]:
        """Raw and averaged weights alone: what a finished run keeps."""
        ema = None if self.ema is None else own_copy(self.ema.module)
        return {"model": own_copy(self.model), "ema": ema}

    def load_weights(self, saved: dict[str, Any]) -> None:
        """Restores what `weights` gave."""
        self.model.load_state_dict(saved["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(saved["ema"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self.load_weights(state)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.method.load_state_dict(state["method"])
        self.method.task.generator.set_state(state["generator"])
        self.epoch, self.step, self.history = state["epoch"], state["step"], state["history"]


def own_copy(model: nn.Module) -> dict[str, Tensor]:
    """A model's tensors in memory of their own: a stacked head's are slices, with which all heads would be saved."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


class View:
    """A model looking at a part without augmentation: `plbench.api.TrainView`."""

    def __init__(self, state: FitState, inputs: Inputs, execution: Execution) -> None:
        """Keeps what `predict` needs."""
        self.labels = inputs.labels
        self._state, self._inputs, self._execution = state, inputs, execution

    def predict(
        self, weights: Literal["ema", "raw"] = "ema", *, dropout: bool = False, passes: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Streams (row index, scores) on the CPU; see `TrainView`."""
        model = self._state.averaged(weights)
        state = self._state
        seed = derive_seed(state.method.task.generator.initial_seed(), "view", state.step)
        yield from predict(
            model,
            state.method,
            self._inputs,
            self._execution,
            dropout_seed=seed if dropout else None,
            passes=passes,
        )


def prepare_fit(model: nn.Module, method: Method, plan: Plan, steps_per_epoch: int, execution: Execution) -> FitState:
    """Optimiser, schedule, weight average and scaler for a model that is about to train."""
    model = model.to(execution.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    num_steps = plan.epochs * steps_per_epoch
    optimizer, peaks = make_optimizer(model, method, plan)
    # torch divides by the length of the warm-up, pct_start * total_steps - 1, which must not be 0
    total_steps = num_steps + int(math.isclose(plan.pct_start * num_steps, 1.0))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=peaks, total_steps=total_steps, pct_start=plan.pct_start
    )
    fp16 = execution.precision == "float16" and execution.device.type == "cuda"
    scaler = torch.amp.GradScaler(execution.device.type, enabled=fp16)
    return FitState(model, make_average(model, plan, num_steps), optimizer, schedule, scaler, method)


def fit(
    state: FitState,
    inputs: Inputs,
    plan: Plan,
    execution: Execution,
    *,
    seed: int,
    stop_after: int | None = None,
    after_epoch: Callable[[FitState], None] = lambda state: None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Trains until the plan's last epoch, or `stop_after` epochs of it, from wherever `state` stands.

    Args:
        after_epoch: called at the end of each epoch, when `state` is complete: to save, to evaluate.
        report: called with steps done and steps in all.

    Raises:
        TrainingError: if the loss is no longer finite.
    """
    if state.method.batch_scope == "batch" and plan.accumulate > 1:
        raise PlbenchError(f"method {state.method.name!r} needs the whole batch at once; use accumulate = 1")
    steps_per_epoch = math.ceil(len(inputs) / plan.batch_size)
    last_epoch = stop_after or plan.epochs
    view = View(state, inputs, execution)
    report(state.step, last_epoch * steps_per_epoch)
    while state.epoch < last_epoch:
        start, total_loss = time.perf_counter(), 0.0
        progress = Progress(state.step, plan.epochs * steps_per_epoch, state.epoch, plan.epochs)
        state.method.epoch_start(view, progress)
        with seeded(derive_seed(seed, "dropout", state.epoch)):
            for batch in inputs.shuffled(plan.batch_size, state.epoch):
                progress = Progress(state.step, progress.num_steps, state.epoch, plan.epochs)
                total_loss += _step(state, execution.move(batch), plan, execution, progress)
                report(state.step, last_epoch * steps_per_epoch)
        state.method.epoch_end(view, progress)
        state.epoch += 1
        state.history.append(
            {
                "epoch": state.epoch,
                "step": state.step,
                "loss": total_loss / steps_per_epoch,
                "lr": state.schedule.get_last_lr()[0],
                "seconds": time.perf_counter() - start,
            }
        )
        after_epoch(state)


def predict(
    model: nn.Module,
    method: Method,
    inputs: Inputs,
    execution: Execution,
    *,
    dropout_seed: int | None = None,
    passes: int = 1,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Streams (row index [b], scores [b, C] float32) on the CPU, every row once, in order.

    The method sees no labels here: what it would be scored on stays out of its reach.

    Args:
        dropout_seed: switches dropout on, seeded.
        passes: number of passes whose scores are averaged.
    """
    num_classes, done = inputs.labels.num_classes, 0
    for rows, values in inputs.ordered(EVAL_BATCH_SIZE):
        with evaluation_mode(model, dropout=dropout_seed is not None), torch.inference_mode():
            batch = Batch(
                execution.inputs(values),
                torch.zeros(len(rows), num_classes, dtype=torch.int8, device=execution.device),
                rows.to(execution.device),
            )
            # without dropout nothing is drawn, and several models may be scored in threads of one process
            drawing = nullcontext() if dropout_seed is None else seeded(derive_seed(dropout_seed, "dropout", done))
            with drawing:
                scores = sum(_scores(model, method, batch, execution) for _ in range(passes)) / passes
        assert isinstance(scores, Tensor)
        _check_scores(scores, method, (len(rows), num_classes))
        done += len(rows)
        report(done, len(inputs))
        yield rows, scores.cpu()


def collect_cells(stream: Iterator[tuple[Tensor, Tensor]], labels: PartialLabels) -> Cells:
    """Scores at the known cells only, from a stream of dense batches: all that metrics ever see."""
    parts: list[tuple[np.ndarray, ...]] = []
    for rows, scores in stream:
        known = labels.rows(rows.numpy())
        row, column = np.nonzero(known)
        parts.append((rows.numpy()[row], column, scores.numpy()[row, column], known[row, column] > 0))
    row_index, class_index, values, positives = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Cells(row_index, class_index, values, positives, labels.num_images, labels.num_classes)


def _step(state: FitState, batch: Batch, plan: Plan, execution: Execution, progress: Progress) -> float:
    """One optimiser step; returns the loss per unit of weight."""
    state.model.train()
    state.optimizer.zero_grad(set_to_none=True)
    num_images = len(batch.index)
    total, weight = torch.zeros((), dtype=torch.float64), 0.0
    for piece in _pieces(batch, plan.accumulate):
        with execution.autocast():
            output = state.method.forward(state.model, piece, progress)
        loss = state.method.loss(widened(output), piece, progress)
        state.scaler.scale(loss.total / num_images).backward()
        total, weight = total + loss.total.detach().cpu().double(), weight + float(loss.weight)
    if not torch.isfinite(total):
        raise TrainingError(
            f"the loss of method {state.method.name!r} is {float(total)} at step {state.step} (epoch {state.epoch + 1})"
        )
    if weight > 0:
        apply_gradients(state, plan, num_images / weight)
        if state.ema is not None:
            state.ema.update(state.model, step=state.step)
    state.schedule.step()
    state.step += 1
    return float(total) / weight if weight else 0.0


def apply_gradients(state: FitState, plan: Plan, rescale: float) -> None:
    """Steps along the gradients, rescaled once from per-image to per-weight."""
    state.scaler.unscale_(state.optimizer)
    if rescale != 1.0 or plan.clip_grad is not None:
        parameters = [p for group in state.optimizer.param_groups for p in group["params"] if p.grad is not None]
        torch._foreach_mul_([p.grad for p in parameters], rescale)
        if plan.clip_grad is not None:
            nn.utils.clip_grad_norm_(parameters, plan.clip_grad)
    state.scaler.step(state.optimizer)
    state.scaler.update()


def _pieces(batch: Batch, count: int) -> Iterator[Batch]:
    if count == 1:
        yield batch
        return
    for rows in torch.arange(len(batch.index)).chunk(count):
        index = rows.to(batch.index.device)
        views = tuple(view[index] for view in batch.views)
        yield Batch(batch.inputs[index], batch.labels[index], batch.index[index], views)


def _scores(model: nn.Module, method: Method, batch: Batch, execution: Execution) -> Tensor:
    with execution.autocast():
        output = method.forward(model, batch, Progress(0, 1, 0, 1))
    return method.scores(widened(output)).float()


def _check_scores(scores: Tensor, method: Method, shape: tuple[int, int]) -> None:
    if tuple(scores.shape) != shape:
        raise TrainingError(f"method {method.name!r} gave scores of shape {tuple(scores.shape)}, not {shape}")
    if not torch.isfinite(scores).all():
        raise TrainingError(f"method {method.name!r} gave scores that are not finite")


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """A schedule's state without the functions that torch keeps in it, which a safe loader refuses."""
    return {name: value for name, value in state.items() if not callable(value)}

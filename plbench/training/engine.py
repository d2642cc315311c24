"""The training loop: one for every method, dataset and regime."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from plbench.errors import PlbenchError
from plbench.method import Method, Progress
from plbench.randomness import derive_seed, put_generators_back, seeded, state_of_generators
from plbench.spec import Plan
from plbench.training.clock import Clock
from plbench.training.dropout import Dropout
from plbench.training.evaluation import View
from plbench.training.execution import Execution
from plbench.training.hooks import Guarded
from plbench.training.inputs import Inputs
from plbench.training.optimizer import make_average, make_optimizer, make_schedule
from plbench.training.state import ControlRequest, FitState, Tally
from plbench.training.step import READ_EVERY, Network, Stepper


def prepare_fit(model: nn.Module, method: Method, plan: Plan, steps_per_epoch: int, execution: Execution) -> FitState:
    """Prepare the training of a model: optimiser, schedule, weight average and scaler.

    With several GPUs, batch normalisation statistics are synchronized.

    Args:
        model: in its initial state; moved to the device of `execution`.
        method: provides parameter groups and their rates (`param_groups`).
        steps_per_epoch: number of optimiser steps, ceil(N / batch_size).

    Raises:
        PlbenchError: if the method has no parameter to train.
    """
    # torch's synchronised batch normalisation does not run on a CPU
    if execution.world.size > 1 and execution.device.type == "cuda":
        import plbench.models.torchvision_ops  # noqa: F401  # isort: skip

        # timm's and not torch's: it also converts timm's fused normalisation and activation layers
        from timm.layers.norm_act import convert_sync_batchnorm

        model = convert_sync_batchnorm(model)
    # before creating the optimiser, which depends on the parameters' device
    model = model.to(execution.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    num_steps = plan.epochs * steps_per_epoch
    optimizer, peaks = make_optimizer(model, method, plan)
    schedule = make_schedule(optimizer, peaks, plan, steps_per_epoch)
    # bfloat16 has the range of float32, so gradients need no loss scale
    fp16 = execution.precision == "float16" and execution.device.type == "cuda"
    scaler = torch.amp.GradScaler(execution.device.type, enabled=fp16)
    average = make_average(model, plan, num_steps)
    return FitState(
        model, average, optimizer, schedule, scaler, method, Tally(execution.device), Clock(execution.device)
    )


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
    requested: Callable[[], ControlRequest] = ControlRequest,
    handle: Callable[[ControlRequest], None] = lambda request: None,
    after_step: Callable[[], None] = lambda: None,
    patience: Callable[[str], AbstractContextManager[None]] = lambda text: nullcontext(),
) -> None:
    """Train from `state` to the plan's last epoch, or for `stop_after` epochs of it.

    Args:
        after_epoch: called at the end of each epoch, when `state` is complete: to save, to evaluate.
        report: called with steps done and total steps.
        requested: called before each step, returns whether this process wants to save or to stop.
        handle: called between two steps with the combined requests, equal in all processes; `state` is then complete,
            including `generators`.
        after_step: called after each step, for profilers.
        patience: context entered while the method works between steps, with a description.

    Raises:
        TrainingError: if the loss or the gradient is no longer finite.
    """
    if state.method.batch_scope == "batch" and plan.accumulate > 1:
        raise PlbenchError(f"method {state.method.name!r} needs the whole batch at once; use accumulate = 1")
    steps_per_epoch = math.ceil(len(inputs) / plan.batch_size)
    last_epoch = stop_after or plan.epochs
    if not state.method.learns:
        state.epoch = last_epoch
        return
    view = View(state, inputs, execution)
    dropout = Dropout(seed, state.model)
    method = Guarded(state.method)
    if execution.compiles:
        # in place: keeps the names of parameters, and so checkpoints, unchanged
        state.model.compile()
    network = execution.world.wrapped(Network(state.model, method))
    stepper = Stepper(network, method, plan, execution, state.tally, state.clock, dropout)
    # exclude building the model and reading a checkpoint
    state.clock.resume()
    report(state.step, last_epoch * steps_per_epoch)
    while state.epoch < last_epoch:
        # a resumed epoch includes its earlier time
        start = time.perf_counter() - state.seconds
        # of the whole plan, even if `stop_after` ends it early: values that depend on progress must not change
        progress = opening = Progress(state.step, plan.epochs * steps_per_epoch, state.epoch, plan.epochs)
        # within an epoch, it was called before the checkpoint, which contains the method's state
        if state.batch == 0:
            with patience(f"{state.method.title} prepares epoch {state.epoch + 1} of {last_epoch}"):
                method.epoch_start(view, opening)
        # only around the steps: views in hooks between epochs have their own seed
        with _chance(state, seed, execution), dropout.installed():
            for progress, request in _steps(stepper, state, inputs, opening, requested):  # noqa: B007  # the last one counts
                report(state.step, last_epoch * steps_per_epoch)
                after_step()
                # each read synchronizes with the GPU
                if execution.reads_late and state.batch % READ_EVERY:
                    continue
                together = state.tally.read(state.method.name, steps_per_epoch)
                wanted = request if execution.world.size == 1 else together
                if (wanted.save or wanted.stop) and state.batch < steps_per_epoch:  # otherwise the epoch ends anyway
                    state.seconds = time.perf_counter() - start
                    state.generators = execution.world.gather_objects(state_of_generators(execution.device))
                    handle(wanted)
        # raises if a step was not finite, before hooks see the epoch and before it is saved
        state.tally.read(state.method.name, steps_per_epoch)
        with patience(f"{state.method.title} concludes epoch {state.epoch + 1} of {last_epoch}"):
            method.epoch_end(view, progress)
        state.epoch += 1
        loss, rate = float(state.tally.loss_sum) / steps_per_epoch, state.schedule.get_last_lr()[0]
        row = {"epoch": state.epoch, "step": state.step, "loss": loss, "lr": rate}
        state.history.append({**row, "seconds": time.perf_counter() - start})
        # at the beginning of an epoch, generators are seeded (`_chance`), so no state is saved
        state.batch, state.seconds, state.generators = 0, 0.0, None
        state.tally.loss_sum.zero_()
        after_epoch(state)


def _steps(
    stepper: Stepper, state: FitState, inputs: Inputs, progress: Progress, requested: Callable[[], ControlRequest]
) -> Iterator[tuple[Progress, ControlRequest]]:
    """Take the remaining steps of an epoch; yield each step's progress and requests."""
    execution, batch_size = stepper.execution, stepper.plan.batch_size
    state.clock.start_step()
    for batch in inputs.shuffled(batch_size, state.epoch, state.batch, execution.world):
        # before the step, since it is sent to the other processes in the step's sums (`Tally.vector`)
        request = requested()
        progress = Progress(state.step, progress.num_steps, state.epoch, progress.num_epochs)
        moved = execution.move(batch)
        # of the global batch; `batch` is this process's share, or placeholder rows
        num_images = min(batch_size, len(inputs) - state.batch * batch_size)
        num_views = sum(view.ndim == batch.inputs.ndim for view in batch.views)  # others are no images
        state.images_trained += num_images * max(1, num_views)
        state.clock.lap("data")
        stepper.take(state, moved, num_images, progress, request)
        state.batch += 1
        yield progress, request
        state.clock.start_step()


@contextmanager
def _chance(state: FitState, seed: int, execution: Execution) -> Iterator[None]:
    """Seed global generators for an epoch, from the run's seed or from a checkpoint within the epoch.

    Dropout layers do not use them (`plbench.training.dropout`), but other parts of a model or method may.
    """
    # the main process uses the same seed as a single process
    names = ("chance", state.epoch, *((execution.world.rank,) if execution.world.rank else ()))
    with seeded(derive_seed(seed, *names)):
        saved = state.generators
        # these states are only valid for the same number of processes; otherwise use the epoch's seed
        if state.batch and saved is not None and len(saved) == execution.world.size:
            put_generators_back(saved[execution.world.rank], execution.device)
        yield

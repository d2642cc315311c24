"""The training loop: one for every method, dataset and regime."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
    """Return optimiser, schedule, weight average and scaler for a model that is about to train.

    Among several GPUs, batch normalisation takes its statistics over all of them.

    Args:
        model: in its initial state; moved to the device of `execution`.
        method: says which parameters learn, and how fast (`param_groups`).
        steps_per_epoch: optimiser steps, over all processes: ceil(N / batch_size).

    Raises:
        PlbenchError: if the method has no parameter to train.
    """
    # torch's synchronised batch normalisation does not run on a CPU
    if execution.world.size > 1 and execution.device.type == "cuda":
        import plbench.models.torchvision_ops  # noqa: F401  # isort: skip

        # timm's and not torch's: it also converts timm's layers that normalise and activate in one
        from timm.layers.norm_act import convert_sync_batchnorm

        model = convert_sync_batchnorm(model)
    # before the optimiser is made, which looks at where the parameters are
    model = model.to(execution.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    num_steps = plan.epochs * steps_per_epoch
    optimizer, peaks = make_optimizer(model, method, plan)
    schedule = make_schedule(optimizer, peaks, plan, steps_per_epoch)
    # bfloat16 has the range of float32: its gradients need no loss scale
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
) -> None:
    """Train until the plan's last epoch, or `stop_after` epochs of it, from wherever `state` stands.

    Args:
        after_epoch: called at the end of each epoch, when `state` is complete: to save, to evaluate.
        report: called with steps done and steps in all.
        requested: asked before each step whether this process wants to save or to stop.
        handle: called between two steps with what any process requested, the same in all of them; `state` is
            complete then, and its `generators` are those of this moment.
        after_step: called after each step, as a profiler wants it.

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
        # in place: the names of parameters, and with them checkpoints, stay as they are
        state.model.compile()
    network = execution.world.wrapped(Network(state.model, method))
    stepper = Stepper(network, method, plan, execution, state.tally, state.clock, dropout)
    # building the model and reading a checkpoint are no part of the training
    state.clock.resume()
    report(state.step, last_epoch * steps_per_epoch)
    while state.epoch < last_epoch:
        # an epoch that is gone on with has taken this long before
        start = time.perf_counter() - state.seconds
        # of the whole plan, also where `stop_after` ends it early: what follows from progress must not change
        progress = opening = Progress(state.step, plan.epochs * steps_per_epoch, state.epoch, plan.epochs)
        # inside an epoch it was called before the checkpoint, which has the method's state
        if state.batch == 0:
            method.epoch_start(view, opening)
        # around the steps alone: what a hook looks at between epochs draws by a seed of its own
        with _chance(state, seed, execution), dropout.installed():
            for progress, request in _steps(stepper, state, inputs, opening, requested):  # noqa: B007  # the last one counts
                report(state.step, last_epoch * steps_per_epoch)
                after_step()
                # each look makes the host wait for a GPU's queue
                if execution.reads_late and state.batch % READ_EVERY:
                    continue
                together = state.tally.read(state.method.name, steps_per_epoch)
                wanted = request if execution.world.size == 1 else together
                if (wanted.save or wanted.stop) and state.batch < steps_per_epoch:  # else the epoch ends here anyway
                    state.seconds = time.perf_counter() - start
                    state.generators = execution.world.gather_objects(state_of_generators(execution.device))
                    handle(wanted)
        # raises if a step was not finite: before a hook sees the epoch, and before it is saved
        state.tally.read(state.method.name, steps_per_epoch)
        method.epoch_end(view, progress)
        state.epoch += 1
        loss, rate = float(state.tally.loss_sum) / steps_per_epoch, state.schedule.get_last_lr()[0]
        row = {"epoch": state.epoch, "step": state.step, "loss": loss, "lr": rate}
        state.history.append({**row, "seconds": time.perf_counter() - start})
        # at the beginning of an epoch generators follow from the seed (`_chance`): there is nothing to keep
        state.batch, state.seconds, state.generators = 0, 0.0, None
        state.tally.loss_sum.zero_()
        after_epoch(state)


def _steps(
    stepper: Stepper, state: FitState, inputs: Inputs, progress: Progress, requested: Callable[[], ControlRequest]
) -> Iterator[tuple[Progress, ControlRequest]]:
    """Take the steps that are left of an epoch; give after each where it stood and what was requested before it."""
    execution, batch_size = stepper.execution, stepper.plan.batch_size
    state.clock.start_step()
    for batch in inputs.shuffled(batch_size, state.epoch, state.batch, execution.world):
        # before the step, since it travels to the other processes in the step's own sums (`Tally.vector`)
        request = requested()
        progress = Progress(state.step, progress.num_steps, state.epoch, progress.num_epochs)
        moved = execution.move(batch)
        # of the global batch; what is at hand is this process's share, or stand-ins
        num_images = min(batch_size, len(inputs) - state.batch * batch_size)
        state.images_trained += num_images * max(1, len(batch.views))
        state.clock.lap("data")
        stepper.take(state, moved, num_images, progress, request)
        state.batch += 1
        yield progress, request
        state.clock.start_step()


@contextmanager
def _chance(state: FitState, seed: int, execution: Execution) -> Iterator[None]:
    """Seed what an epoch draws from global generators: by the run's seed, or as a checkpoint inside the epoch left it.

    Dropout layers do not (`plbench.training.dropout`); a model or a method may have something else that does.
    """
    # the main process draws what a single process would
    names = ("chance", state.epoch, *((execution.world.rank,) if execution.world.rank else ()))
    with seeded(derive_seed(seed, *names)):
        saved = state.generators
        # another number of processes has no use for these states; the epoch's seed then has to do
        if state.batch and saved is not None and len(saved) == execution.world.size:
            put_generators_back(saved[execution.world.rank], execution.device)
        yield

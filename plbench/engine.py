"""The training loop: one for every method, dataset and regime."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plbench.errors import PlbenchError
from plbench.method import Method, Progress
from plbench.randomness import derive_seed, put_generators_back, seeded, state_of_generators
from plbench.spec import Plan
from plbench.training import hooks
from plbench.training.clock import Clock
from plbench.training.dropout import Dropout
from plbench.training.execution import Execution
from plbench.training.inputs import Inputs
from plbench.training.optimisation import make_average, make_optimizer
from plbench.training.prediction import View
from plbench.training.step import READ_EVERY, Network, Stepper, Tally, Wish


@dataclass
class FitState:
    """All that changes while a model trains.

    Attributes:
        epoch, step: that are done. batch: those of the epoch that has begun.
        tally: the loss so far in that epoch, and what went wrong.
        seconds: that the epoch has taken so far.
        clock: where the time went, from the first step on.
        images_trained: that went through the model forward and back, each view of one on its own.
        images_viewed: that a method looked at between the epochs, forward alone.
    """

    model: nn.Module
    ema: Any  # timm's ModelEmaV3, or None
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.OneCycleLR
    scaler: torch.amp.GradScaler
    method: Method
    tally: Tally
    clock: Clock
    epoch: int = 0
    step: int = 0
    batch: int = 0
    seconds: float = 0.0
    images_trained: int = 0
    images_viewed: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    generators: list[dict[str, Any]] | None = None  # of each process, where a checkpoint was made inside an epoch

    def averaged(self, weights: Literal["ema", "raw"] = "ema") -> nn.Module:
        """The model with averaged weights where there are any, or with the last ones."""
        return self.ema.module if weights == "ema" and self.ema is not None else self.model

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values from which the training can go on, but for the states of generators."""
        return {
            **self.weights(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": _plain(self.schedule.state_dict()),
            "scaler": self.scaler.state_dict(),
            "method": self.method.state_dict(),
            "marked": self.method.marked.total(),
            "generator": self.method.task.generator.get_state(),
            "epoch": self.epoch,
            "step": self.step,
            "batch": self.batch,
            "loss_sum": float(self.tally.loss_sum),
            "seconds": self.seconds,
            "images_trained": self.images_trained,
            "images_viewed": self.images_viewed,
            "clock": self.clock.state_dict(),
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
        with hooks.calling(self.method, "load_state_dict"):
            self.method.load_state_dict(state["method"])
        self.method.marked.restart(state["marked"])
        self.method.task.generator.set_state(state["generator"])
        self.tally.loss_sum.fill_(state["loss_sum"])
        self.clock.load_state_dict(state["clock"])
        for name in ("epoch", "step", "batch", "seconds", "history"):
            setattr(self, name, state[name])
        for name in ("images_trained", "images_viewed"):  # checkpoints of older versions have none
            setattr(self, name, state.get(name, 0))


def own_copy(model: nn.Module) -> dict[str, Tensor]:
    """A model's tensors in memory of their own: a stacked head's are slices, with which all heads would be saved."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def prepare_fit(model: nn.Module, method: Method, plan: Plan, steps_per_epoch: int, execution: Execution) -> FitState:
    """Optimiser, schedule, weight average and scaler for a model that is about to train.

    Among several GPUs, batch normalisation takes its statistics over all of them.
    """
    if execution.world.size > 1 and execution.device.type == "cuda":
        model = _with_common_statistics(model)
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
    wish: Callable[[], Wish] = Wish,
    grant: Callable[[Wish], None] = lambda wish: None,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Trains until the plan's last epoch, or `stop_after` epochs of it, from wherever `state` stands.

    Args:
        after_epoch: called at the end of each epoch, when `state` is complete: to save, to evaluate.
        report: called with steps done and steps in all.
        wish: asked before each step what this process would like: to save, to stop.
        grant: told between two steps what any process wished, in all of them alike; `state` is complete then, and
            its `generators` are those of this moment.
        after_step: called after each step, as a profiler wants it.

    Raises:
        TrainingError: if the loss or the gradient is no longer finite.
    """
    if state.method.batch_scope == "batch" and plan.accumulate > 1:
        raise PlbenchError(f"method {state.method.name!r} needs the whole batch at once; use accumulate = 1")
    steps_per_epoch = math.ceil(len(inputs) / plan.batch_size)
    last_epoch = stop_after or plan.epochs
    view = View(state, inputs, execution)
    dropout = Dropout(seed, state.model)
    stepper = _stepper(state, plan, execution, dropout)
    state.clock.resume()
    report(state.step, last_epoch * steps_per_epoch)
    while state.epoch < last_epoch:
        start = time.perf_counter() - state.seconds
        progress = opening = Progress(state.step, plan.epochs * steps_per_epoch, state.epoch, plan.epochs)
        if state.batch == 0:
            with hooks.calling(state.method, "epoch_start"):
                state.method.epoch_start(view, opening)
        with _chance(state, seed, execution), dropout.installed():
            for progress, wished in _steps(stepper, state, inputs, opening, wish):  # noqa: B007  # the last one counts
                report(state.step, last_epoch * steps_per_epoch)
                after_step()
                if not execution.reads_late or state.batch % READ_EVERY == 0:
                    _grant(state, wished, steps_per_epoch, start, execution, grant)
        state.tally.read(state.method.name, steps_per_epoch)
        with hooks.calling(state.method, "epoch_end"):
            state.method.epoch_end(view, progress)
        _close_epoch(state, steps_per_epoch, start)
        after_epoch(state)


def _stepper(state: FitState, plan: Plan, execution: Execution, dropout: Dropout) -> Stepper:
    """What takes the steps, over however many processes."""
    if execution.compiles:
        state.model.compile()
    network = execution.world.wrapped(Network(state.model, state.method))
    return Stepper(network, state.method, plan, execution, state.tally, state.clock, dropout)


def _steps(
    stepper: Stepper, state: FitState, inputs: Inputs, progress: Progress, wish: Callable[[], Wish]
) -> Iterator[tuple[Progress, Wish]]:
    """Takes the steps that are left of an epoch; gives after each where it stood and what was wished before it."""
    execution, batch_size = stepper.execution, stepper.plan.batch_size
    state.clock.start_step()
    for batch in inputs.shuffled(batch_size, state.epoch, state.batch, execution.world):
        wished = wish()
        progress = Progress(state.step, progress.num_steps, state.epoch, progress.num_epochs)
        moved = execution.move(batch)
        num_images = min(batch_size, len(inputs) - state.batch * batch_size)
        state.images_trained += num_images * max(1, len(batch.views))
        state.clock.lap("data")
        stepper.take(state, moved, num_images, progress, wished)
        state.batch += 1
        yield progress, wished
        state.clock.start_step()


def _close_epoch(state: FitState, steps_per_epoch: int, start: float) -> None:
    """Notes what the epoch came to, and makes `state` that of an epoch's end."""
    state.epoch += 1
    state.history.append(
        {
            "epoch": state.epoch,
            "step": state.step,
            "loss": float(state.tally.loss_sum) / steps_per_epoch,
            "lr": state.schedule.get_last_lr()[0],
            "seconds": time.perf_counter() - start,
        }
    )
    state.batch, state.seconds, state.generators = 0, 0.0, None
    state.tally.loss_sum.zero_()


def _grant(
    state: FitState,
    wished: Wish,
    steps_per_epoch: int,
    start: float,
    execution: Execution,
    grant: Callable[[Wish], None],
) -> None:
    """Looks at what the last steps came to and gives what was wished, unless the epoch ends here anyway."""
    granted = state.tally.read(state.method.name, steps_per_epoch)
    if execution.world.size == 1:
        granted = wished
    if (granted.save or granted.stop) and state.batch < steps_per_epoch:
        state.seconds = time.perf_counter() - start
        state.generators = execution.world.gather_objects(state_of_generators(execution.device))
        grant(granted)


@contextmanager
def _chance(state: FitState, seed: int, execution: Execution) -> Iterator[None]:
    """What an epoch draws from global generators: from the run's seed, or where a checkpoint inside the epoch left it.

    Dropout layers do not (`plbench.training.dropout`); a model or a method may have something else that does.
    """
    names = ("chance", state.epoch, *((execution.world.rank,) if execution.world.rank else ()))
    with seeded(derive_seed(seed, *names)):
        saved = state.generators
        if state.batch and saved is not None and len(saved) == execution.world.size:
            put_generators_back(saved[execution.world.rank], execution.device)
        yield


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """A schedule's state without the functions that torch keeps in it, which a safe loader refuses."""
    return {name: value for name, value in state.items() if not callable(value)}


def _with_common_statistics(model: nn.Module) -> nn.Module:
    import plbench.torchvision_ops  # noqa: F401  # isort: skip
    from timm.layers.norm_act import convert_sync_batchnorm

    converted: nn.Module = convert_sync_batchnorm(model)
    return converted

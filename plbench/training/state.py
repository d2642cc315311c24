"""State of a training."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plbench.errors import TrainingError
from plbench.method import Method
from plbench.training.clock import Clock
from plbench.training.hooks import Guarded

# attributes in a checkpoint that are plain numbers or containers of them
_PLAIN = ("epoch", "step", "batch", "seconds", "images_trained", "images_viewed", "history")


@dataclass
class ControlRequest:
    """What a process requests before the next step."""

    save: bool = False
    stop: bool = False


class Tally:
    """Results of steps, on the device: the loss of an epoch, the first non-finite step, and requests of processes."""

    def __init__(self, device: torch.device) -> None:
        """Initialise to zero steps."""
        self._dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self.loss_sum = torch.zeros((), dtype=self._dtype, device=device)
        self._bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self._bad_loss = torch.zeros((), dtype=self._dtype, device=device)
        self._requests = torch.zeros(2, dtype=self._dtype, device=device)

    def vector(self, total: Tensor, weight: Tensor | float, request: ControlRequest) -> Tensor:
        """Return [4] on the device: total, weight and requests of this process, to be summed over all."""
        like = self.loss_sum
        # a single vector needs one all-reduce; it is filled on the device, since a copy from the host would synchronize
        return torch.stack(
            [
                value.to(like, non_blocking=True) if isinstance(value, Tensor) else torch.full_like(like, value)
                for value in (total, weight, request.save, request.stop)
            ]
        )

    def note(self, sums: Tensor, is_sound: Tensor, step: int) -> None:
        """Add one step.

        Args:
            sums: [4] as in `vector`, summed over all processes.
            is_sound: a bool on the device: whether loss and gradient are finite.
        """
        total, weight = sums[0], sums[1]
        # a batch without known labels has no loss; 0 / 0 would make the epoch's NaN
        self.loss_sum += torch.where(weight > 0, total / weight, 0.0)
        first = ~is_sound & (self._bad_step < 0)
        self._bad_step = torch.where(first, step, self._bad_step)
        self._bad_loss = torch.where(first, total, self._bad_loss)
        self._requests += sums[2:]

    def read(self, name: str, steps_per_epoch: int) -> ControlRequest:
        """Return requests of all processes since the last call; synchronizes with the device.

        Raises:
            TrainingError: if a step was not finite, with the `name` of the method and the epoch.
        """
        bad_step = int(self._bad_step)
        if bad_step >= 0:
            loss, place = float(self._bad_loss), f"at step {bad_step} (epoch {bad_step // steps_per_epoch + 1})"
            if math.isfinite(loss):
                raise TrainingError(f"the gradient of method {name!r} is not finite {place}, though its loss is")
            raise TrainingError(f"the loss of method {name!r} is {loss} {place}")
        save, stop = self._requests.tolist()
        # so that handled requests are not handled again
        self._requests.zero_()
        return ControlRequest(save > 0, stop > 0)


@dataclass
class FitState:
    """State of a training.

    Attributes:
        epoch, step: number completed. batch: number completed in the current epoch.
        tally: loss in the current epoch, and errors.
        seconds: of the current epoch so far.
        clock: time by phase since the first step.
        images_trained: number of forward and backward passes of images, each view counted.
        images_viewed: number of forward passes of images by the method between epochs.
    """

    model: nn.Module
    ema: Any  # timm's ModelEmaV3, or None
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
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
    generators: list[dict[str, Any]] | None = None  # of each process, for a checkpoint within an epoch

    def averaged(self, weights: Literal["ema", "raw"] = "ema") -> nn.Module:
        """Return the model with averaged weights, if there are any, or with the current ones."""
        return self.ema.module if weights == "ema" and self.ema is not None else self.model

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values for resuming the training, without generator states."""
        return {
            **self.weights(),
            "optimizer": self.optimizer.state_dict(),
            # without functions stored by torch, which a safe loader rejects
            "schedule": {name: value for name, value in self.schedule.state_dict().items() if not callable(value)},
            "scaler": self.scaler.state_dict(),
            "method": Guarded(self.method).state_dict(),
            "marked": self.method.marked.total(),
            "generator": self.method.task.generator.get_state(),
            "loss_sum": float(self.tally.loss_sum),
            "clock": self.clock.seconds(),
            **{name: getattr(self, name) for name in _PLAIN},
        }

    def weights(self) -> dict[str, Any]:
        """Return only raw and averaged weights, which a finished run keeps."""
        ema = None if self.ema is None else own_copy(self.ema.module)
        return {"model": own_copy(self.model), "ema": ema}

    def load_weights(self, saved: dict[str, Any]) -> None:
        """Restore the result of `weights`."""
        self.model.load_state_dict(saved["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(saved["ema"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        self.load_weights(state)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        Guarded(self.method).load_state_dict(state["method"])
        self.method.marked.restart(state["marked"])
        self.method.task.generator.set_state(state["generator"])
        self.tally.loss_sum.fill_(state["loss_sum"])
        self.clock.go_on_from(state["clock"])
        for name in _PLAIN:
            # checkpoints of older versions have no numbers of images
            setattr(self, name, state.get(name, 0) if name.startswith("images_") else state[name])


def own_copy(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of a model's tensors: those of a stacked head are slices, and would save all heads."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}

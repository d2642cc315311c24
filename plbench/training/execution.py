"""Where and how precisely a model computes: device, autocast, module modes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plbench.method import Batch
from plbench.spec import Precision
from plbench.training.distributed import ALONE, World


@dataclass(frozen=True)
class Execution:
    """Where and how precisely a model computes, and whether it goes through `torch.compile` before it trains."""

    device: torch.device
    precision: Precision
    world: World = ALONE
    compiles: bool = False

    @property
    def reads_late(self) -> bool:
        """Whether a look at a value would make the host wait for the device."""
        return self.device.type != "cpu"

    def autocast(self) -> torch.autocast:
        """Return mixed precision for the forward pass; losses stay in float32."""
        enabled = self.precision != "float32"
        return torch.autocast(self.device.type, getattr(torch, self.precision), enabled=enabled)

    def move(self, batch: Batch) -> Batch:
        """Return the batch on the device."""
        inputs, labels, index = (self.inputs(values) for values in (batch.inputs, batch.labels, batch.index))
        return Batch(inputs, labels, index, tuple(self.inputs(view) for view in batch.views))

    def inputs(self, values: Tensor) -> Tensor:
        """Return values on the device, images channels-last."""
        # from memory that is not pinned, a copy waits for all that the GPU has to do
        if self.device.type == "cuda" and values.device.type == "cpu":
            values = values.pin_memory()
        layout = torch.channels_last if values.ndim == 4 else torch.preserve_format
        return values.to(self.device, memory_format=layout, non_blocking=True)


class evaluation_mode:
    """Puts a model in eval mode inside the scope, dropout layers apart where asked, and puts it back after."""

    def __init__(self, model: nn.Module, *, dropout: bool = False) -> None:
        """Remember each module's mode."""
        # of each by itself: a method may keep some modules in eval mode, which model.train() would wake
        self._modes = [(module, module.training) for module in model.modules()]
        self._dropout = dropout

    def __enter__(self) -> None:
        for module, _ in self._modes:
            module.training = self._dropout and isinstance(module, nn.modules.dropout._DropoutNd)

    def __exit__(self, *exception: object) -> None:
        for module, training in self._modes:
            module.training = training


def mapped(output: Any, change: Callable[[Tensor], Any]) -> Any:
    """Return a model output with each of its tensors changed, through dictionaries and sequences."""
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, dict):
        return {name: mapped(value, change) for name, value in output.items()}
    if isinstance(output, (tuple, list)):
        return type(output)(mapped(value, change) for value in output)
    return output


def widened(output: Any) -> Any:
    """Return a model output with its half-precision tensors as float32."""
    return mapped(output, lambda values: values.float() if values.dtype in (torch.float16, torch.bfloat16) else values)

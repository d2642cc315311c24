"""Execution of models: device, autocast, module modes."""

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
    """Device, precision and world of a model, and whether it is compiled by `torch.compile` for training."""

    device: torch.device
    precision: Precision
    world: World = ALONE
    compiles: bool = False

    @property
    def reads_late(self) -> bool:
        """Whether reading a value would synchronize the host with the device."""
        return self.device.type != "cpu"

    def autocast(self) -> torch.autocast:
        """Return the autocast context for the forward pass; losses stay in float32."""
        enabled = self.precision != "float32"
        return torch.autocast(self.device.type, getattr(torch, self.precision), enabled=enabled)

    def move(self, batch: Batch) -> Batch:
        """Return the batch on the device."""
        inputs, labels, index = (self.inputs(values) for values in (batch.inputs, batch.labels, batch.index))
        return Batch(inputs, labels, index, tuple(self.inputs(view) for view in batch.views))

    def inputs(self, values: Tensor) -> Tensor:
        """Return values on the device, images channels-last."""
        # copies from memory that is not pinned wait for all queued GPU work
        if self.device.type == "cuda" and values.device.type == "cpu":
            values = values.pin_memory()
        layout = torch.channels_last if values.ndim == 4 else torch.preserve_format
        return values.to(self.device, memory_format=layout, non_blocking=True)


class evaluation_mode:
    """Sets a model to eval mode inside the scope, optionally except dropout layers, and restores modes after it."""

    def __init__(self, model: nn.Module, *, dropout: bool = False) -> None:
        """Remember each module's mode."""
        # per module: a method may keep some modules in eval mode, which model.train() would reset
        self._modes = [(module, module.training) for module in model.modules()]
        self._dropout = dropout

    def __enter__(self) -> None:
        for module, _ in self._modes:
            module.training = self._dropout and isinstance(module, nn.modules.dropout._DropoutNd)

    def __exit__(self, *exception: object) -> None:
        for module, training in self._modes:
            module.training = training


def mapped(output: Any, change: Callable[[Tensor], Any]) -> Any:
    """Apply a function to all tensors of a model output, in nested dictionaries and sequences."""
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, dict):
        return {name: mapped(value, change) for name, value in output.items()}
    if isinstance(output, (tuple, list)):
        return type(output)(mapped(value, change) for value in output)
    return output


def widened(output: Any) -> Any:
    """Return a model output with half-precision tensors converted to float32."""
    return mapped(output, lambda values: values.float() if values.dtype in (torch.float16, torch.bfloat16) else values)

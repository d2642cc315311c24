"""Linear layers of H heads in one tensor; each head's parameters are slices of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def layers_of(model: nn.Module) -> list[nn.Module] | None:
    """Return the layers of a head in order: linear, ReLU and dropout; None for any other model."""
    if isinstance(model, nn.Sequential):
        parts = [layers_of(child) for child in model]
        return None if any(part is None for part in parts) else [layer for part in parts if part for layer in part]
    if type(model) is nn.Identity:
        return []
    # exact types: a subclass may compute something else
    return [model] if type(model) in (nn.Linear, nn.ReLU, nn.Dropout) else None


class StackedLinear:
    """One linear layer of each of H heads.

    Gradients are written in place: on a CPU, allocating memory in every step costs more than the product itself.

    Attributes:
        weight: [H, out, in]. bias: [H, out], or None. weight_grad, bias_grad: of the same shapes.
    """

    def __init__(self, layers: Sequence[nn.Linear], averages: Sequence[nn.Linear], dtype: torch.dtype) -> None:
        """Make the layers' parameters, gradients and averages slices of new tensors.

        Args:
            layers: one per head, of equal shapes.
            averages: the same layer of each head's averaged model; empty without averages.
            dtype: of the products.
        """
        self.dtype = dtype
        self._tenants: list[Tensor] = []
        self._averaged: list[tuple[Tensor, Tensor]] = []
        # requires_grad only so that autograd calls `_Product.backward`, which writes all gradients itself
        weight, self.weight_grad = self._adopt("weight", layers, averages)
        self.weight = weight.requires_grad_()
        self.bias: Tensor | None = None
        self.bias_grad: Tensor | None = None
        if layers[0].bias is not None:
            # no requires_grad: it is passed to the product within the layer, invisible to autograd
            self.bias, self.bias_grad = self._adopt("bias", layers, averages)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Map inputs [B, in], shared by all heads, or [H, B, in] to outputs [H, B, out]."""
        outputs: Tensor = _Product.apply(inputs, self.weight, self)  # type: ignore[no-untyped-call]
        return outputs

    def move_average(self, share: float, heads: Sequence[int] | None = None) -> None:
        """Move the averages towards the weights by a fraction, optionally for some heads only."""
        for average, weight in self._averaged:
            if heads is None:
                average.lerp_(weight, share)
            else:
                for head in heads:
                    average[head].lerp_(weight[head], share)

    def release(self) -> None:
        """Copy the parameters back to separate memory for every layer."""
        for parameter in self._tenants:
            # a slice would keep the tensors of all heads alive
            parameter.data = parameter.data.clone()
            parameter.grad = None

    def _adopt(self, name: str, layers: Sequence[nn.Linear], averages: Sequence[nn.Linear]) -> tuple[Tensor, Tensor]:
        """Return stacked parameters and gradients; each head's own become slices of them."""
        parameters, averaged = ([getattr(layer, name) for layer in of_each] for of_each in (layers, averages))
        values = self._stacked(parameters)
        gradients = torch.zeros_like(values)
        for parameter, own in zip(parameters, gradients, strict=True):
            parameter.grad = own
        if averaged:
            # the same memory, detached: autograd must not follow the average
            self._averaged.append((self._stacked(averaged), values.detach()))
        return values, gradients

    def _stacked(self, parameters: Sequence[Tensor]) -> Tensor:
        stacked = torch.stack([parameter.data for parameter in parameters])
        for parameter, own in zip(parameters, stacked, strict=True):
            # through .data: the optimiser refers to this parameter object
            parameter.data = own
        self._tenants += parameters
        return stacked


class _Product(torch.autograd.Function):
    """Products of all heads at once: one large product if heads share their inputs, otherwise a batched one."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, layer: StackedLinear) -> Tensor:
        inputs, weight = inputs.to(layer.dtype), weight.to(layer.dtype)
        ctx.save_for_backward(inputs, weight)
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(layer.dtype)
        if inputs.ndim == 2:
            flat = F.linear(inputs, weight.flatten(0, 1), None if bias is None else bias.flatten())
            heads: Tensor = flat.unflatten(1, weight.shape[:2]).transpose(0, 1)
            return heads
        if bias is None:
            return torch.bmm(inputs, weight.mT)
        return torch.baddbmm(bias[:, None], inputs, weight.mT)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        (gradient,) = gradients
        inputs, weight = ctx.saved_tensors
        layer: StackedLinear = ctx.layer
        if inputs.ndim == 2:
            _product(gradient.transpose(0, 1).flatten(1).T, inputs, layer.weight_grad.flatten(0, 1))
        else:
            _product(gradient.mT, inputs, layer.weight_grad)
        if layer.bias_grad is not None:
            # in the parameter's dtype: a half-precision sum over the batch would lose digits
            torch.sum(gradient, dim=1, dtype=layer.bias_grad.dtype, out=layer.bias_grad)
        # None for the weight: its gradient is already written, and autograd would add to it
        if not ctx.needs_input_grad[0]:
            return None, None, None
        return (gradient @ weight if inputs.ndim == 3 else (gradient @ weight).sum(0)), None, None


def _product(one: Tensor, other: Tensor, out: Tensor) -> None:
    """Write a product in place, widened from half precision."""
    if out.dtype == one.dtype:
        torch.matmul(one, other, out=out)
    else:
        out.copy_(one @ other)

"""Linear layers of H heads in one tensor, of which each head's own parameters are slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def layers_of(model: nn.Module) -> list[nn.Module] | None:
    """Return the layers of a head in order: linear ones, ReLU and dropout. None for any other model."""
    if isinstance(model, nn.Sequential):
        parts = [layers_of(child) for child in model]
        return None if any(part is None for part in parts) else [layer for part in parts if part for layer in part]
    if type(model) is nn.Identity:
        return []
    # exactly these: a subclass may compute something else
    return [model] if type(model) in (nn.Linear, nn.ReLU, nn.Dropout) else None


class StackedLinear:
    """One linear layer of each of H heads.

    Gradients are written where they stay: memory that is new in every step costs a CPU more than the product itself.

    Attributes:
        weight: [H, out, in]. bias: [H, out], or None. weight_grad, bias_grad: of the same shapes.
    """

    def __init__(self, layers: Sequence[nn.Linear], averages: Sequence[nn.Linear], dtype: torch.dtype) -> None:
        """Make the layers' parameters, gradients and averages slices of new tensors.

        Args:
            layers: one of each head, of equal shapes.
            averages: the same layer of each head's averaged model; none where there is no average.
            dtype: to multiply in.
        """
        self.dtype = dtype
        self._tenants: list[Tensor] = []
        self._averaged: list[tuple[Tensor, Tensor]] = []
        # requires a gradient only so that autograd calls `_Product.backward`, which writes all gradients itself
        weight, self.weight_grad = self._adopt("weight", layers, averages)
        self.weight = weight.requires_grad_()
        self.bias: Tensor | None = None
        self.bias_grad: Tensor | None = None
        if layers[0].bias is not None:
            # requires none: it reaches the product with the layer, not as an input that autograd sees
            self.bias, self.bias_grad = self._adopt("bias", layers, averages)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Map inputs [B, in] that all heads share, or [H, B, in], to outputs [H, B, out]."""
        outputs: Tensor = _Product.apply(inputs, self.weight, self)  # type: ignore[no-untyped-call]
        return outputs

    def move_average(self, share: float, heads: Sequence[int] | None = None) -> None:
        """Move the averages by a share of the way towards the weights; those of some heads alone, where given."""
        for average, weight in self._averaged:
            if heads is None:
                average.lerp_(weight, share)
            else:
                for head in heads:
                    average[head].lerp_(weight[head], share)

    def release(self) -> None:
        """Give every layer its parameters back, in memory of their own."""
        for parameter in self._tenants:
            # a slice would keep the tensors of all heads alive
            parameter.data = parameter.data.clone()
            parameter.grad = None

    def _adopt(self, name: str, layers: Sequence[nn.Linear], averages: Sequence[nn.Linear]) -> tuple[Tensor, Tensor]:
        """Return parameters and gradients of all heads, of which each head's are slices from now on."""
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
            # through .data: the parameter stays the object that its optimiser knows
            parameter.data = own
        self._tenants += parameters
        return stacked


class _Product(torch.autograd.Function):
    """Products of all heads at once: one large one where the heads share their inputs, else one batched one."""

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
            # in the parameter's type: a sum over the batch in half precision would lose digits
            torch.sum(gradient, dim=1, dtype=layer.bias_grad.dtype, out=layer.bias_grad)
        # None for the weight: its gradient lies where it belongs, and autograd would add to it
        if not ctx.needs_input_grad[0]:
            return None, None, None
        return (gradient @ weight if inputs.ndim == 3 else (gradient @ weight).sum(0)), None, None


def _product(one: Tensor, other: Tensor, out: Tensor) -> None:
    """Write a product where it stays, widened if it is of half precision."""
    if out.dtype == one.dtype:
        torch.matmul(one, other, out=out)
    else:
        out.copy_(one @ other)

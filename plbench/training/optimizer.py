"""Optimiser, parameter groups, schedule and weight average of one training plan."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, OneCycleLR

from plbench.errors import PlbenchError
from plbench.method import Method
from plbench.models.backbones import Backbone
from plbench.spec import Plan
from plbench.training.hooks import Guarded
from plbench.training.state import FitState


def make_optimizer(model: nn.Module, method: Method, plan: Plan) -> tuple[torch.optim.Optimizer, list[float]]:
    """Return the plan's optimiser and the peak rate of each group; 1-D parameters (biases, norms) are not decayed.

    CSL's loss is a sum over the images of a step; here it is a mean. Adam is invariant to a constant factor on the
    gradient, but then what is added to the gradient (the coupled decay) and to its root mean square (eps) must be
    scaled, too: "adam-coupled" divides both by the number of images of a step.

    Args:
        model: on its final device, which determines whether the optimiser is fused.
        method: its `param_groups` may scale a group's rate by `lr_scale`, which replaces the plan's multiplier.

    Raises:
        PlbenchError: if there is no parameter to train.
    """
    images_per_step = plan.batch_size if plan.optimizer == "adam-coupled" else 1
    decay = plan.weight_decay / images_per_step
    groups: list[dict[str, Any]] = []
    peaks: list[float] = []
    for parameters, scale in _scaled_groups(model, method, plan):
        for decays in (True, False):
            chosen = [p for p in parameters if p.requires_grad and (p.ndim > 1) == decays]
            if chosen:
                # one-cycle sets the rate before the first step; the other schedules start from this one
                rate = plan.lr * scale
                groups.append({"params": chosen, "lr": rate, "weight_decay": decay if decays else 0.0})
                peaks.append(rate)
    if not groups:
        raise PlbenchError(f"method {method.name!r} has no parameter to train")
    fused = groups[0]["params"][0].device.type in ("cpu", "cuda")  # one pass over each parameter
    if plan.optimizer == "sgd":
        sgd = torch.optim.SGD(groups, lr=plan.lr, momentum=plan.momentum, nesterov=plan.nesterov, fused=fused)
        if plan.momentum:
            # initialized as by the first step, which might be suppressed on the device
            for parameter in (p for group in groups for p in group["params"]):
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd, peaks
    kind = torch.optim.AdamW if plan.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=plan.lr, eps=1e-8 / images_per_step, fused=fused), peaks


def _scaled_groups(model: nn.Module, method: Method, plan: Plan) -> Iterator[tuple[list[nn.Parameter], float]]:
    """Yield the method's parameter groups with their rate factors; the head is separate if its factor differs."""
    backbone = {id(p) for module in model.modules() if isinstance(module, Backbone) for p in module.parameters()}
    for group in Guarded(method).param_groups(model):
        parameters = list(group["params"])
        if "lr_scale" in group or plan.head_lr_multiplier == 1.0:
            yield parameters, group.get("lr_scale", 1.0)
        else:
            yield [p for p in parameters if id(p) in backbone], 1.0
            yield [p for p in parameters if id(p) not in backbone], plan.head_lr_multiplier


def make_schedule(
    optimizer: torch.optim.Optimizer, peaks: list[float], plan: Plan, steps_per_epoch: int
) -> LRScheduler:
    """Return the learning rate schedule of a plan.

    Args:
        optimizer, peaks: from `make_optimizer`.
        steps_per_epoch: number of optimiser steps.
    """
    num_steps = plan.epochs * steps_per_epoch
    if plan.schedule == "one-cycle":
        # torch divides by the length of the warm-up, pct_start * total_steps - 1, which must not be 0
        total_steps = num_steps + int(math.isclose(plan.pct_start * num_steps, 1.0))
        return OneCycleLR(
            optimizer,
            max_lr=peaks,
            total_steps=total_steps,
            pct_start=plan.pct_start,
            cycle_momentum=plan.optimizer != "sgd",  # SGD uses the plan's momentum; Adam's is cycled
        )
    if plan.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=num_steps)
    epochs, factor = plan.steps
    return MultiStepLR(optimizer, [epoch * steps_per_epoch for epoch in epochs], gamma=factor)


def make_average(model: nn.Module, plan: Plan, num_steps: int) -> Any:
    """Return timm's EMA with warm-up, a copy of the model; None if disabled by the plan, or the run is too short.

    Its horizon 1 / (1 - decay) is capped at `ema_horizon`, a share of the run's steps.
    """
    horizon = plan.ema_horizon * num_steps
    # an average over one step is the weights themselves
    if plan.ema_decay == 0 or horizon <= 1:
        return None
    import plbench.models.torchvision_ops  # noqa: F401  # isort: skip
    from timm.utils.model_ema import ModelEmaV3

    return ModelEmaV3(model, decay=min(plan.ema_decay, 1 - 1 / horizon), use_warmup=True)


def scaled_gradients(state: FitState, plan: Plan, rescale: float | Tensor) -> Tensor:
    """Rescale gradients from per-image to per-weight by a factor on the host or the device, and clip them.

    Returns:
        Whether they are finite, a bool on their device. For float16, the loss scaler checks and handles it.
    """
    parameters = _with_gradient(state)
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.ones((), dtype=torch.bool, device=next(state.model.parameters()).device)
    if isinstance(rescale, Tensor) or rescale != 1.0:
        # before the scaler's check: a batch with weight 0 has a non-finite factor, so the scaler skips the step
        torch._foreach_mul_(gradients, rescale.to(gradients[0].dtype) if isinstance(rescale, Tensor) else rescale)
    state.scaler.unscale_(state.optimizer)
    # after both scalings, since the limit is on the gradient per unit of weight; also computed without a limit, since
    # the norm is finite only if every gradient is
    norm = nn.utils.get_total_norm(gradients)
    if plan.clip_grad is not None:
        nn.utils.clip_grads_with_norm_(parameters, plan.clip_grad, norm)
    return torch.ones_like(norm, dtype=torch.bool) if state.scaler.is_enabled() else torch.isfinite(norm)


def _with_gradient(state: FitState) -> list[nn.Parameter]:
    return [p for group in state.optimizer.param_groups for p in group["params"] if p.grad is not None]


def update(state: FitState, allowed: Tensor | None = None) -> None:
    """Take the optimiser's step with rescaled gradients, unless `allowed`, a bool on the device, is False."""
    optimizer = state.optimizer
    # the scaler skips non-finite gradients by itself, including those of a weight of 0 (`scaled_gradients`)
    if allowed is None or state.scaler.is_enabled():
        state.scaler.step(optimizer)
        state.scaler.update()
    elif getattr(optimizer, "_step_supports_amp_scaling", False):  # fused: it reads `found_inf` on the device
        optimizer.found_inf = (~allowed).to(torch.float32)  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.found_inf  # type: ignore[attr-defined]
    # otherwise this has to synchronize with the device
    elif allowed:
        optimizer.step()


def apply_gradients(state: FitState, plan: Plan, rescale: float) -> None:
    """Rescale gradients from per-image to per-weight, clip them and step, even if they are not finite."""
    parameters = _with_gradient(state)
    if rescale != 1.0:
        torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], rescale)
    if plan.clip_grad is not None:
        nn.utils.clip_grad_norm_(parameters, plan.clip_grad)
    state.optimizer.step()


class FusedSteps:
    """Steps of many fused optimisers without torch's bookkeeping, which takes as long as the step itself.

    Each optimiser keeps its own state, groups and rates. They must have taken a step before, which creates their
    states.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Collect parameters, gradients and moments, which must not be reallocated from now on."""
        self._kernel = torch._fused_adamw_ if isinstance(optimizers[0], torch.optim.AdamW) else torch._fused_adam_
        self._steps: list[Tensor] = []
        self._calls: list[tuple[dict[str, Any], tuple[list[Tensor], ...]]] = []
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                parameters = group["params"]
                states = [optimizer.state[parameter] for parameter in parameters]
                moments = [[state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step")]
                gradients = [parameter.grad for parameter in parameters]
                # the group and not its values, since the schedule changes its rate
                self._calls.append((group, (parameters, gradients, *moments)))
                self._steps += moments[2]

    @torch.no_grad()
    def step(self) -> None:
        """Do the same as `step` of each optimiser."""
        # the kernels read the step counts, which their caller has to increment
        torch._foreach_add_(self._steps, 1)
        for group, (parameters, gradients, means, squares, steps) in self._calls:
            (beta1, beta2), settings = group["betas"], {name: group[name] for name in ("lr", "weight_decay", "eps")}
            tensors = (parameters, gradients, means, squares, list[Tensor](), steps)  # no maxima: amsgrad is off
            self._kernel(*tensors, **settings, beta1=beta1, beta2=beta2, amsgrad=False, maximize=False)

"""Optimiser, parameter groups and weight average of one training plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from plbench.errors import PlbenchError
from plbench.method import Method
from plbench.spec import Plan
from plbench.training.hooks import Guarded
from plbench.training.state import FitState


def make_optimizer(model: nn.Module, method: Method, plan: Plan) -> tuple[torch.optim.Optimizer, list[float]]:
    """Return AdamW, or Adam as CSL's code runs it; 1-D parameters (biases, norms) do not decay. Also the peak rates.

    CSL's loss is a sum over the images of a step, here it is their mean. Adam does not notice a constant factor on its
    gradient, but what is added to the gradient (the coupled decay) and to its root mean square (eps) is then as much
    larger beside it: both are divided by the number of images of a step.

    Args:
        model: on its device, on which it depends whether the optimiser is fused.
        method: its `param_groups` may scale a group's rate by `lr_scale`.

    Raises:
        PlbenchError: if there is no parameter to train.
    """
    images_per_step = plan.batch_size if plan.optimizer == "adam-coupled" else 1
    decay = plan.weight_decay / images_per_step
    groups: list[dict[str, Any]] = []
    peaks: list[float] = []
    for group in Guarded(method).param_groups(model):
        parameters = [p for p in group["params"] if p.requires_grad]
        for decays in (True, False):
            chosen = [p for p in parameters if (p.ndim > 1) == decays]
            if chosen:
                groups.append({"params": chosen, "weight_decay": decay if decays else 0.0})
                peaks.append(plan.lr * group.get("lr_scale", 1.0))
    if not groups:
        raise PlbenchError(f"method {method.name!r} has no parameter to train")
    kind = torch.optim.AdamW if plan.optimizer == "adamw" else torch.optim.Adam
    fused = groups[0]["params"][0].device.type in ("cpu", "cuda")  # one pass over each parameter
    # the schedule sets each group's own rate before the first step: this one is never used
    return kind(groups, lr=plan.lr, eps=1e-8 / images_per_step, fused=fused), peaks


def make_average(model: nn.Module, plan: Plan, num_steps: int) -> Any:
    """Return timm's EMA with warm-up, a copy of the model; None where the plan wants none, or the run is too short.

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
    """Rescale gradients once, from per-image to per-weight, by a factor on the host or on the device; and clip them.

    Returns:
        Whether they are finite, a bool on their device. Of float16 it is the loss scaler that looks, and fixes.
    """
    parameters = _with_gradient(state)
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.ones((), dtype=torch.bool, device=next(state.model.parameters()).device)
    if isinstance(rescale, Tensor) or rescale != 1.0:
        # before the scaler looks: a batch without any weight has a factor that is not finite, and it skips the step
        torch._foreach_mul_(gradients, rescale.to(gradients[0].dtype) if isinstance(rescale, Tensor) else rescale)
    state.scaler.unscale_(state.optimizer)
    # after both scalings, as the limit is on the gradient per unit of weight; without a limit, too:
    # the norm is finite only if every gradient is
    norm = nn.utils.get_total_norm(gradients)
    if plan.clip_grad is not None:
        nn.utils.clip_grads_with_norm_(parameters, plan.clip_grad, norm)
    return torch.ones_like(norm, dtype=torch.bool) if state.scaler.is_enabled() else torch.isfinite(norm)


def _with_gradient(state: FitState) -> list[nn.Parameter]:
    return [p for group in state.optimizer.param_groups for p in group["params"] if p.grad is not None]


def update(state: FitState, allowed: Tensor | None = None) -> None:
    """Take the optimiser's step along gradients that are scaled, unless `allowed`, a bool on the device, is False."""
    optimizer = state.optimizer
    # the scaler suppresses by itself what is not finite, which a weight of 0 has become in `scaled_gradients`
    if allowed is None or state.scaler.is_enabled():
        state.scaler.step(optimizer)
        state.scaler.update()
    elif getattr(optimizer, "_step_supports_amp_scaling", False):  # fused: it looks at `found_inf` on the device
        optimizer.found_inf = (~allowed).to(torch.float32)  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.found_inf  # type: ignore[attr-defined]
    # no other way is left than to wait for the device
    elif allowed:
        optimizer.step()


def apply_gradients(state: FitState, plan: Plan, rescale: float) -> None:
    """Step along the gradients, rescaled once from per-image to per-weight and then clipped, whatever they are."""
    parameters = _with_gradient(state)
    if rescale != 1.0:
        torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], rescale)
    if plan.clip_grad is not None:
        nn.utils.clip_grad_norm_(parameters, plan.clip_grad)
    state.optimizer.step()


class FusedSteps:
    """Steps of many fused optimisers without the bookkeeping that torch does at each: as much time as the step itself.

    Each optimiser keeps its own state, groups and rates. They must have taken a step before, which makes their states.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Collect parameters, gradients and moments; they must stay where they are from now on."""
        self._kernel = torch._fused_adamw_ if isinstance(optimizers[0], torch.optim.AdamW) else torch._fused_adam_
        self._steps: list[Tensor] = []
        self._calls: list[tuple[dict[str, Any], tuple[list[Tensor], ...]]] = []
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                parameters = group["params"]
                states = [optimizer.state[parameter] for parameter in parameters]
                moments = [[state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step")]
                gradients = [parameter.grad for parameter in parameters]
                # the group and not its values: the schedule moves its rate
                self._calls.append((group, (parameters, gradients, *moments)))
                self._steps += moments[2]

    @torch.no_grad()
    def step(self) -> None:
        """Do what `step` of each optimiser would."""
        # the kernels read the counts of steps and leave it to their caller to raise them
        torch._foreach_add_(self._steps, 1)
        for group, (parameters, gradients, means, squares, steps) in self._calls:
            (beta1, beta2), settings = group["betas"], {name: group[name] for name in ("lr", "weight_decay", "eps")}
            tensors = (parameters, gradients, means, squares, list[Tensor](), steps)  # no maxima: amsgrad is off
            self._kernel(*tensors, **settings, beta1=beta1, beta2=beta2, amsgrad=False, maximize=False)

"""Optimiser, parameter groups and weight average of one training plan."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from plbench.api import Method
from plbench.errors import PlbenchError
from plbench.spec import Plan


def make_optimizer(model: nn.Module, method: Method, plan: Plan) -> tuple[torch.optim.Optimizer, list[float]]:
    """AdamW, or Adam with coupled decay; 1-D parameters (biases, norms) do not decay. Also the peak rates."""
    groups: list[dict[str, Any]] = []
    peaks: list[float] = []
    for group in method.param_groups(model):
        parameters = [p for p in group["params"] if p.requires_grad]
        for decays in (True, False):
            chosen = [p for p in parameters if (p.ndim > 1) == decays]
            if chosen:
                groups.append({"params": chosen, "weight_decay": plan.weight_decay if decays else 0.0})
                peaks.append(plan.lr * group.get("lr_scale", 1.0))
    if not groups:
        raise PlbenchError(f"method {method.name!r} has no parameter to train")
    kind = torch.optim.AdamW if plan.optimizer == "adamw" else torch.optim.Adam
    fused = groups[0]["params"][0].device.type in ("cpu", "cuda")  # one pass over each parameter
    return kind(groups, lr=plan.lr, fused=fused), peaks


def make_average(model: nn.Module, plan: Plan, num_steps: int) -> Any:
    """Timm's EMA with warm-up. Its horizon 1 / (1 - decay) is capped at a share of the run's steps."""
    horizon = plan.ema_horizon * num_steps
    if plan.ema_decay == 0 or horizon <= 1:
        return None
    import plbench.torchvision_ops  # noqa: F401  # isort: skip
    from timm.utils.model_ema import ModelEmaV3

    return ModelEmaV3(model, decay=min(plan.ema_decay, 1 - 1 / horizon), use_warmup=True)

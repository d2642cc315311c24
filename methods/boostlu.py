"""BoostLU: the positive part of class activation maps is scaled up before they are pooled (Kim et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from plbench.api import Task, tunable

from .large_loss import Rule
from .ll_cp import LLCp

_RULES: dict[str, Rule] = {"none": "none", "ll-r": "reject", "ll-ct": "correct", "ll-cp": "correct-for-good"}


class BoostLU(LLCp):
    """A class's logit is the mean over places of `alpha M` where `M > 0`, else of `M`; M: its class activation map.

    M is a 1x1 convolution of the backbone's last feature map, so the head and the pooling that a run asks for are not
    used. Models trained with assumed negatives have maps of the right shape and too low a scale, the paper finds; with
    alpha = 1 this is a linear head on mean-pooled features. The map is boosted in training and in evaluation alike. The
    loss is cross-entropy with unknown labels as negatives, and one of the rules of `ll-r`, `ll-ct` and `ll-cp`, whose
    parameters it takes too (the paper reports all three); `rule=none` has none.
    """

    name = "boostlu"
    title = "BoostLU"
    paper = "Kim et al., CVPR 2023, arXiv 2304.01804"
    version = "2"  # 1: what ll-r rejected and ll-ct corrected in one epoch was positive in later ones
    needs = frozenset({"feature_map"})

    class Params(LLCp.Params):
        """The paper's alpha, and the rule that is boosted."""

        alpha: float = tunable(5.0, 1.0, 20.0, log=True, ge=0.0, description="alpha, on the positive part of the maps")
        rule: Literal["ll-r", "ll-ct", "ll-cp", "none"] = Field(
            "ll-r", description="what becomes of unknown labels with large losses"
        )

    def __init__(self, params: Any, task: Task) -> None:
        """Takes the rule from the parameters.

        Raises:
            PlbenchError: as `LLCp`, where the rule is ll-cp.
        """
        self.rule = _RULES[params.rule]
        super().__init__(params, task)

    def build(self, backbone: nn.Module, make_head: Callable[[], nn.Module]) -> nn.Module:
        """The backbone, which gives feature maps, and a head of boosted activation maps."""
        num_features = int(backbone.num_features)  # type: ignore[arg-type]
        return nn.Sequential(backbone, BoostedHead(num_features, self.task.num_classes, self.params.alpha))


class BoostedHead(nn.Module):
    """Class activation maps of a 1x1 convolution, their positive part times alpha, averaged over places."""

    def __init__(self, num_channels: int, num_classes: int, alpha: float) -> None:
        """A convolution with bias, as in the released code."""
        super().__init__()
        self.convolution = nn.Conv2d(num_channels, num_classes, kernel_size=1)
        self.alpha = alpha

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, D, h, w] to logits [B, C]."""
        activation = self.convolution(features)
        return torch.where(activation > 0, self.alpha * activation, activation).mean(dim=(-2, -1))

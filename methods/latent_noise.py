"""Latent noise: whether a class is there, and whether one would say so, are two questions (Misra et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from plbench.api import Batch, Loss, Method, MethodParams, Progress, tunable


class LatentNoise(Method):
    """`-sum_P log h - sum_U log(1 - h)`, `h = r(y=1|z=1) v + r(y=1|z=0) (1 - v)`, scored by v.

    v is the probability that a class is present (z = 1) and r that an annotator mentions it (y = 1), given that it is
    present or not; both are functions of the image. A present class that nobody mentioned costs little where r says
    that it is seldom mentioned. An unknown label is one that was not mentioned.

    The released code computes r from four logits, a softmax over the joint states of y and z that is then conditioned
    on z: `r(y=1|z)` is then the sigmoid of a difference of two of them, and that difference is what a head gives here.
    Presence and the two relevances have a head of their own each, of the kind that the run asks for, on shared
    features. They start where the released code starts them: a class is present with probability 0.0014, mentioned
    with 0.96 if it is and with 0.04 if it is not. That start decides which of the two becomes the classifier: from
    p = 1/2 it is relevance, and presence tells nothing. Ours: the heads of relevance learn at `relevance_rate` times
    the rate. Their gradients are small, by a factor of v, and with plain descent so are their steps; with Adam not.

    Written for data without verified negatives: where there are some, presence is known there and nothing else is, so
    that they add `-log(1 - v)`.
    """

    name = "latent-noise"
    title = "Latent noise (visual)"
    paper = "Misra et al., CVPR 2016, arXiv 1512.06974"
    tags = frozenset({"single-positive", "system"})

    class Params(MethodParams):
        """The released code's start. The rate of relevance is ours.

        It is the best of 1, 0.1, 0.01 and 0.001 on the validation part of `scenes` under FPC-300.
        """

        presence_start: float = Field(-6.58, description="logit of v, before training")
        relevance_start: float = Field(
            3.29, description="logit of r(y=1|z=1), and minus that of r(y=1|z=0), before training"
        )
        relevance_rate: float = tunable(
            0.01, 0.001, 1.0, log=True, gt=0.0, description="learning rate of relevance over that of presence; ours"
        )

    def build(self, backbone: nn.Module, make_head: Callable[[], nn.Module]) -> nn.Module:
        """The backbone and three heads."""
        heads = [make_head() for _ in range(3)]
        starts = (self.params.presence_start, self.params.relevance_start, -self.params.relevance_start)
        return nn.Sequential(backbone, PresenceAndRelevance(heads, starts))

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """All but relevance, and relevance at its own rate."""
        slow = [p for head in model[1].heads[1:] for p in head.parameters()]  # type: ignore[index]
        is_slow = {id(parameter) for parameter in slow}
        return [
            {"params": [parameter for parameter in model.parameters() if id(parameter) not in is_slow]},
            {"params": slow, "lr_scale": self.params.relevance_rate},
        ]

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Cross-entropy of what was mentioned, and of presence where it is known to be none.

        Args:
            output: [B, 3, C] logits of v, r(y=1|z=1) and r(y=1|z=0).
        """
        presence, if_present, if_absent = output.unbind(dim=-2)
        is_there, is_not = F.logsigmoid(presence), F.logsigmoid(-presence)
        mentioned = torch.logaddexp(is_there + F.logsigmoid(if_present), is_not + F.logsigmoid(if_absent))
        left_out = torch.logaddexp(is_there + F.logsigmoid(-if_present), is_not + F.logsigmoid(-if_absent))
        labels = batch.labels
        log_likelihood = torch.where(labels > 0, mentioned, torch.where(labels < 0, is_not, left_out))
        return Loss.of_images(-log_likelihood.sum(dim=-1))

    def scores(self, output: Tensor) -> Tensor:
        """Presence, v."""
        return torch.sigmoid(output[..., 0, :])


class PresenceAndRelevance(nn.Module):
    """Features [B, D] to [B, 3, C]: logits of presence, and of being mentioned if present and if absent."""

    def __init__(self, heads: list[nn.Module], starts: tuple[float, float, float]) -> None:
        """Takes three heads that give logits [B, C], and what is added to each."""
        super().__init__()
        self.heads, self.starts = nn.ModuleList(heads), starts

    def forward(self, features: Tensor) -> Tensor:
        """All three, one after another."""
        logits = [head(features) + start for head, start in zip(self.heads, self.starts, strict=True)]
        return torch.stack(logits, dim=-2)

"""Entropy maximisation alone: unknown labels stay unknown, without pseudo-labels (Zhou et al. 2022)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from plbench.api import Batch, Loss, Method, MethodParams, Progress, tunable
from plbench.losses_single_positive import known_cross_entropy, matching

from .em_apl import EMAPL


class EM(Method):
    """`-sum_P log p - alpha sum_U H(p)`, `H(p) = -p log p - (1 - p) log(1 - p)`.

    The EM loss of the paper that `em-apl` adds pseudo-labels to: `em-apl` with theta = 0, and before its warm-up ends.
    The derivative by an unknown label's logit, `alpha z p (1 - p)`, pushes p towards 1/2, and is small where the model
    is sure. Paper and released code agree, but that the code adds 1e-5 to what it takes the logarithm of. Written for
    data without verified negatives: where there are some, they add `-log(1 - p)`.
    """

    name = "em"
    title = "EM"
    paper = EMAPL.paper
    tags = EMAPL.tags
    stackable = True

    class Params(MethodParams):
        """The released code's values for EM: COCO and NUS-WIDE .1, VOC .2, CUB .01; the same as under EM + APL."""

        alpha: float = tunable(0.1, 0.005, 0.5, log=True, ge=0.0, description="alpha: weight of the entropy")

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Return cross-entropy on known labels, minus the weighted entropy of unknown ones."""
        probability = torch.sigmoid(output)
        entropy = -(probability * F.logsigmoid(output) + (1 - probability) * F.logsigmoid(-output))
        unknown = torch.where(batch.labels == 0, -matching(self.params.alpha, output) * entropy, 0.0)
        return Loss.of_images(known_cross_entropy(output, batch.labels) + unknown.sum(dim=-1))

    def idle(self) -> list[str]:
        """Say that nothing was left to the entropy."""
        if self.task.num_unknown and self.params.alpha > 0:
            return []
        return ["no label is unknown, or alpha is 0, so the entropy changed nothing: the limit Ignore"]

"""Generalised robust loss: soft pseudo-labels between two robust losses, weighted by p (Chen et al. 2024)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from plbench.api import Batch, Loss, Method, MethodParams, Progress, tunable
from plbench.losses_single_positive import known_cross_entropy, matching


class GRLoss(Method):
    """`-sum_P log p + sum_U v(p) (k(p) (1 - p^q2)/q2 + (1 - k(p)) (1 - (1 - p)^q3)/q3)`.

    `k(p) = sigmoid(w p + b)` estimates how likely an unknown label is present, `v(p) = exp(-(p - mu)^2 / (2 sigma^2))`
    says how much it counts; neither carries a gradient, as in the released code. w, mu and sigma move linearly with
    the epoch, from their start at the first towards their end after the last. The released code moves mu and sigma one
    epoch ahead of w, so that they start one step in and reach their end in the last epoch. Written for data without
    verified negatives: where there are some, they add `-log(1 - p)`.
    """

    name = "gr-loss"
    title = "GR Loss"
    paper = "Chen et al., IJCAI 2024, arXiv 2405.03501"
    tags = frozenset({"single-positive", "reference"})
    stackable = True

    class Params(MethodParams):
        """The default values of the released code."""

        w_start: float = Field(0.0, description="slope w of k(p), in the first epoch")
        w_end: float = tunable(2.0, 0.0, 6.0, description="slope w of k(p), at the end")
        b: float = tunable(-2.0, -6.0, 0.0, description="offset b of k(p)")
        mu_start: float = Field(0.5, description="mean mu of v(p), in the first epoch")
        mu_end: float = tunable(0.8, 0.0, 1.0, description="mean mu of v(p), at the end")
        sigma_start: float = Field(2.0, gt=0.0, description="width sigma of v(p), in the first epoch")
        sigma_end: float = tunable(0.5, 0.2, 2.0, log=True, gt=0.0, description="width sigma of v(p), at the end")
        q2: float = tunable(
            0.01, 0.01, 1.0, log=True, gt=0.0, description="exponent of the loss as positive; towards 0: -log p"
        )
        q3: float = tunable(1.0, 0.1, 2.0, log=True, gt=0.0, description="exponent of the loss as negative; 1: p")

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Cross-entropy on known labels, the robust mixture on unknown ones."""
        p, done = self.params, progress.epoch / progress.num_epochs
        probability = torch.sigmoid(output.detach())
        w = matching(p.w_start + done * (p.w_end - p.w_start), output)
        mu = matching(p.mu_start + done * (p.mu_end - p.mu_start), output)
        sigma = matching(p.sigma_start + done * (p.sigma_end - p.sigma_start), output)
        present = torch.sigmoid(w * probability + matching(p.b, output))
        weight = torch.exp(-((probability - mu) / sigma).square() / 2)
        as_positive = _robust(F.logsigmoid(output), matching(p.q2, output))
        as_negative = _robust(F.logsigmoid(-output), matching(p.q3, output))
        unknown = weight * (present * as_positive + (1 - present) * as_negative)
        return Loss.of_images(
            known_cross_entropy(output, batch.labels) + torch.where(batch.labels == 0, unknown, 0.0).sum(dim=-1)
        )


def _robust(log_hit: Tensor, q: Tensor) -> Tensor:
    """`(1 - hit^q) / q`, from the logarithm of the probability of a hit: finite where that probability is 0."""
    return -torch.expm1(q * log_hit) / q

"""PU-MLC: the variational risk from positives and unlabelled images, balanced for many classes (Yuan et al. 2023)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from plbench.api import Batch, Loss, Method, MethodParams, Progress, tunable
from plbench.losses_single_positive import matching

_LEAST_TEMPERATURE = 0.01


class PUMLC(Method):
    """Of each class, `w log(mean_x s(z/T)) - mean_P log s(z/T)`.

    s is the sigmoid; means are over the batch, of all its images (x) and of those known to be present (P). The adaptive
    temperature `T = min(1, alpha std_x z)` and the adaptive re-balance factor `w = (mean_x s(z/T))^gamma` carry no
    gradient. With gamma
    = 0 and T = 1 it is the variational risk (VPU) of Chen et al., NeurIPS 2020, arXiv 1906.00642, for each class
    (variant `vpu`). It needs no class prior. Scores are `s(z)`.

    What the field calls PU-MLC is this paper. Its text was not at hand but its abstract: the formula is that of the
    released code, which sums over classes, counts images that are verified to be absent among the unlabelled ones
    (negative labels are discarded) and lets a class without a positive in the batch have its first term alone; so it is
    here, and what this sums to is multiplied by the images of the batch, as all losses of this benchmark. Left out are
    the local-global convolutions, which belong to a backbone, and the MixUp term of VPU and PU-MLC, which trains on
    mixtures of two images of a batch: the two may lie on different processes. Ours: T is at least 0.01, and 1 in a
    batch of equal logits, where the code divides by 0.
    """

    name = "pu-mlc"
    title = "PU-MLC"
    paper = "Yuan et al., ICME 2024, arXiv 2306.16016"
    batch_scope = "batch"
    tags = frozenset({"reference"})
    variants: ClassVar = {"vpu": {"gamma": 0.0, "alpha": 1e6}}
    stackable = True

    class Params(MethodParams):
        """The released code's commands: (gamma, alpha) of COCO .55, 1, of VOC .85, 2, both with 10 % of labels."""

        gamma: float = tunable(0.55, 0.0, 1.0, ge=0.0, description="gamma: exponent of the re-balance factor; 0: none")
        alpha: float = tunable(
            1.0, 0.25, 4.0, log=True, gt=0.0, description="alpha: T over the deviation of logits; large: T = 1"
        )

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Return the sum over classes of their risks, times the number of images."""
        log_hit = F.logsigmoid(output / self._temperature(output))
        num_images = output.shape[-2]
        log_mean = log_hit.logsumexp(dim=-2, keepdim=True) - math.log(num_images)
        balance = (matching(self.params.gamma, output) * log_mean.detach()).exp()
        is_positive = batch.labels > 0
        number = is_positive.sum(dim=-2, keepdim=True).clamp(min=1)
        of_positives = torch.where(is_positive, log_hit, 0.0).sum(dim=-2, keepdim=True) / number
        risk = balance * log_mean - of_positives
        return Loss(num_images * risk.sum(dim=(-2, -1)), float(num_images))

    def _temperature(self, logits: Tensor) -> Tensor:
        """Return T of each class, [..., 1, C], without a gradient."""
        deviation = logits.detach().std(dim=-2, keepdim=True, correction=0)
        scaled = (matching(self.params.alpha, logits) * deviation).clamp(min=_LEAST_TEMPERATURE, max=1.0)
        return torch.where(deviation > 0, scaled, 1.0)

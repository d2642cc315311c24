"""Partial asymmetric loss with unknown labels taken for negatives (CSL, eq. 3)."""

from __future__ import annotations

from torch import Tensor

from plbench.api import Batch, Loss, Method, MethodParams, Progress, tunable
from plbench.losses import partial_asymmetric_loss


class PASLNegative(Method):
    """Unknown labels are focused harder than verified negatives, gamma_unann > gamma_neg, which keep their say."""

    name = "pasl-negative"
    title = "P-ASL, Negative"
    paper = "Ben-Baruch et al., CVPR 2022, arXiv 2110.10955"
    tags = frozenset({"paper"})
    stackable = True

    class Params(MethodParams):
        """Starting values: COCO FPC-1000 in the README of CSL's code."""

        gamma_pos: float = tunable(0.0, 0.0, 1.0, ge=0.0, description="focusing of positives, gamma+")
        gamma_neg: float = tunable(3.0, 0.0, 4.0, ge=0.0, description="focusing of verified negatives, gamma-")
        gamma_unann: float = tunable(4.0, 2.0, 7.0, ge=0.0, description="focusing of unknown labels, gamma_u")
        clip: float = tunable(0.0, 0.0, 0.1, ge=0.0, lt=1.0, description="probability shift, m")

    def weight(self, logits: Tensor, labels: Tensor) -> Tensor | None:
        """`w_c` of unknown labels, [B, C]; None for 1 everywhere."""
        return None

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Eq. 3."""
        p = self.params
        per_image = partial_asymmetric_loss(
            output,
            batch.labels,
            gamma_pos=p.gamma_pos,
            gamma_neg=p.gamma_neg,
            gamma_unann=p.gamma_unann,
            clip=p.clip,
            unann_weight=self.weight(output, batch.labels),
        )
        return Loss.of_images(per_image)

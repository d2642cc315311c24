"""Cross-entropy with unknown labels taken for negatives (CSL, "Negative" mode)."""

from __future__ import annotations

from torch import Tensor

from plbench.api import Batch, Loss, Method, Progress
from plbench.losses import partial_asymmetric_loss


class CENegative(Method):
    """`L(x) = -sum_P log p - sum_{N u U} log(1 - p)`. On complete labels: plain cross-entropy, the ceiling."""

    name = "ce-negative"
    title = "CE, Negative"
    paper = "Ben-Baruch et al., CVPR 2022, arXiv 2110.10955"
    tags = frozenset({"paper"})
    stackable = True

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Eq. 3 with every gamma 0 and weight 1 on unknown labels."""
        per_image = partial_asymmetric_loss(output, batch.labels, gamma_pos=0.0, gamma_neg=0.0, gamma_unann=0.0)
        return Loss.of_images(per_image)

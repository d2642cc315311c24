"""Cross-entropy on known labels; unknown ones contribute nothing (CSL, "Ignore" mode)."""

from __future__ import annotations

from torch import Tensor

from plbench.api import Batch, Loss, Method, Progress
from plbench.losses import partial_asymmetric_loss

PAPER = "Ben-Baruch et al., CVPR 2022, arXiv 2110.10955"


class CEIgnore(Method):
    """`L(x) = -sum_P log p - sum_N log(1 - p)`. Its model also estimates the class prior for `selective`."""

    name = "ce-ignore"
    title = "CE, Ignore"
    paper = PAPER
    needs = frozenset({"negatives"})
    tags = frozenset({"paper"})
    stackable = True

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Partial cross-entropy: eq. 3 with every gamma 0 and weight 0 on unknown labels."""
        per_image = partial_asymmetric_loss(
            output, batch.labels, gamma_pos=0.0, gamma_neg=0.0, gamma_unann=0.0, unann_weight=0.0
        )
        return Loss.of_images(per_image)

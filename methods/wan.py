"""Weak assume-negative: unknown labels are negatives that weigh together about as much as one label (Cole 2021)."""

from __future__ import annotations

from torch import Tensor

from plbench.api import Batch, Loss, Method, Progress
from plbench.losses import partial_asymmetric_loss


class WAN(Method):
    """`-sum_P log p - 1/(C - 1) sum_U log(1 - p)`: with one positive, its weight equals that of the C - 1 unknown ones.

    Paper and released code divide by C besides, a constant that is left out here as in all losses of this benchmark.
    Written for data without verified negatives: where there are some, they are ordinary negatives of weight 1.
    """

    name = "wan"
    title = "WAN"
    paper = "Cole et al., CVPR 2021, arXiv 2106.09708"
    tags = frozenset({"single-positive", "reference"})
    stackable = True

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Cross-entropy with unknown labels as negatives of weight 1/(C - 1)."""
        weight = 1.0 / max(1, self.task.num_classes - 1)
        per_image = partial_asymmetric_loss(
            output, batch.labels, gamma_pos=0.0, gamma_neg=0.0, gamma_unann=0.0, unann_weight=weight
        )
        return Loss.of_images(per_image)

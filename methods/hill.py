"""Hill loss: negatives that look very much like positives pull less and less (Zhang et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from plbench.api import Batch, Loss, Method, MethodParams, Progress, tunable
from plbench.losses import partial_asymmetric_loss
from plbench.losses_single_positive import matching


class Hill(Method):
    """`-sum_P (1 - p_m)^gamma log p_m + sum_{N u U} (lambda - p) p^2` with `p_m = sigmoid(z - m)`.

    With lambda = 1.5 the derivative of the second term by p, `3 p (1 - p)`, falls to 0 where a label is surely
    present. Paper and released code agree; the code sums over the batch, this benchmark takes the mean over images.
    Written for data without verified negatives: where there are some, they are negatives like the unknown labels.
    """

    name = "hill"
    title = "Hill"
    paper = "Zhang et al., 2021, arXiv 2112.07368"
    tags = frozenset({"single-positive", "reference"})
    stackable = True

    class Params(MethodParams):
        """The paper's values; it recommends margins of 0.5 to 1 and never varied lambda."""

        hill_lambda: float = tunable(1.5, 1.0, 2.0, gt=0.0, description="lambda: where the hill of the gradient ends")
        margin: float = tunable(1.0, 0.0, 2.0, ge=0.0, description="m, subtracted from the logits of positives")
        gamma: float = tunable(2.0, 0.0, 4.0, ge=0.0, description="focusing of positives, gamma")

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Focal margin loss of positives, hill of all others."""
        p = self.params
        positives = partial_asymmetric_loss(
            output - matching(p.margin, output),
            batch.labels.clamp(min=0),
            gamma_pos=p.gamma,
            gamma_neg=0.0,
            gamma_unann=0.0,
            unann_weight=0.0,
            detach_focus=False,
        )
        probability = torch.sigmoid(output)
        hill = (matching(p.hill_lambda, output) - probability) * probability.square()
        return Loss.of_images(positives + torch.where(batch.labels > 0, 0.0, hill).sum(dim=-1))

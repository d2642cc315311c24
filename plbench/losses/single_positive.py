"""Loss terms that several single-positive learners share, as pure functions of tensors.

Shapes and dtypes are those of `plbench.losses`: logits [..., B, C], labels int8 that broadcast with them, and
hyper-parameters that are numbers or tensors [H, 1, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

from plbench.losses.partial import Number, partial_asymmetric_loss
from plbench.losses.partial import matching as matching


def known_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return `-sum_P log p - sum_N log(1 - p)` of each image, over known labels only.

    Args:
        logits: [..., B, C], finite.
        labels: [B, C] of +1, -1 and 0.

    Returns:
        [..., B], summed over classes.
    """
    return partial_asymmetric_loss(logits, labels, gamma_pos=0.0, gamma_neg=0.0, gamma_unann=0.0, unann_weight=0.0)


def expected_positives_penalty(logits: Tensor, *, num_positives: Number) -> Tensor:
    """Return the squared distance of predicted and expected positives, `((k' - k) / C)^2` (Cole et al. 2021).

    Args:
        logits: [..., B, C]; `k'` is the mean over the batch's images of the sum over classes of p.
        num_positives: k, the number of positives that an image is expected to have.

    Returns:
        [...]: one number for the whole batch.
    """
    predicted = torch.sigmoid(logits).sum(dim=-1, keepdim=True).mean(dim=-2, keepdim=True)
    distance = (predicted - matching(num_positives, predicted)) / logits.shape[-1]
    return distance.square().squeeze(-1).squeeze(-1)

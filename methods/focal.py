"""Focal loss with unknown labels taken for negatives (Lin et al. 2017)."""

from __future__ import annotations

from torch import Tensor

from plbench.api import Batch, Loss, Method, MethodParams, Progress, tunable
from plbench.losses import partial_asymmetric_loss


class Focal(Method):
    """`-sum_P (1 - p)^gamma log p - sum_{N u U} p^gamma log(1 - p)`; gamma = 0 is `ce-negative`.

    The focusing factor carries its gradient, as in the paper; that of the asymmetric losses here does not. The paper's
    class weight alpha is left out.
    """

    name = "focal"
    title = "Focal, Negative"
    paper = "Lin et al., ICCV 2017, arXiv 1708.02002"
    tags = frozenset({"reference"})
    stackable = True

    class Params(MethodParams):
        """The paper's gamma."""

        gamma: float = tunable(2.0, 0.5, 5.0, ge=0.0, description="focusing of all labels, gamma")

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Eq. 3 of CSL with one gamma, and a gradient through the focusing factor."""
        gamma = self.params.gamma
        per_image = partial_asymmetric_loss(
            output, batch.labels, gamma_pos=gamma, gamma_neg=gamma, gamma_unann=gamma, detach_focus=False
        )
        return Loss.of_images(per_image)

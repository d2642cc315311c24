"""Asymmetric loss with unknown labels taken for negatives (Ridnik et al. 2021)."""

from __future__ import annotations

from torch import Tensor

from plbench.api import Batch, Loss, Method, MethodParams, Progress, tunable
from plbench.losses import partial_asymmetric_loss


class ASLNegative(Method):
    """Eq. 3 with one gamma for verified and assumed negatives, and a probability shift.

    ASL's constructor has gamma_pos = 1, its training script 0, and CSL's README labels its row "(4,1)": the source
    is ambiguous. 0 is the default here and the parameter is tunable.
    """

    name = "asl-negative"
    title = "ASL, Negative"
    paper = "Ridnik et al., ICCV 2021, arXiv 2009.14119"
    tags = frozenset({"paper"})
    stackable = True

    class Params(MethodParams):
        """Values of ASL's own training script."""

        gamma_pos: float = tunable(0.0, 0.0, 1.0, ge=0.0, description="focusing of positives, gamma+")
        gamma_neg: float = tunable(4.0, 1.0, 7.0, ge=0.0, description="focusing of all negatives, gamma-")
        clip: float = tunable(0.05, 0.0, 0.2, ge=0.0, lt=1.0, description="probability shift, m")

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Eq. 3 with gamma_unann = gamma_neg."""
        p = self.params
        per_image = partial_asymmetric_loss(
            output,
            batch.labels,
            gamma_pos=p.gamma_pos,
            gamma_neg=p.gamma_neg,
            gamma_unann=p.gamma_neg,
            clip=p.clip,
        )
        return Loss.of_images(per_image)

"""Cross-entropy on known labels, weighted by how many of an image's labels are known (Durand et al. 2019)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from plbench.api import Batch, Loss, Method, MethodParams, Progress, tunable
from plbench.losses import known_count_weight, known_proportion_weight, partial_asymmetric_loss

_PROPORTION = {"variant": ("proportion",)}


class WeightedCEIgnore(Method):
    """`g(rho_x)/C` times the cross-entropy on known labels, `g(rho) = alpha rho^gamma + beta`.

    Variant `count` weights by `1 + 1/(1 + n_known)` without the `/C`, what CSL's released code computes.
    """

    name = "wce-ignore"
    title = "wCE, Ignore"
    paper = "Durand et al., CVPR 2019, arXiv 1902.09720"
    needs = frozenset({"negatives"})
    tags = frozenset({"paper"})
    stackable = True

    class Params(MethodParams):
        """The paper's `g(0.1) = 5`, `g(1) = 1` at `gamma = 1` gives alpha and beta."""

        variant: Literal["proportion", "count"] = Field(
            "proportion", description="weight by known share (paper) or known count (CSL's code)"
        )
        alpha: float = tunable(-4.45, -4.45, 0.0, when=_PROPORTION, le=0.0, description="slope of g")
        beta: float = tunable(5.45, 1.0, 5.45, when=_PROPORTION, gt=0.0, description="g of an image with nothing known")
        gamma: float = tunable(1.0, 0.5, 3.0, when=_PROPORTION, gt=0.0, description="exponent t of the known share")

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Partial cross-entropy of each image times its weight."""
        per_image = partial_asymmetric_loss(
            output, batch.labels, gamma_pos=0.0, gamma_neg=0.0, gamma_unann=0.0, unann_weight=0.0
        )
        if self.params.variant == "count":
            return Loss.of_images(known_count_weight(batch.labels) * per_image)
        p = self.params
        weight = known_proportion_weight(batch.labels, alpha=p.alpha, beta=p.beta, gamma=p.gamma)
        return Loss.of_images(weight * per_image)

"""Self-paced loss correction: unknown labels that the model is sure of become positives (Zhang et al. 2021)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from plbench.api import Batch, Loss, Method, MethodParams, Progress, tunable
from plbench.losses import partial_asymmetric_loss
from plbench.losses_single_positive import matching


class SPLC(Method):
    """Focal margin loss, in which an unknown label with `p > tau` counts as positive from the second epoch on.

    `loss+ = -(1 - p_m)^gamma log p_m`, `p_m = sigmoid(z - m)`, `loss- = -p^gamma log(1 - p)`; an unknown label has
    `loss+` where `p > tau`, else `loss-`. Nothing is remembered: each step decides anew. Variant `margin-on-known`:
    the released code subtracts the margin from the logits of annotated positives only, not from those that the step
    took for positive. Written for data without verified negatives: where there are some, they stay negative whatever
    their p.
    """

    name = "splc"
    title = "SPLC"
    paper = "Zhang et al., 2021, arXiv 2112.07368"
    tags = frozenset({"single-positive", "reference"})
    stackable = True

    class Params(MethodParams):
        """The paper's values."""

        tau: float = tunable(0.6, 0.5, 0.9, ge=0.0, le=1.0, description="tau: p above which a label counts as positive")
        margin: float = tunable(1.0, 0.0, 2.0, ge=0.0, description="m, subtracted from the logits of positives")
        gamma: float = tunable(2.0, 0.0, 4.0, ge=0.0, description="focusing of all labels, gamma")
        start_epoch: int = Field(1, ge=0, description="epochs before labels are corrected")
        variant: Literal["margin", "margin-on-known"] = Field(
            "margin", description="margin on all positives (paper) or on annotated ones (code)"
        )

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Focal margin loss after correction."""
        p = self.params
        started = torch.as_tensor(progress.epoch >= p.start_epoch, device=output.device)
        corrected = self._is_corrected(output, batch) & started
        self.marked.add(corrected)
        labels = torch.where(corrected, 1, batch.labels)
        shifted = labels > 0 if p.variant == "margin" else batch.labels > 0
        per_image = partial_asymmetric_loss(
            torch.where(shifted, output - matching(p.margin, output), output),
            labels,
            gamma_pos=p.gamma,
            gamma_neg=p.gamma,
            gamma_unann=p.gamma,
            detach_focus=False,
        )
        return Loss.of_images(per_image)

    def _is_corrected(self, output: Tensor, batch: Batch) -> Tensor:
        probability = torch.sigmoid(output.detach())
        return (batch.labels == 0) & (probability > matching(self.params.tau, probability))

    def idle(self) -> list[str]:
        """That no label was ever corrected."""
        if self.marked.total():
            return []
        return [f"no unknown label was taken for positive: none had p above tau = {self.params.tau:g} in time"]

    def diagnostics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The unknown labels that would count as positive."""
        return {"pseudo_positive": self._is_corrected(output, batch)}

"""What LL-R, LL-Ct, LL-Cp and BoostLU share: unknown labels whose loss as negatives is largest are set right."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from plbench.api import Batch, Loss, Method, MethodParams, Progress, tunable
from plbench.losses import partial_asymmetric_loss, selective_weight
from plbench.losses_single_positive import matching

PAPER = "Kim et al., CVPR 2022, arXiv 2206.03740"
Rule = Literal["none", "reject", "correct", "correct-for-good"]


class LargeLoss(Method):
    """Cross-entropy with unknown labels as negatives, but for those of the batch with the largest losses.

    How many: a share of the batch's unknown labels, none in the first epoch. `rule` says how large the share is and
    what becomes of them. Variant `share_of=all`: the released code takes the share of all labels of the batch, known
    ones too. Counts are rounded up, as there, and of equal losses those of the first images and classes are taken, so
    that their number is exact.

    The paper trains the head with ten times the learning rate of the backbone. So do these methods in the finetune
    regime; in the probe regime there is only a head, whose rate is the plan's. Written for data without verified
    negatives: where there are some, they are ordinary negatives and never set right.
    """

    batch_scope = "batch"
    tags = frozenset({"single-positive", "reference"})
    rule: Rule

    class Params(MethodParams):
        """The paper tries delta = 0.1 to 0.5 % (0.005 to 0.01 % on OpenImages)."""

        delta_percent: float = tunable(
            0.2, 0.005, 2.0, log=True, ge=0.0, le=100.0, description="delta: step of the share, percent"
        )
        share_of: Literal["unknown", "all"] = Field(
            "unknown", description="share of the batch's unknown labels (paper) or of all (code)"
        )
        head_rate: float = Field(10.0, gt=0.0, description="learning rate of the head over the backbone's, finetune")

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Backbone and head apart, where there are both."""
        if self.task.regime == "probe":
            return super().param_groups(model)
        backbone, head = model.children()
        return [
            {"params": list(backbone.parameters())},
            {"params": list(head.parameters()), "lr_scale": self.params.head_rate},
        ]

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Cross-entropy after rejection or correction."""
        labels = self.current_labels(batch)
        largest = self.largest(output, labels, progress.epoch)
        self.note(batch, largest)
        self.marked.add(largest)
        weight = (~largest).to(output.dtype) if self.rule == "reject" else None
        if self.rule != "reject":
            labels = torch.where(largest, 1, labels)
        per_image = partial_asymmetric_loss(
            output, labels, gamma_pos=0.0, gamma_neg=0.0, gamma_unann=0.0, unann_weight=weight
        )
        return Loss.of_images(per_image)

    def current_labels(self, batch: Batch) -> Tensor:
        """The batch's labels, [B, C], with what was corrected for good."""
        return batch.labels

    def note(self, batch: Batch, largest: Tensor) -> None:
        """Told which labels [B, C] a training step sets right."""

    def largest(self, logits: Tensor, labels: Tensor, epoch: int) -> Tensor:
        """Which unknown labels have the largest losses in an epoch counted from 0: bool [..., B, C]."""
        share = self._share(epoch, logits)
        known_or_not = labels == 0 if self.params.share_of == "unknown" else torch.ones_like(labels, dtype=torch.bool)
        number = known_or_not.sum(dim=(-2, -1), keepdim=True)
        count = torch.ceil(share * number - 1e-9).to(torch.int64)  # 5 % of 100 are 5, whatever the last bit says
        # -log(1 - p) grows with the logit, so the largest losses are those of the largest logits
        pooled = selective_weight(_as_one_image(logits), _as_one_image(labels), top_k=count)
        return (pooled == 0).unflatten(-1, logits.shape[-2:]).squeeze(-3)

    def _share(self, epoch: int, like: Tensor) -> Tensor:
        epochs = {"none": 0, "correct-for-good": min(epoch, 1)}.get(self.rule, epoch)
        return (epochs / 100 * matching(self.params.delta_percent, like.double())).clamp(max=1.0)

    def idle(self) -> list[str]:
        """That no label was ever set right."""
        if self.rule == "none" or self.marked.total():
            return []
        done = "left out" if self.rule == "reject" else "corrected"
        return [f"no unknown label was {done}, as its share, delta x (epoch - 1), or the unknown labels were none"]

    def diagnostics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The unknown labels that the last epoch would set right."""
        name = "ignored" if self.rule == "reject" else "pseudo_positive"
        return {name: self.largest(output, batch.labels, self.task.epochs - 1)}


def _as_one_image(values: Tensor) -> Tensor:
    return values.flatten(-2).unsqueeze(-2)

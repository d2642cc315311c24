"""Strictly proper asymmetric loss: asymmetric as ASL, but its scores are probabilities (Cheng, Vasconcelos 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from plbench.api import Batch, Loss, Method, MethodParams, PlbenchError, Progress, Stage, Task, tunable
from plbench.losses_single_positive import matching


class SPASL(Method):
    """`sum_P log(1 + e^(-k+ (z - b+))) / zeta+ + sum_{N u U} log(1 + e^(k- (z - b-))) / zeta-`.

    Both terms are convex, so for a label that is present with probability eta the expected loss has one minimum, where
    its derivative by z is 0. Solved for eta that is the score of a class:
    `1 / (1 + k+ zeta- s(-k+ (z - b+)) / (k- zeta+ s(k- (z - b-))))`, s the sigmoid, which rises with z. What minimises
    the loss thus scores eta: strictly proper, which neither ASL nor the focal loss is. With every k and zeta 1 and
    every b 0 it is cross-entropy and the score is the sigmoid of z.

    The paper's text was not at hand but its abstract. Terms, inverse link and default values are those of the one
    public implementation that was found, mlcpl (`PartialStrictlyProperAsymmetricWithLogitLoss`). Its loss, however,
    takes the *score* in place of z, which is not proper (the best score of eta = .3 is .63 there): not repeated.
    That the score above is the one for which the terms are proper is our derivation. The paper's regulariser on pairs
    of labels is left out. The loss was written for complete labels, so that it is ours to say what unknown ones are. As
    `negative` they are what ASL takes them for, and a score estimates how likely a label is annotated as present;
    `ignore` leaves them out, as mlcpl does, and a score estimates presence among known labels. So scores are calibrated
    where labels are complete, and with `ignore` where known ones are a random sample of all (RPA, not FPC).
    """

    name = "spasl"
    title = "SPA loss"
    paper = "Cheng and Vasconcelos, CVPR 2024"
    tags = frozenset({"reference"})
    variants: ClassVar = {"ignore": {"unknown": "ignore"}}
    stackable = True

    class Params(MethodParams):
        """The default values of mlcpl; which datasets the paper has others for is not known here."""

        zeta_pos: float = tunable(1.0, 0.2, 5.0, log=True, gt=0.0, description="zeta+: divides the loss of positives")
        k_pos: float = tunable(1.0, 0.5, 4.0, log=True, gt=0.0, description="k+: slope of the loss of positives")
        b_pos: float = tunable(0.0, -2.0, 2.0, description="b+: logit at which the loss of positives turns")
        zeta_neg: float = tunable(5.0, 1.0, 20.0, log=True, gt=0.0, description="zeta-: divides the loss of negatives")
        k_neg: float = tunable(3.0, 0.5, 6.0, log=True, gt=0.0, description="k-: slope of the loss of negatives")
        b_neg: float = tunable(1.0, -2.0, 2.0, description="b-: logit at which the loss of negatives turns")
        unknown: Literal["negative", "ignore"] = Field("negative", description="what an unknown label counts as; ours")

    @classmethod
    def stages(cls, params: Any, task: Task) -> Sequence[Stage]:
        """Return none.

        Raises:
            PlbenchError: if unknown labels are ignored and there are no verified negatives.
        """
        if params.unknown == "ignore" and task.negatives.sum() == 0:
            raise PlbenchError(
                "method 'spasl' with unknown=ignore learns from verified negatives, and this protocol has none; give "
                "-P unknown=negative"
            )
        return ()

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Return a shifted and scaled logistic loss for each kind of label."""
        p, (from_pos, from_neg) = self.params, self._scaled(output)
        positive = -F.logsigmoid(from_pos) / matching(p.zeta_pos, output)
        negative = -F.logsigmoid(-from_neg) / matching(p.zeta_neg, output)
        unknown = negative if p.unknown == "negative" else torch.zeros_like(negative)
        by_label = torch.where(batch.labels > 0, positive, torch.where(batch.labels < 0, negative, unknown))
        return Loss.of_images(by_label.sum(dim=-1))

    def scores(self, output: Tensor) -> Tensor:
        """Return the inverse link: the probability for which a logit minimises the expected loss."""
        p, (from_pos, from_neg) = self.params, self._scaled(output)
        odds = matching(p.k_neg, output) * matching(p.zeta_pos, output)
        odds = odds / (matching(p.k_pos, output) * matching(p.zeta_neg, output))
        return torch.sigmoid(odds.log() + F.logsigmoid(from_neg) - F.logsigmoid(-from_pos))

    def _scaled(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return `k+ (z - b+)` and `k- (z - b-)`."""
        p = self.params
        ends = ((p.k_pos, p.b_pos), (p.k_neg, p.b_neg))
        from_pos, from_neg = (matching(k, logits) * (logits - matching(b, logits)) for k, b in ends)
        return from_pos, from_neg

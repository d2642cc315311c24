"""nnPU: an estimate of the risk from positives and unlabelled images, kept from going negative (Kiryo et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from plbench.api import (
    Batch,
    Loss,
    Method,
    MethodParams,
    PlbenchError,
    Progress,
    Stage,
    Task,
    stacked_value,
    tunable,
)
from plbench.losses_single_positive import matching

from .epr import half_of_classes
from .selective import estimate_prior


def published_positives(task: Task) -> float | None:
    """Return the positives that an image is expected to have, where they are published or labels are complete."""
    return task.expected_positives


class NNPU(Method):
    """Of each class, `pi R_P(l+) + rest`, `rest = R_X(l-) - pi R_P(l-)`; where `rest < -beta`, `-gamma rest` instead.

    R are means over the batch: R_P over the class's known positives, R_X over all images, since the labels are of one
    sample whose images all come from the distribution that the risk is of; l+ and l- are the losses of z as present
    and as absent. `rest` estimates the risk of the absent, which cannot be negative: where it is, the step goes up it
    (algorithm 1 of the paper, with beta and gamma of its code). `correction=max` is the paper's estimator taken at its
    word, `pi R_P(l+) + max(0, rest)`, which stands still there, and `none` the unbiased risk (du Plessis et al. 2015).

    The sigmoid loss of its experiments is a smooth error rate, whose best answer for a class that is present in few
    images is no in all of them: rare classes are hardly ranked. The variants have the logistic loss.

    Ours: a risk for each class, summed over classes and times the images of the batch, as all losses of this
    benchmark; a class of which the batch has no positive adds nothing (in the released code R_P is 0 then, so that
    nothing holds against `R_X`); and where pi comes from. It is the class's mean score under CE-Ignore, as for
    `selective`, which is far too high where known labels are no random sample (FPC); or, `prior=scaled`, that times a
    factor that makes its sum the expected number of positives of an image (`epr`'s k); or, `prior=counts`, this number
    shared out by known positives.

    The paper has no verified negatives: here they are images like all others, in R_X. With `pn_weight` they have a
    say of their own (PNU, Sakai et al., ICML 2017): `(1 - w)` times the above and w times
    `pi R_P(l+) + (1 - pi) R_N(l-)`, where the batch has some of the class. That, too, wants them to be a random sample;
    to correct the first part alone is ours.
    """

    name = "nnpu"
    title = "nnPU"
    paper = "Kiryo et al., NeurIPS 2017, arXiv 1703.00593"
    batch_scope = "batch"
    tags = frozenset({"reference"})
    variants: ClassVar = {
        "logistic": {"loss": "logistic"},
        "scaled": {"loss": "logistic", "prior": "scaled"},
        "pnu": {"loss": "logistic", "prior": "scaled", "pn_weight": 0.5},
        "counts": {"loss": "logistic", "prior": "counts"},
    }
    stackable = True

    class Params(MethodParams):
        """The sigmoid loss is that of the paper's experiments; beta and gamma are the defaults of its code."""

        prior: Literal["ce-ignore", "scaled", "counts"] = Field("ce-ignore", description="where pi comes from; ours")
        num_positives: float | None = tunable(
            None,
            1.0,
            half_of_classes,
            log=True,
            when={"prior": ("scaled", "counts")},
            from_task=published_positives,
            ge=0.0,
            description="k: expected positives of an image, for scaled and counts; default: the dataset's mean",
        )
        loss: Literal["sigmoid", "logistic"] = Field("sigmoid", description="l: s(-z) and s(z), or their cross-entropy")
        correction: Literal["ascent", "max", "none"] = Field(
            "ascent", description="where the rest is negative: climb (algorithm 1), stand still, or neither"
        )
        beta: float = Field(0.0, ge=0.0, description="beta: how far below 0 the rest may be")
        gamma: float = Field(1.0, ge=0.0, le=1.0, description="gamma: length of a step up over that of others")
        pn_weight: float = tunable(
            0.0, 0.0, 1.0, ge=0.0, le=1.0, description="w: weight of the risk by verified negatives (PNU)"
        )

    def __init__(self, params: Any, task: Task) -> None:
        """Fix the class prior.

        Raises:
            PlbenchError: if its sum is asked for and nobody knows it.
        """
        super().__init__(params, task)
        by_counts = self.params.prior == "counts"
        prior = torch.from_numpy(task.positives).double() if by_counts else task.artifacts["prior"].double()
        self.prior = (prior if self.params.prior == "ce-ignore" else self._with_sum_k(prior)).float()

    def _with_sum_k(self, shares: Tensor) -> Tensor:
        """Return k shared out; no class has more than 1."""
        if self.params.num_positives is None:
            raise PlbenchError(
                "num_positives, the number of positives that an image is expected to have, does not follow from labels "
                "that are partial as they come; give it with -P num_positives=K, or estimate the prior: -P "
                "prior=ce-ignore"
            )
        return (self.params.num_positives * shares / shares.sum().clamp(min=1e-12)).clamp(max=1)

    @classmethod
    def stages(cls, params: Any, task: Task) -> Sequence[Stage]:
        """Return the CE-Ignore run that estimates the prior, where that is asked for.

        Raises:
            PlbenchError: if there are no verified negatives to estimate a prior from.
        """
        if params.prior == "counts":
            return ()
        if task.negatives.sum() == 0:
            raise PlbenchError(
                "method 'nnpu' estimates the class prior by CE-Ignore, which learns from verified negatives, and this "
                "protocol has none; give -P prior=counts"
            )
        return (Stage("prior", method="ce-ignore", reduce=estimate_prior),)

    @classmethod
    def stack(cls, members: Sequence[NNPU]) -> NNPU:
        """Return one method for all heads, with their priors."""
        stacked: NNPU = super().stack(members)
        stacked.prior = stacked_value([member.prior for member in members])
        return stacked

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Return the sum over classes of their risks, times the number of images."""
        p, prior = self.params, self.prior.to(output)
        present, absent = self._losses(output)
        is_positive, is_negative = batch.labels > 0, batch.labels < 0
        of_positives = prior * _mean(present, is_positive)
        rest = absent.mean(dim=-2, keepdim=True) - prior * _mean(absent, is_positive)
        has_positive, has_negative = (known.any(dim=-2, keepdim=True) for known in (is_positive, is_negative))
        risk = of_positives + rest
        if p.correction != "none":
            below = (rest.detach() < -matching(p.beta, output)) & has_positive
            self.marked.add(below)
            instead = -matching(p.gamma, output) * rest if p.correction == "ascent" else of_positives
            risk = torch.where(below, instead, risk)
        weight = torch.where(has_negative, matching(p.pn_weight, output), 0.0)
        supervised = of_positives + (1 - prior) * _mean(absent, is_negative)
        risk = torch.where(has_positive, (1 - weight) * risk + weight * supervised, 0.0)
        num_images = float(output.shape[-2])
        return Loss(num_images * risk.sum(dim=(-2, -1)), num_images)

    def _losses(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return l+ and l- [..., B, C]."""
        if self.params.loss == "sigmoid":
            return torch.sigmoid(-logits), torch.sigmoid(logits)
        return -F.logsigmoid(logits), -F.logsigmoid(-logits)

    def idle(self) -> list[str]:
        """Say that no risk ever had to be corrected."""
        if self.params.correction == "none" or self.marked.total():
            return []
        return ["no class's risk of the absent fell below -beta, so the correction changed nothing: the unbiased risk"]


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Return the mean over some images of each class, [..., 1, C]; 0 where there is none."""
    number = where.sum(dim=-2, keepdim=True).clamp(min=1)
    return torch.where(where, values, 0.0).sum(dim=-2, keepdim=True) / number

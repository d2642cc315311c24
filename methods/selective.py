"""P-ASL with selective treatment of unknown labels: ignored where likely present, else negatives (CSL, eq. 9)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from plbench.api import (
    Batch,
    PlbenchError,
    Stage,
    Task,
    TrainView,
    stacked_value,
    tunable,
)
from plbench.losses import selective_weight, soft_prior_weight
from plbench.priors import class_average, threshold_for_top

from .pasl_negative import PASLNegative


def estimate_prior(view: TrainView) -> Tensor:
    """Estimated class prior [C] of a CE-Ignore model: eq. 10 over the whole training part, eval mode, EMA weights."""
    return class_average(probabilities for _, probabilities in view.predict(weights="ema"))


class Selective(PASLNegative):
    """Eq. 3 with `w_c = 0` on `O_L u O_P`, 1 on other unknown labels.

    `O_L`: the `top_k` unknown labels of an image with the highest likelihood. `O_P`: unknown labels of classes whose
    estimated prior exceeds `eta`. `mode` picks one, both, or the soft prior of appendix B, `exp(-alpha Pr(c))`
    outside `O_L`. The prior comes from a CE-Ignore run of the same protocol, backbone and seed.
    """

    name = "selective"
    title = "P-ASL, Selective"
    variants: ClassVar = {"likelihood": {"mode": "likelihood"}, "prior": {"mode": "prior"}}  # the paper's other rows

    class Params(PASLNegative.Params):
        """Those of P-ASL, and what is ignored. COCO FPC-1000 in the README of CSL's code; alpha is ours."""

        alternatives: ClassVar = (frozenset({"eta", "eta_top"}),)

        mode: Literal["both", "likelihood", "prior", "soft-prior"] = Field(
            "both", description="what marks an unknown label as likely present"
        )
        top_k: int = tunable(
            5,
            0,
            lambda task: max(1, task.num_classes // 4),
            when={"mode": ("both", "likelihood", "soft-prior")},
            ge=0,
            description="K: likeliest unknown labels of an image to ignore",
        )
        scope: Literal["sample", "batch"] = Field(
            "sample", description="K of each image (the paper) or K x B of the batch (CSL's code)"
        )
        eta: float | None = tunable(
            0.5,
            0.01,
            0.9,
            when={"mode": ("both", "prior"), "eta_top": (None,)},
            ge=0.0,
            le=1.0,
            description="eta: prior above which a class is ignored",
        )
        eta_top: int | None = tunable(
            None,
            1,
            lambda task: max(2, task.num_classes // 2),
            when={"mode": ("both", "prior"), "eta": (None,)},
            ge=1,
            description="instead of eta: the number of classes with the highest prior",
        )
        alpha: float = tunable(
            5.0,
            0.5,
            20.0,
            log=True,
            when={"mode": ("soft-prior",)},
            ge=0.0,
            description="decay of the soft prior; ours",
        )

    def __init__(self, params: Params, task: Task) -> None:
        """Fixes the threshold on the prior.

        Raises:
            PlbenchError: if top_k or eta_top exceed the number of classes.
        """
        super().__init__(params, task)
        _check_counts(params, task)
        self.prior: Tensor | None = None
        self.top_k = 0 if params.mode == "prior" else params.top_k
        self.eta = 1.0  # which no prior exceeds
        if params.mode != "likelihood":
            self.prior = task.artifacts["prior"].float()
        if params.mode in ("both", "prior"):
            assert self.prior is not None
            if params.eta_top is not None:
                self.eta = threshold_for_top(self.prior, params.eta_top)
            else:
                assert params.eta is not None
                self.eta = params.eta

    @classmethod
    def stack(cls, members: Sequence[Selective]) -> Selective:
        """Also stacks what the constructor made of parameters and prior."""
        stacked: Selective = super().stack(members)
        stacked.top_k = stacked_value([member.top_k for member in members])
        stacked.eta = stacked_value([member.eta for member in members])
        if stacked.prior is not None:
            stacked.prior = stacked_value([member.prior for member in members])
        return stacked

    def stack_key(self) -> Hashable:
        """What decides which terms there are; `eta_top` became an eta."""
        return self.params.mode, self.params.scope

    @classmethod
    def stages(cls, params: Params, task: Task) -> Sequence[Stage]:
        """The CE-Ignore run that estimates the prior, where the mode uses one.

        Raises:
            PlbenchError: if there are no verified negatives to estimate a prior from, or a count is too large.
        """
        _check_counts(params, task)
        if params.mode == "likelihood":
            return ()
        if task.negatives.sum() == 0:
            raise PlbenchError(
                "method 'selective' estimates the class prior by CE-Ignore, which learns from verified negatives, and "
                "this protocol has none; give -P mode=likelihood"
            )
        return (Stage("prior", method="ce-ignore", reduce=estimate_prior),)

    def weight(self, logits: Tensor, labels: Tensor) -> Tensor:
        """`w_c` [B, C] of eq. 9, or of appendix B."""
        prior = None if self.prior is None else self.prior.to(logits.device)
        hard_prior = None if self.params.mode == "soft-prior" else prior
        weight = selective_weight(
            logits,
            labels,
            top_k=self.top_k,
            prior=hard_prior,
            prior_threshold=None if hard_prior is None else self.eta,
            scope=self.params.scope,
        )
        if self.params.mode == "soft-prior":
            assert prior is not None
            weight = weight * soft_prior_weight(labels, prior, alpha=self.params.alpha)
        return weight

    def diagnostics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The unknown labels that would be ignored: is what Selective ignores really present (CSL, fig. 4)?"""
        return {"ignored": (self.weight(output, batch.labels) == 0) & (batch.labels == 0)}

    def idle(self) -> list[str]:
        """Empty `O_P` and `O_L`, the limit at which everything is ignored, and a soft prior that is 1 for all."""
        if not self.task.num_unknown:
            return ["no label is unknown, so O_L and O_P are empty"]
        mode, found = self.params.mode, []
        if self.prior is not None and mode != "soft-prior" and not (self.prior > self.eta).any():
            found.append(
                f"O_P is empty: no class's estimated prior exceeds eta = {self.eta:.4g} (the highest is "
                f"{float(self.prior.max()):.4g}), so the prior changed nothing; -P eta_top=N takes the N highest"
            )
        if mode == "soft-prior" and self.prior is not None and (torch.exp(-self.params.alpha * self.prior) == 1).all():
            found.append("the soft prior is 1 for every class, so it changed nothing")
        if mode != "prior" and self.top_k == 0:
            found.append("O_L is empty: top_k is 0, so the likelihood changed nothing")
        if mode != "prior" and self.top_k >= self.task.num_classes:
            found.append("O_L holds every unknown label, since top_k is the number of classes: the limit Ignore")
        return found


def _check_counts(params: Any, task: Task) -> None:
    used = {"top_k": params.mode != "prior", "eta_top": params.mode in ("both", "prior")}
    for name, is_used in used.items():
        value = getattr(params, name) if is_used else None
        if value is not None and value > task.num_classes:
            raise PlbenchError(
                f"{name} = {value} of method 'selective' exceeds the {task.num_classes} classes of this dataset; "
                f"give -P {name}=N with N up to {task.num_classes}"
            )

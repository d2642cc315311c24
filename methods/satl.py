"""SATL: each class's thresholds of pseudo-labels come from the scores of its known labels (Ruan et al. 2025)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from plbench.api import Batch, BatchScope, Loss, Method, MethodParams, Progress, Task, TrainView, tunable

_ABOVE, _BELOW = 2.0, -1.0
"""Thresholds that no score in [0, 1] reaches."""


class SATL(Method):
    """`-sum_P log p - sum_N log(1 - p) + lambda sum_c mean_(i, j) max(0, margin - (p_ic - p_jc))`.

    P and N are known labels and pseudo-labels. After a warm-up on known labels alone, the scores of each class's known
    positives and of its known negatives are summed up by mean and standard deviation before every epoch, and give it
    two thresholds, `tau+ = mu+ + d sigma+` and `tau- = mu- - d sigma-`. An unknown label counts as present where its
    score is tau+ or more, as absent where it is tau- or less, else it has no loss; a class has pseudo-labels only where
    both kinds of labels are known and tau+ lies above tau-. The last term is the differential ranking loss, which keeps
    the two distributions apart: i runs over the images of the batch in which class c is known to be present, j over
    those in which it is known to be absent.

    The paper's text was not at hand but its abstract, which says that thresholds come from the distributions of both
    kinds of scores, that these are updated throughout the training, and that a ranking loss widens the gap. How the
    thresholds come from the distributions, the hinge on pairs, its weight and its margin, the warm-up, and all values
    are ours. The network's semantic branch, which the abstract does not mention, is not here: this is a loss.
    """

    name = "satl"
    title = "SATL"
    paper = "Ruan et al., ESWA 2026, arXiv 2507.23263"
    batch_scope: BatchScope = "batch"
    needs = frozenset({"negatives"})
    tags = frozenset({"reference"})

    class Params(MethodParams):
        """Ours."""

        warmup: float = tunable(0.3, 0.1, 0.6, ge=0.0, le=1.0, description="share of epochs without pseudo-labels")
        deviations: float = tunable(
            0.0, -1.0, 2.0, description="d: how many standard deviations a threshold lies beyond its mean"
        )
        ranking_weight: float = tunable(1.0, 0.0, 4.0, ge=0.0, description="lambda, of the ranking loss")
        margin: float = Field(0.5, gt=0.0, le=1.0, description="gap wanted between scores of present and absent labels")

    def __init__(self, params: Any, task: Task) -> None:
        """Have no thresholds yet: nothing reaches them."""
        super().__init__(params, task)
        self.upper = torch.full((task.num_classes,), _ABOVE)
        self.lower = torch.full((task.num_classes,), _BELOW)

    def epoch_start(self, view: TrainView, progress: Progress) -> None:
        """Derive the thresholds anew from the scores of known labels, after the warm-up."""
        if progress.epoch < round(self.params.warmup * progress.num_epochs):
            return
        sums = torch.zeros(2, 3, self.task.num_classes, dtype=torch.float64)
        for rows, scores in view.predict(weights="ema"):
            labels = torch.from_numpy(view.labels.rows(rows.numpy()))
            values = scores.double()
            powers = torch.stack([torch.ones_like(values), values, values.square()])
            for kind, sign in enumerate((1, -1)):
                sums[kind] += (powers * (labels == sign)).sum(dim=1)
        self.upper, self.lower = class_thresholds(sums, self.params.deviations)

    def current_labels(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return labels [B, C] with pseudo-labels where they are unknown and a score [B, C] reaches a threshold."""
        present = scores >= self.upper.to(scores)
        absent = scores <= self.lower.to(scores)
        return torch.where(labels == 0, present.to(labels.dtype) - absent.to(labels.dtype), labels)

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Return cross-entropy of what has a label plus the ranking loss, which counts once for each image."""
        scores = torch.sigmoid(output)
        labels = self.current_labels(scores.detach(), batch.labels)
        self.marked.add((labels != 0) & (batch.labels == 0))
        cross_entropy = -torch.where(labels > 0, F.logsigmoid(output), F.logsigmoid(-output))
        ranking = ranking_loss(scores, batch.labels, self.params.margin).sum()
        total = torch.where(labels != 0, cross_entropy, 0.0).sum() + self.params.ranking_weight * len(output) * ranking
        return Loss(total, float(len(output)))

    def idle(self) -> list[str]:
        """Say that no score reached a threshold."""
        if self.marked.total():
            return []
        return ["no score of an unknown label reached a threshold of its class, so there were no pseudo-labels"]

    def diagnostics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the unknown labels with a pseudo-label, by its sign."""
        labels = self.current_labels(torch.sigmoid(output), batch.labels)
        unknown = batch.labels == 0
        return {"pseudo_positive": (labels > 0) & unknown, "pseudo_negative": (labels < 0) & unknown}

    def state_dict(self) -> dict[str, Any]:
        """Return the thresholds."""
        return {"upper": self.upper, "lower": self.lower}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the thresholds."""
        self.upper, self.lower = state["upper"], state["lower"]


def class_thresholds(sums: Tensor, deviations: float) -> tuple[Tensor, Tensor]:
    """Return the scores from which on, and down to which, an unknown label has a pseudo-label; both float32 [C].

    Args:
        sums: [2, 3, C], of known positives and of known negatives: number, sum of scores, sum of their squares.
        deviations: how many standard deviations each threshold lies beyond the mean.

    Returns:
        Ones that no score reaches of a class of which one kind is not known, or whose thresholds cross.
    """
    number, first, second = sums.unbind(dim=1)
    mean = first / number
    deviation = (second / number - mean.square()).clamp(min=0.0).sqrt()
    upper, lower = mean[0] + deviations * deviation[0], mean[1] - deviations * deviation[1]
    apart = upper > lower  # false where one is not a number
    return torch.where(apart, upper, _ABOVE).float(), torch.where(apart, lower, _BELOW).float()


def ranking_loss(scores: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Return the mean of `max(0, margin - (p_i - p_j))` over the pairs of a known positive i and a known negative j.

    Sorting the negatives tells for each positive which of them are within the margin, without going through all pairs.

    Args:
        scores: [B, C] in [0, 1].
        labels: [B, C].
        margin: in (0, 1].

    Returns:
        [C]; 0 for a class without such a pair.
    """
    present, absent = (labels > 0).T, (labels < 0).T
    by_class = scores.T.contiguous()
    negatives, order = by_class.masked_fill(~absent, -2.0).sort(dim=1)  # below anything that a margin reaches
    counts = absent.gather(1, order)
    # of the negatives from each place on: how many there are, and the sum of their scores
    number = F.pad(counts.to(scores.dtype).flip(1).cumsum(1).flip(1), (0, 1))
    total = F.pad(negatives.masked_fill(~counts, 0.0).flip(1).cumsum(1).flip(1), (0, 1))
    place = torch.searchsorted(negatives.detach(), by_class.detach() - margin, right=True)
    hinges = number.gather(1, place) * (margin - by_class) + total.gather(1, place)
    pairs = present.sum(dim=1) * absent.sum(dim=1)
    return hinges.masked_fill(~present, 0.0).sum(dim=1) / pairs.clamp(min=1)

"""Curriculum labelling: easy unknown labels become known ones, stage by stage (Durand et al. 2019)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from plbench.api import Batch, Loss, Method, MethodParams, Progress, Task, TrainView, tunable
from plbench.losses import known_proportion_weight
from plbench.losses_single_positive import known_cross_entropy
from plbench.sample_state import CellValues, check_state_size

Rule = Literal["score", "proportion", "positives", "ensemble", "uncertainty"]


class Curriculum(Method):
    """Partial cross-entropy, `g(rho)/C (-sum_P log p - sum_N log(1 - p))`, on known labels and pseudo-labels.

    The first `warmup` of the training knows no pseudo-labels and is `wce-ignore`; what is left is cut into `stages`, at
    whose starts the model so far labels the unknown cells of the whole training part anew by one of five rules. z is a
    cell's logit, theta a threshold:

    - `score`: present where `z >= theta`, absent where `z <= -theta`.
    - `proportion`: of all unknown cells the share with the largest `|z|`, each by its sign. Of equals the first.
    - `positives`: present where `z >= theta`; no absent pseudo-labels.
    - `ensemble`: as `score`, z being the mean over several heads that start apart and learn side by side.
    - `uncertainty`: the sign of the mean where the standard deviation of p over several passes with dropout is at most
      `max_std`.

    rho is the share of an image's labels that are known or have a pseudo-label, `g(rho) = 5.45 - 4.45 rho`. What was
    easy and no longer is loses its pseudo-label, so that nothing adds up but what the model still believes.

    Ours, since the paper was at hand in outline only and its authors released no code that we know of: `proportion`
    ranks the whole training part and not a batch; the stages lie within one training plan, under one schedule; an
    ensemble shares its backbone, which in the probe regime leaves its members as they would be apart; for `uncertainty`
    a dropout layer stands before the head; and the values of all parameters.
    """

    name = "curriculum"
    title = "Curriculum labelling"
    paper = "Durand et al., CVPR 2019, arXiv 1902.09720"
    needs = frozenset({"negatives", "sample_state"})
    tags = frozenset({"system"})
    tuned_on = frozenset({"scenes"})

    class Params(MethodParams):
        """All ours; theta is the better of 2 and 4 on the validation part of `scenes` under FPC-300."""

        rule: Rule = Field("score", description="which unknown labels are easy")
        theta: float = tunable(
            4.0,
            0.5,
            6.0,
            when={"rule": ("score", "positives", "ensemble")},
            ge=0.0,
            description="theta: logit from which a label is easy",
        )
        proportion: float = tunable(
            0.5, 0.05, 0.95, when={"rule": ("proportion",)}, ge=0.0, le=1.0, description="share of unknown labels, easy"
        )
        max_std: float = tunable(
            0.05,
            0.005,
            0.3,
            log=True,
            when={"rule": ("uncertainty",)},
            ge=0.0,
            description="standard deviation of p up to which a label is easy",
        )
        warmup: float = tunable(0.4, 0.2, 0.8, ge=0.0, le=1.0, description="share of epochs before the first stage")
        stages: int = Field(3, ge=1, description="times that unknown labels are labelled anew")
        heads: int = Field(5, ge=2, description="models of the ensemble")
        passes: int = Field(10, ge=2, description="passes with dropout, of rule uncertainty")
        dropout: float = Field(0.2, gt=0.0, lt=1.0, description="dropout before the head, of rule uncertainty")

    def __init__(self, params: Any, task: Task) -> None:
        """No pseudo-labels yet.

        Raises:
            PlbenchError: if they would not fit into memory.
        """
        super().__init__(params, task)
        share = params.proportion if params.rule == "proportion" else 1.0
        scores = 4 if params.rule in ("proportion", "uncertainty") else 0
        check_state_size(
            (12 * share + scores) * task.num_train * task.num_classes,
            method=self.name,
            keeps=f"pseudo-labels for up to {share:.0%} of {task.num_train:,} x {task.num_classes:,} labels",
            cure="use wce-ignore, which keeps none",
        )
        self.pseudo = CellValues(task.num_classes)
        self._squared = False

    def build(self, backbone: nn.Module, make_head: Callable[[], nn.Module]) -> nn.Module:
        """Backbone and head; several heads for an ensemble, dropout between them for uncertainty."""
        if self.params.rule == "ensemble":
            return nn.Sequential(backbone, SideBySide([make_head() for _ in range(self.params.heads)]))
        if self.params.rule == "uncertainty":
            return nn.Sequential(backbone, nn.Dropout(self.params.dropout), make_head())
        return super().build(backbone, make_head)

    def first_epochs(self, num_epochs: int) -> list[int]:
        """The epochs, counted from 0, at whose start unknown labels are labelled."""
        start = self.params.warmup * num_epochs
        length = (num_epochs - start) / self.params.stages
        return sorted({math.ceil(start + stage * length - 1e-9) for stage in range(self.params.stages)})

    def epoch_start(self, view: TrainView, progress: Progress) -> None:
        """Gives pseudo-labels, in place of earlier ones, where a stage begins."""
        if progress.epoch not in self.first_epochs(progress.num_epochs):
            return
        rules = {"proportion": self._most_certain, "uncertainty": self._agreed_on}
        cells, values = rules.get(self.params.rule, self._beyond_threshold)(view)
        self.pseudo = CellValues(self.task.num_classes)
        self.pseudo.add(cells, values)

    def _beyond_threshold(self, view: TrainView) -> tuple[Tensor, Tensor]:
        """Cells and signs of the rules score, positives and ensemble."""
        found = []
        for rows, scores in view.predict(weights="raw"):
            logits = torch.logit(scores)
            present, absent = logits >= self.params.theta, logits <= -self.params.theta
            if self.params.rule == "positives":
                absent = torch.zeros_like(present)
            found.append(self._unknown(view, rows, present, absent))
        return _joined(found)

    def _most_certain(self, view: TrainView) -> tuple[Tensor, Tensor]:
        """Cells and signs of the rule proportion, which holds all scores at once."""
        scores = torch.cat([scores for _, scores in view.predict(weights="raw")])
        rows, columns, _ = view.labels.cells()
        certainty = (scores - 0.5).abs().flatten()
        certainty[torch.from_numpy(rows * self.task.num_classes + columns)] = -1.0
        number = int(self.params.proportion * int((certainty >= 0).sum()) + 1e-9)
        cells = certainty.argsort(descending=True, stable=True)[:number]
        return cells, torch.where(scores.flatten()[cells] >= 0.5, 1.0, -1.0)

    def _agreed_on(self, view: TrainView) -> tuple[Tensor, Tensor]:
        """Cells and signs of the rule uncertainty: mean and mean square of p come from the same draws.

        What dropout draws in `predict` depends on the step alone, so that a second stream draws what the first did.
        """
        squares = self._mean_squares(view)
        found = []
        means = view.predict(weights="raw", dropout=True, passes=self.params.passes)
        for (rows, mean), square in zip(means, squares, strict=True):
            is_easy = (square - mean.square()).clamp(min=0.0).sqrt() <= self.params.max_std
            found.append(self._unknown(view, rows, is_easy & (mean >= 0.5), is_easy & (mean < 0.5)))
        return _joined(found)

    def _mean_squares(self, view: TrainView) -> list[Tensor]:
        self._squared = True
        try:
            return [scores for _, scores in view.predict(weights="raw", dropout=True, passes=self.params.passes)]
        finally:
            self._squared = False

    def _unknown(self, view: TrainView, rows: Tensor, present: Tensor, absent: Tensor) -> tuple[Tensor, Tensor]:
        """The unknown cells among those of some rows that are taken for present or absent, [b, C], and their signs."""
        is_unknown = torch.from_numpy(view.labels.rows(rows.numpy()) == 0)
        row, column = ((present | absent) & is_unknown).nonzero(as_tuple=True)
        return rows[row] * self.task.num_classes + column, torch.where(present[row, column], 1.0, -1.0)

    def current_labels(self, batch: Batch) -> Tensor:
        """The batch's labels, [B, C], with pseudo-labels where they are unknown."""
        _, values = self.pseudo.dense(batch.index)
        return torch.where(batch.labels == 0, values.to(batch.labels.dtype), batch.labels)

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Partial cross-entropy of each image times its weight; summed over heads."""
        labels = self.current_labels(batch)
        heads = output.unbind(dim=1) if self.params.rule == "ensemble" else (output,)
        per_image = torch.stack([known_cross_entropy(logits, labels) for logits in heads]).sum(dim=0)
        return Loss.of_images(known_proportion_weight(labels) * per_image)

    def scores(self, output: Tensor) -> Tensor:
        """The sigmoid of the logits, or of their mean over heads."""
        scores = torch.sigmoid(output.mean(dim=1) if self.params.rule == "ensemble" else output)
        return scores.square() if self._squared else scores

    def idle(self) -> list[str]:
        """That nothing was labelled anew."""
        if len(self.pseudo.cells):
            return []
        return [f"no unknown label had a pseudo-label in the end: rule {self.params.rule} found none in its last stage"]

    def diagnostics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The unknown labels with a pseudo-label, by its sign."""
        _, values = self.pseudo.dense(batch.index)
        unknown = batch.labels == 0
        return {"pseudo_positive": (values > 0) & unknown, "pseudo_negative": (values < 0) & unknown}

    def state_dict(self) -> dict[str, Any]:
        """The pseudo-labels."""
        return self.pseudo.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the pseudo-labels."""
        self.pseudo.load_state_dict(state)


def _joined(found: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([cells for cells, _ in found]), torch.cat([values for _, values in found])


class SideBySide(nn.Module):
    """Heads on the same features [B, D]: logits [B, H, C]."""

    def __init__(self, heads: list[nn.Module]) -> None:
        """Takes heads that give logits [B, C]."""
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, features: Tensor) -> Tensor:
        """All heads' logits."""
        return torch.stack([head(features) for head in self.heads], dim=1)

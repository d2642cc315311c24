"""Entropy maximisation and asymmetric pseudo-labels: unknown stays unknown (Zhou et al. 2022)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from plbench.api import Batch, Loss, Method, MethodParams, PartialLabels, Progress, Task, TrainView, tunable
from plbench.losses_single_positive import known_cross_entropy
from plbench.sample_state import CellValues, check_state_size


class EMAPL(Method):
    """`-sum_P log p - alpha sum_U H(p) + beta sum_S BCE(p, y)`, `H(p) = -p log p - (1 - p) log(1 - p)`.

    Unknown labels raise the entropy of their p, whose gradient is small for labels that the model is sure of. After a
    warm-up of T_w of T epochs, each epoch moves `theta / (T - T_w)` of every class's unknown labels, those with the
    lowest p, from U to S for good, with that p as soft target y: negatives are many and easily found, so there are no
    positive pseudo-labels. The paper and its released code agree in this; the code takes y from augmented images, this
    from plain ones, by the weights in training and not their average. Written for data without verified negatives:
    where there are some, they add `-log(1 - p)`. S is remembered sparsely.
    """

    name = "em-apl"
    title = "EM + APL"
    paper = "Zhou et al., ECCV 2022, arXiv 2203.16219"
    needs = frozenset({"sample_state"})
    tags = frozenset({"single-positive", "reference"})

    class Params(MethodParams):
        """The paper's values for COCO. (alpha, beta, warm-up): VOC .2, .02, .5; NUS .1, .2, .4; CUB .01, .4, .3."""

        alpha: float = tunable(0.1, 0.005, 0.5, log=True, ge=0.0, description="alpha: weight of the entropy")
        beta: float = tunable(0.9, 0.01, 1.0, log=True, ge=0.0, description="beta: weight of pseudo-labels")
        warmup: float = tunable(0.5, 0.2, 0.8, ge=0.0, le=1.0, description="T_w / T: epochs without pseudo-labels")
        theta: float = Field(0.9, ge=0.0, le=1.0, description="theta: share of unknown labels that S grows to")

    def __init__(self, params: Any, task: Task) -> None:
        """No pseudo-labels yet.

        Raises:
            PlbenchError: if they would not fit into memory.
        """
        super().__init__(params, task)
        num_cells = task.num_train * task.num_classes
        check_state_size(
            (4 + 12 * params.theta) * num_cells,  # one epoch's scores, and the pseudo-labels
            method=self.name,
            keeps=f"pseudo-labels for {params.theta:.0%} of {task.num_train:,} x {task.num_classes:,} labels",
            cure="use hill or gr-loss, which keep none",
        )
        self.pseudo = CellValues(task.num_classes)

    def epoch_start(self, view: TrainView, progress: Progress) -> None:
        """Gives pseudo-labels, after the warm-up."""
        warmup = round(self.params.warmup * progress.num_epochs)
        if progress.epoch < warmup:
            return
        scores = torch.cat([scores for _, scores in view.predict(weights="raw")])
        share = self.params.theta / (progress.num_epochs - warmup)
        cells = _lowest_unknown(scores, view.labels, self.pseudo.cells, share)
        self.pseudo.add(cells, scores.flatten()[cells])

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Cross-entropy on known labels, entropy on unknown ones, soft cross-entropy on pseudo-labels."""
        has_pseudo, target = self.pseudo.dense(batch.index)
        probability, log_p, log_not_p = torch.sigmoid(output), F.logsigmoid(output), F.logsigmoid(-output)
        entropy = -(probability * log_p + (1 - probability) * log_not_p)
        soft = -(target * log_p + (1 - target) * log_not_p)
        unknown = torch.where(has_pseudo, self.params.beta * soft, -self.params.alpha * entropy)
        per_image = torch.where(batch.labels == 0, unknown, 0.0).sum(dim=-1)
        return Loss.of_images(known_cross_entropy(output, batch.labels) + per_image)

    def idle(self) -> list[str]:
        """That no label has a pseudo-label."""
        if len(self.pseudo.cells):
            return []
        return ["no unknown label had a pseudo-label, so asymmetric pseudo-labelling changed nothing"]

    def diagnostics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The unknown labels with a pseudo-label: few should be present."""
        return {"pseudo_negative": self.pseudo.dense(batch.index)[0] & (batch.labels == 0)}

    def state_dict(self) -> dict[str, Any]:
        """The pseudo-labels."""
        return self.pseudo.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the pseudo-labels."""
        self.pseudo.load_state_dict(state)


def _lowest_unknown(scores: Tensor, labels: PartialLabels, taken: Tensor, share: float) -> Tensor:
    """Cells, row * C + class, of each class's unknown labels with the lowest scores.

    Args:
        scores: [N, C].
        labels: of the same rows.
        taken: cells that have a pseudo-label already.
        share: of all unknown labels of the class, rounded down; fewer where fewer are left.
    """
    num_rows, num_classes = scores.shape
    rows, columns, _ = labels.cells()
    is_free = torch.ones(num_rows * num_classes, dtype=torch.bool)
    is_free[torch.from_numpy(rows * num_classes + columns)] = False
    num_unknown = is_free.view(num_rows, num_classes).sum(dim=0)
    is_free[taken] = False
    chosen = []
    for column in range(num_classes):
        free = is_free[column::num_classes].nonzero().squeeze(1)
        number = int(share * float(num_unknown[column]) + 1e-9)
        order = scores[free, column].argsort(stable=True)[:number]
        chosen.append(free[order] * num_classes + column)
    return torch.cat(chosen)

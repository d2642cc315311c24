"""ROLE: a table of label estimates and the classifier teach each other (Cole et al. 2021)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from plbench.api import Batch, Loss, Method, Progress, Task, TrainView, tunable
from plbench.losses import binary_cross_entropy
from plbench.losses_single_positive import expected_positives_penalty, known_cross_entropy
from plbench.sample_state import check_state_size

from .epr import EPR

_BYTES_PER_CELL = 16  # estimate, gradient and Adam's two moments
_SURE = math.log(0.995 / 0.005)
_UNSURE = math.log(0.6 / 0.4)


class ROLE(Method):
    """`(L(p, y) + L(y, p)) / 2`, `L(a, b) = mean_x 1/C (BCE(a, b) - sum_P log a) + ((mean_x sum_c a_c - k) / C)^2`.

    p are the classifier's probabilities, y those of a table with one logit for each image and class; b is a constant
    target, so the first half trains the classifier and the second the table. All of it times C, as all losses of this
    benchmark. The table starts at 0.995 where a label is present, 0.005 where it is absent, and where it is unknown at
    random between the logits of 0.4 and 0.6. Paper and released code agree. Written for data without verified
    negatives: where there are some, they add `-log(1 - a)`.

    The table is dense. It belongs to the method and not to the model: there is no average of it, and it does not decay.
    It is trained by the plan's optimiser and schedule at ten times the plan's rate, as in the released code, every cell
    in every step, since Adam goes on moving those whose gradient is 0 for a while. A cell has one gradient an epoch: on
    a plan of few steps the table hardly leaves its start, and a higher `table_rate` does better.
    """

    name = "role"
    title = "ROLE"
    paper = "Cole et al., CVPR 2021, arXiv 2106.09708"
    batch_scope = "batch"
    needs = frozenset({"sample_state"})
    tags = frozenset({"single-positive", "reference"})

    class Params(EPR.Params):
        """k as of `epr`; the table's rate is that of the released code."""

        table_rate: float = tunable(
            10.0, 1.0, 300.0, log=True, gt=0.0, description="learning rate of the table over the plan's"
        )

    def __init__(self, params: Any, task: Task) -> None:
        """Draws the table.

        Raises:
            PlbenchError: if it would not fit into memory.
        """
        super().__init__(params, task)
        num_cells = task.num_train * task.num_classes
        check_state_size(
            _BYTES_PER_CELL * num_cells,
            method=self.name,
            keeps=f"an estimate of each of {task.num_train:,} x {task.num_classes:,} labels",
            cure="use epr, which keeps none",
        )
        logits = _UNSURE * (2 * torch.rand(num_cells, generator=task.generator) - 1)
        self.table = nn.Parameter(logits)  # of one dimension, since such parameters do not decay

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """The model, and the table at its own rate."""
        self.table.data = self.table.data.to(next(model.parameters()).device)
        return [
            {"params": list(model.parameters())},
            {"params": [self.table], "lr_scale": self.params.table_rate},
        ]

    def epoch_start(self, view: TrainView, progress: Progress) -> None:
        """Writes the known labels into the table, once."""
        if progress.step == 0:
            rows, columns, values = (torch.from_numpy(part) for part in view.labels.cells())
            cells = (rows * self.task.num_classes + columns).to(self.table.device)
            self.table.data[cells] = _SURE * values.to(self.table)

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Both halves, for the classifier's logits and the table's."""
        estimates = self.table.view(-1, self.task.num_classes)[batch.index]
        of_model = self._half(output, torch.sigmoid(estimates), batch)
        of_table = self._half(estimates, torch.sigmoid(output), batch)
        return Loss((of_model + of_table) / 2, float(len(output)))

    def _half(self, logits: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        """`L` of the batch, times C and the number of images."""
        per_image = known_cross_entropy(logits, batch.labels) + binary_cross_entropy(logits, targets.detach())
        penalty = expected_positives_penalty(logits, num_positives=self.params.num_positives)
        return per_image.sum() + logits.numel() * penalty

    def diagnostics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The unknown labels that the table takes for present."""
        estimates = self.table.detach().view(-1, self.task.num_classes)[batch.index]
        return {"pseudo_positive": (estimates > 0) & (batch.labels == 0)}

    def state_dict(self) -> dict[str, Any]:
        """The table; its moments are saved with the optimiser's."""
        return {"table": self.table.detach().clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the table, where the optimiser knows it."""
        self.table.data.copy_(state["table"])

"""Expected negatives and consistency with moving averages of an image's scores (Verelst et al. 2023)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from plbench.api import Batch, Loss, Method, Progress, Task, TrainView, tunable
from plbench.losses import binary_cross_entropy, selective_weight
from plbench.losses.sample_state import check_state_size

from .epr import EPR


class EMAConsistency(Method):
    """`-sum_P log p - sum_N log(1 - p) - sum_E log(1 - p) + lambda sum_U |p - s|`; E: the expected negatives of U.

    s is a moving average of an image's scores over epochs, `s <- mu s + (1 - mu) p`. An image is expected to have k
    positives: of its unknown labels those with the highest s, as many as k exceeds the known positives by, are in U
    alone, and the rest are in E. In the first epoch there is no s, so that all are in E and nothing is consistent.

    Only the abstract was at hand, and nothing that its authors released. It says that expected negatives are a set that
    averages of predictions over epochs determine, and that predictions are consistent with these averages. Ours: that k
    decides how many are left out, rounded to a whole number; that p is measured after each epoch, on plain images and
    by the weights in training, and that the first p is s as it is; that the distance is absolute and over unknown
    labels; mu and lambda. The spatial part, averages of the maps that random crops are compared with, is not here: it
    needs a feature map and where each crop lay. What is here has no need of images, and is the same in both regimes.
    Written for data without verified negatives: where there are some, they add `-log(1 - p)`.
    """

    name = "ema-consistency"
    title = "EN + EMA consistency"
    paper = "Verelst et al., WACV 2023, arXiv 2203.06127"
    needs = frozenset({"sample_state"})
    tags = frozenset({"single-positive", "reference"})

    class Params(EPR.Params):
        """k as of `epr`; the rest is ours."""

        momentum: float = tunable(0.8, 0.0, 0.95, ge=0.0, lt=1.0, description="mu, of the average over epochs")
        consistency: float = tunable(0.1, 0.01, 2.0, log=True, ge=0.0, description="lambda, of the distance from s")

    def __init__(self, params: Any, task: Task) -> None:
        """Keep no averages yet.

        Raises:
            PlbenchError: if they would not fit into memory.
        """
        super().__init__(params, task)
        check_state_size(
            4 * task.num_train * task.num_classes,
            method=self.name,
            keeps=f"an average score of each of {task.num_train:,} x {task.num_classes:,} labels",
            cure="use selective with -P mode=likelihood, which keeps none",
        )
        self.average = torch.empty(0, task.num_classes)

    def epoch_end(self, view: TrainView, progress: Progress) -> None:
        """Bring the averages up to date."""
        scores = torch.cat([scores for _, scores in view.predict(weights="raw")])
        mu = self.params.momentum
        self.average = mu * self.average + (1 - mu) * scores if len(self.average) else scores

    def _weight(self, average: Tensor, labels: Tensor) -> Tensor:
        """Return 1 for expected negatives and known labels, 0 for the unknown labels that are expected positives."""
        missing = (round(self.params.num_positives) - (labels > 0).sum(dim=1, keepdim=True)).clamp(min=0)
        return selective_weight(average, labels, top_k=missing)

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Return cross-entropy on known labels and expected negatives, and the distance from the averages."""
        if not len(self.average):
            return Loss.of_images(binary_cross_entropy(output, batch.labels > 0))
        average = self.average[batch.index.cpu()].to(output)
        weight = self._weight(average, batch.labels)
        self.marked.add(weight == 0)
        distance = torch.where(batch.labels == 0, (torch.sigmoid(output) - average).abs(), 0.0).sum(dim=1)
        per_image = binary_cross_entropy(output, batch.labels > 0, weight)
        return Loss.of_images(per_image + self.params.consistency * distance)

    def idle(self) -> list[str]:
        """Say that every unknown label was an expected negative."""
        if self.marked.total():
            return []
        return ["every unknown label was an expected negative in every epoch, as in ce-negative"]

    def diagnostics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the unknown labels that are no expected negatives."""
        if not len(self.average):
            return {"ignored": torch.zeros_like(batch.labels, dtype=torch.bool)}
        average = self.average[batch.index.cpu()].to(batch.labels.device)
        return {"ignored": self._weight(average, batch.labels) == 0}

    def state_dict(self) -> dict[str, Any]:
        """Return the averages."""
        return {"average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the averages."""
        self.average = state["average"]

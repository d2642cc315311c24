"""Class-aware pseudo-labels: as many of each class are positive as its proportion says (Xie et al. 2023)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from plbench.api import Batch, Loss, Method, MethodParams, PartialLabels, Progress, Task, TrainView, tunable
from plbench.losses import partial_asymmetric_loss
from plbench.losses.sample_state import CellValues, check_state_size


class CAP(Method):
    """Asymmetric loss on known labels and pseudo-labels, `sum_P L+(p) + sum_N L-(p)`, each with a weight of 1.

    `L+ = -log p`, `L- = -q^gamma- log(1 - q)`, `q = max(p - m, 0)`, whose factor carries no gradient. After a warm-up
    on known labels alone, each epoch labels the unknown cells of the training part anew. The proportion of class c is
    estimated by that of its known labels, `g_c = |P_c| / (|P_c| + |N_c|)`; of its `m_c` unknown cells, those with the
    `eta_1 g_c m_c` highest scores become positive, and those with the `eta_2 (1 - g_c) m_c` lowest negative, numbers
    rounded down. What is between them, and every class without a known label, stays unknown and has no loss.

    Made for semi-supervised data, a few images with all their labels and many with none (`--simulate unlabelled=0.9`).
    Where labels are known by another rule than chance, as under FPC, their proportion is not the class's: the method
    then makes too many positives.

    The paper's strong view is here whatever the training plan augments with (RandAugment and cutout in recipe `paper`,
    nothing on cached features, where the method is pseudo-labelling alone); its weak view is the plain image, seen by
    the averaged weights. The released code draws batches of labelled and unlabelled images in a fixed ratio, here an
    epoch has every image once; it starts optimiser and schedule anew after the warm-up, here one schedule goes on. In
    the code a class of which less than one unlabelled image is expected turns positive everywhere, since an index of
    -1 reads the lowest score: not repeated.
    """

    name = "cap"
    title = "CAP"
    paper = "Xie et al., NeurIPS 2023, arXiv 2305.02795"
    needs = frozenset({"negatives", "sample_state"})
    tags = frozenset({"reference", "semi-supervised"})

    class Params(MethodParams):
        """Those of the released code: the same on VOC, COCO and NUS-WIDE. It warms up for 12 of 40 epochs."""

        warmup: float = tunable(0.3, 0.1, 0.6, ge=0.0, le=1.0, description="share of epochs without pseudo-labels")
        positive_share: float = tunable(
            1.0, 0.5, 1.0, ge=0.0, le=1.0, description="eta_1: share of the expected positives that are given"
        )
        negative_share: float = tunable(
            1.0, 0.5, 1.0, ge=0.0, le=1.0, description="eta_2, of the expected negatives; the code stops at 0.998"
        )
        gamma_neg: float = tunable(4.0, 0.0, 6.0, ge=0.0, description="gamma-, focusing of negatives")
        clip: float = Field(0.05, ge=0.0, lt=1.0, description="m, the asymmetric shift of negatives")

    def __init__(self, params: Any, task: Task) -> None:
        """Estimate the proportions of classes; no pseudo-labels yet.

        Raises:
            PlbenchError: if pseudo-labels would not fit into memory.
        """
        super().__init__(params, task)
        check_state_size(
            (4 + 12 * max(params.positive_share, params.negative_share)) * task.num_train * task.num_classes,
            method=self.name,
            keeps=f"pseudo-labels for unknown ones of {task.num_train:,} x {task.num_classes:,} labels",
            cure="use hill or gr-loss, which keep none",
        )
        self.pseudo = CellValues(task.num_classes)

    def epoch_start(self, view: TrainView, progress: Progress) -> None:
        """Give pseudo-labels, in place of earlier ones, after the warm-up."""
        if progress.epoch < round(self.params.warmup * progress.num_epochs):
            return
        scores = torch.cat([scores for _, scores in view.predict(weights="ema")])
        cells, values = class_aware_labels(
            scores,
            view.labels,
            class_proportions(self.task),
            positive_share=self.params.positive_share,
            negative_share=self.params.negative_share,
        )
        self.pseudo = CellValues(self.task.num_classes)
        self.pseudo.add(cells, values)

    def current_labels(self, batch: Batch) -> Tensor:
        """Return the batch's labels, [B, C], with pseudo-labels where they are unknown."""
        _, values = self.pseudo.dense(batch.index)
        return torch.where(batch.labels == 0, values.to(batch.labels.dtype), batch.labels)

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Return the asymmetric loss of what has a label, over the images that have one."""
        labels = self.current_labels(batch)
        per_image = partial_asymmetric_loss(
            output,
            labels,
            gamma_pos=0.0,
            gamma_neg=self.params.gamma_neg,
            gamma_unann=0.0,
            clip=self.params.clip,
            unann_weight=0.0,
        )
        return Loss(per_image.sum(), (labels != 0).any(dim=-1).sum())

    def idle(self) -> list[str]:
        """Say that nothing has a pseudo-label."""
        if len(self.pseudo.cells):
            return []
        return ["no unknown label had a pseudo-label in the end, so class-aware pseudo-labelling changed nothing"]

    def diagnostics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the unknown labels with a pseudo-label, by its sign."""
        _, values = self.pseudo.dense(batch.index)
        unknown = batch.labels == 0
        return {"pseudo_positive": (values > 0) & unknown, "pseudo_negative": (values < 0) & unknown}

    def state_dict(self) -> dict[str, Any]:
        """Return the pseudo-labels."""
        return self.pseudo.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the pseudo-labels."""
        self.pseudo.load_state_dict(state)


def class_proportions(task: Task) -> np.ndarray:
    """Return the share of each class's known labels that are positive, [C]; NaN where none is known."""
    known = np.asarray(task.positives + task.negatives, dtype=np.float64)
    return np.divide(task.positives, known, out=np.full(task.num_classes, np.nan), where=known > 0)


def class_aware_labels(
    scores: Tensor,
    labels: PartialLabels,
    proportions: np.ndarray,
    *,
    positive_share: float,
    negative_share: float,
) -> tuple[Tensor, Tensor]:
    """Return pseudo-labels of unknown cells: of each class the highest-scored and the lowest-scored, as many as given.

    Args:
        scores: [N, C].
        labels: of the same rows.
        proportions: [C], the share of each class's unknown cells that are expected to be positive; NaN for none known.
        positive_share: of the expected positives. negative_share: of the expected negatives.

    Returns:
        Cells, row * C + class, int64 [K], and +1 or -1 for each. Of equal scores the lower row is the higher one.
    """
    num_rows, num_classes = scores.shape
    is_unknown = torch.ones(num_rows * num_classes, dtype=torch.bool)
    rows, columns, _ = labels.cells()
    is_unknown[torch.from_numpy(rows * num_classes + columns)] = False
    cells, values = [torch.empty(0, dtype=torch.int64)], [torch.empty(0)]
    for column in np.flatnonzero(~np.isnan(proportions)):
        free = is_unknown[column::num_classes].nonzero().squeeze(1)
        order = free[scores[free, column].argsort(descending=True, stable=True)] * num_classes + int(column)
        expected = float(proportions[column]) * len(free)
        num_positive = int(positive_share * expected + 1e-9)
        num_negative = int(negative_share * (len(free) - expected) + 1e-9)
        cells += [order[:num_positive], order[len(order) - num_negative :]]
        values += [torch.ones(num_positive), -torch.ones(num_negative)]
    return torch.cat(cells), torch.cat(values)

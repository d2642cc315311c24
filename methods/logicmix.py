"""LogicMix and 2WayAug-PL: images are averaged, and their partial labels joined by a logical OR (Chong et al.)."""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from plbench.api import Batch, Loss, Method, MethodParams, Progress, Task, TrainView, tunable
from plbench.losses import partial_asymmetric_loss
from plbench.losses.sample_state import CellValues, check_state_size


class LogicMix(Method):
    """`sum_P LF(p, g+) + sum_N LF(1 - p', g-)`, `p' = max(p - m, 0)`, (g+, g-, m) of its own on mixes and on originals.

    With `probability`, an image is replaced by the mean of itself and of 1 or 2 other training images, drawn anew in
    each epoch. A class is present in the mix if it is present in one of them, absent if it is absent in all of them,
    and else unknown; unknown labels have no loss. Mixes have many positives, so that (g+, g-, m) is (0, 4, .05) on
    originals and (4, 0, 0) on mixes (the doubly partial ASL). From `warmup` on, each epoch labels the unknown labels of
    all images anew: present where z > theta, absent where z < -theta, by the averaged weights on plain images. Images
    are mixed with these labels.

    The equations are those of the preprint (LogicMix) and the values those of the released code, whose paper (the
    doubly partial ASL, 2WayAug-PL) was at hand as its abstract: there, too, partners come from the whole training set,
    with replacement. The code's second way of augmentation, flips and RandAugment, is the plan's here. In the probe
    regime it is features that are averaged, not images: the features of a mean of images would have to be computed anew
    for each mix. That regularises the head alone, and is not what the paper evaluates.
    """

    name = "logicmix"
    title = "LogicMix (2WayAug-PL)"
    paper = "Chong et al., arXiv 2405.15860"
    needs = frozenset({"negatives", "sample_state"})
    tags = frozenset({"reference"})

    class Params(MethodParams):
        """The released code's, for COCO with half of the labels: labelling begins after 20 of 60 epochs."""

        probability: float = tunable(0.5, 0.0, 1.0, ge=0.0, le=1.0, description="share of inputs that are mixes")
        max_images: int = Field(3, ge=2, description="most images of a mix, k; at least 2, each number equally likely")
        gamma_pos: float = tunable(0.0, 0.0, 2.0, ge=0.0, description="gamma+ on originals")
        gamma_neg: float = tunable(4.0, 0.0, 6.0, ge=0.0, description="gamma- on originals")
        clip: float = tunable(0.05, 0.0, 0.2, ge=0.0, lt=1.0, description="m, the shift on originals")
        mix_gamma_pos: float = tunable(4.0, 0.0, 6.0, ge=0.0, description="gamma+ on mixes")
        mix_gamma_neg: float = tunable(0.0, 0.0, 4.0, ge=0.0, description="gamma- on mixes")
        mix_clip: float = Field(0.0, ge=0.0, lt=1.0, description="m, the shift on mixes")
        theta: float = tunable(4.0, 1.0, 6.0, ge=0.0, description="theta: |z| above which an unknown label is labelled")
        warmup: float = tunable(1 / 3, 0.1, 1.0, ge=0.0, le=1.0, description="share of epochs without pseudo-labels")

    def __init__(self, params: Any, task: Task) -> None:
        """Keep no labels yet.

        Raises:
            PlbenchError: if known labels and pseudo-labels would not fit into memory.
        """
        super().__init__(params, task)
        check_state_size(
            12 * task.num_train * task.num_classes,
            method=self.name,
            keeps=f"known labels and pseudo-labels for up to {task.num_train:,} x {task.num_classes:,} labels",
            cure="use asl-negative or curriculum on fewer classes",
        )
        self.known, self.pseudo = CellValues(task.num_classes), CellValues(task.num_classes)
        self._seed = int(torch.randint(2**62, (), generator=task.generator))
        self._drawn: tuple[int, Tensor, Tensor] = (-1, torch.empty(0), torch.empty(0))

    def mixture(self, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Return the image itself, or it and its partners in equal parts; what has no weight is the image itself."""
        if self._drawn[0] != epoch:
            self._drawn = (epoch, *self._draw(epoch))
        _, count, partners = self._drawn
        place = torch.arange(self.params.max_images)
        is_used = place < count[index, None]
        rows = torch.cat([index[:, None], partners[index]], dim=1)
        return torch.where(is_used, rows, index[:, None]), is_used / count[index, None]

    def _draw(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Return the number of images in each row's input, [N], and the partners that it may have, [N, k - 1]."""
        number, most = self.task.num_train, self.params.max_images
        chance = torch.Generator().manual_seed(self._seed + epoch)
        is_mix = torch.rand(number, generator=chance) < self.params.probability
        count = torch.randint(2, most + 1, (number,), generator=chance)
        return torch.where(is_mix, count, 1), torch.randint(number, (number, most - 1), generator=chance)

    def epoch_start(self, view: TrainView, progress: Progress) -> None:
        """Note the known labels once; label unknown ones, after the warm-up."""
        if progress.step == 0:
            rows, columns, values = (torch.from_numpy(part) for part in view.labels.cells())
            self.known.add(rows * self.task.num_classes + columns, values)
        if progress.epoch < math.ceil(self.params.warmup * progress.num_epochs - 1e-9):
            return
        found = []
        for index, scores in view.predict():
            logits = torch.logit(scores)
            is_sure = (logits.abs() > self.params.theta) & torch.from_numpy(view.labels.rows(index.numpy()) == 0)
            row, column = is_sure.nonzero(as_tuple=True)
            found.append((index[row] * self.task.num_classes + column, logits[row, column].sign()))
        self.pseudo = CellValues(self.task.num_classes)
        self.pseudo.add(torch.cat([cells for cells, _ in found]), torch.cat([signs for _, signs in found]))

    def mixed_labels(self, batch: Batch, progress: Progress) -> tuple[Tensor, Tensor]:
        """Return the labels of the batch's inputs, [B, C], and which of these are mixes, bool [B, 1]."""
        rows, weights = self.mixture(batch.index.cpu(), progress.epoch)
        rows, is_used = rows.to(batch.index.device), (weights > 0).to(batch.index.device)
        labels = self._with_pseudo(batch.labels, batch.index)
        is_present, is_absent = labels > 0, labels < 0
        for k in range(1, rows.shape[1]):
            others = self._with_pseudo(self.known.dense(rows[:, k])[1], rows[:, k])
            used = is_used[:, k, None]
            is_present, is_absent = is_present | (used & (others > 0)), is_absent & (~used | (others < 0))
        return is_present.to(torch.int8) - is_absent.to(torch.int8), is_used[:, 1:].any(dim=1, keepdim=True)

    def _with_pseudo(self, labels: Tensor, rows: Tensor) -> Tensor:
        return torch.where(labels == 0, self.pseudo.dense(rows)[1].to(labels.dtype), labels)

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Return the doubly partial ASL."""
        labels, is_mix = self.mixed_labels(batch, progress)
        p = self.params

        def chosen(of_mix: float, of_original: float) -> Tensor:
            return torch.where(is_mix, output.new_full((), of_mix), output.new_full((), of_original))

        per_image = partial_asymmetric_loss(
            output,
            labels,
            gamma_pos=chosen(p.mix_gamma_pos, p.gamma_pos),
            gamma_neg=chosen(p.mix_gamma_neg, p.gamma_neg),
            gamma_unann=0.0,
            clip=chosen(p.mix_clip, p.clip),
            unann_weight=0.0,
        )
        return Loss.of_images(per_image)

    def idle(self) -> list[str]:
        """Say that nothing was mixed, or nothing labelled."""
        said = []
        if not self.params.probability:
            said.append("probability is 0, so no images were mixed")
        if not len(self.pseudo.cells):
            said.append(f"no unknown label had a pseudo-label in the end: none had |z| > theta = {self.params.theta:g}")
        return said

    def diagnostics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the unknown labels with a pseudo-label, by its sign."""
        _, values = self.pseudo.dense(batch.index)
        unknown = batch.labels == 0
        return {"pseudo_positive": (values > 0) & unknown, "pseudo_negative": (values < 0) & unknown}

    def state_dict(self) -> dict[str, Any]:
        """Return known labels and pseudo-labels."""
        return {"known": self.known.state_dict(), "pseudo": self.pseudo.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore known labels and pseudo-labels."""
        self.known.load_state_dict(state["known"])
        self.pseudo.load_state_dict(state["pseudo"])

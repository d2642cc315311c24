"""Vision-language pseudo-labels: what CLIP sees in an image counts as present (Xing et al. 2024)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from plbench.api import Batch, Loss, Method, MethodParams, Progress, Task, tunable
from plbench.losses_single_positive import known_cross_entropy, matching


class VLPL(Method):
    """`-sum_P log p - alpha sum_U H(p) + beta sum_S (rho (-log p) + (1 - rho) (-log(1 - p)))`, H the entropy of p.

    S are the unknown labels with `softmax_c(cos(x, c) / T) > theta`, cosines of a vision-language model's embeddings of
    the image x and of the names of all C classes; U are the other unknown ones, as in EM. A softmax above theta leaves
    `1 / theta` labels of an image at most.

    The definition was read from the released code (github.com/mvrl/VLPL, loss `EM_PL`), as the paper's text was not at
    hand beyond its abstract. The code looks at augmented images with its CLIP (ViT-L/14 at 336 px), and divides the
    loss by C; here the file of embeddings is of plain images, by whatever model made it. Its negative pseudo-labels
    are off in all its settings (`partial` = 0), and with a ResNet not computed; they are not here. Written for data
    without verified negatives: where there are some, they add `-log(1 - p)` and are never in S. Tried here with
    synthetic embeddings alone.
    """

    name = "vlpl"
    title = "VLPL"
    paper = "Xing et al., CVPRW 2024, arXiv 2310.15985"
    needs = frozenset({"embeddings"})
    tags = frozenset({"single-positive"})
    stackable = True

    class Params(MethodParams):
        """The released code's values for COCO. alpha: VOC .2, COCO and NUS .1, CUB .01; all else the same for all."""

        alpha: float = tunable(0.1, 0.005, 0.5, log=True, ge=0.0, description="alpha: weight of the entropy")
        beta: float = tunable(0.7, 0.05, 1.0, log=True, ge=0.0, description="beta: weight of pseudo-labels")
        threshold: float = tunable(0.3, 0.1, 0.5, ge=0.0, le=1.0, description="theta: softmax above which one is given")
        temperature: float = tunable(
            0.01, 0.005, 0.1, log=True, gt=0.0, description="T, by which cosines are divided before the softmax"
        )
        rho: float = Field(0.9, ge=0.0, le=1.0, description="rho: target of pseudo-labels")

    def __init__(self, params: Any, task: Task) -> None:
        """Cosines of train images to classes are on the CPU, and go where they are wanted."""
        super().__init__(params, task)
        self.similarity = task.artifacts["similarity"]

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Cross-entropy on known labels, entropy on unknown ones, smoothed cross-entropy on pseudo-labels."""
        p, pseudo = self.params, self._pseudo(batch)
        self.marked.add(pseudo)
        rho = matching(p.rho, output)
        probability, log_p, log_not_p = torch.sigmoid(output), F.logsigmoid(output), F.logsigmoid(-output)
        entropy = -(probability * log_p + (1 - probability) * log_not_p)
        positive = -(rho * log_p + (1 - rho) * log_not_p)
        unknown = torch.where(pseudo, matching(p.beta, output) * positive, -matching(p.alpha, output) * entropy)
        per_image = torch.where(batch.labels == 0, unknown, 0.0).sum(dim=-1)
        return Loss.of_images(known_cross_entropy(output, batch.labels) + per_image)

    def _pseudo(self, batch: Batch) -> Tensor:
        """Mask of the unknown labels that count as present."""
        self.similarity = self.similarity.to(batch.index.device)  # once: it stays there
        cosines = self.similarity[batch.index]
        likelihood = torch.softmax(cosines / matching(self.params.temperature, cosines), dim=-1)
        return (likelihood > matching(self.params.threshold, likelihood)) & (batch.labels == 0)

    def idle(self) -> list[str]:
        """That no label had a pseudo-label."""
        if self.marked.total():
            return []
        return ["no unknown label had a pseudo-label: to the vision-language model none was likely enough"]

    def diagnostics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The unknown labels that count as present."""
        return {"pseudo_positive": self._pseudo(batch)}

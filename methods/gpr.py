"""Generalised pseudo-label robust loss: what CLIP sees, weighted by what the classifier says (Tran et al. 2025)."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from plbench.api import Batch, Loss, Method, MethodParams, Progress, Task, tunable
from plbench.losses_single_positive import expected_positives_penalty, known_cross_entropy, matching

from .epr import half_of_classes, positives_of_an_image


class GPR(Method):
    """`mean_x (-sum_P log p + sum_U v g + sum_S+ u b - sum_S- v log(1 - p)) + lambda C ((mean_x sum_c p_c - k) / C)^2`.

    `v(p) = exp(-(p - mu)^2 / (2 sigma^2))` and `g = k(p) (1 - p^q2)/q2 + (1 - k(p)) (1 - (1 - p)^q3)/q3` with
    `k(p) = sigmoid(w p + b)` are those of GR Loss; `b = -rho log p - (1 - rho) log(1 - p)`, and `u` is `1 - v`, but at
    least `weight_min` and at most `weight_max`. Weights carry no gradient. Of the unknown labels of an image, by
    cosines to its C class names in a vision-language model: S- are the `negative_share` of all classes with the lowest;
    S+ are the `top_k` with the highest that have `softmax(cos / T) >= threshold` and are not in S-; U are the rest. k
    in the last term is the number of positives that an image is expected to have.

    The definition was read from the released code (github.com/Fsoft-AIC/AEVLP), as the paper's text was not at hand
    beyond its abstract. There the labelling writes 0, which is no pseudo-label, where the loss and its own comment have
    negative ones: variant `no-negatives`. DAMP, the code's labelling, is here in the limit that an image is looked at
    as a whole: its grid of crops, whose highest and lowest likelihoods it mixes, takes several embeddings of an image.
    Not repeated: a network of random and frozen weights that moves the embeddings of names, pseudo-labels from
    augmented images, and mu and sigma one epoch ahead of w and b. Written for data without verified negatives: where
    there are some, they add `-log(1 - p)`. Tried here with synthetic embeddings alone.
    """

    name = "gpr"
    title = "GPR Loss"
    paper = "Tran et al., ICCV 2025, arXiv 2508.20381"
    batch_scope = "batch"
    needs = frozenset({"embeddings"})
    tags = frozenset({"single-positive"})
    stackable = True

    class Params(MethodParams):
        """The released values for COCO; where others differ, for VOC, NUS and CUB.

        slope_end: VOC 2. offset_end: VOC -2. q3: CUB 1.5. (weight_min, weight_max): VOC (.4, .7), CUB (.2, .8).
        penalty: VOC .05, CUB .01. temperature: CUB .1. threshold: NUS .6, CUB .005. top_k: CUB 32. negative_share: VOC,
        NUS and CUB .2.
        """

        slope_start: float = Field(0.0, description="slope w of k(p), in the first epoch")
        slope_end: float = tunable(10.0, 0.0, 12.0, description="slope w of k(p), at the end")
        offset_start: float = Field(-2.0, description="offset b of k(p), in the first epoch")
        offset_end: float = tunable(-8.0, -10.0, 0.0, description="offset b of k(p), at the end")
        mu_start: float = Field(0.5, description="mean mu of v(p), in the first epoch")
        mu_end: float = tunable(0.8, 0.0, 1.0, description="mean mu of v(p), at the end")
        sigma_start: float = Field(2.0, gt=0.0, description="width sigma of v(p), in the first epoch")
        sigma_end: float = tunable(0.5, 0.2, 2.0, log=True, gt=0.0, description="width sigma of v(p), at the end")
        q2: float = Field(0.01, gt=0.0, description="exponent of the loss as positive; towards 0: -log p")
        q3: float = Field(1.0, gt=0.0, description="exponent of the loss as negative; 1: p")
        weight_min: float = Field(
            0.5, ge=0.0, le=1.0, description="lowest weight of a positive pseudo-label (lambda 2)"
        )
        weight_max: float = Field(
            0.7, ge=0.0, le=1.0, description="highest weight of a positive pseudo-label (lambda 1)"
        )
        rho: float = Field(0.9, ge=0.0, le=1.0, description="rho: target of positive pseudo-labels")
        penalty: float = tunable(
            0.001, 1e-4, 0.1, log=True, ge=0.0, description="lambda: weight of the penalty on the number of positives"
        )
        num_positives: float | None = tunable(
            None,
            1.0,
            half_of_classes,
            log=True,
            from_task=positives_of_an_image,
            ge=0.0,
            description="k: positives that an image is expected to have; default: the dataset's mean",
        )
        temperature: float = tunable(
            0.01, 0.005, 0.1, log=True, gt=0.0, description="T, by which cosines are divided before the softmax"
        )
        threshold: float = tunable(
            0.5, 0.1, 0.8, ge=0.0, le=1.0, description="lowest softmax of a positive pseudo-label"
        )
        top_k: int = Field(3, ge=0, description="positive pseudo-labels of an image, at most")
        negative_share: float = tunable(
            0.3, 0.05, 0.5, ge=0.0, le=1.0, description="share of the classes that are lowest in an image: negative"
        )
        variant: Literal["negatives", "no-negatives"] = Field(
            "negatives", description="the lowest classes have a negative pseudo-label, or none of either kind"
        )

    def __init__(self, params: Any, task: Task) -> None:
        """Cosines of train images to classes are on the CPU, and go where they are wanted."""
        super().__init__(params, task)
        self.similarity = task.artifacts["similarity"]

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Cross-entropy on known labels, the robust mixture on unknown ones, weighted pseudo-labels, the penalty."""
        p, done = self.params, progress.epoch / progress.num_epochs

        def at(start: str, end: str) -> Tensor:
            first = getattr(p, start)
            return matching(first + done * (getattr(p, end) - first), output)

        positive, negative = self._pseudo(batch)
        self.marked.add(positive | negative)
        probability = torch.sigmoid(output.detach())
        log_p, log_not_p, rho = F.logsigmoid(output), F.logsigmoid(-output), matching(p.rho, output)
        v = torch.exp(-((probability - at("mu_start", "mu_end")) / at("sigma_start", "sigma_end")).square() / 2)
        present = torch.sigmoid(at("slope_start", "slope_end") * probability + at("offset_start", "offset_end"))
        as_positive, as_negative = _robust(log_p, matching(p.q2, output)), _robust(log_not_p, matching(p.q3, output))
        unknown = v * (present * as_positive + (1 - present) * as_negative)
        weight = torch.minimum(torch.maximum(1 - v, matching(p.weight_min, v)), matching(p.weight_max, v))
        unknown = torch.where(positive, -weight * (rho * log_p + (1 - rho) * log_not_p), unknown)
        unknown = torch.where(negative, -v * log_not_p, unknown)
        of_images = known_cross_entropy(output, batch.labels) + torch.where(batch.labels == 0, unknown, 0.0).sum(dim=-1)
        num_images, num_classes = output.shape[-2:]
        excess = expected_positives_penalty(output, num_positives=p.num_positives)
        strength = matching(p.penalty, output).reshape(-1) if isinstance(p.penalty, Tensor) else p.penalty
        return Loss(of_images.sum(dim=-1) + num_images * num_classes * strength * excess, float(num_images))

    def _pseudo(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Masks of the unknown labels that count as present, and of those that count as absent."""
        p = self.params
        self.similarity = self.similarity.to(batch.index.device)  # once: it stays there
        cosines = self.similarity[batch.index]
        likelihood = torch.softmax(cosines / matching(p.temperature, cosines), dim=-1)
        # of equal cosines the class that comes first is the higher one
        rank = cosines.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        num_classes = cosines.shape[-1]
        share = torch.as_tensor(p.negative_share, dtype=torch.float64, device=cosines.device)
        low = rank >= num_classes - torch.floor(share * num_classes + 1e-9)  # 0.3 of 10 classes are 3
        high = (rank < matching(p.top_k, cosines)) & (likelihood >= matching(p.threshold, likelihood)) & ~low
        unknown = batch.labels == 0
        return high & unknown, low & unknown & (p.variant == "negatives")

    def idle(self) -> list[str]:
        """That no label had a pseudo-label."""
        if self.marked.total():
            return []
        return ["no unknown label had a pseudo-label, so this was GR Loss with a penalty"]

    def diagnostics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The unknown labels that count as present, and as absent."""
        positive, negative = self._pseudo(batch)
        return {"pseudo_positive": positive, "pseudo_negative": negative}


def _robust(log_hit: Tensor, q: Tensor) -> Tensor:
    """`(1 - hit^q) / q`, from the logarithm of the probability of a hit: finite where that probability is 0."""
    return -torch.expm1(q * log_hit) / q

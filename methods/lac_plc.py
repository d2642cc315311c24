"""Pseudo-label consistency of LAC: what one view is sure of teaches a strongly augmented one (Xie et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageDraw
from pydantic import Field
from torch import Tensor, nn

from plbench.api import Batch, Loss, Method, MethodParams, Progress, tunable
from plbench.losses import partial_asymmetric_loss


class LACPLC(Method):
    """`CE, Negative on the weak view + lambda C mean_S BCE(q, y)`, q: p of the strong view; S: cells that p is sure of.

    An unknown label is in S, with y = 1, where the weak view's p is at least tau, and with y = 0 where it is below
    1 - tau; known labels are in S with their own y. The mean is over S of the whole batch, and no gradient goes through
    the weak view's p there. The weak view is the run's own training transform; the strong one, before the same
    transform with other draws, paints a square of half the side and does RandAugment, colour jitter and a conversion to
    grey.

    This is the first of the released code's two stages, times C as all losses here. The second, which goes on from it
    with tau = 0.9, adds the label-aware contrastive term that LAC is named after; it is not here. The paper was at hand
    as its abstract, so the equations are the code's. RandAugment is torchvision's with 2 operations of magnitude 9,
    where the code takes a package of its own. Written for data without verified negatives: where there are some, they
    are in S with y = 0. Features have no second view, so the probe regime is refused.
    """

    name = "lac-plc"
    title = "PLC (LAC)"
    paper = "Xie et al., NeurIPS 2022"
    batch_scope = "batch"
    needs = frozenset({"images"})
    tags = frozenset({"single-positive", "reference"})

    class Params(MethodParams):
        """The released code's, for COCO; it says of no other dataset."""

        plc_weight: float = tunable(1.0, 0.1, 4.0, log=True, ge=0.0, description="lambda, of the consistency")
        threshold: float = tunable(0.6, 0.5, 0.95, ge=0.5, le=1.0, description="tau: p from which a label is present")
        cutout: float = Field(0.5, ge=0.0, le=1.0, description="side of the square painted over, of the image's")

    def transform(self, train_transform: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return the weak and the strong view."""
        # not at the top: it takes long, and works once the run's own transform has loaded it
        from torchvision.transforms import v2  # type: ignore[import-untyped]

        jitter = v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
        distort = v2.Compose([v2.RandAugment(), jitter, v2.RandomGrayscale(0.2)])
        return WeakAndStrong(train_transform, distort, self.params.cutout)

    def forward(self, model: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return the logits of both views, [B, C]; where there is one view, it is both."""
        views = batch.views or (batch.inputs,)
        logits = model(torch.cat(views)).chunk(len(views))
        return {"weak": logits[0], "strong": logits[-1]}

    def scores(self, output: dict[str, Tensor]) -> Tensor:
        """Return the sigmoid of the weak view's logits."""
        return torch.sigmoid(output["weak"])

    def _believed(self, weak: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return which cells are taken for present and which for absent, bool [B, C]."""
        probability = torch.sigmoid(weak.detach())
        unknown = labels == 0
        is_present = (labels > 0) | (unknown & (probability >= self.params.threshold))
        return is_present, (labels < 0) | (unknown & (probability < 1 - self.params.threshold))

    def loss(self, output: dict[str, Tensor], batch: Batch, progress: Progress) -> Loss:
        """Return cross-entropy with unknown labels as negatives, and the consistency of the views."""
        weak, strong = output["weak"], output["strong"]
        is_present, is_absent = self._believed(weak, batch.labels)
        self.marked.add(is_present & (batch.labels == 0))
        plain = partial_asymmetric_loss(weak, batch.labels, gamma_pos=0.0, gamma_neg=0.0, gamma_unann=0.0)
        believed = is_present.to(torch.int8) - is_absent.to(torch.int8)
        sure = partial_asymmetric_loss(
            strong, believed, gamma_pos=0.0, gamma_neg=0.0, gamma_unann=0.0, unann_weight=0.0
        ).sum() / (believed != 0).sum().clamp(min=1)
        return Loss(plain.sum() + self.params.plc_weight * weak.numel() * sure, float(len(weak)))

    def idle(self) -> list[str]:
        """Say that no unknown label was ever taken for present."""
        if self.marked.total():
            return []
        return [f"no unknown label was taken for present: none had p >= tau = {self.params.threshold:g}"]

    def diagnostics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the unknown labels that are taken for present, and for absent."""
        is_present, is_absent = self._believed(output["weak"], batch.labels)
        unknown = batch.labels == 0
        return {"pseudo_positive": is_present & unknown, "pseudo_negative": is_absent & unknown}


@dataclass(frozen=True)
class WeakAndStrong:
    """Two views of an image. Draws from the global generators, which the loader seeds."""

    train_transform: Callable[[Any], Any]
    distort: Callable[[Image.Image], Image.Image]
    cutout: float

    def __call__(self, image: Image.Image) -> tuple[Any, Any]:
        """Return the plain view, and the one that is painted over and distorted."""
        return self.train_transform(image), self.train_transform(self.distort(self._painted(image)))

    def _painted(self, image: Image.Image) -> Image.Image:
        """Return the image with a rectangle of one random colour, part of which may lie outside."""
        image = image.copy()
        centre = [int(torch.randint(side, ())) for side in image.size]
        half = [int(self.cutout * side / 2) for side in image.size]
        colour = tuple(torch.randint(256, (3,)).tolist())
        box = [c - h for c, h in zip(centre, half, strict=True)] + [c + h for c, h in zip(centre, half, strict=True)]
        if self.cutout:
            ImageDraw.Draw(image).rectangle(box, fill=colour)
        return image

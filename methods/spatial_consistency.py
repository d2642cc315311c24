"""Spatial consistency: maps of random crops agree with a moving average of the whole image's (Verelst et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from plbench.api import Batch, ImageTransform, Loss, Progress, Task, TrainView, tunable
from plbench.losses import binary_cross_entropy
from plbench.losses.sample_state import check_state_size

from .ema_consistency import EMAConsistency


class SpatialConsistency(EMAConsistency):
    """`-sum_P log p - sum_N log(1 - p) - sum_E log(1 - p) + lambda sum_c mean_places |F_c - H_c|`; E: as below.

    F is the map of class scores of a training view: the linear head and the sigmoid at each place of the backbone's
    last feature map. H is the part that the view shows of the image's heatmaps, which are a moving average over epochs,
    `mu H + (1 - mu) F`, of the whole image's maps; it is cropped and mirrored as the view is. p is the sigmoid of the
    mean over places of the head's logits, so the head and the pooling that a run asks for are not used. E are the
    expected negatives of `ema-consistency`, which also has k. In the first epoch there are no averages, so that all
    unknown labels are in E and nothing is consistent.

    The abstract and the beginning of the introduction were at hand, and nothing that the authors released. They say
    that each training image has a running-average heatmap of each class, that the maps of training views are consistent
    with these averages, and that this recovers the right supervision where a crop misses most of the annotated object.
    The absolute distance, the sigmoid in F, bilinear resizing and mu are from somebody else's attempt at the method.
    Ours: that the distance is over all labels, since it is a known one that the crop misses; that it is a mean over
    places; that p comes from the mean of logits; that maps are measured after each epoch, on plain images and by the
    weights in training, where the paper may paste in those of the crops; that the first maps are the first averages;
    lambda; the side of the heatmaps, and float16 for them; E, as `ema-consistency` says. Views are the run's own.
    Without crops and flips in its plan, H differs from F by its age alone; with cutout, what is hidden has to agree,
    too. The probe regime is refused, since features have no views, and so is a RandAugment that rotates, shears or
    shifts.
    """

    name = "spatial-consistency"
    title = "EN + spatial consistency"
    needs = frozenset({"images", "feature_map", "sample_state"})

    class Params(EMAConsistency.Params):
        """k as of `epr`, the rest as of `ema-consistency`; the side is ours."""

        consistency: float = tunable(0.1, 0.01, 2.0, log=True, ge=0.0, description="lambda, of the distance from H")
        side: int = Field(7, ge=1, description="most places on a side of the heatmaps; larger maps are averaged to it")

    def __init__(self, params: Any, task: Task) -> None:
        """Keep no heatmaps yet.

        Raises:
            PlbenchError: if they would not fit into memory.
        """
        super().__init__(params, task)
        side = self.params.side
        check_state_size(
            2 * task.num_train * task.num_classes * side**2,
            method=self.name,
            keeps=f"heatmaps of {side} x {side} places of each of {task.num_train:,} x {task.num_classes:,} labels",
            cure="give a smaller side with -P side=, or use ema-consistency, which keeps one number of each label",
        )
        self.heatmaps = torch.empty(0, task.num_classes, 0, 0, dtype=torch.float16)

    def build(self, backbone: nn.Module, make_head: Callable[[], nn.Module]) -> nn.Module:
        """Return the backbone, which gives feature maps, and a linear head at each place: logits [B, C, h, w]."""
        num_features = int(backbone.num_features)  # type: ignore[arg-type]
        return nn.Sequential(backbone, nn.Conv2d(num_features, self.task.num_classes, kernel_size=1))

    def transform(self, train_transform: ImageTransform) -> Callable[[Any], Any]:
        """Return the run's own view, and where it lies."""
        return train_transform.with_location()

    def scores(self, output: Tensor) -> Tensor:
        """Return the sigmoid of the logits' mean over places."""
        return torch.sigmoid(output.mean(dim=(-2, -1)))

    def epoch_end(self, view: TrainView, progress: Progress) -> None:
        """Bring heatmaps and average scores up to date."""
        is_first, mu = not len(self.average), self.params.momentum
        for rows, measured in view.compute(self._scores_and_maps, weights="raw"):
            scores, maps = measured[:, :, 0, 0], measured[:, :, 1:]
            if is_first and not len(self.average):
                self.average = torch.empty(self.task.num_train, self.task.num_classes)
                self.heatmaps = torch.empty(self.task.num_train, *maps.shape[1:], dtype=torch.float16)
            if not is_first:
                scores = mu * self.average[rows] + (1 - mu) * scores
                maps = mu * self.heatmaps[rows].float() + (1 - mu) * maps
            self.average[rows], self.heatmaps[rows] = scores, maps.half()

    def _scores_and_maps(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return the maps of scores of whole images, [B, C, 1 + h, w]; all of their first row is the image's score."""
        logits = model(images)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        height, width = (min(places, self.params.side) for places in logits.shape[-2:])
        maps = F.adaptive_avg_pool2d(torch.sigmoid(logits), (height, width))
        return torch.cat([self.scores(logits)[:, :, None, None].expand(-1, -1, 1, width), maps], dim=2)

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Return cross-entropy on known labels and expected negatives, and the distance from the heatmaps."""
        logits, present = output.mean(dim=(-2, -1)), batch.labels > 0
        if not len(self.average):
            return Loss.of_images(binary_cross_entropy(logits, present))
        index = batch.index.cpu()
        weight = self._weight(self.average[index].to(logits), batch.labels)
        self.marked.add(weight == 0)
        # a batch without locations shows whole images
        location = batch.views[1] if batch.views else torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(len(index), -1)
        shown = part_shown(self.heatmaps[index].to(output), location.to(output), output.shape[-2:])
        distance = (torch.sigmoid(output) - shown).abs().mean(dim=(-2, -1)).sum(dim=1)
        return Loss.of_images(binary_cross_entropy(logits, present, weight) + self.params.consistency * distance)

    def idle(self) -> list[str]:
        """Say that every unknown label was an expected negative, or that no map was compared with an average."""
        if self.task.epochs > 1 and self.params.consistency:
            return super().idle()
        why = "lambda is 0" if self.task.epochs > 1 else "averages come from earlier epochs, and there was one epoch"
        return [*super().idle(), f"no map was compared with an average: {why}"]

    def state_dict(self) -> dict[str, Any]:
        """Return heatmaps and average scores."""
        return {**super().state_dict(), "heatmaps": self.heatmaps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore heatmaps and average scores."""
        super().load_state_dict(state)
        self.heatmaps = state["heatmaps"]


def part_shown(heatmaps: Tensor, location: Tensor, size: torch.Size) -> Tensor:
    """Return the part of each image's heatmaps that a view shows, interpolated bilinearly at the view's places.

    Values lie at the centres of places; beyond the outermost centres they go on as they are.

    Args:
        heatmaps: [B, C, h, w] of whole images.
        location: [B, 4] left, top, right and bottom edge of the views in units of the images' sides, left > right where
            they are mirrored.
        size: height and width of the views' maps.

    Returns:
        [B, C, *size].
    """
    height, width = size
    left, top, right, bottom = location[:, :, None].unbind(dim=1)
    x = left + (right - left) * (torch.arange(width, device=location.device) + 0.5) / width
    y = top + (bottom - top) * (torch.arange(height, device=location.device) + 0.5) / height
    # torch counts from -1 to 1
    grid = 2 * torch.stack([x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], dim=-1) - 1
    return F.grid_sample(heatmaps, grid, padding_mode="border", align_corners=False)

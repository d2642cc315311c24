"""Soft negatives by visual patterns: how surely an unknown label is absent, from features (Kundu & Tighe 2020)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from plbench.api import (
    Batch,
    Loss,
    Method,
    MethodParams,
    PartialLabels,
    PlbenchError,
    Progress,
    Task,
    TrainView,
    tunable,
)
from plbench.losses import temperature_negative_loss
from plbench.sample_state import CellValues, check_state_size

_FAR = 1.0
"""Cosine distance of features that have nothing in common: what counts where there is no evidence."""

_BLOCK = 512  # images that are compared with all at once: 33 MB where there are 16,000


class KunduTighe(Method):
    """`-sum_P log p - sum_N log(1 - p) - sum_U log(1 - sigmoid(z / T_xc))`: the likelier present, the higher T.

    Distances are cosine distances in the feature space of the backbone before training, which stays as it is:

    - between labels: of the median features of the images in which they are known to be present;
    - between images: to the nearest of an image's `neighbours` nearest neighbours that has a label known.

    The evidence `d+` that label c of image x is present is the smallest of its distances to the labels that x is known
    to show and to the neighbours that are known to show c; the evidence `d-` that it is absent, the smallest to the
    labels that x is known not to show and to the neighbours that are known not to show c. Where there is none, and
    beyond 1, the distance is 1. Then `T = 1 + (T_max - 1) d- / (d+ + d-)`, one half where both are 0: `T_max = 1` is
    `ce-negative`, and an even temperature is `se-negative` with `variant=temperature`.

    The paper was at hand only through its abstract and its published reviews, which say what distances there are, that
    they are of ImageNet features, and that a temperature comes from the smallest. How it comes from them, the metric,
    what counts where there is no evidence, and the values of all parameters are ours.
    """

    name = "kundu-tighe"
    title = "Soft negatives by patterns"
    paper = "Kundu and Tighe, NeurIPS 2020"
    needs = frozenset({"sample_state"})
    tags = frozenset({"single-positive", "system"})

    class Params(MethodParams):
        """Ours."""

        max_temperature: float = tunable(
            4.0, 1.0, 10.0, log=True, ge=1.0, description="T_max: of a label that is surely present"
        )
        neighbours: int = Field(10, ge=1, description="nearest images whose labels are looked at")

    def __init__(self, params: Any, task: Task) -> None:
        """Knows no distances yet.

        Raises:
            PlbenchError: if they would not fit into memory.
        """
        super().__init__(params, task)
        known = float(task.positives.sum() + task.negatives.sum())
        check_state_size(
            12 * min(params.neighbours * known, task.num_train * task.num_classes) + 4 * task.num_classes**2,
            method=self.name,
            keeps=f"what {params.neighbours} neighbours of each of {task.num_train:,} images are known to show or not "
            f"to show, and distances between {task.num_classes:,} classes",
            cure="give a smaller -P neighbours, or use se-negative, which keeps none",
        )
        self.between_labels = torch.full((task.num_classes, task.num_classes), _FAR)
        self.to_present, self.to_absent = CellValues(task.num_classes), CellValues(task.num_classes)

    def epoch_start(self, view: TrainView, progress: Progress) -> None:
        """Measures all distances, once, before anything is trained."""
        if progress.step:
            return
        chunks = []
        for _, chunk in view.compute(_features, weights="raw"):
            self._check_features(chunk)
            chunks.append(nn.functional.normalize(chunk, dim=1))
        features = torch.cat(chunks).numpy()
        self.between_labels = label_distances(features, view.labels)
        self.to_present, self.to_absent = neighbour_distances(features, view.labels, self.params.neighbours)

    def _check_features(self, features: Tensor) -> None:
        check_state_size(
            8 * self.task.num_train * features.shape[1],
            method=self.name,
            keeps=f"{features.shape[1]:,} features of each of {self.task.num_train:,} images while it measures",
            cure="use se-negative, which keeps none",
        )

    def temperature(self, batch: Batch) -> Tensor:
        """T of each label, [B, C] in [1, T_max]; it matters where the label is unknown."""
        present = torch.minimum(self._to_labels(batch.labels > 0), self._to_images(self.to_present, batch.index))
        absent = torch.minimum(self._to_labels(batch.labels < 0), self._to_images(self.to_absent, batch.index))
        both = present + absent
        return 1 + (self.params.max_temperature - 1) * torch.where(both > 0, absent / both, 0.5)

    def _to_labels(self, which: Tensor) -> Tensor:
        """Smallest distance of each label from those marked of its image, [B, C]."""
        row, column = which.nonzero(as_tuple=True)
        distances = self.between_labels.to(which.device)
        place = row[:, None].expand(-1, which.shape[1])
        farthest = torch.full(which.shape, _FAR, device=which.device)
        return farthest.scatter_reduce(0, place, distances[column], "amin")

    def _to_images(self, known: CellValues, rows: Tensor) -> Tensor:
        has_value, distance = known.dense(rows)
        return torch.where(has_value, distance, _FAR)

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Cross-entropy with unknown labels as negatives of their own temperature."""
        return Loss.of_images(temperature_negative_loss(output, batch.labels, temperature=self.temperature(batch)))

    def state_dict(self) -> dict[str, Any]:
        """All distances."""
        return {
            "between_labels": self.between_labels,
            "to_present": self.to_present.state_dict(),
            "to_absent": self.to_absent.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores all distances."""
        self.between_labels = state["between_labels"]
        self.to_present.load_state_dict(state["to_present"])
        self.to_absent.load_state_dict(state["to_absent"])


def _features(model: nn.Module, inputs: Tensor) -> Tensor:
    """What the backbone makes of images, which stands first in the model; features as they are."""
    features: Tensor = model[0](inputs)  # type: ignore[index]
    return features


def label_distances(features: np.ndarray, labels: PartialLabels) -> Tensor:
    """Cosine distances [C, C], at most 1, between the median features of the images that show each class.

    Args:
        features: [N, D] of unit length.
        labels: of the same images. A class that none is known to show is far from all.
    """
    columns = labels.matrix.tocsc()
    medians = np.zeros((labels.num_classes, features.shape[1]), np.float32)
    for column in range(labels.num_classes):
        cells = slice(columns.indptr[column], columns.indptr[column + 1])
        rows = columns.indices[cells][columns.data[cells] > 0]
        if len(rows):
            medians[column] = np.median(features[rows], axis=0)
    length = np.linalg.norm(medians, axis=1, keepdims=True)
    unit = np.divide(medians, length, out=np.zeros_like(medians), where=length > 0)
    return torch.from_numpy(1 - unit @ unit.T).clamp(0.0, _FAR)


def neighbour_distances(features: np.ndarray, labels: PartialLabels, number: int) -> tuple[CellValues, CellValues]:
    """Cosine distance, at most 1, of each image's nearest neighbour that shows a class, and of the one that does not.

    Args:
        features: [N, D] of unit length.
        labels: of the same images.
        number: neighbours of an image that count; never itself.

    Returns:
        Distances at the cells where a neighbour is known to show the class, and where one is known not to.

    Raises:
        PlbenchError: if there is only one image.
    """
    if len(features) < 2:
        raise PlbenchError("method 'kundu-tighe' compares images, and there is only one; give more images to train on")
    distances, neighbours = _nearest(torch.from_numpy(features), min(number, len(features) - 1))
    present, absent = CellValues(labels.num_classes), CellValues(labels.num_classes)
    for place in range(neighbours.shape[1]):  # the nearest first, whose distance stays
        known = labels.matrix[neighbours[:, place]].tocoo()
        cells = torch.from_numpy(known.row.astype(np.int64) * labels.num_classes + known.col)
        values = distances[known.row, place]
        is_present = torch.from_numpy(known.data > 0)
        present.add(cells[is_present], values[is_present])
        absent.add(cells[~is_present], values[~is_present])
    return present, absent


def _nearest(features: Tensor, number: int) -> tuple[Tensor, np.ndarray]:
    """Cosine distances, at most 1, and indices of each image's nearest other images, the nearest first; each [N, K].

    scikit-learn's search gives the same in twice the time, since it multiplies in float64.
    """
    distances, neighbours = [], []
    for start in range(0, len(features), _BLOCK):
        block = features[start : start + _BLOCK]
        cosine = block @ features.T
        itself = torch.arange(len(block))
        cosine[itself, start + itself] = -torch.inf
        nearest, index = cosine.topk(number, dim=1)
        distances.append((1 - nearest).clamp(0.0, _FAR))
        neighbours.append(index)
    return torch.cat(distances), torch.cat(neighbours).numpy()

"""A run's model as one network, from normalised images to scores, and the description that its users need."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plbench import __version__
from plbench.errors import PlbenchError
from plbench.loading.features import feature_dtype
from plbench.method import Batch, Method, Progress
from plbench.models.backbones import Backbone
from plbench.runs.trained import TrainedModel
from plbench.training.execution import widened

TOLERANCE = 1e-4
"""Largest difference of a score in [0, 1] that float32 rounding in deep networks explains; typical values are 1e-6."""

MAPS_TOLERANCE = 1e-3
"""The same if feature maps are rounded to float16 between backbone and head: their last bit may differ."""


class Network(nn.Module):
    """Map normalised images [B, 3, S, S] to scores [B, C] float32 in [0, 1], as `plbench predict` computes them.

    In the probe regime, it joins the frozen backbone and the head. Feature maps are rounded to float16 in between, as
    in a run's cache; pooled features are not.
    """

    def __init__(self, model: TrainedModel) -> None:
        """Take the parts of a model, which must be on the CPU."""
        super().__init__()
        self.backbone, self.model = model.backbone, model.model
        shape: tuple[int, ...] = () if self.backbone is None else self.backbone.feature_shape  # type: ignore[assignment]
        self.rounds = self.backbone is not None and feature_dtype(shape) == "<f2"
        self.tolerance = MAPS_TOLERANCE if self.rounds else TOLERANCE
        self._method: Method = model.method
        self._num_classes = len(model.class_names)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Return scores."""
        inputs = images
        if self.backbone is not None:
            inputs = self.backbone(images)
            inputs = inputs.to(torch.float16).to(torch.float32) if self.rounds else inputs
        size = images.shape[0]
        labels = torch.zeros(size, self._num_classes, dtype=torch.int8)  # all unknown
        output = self._method.forward(self.model, Batch(inputs, labels, torch.arange(size)), Progress(0, 1, 0, 1))
        return self._method.scores(widened(output)).float()


def fixed_graph(network: Network, size: int, method: str) -> torch.export.ExportedProgram:
    """Return the network as a graph that does not depend on the images or the batch size.

    Args:
        size: S, the side of an image. method: its name, for messages.

    Raises:
        PlbenchError: if torch finds no such graph, because the control flow depends on computed values.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about torch's own internals
            images = torch.zeros(2, 3, size, size)
            return torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    except Exception as error:  # torch.export raises many types, its own and Python's
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise PlbenchError(
            f"a model of method {method!r} cannot be exported, since its steps are not the same for all images: "
            f"torch.export says {reason!r}; score images with plbench predict"
        ) from error


@dataclass(frozen=True)
class PlainParts:
    """A timm backbone with plain layers, whose weights determine the scores: the sigmoid of their output.

    Attributes:
        architecture: timm's name, without a tag.
        layers: `nn.Linear` and `nn.ReLU`.
    """

    architecture: str
    backbone: Backbone
    layers: tuple[nn.Module, ...]


def plain_parts(model: TrainedModel, images: Tensor, scores: Tensor) -> PlainParts:
    """Return the parts of a model if it consists of nothing else.

    Args:
        images: [B, 3, S, S], for the test. scores: [B, C] of these images.

    Raises:
        PlbenchError: if the weights alone do not determine the scores, or timm lacks the architecture.
    """
    from timm.models import model_entrypoint

    name, spec = model.record.spec.method.name, model.record.spec.model
    instead = 'export it with `to="onnx"` or `to="torchscript"`'
    if spec.is_spatial:
        raise PlbenchError(
            f"weights alone cannot be used without plbench if the head is {spec.head!r}, which neither timm nor "
            f"torch knows; {instead}"
        )
    parts = list(model.model) if isinstance(model.model, nn.Sequential) else []
    head = parts[1] if len(parts) == 2 else None
    layers = tuple(part for part in head if not isinstance(part, nn.Dropout)) if isinstance(head, nn.Sequential) else ()
    backbone = parts[0] if parts and model.backbone is None else model.backbone
    is_plain = bool(layers) and all(type(layer) in (nn.Linear, nn.ReLU) for layer in layers)
    if not is_plain or not isinstance(backbone, Backbone):
        raise PlbenchError(f"method {name!r} builds a network of its own around the backbone; {instead}")
    with torch.inference_mode():
        plain = torch.sigmoid(nn.Sequential(backbone, *layers)(images))
    if not torch.allclose(plain, scores, rtol=0, atol=TOLERANCE):
        raise PlbenchError(f"method {name!r} gives scores that are not the sigmoid of its head's output; {instead}")
    architecture = spec.backbone.partition(".")[0]
    if not model_entrypoint(architecture).__module__.startswith("timm."):
        raise PlbenchError(f"timm alone cannot build the backbone {architecture}; {instead}")
    return PlainParts(architecture, backbone, layers)


def description(model: TrainedModel) -> dict[str, Any]:
    """Return what users of an exported model need to know, by name, as JSON values.

    "image_size" is the side of the square that an image is resized to, without keeping its aspect ratio ("resize":
    "squash", "crop": "none"). The input is pixels in [0, 1] minus "mean", divided by "std". "thresholds" are those of
    the classes, in the order of "class_names"; they are missing if the run chose none.
    """
    record = model.record
    spec, task = record.spec.model, model.method.task
    chosen = any(metrics.thresholds is not None for metrics in record.metrics.values())
    return {
        "class_names": list(model.class_names),
        "class_ids": list(task.class_ids),
        **({"thresholds": model.thresholds().tolist()} if chosen else {}),
        "image_size": spec.image_size,
        "resize": "squash",
        "interpolation": "bilinear",
        "crop": "none",
        "mean": list(spec.mean),
        "std": list(spec.std),
        "run": record.key,
        "method": record.spec.method.name,
        "protocol": record.spec.protocol.name,
        "plbench": __version__,
    }

"""Routes from an image file to the device: the work of workers and of the device.

Of each route, `item` and `collate` run in workers, `move` copies batches, and `finish` runs where they are used. `item`
may use the global generators, which the loader seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import default_collate

from plbench.loading.transforms import EvalTransform, TrainTransform, Transform, erase

if TYPE_CHECKING:
    from plbench.data.images import ImageSource

Views = tuple[Tensor, ...]


@dataclass(frozen=True)
class WholeTransform:
    """Workers do all of a custom transform, which may return several views as a tuple."""

    source: ImageSource
    transform: Transform
    min_side: int

    def item(self, row: int) -> Views:
        """Return the views of one image."""
        made = self.transform(self.source.load(row, self.min_side))
        return made if isinstance(made, tuple) else (made,)

    def collate(self, items: Sequence[Views]) -> Views:
        """Return each view of all images, stacked."""
        return tuple(default_collate(list(view)) for view in zip(*items, strict=True))

    def move(self, batch: Views, rows: Tensor, device: torch.device) -> Views:
        """Copy the views as they are; images become channels-last."""

        def moved(view: Any) -> Any:
            if not isinstance(view, Tensor):
                return view
            layout = torch.channels_last if view.ndim == 4 else torch.preserve_format
            return view.to(device, memory_format=layout, non_blocking=True)

        return tuple(moved(view) for view in batch)

    def finish(self, moved: Views) -> Views:
        """Return the views unchanged."""
        return moved


class Unscaled(NamedTuple):
    """A batch before scaling.

    Attributes:
        pixels: uint8 [B, H, W, 3]. boxes: int64 [B, 4] cutout box of each image; None without cutout.
    """

    pixels: Tensor
    boxes: Tensor | None


@dataclass(frozen=True)
class UnscaledPixels:
    """Workers decode, resize and augment uint8 data; the device scales, normalises and applies cutout.

    This transfers a quarter of the bytes of float32 through shared memory and to the device, without transposing:
    Pillow's layout is the channels-last layout of models.
    """

    source: ImageSource
    transform: EvalTransform | TrainTransform
    min_side: int

    @property
    def base(self) -> EvalTransform:
        """The transform for resizing and scaling."""
        return self.transform.base if isinstance(self.transform, TrainTransform) else self.transform

    def item(self, row: int) -> Any:
        """Return pixels [H, W, 3] and box [4] of one image, as `Unscaled`."""
        return Unscaled(self.pixels(row), self.box())

    def pixels(self, row: int) -> Tensor:
        """Return an augmented Pillow image as uint8 [H, W, 3]."""
        return self.transform.pixels(self.source.load(row, self.min_side))

    def box(self) -> Tensor | None:
        """Return the cutout box of the last augmented image; None without cutout."""
        cuts = isinstance(self.transform, TrainTransform) and self.transform.erase is not None
        return self.transform.box() if cuts else None  # type: ignore[union-attr]

    def collate(self, items: Sequence[Any]) -> Any:
        """Return pixels and boxes, stacked."""
        return Unscaled(default_collate([item.pixels for item in items]), stacked_boxes(items))

    def move(self, batch: Any, rows: Tensor, device: torch.device) -> Unscaled:
        """Copy pixels and boxes to the device."""
        boxes = None if batch.boxes is None else batch.boxes.to(device, non_blocking=True)
        return Unscaled(batch.pixels.to(device, non_blocking=True), boxes)

    def finish(self, moved: Unscaled) -> Views:
        """Return one view, float32 [B, 3, H, W]: scaled, normalised, with cutout."""
        images = self.base.scaled(moved.pixels)
        if moved.boxes is not None:
            erase(images, moved.boxes)
        return (images,)


Route = WholeTransform | UnscaledPixels


def stacked_boxes(items: Sequence[Any]) -> Tensor | None:
    """Return boxes [B, 4] of a batch; None if items have none."""
    boxes = [item.boxes for item in items]
    return None if boxes[0] is None else torch.stack(boxes)

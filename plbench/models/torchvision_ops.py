"""Make `import timm` work if torchvision's compiled operators cannot be loaded. Import this before timm.

torchvision on PyPI is a CUDA build. With a CPU-only torch, its C++ library does not load, and its Python part then
fails to register shapes for undeclared operators. plbench uses none of them, so it only declares the two schemas. If
the real operators are loaded, it does nothing.
"""

from __future__ import annotations

import torch

_BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def _declare_missing() -> torch.library.Library | None:
    """Declare `torchvision::nms` and `torchvision::qnms` if torchvision fails without them."""
    try:
        import torchvision  # type: ignore[import-untyped]  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(operator + _BOXES)
        return library
    return None


DECLARED = _declare_missing()
"""The library with the declarations, which must be kept alive; None if not needed."""

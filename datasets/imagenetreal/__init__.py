"""ImageNet, trained on its single labels and tested on the reassessed ones."""

from .dataset import ImageNetReal

__all__ = ["ImageNetReal"]

"""20,000 photographs of COCO 2014."""

from .dataset import Coco20k

__all__ = ["Coco20k"]

"""COCO of 2014 and of 2017."""

from .dataset import Coco2014, Coco2017

__all__ = ["Coco2014", "Coco2017"]

"""OpenImages V6, V3, and V6 as the authors of CSL publish it."""

from .csl import OpenImagesV6Csl
from .dataset import OpenImagesV3, OpenImagesV6

__all__ = ["OpenImagesV3", "OpenImagesV6", "OpenImagesV6Csl"]

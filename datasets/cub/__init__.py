"""Caltech-UCSD Birds with their attributes."""

from .dataset import CubAttributes, CubAttributesCole

__all__ = ["CubAttributes", "CubAttributesCole"]

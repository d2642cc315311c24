"""LVIS v1 and v0.5."""

from .dataset import Lvis, LvisV05

__all__ = ["Lvis", "LvisV05"]

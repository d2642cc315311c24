"""VISPR: what photographs tell of private matters."""

from .dataset import Vispr

__all__ = ["Vispr"]

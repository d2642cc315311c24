"""Scenes: pictures that plbench renders itself."""

from .dataset import Scenes

__all__ = ["Scenes"]

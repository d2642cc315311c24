"""UC Merced's aerial photographs with 17 classes."""

from .dataset import Ucm17

__all__ = ["Ucm17"]

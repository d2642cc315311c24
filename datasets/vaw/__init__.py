"""Visual Attributes in the Wild."""

from .dataset import Vaw

__all__ = ["Vaw"]

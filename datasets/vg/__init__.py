"""Visual Genome with its 200 and its 500 most frequent categories."""

from .dataset import Vg200, Vg500

__all__ = ["Vg200", "Vg500"]

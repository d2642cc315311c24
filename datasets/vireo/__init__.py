"""Chinese dishes and their ingredients."""

from .dataset import VireoFood172

__all__ = ["VireoFood172"]

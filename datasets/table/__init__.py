"""Your own labels, in a table."""

from .dataset import Table

__all__ = ["Table"]

"""The kit: checks that every method and every dataset must pass, for the authors of plugins."""

from plbench.testing.datasets import check_dataset
from plbench.testing.findings import CheckFailed, Finding
from plbench.testing.methods import check_method

__all__ = ["CheckFailed", "Finding", "check_dataset", "check_method"]

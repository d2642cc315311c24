"""Checks that every method and dataset must pass, for plugin authors."""

from plbench.testing.datasets import check_dataset
from plbench.testing.findings import CheckFailed, Finding
from plbench.testing.methods import check_method

__all__ = ["CheckFailed", "Finding", "check_dataset", "check_method"]

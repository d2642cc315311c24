"""NUS-WIDE in the three versions that papers mix."""

from .dataset import NusWide, NusWideAsl, NusWideCole

__all__ = ["NusWide", "NusWideAsl", "NusWideCole"]

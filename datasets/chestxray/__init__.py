"""Chest radiographs whose labels were read from reports: CheXpert and MIMIC-CXR-JPG."""

from .dataset import Chexpert, ChexpertTest, MimicCxrJpg

__all__ = ["Chexpert", "ChexpertTest", "MimicCxrJpg"]

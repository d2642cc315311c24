"""All that the author of a method or a dataset imports.

A method is one class: parameters with their ranges, and a loss. Everything else has a default. A dataset is one
class: where its files are, and what they say.
"""

from plbench.annotations.collect import Annotations, CellCollector
from plbench.columns import TextColumn
from plbench.dataset import Dataset, DatasetOptions, IndexedDataset, LabelledSplit
from plbench.download.remote import RemoteFile
from plbench.errors import DataError, PlbenchError
from plbench.images import ImageFiles, ImageSource
from plbench.labels import PartialLabels
from plbench.method import (
    Batch,
    Loss,
    Method,
    MethodParams,
    Progress,
    SearchRange,
    Stage,
    Task,
    TrainView,
    stacked_value,
    tunable,
)
from plbench.progress import ProgressReport
from plbench.spec import ModelSpec, Plan, Recipe
from plbench.spec import Protocol as BenchmarkProtocol

__all__ = [
    "Annotations",
    "Batch",
    "BenchmarkProtocol",
    "CellCollector",
    "DataError",
    "Dataset",
    "DatasetOptions",
    "ImageFiles",
    "ImageSource",
    "IndexedDataset",
    "LabelledSplit",
    "Loss",
    "Method",
    "MethodParams",
    "ModelSpec",
    "PartialLabels",
    "Plan",
    "PlbenchError",
    "Progress",
    "ProgressReport",
    "Recipe",
    "RemoteFile",
    "SearchRange",
    "Stage",
    "Task",
    "TextColumn",
    "TrainView",
    "stacked_value",
    "tunable",
]

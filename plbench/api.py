"""Everything that authors of methods and datasets import.

A method is one class: parameters with their ranges, and a loss. Everything else has a default. A dataset is one class
that says where its files are and reads their labels.
"""

import sys

from plbench.data.annotations.collect import Annotations, CellCollector
from plbench.data.dataset import Dataset, DatasetOptions, IndexedDataset, LabelledSplit
from plbench.data.download.remote import RemoteFile
from plbench.data.images import ImageFiles, ImageSource
from plbench.data.labels import PartialLabels
from plbench.data.text_column import TextColumn
from plbench.errors import DataError, PlbenchError
from plbench.losses import priors, sample_state, single_positive
from plbench.method import (
    Batch,
    BatchScope,
    ImageTransform,
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

# These are in plbench.losses now. Method files import them by their old names; the source of a method is hashed into
# its records and cannot change.
for old_name, module in (
    ("losses_single_positive", single_positive),
    ("priors", priors),
    ("sample_state", sample_state),
):
    sys.modules.setdefault(f"plbench.{old_name}", module)

__all__ = [
    "Annotations",
    "Batch",
    "BatchScope",
    "BenchmarkProtocol",
    "CellCollector",
    "DataError",
    "Dataset",
    "DatasetOptions",
    "ImageFiles",
    "ImageSource",
    "ImageTransform",
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

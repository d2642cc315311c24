"""Scores of several runs on images of their own dataset, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plbench.runs.inputs import OpenInputs
from plbench.runs.plan.resolved import features_model_of
from plbench.runs.protocol import Part, ProtocolData
from plbench.runs.trained import TrainedModel, load_model
from plbench.runs.workspace import Workspace


def models_of(folders: Sequence[Path], workspace: Workspace) -> list[TrainedModel]:
    """Return the models of finished runs.

    Raises:
        PlbenchError: if one cannot be loaded.
    """
    return [load_model(folder, workspace) for folder in folders]


def scores_by_run(
    models: Sequence[TrainedModel], part: Part, protocol_data: ProtocolData, workspace: Workspace
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """Stream scores of a part by several runs; in the probe regime from cached features.

    Args:
        models: of the runs, R of them.
        part: of `protocol_data`.
        protocol_data: with the runs' dataset.
        workspace: where and how.

    Yields:
        Row in the part of each image [b], and scores [R, b, C] in [0, 1].

    Raises:
        DataError: if an image cannot be read.
    """
    opened: dict[object, OpenInputs] = {}
    streams = []
    for model in models:
        spec = model.record.spec
        seen = features_model_of(type(model.method), spec.model)
        by_seed = spec.seed if seen.weights == "random" else None  # features of random weights depend on it
        inputs = opened.setdefault((seen, spec.precision, by_seed), OpenInputs(workspace))
        streams.append(model.part_scores(part, protocol_data, inputs))
    start = 0
    for batches in zip(*streams, strict=True):
        scores = np.stack([batch.numpy() for batch in batches])
        yield np.arange(start, start + scores.shape[1]), scores
        start += scores.shape[1]

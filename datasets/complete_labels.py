"""Labels that are complete as published, and the protocols that hide some of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from plbench.api import BenchmarkProtocol, DataError, PartialLabels
from plbench.data.simulation import parse

from .suggested import suggested_values

_MANY_CELLS = 1 << 25  # more than NUS-WIDE or Vireo has
COMMON = ("rpa=0.5", "single-positive", "none")
MLR_PL = tuple(f"mlr-pl=0.{tenth}" for tenth in range(1, 10))
CSL_README = "README of the CSL authors' code: its COCO values for FPC-1000 and RPA-0.5"


def simulated_protocols(
    name: str,
    simulations: Iterable[str] | Mapping[str, float],
    *,
    version: int = 1,
    selective: Mapping[str, Any] | None = None,
    **fields: Any,
) -> tuple[BenchmarkProtocol, ...]:
    """Return a protocol for each way to hide labels, in that order.

    Args:
        name: of the dataset.
        simulations: as `plbench.data.simulation.parse` reads them; with CSL's gamma_neg for each where values of its
            methods are suggested.
        version: of protocols whose runs draw labels of their own; others are of version 1.
        selective: suggested values of what `selective` ignores, beside its gammas.
        fields: the same for all of them, such as `train_split`, or the `sources` of suggested values.
    """
    protocols = []
    for simulation in map(parse, simulations):
        rules = {**simulation.rules, **fields}
        if isinstance(simulations, Mapping):
            gammas = {"gamma_pos": 0.0, "gamma_neg": simulations[simulation.text], "gamma_unann": 4.0}
            rules["suggested"] = suggested_values(gammas, selective or {})
        number = version if rules["simulation_seed"] is None else 1
        protocols.append(BenchmarkProtocol(name=f"{name}-{simulation.slug}/v{number}", dataset=name, **rules))
    return tuple(protocols)


def check_size(num_images: int, num_classes: int, path: Path) -> None:
    """Refuse lists of images and classes that are short themselves and whose labels [N, C] would fill the memory.

    Raises:
        DataError: if there are more labels than the file has bytes, and many.
    """
    if num_images * num_classes > max(_MANY_CELLS, path.stat().st_size):
        raise DataError(
            f"{path} has {num_classes:,} classes for {num_images:,} images, more labels than it has bytes; download it "
            "again"
        )


def complete_labels(present: np.ndarray, class_ids: tuple[str, ...], class_names: tuple[str, ...]) -> PartialLabels:
    """Return labels of which every cell [N, C] is known: many times faster than PartialLabels.from_dense."""
    num_images, num_classes = present.shape
    indices = np.tile(np.arange(num_classes, dtype=np.int32), num_images)
    indptr = np.arange(num_images + 1, dtype=np.int32) * np.int32(num_classes)
    values = 2 * present.astype(np.int8).ravel() - 1
    matrix = sparse.csr_array((values, indices, indptr), shape=present.shape)
    return PartialLabels(matrix, class_ids, class_names)

"""Labels that are complete as published, and the protocols that hide some of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from plbench.api import BenchmarkProtocol, PartialLabels


def complete_label_protocols(name: str) -> tuple[BenchmarkProtocol, ...]:
    """Return half of the labels known, one positive an image, and all known."""

    def protocol(variant: str, simulation: str, **rules: Any) -> BenchmarkProtocol:
        return BenchmarkProtocol(name=f"{name}-{variant}/v1", dataset=name, simulation=simulation, **rules)

    return (
        protocol("rpa0.5", "rpa=0.5"),
        protocol("single-positive", "single-positive", validation_labels="complete"),
        protocol("complete", "none"),
    )


def complete_labels(present: np.ndarray, class_ids: tuple[str, ...], class_names: tuple[str, ...]) -> PartialLabels:
    """Return labels of which every cell [N, C] is known: many times faster than PartialLabels.from_dense."""
    num_images, num_classes = present.shape
    indices = np.tile(np.arange(num_classes, dtype=np.int32), num_images)
    indptr = np.arange(num_images + 1, dtype=np.int32) * np.int32(num_classes)
    values = 2 * present.astype(np.int8).ravel() - 1
    matrix = sparse.csr_array((values, indices, indptr), shape=present.shape)
    return PartialLabels(matrix, class_ids, class_names)

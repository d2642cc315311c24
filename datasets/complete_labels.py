"""Protocols of datasets whose labels are complete as published, so that each run hides some of them itself."""

from __future__ import annotations

from typing import Any

from plbench.api import BenchmarkProtocol


def complete_label_protocols(name: str) -> tuple[BenchmarkProtocol, ...]:
    """Return half of the labels known, one positive an image, and all known."""

    def protocol(variant: str, simulation: str, **rules: Any) -> BenchmarkProtocol:
        return BenchmarkProtocol(name=f"{name}-{variant}/v1", dataset=name, simulation=simulation, **rules)

    return (
        protocol("rpa0.5", "rpa=0.5"),
        protocol("single-positive", "single-positive", validation_labels="complete"),
        protocol("complete", "none"),
    )

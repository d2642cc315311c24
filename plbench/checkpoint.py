"""Saving a training so that it can go on exactly where it stood, at an epoch's end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from plbench.errors import StoreError
from plbench.store import write_atomically


def save(path: Path, spec_sha256: str, state: dict[str, Any]) -> None:
    """Writes a checkpoint atomically: the last good one stays until the new one is whole.

    Args:
        spec_sha256: of the run that the state belongs to.
        state: tensors and plain values.

    Raises:
        StoreError: if it cannot be written.
    """
    write_atomically(path, lambda file: torch.save({"spec": spec_sha256, **state}, file))


def load(path: Path, spec_sha256: str) -> dict[str, Any]:
    """Reads a checkpoint of the same run, onto the CPU.

    Raises:
        StoreError: if it is damaged, or another run's.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        owner = state.pop("spec")
    except Exception as error:  # torch, zipfile and pickle each raise their own
        raise StoreError(f"checkpoint {path} cannot be read; delete it, or run with --force") from error
    if owner != spec_sha256:
        raise StoreError(f"checkpoint {path} belongs to another run ({owner[:16]}); delete it, or run with --force")
    return state

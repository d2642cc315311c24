"""What is installed and what it says of itself: methods and datasets, as plain values."""

from __future__ import annotations

import contextlib
import inspect
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np

from plbench.cli.wording import in_options
from plbench.data.dataset import Dataset
from plbench.errors import DataError, PlbenchError
from plbench.files import unwritable
from plbench.method import Task
from plbench.randomness import generator
from plbench.runs.registry import Registry
from plbench.runs.workspace import Workspace, dataset_root, locate_dataset

_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


_NEEDS = {
    "negatives": "verified negatives",
    "images": "images",
    "feature_map": "feature map",
    "sample_state": "per-sample state",
}


def list_methods(registry: Registry) -> list[dict[str, Any]]:
    """Return one row a method; a broken one has the reason in place of its title."""
    broken = registry.broken("method")
    rows = []
    for name in registry.names("method"):
        if name in broken:
            rows.append(_broken_row(name, "title", broken[name], ("needs", "cost", "paper", "from")))
            continue
        method = registry.method(name)
        stages = stage_names(registry, name)
        needs = [words for need, words in _NEEDS.items() if need in method.needs]
        needs += [f"{stage} (a run of {by})" for stage, by in stages]
        rows.append(
            {
                "name": name,
                "title": method.title,
                "needs": ", ".join(needs) or None,
                "cost": f"{1 + len(stages)} trainings" if stages else "1 training",
                "paper": method.paper or None,
                "from": registry.origin("method", name),
            }
        )
    return rows


def stage_names(registry: Registry, name: str) -> list[tuple[str, str]]:
    """Return the runs that must be there before a method's own, by stage and method, at default parameters.

    A stage that others of the list need, too, comes once: it is trained once.
    """
    found: dict[tuple[str, str], None] = {}
    method = registry.method(name)
    with contextlib.suppress(PlbenchError, RecursionError):  # what the method refuses is said when it is run
        names, counts = tuple(map(str, range(80))), np.full(80, 1000)  # as many classes as COCO, labels of every kind
        task = Task(80, names, names, counts, counts, 80_000, 30, 1000, "probe", generator(0, "catalogue"))
        for stage in method.stages(method.Params(), task):
            found |= dict.fromkeys(stage_names(registry, stage.method))
            found[stage.name, stage.method] = None
    return list(found)


def describe_method(registry: Registry, name: str) -> dict[str, Any]:
    """Return a method's reference, its docstrings and its parameters with default, type and search range."""
    method = registry.method(name)
    space = method.Params.search_space()
    params = []
    for field_name, info in method.Params.model_fields.items():
        limits = ", ".join(
            f"{sign} {getattr(limit, key):g}"
            for limit in info.metadata
            for key, sign in _SIGNS.items()
            if hasattr(limit, key)
        )
        search = space.get(field_name)
        params.append(
            {
                "name": field_name,
                "default": info.default,
                "type": _type_text(info.annotation),
                "valid": limits or None,
                "searched": None if search is None else _search_text(search.low, search.high, search.log),
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
    """Return one row a dataset: where it is, or what is missing and how to get it."""
    registry = workspace.registry
    broken = registry.broken("dataset")
    rows: list[dict[str, Any]] = []
    for name in registry.names("dataset"):
        if name in broken:
            rows.append(_broken_row(name, "title", broken[name], ("state", "folder", "protocols", "get")))
            continue
        kind = registry.dataset(name)
        state, get = _state(kind, workspace)
        rows.append(
            {
                "name": name,
                "title": kind.title,
                "state": state,
                "folder": str(dataset_root(kind, workspace)) if kind.needs_root else "",
                "protocols": ", ".join(protocol.name for protocol in kind.protocols),
                "get": get,
            }
        )
    return rows


def _state(kind: type[Dataset], workspace: Workspace) -> tuple[str, str | None]:
    """In a word or two how it stands with a dataset's files, and how to get what is not there."""
    try:
        dataset = locate_dataset(kind.name, workspace)
        missing = dataset.missing()
    except DataError as error:  # files that are there and are not right hide no other dataset
        return "not usable", in_options(str(error))
    hint = in_options(dataset.fetch_hint()) if missing else None
    if not kind.needs_files:
        return "drawn when first used", hint
    if not kind.needs_root:
        return "yours to give", hint
    return ("missing" if missing else "here"), hint


def describe_dataset(name: str, workspace: Workspace) -> dict[str, Any]:
    """Return licence, sources, protocols and recipes of a dataset, whether or not its files are here."""
    kind = workspace.registry.dataset(name)
    root = dataset_root(kind, workspace)
    state, get = _state(kind, workspace)
    return {
        "name": name,
        "title": kind.title,
        "about": inspect.cleandoc(kind.__doc__ or ""),
        "licence": kind.licence,
        "sources": list(kind.sources),
        "folder": str(root) if kind.needs_root else "",
        "state": state,
        "get": get,
        "protocols": [p.model_dump(mode="json") for p in kind.protocols],
        "recipes": [recipe.model_dump(mode="json") for recipe in kind.recipes],
    }


def make_fixture(registry: Registry, name: str, folder: Path) -> None:
    """Have a dataset write a small imitation of its published files.

    Raises:
        PlbenchError: if it has none, or the folder holds something. StoreError: if it cannot be written.
    """
    dataset = registry.dataset(name)(folder)
    try:
        if folder.exists() and any(folder.iterdir()):
            raise PlbenchError(f"{folder} holds other files; give a new or empty folder")
        dataset.make_fixture()
    except OSError as error:
        raise unwritable(folder, error) from error


def _type_text(kind: Any) -> str:
    """Return a type as a person would name it: "int", "int or none", "sample or batch"."""
    parts = [str(part) if isinstance(part, str) else _type_text(part) for part in get_args(kind)]
    if get_origin(kind) in (Literal, Union, UnionType):
        return " or ".join(parts)
    return "none" if kind is NoneType else getattr(kind, "__name__", str(kind))


def _search_text(low: Any, high: Any, log: bool) -> str:
    ends = ["a limit of the task" if callable(end) else f"{end:g}" for end in (low, high)]
    return f"{ends[0]} to {ends[1]}{' (log)' if log else ''}"


def _broken_row(name: str, column: str, reason: str, others: tuple[str, ...]) -> dict[str, Any]:
    return {"name": name, column: f"broken: {reason}", **dict.fromkeys(others)}

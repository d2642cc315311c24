"""What is installed and what it says of itself: methods and datasets, as plain values."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from plbench.api import Dataset
from plbench.errors import DataError, PlbenchError
from plbench.registry import Registry
from plbench.store import unwritable
from plbench.workspace import Workspace, dataset_root, locate_dataset

_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def list_methods(registry: Registry) -> list[dict[str, Any]]:
    """One row a method; a broken one has the reason in place of its title."""
    broken = registry.broken("method")
    rows = []
    for name in registry.names("method"):
        if name in broken:
            rows.append(_broken_row(name, "title", broken[name], ("needs", "paper", "from")))
            continue
        method = registry.method(name)
        prior = ", ".join(sorted(method.needs)) or None
        origin = registry.origin("method", name)
        rows.append(
            {
                "name": name,
                "title": method.title,
                "needs": prior,
                "paper": method.paper or None,
                "from": origin,
            }
        )
    return rows


def describe_method(registry: Registry, name: str) -> dict[str, Any]:
    """A method's reference, its docstrings and its parameters with default, type and search range."""
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
    """One row a dataset: where it is, or what is missing and how to get it."""
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
        return "not usable", str(error)
    hint = dataset.fetch_hint() if missing else None
    if not kind.needs_files:
        return "drawn when first used", hint
    if not kind.needs_root:
        return "yours to give", hint
    return ("missing" if missing else "here"), hint


def describe_dataset(name: str, workspace: Workspace) -> dict[str, Any]:
    """Licence, sources, protocols and recipes of a dataset, whether or not its files are here."""
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
    """Has a dataset write a small imitation of its published files.

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
    """A type as a person would name it: "int", "int or none", "sample or batch"."""
    parts = [str(part) if isinstance(part, str) else _type_text(part) for part in get_args(kind)]
    if get_origin(kind) in (Literal, Union, UnionType):
        return " or ".join(parts)
    return "none" if kind is NoneType else getattr(kind, "__name__", str(kind))


def _search_text(low: Any, high: Any, log: bool) -> str:
    ends = ["a limit of the task" if callable(end) else f"{end:g}" for end in (low, high)]
    return f"{ends[0]} to {ends[1]}{' (log)' if log else ''}"


def _broken_row(name: str, column: str, reason: str, others: tuple[str, ...]) -> dict[str, Any]:
    return {"name": name, column: f"broken: {reason}", **dict.fromkeys(others)}

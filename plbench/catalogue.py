"""What is installed and what it says of itself: methods and datasets, as plain values."""

from __future__ import annotations

import inspect
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from plbench.api import Dataset
from plbench.protocol import Material, choose_protocol, custom, is_official
from plbench.registry import Registry
from plbench.workspace import Workspace, dataset_root, open_dataset

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
        dataset = kind(dataset_root(kind, workspace))
        missing = dataset.missing()
        rows.append(
            {
                "name": name,
                "title": kind.title,
                "state": "drawn when first used" if not kind.needs_files else "missing" if missing else "here",
                "folder": str(dataset.root),
                "protocols": ", ".join(protocol.name for protocol in kind.protocols),
                "get": dataset.fetch_hint() if missing else None,
            }
        )
    return rows


def describe_dataset(name: str, workspace: Workspace) -> dict[str, Any]:
    """Licence, sources, protocols and recipes of a dataset, whether or not its files are here."""
    kind = workspace.registry.dataset(name)
    dataset: Dataset = kind(dataset_root(kind, workspace))
    return {
        "name": name,
        "title": kind.title,
        "about": inspect.cleandoc(kind.__doc__ or ""),
        "licence": kind.licence,
        "sources": list(kind.sources),
        "folder": str(dataset.root),
        "missing": dataset.missing(),
        "protocols": [p.model_dump(mode="json") for p in kind.protocols],
        "recipes": [recipe.model_dump(mode="json") for recipe in kind.recipes],
    }


def dataset_stats(name: str, simulate: str | None, workspace: Workspace) -> dict[str, Any]:
    """Known positives and negatives of every class, in train under a protocol and in test.

    Raises:
        DataError: if files are missing or malformed.
    """
    dataset = open_dataset(name, workspace)
    protocol = choose_protocol(dataset, simulate, None)
    if not is_official(dataset, protocol):
        protocol = custom(protocol)
    material = Material(dataset, protocol)
    train, test = material.train().labels, material.whole(protocol.test_split).labels
    counts = [*train.counts(), *test.counts()]
    names = ("train_positives", "train_negatives", "test_positives", "test_negatives")
    classes = [
        {"class": class_name, **{key: int(column[c]) for key, column in zip(names, counts, strict=True)}}
        for c, class_name in enumerate(train.class_names)
    ]
    return {
        "dataset": name,
        "protocol": protocol.name,
        "splits": [
            {
                "split": split,
                "images": labels.num_images,
                "classes": labels.num_classes,
                "known": labels.num_known,
                "density_percent": round(100 * labels.density, 3),
                "positives_per_image": round(float(labels.counts()[0].sum()) / labels.num_images, 4),
                "classes_without_positives": int((labels.counts()[0] == 0).sum()),
            }
            for split, labels in (("train", train), ("test", test))
        ],
        "classes": sorted(classes, key=lambda row: -row["train_positives"]),
    }


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

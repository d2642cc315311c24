"""Cached answers to repeated commands: their run or listing, without importing torch or plugins.

A cache entry is valid for a command with everything that determines its meaning: options, code, installed packages,
environment, and the state of all files that are part of the run's identity. If anything differs or cannot be checked,
there is no answer, and the request is resolved again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plbench.data.digests import settled, signature
from plbench.errors import PlbenchError
from plbench.files.checksums import read_checked_json, write_checked_json
from plbench.runs.record import Record
from plbench.runs.store import Store
from plbench.runs.stored import finished_record

if TYPE_CHECKING:
    from plbench.runs.plan.resolved import ResolvedRun
    from plbench.runs.workspace import Workspace

_MAX_FILES = 20_000
"""Maximum number of files to compare; for more, resolving the request hardly takes longer."""

_ABSENT = "absent"

_PACKAGES = ("plbench", "plbench.methods", "plbench.datasets")
_VARIABLES = ("PLBENCH", "PYTHON", "XDG_", "HOME", "TORCH", "PYTORCH", "TIMM", "HF_", "CUDA", "NVIDIA", "HIP", "ROCR")
_GPUS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg")  # exist if there is a driver


def command_sha256(options: Mapping[str, Any]) -> str | None:
    """Return a hash of a command with code, packages and environment; None if a file is being changed.

    Args:
        options: values by name, as given on the command line.
    """
    code: dict[str, str | None] = {}
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec is not None else ():
            for folder, _, names in os.walk(place):
                code |= {f"{folder}/{name}": _seen(f"{folder}/{name}") for name in names if not name.endswith(".pyc")}
    if isinstance(config := options.get("config"), Path):
        code[os.path.abspath(config)] = _seen(config)
    if None in code.values():
        return None
    installed: dict[str, int] = {}
    for place in filter(os.path.isdir, sys.path):
        with os.scandir(place) as entries:  # names contain versions, and folders contain entry points
            installed |= {e.path: e.stat().st_mtime_ns for e in entries if e.name.endswith((".dist-info", ".egg-info"))}
    environment = {name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)}
    gpus = [path for path in _GPUS if os.path.exists(path)]
    content = [options, os.getcwd(), code, installed, environment, sys.path, sys.version, gpus]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def basis(plan: ResolvedRun, workspace: Workspace, watched: Mapping[str, bytes]) -> dict[str, Any] | None:
    """Return the state of all files and folders by path on which the answer depends.

    None if this is not possible: on a GPU, which may not be available next time; with weights from a hub, which may
    change; with plugins, which may read any file; with images that are not files.

    Args:
        plan: resolved just now, on this workspace.
        watched: from `plbench.data.digests.watching`.
    """
    from plbench.data.dataset import IndexedDataset
    from plbench.data.images import ImageFiles
    from plbench.runs.plan.label_check import notes_on

    dataset = plan.protocol_data.dataset
    plugins = {plan.method, *(stage.method for _, stage in plan.stages.values()), type(dataset)}
    if any(not plugin.__module__.startswith(_PACKAGES[1:]) for plugin in plugins):
        return None
    if workspace.device.type != "cpu" or plan.spec.model.weights == "pretrained" or not all(watched.values()):
        return None
    if dataset.needs_files:
        images = [dataset.split(split).images for split in dataset.used_splits()]
        if not isinstance(dataset, IndexedDataset) or any(type(source) is not ImageFiles for source in images):
            return None
        listed = [path for path, _, _ in islice(os.walk(dataset.root), _MAX_FILES)]
        listed += {os.path.dirname(path) for path in watched}  # links may lead out of the root
    else:  # a generated dataset, described by files in the top folders
        listed = [str(path) for path in (dataset.root, *dataset.root.glob("*"), *dataset.root.glob("*/*"))]
    found = {path: seen.hex() for path, seen in watched.items()}
    found |= {os.path.abspath(path): _seen(path, fresh=True) or "" for path in listed}
    return {"files": found, "notes": notes_on(plan.protocol_data)} if len(found) <= _MAX_FILES else None


def remember(store: Store, command: str, key: str, next_steps: list[str], basis: Mapping[str, Any]) -> None:
    """Cache the run of a command, its next steps, and their `basis`.

    Raises:
        StoreError: if the cache cannot be written.
    """
    write_checked_json(_place(store, command), {"command": command, "key": key, "next": next_steps, **basis})


def recall(store: Store, command: str) -> tuple[Record, list[str], list[str]] | None:
    """Return the record of a command's run, checked against its tables, and the messages before and after it.

    None if the run is not known for certain, or its record is missing or damaged.
    """
    noted = _noted(store, command, {"key": str, "notes": list, "next": list})
    if noted is None or not all(isinstance(text, str) for text in (*noted["notes"], *noted["next"])):
        return None
    if any(_seen(path, fresh=True) != seen for path, seen in noted["files"].items()):
        return None
    try:
        record = finished_record(store.run_folder(noted["key"]))
    except PlbenchError:
        return None
    return None if record is None else (record, noted["notes"], noted["next"])


def remember_rows(store: Store, command: str, rows: list[dict[str, Any]], files: Iterable[str | Path]) -> None:
    """Cache the output of a command that lists plugins, valid while some files and folders are unchanged.

    Not cached if one of them changed too recently to detect another change, or if there are too many.

    Args:
        command: of `command_sha256`, which covers the code of plbench and the installed packages.
        files: by path; a missing one must stay missing.

    Raises:
        StoreError: if the cache cannot be written.
    """
    paths = {os.path.abspath(path) for path in islice(files, _MAX_FILES + 1)}
    if len(paths) <= _MAX_FILES:
        seen = {path: _seen(path) if os.path.exists(path) else _ABSENT for path in paths}
        if None not in seen.values():
            text = json.dumps(rows)  # as text, to keep the order of columns
            write_checked_json(_place(store, command), {"command": command, "rows": text, "files": seen})


def recall_rows(store: Store, command: str) -> list[dict[str, Any]] | None:
    """Return the cached output of a command that lists plugins; None if not known for certain."""
    noted = _noted(store, command, {"rows": str})
    if noted is None or any((_seen(path, fresh=True) or _ABSENT) != seen for path, seen in noted["files"].items()):
        return None
    try:
        rows: list[dict[str, Any]] = json.loads(noted["rows"])
    except (ValueError, RecursionError):
        return None
    return rows if isinstance(rows, list) and all(isinstance(row, dict) for row in rows) else None


def _noted(store: Store, command: str, kinds: Mapping[str, type]) -> dict[str, Any] | None:
    """Return the cache entry of a command; None if missing or written by another version, with other types."""
    noted = read_checked_json(_place(store, command))
    if noted is None or noted.get("command") != command:
        return None
    kinds = {**kinds, "files": dict}
    return noted if all(isinstance(noted.get(name), kind) for name, kind in kinds.items()) else None


def files_of_strangers(plugins: Iterable[type[Any]]) -> set[str]:
    """Return the files of third-party plugins: all imported modules of their packages."""
    packages = {base.__module__.partition(".")[0] for plugin in plugins for base in plugin.__mro__}
    packages -= {"plbench", "abc", "builtins"}
    loaded = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    return {file for name, file in loaded.items() if file and name.partition(".")[0] in packages}


def _seen(path: str | Path, *, fresh: bool = False) -> str | None:
    """Return the state of a file; None if it is missing, or changed too recently to detect another change."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: the name is invalid
        return None
    return signature(status).hex() if fresh or settled(status) else None


def _place(store: Store, command: str) -> Path:
    return store.cache / "answered" / f"{command}.json"

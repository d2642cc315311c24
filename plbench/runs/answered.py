"""Commands that were answered before: which run they are, or what they list, without importing torch or a plugin.

A note in the cache says so of one command with all that decides what it means: its options, the code, the installed
packages, the environment, and the files whose content entered the run's identity, each as it was when its content was
established. Where anything is otherwise, or cannot be known, there is no answer, and the request is resolved again.
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
"""Files that are compared before an answer; for more, resolving the request takes not much longer."""

_ABSENT = "absent"

_PACKAGES = ("plbench", "plbench.methods", "plbench.datasets")
_VARIABLES = ("PLBENCH", "PYTHON", "XDG_", "HOME", "TORCH", "PYTORCH", "TIMM", "HF_", "CUDA", "NVIDIA", "HIP", "ROCR")
_GPUS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg")  # there where a driver is


def command_sha256(options: Mapping[str, Any]) -> str | None:
    """Identify a command together with code, packages and environment; None where a file is being changed.

    Args:
        options: values by name, as the command line gave them.
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
        with os.scandir(place) as entries:  # a name has the version, and entry points lie in the folder
            installed |= {e.path: e.stat().st_mtime_ns for e in entries if e.name.endswith((".dist-info", ".egg-info"))}
    environment = {name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)}
    gpus = [path for path in _GPUS if os.path.exists(path)]
    content = [options, os.getcwd(), code, installed, environment, sys.path, sys.version, gpus]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def basis(plan: ResolvedRun, workspace: Workspace, watched: Mapping[str, bytes]) -> dict[str, Any] | None:
    """Return files and folders by path, each as it was, and what was noted: both are the same as long as those are.

    None where that cannot be known: on a GPU, which may be gone the next time; of weights on a hub, where others may
    be published; of plugins, which may read any file; of images that are not files.

    Args:
        plan: resolved just now, on this workspace.
        watched: what `plbench.data.digests.watching` gave meanwhile.
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
        listed += {os.path.dirname(path) for path in watched}  # which a link may have led out of the root
    else:  # it makes its files itself, and says in the upper ones which they are
        listed = [str(path) for path in (dataset.root, *dataset.root.glob("*"), *dataset.root.glob("*/*"))]
    found = {path: seen.hex() for path, seen in watched.items()}
    found |= {os.path.abspath(path): _seen(path, fresh=True) or "" for path in listed}
    return {"files": found, "notes": notes_on(plan.protocol_data)} if len(found) <= _MAX_FILES else None


def remember(store: Store, command: str, key: str, next_steps: list[str], basis: Mapping[str, Any]) -> None:
    """Note which run a command is, what is said after it, and the `basis` of that.

    Raises:
        StoreError: if the cache cannot be written.
    """
    write_checked_json(_place(store, command), {"command": command, "key": key, "next": next_steps, **basis})


def recall(store: Store, command: str) -> tuple[Record, list[str], list[str]] | None:
    """Return the record of the run that a command is, checked against its tables, and what to say before and after it.

    None where no such run is known for certain, or its record is not there or not whole.
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
    """Note what a command that lists plugins prints, as long as some files and folders are as they are now.

    It is not noted where one of them changed too lately for another change to show, or where they are many.

    Args:
        command: of `command_sha256`, which stands for the code of plbench and for what is installed.
        files: by path; one that is not there may not come, either.

    Raises:
        StoreError: if the cache cannot be written.
    """
    paths = {os.path.abspath(path) for path in islice(files, _MAX_FILES + 1)}
    if len(paths) <= _MAX_FILES:
        seen = {path: _seen(path) if os.path.exists(path) else _ABSENT for path in paths}
        if None not in seen.values():
            text = json.dumps(rows)  # as text, which keeps the order of columns
            write_checked_json(_place(store, command), {"command": command, "rows": text, "files": seen})


def recall_rows(store: Store, command: str) -> list[dict[str, Any]] | None:
    """Return what a command that lists plugins prints; None where that is not known for certain."""
    noted = _noted(store, command, {"rows": str})
    if noted is None or any((_seen(path, fresh=True) or _ABSENT) != seen for path, seen in noted["files"].items()):
        return None
    try:
        rows: list[dict[str, Any]] = json.loads(noted["rows"])
    except (ValueError, RecursionError):
        return None
    return rows if isinstance(rows, list) and all(isinstance(row, dict) for row in rows) else None


def _noted(store: Store, command: str, kinds: Mapping[str, type]) -> dict[str, Any] | None:
    """Return the note of a command; None where there is none with members of these kinds, as another version wrote."""
    noted = read_checked_json(_place(store, command))
    if noted is None or noted.get("command") != command:
        return None
    kinds = {**kinds, "files": dict}
    return noted if all(isinstance(noted.get(name), kind) for name, kind in kinds.items()) else None


def files_of_strangers(plugins: Iterable[type[Any]]) -> set[str]:
    """Return the files of plugins that do not come with plbench: all that was imported of the packages they are in."""
    packages = {base.__module__.partition(".")[0] for plugin in plugins for base in plugin.__mro__}
    packages -= {"plbench", "abc", "builtins"}
    loaded = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    return {file for name, file in loaded.items() if file and name.partition(".")[0] in packages}


def _seen(path: str | Path, *, fresh: bool = False) -> str | None:
    """Return what a file is like; None where it is not there, or changed too lately for another change to show."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: of a name that none can have
        return None
    return signature(status).hex() if fresh or settled(status) else None


def _place(store: Store, command: str) -> Path:
    return store.cache / "answered" / f"{command}.json"

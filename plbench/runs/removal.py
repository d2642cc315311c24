"""Delete files in a folder of runs without affecting the remaining runs."""

from __future__ import annotations

import glob
import json
import os
import tomllib
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from plbench.errors import PlbenchError, StoreError
from plbench.files import unwritable
from plbench.files.checksums import DAMAGED
from plbench.files.paths import refuse_links
from plbench.progress import counted
from plbench.runs.store import RECORD, SPEC, Store

Kind = Literal["runs", "weights", "checkpoints", "unfinished", "damaged", "features"]


@dataclass(frozen=True)
class Item:
    """A file or folder that can be deleted.

    Attributes:
        kind: "runs"; "weights" of finished runs; "checkpoints" of finished trainings; "unfinished" writes and removals
            of killed processes; "damaged" files that were set aside; "features".
        path: its path.
        num_bytes: total size of its files.
    """

    kind: Kind
    path: Path
    num_bytes: int

    @classmethod
    def of(cls, kind: Kind, path: Path) -> Item:
        """Measure a file or folder; links are not followed."""
        inside = (Path(folder) / name for folder, _, names in os.walk(path) for name in names)
        files = inside if path.is_dir() else [path]
        return cls(kind, path, sum(file.lstat().st_size for file in files))


@dataclass(frozen=True)
class Room:
    """Deletable items and their size."""

    items: tuple[Item, ...]

    @property
    def num_bytes(self) -> int:
        """Total size in bytes."""
        return sum(item.num_bytes for item in self.items)

    def rows(self) -> list[dict[str, Any]]:
        """Return the number of files and bytes by kind."""
        number: Counter[str] = Counter(item.kind for item in self.items)
        sizes = {kind: sum(item.num_bytes for item in self.items if item.kind == kind) for kind in number}
        return [{"what": kind, "number": number[kind], "bytes": sizes[kind]} for kind in number]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"bytes": self.num_bytes, "items": [{**asdict(item), "path": str(item.path)} for item in self.items]}


def removable_runs(store: Store, folders: Iterable[Path]) -> Room:
    """Return runs as items, if no remaining run needs them.

    Args:
        store: of the runs.
        folders: of the runs.

    Raises:
        StoreError: if a run is in progress, is in another folder, or is needed by another run.
    """
    chosen = {folder.name: folder for folder in folders}
    for folder in chosen.values():
        if folder.resolve().parent != store.runs.resolve():
            raise StoreError(f"{folder} is not in {store.runs}; give the folder that contains it with `runs=DIR`")
        refuse_links(store.runs, store.run_folder(folder.name))
    if held := sorted(store.held(chosen)):
        raise StoreError(f"run {held[0]} is in progress; stop it first, or wait until it is finished")
    specs = _specs(store)
    for key, spec in specs.items():
        if key in chosen:
            continue
        for needed, what in _needs(key, spec, specs).items():
            if needed in chosen:
                raise StoreError(f"run {key} needs run {needed}, {what}; remove both, or none")
    return Room(tuple(Item.of("runs", store.run_folder(key)) for key in chosen))


def needed_weights(store: Store) -> set[str]:
    """Return keys of stage runs whose weights are still needed, since their artifact is not stored yet."""
    found = set()
    for spec in _specs(store).values():
        for name, key in spec.get("stages", {}).items():
            if not any((store.run_folder(key) / "artifacts").glob(f"{glob.escape(name)}-*.npy")):
                found.add(key)
    return found


def leftovers(store: Store) -> list[Item]:
    """Return files left by killed processes in a folder of runs, and damaged files that were set aside.

    Checkpoints of unfinished trainings are not leftovers, since they are needed to resume.
    """
    from plbench.training.checkpoint import FOLDER  # imports torch

    found = [Item.of("unfinished", path) for path in store.removed()]
    for folder in _folders(store):
        found += [Item.of("unfinished", path) for path in sorted(folder.glob(".*.tmp"))]
        found += [Item.of("damaged", path) for path in sorted(folder.glob(f"*{DAMAGED}*"))]
        if (folder / RECORD).is_file() and (folder / FOLDER).is_dir():
            found.append(Item.of("checkpoints", folder / FOLDER))
    return found


def cached_features(store: Store) -> list[Item]:
    """Return cached features of all datasets; they are recomputed when needed."""
    return [Item.of("features", path) for path in sorted((store.cache / "features").glob("[!.]*")) if path.is_file()]


def refuse_while_under_way(store: Store) -> None:
    """Raise if a process is executing a run, which may need files that would be deleted.

    Raises:
        StoreError: with one such run.
    """
    if held := sorted(store.held(folder.name for folder in _folders(store))):
        raise StoreError(f"run {held[0]} in {store.runs} is in progress; wait until all are finished")


def remove(store: Store, room: Room) -> None:
    """Delete items, each atomically.

    Raises:
        StoreError: if one cannot be deleted.
    """
    for item in room.items:
        try:
            if item.kind == "runs":
                store.remove(item.path.name)
                if item.path.exists():
                    raise PermissionError(1, "it cannot be renamed or deleted")
            elif item.path.is_dir():
                store.discard(item.path)
            else:
                item.path.unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(item.path, error) from error


def in_words(room: Room) -> str:
    """Return a description of the items, such as "3 runs"."""
    return ", ".join(counted(row["number"], *_WORDS[row["what"]]) for row in room.rows())


_WORDS = {
    "runs": ("run", "runs"),
    "weights": ("file of weights", "files of weights"),
    "checkpoints": ("folder of checkpoints", "folders of checkpoints"),
    "unfinished": ("unfinished file", "unfinished files"),
    "damaged": ("damaged file", "damaged files"),
    "features": ("file of features", "files of features"),
}


def _folders(store: Store) -> list[Path]:
    inside = store.runs.iterdir() if store.runs.is_dir() else []
    return sorted(folder for folder in inside if not folder.name.startswith(".") and folder.is_dir())


def _specs(store: Store) -> dict[str, dict[str, Any]]:
    """Return the specs of all runs, finished or not, as plain values; unreadable ones are treated as empty.

    Not as `RunSpec`, since old or damaged records must not prevent others from being deleted.
    """
    found = {}
    for folder in _folders(store):
        try:
            if (folder / SPEC).is_file():
                spec = tomllib.loads((folder / SPEC).read_text(encoding="utf-8"))
            else:
                spec = json.loads((folder / RECORD).read_bytes())["spec"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            continue
        if isinstance(spec, dict) and isinstance(spec.get("stages", {}), dict):
            found[folder.name] = spec
    return found


def _needs(key: str, spec: dict[str, Any], specs: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return the prerequisite runs of a run with their roles: a stage, or the run that chooses its epoch."""
    found = {str(stage): f"its stage {name!r}" for name, stage in spec.get("stages", {}).items()}
    if spec.get("selection") == "validation" and spec.get("train_part", "train") == "train":
        chooser = _apart_from_stages({**spec, "train_part": "fit"})
        choosers = [other for other, own in specs.items() if other != key and _apart_from_stages(own) == chooser]
        found |= dict.fromkeys(choosers, "which chose its epoch")
    return found


def _apart_from_stages(spec: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in spec.items() if name != "stages"}


def check_readable(store: Store, keys: Collection[str]) -> None:
    """Raise if a record in the folder cannot be read, so that its run's needs are unknown.

    Raises:
        PlbenchError: with the record.
    """
    if unread := sorted({*keys} - _specs(store).keys()):
        raise PlbenchError(
            f"{store.run_folder(unread[0])} has no readable spec, so it is not known which runs it needs; "
            f"remove it first: plbench runs remove {unread[0]}"
        )

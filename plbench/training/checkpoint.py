"""Save a training at any step, so that it can be resumed exactly; and save the weights of a finished one."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from plbench import __version__
from plbench.errors import StoreError
from plbench.files import write_atomically, write_json
from plbench.spec import RunSpec, differences

FOLDER = "checkpoints"
"""Folder of checkpoints in a run's folder, until the training is done."""

# if the newest is damaged, `newest` falls back to the one before
NUM_KEPT = 2


@dataclass(frozen=True)
class Found:
    """A checkpoint as described by its note.

    Attributes:
        threads: number of torch threads of the training; None in notes of older versions.
    """

    path: Path
    step: int
    spec: dict[str, Any]
    threads: int | None = None


class Checkpoints:
    """The checkpoints of one training. Each is a file of tensors, and a note that makes it valid.

    The note is written after the file and contains its sha256, so that remains of a crash, a full disk or an edit are
    never used as a checkpoint.
    """

    def __init__(self, run_folder: Path, spec: RunSpec) -> None:
        """Store the location; nothing is read yet."""
        self.folder, self._spec = run_folder / FOLDER, spec.model_dump(mode="json", exclude_none=True)

    def exist(self) -> bool:
        """Return whether there is a checkpoint to resume from."""
        return bool(self._notes())

    def save(self, state: dict[str, Any], num_processes: int) -> Path:
        """Write a checkpoint of tensors and plain values, then delete older ones except the previous one.

        Raises:
            StoreError: if it cannot be written; existing ones are kept.
        """
        for path in self._notes()[:-1]:  # before writing, since there may be no space for three
            _delete(path)
        for path in self.folder.glob(".step-*.tmp"):  # of a killed process
            path.unlink(missing_ok=True)
        path = self.folder / f"step-{state['step']:08d}.pt"
        # of the written bytes, so that `_found` also notices losses of the disk
        digest = hashlib.sha256()
        write_atomically(path, lambda file: torch.save(state, _Hashing(file, digest.update)))  # type: ignore[arg-type]
        note = {
            **{name: state[name] for name in ("step", "epoch", "batch")},
            "num_processes": num_processes,
            "threads": torch.get_num_threads(),
            "sha256": digest.hexdigest(),
            "plbench": __version__,
            "spec": self._spec,
        }
        # after the tensors: only the note makes them a checkpoint
        write_json(path.with_suffix(".json"), note)
        for old in self._notes()[:-NUM_KEPT]:
            _delete(old)
        return path

    def newest(self, warn: Callable[[str], None]) -> Found | None:
        """Return the newest valid checkpoint; None if there never was one.

        Args:
            warn: receives a message if it is damaged, but an older one is not.

        Raises:
            StoreError: if all are damaged, or they belong to another run, with the differences.
        """
        damaged: list[Path] = []
        for note in reversed(self._notes()):
            found = _found(note)
            if found is None:
                damaged.append(note.with_suffix(".pt"))
                continue
            if differs := differences(found.spec, self._spec):
                shown = "; ".join(differs[:4]) + (f"; and {len(differs) - 4} more" if len(differs) > 4 else "")
                raise StoreError(
                    f"checkpoint {found.path} belongs to another run: {shown}; delete {self.folder}, or run with "
                    "`force=True`"
                )
            if damaged:
                warn(f"Checkpoint {damaged[0]} is damaged; continuing from the one before, at step {found.step}")
            return found
        if damaged:
            raise StoreError(
                f"checkpoint {damaged[0]} was truncated or changed since it was written, and there is no older one; "
                f"delete {self.folder} to start again, or run with `force=True`"
            )
        return None

    def load(self, found: Found) -> dict[str, Any]:
        """Return the state, on the CPU.

        Raises:
            StoreError: if it cannot be read.
        """
        return _loaded(found.path)

    def remove(self) -> None:
        """Delete all checkpoints when the training is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _notes(self) -> list[Path]:
        # notes, not tensors: a killed process may leave tensors without a note
        return sorted(self.folder.glob("step-*.json"))


def save(path: Path, spec_sha256: str, state: dict[str, Any]) -> None:
    """Write the weights of a finished run atomically: tensors and plain values.

    Raises:
        StoreError: if they cannot be written.
    """
    write_atomically(path, lambda file: torch.save({"spec": spec_sha256, **state}, file))


def load(path: Path, spec_sha256: str) -> dict[str, Any]:
    """Read the weights of a finished run, as given to `save`, to the CPU.

    Raises:
        StoreError: if the file is damaged, or belongs to another run.
    """
    state = _loaded(path)
    owner = state.pop("spec", None)
    if owner != spec_sha256:
        raise StoreError(f"{path} belongs to another run ({str(owner)[:16]}); delete it, or run with `force=True`")
    return state


class _Hashing:
    """A file that also passes written bytes to a function."""

    def __init__(self, file: IO[bytes], tell: Callable[[bytes], None]) -> None:
        self._file, self._tell, self.flush = file, tell, file.flush

    def write(self, content: bytes) -> int:
        self._tell(content)
        return self._file.write(content)


def _found(note: Path) -> Found | None:
    """Return the checkpoint of a note; None if either is damaged."""
    path = note.with_suffix(".pt")
    try:
        content = json.loads(note.read_text())
        threads = content.get("threads")
        found = Found(path, int(content["step"]), dict(content["spec"]), None if threads is None else int(threads))
        with path.open("rb") as file:
            is_whole = hashlib.file_digest(file, "sha256").hexdigest() == content["sha256"]
    # most of these are raised for notes with unexpected content
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    return found if is_whole else None


def _loaded(path: Path) -> dict[str, Any]:
    try:
        # to the CPU: the tensors were on the main process's GPU, but other processes have their own; weights only: no
        # pickled code is run (`state.FitState.state_dict` leaves out what this loader rejects)
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise TypeError(f"it holds a {type(state).__name__}")
    except Exception as error:  # torch, zipfile and pickle raise different types
        raise StoreError(f"checkpoint {path} cannot be read; delete it, or run with `force=True`") from error
    return state


def _delete(note: Path) -> None:
    note.unlink(missing_ok=True)  # first: without it, the rest is not a checkpoint
    note.with_suffix(".pt").unlink(missing_ok=True)

"""Artifacts of stages on disk: files named by the code that computed them, with integrity checks."""

from __future__ import annotations

import hashlib
import inspect
import io
import pickle
import uuid
from collections.abc import Callable
from pathlib import Path
from types import CellType, FunctionType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from plbench.errors import PluginError, StoreError
from plbench.files.arrays import damage_in_words
from plbench.files.checksums import DAMAGED, read_checked, set_aside
from plbench.method import Stage
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.record import whole_file
from plbench.runs.store import CHECKPOINT, RECORD
from plbench.runs.workspace import Workspace


def path_of(stage: Stage, run_folder: Path) -> Path:
    """Return the file of a stage's artifact, which depends on the function that reduces the stage's model.

    Raises:
        PluginError: if the source of the function cannot be read.
    """
    identity = io.BytesIO()
    try:
        _Identity(identity, protocol=5).dump(stage.reduce)
    except PluginError:
        raise
    except Exception:  # bound values cannot be compared: recompute
        identity.write(uuid.uuid4().bytes)
    return run_folder / "artifacts" / f"{stage.name}-{hashlib.sha256(identity.getvalue()).hexdigest()[:16]}.npy"


class _Identity(pickle.Pickler):
    """Pickles a function by source file, name and bound values, only for hashing."""

    def reducer_override(self, value: Any) -> Any:
        # the third item is pickled after the object is memoized, since it may refer to it
        if isinstance(value, FunctionType):
            line = value.__code__.co_firstlineno  # distinguishes two lambdas of one file
            return str, (*_source(value), line), (value.__closure__, value.__defaults__, value.__kwdefaults__)
        if isinstance(value, CellType):
            return tuple, (), value.cell_contents
        if isinstance(value, type) and value.__module__ != "builtins":
            return str, _source(value)
        if isinstance(value, ModuleType):
            return str, (value.__name__,)
        if isinstance(value, Tensor):
            return np.array, (value.detach().cpu().numpy(), "tensor")
        return NotImplemented


def _source(value: Callable[..., Any]) -> tuple[str, str]:
    """Return the name of a function or class, and the sha256 of its file."""
    try:
        return value.__qualname__, hashlib.sha256(Path(inspect.getfile(value)).read_bytes()).hexdigest()
    except TypeError:  # built in
        return value.__qualname__, value.__module__
    except OSError as error:
        raise PluginError(f"the source file of {value.__qualname__} cannot be read: {error}") from error


def read(path: Path, warn: Callable[[str], None]) -> np.ndarray | None:
    """Return an artifact on disk; None if there is none, or it was damaged and is set aside, with a warning."""
    try:
        with damage_in_words():
            value: np.ndarray = np.load(io.BytesIO(read_checked(path)), allow_pickle=False)
    except FileNotFoundError:
        return None
    except ValueError as error:
        warn(f"{error}; renamed to {set_aside(path)}, and computed again")
        return None
    return value


def has_its_weights(plan: ResolvedRun, workspace: Workspace) -> bool:
    """Return whether the weights of a finished run match its record.

    Otherwise, with a message, weights and record are set aside, so that the run counts as not done.
    """
    folder = workspace.store.run_folder(plan.spec.key)
    record = plan.finished(workspace.store)
    if record is None:
        return False
    try:
        whole_file(folder, record, CHECKPOINT)
    except StoreError as error:
        what = str(error).partition(";")[0]
        workspace.reporter.line(f"{what}; it is renamed (*{DAMAGED}), and that run is repeated")
        for path in (folder / CHECKPOINT, folder / RECORD):
            if path.exists():
                set_aside(path)
        return False
    return True

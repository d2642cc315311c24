"""Artifacts of stages on disk: files named by what computed them, and whether they can still be trusted."""

from __future__ import annotations

import functools
import hashlib
import inspect
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from plbench.errors import PluginError, StoreError
from plbench.files.checksums import DAMAGED, Damaged, read_checked, set_aside
from plbench.method import Stage
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.record import whole_file
from plbench.runs.store import CHECKPOINT, RECORD
from plbench.runs.workspace import Workspace


def path_of(stage: Stage, run_folder: Path) -> Path:
    """Return the file of a stage's artifact: another one for each function that reduces the stage's model.

    Raises:
        PluginError: if the source of the function cannot be read.
    """
    digest = hashlib.sha256("\n".join(_identity(stage.reduce, ())).encode()).hexdigest()
    return run_folder / "artifacts" / f"{stage.name}-{digest[:16]}.npy"


def _identity(value: Any, within: tuple[int, ...]) -> Iterator[str]:
    """Yield texts that tell functions apart by source file, name and bound values, and values by what they are.

    A value of an unknown kind is known by its attributes. One without any is new in each process: what depends on it
    is computed again rather than taken for something else.

    Args:
        value: a function, or a value that it is bound to.
        within: ids of the values that this one is part of, which may be itself.
    """
    if id(value) in within:
        yield "itself"
        return
    within = (*within, id(value))
    kind = type(value)
    yield f"{kind.__module__}.{kind.__qualname__}"
    parts: list[Any] = []
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape} {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
    elif value is None or isinstance(value, (bool, int, float, complex, str, bytes, Path, np.generic)):
        yield repr(value)
    elif isinstance(value, ModuleType):
        yield value.__name__
    elif isinstance(value, functools.partial):
        parts = [value.func, value.args, value.keywords]
    elif isinstance(value, MethodType):
        parts = [value.__func__, value.__self__]
    elif isinstance(value, FunctionType):
        yield from _source(value)
        parts = [value.__closure__, value.__defaults__, value.__kwdefaults__]
    elif isinstance(value, CellType):
        parts = [value.cell_contents]
    elif isinstance(value, type):
        yield from _source(value)
    elif isinstance(value, Mapping):
        parts = [part for pair in value.items() for part in pair]
    elif isinstance(value, (set, frozenset)):
        yield from sorted("\n".join(_identity(part, within)) for part in value)
    elif isinstance(value, (tuple, list)):
        parts = list(value)
    elif hasattr(value, "__dict__"):
        yield from _source(kind)
        parts = [vars(value)]
    else:
        yield repr(value)
    for number, part in enumerate(parts):
        yield f"part {number} of {len(parts)}"
        yield from _identity(part, within)


def _source(value: Callable[..., Any]) -> Iterator[str]:
    """Yield the name of a function or class, and the sha256 of the file that it is in.

    Two functions of one name, such as two lambdas of one file, differ in their first line.
    """
    yield value.__qualname__
    if isinstance(value, FunctionType):
        yield str(value.__code__.co_firstlineno)
    try:
        yield hashlib.sha256(Path(inspect.getfile(value)).read_bytes()).hexdigest()
    except TypeError:  # built in
        yield value.__module__
    except OSError as error:
        raise PluginError(f"the source file of {value.__qualname__} cannot be read: {error}") from error


def read(path: Path, warn: Callable[[str], None]) -> np.ndarray | None:
    """Return an artifact on disk; None where there is none, or it was damaged, which is said, and set aside."""
    try:
        value: np.ndarray = np.load(io.BytesIO(read_checked(path)), allow_pickle=False)
    except FileNotFoundError:
        return None
    except (Damaged, ValueError, EOFError) as error:
        warn(f"{error}; set aside as {set_aside(path)}, making it again")
        return None
    return value


def has_its_weights(plan: ResolvedRun, workspace: Workspace) -> bool:
    """Return whether the weights of a run that is done are those that its record speaks of.

    Where they are not, that is said, and weights and record are set aside, so that the run counts as not done.
    """
    folder = workspace.store.run_folder(plan.spec.key)
    record = plan.finished(workspace.store)
    if record is None:
        return False
    try:
        whole_file(folder, record, CHECKPOINT)
    except StoreError as error:
        what = str(error).partition(";")[0]
        workspace.reporter.line(f"{what}; it is set aside (*{DAMAGED}), and that run is made again")
        for name in (CHECKPOINT, RECORD):
            if (folder / name).exists():
                set_aside(folder / name)
        return False
    return True

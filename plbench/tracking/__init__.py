"""Telling experiment trackers what a training does. Off by default; a tracker that fails never costs a run.

The trackers themselves are in `plbench.tracking.services`, which is imported only where one was asked for.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from plbench.errors import PlbenchError, did_you_mean

if TYPE_CHECKING:
    from plbench.planning.resolve import RunPlan
    from plbench.record import Record
    from plbench.workspace import Workspace

PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboard"),
    "mlflow": ("mlflow", "mlflow"),
    "wandb": ("wandb", "wandb"),
}
"""Of each tracker by the name that `--track` takes: the module that it needs, and what pip calls it."""

_LONGEST = 160  # characters of what a tracker raised


class Tracker(Protocol):
    """What is told of one run: `started` first, then `logged` any number of times, then `finished` or `failed`.

    Any event may raise: the tracker is dropped then, and the run goes on. One object serves one run; those of several
    runs live side by side, and are told from several threads.
    """

    def started(self, plan: RunPlan, folder: Path) -> None:
        """The run begins, or goes on from a checkpoint in its folder."""
        ...

    def logged(self, step: int, values: Mapping[str, float]) -> None:
        """Values by name after so many optimiser steps. After an interruption some steps come a second time."""
        ...

    def finished(self, record: Record) -> None:
        """The run is done."""
        ...

    def failed(self, error: BaseException) -> None:
        """The run ended without a record, or with that of a failure. `KeyboardInterrupt`: somebody stopped it."""
        ...


class Tracking:
    """Several trackers of one run as one, none of whose events raises."""

    def __init__(
        self, trackers: Mapping[str, Tracker], warn: Callable[[str], None], dropped: set[str] | None = None
    ) -> None:
        """Nothing is told yet.

        Args:
            trackers: by name.
            warn: is told, in one sentence, of a tracker that failed.
            dropped: names of trackers that are asked no more, which those that fail are added to. Runs that share it
                warn once for all of them, and wait once for a server that is not there.
        """
        self._trackers, self._warn = dict(trackers), warn
        self._dropped = set() if dropped is None else dropped

    @property
    def is_over(self) -> bool:
        """Whether nobody listens: the run ended, or no tracker is left."""
        return not self._trackers

    def started(self, plan: RunPlan, folder: Path) -> None:
        """Tells that the run begins."""
        self._tell("started", plan, folder)

    def logged(self, step: int, values: Mapping[str, Any]) -> None:
        """Tells values after so many optimiser steps; a mapping inside becomes names with a slash, text is left out."""
        if self._trackers:
            self._tell("logged", step, numbers(values))

    def finished(self, record: Record) -> None:
        """Tells that the run is done; what is told after that is not heard."""
        self._tell("finished", record)
        self._trackers.clear()

    def failed(self, error: BaseException) -> None:
        """Tells that the run ended without a result; what is told after that is not heard."""
        self._tell("failed", error)
        self._trackers.clear()

    def _tell(self, event: str, *content: Any) -> None:
        for name in list(self._trackers):
            if name in self._dropped:  # another run found out
                del self._trackers[name]
                continue
            try:
                getattr(self._trackers[name], event)(*content)
            except (
                Exception
            ) as error:  # whatever a tracker, its server or its disk raises; a signal's exit goes through
                del self._trackers[name]
                self._dropped.add(name)
                self._warn(f"Tracking by {name} is off from here on: {_sentence(error)}")


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names of trackers, each once, in order.

    Raises:
        PlbenchError: if there is no such tracker, or its package is not installed, with the command that installs it.
    """
    for name in names:
        if name not in PACKAGES:
            raise PlbenchError(f"--track {name}: there is no such tracker; {did_you_mean(name, PACKAGES)}")
        module, package = PACKAGES[name]
        found = importlib.util.find_spec(module)
        if found is None or found.origin is None:  # a folder of that name, which W&B makes, is no package
            raise PlbenchError(f"--track {name} needs a package that is not installed; pip install {package}")
    return tuple(dict.fromkeys(names))


@contextlib.contextmanager
def follow(plan: RunPlan, folder: Path, workspace: Workspace) -> Iterator[Tracking]:
    """Tells the workspace's trackers of one run: that it starts, and, where an error leaves the scope, that it failed.

    Without `--track`, and on all processes of a run but the first, nothing is imported and nobody is told.

    Args:
        plan: the run.
        folder: of the run; trackers may write below it.
        workspace: where and how, with `track` and what was `dropped`.

    Yields:
        What to tell of epochs, and of the record at the end. Several may be open at a time, in any order.
    """
    names = [name for name in workspace.track if name not in workspace.dropped]
    if not names or not workspace.world.is_main:
        yield Tracking({}, workspace.reporter.line)
        return
    from plbench.tracking.services import KINDS

    tracking = Tracking({name: KINDS[name]() for name in names}, workspace.reporter.line, workspace.dropped)
    tracking.started(plan, folder)
    try:
        yield tracking
    except BaseException as error:
        tracking.failed(error)
        raise
    tracking.failed(PlbenchError("the run ended without a record"))  # nobody hears it where an end was told


def numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of nested mappings by path, as in "seconds/training"; all else is left out.

    Examples:
        >>> numbers({"loss": 2, "seconds": {"data": 0.5}, "note": "none", "last": True})
        {'loss': 2.0, 'seconds/data': 0.5}
    """
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[f"{prefix}{name}"] = float(value)
    return found


def settings(plan: RunPlan) -> dict[str, bool | int | float | str]:
    """Everything that decides the run, one value by dotted name: "plan.lr", "method.params.top_k"."""
    return {"key": plan.spec.key, **_flat(plan.spec.model_dump(mode="json", exclude_none=True))}


def figures(record: Record) -> dict[str, float]:
    """What came of a run, by name: percentages of each evaluation ("test/map_c"), and what the run took."""
    found: dict[str, float] = {}
    for split, metrics in record.metrics.items():
        values = {name: getattr(metrics, name).value for name in ("map_c", "map_o")}
        values |= {name: getattr(metrics, name) for name in ("micro_ap", "auroc", "ece")}
        for name, f1 in (("", metrics.f1), ("_top3", metrics.f1_top3)):
            values |= {} if f1 is None else {f"cf1{name}": f1.cf1, f"of1{name}": f1.of1}
        values |= {f"map_c of {group}": held.map_c.value for group, held in metrics.groups.items()}
        found |= {f"{split}/{name}": value for name, value in values.items() if value is not None}
    cost = {} if record.cost is None else record.cost.model_dump()
    return {**found, **numbers(cost, "cost/")}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    found: dict[str, bool | int | float | str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return found


def _sentence(error: Exception) -> str:
    """The first line of what a tracker raised, with its kind where the text alone says little."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    shown = text if len(text) <= _LONGEST else text[:_LONGEST] + " …"
    return f"{type(error).__name__}: {shown}" if text else type(error).__name__

"""Report trainings to experiment trackers. Off by default; errors of trackers never stop a run.

The trackers are in `plbench.tracking.services`, which is only imported if one is requested.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plbench.errors import PlbenchError, did_you_mean
from plbench.spec import RunSpec
from plbench.tracking.tracker import PACKAGES, Tracker, numbers

_MAX_MESSAGE = 160  # characters of a tracker's error message


class Tracking:
    """Several trackers of one run as one; no event raises.

    Args:
        trackers: by name.
        warn: receives a message on each tracker that fails.
        dropped: names of failed trackers, which are no longer used. Runs that share the set warn only once, and wait
            only once for an unreachable server.
    """

    def __init__(
        self, trackers: Mapping[str, Tracker], warn: Callable[[str], None], dropped: set[str] | None = None
    ) -> None:
        self._trackers, self._warn = dict(trackers), warn
        self._dropped = set() if dropped is None else dropped

    @property
    def is_over(self) -> bool:
        """Whether no tracker is active: the run ended, or all failed."""
        return self._trackers.keys() <= self._dropped

    def started(self, spec: RunSpec, folder: Path) -> None:
        """Report that the run begins."""
        self._tell("started", spec, folder)

    def logged(self, step: int, values: Mapping[str, Any]) -> None:
        """Report values at an optimiser step; nested mappings become names with slashes, text is left out."""
        if not self.is_over:
            self._tell("logged", step, numbers(values))

    def finished(self, step: int, figures: Mapping[str, float]) -> None:
        """Report that the run is done; later events are ignored."""
        self._tell("finished", step, figures)
        self._trackers.clear()

    def failed(self, error: BaseException) -> None:
        """Report that the run ended without a result; later events are ignored."""
        self._tell("failed", error)
        self._trackers.clear()

    def _tell(self, event: str, *content: Any) -> None:
        for name, tracker in self._trackers.items():
            if name in self._dropped:  # possibly by another run
                continue
            try:
                getattr(tracker, event)(*content)
            # any error of a tracker, its server or its disk, but not a signal's exit
            except Exception as error:
                self._dropped.add(name)
                text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
                text = text if len(text) <= _MAX_MESSAGE else text[:_MAX_MESSAGE] + " …"
                kind = type(error).__name__  # the message alone may be uninformative
                self._warn(f"Tracking by {name} is off from here on: {kind}{': ' if text else ''}{text}")


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return names of trackers without duplicates, in order.

    Raises:
        PlbenchError: if there is no such tracker, or its package is not installed, with the command that installs it.
    """
    for name in names:
        if name not in PACKAGES:
            raise PlbenchError(f'`track="{name}"`: there is no such tracker; {did_you_mean(name, PACKAGES)}')
        module, package = PACKAGES[name]
        found = importlib.util.find_spec(module)
        if found is None or found.origin is None:  # a folder of that name, such as W&B's, is not a package
            raise PlbenchError(f'`track="{name}"` needs a package that is not installed; pip install {package}')
    return tuple(dict.fromkeys(names))


@contextlib.contextmanager
def follow(
    spec: RunSpec, folder: Path, names: Sequence[str], dropped: set[str], warn: Callable[[str], None]
) -> Iterator[Tracking]:
    """Report one run to trackers: that it starts, and that it failed if an error leaves the scope.

    Without names nothing is imported.

    Args:
        spec, folder: of the run; trackers may write below its folder.
        names: of trackers.
        dropped, warn: as in `Tracking`.

    Yields:
        An object that receives epochs and final figures. Several may be open at a time, in any order.
    """
    names = [name for name in names if name not in dropped]
    if not names:
        yield Tracking({}, warn)
        return
    from plbench.tracking.services import KINDS

    tracking = Tracking({name: KINDS[name]() for name in names}, warn, dropped)
    tracking.started(spec, folder)
    try:
        yield tracking
    except BaseException as error:
        tracking.failed(error)
        raise
    tracking.failed(PlbenchError("the run ended without a record"))  # ignored if the end was reported

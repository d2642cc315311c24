"""Telling experiment trackers what a training does. Off by default; a tracker that fails never costs a run.

The trackers themselves are in `plbench.tracking.services`, which is imported only where one was asked for.
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

_MAX_MESSAGE = 160  # characters of what a tracker raised


class Tracking:
    """Several trackers of one run as one, none of whose events raises.

    Args:
        trackers: by name.
        warn: is told, in one sentence, of a tracker that failed.
        dropped: names of trackers that are asked no more, which those that fail are added to. Runs that share it warn
            once for all of them, and wait once for a server that is not there.
    """

    def __init__(
        self, trackers: Mapping[str, Tracker], warn: Callable[[str], None], dropped: set[str] | None = None
    ) -> None:
        self._trackers, self._warn = dict(trackers), warn
        self._dropped = set() if dropped is None else dropped

    @property
    def is_over(self) -> bool:
        """Whether nobody listens: the run ended, or no tracker is left."""
        return self._trackers.keys() <= self._dropped

    def started(self, spec: RunSpec, folder: Path) -> None:
        """Tell that the run begins."""
        self._tell("started", spec, folder)

    def logged(self, step: int, values: Mapping[str, Any]) -> None:
        """Tell values after so many optimiser steps; a mapping inside becomes names with a slash, text is left out."""
        if not self.is_over:
            self._tell("logged", step, numbers(values))

    def finished(self, step: int, figures: Mapping[str, float]) -> None:
        """Tell that the run is done; what is told after that is not heard."""
        self._tell("finished", step, figures)
        self._trackers.clear()

    def failed(self, error: BaseException) -> None:
        """Tell that the run ended without a result; what is told after that is not heard."""
        self._tell("failed", error)
        self._trackers.clear()

    def _tell(self, event: str, *content: Any) -> None:
        for name, tracker in self._trackers.items():
            if name in self._dropped:  # also where another run found out
                continue
            try:
                getattr(tracker, event)(*content)
            # whatever a tracker, its server or its disk raises; a signal's exit goes through
            except Exception as error:
                self._dropped.add(name)
                text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
                text = text if len(text) <= _MAX_MESSAGE else text[:_MAX_MESSAGE] + " …"
                kind = type(error).__name__  # the text alone may say little
                self._warn(f"Tracking by {name} is off from here on: {kind}{': ' if text else ''}{text}")


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return names of trackers, each once, in order.

    Raises:
        PlbenchError: if there is no such tracker, or its package is not installed, with the command that installs it.
    """
    for name in names:
        if name not in PACKAGES:
            raise PlbenchError(f'`track="{name}"`: there is no such tracker; {did_you_mean(name, PACKAGES)}')
        module, package = PACKAGES[name]
        found = importlib.util.find_spec(module)
        if found is None or found.origin is None:  # a folder of that name, which W&B makes, is no package
            raise PlbenchError(f'`track="{name}"` needs a package that is not installed; pip install {package}')
    return tuple(dict.fromkeys(names))


@contextlib.contextmanager
def follow(
    spec: RunSpec, folder: Path, names: Sequence[str], dropped: set[str], warn: Callable[[str], None]
) -> Iterator[Tracking]:
    """Tell trackers of one run: that it starts, and, where an error leaves the scope, that it failed.

    Without names nothing is imported and nobody is told.

    Args:
        spec, folder: of the run; trackers may write below its folder.
        names: of trackers.
        dropped, warn: as of `Tracking`.

    Yields:
        What to tell of epochs, and of the figures at the end. Several may be open at a time, in any order.
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
    tracking.failed(PlbenchError("the run ended without a record"))  # nobody hears it where an end was told

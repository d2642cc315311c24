"""Progress display: bars with the remaining time on a terminal, timed lines elsewhere.

All output goes to standard error, since standard output is for results.
"""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator

from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from plbench.cli.plain_console import PlainConsole
from plbench.cli.wording import in_options
from plbench.progress import ProgressReport, Reporter, Tally, duration

_BAR = (TextColumn("{task.description}", markup=False), BarColumn())
_QUIET_SECONDS = 5.0  # minimum time between two lines of one task


class ConsoleReporter(Reporter):
    """Prints lines and progress to standard error."""

    def __init__(self, *, quiet: bool = False, spelt: Callable[[str], str] = in_options) -> None:
        """Store the settings; nothing is printed yet.

        Args:
            quiet: print nothing at all.
            spelt: how settings in a line are written; by default as command-line options.
        """
        super().__init__()
        self.is_shown = not quiet
        self._spelt = spelt
        self._console = PlainConsole(file=sys.stderr, quiet=quiet, soft_wrap=True)
        self._start = time.monotonic()
        self._show_part: Callable[[str], None] | None = None  # shows a part's name on the bar of a tally

    def line(self, text: str) -> None:
        """Print one line, with the elapsed time if not on a terminal."""
        text = self._spelt(text)
        if not self._console.is_terminal:
            text = f"[{time.monotonic() - self._start:7.1f} s] {text}"
        self._console.print(text)

    @contextlib.contextmanager
    def patience(self, text: str) -> Iterator[None]:
        """Show the name of work without progress, if it takes more than two seconds."""
        with _after(2.0, lambda: self.line(text)):
            yield

    @contextlib.contextmanager
    def task(self, title: str, *, bytes: bool = False) -> Iterator[ProgressReport]:
        """Show a task; yield a callback of (done, total), which may count bytes."""
        if not self._shows_bars:
            yield from self._plain(title, decimal if bytes else "{:,}".format)
            return
        if (show := self._show_part) is not None:  # part of a tally, with too many parts for separate bars
            yield lambda done, total: show(f"{title} {100 * done // max(total, 1)} %")
            show("")
            return
        amount = DownloadColumn() if bytes else MofNCompleteColumn()
        columns = (amount, TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("left"))
        with Progress(*_BAR, *columns, console=self._console) as progress:
            bar = progress.add_task(title, total=None, visible=False)  # until there is something to do
            yield lambda done, total: progress.update(bar, completed=done, total=total, visible=True)

    @contextlib.contextmanager
    def tally(self, title: str) -> Iterator[Tally]:
        """Show work of many parts; yield a callback of (done, total, description of the rest, such as failures)."""
        if not self._shows_bars:
            yield self._plain_tally(title)
            return
        columns = (
            *(MofNCompleteColumn(), TimeElapsedColumn()),
            TextColumn("{task.fields[words]}", markup=False),
            TextColumn("{task.fields[part]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
        )
        with Progress(*_BAR, *columns, console=self._console, redirect_stdout=False) as progress:
            bar = progress.add_task(title, total=None, words="", part="")
            self._show_part = lambda part: progress.update(bar, part=part)
            try:
                yield lambda done, total, words: progress.update(bar, completed=done, total=total, words=words)
            finally:
                self._show_part("")
                self._show_part = None

    @property
    def _shows_bars(self) -> bool:
        return self._console.is_terminal and not self._console.quiet

    def _plain_tally(self, title: str) -> Tally:
        """Print a line when a part is done, with a few seconds in between; otherwise one per minute."""
        last, said = -math.inf, -1

        def tally(done: int, total: int, words: str) -> None:
            nonlocal last, said
            silence = time.monotonic() - last
            if silence >= (12 * _QUIET_SECONDS if done == said else _QUIET_SECONDS) or said < done == total:
                last, said = time.monotonic(), done
                self.line(f"{title}: {done:,} of {total:,}{', ' if words else ''}{words}")

        return tally

    def _plain(self, title: str, amount: Callable[[int], str]) -> Iterator[ProgressReport]:
        start = last = time.monotonic()
        begun: tuple[float, int] | None = None  # resumed work does not start at 0

        def report(done: int, total: int) -> None:
            nonlocal last, begun
            now = time.monotonic()
            if begun is None:
                begun = (start, 0) if done <= 1 else (now, done)
            if now - last >= _QUIET_SECONDS and 0 < done < total:
                last = now
                here = done - begun[1]
                left = f", about {duration((now - begun[0]) / here * (total - done))} left" if here else ""
                self.line(f"{title}: {amount(done)} of {amount(total)}{left}")

        def say_that_it_goes_on() -> None:
            if last == start:  # the first step alone can take minutes
                self.line(f"{title}: under way")

        with _after(2 * _QUIET_SECONDS, say_that_it_goes_on):
            yield report


def show_progress() -> Reporter:
    """Return a progress display, to pass to plbench's functions as `progress=`.

    On a terminal there are bars with the remaining time; in a notebook and elsewhere, a line every few seconds. Without
    it, the functions are silent.

    Examples:
        >>> import plbench
        >>> own = {"labels": "demo/labels-long.csv", "images": "demo/images", "negative_value": 0}
        >>> plbench.run("ce-negative", "table", progress=plbench.show_progress(), **own).record.status
        'done'
    """
    return ConsoleReporter(spelt=str)


@contextlib.contextmanager
def _after(seconds: float, act: Callable[[], None]) -> Iterator[None]:
    """Call a function once, from another thread, if the scope lasts longer."""
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()

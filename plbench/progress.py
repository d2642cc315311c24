"""How long work says how far it is: by a callback, and to a reporter that is silent until a program shows it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

ProgressReport = Callable[[int, int], None]
"""Called with what is done and how much there is in all."""

Tally = Callable[[int, int, str], None]
"""Called with what is done, how much there is in all, and the rest in words, such as how many failed."""


class Reporter:
    """Hears how work goes on, and shows nothing. A command line shows it; a notebook or a service may, too."""

    is_shown = False
    """Whether a person sees it."""

    def __init__(self) -> None:
        """Nothing was noted yet."""
        self._noted: set[str] = set()

    def note(self, text: str) -> None:
        """Say something worth knowing in one line, once, however often it is found."""
        if text not in self._noted:
            self._noted.add(text)
            self.line(f"Note: {text}")

    def line(self, text: str) -> None:
        """Say one line."""

    @contextlib.contextmanager
    def patience(self, text: str) -> Iterator[None]:
        """Show work that cannot say how far it is."""
        yield

    @contextlib.contextmanager
    def task(self, title: str, *, bytes: bool = False) -> Iterator[ProgressReport]:
        """Show a piece of work; yield what to call with (done, total), which may count bytes."""
        yield lambda done, total: None

    @contextlib.contextmanager
    def tally(self, title: str) -> Iterator[Tally]:
        """Show work of many parts; yield what to call with (done, total, the rest in words)."""
        yield lambda done, total, words: None


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number and what it counts.

    Examples:
        >>> counted(1, "row"), counted(2_000, "row"), counted(2, "study", "studies")
        ('1 row', '2,000 rows', '2 studies')
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """Return seconds in words that a person would use.

    Examples:
        >>> duration(3.2), duration(150), duration(8000), duration(400000)
        ('3 s', '2.5 min', '2.2 h', '4.6 days')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"


def memory(number: int) -> str:
    """Return bytes in words that a person would use."""
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"

"""Progress of long tasks: a callback, and a reporter that is silent by default."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

ProgressReport = Callable[[int, int], None]
"""Called with the amounts done and in total."""

Tally = Callable[[int, int, str], None]
"""Called with the numbers done and in total, and a description of the rest, such as failures."""


class Reporter:
    """Receives progress and shows nothing. The command line's subclass shows it; a notebook or a service may, too."""

    is_shown = False
    """Whether a user sees it."""

    def __init__(self) -> None:
        """Start without notes."""
        self._noted: set[str] = set()

    def note(self, text: str) -> None:
        """Print a one-line note; repeated notes are printed only once."""
        if text not in self._noted:
            self._noted.add(text)
            self.line(f"Note: {text}")

    def line(self, text: str) -> None:
        """Print one line."""

    @contextlib.contextmanager
    def patience(self, text: str) -> Iterator[None]:
        """Show work of unknown length."""
        yield

    @contextlib.contextmanager
    def task(self, title: str, *, bytes: bool = False) -> Iterator[ProgressReport]:
        """Show a task; yield a callback of (done, total), which may count bytes."""
        yield lambda done, total: None

    @contextlib.contextmanager
    def tally(self, title: str) -> Iterator[Tally]:
        """Show work of many parts; yield a callback of (done, total, description of the rest)."""
        yield lambda done, total, words: None


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun in singular or plural.

    Examples:
        >>> counted(1, "row"), counted(2_000, "row"), counted(2, "study", "studies")
        ('1 row', '2,000 rows', '2 studies')
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """Format a duration given in seconds.

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
    """Format a number of bytes."""
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"

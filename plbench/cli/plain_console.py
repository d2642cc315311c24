"""A console that shows names from data unchanged: without markup, and without control characters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from plbench.files.escaping import printable


class PlainConsole(Console):
    """rich's console without markup, emoji codes and highlights; control characters are escaped."""

    def __init__(self, **options: Any) -> None:
        """Initialise with the options of rich's console."""
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments to print; rich's own control codes, for colours and bars, are kept."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text, keep="\n\t"))

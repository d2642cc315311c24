"""A console that shows names from data as they are: no markup is read from them, and nothing controls the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from plbench.files.escaping import printable


class PlainConsole(Console):
    """rich's console without markup, emoji codes and highlights; control characters are written out."""

    def __init__(self, **options: Any) -> None:
        """Take the options of rich's console."""
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield what is printed; the codes of rich itself, for colours and bars, are no text and stay."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text, keep="\n\t"))

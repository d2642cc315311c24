"""What libraries warn of, as a person reads it."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Iterator

import typer


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Show warnings as one plain line each inside the scope; of those that differ in numbers alone, the first."""
    seen: set[tuple[str, str]] = set()

    def show(message: Warning | str, category: type[Warning], *place: object, **options: object) -> None:
        text = " ".join(str(message).split())
        kind = (category.__name__, re.sub(r"\d+", "", text))
        if kind not in seen and os.environ.get("RANK", "0") == "0":  # of several processes, the first speaks for all
            library = category.__module__.partition(".")[0]
            typer.echo(f"plbench: note: {text} ({library}: {category.__name__})", err=True)
        seen.add(kind)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield

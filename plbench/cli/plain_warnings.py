"""What libraries warn of, as a person reads it."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Shows what libraries warn of as one plain line each inside the scope, and what differs in numbers alone once."""
    seen: set[tuple[str, str]] = set()

    def show(message: Warning | str, category: type[Warning], *place: object, **options: object) -> None:
        text = " ".join(str(message).split())
        kind = (category.__name__, re.sub(r"\d+", "", text))
        if kind not in seen and os.environ.get("RANK", "0") == "0":
            print(
                f"plbench: note: {text} ({category.__module__.partition('.')[0]}: {category.__name__})", file=sys.stderr
            )
        seen.add(kind)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield

"""Whether code of other distributions is left out: a module of its own, which every command can import at once."""

from __future__ import annotations

import os

NO_PLUGINS = "PLBENCH_NO_PLUGINS"
"""Environment variable that `--no-plugins` sets, as processes started from this one have to do the same."""


def has_no_plugins() -> bool:
    """Return whether this process is to load no code but plbench's own."""
    return os.environ.get(NO_PLUGINS, "").lower() not in ("", "0", "false", "no", "off")

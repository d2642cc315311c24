"""Whether code of other distributions is left out, in a separate module that is fast to import."""

from __future__ import annotations

import os

NO_PLUGINS = "PLBENCH_NO_PLUGINS"
"""Environment variable set by `--no-plugins`, since it also applies to processes started from this one."""


def has_no_plugins() -> bool:
    """Return whether this process must only load plbench's own code."""
    return os.environ.get(NO_PLUGINS, "").lower() not in ("", "0", "false", "no", "off")

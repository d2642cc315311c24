"""Single runs, from request to record, and scheduling of many runs.

The package is callable, since the Python API has a function of the same name: `plbench.runs()` returns a data frame.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


class _Runs(ModuleType):
    def __call__(self, folder: str | Path | None = None) -> pd.DataFrame:
        """Do the same as `plbench.runs.listing.runs`."""
        from plbench.runs.listing import runs

        return runs(folder)


sys.modules[__name__].__class__ = _Runs

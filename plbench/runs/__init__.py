"""One run, from what was asked for to its record; and many, as far as they share work.

`plbench.runs()` is a data frame of them: the function of the Python API has the name of this package, so that the
package can be called.
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
        """Do as `plbench.runs.listing.runs`."""
        from plbench.runs.listing import runs

        return runs(folder)


sys.modules[__name__].__class__ = _Runs

"""All runs of a folder as a data frame."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = (
    *("method", "dataset", "protocol", "regime", "backbone", "seed", "selection", "configuration", "status"),
    *("map_c", "map_o", "seconds", "finished_at"),
)


def runs(folder: str | Path | None = None) -> pd.DataFrame:
    """Return one row a run, oldest first.

    Args:
        folder: of runs; default: the environment's PLBENCH_RUNS, or "runs".

    Returns:
        By key: method, dataset, protocol, regime, backbone, seed, selection, configuration, status, mAP(C) and mAP(O)
        on test in percent (NaN where a run has none), seconds and the time at which it finished. A run whose record is
        damaged is left out, with a warning.

    Examples:
        >>> import plbench
        >>> own = {"labels": "demo/labels-long.csv", "images": "demo/images", "negative_value": 0}
        >>> key = plbench.run("ce-negative", "table", **own).key
        >>> plbench.runs().loc[key, ["method", "status"]].tolist()
        ['ce-negative', 'done']
    """
    import pandas as pd

    from plbench.errors import PlbenchError
    from plbench.runs.store import Store
    from plbench.runs.stored import read_own_run

    store = Store.at(Path(folder or os.environ.get("PLBENCH_RUNS") or "runs"))
    rows, keys = {}, store.keys()
    for key in keys:
        try:
            record = read_own_run(store.run_folder(key))
        except PlbenchError as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
            continue
        spec, test = record.spec, record.metrics.get("test")
        rows[key] = (
            *(spec.method.name, spec.protocol.dataset, spec.protocol.name, spec.regime, spec.model.backbone),
            *(spec.seed, spec.selection, record.configuration, record.status),
            *((None, None) if test is None else (test.map_c.value, test.map_o.value)),
            *(None if record.cost is None else record.cost.seconds["total"], record.finished_at),
        )
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(_COLUMNS)).rename_axis("key")
    numbers = dict.fromkeys(("map_c", "map_o", "seconds"), "float64")
    return table.astype(numbers).sort_values("finished_at", kind="stable")

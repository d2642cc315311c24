"""All runs of a folder as a data frame, and export of it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from plbench.errors import PlbenchError
from plbench.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd

    from plbench.runs.record import Record

_COLUMNS = (
    *("method", "dataset", "protocol", "regime", "backbone", "seed", "selection", "configuration", "status"),
    *("map_c", "map_o", "seconds", "finished_at"),
)
_ENDINGS = (".csv", ".parquet")


def runs(folder: str | Path | None = None) -> pd.DataFrame:
    """Return one row per run, oldest first.

    Args:
        folder: folder of the runs; default: the environment's PLBENCH_RUNS, or "runs".

    Returns:
        Indexed by key: method, dataset, protocol, regime, backbone, seed, selection, configuration, status, mAP(C) and
        mAP(O) on test in percent (NaN if not available), seconds and the time at which it finished. Runs with damaged
        records are left out, with a warning.

    Examples:
        >>> import plbench
        >>> own = {"labels": "demo/labels-long.csv", "images": "demo/images", "negative_value": 0}
        >>> key = plbench.run("ce-negative", "table", **own).key
        >>> plbench.runs().loc[key, ["method", "status"]].tolist()
        ['ce-negative', 'done']
    """
    from plbench.runs.store import Store
    from plbench.runs.stored import read_own_run

    store = Store.at(Path(folder or os.environ.get("PLBENCH_RUNS") or "runs"))
    records, keys = [], store.keys()
    for key in keys:
        try:
            records.append(read_own_run(store.run_folder(key)))
        except PlbenchError as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
    return as_frame(records)


def as_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return the data frame of `runs` for these records."""
    import pandas as pd

    rows = {}
    for record in records:
        spec, test = record.spec, record.metrics.get("test")
        rows[record.key] = (
            *(spec.method.name, spec.protocol.dataset, spec.protocol.name, spec.regime, spec.model.backbone),
            *(spec.seed, spec.selection, record.configuration, record.status),
            *((None, None) if test is None else (test.map_c.value, test.map_o.value)),
            *(None if record.cost is None else record.cost.seconds["total"], record.finished_at),
        )
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(_COLUMNS)).rename_axis("key")
    table.index = table.index.astype(str)  # not the case without runs
    types = {**dict.fromkeys(("map_c", "map_o", "seconds"), "float64"), "seed": "int64"}
    return table.astype(types).sort_values("finished_at", kind="stable")


def check_table_name(path: Path) -> None:
    """Reject file names other than CSV and Parquet.

    Raises:
        PlbenchError: if it is.
    """
    if path.suffix.lower() not in _ENDINGS:
        raise PlbenchError(f"`to={path}`: its name must end in {' or '.join(_ENDINGS)}")


def write_frame(path: Path, table: pd.DataFrame) -> None:
    """Write the data frame of `runs`, its keys as the first column.

    Args:
        path: of a .csv or .parquet file; written atomically.
        table: the frame.

    Raises:
        PlbenchError: as `check_table_name`. StoreError: if it cannot be written.
    """
    check_table_name(path)
    whole = table.reset_index()
    if path.suffix.lower() == ".csv":
        write_atomically(path, lambda file: file.write(whole.to_csv(index=False, lineterminator="\n").encode()))
    else:
        write_atomically(path, lambda file: whole.to_parquet(file, compression="zstd", index=False))

"""Weights of finished runs that can be deleted: those of worse rows, and of trials and folds."""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean
from typing import Literal

from plbench.comparison.compare import setting_of
from plbench.comparison.identity import row_key
from plbench.runs import removal
from plbench.runs.record import Record, read_record
from plbench.runs.removal import Item, Room
from plbench.runs.store import CHECKPOINT, Store

Weights = Literal["best", "first", "none", "all"]


def prunable(store: Store, *, weights: Weights = "best", features: bool = False) -> Room:
    """Return what can be deleted from a folder of runs; runs, figures and scores are always kept.

    Weights that are still needed to compute a stage's artifact are always kept.

    Args:
        store: of the runs and their cache.
        weights: which to keep: those of the best row of each setting (by mean mAP(C) on test over seeds), of its first
            seed only, of none, or of all runs.
        features: whether to delete all cached features, too.

    Raises:
        StoreError: if a run is in progress, or a record is damaged.
    """
    removal.refuse_while_under_way(store)
    items = removal.leftovers(store)
    if weights != "all":
        found = map(read_record, map(store.run_folder, store.keys()))
        records = {record.key: record for record in found}
        removal.check_readable(store, records)
        kept = removal.needed_weights(store)
        if weights != "none":
            for row in _best_rows(records):
                kept |= {record.key for record in (row if weights == "best" else row[:1])}
        for key, record in records.items():
            path = store.run_folder(key) / CHECKPOINT
            if record.status == "done" and key not in kept and path.is_file():
                items.append(Item.of("weights", path))
    return Room((*items, *(removal.cached_features(store) if features else [])))


def _best_rows(records: dict[str, Record]) -> list[list[Record]]:
    """Return the runs of the best row, by seed, of each setting that `compare` would show."""
    settings: dict[tuple[str, ...], dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records.values():
        if record.status == "done" and "test" in record.metrics:
            settings[setting_of(record)][row_key(record)].append(record)
    best = [max(rows.values(), key=_mean) for rows in settings.values()]
    return [sorted(row, key=lambda record: (record.spec.seed, record.key)) for row in best]


def _mean(row: list[Record]) -> float:
    return fmean(record.test.map_c.value or 0.0 for record in row)

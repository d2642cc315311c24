"""Cross-validated comparisons: every labelled image of train is scored by models that were not trained on its fold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from plbench.comparison.compare import Setting, compare, setting_from, share_of_positives
from plbench.comparison.identity import same_but_seed
from plbench.comparison.plan import Comparison
from plbench.comparison.scores import ScoredRun
from plbench.comparison.verdict import WIDE
from plbench.data.labels import PartialLabels
from plbench.errors import DataError
from plbench.metrics.cells import Cells, joined_cells
from plbench.metrics.statistics import widened_for_folds
from plbench.randomness import derive_seed
from plbench.runs.protocol import Part
from plbench.runs.record import Record, SplitMetrics, whole_file
from plbench.runs.store import CELLS
from plbench.runs.summary import draw_replicates, headline, summarise
from plbench.runs.workspace import Workspace

OFFERED: int = 5
"""Number of folds suggested for comparisons on few test images."""


@dataclass(frozen=True)
class PooledRun(ScoredRun):
    """The runs of one seed, each without one fold, pooled; `record` is that of the first.

    Attributes:
        parts: their records, by fold.
        pooled: figures of all folds together; their intervals treat the models as fixed, the replicates do not.
    """

    parts: tuple[Record, ...]
    pooled: SplitMetrics

    @property
    def metrics(self) -> SplitMetrics:
        """Figures of all folds together."""
        return self.pooled

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the runs, by fold."""
        return tuple(record.key for record in self.parts)

    @property
    def tables(self) -> tuple[str, ...]:
        """The sha256 of the per-class table of each fold."""
        return tuple(table for record in self.parts for table in ScoredRun(record, {}).tables)


def side_by_side(comparison: Comparison, runs: Sequence[tuple[Path, Record]], workspace: Workspace) -> Setting:
    """Compare the runs of a comparison: on test or, with folds, on train.

    Args:
        comparison: the comparison.
        runs: folder and record of each, as `make_runs` returns them.
        workspace: where and how.

    Raises:
        StoreError: if a file of a run is missing or was changed.
    """
    if comparison.num_folds is not None:
        return _pooled_setting(comparison, comparison.num_folds, runs, workspace)
    (setting,) = compare(runs, workspace.registry)
    return replace(setting, foldable=_foldable(comparison, setting))


def pool_cells(folds: Sequence[tuple[Part, Cells]], labels: PartialLabels) -> Cells:
    """Merge the cells of all folds into one part: the train images with a known label.

    Args:
        folds: each with its known cells, scored by a model that was not trained on it.
        labels: of all of train.

    Returns:
        One cell per known label, by ascending row in train; images are numbered among those with a label.
    """
    is_labelled = np.diff(labels.matrix.indptr) > 0
    place, num_images = np.cumsum(is_labelled) - 1, int(is_labelled.sum())
    pooled = joined_cells(
        [replace(cells, rows=place[part.rows[cells.rows]], num_images=num_images) for part, cells in folds]
    )
    assert len(pooled.scores) == labels.num_known, "every known label is scored once"
    return pooled


def _pooled_setting(
    comparison: Comparison, num_folds: int, runs: Sequence[tuple[Path, Record]], workspace: Workspace
) -> Setting:
    setting, data = comparison.setting, comparison.setting.protocol_data
    protocol, labels, groups = setting.spec.protocol, data.partial_labels, data.dataset.groups()
    counts = labels.counts()
    # one stream for any number of folds: all rows sample the same images and are paired
    seed = derive_seed(0, "bootstrap", protocol.sha256(), f"folds of {protocol.train_split}")
    by_seed: dict[tuple[str, int], list[tuple[Path, Record]]] = defaultdict(list)
    for folder, record in runs:  # by row and seed, then by fold
        whole = record.spec.model_copy(update={"train_part": "train"})
        by_seed[same_but_seed(whole), whole.seed].append((folder, record))
    pooled = []
    with workspace.reporter.task("Pooling folds") as report:
        for number, members in enumerate(by_seed.values(), 1):
            assert len(members) == num_folds, "rows are whole"
            cells = pool_cells([(data.held_out(r.spec.train_part), _cells(folder, r)) for folder, r in members], labels)
            replicates = draw_replicates(cells, labels, groups, seed, lambda done, total: None)
            metrics = summarise(cells, labels, groups, np.add(*counts), replicates)
            parts = tuple(record for _, record in members)
            drawn = {
                name: widened_for_folds(values, metrics.estimates[name].value or 0.0, num_folds)
                for name, values in {**headline(replicates), **replicates.groups}.items()
            }
            pooled.append(PooledRun(parts[0], drawn, parts, metrics))
            report(number, len(by_seed))
    chance = share_of_positives(*(count.tolist() for count in counts))
    return setting_from(pooled, workspace.registry, chance, num_folds)


def _cells(folder: Path, record: Record) -> Cells:
    return Cells.load(whole_file(folder, record, CELLS))


def _foldable(comparison: Comparison, setting: Setting) -> int:
    """Return how many images `OFFERED` folds would score; 0 if folds would not help, or are not possible."""
    spec, data = comparison.setting.spec, comparison.setting.protocol_data
    is_tuned = any(row.studies for row in setting.rows)
    if not setting.rows[0].figures["map_c"].half >= WIDE or is_tuned:
        return 0
    if spec.protocol.simulation != "none" or spec.selection != "last":
        return 0
    num_labelled = int(np.count_nonzero(np.diff(data.partial_labels.matrix.indptr)))
    try:
        for number in range(1, OFFERED + 1):
            data.held_out(comparison.setting.without_fold(number, OFFERED).spec.train_part)
    except DataError:
        return 0
    return num_labelled if num_labelled > setting.num_images else 0

"""The scores of a row by seed: its runs with their replicates, and statistics of each metric."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np

from plbench.metrics.statistics import Estimate, Figure, Sample
from plbench.runs.record import Record, SplitMetrics
from plbench.runs.summary import HEADLINE, image_estimate
from plbench.runs.tables import PER_CLASS


@dataclass(frozen=True)
class ScoredRun:
    """A finished run with its bootstrap replicates, [R] by metric, percent; without those of groups on a board."""

    record: Record
    replicates: dict[str, np.ndarray]

    @property
    def metrics(self) -> SplitMetrics:
        """The figures to compare."""
        return self.record.test

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of its trainings."""
        return (self.record.key,)

    @property
    def tables(self) -> tuple[str, ...]:
        """The sha256 of its per-class table, to detect runs of the same model; () if unknown."""
        return (self.record.files[PER_CLASS].sha256,) if PER_CLASS in self.record.files else ()


Run = TypeVar("Run", bound=ScoredRun)


class RowScores(Generic[Run]):
    """The runs of one row.

    Attributes:
        label: of the row.
        runs: by study, then by seed.
        same: labels of rows that are bit-identical to this one.
    """

    def __init__(self, label: str, runs: Sequence[Run]) -> None:
        """Store the runs of one row, in any order."""
        self.label = label
        self.runs = sorted(runs, key=lambda run: (_study_seed(run.record), run.record.spec.seed))
        self.same: tuple[str, ...] = ()

    @property
    def records(self) -> list[Record]:
        """Records of the runs."""
        return [run.record for run in self.runs]

    @property
    def metrics(self) -> list[str]:
        """Names of the figures."""
        return list(self.runs[0].metrics.estimates)

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Seeds shared by all studies of the row."""
        by_study = defaultdict(set)
        for record in self.records:
            by_study[_study_seed(record)].add(record.spec.seed)
        return tuple(sorted(set.intersection(*by_study.values())))

    @property
    def num_studies(self) -> int:
        """Number of tuning studies that the row is a mean over; 0 if its values were not tuned."""
        return len({_study_seed(record) for record in self.records if record.spec.tuned_by})

    @property
    def value(self) -> float:
        """mAP(C), percent."""
        return self.sample("map_c").mean

    def figure(self, name: str) -> Figure:
        """Return the mean of a metric over seeds (and studies), with its interval.

        For groups without replicates on the board, the runs' intervals determine the image variance.
        """
        if all(name in run.replicates for run in self.runs):
            return self.sample(name).figure()
        runs = [image_estimate(run.metrics.estimates[name]) for run in self._chosen]
        return Estimate.of_runs(self._points(name), runs, runs[0].bounds).figure()

    def sample(self, name: str) -> Sample:
        """Return a metric's values by seed (and study), with the replicates of their mean."""
        replicates = np.array([run.replicates[name] for run in self._chosen])
        lowest = self._chosen[0].metrics.estimates[name].lowest
        return Sample.of_runs(self._points(name), replicates, self.seeds, (lowest or 0.0, 100.0))

    @property
    def _chosen(self) -> list[Run]:
        """Runs of the seeds shared by all studies."""
        return [run for run in self.runs if run.record.spec.seed in self.seeds]

    def _points(self, name: str) -> np.ndarray:
        """Return a metric's values by seed, or by seed and study."""
        values = [run.metrics.estimates[name].value for run in self._chosen]
        points = np.array([np.nan if value is None else value for value in values])
        return points.reshape(self.num_studies, len(self.seeds)).T if self.num_studies > 1 else points

    @property
    def fingerprint(self) -> tuple[Any, ...]:
        """Identity of a row's model: the tables of its scores, by seed."""
        # replicates by value, since older runs have those of groups in the same file
        tables = [
            (*run.tables, *(run.replicates[name].tobytes() for name in HEADLINE)) if run.tables else ()
            for run in self.runs
        ]
        return tuple(zip((record.spec.seed for record in self.records), tables, strict=True))


Row = TypeVar("Row", bound=RowScores[Any])


def merge_identical(rows: Sequence[Row]) -> list[Row]:
    """Merge rows with bit-identical scores: they are one model under several names.

    The row with the shortest label represents the others.
    """
    found: dict[Any, Row] = {}
    for row in sorted(rows, key=lambda row: (len(row.label), row.label)):
        first = found.setdefault(row.fingerprint if all(files for _, files in row.fingerprint) else row.label, row)
        if first is not row:
            first.same = (*first.same, row.label)
    return list(found.values())


def _study_seed(record: Record) -> int:
    return -1 if record.tuning is None or not record.spec.tuned_by else record.tuning.seed

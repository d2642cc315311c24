"""Definition of an experiment: its runs, measurements, figure and claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from plbench.comparison.candidates import Skipped
from plbench.metrics.statistics import Sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

    from plbench.runs.plan.resolved import ResolvedRun
    from plbench.runs.record import Record
    from plbench.runs.workspace import Workspace

Scale = Literal["tiny", "default", "full"]
Place = float | str
"""Position of a point on the horizontal axis: a number, or a name."""

SEEDS: Mapping[Scale, int] = {"tiny": 1, "default": 3, "full": 5}
NUM_DRAWS = 1000
"""Number of bootstrap draws for values other than a run's metrics, which have as many."""

T = TypeVar("T")
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Context:
    """Information that the runs of an experiment may depend on: the dataset, and the scale.

    Attributes:
        board: the protocol's name without its version, such as "openimages-v6".
        simulation: of the requested protocol.
        is_complete: whether every training label is known, so that a simulation can hide some.
    """

    dataset: str
    board: str
    simulation: str
    num_classes: int
    num_train: int
    is_complete: bool
    scale: Scale = "default"

    def pick(self, tiny: T, default: T, full: T) -> T:
        """Return the value for the scale."""
        return {"tiny": tiny, "default": default, "full": full}[self.scale]


@dataclass(frozen=True)
class Case:
    """One method with one set of values under one annotation mechanism: a point of the figure, with all its seeds.

    Attributes:
        series: its line. x: its position on the axis. panel: the part of the figure.
        simulate: how labels are hidden; None for the setting of the command line.
        model: fields of the model that differ from the request, such as the backbone.
    """

    series: str
    x: Place
    method: str
    params: Mapping[str, Any] = field(default_factory=dict)
    panel: str = ""
    simulate: str | None = None
    model: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A case with its runs, by seed."""

    case: Case
    plans: tuple[ResolvedRun, ...]
    records: tuple[Record, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the runs."""
        return tuple(record.key for record in self.records)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the runs."""
        return tuple(record.spec.seed for record in self.records)


@dataclass(frozen=True)
class Point:
    """Measurements at one place of the figure.

    Attributes:
        values: by name: "map_c", "map_o", a group of classes, or other measurements of the experiment.
        keys: of its runs. facts: other columns of the data file.
        shown: additional content of the figure that is too large for the data file.
    """

    series: str
    x: Place
    values: Mapping[str, Sample]
    panel: str = ""
    keys: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    shown: Any = None


@dataclass(frozen=True)
class Findings:
    """All points of an experiment, and what could not be run.

    Attributes:
        setting: regime and model in words; empty if nothing was trained on a dataset.
    """

    context: Context
    points: tuple[Point, ...]
    left_out: tuple[Skipped, ...] = ()
    setting: str = ""

    def at(self, series: str, x: Place, panel: str = "") -> Point | None:
        """Return the point at a place; None if there is none."""
        return next((p for p in self.points if (p.series, p.x, p.panel) == (series, x, panel)), None)

    def line(self, series: str, panel: str = "") -> list[Point]:
        """Return the points of one line, from left to right."""
        found = [p for p in self.points if (p.series, p.panel) == (series, panel)]
        return sorted(found, key=lambda p: p.x) if all(not isinstance(p.x, str) for p in found) else found

    @property
    def panels(self) -> list[str]:
        """Names of panels, in order of occurrence."""
        return list(dict.fromkeys(p.panel for p in self.points))

    def panel(self, start: str) -> str:
        """Return the first panel whose name has this prefix; the prefix itself if there is none."""
        return next((panel for panel in self.panels if panel.startswith(start)), start)

    def series(self, panel: str | None = None) -> list[str]:
        """Return names of lines, of one panel or of all, in order of occurrence."""
        return list(dict.fromkeys(p.series for p in self.points if panel in (None, p.panel)))


@dataclass(frozen=True)
class Verdict:
    """Result of a claim.

    Attributes:
        why: one sentence of evidence, with intervals.
    """

    status: Literal["held", "not held", "undecided"]
    why: str


Test = Callable[[Findings], Verdict | None]
"""Decides a claim; None if the claim does not concern what was run."""


@dataclass(frozen=True)
class Claim:
    """A claim that the data can confirm or refute.

    Attributes:
        words: the sentence. source: its origin. test: decides it.
    """

    words: str
    source: str
    test: Test


@dataclass(frozen=True)
class Experiment:
    """One figure or table of the paper, or an additional one.

    Attributes:
        shows: the paper's figures or tables.
        cases: the runs.
        measure: returns the points: metrics of the records (`metrics_of_records`), or results of stages.
        draw: draws the figure.
        caption: of the figure; numbers of images and seeds are appended.
        varies_simulation: it sets how labels are hidden, so that the user cannot choose a simulation.
        needs_dataset: whether anything runs on a dataset.
        seeds: by scale, if different from the defaults.
        write: returns additional text files by name.
    """

    name: str
    title: str
    shows: str
    cases: Callable[[Context], Sequence[Case]]
    measure: Callable[[Context, Sequence[Row], int, Workspace], list[Point]]
    draw: Callable[[Findings], Picture]
    claims: tuple[Claim, ...]
    caption: str
    varies_simulation: bool = False
    needs_dataset: bool = True
    seeds: Mapping[Scale, int] = field(default_factory=lambda: SEEDS)
    write: Callable[[Findings], Mapping[str, str]] = lambda findings: {}

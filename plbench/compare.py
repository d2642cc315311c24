"""Runs side by side: means over seeds with intervals, and each method's paired difference to the best."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plbench.evaluation import read_replicates
from plbench.intervals import PairedDifference, holm, interval, paired_difference, seeds_interval
from plbench.randomness import derive_seed
from plbench.record import Record, whole_file
from plbench.spec import RunSpec


@dataclass(frozen=True)
class Figure:
    """A mean over seeds, percent, with its 95 % interval over seeds and test images; NaN where undefined."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One method in one setting.

    Attributes:
        label: the method's title, with what sets it apart from other rows of the same method.
        figures: by name: "map_c", "map_o", and the dataset's groups.
        difference: of mAP(C) to the best row, percentage points; None for the best row itself.
        p_value: of that difference, two-sided, Holm-corrected over the setting's rows.
    """

    method: str
    label: str
    seeds: tuple[int, ...]
    keys: tuple[str, ...]
    figures: dict[str, Figure]
    num_classes_scored: int
    num_classes: int
    difference: Figure | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class Setting:
    """Rows that may be compared: one protocol, regime, backbone and head; best first."""

    protocol: str
    regime: str
    model: str
    rows: tuple[Row, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: NaN as None."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)), parse_constant=lambda _: None)
        return plain


def compare(runs: Iterable[tuple[Path, Record]]) -> list[Setting]:
    """Groups finished runs into settings and rows.

    Args:
        runs: folder and record of each run. Failed runs, and runs that only select, are left out.

    Raises:
        StoreError: if the replicates of a run are missing or were changed.
    """
    settings: dict[tuple[str, ...], list[tuple[Path, Record]]] = defaultdict(list)
    for folder, record in runs:
        if record.status == "done" and "test" in record.metrics:
            settings[_setting_key(record.spec)].append((folder, record))
    return [_setting(members) for _, members in sorted(settings.items(), key=lambda item: item[0][0])]


def _setting_key(spec: RunSpec) -> tuple[str, ...]:
    """What must agree before two runs can be paired image by image; left-out images make another test set."""
    model, skipped = spec.model.model_dump_json(), repr(spec.skipped_images)
    return spec.protocol.name, spec.protocol.canonical(), spec.dataset_fingerprint, spec.regime, model, skipped


def _setting(members: Sequence[tuple[Path, Record]]) -> Setting:
    groups: dict[str, list[tuple[Path, Record]]] = defaultdict(list)
    for folder, record in members:
        groups[same_but_seed(record.spec)].append((folder, record))
    labels = row_labels([group[0][1] for group in groups.values()])
    drawn = [_drawn(group, label) for group, label in zip(groups.values(), labels, strict=True)]
    drawn.sort(key=lambda row: -row.points["map_c"].mean())
    spec = members[0][1].spec
    return Setting(spec.protocol.name, spec.regime, model_words(spec), tuple(_against_best(drawn)))


def same_but_seed(spec: RunSpec) -> str:
    """What the runs of one row have in common: everything but the seed, and the stages that follow from it."""
    return spec.model_copy(update={"seed": 0, "stages": {}}).canonical()


def model_words(spec: RunSpec) -> str:
    """Backbone, resolution and head, for a heading."""
    return f"{spec.model.backbone} at {spec.model.image_size} px, {spec.model.head} head"


def _drawn(group: Sequence[tuple[Path, Record]], label: str) -> Drawn:
    runs = [(record, read_replicates(whole_file(folder, record, "replicates.csv"))) for folder, record in group]
    return Drawn(label, runs)


class Drawn:
    """A row's values and bootstrap replicates over its seeds.

    Attributes:
        records: by seed. points: [S] by metric, percent. replicates: [S, R] by metric.
    """

    def __init__(self, label: str, runs: Sequence[tuple[Record, dict[str, np.ndarray]]]) -> None:
        """Takes the runs of one row with their replicates."""
        ordered = sorted(runs, key=lambda run: run[0].spec.seed)
        self.label, self.records = label, [record for record, _ in ordered]
        tables = [table for _, table in ordered]
        self.seed = derive_seed(0, "compare", self.records[0].spec.protocol.name)
        self.replicates = {name: np.stack([table[name] for table in tables]) for name in tables[0]}
        self.points = {name: np.array([_point(r, name) for r in self.records]) for name in tables[0]}

    def row(self, difference: Figure | None, p_value: float | None) -> Row:
        """The row with what it is compared to."""
        test = self.records[0].test
        return Row(
            method=self.records[0].spec.method.name,
            label=self.label,
            seeds=tuple(record.spec.seed for record in self.records),
            keys=tuple(record.key for record in self.records),
            figures={name: self.figure(name) for name in self.points},
            num_classes_scored=test.num_classes_scored,
            num_classes=test.num_classes,
            difference=difference,
            p_value=p_value,
        )

    def figure(self, name: str) -> Figure:
        """Mean over seeds of a metric, with its interval."""
        mean = float(self.points[name].mean())
        return Figure(mean, *interval(seeds_interval(self.replicates[name], seed=self.seed), point=mean))

    def minus(self, other: Drawn) -> PairedDifference:
        """Difference of mAP(C) to another row, on the same resamples of the same images."""
        return paired_difference(
            self.replicates["map_c"],
            other.replicates["map_c"],
            self.points["map_c"],
            other.points["map_c"],
            seed=self.seed,
        )


def _against_best(drawn: Sequence[Drawn]) -> list[Row]:
    best, others = drawn[0], drawn[1:]
    gaps = [row.minus(best) for row in others]
    adjusted: Iterable[float] = holm([gap.p_value for gap in gaps]) if gaps else []
    rows = [best.row(None, None)]
    for row, gap, p_value in zip(others, gaps, adjusted, strict=True):
        rows.append(row.row(Figure(gap.difference, gap.low, gap.high), float(p_value)))
    return rows


def _point(record: Record, name: str) -> float:
    test = record.test
    estimate = {"map_c": test.map_c, "map_o": test.map_o}.get(name) or test.groups[name].map_c
    return float("nan") if estimate.value is None else estimate.value


def row_labels(records: Sequence[Record]) -> list[str]:
    """Titles, with the parameters and plan values in which rows of one method differ."""
    values = [_flat(record.spec) for record in records]
    labels = []
    for record, own in zip(records, values, strict=True):
        rivals = [v for r, v in zip(records, values, strict=True) if r.spec.method.name == record.spec.method.name]
        differing = [name for name in own if len({str(rival.get(name)) for rival in rivals}) > 1]
        detail = ", ".join(f"{name.rpartition('.')[2]}={own[name]}" for name in differing)
        labels.append(f"{record.title} ({detail})" if detail else record.title)
    return labels


def _flat(spec: RunSpec) -> dict[str, Any]:
    plain: dict[str, Any] = {f"params.{name}": value for name, value in spec.method.params.items()}
    plain |= {f"plan.{name}": value for name, value in spec.plan.model_dump().items()}
    names = ("recipe", "precision", "selection", "numerics")
    plain |= {name: getattr(spec, name) for name in names}
    return plain | {"source": spec.method.source_sha256[:8], "version": spec.method.version}

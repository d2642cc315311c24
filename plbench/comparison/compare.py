"""Runs side by side: means over seeds with intervals, each method's paired difference to the best, and how sure."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plbench.errors import PluginError
from plbench.evaluation.intervals import PairedDifference, holm, interval, paired_difference, seeds_interval
from plbench.evaluation.stored import replicates_of
from plbench.randomness import derive_seed
from plbench.record import Record
from plbench.registry import Registry
from plbench.spec import RunSpec

FEWEST_SEEDS = 3
"""Below this many, nothing is said about which of two methods is better."""

SIGNIFICANT = 0.05

_EFFORT = ("plan.epochs", "plan.batch_size")
"""What rows must have in common, if one is not to have learned longer than another."""


@dataclass(frozen=True)
class Figure:
    """A mean over seeds, percent, with its 95 % interval over seeds and test images; NaN where undefined."""

    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the interval, percentage points."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Row:
    """One method in one setting.

    Attributes:
        label: the method's title, with what sets it apart from other rows of the same method.
        figures: by name: "map_c", "map_o", and the dataset's groups.
        share_best: share of bootstrap replicates, over test images and seeds, in which its mAP(C) is the highest of the
            setting's rows, in [0, 1]; NaN where no replicate is defined.
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
    share_best: float
    difference: Figure | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class Setting:
    """Rows that may be compared: one protocol, regime, backbone and head; best first.

    Attributes:
        num_images: of the test part.
    """

    protocol: str
    regime: str
    model: str
    num_images: int
    rows: tuple[Row, ...]

    @property
    def tied(self) -> tuple[Row, ...]:
        """Rows that cannot be told apart from the best: all where seeds are few, else by Holm's p value."""
        best, *others = self.rows
        return tuple(row for row in others if self.has_few_seeds(row, best) or not _is_significant(row.p_value))

    @staticmethod
    def has_few_seeds(*rows: Row) -> bool:
        """Whether any of the rows has too few to say which is better."""
        return any(len(row.seeds) < FEWEST_SEEDS for row in rows)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: NaN as None."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)), parse_constant=lambda _: None)
        return plain


def compare(runs: Iterable[tuple[Path, Record]], registry: Registry | None = None) -> list[Setting]:
    """Groups finished runs into settings and rows.

    Args:
        runs: folder and record of each run. Failed runs, and runs that only select, are left out.
        registry: tells the names of methods' variants; without it their parameters are shown.

    Raises:
        StoreError: if the replicates of a run are missing or were changed.
    """
    settings: dict[tuple[str, ...], list[tuple[Path, Record]]] = defaultdict(list)
    for folder, record in runs:
        if record.status == "done" and "test" in record.metrics:
            settings[_setting_key(record.spec)].append((folder, record))
    return [_setting(members, registry) for _, members in sorted(settings.items(), key=lambda item: item[0][0])]


def _is_significant(p_value: float | None) -> bool:
    return p_value is not None and p_value < SIGNIFICANT


def _setting_key(spec: RunSpec) -> tuple[str, ...]:
    """What must agree before two runs can be paired image by image; left-out images make another test set."""
    model, skipped = spec.model.model_dump_json(), repr(spec.skipped_images)
    return spec.protocol.name, spec.protocol.canonical(), spec.dataset_fingerprint, spec.regime, model, skipped


def _setting(members: Sequence[tuple[Path, Record]], registry: Registry | None) -> Setting:
    groups: dict[str, list[tuple[Path, Record]]] = defaultdict(list)
    for folder, record in members:
        groups[same_but_seed(record.spec)].append((folder, record))
    labels = row_labels([group[0][1] for group in groups.values()], registry)
    drawn = [_drawn(group, label) for group, label in zip(groups.values(), labels, strict=True)]
    drawn.sort(key=lambda row: -row.points["map_c"].mean())
    spec, num_images = members[0][1].spec, members[0][1].test.num_images
    return Setting(spec.protocol.name, spec.regime, model_words(spec), num_images, tuple(_against_best(drawn)))


def same_but_seed(spec: RunSpec) -> str:
    """What the runs of one row have in common: everything but the seed, and the stages that follow from it."""
    return spec.model_copy(update={"seed": 0, "stages": {}}).canonical()


def model_words(spec: RunSpec) -> str:
    """Backbone, resolution and head, for a heading."""
    return f"{spec.model.backbone} at {spec.model.image_size} px, {spec.model.head} head"


def _drawn(group: Sequence[tuple[Path, Record]], label: str) -> Drawn:
    runs = [(record, replicates_of(folder, record)) for folder, record in group]
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

    def row(self, share_best: float, difference: Figure | None, p_value: float | None) -> Row:
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
            share_best=share_best,
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
    shares = [float(share) for share in shares_best([row.replicates["map_c"] for row in drawn], seed=best.seed)]
    rows = [best.row(shares[0], None, None)]
    for row, share, gap, p_value in zip(others, shares[1:], gaps, adjusted, strict=True):
        rows.append(row.row(share, Figure(gap.difference, gap.low, gap.high), float(p_value)))
    return rows


def shares_best(replicates: Sequence[np.ndarray], *, seed: int) -> npt.NDArray[np.float64]:
    """How often each row comes out best when the test images and the seeds are drawn again.

    Rows pair up by replicate, which drew the same images for all; seeds are drawn for each row on its own. Rows that
    tie for the best share the replicate. Undefined replicates are left out.

    Args:
        replicates: [S, R] of each of M rows, which may differ in S.
        seed: the protocol's.

    Returns:
        [M] in [0, 1], of sum 1; NaN where no replicate is defined.
    """
    means = np.stack([seeds_interval(v, seed=seed, stream=f"best/{place}") for place, v in enumerate(replicates)])
    means = means[:, ~np.isnan(means).any(axis=0)]
    if not means.size:
        return np.full(len(replicates), np.nan)
    wins = means == means.max(axis=0)
    shares: npt.NDArray[np.float64] = (wins / wins.sum(axis=0)).mean(axis=1)
    return shares


def _point(record: Record, name: str) -> float:
    test = record.test
    estimate = {"map_c": test.map_c, "map_o": test.map_o}.get(name) or test.groups[name].map_c
    return float("nan") if estimate.value is None else estimate.value


def row_labels(records: Sequence[Record], registry: Registry | None = None) -> list[str]:
    """Titles, with the variant, and the parameters and plan values in which rows of one method differ.

    Where any two rows were trained for longer or on other batches than others, all say so.
    Rows whose values a study chose are called tuned and compared among themselves: what was searched is not listed.

    Args:
        records: one of each row.
        registry: tells the names of variants.
    """
    values = [_flat(record) for record in records]
    effort = [name for name in _EFFORT if len({own.get(name) for own in values}) > 1]
    labels = []
    for record, own in zip(records, values, strict=True):
        rivals = [(r, v) for r, v in zip(records, values, strict=True) if _are_rivals(r.spec, record.spec)]
        searched = {name for rival, _ in rivals if rival.tuning is not None for name in rival.tuning.space}
        differing = [
            name
            for name in own
            if name.rpartition(".")[2] not in searched and len({str(rival.get(name)) for _, rival in rivals}) > 1
        ]
        unequal = [name for name in effort if name not in differing]
        variant, settled = _variant(record.spec, registry)
        detail = [variant] if variant else []
        detail += [f"{name.rpartition('.')[2]}={own[name]}" for name in (*differing, *unequal) if name not in settled]
        label = f"{record.title} ({', '.join(detail)})" if detail else record.title
        labels.append(f"{label}, tuned" if record.spec.tuned_by else label)
    return [
        f"{label} {_study_words(record)}" if record.spec.tuned_by and labels.count(label) > 1 else label
        for label, record in zip(labels, records, strict=True)
    ]


def _study_words(record: Record) -> str:
    """What tells rows of one method apart that different studies chose."""
    trials = f" in {record.tuning.num_trials} trials" if record.tuning is not None else ""
    return f"by {str(record.spec.tuned_by)[:8]}{trials}"


def _are_rivals(one: RunSpec, other: RunSpec) -> bool:
    return one.method.name == other.method.name and (one.tuned_by is None) == (other.tuned_by is None)


def _variant(spec: RunSpec, registry: Registry | None) -> tuple[str | None, set[str]]:
    """The variant that a row's parameters are those of, if any, and the parameters that this says enough of."""
    try:
        method = registry.method(spec.method.name) if registry is not None else None
    except PluginError:  # a record of a method that is not installed here
        method = None
    if method is None or not method.variants:
        return None, set()
    fields = method.Params.model_fields
    names = {name for params in method.variants.values() for name in params} & fields.keys()
    own = {name: spec.method.params.get(name) for name in names}
    usual = {name: fields[name].get_default() for name in names}
    variants: list[tuple[str | None, Mapping[str, Any]]] = [(None, {}), *method.variants.items()]
    for variant, params in variants:
        if own == {**usual, **params}:
            return variant, {f"params.{name}" for name in names}
    return None, set()


def _flat(record: Record) -> dict[str, Any]:
    spec = record.spec
    plain: dict[str, Any] = {f"params.{name}": value for name, value in spec.method.params.items()}
    plain |= {f"plan.{name}": value for name, value in spec.plan.model_dump().items()}
    names = ("recipe", "precision", "selection", "numerics")
    plain |= {name: getattr(spec, name) for name in names}
    return plain | {"source": spec.method.source_sha256[:8], "version": spec.method.version}

"""Comparison of runs: means over seeds with intervals, and paired differences to the best with p-values."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plbench.comparison.identity import row_key
from plbench.comparison.scores import RowScores, ScoredRun, merge_identical
from plbench.errors import PluginError
from plbench.metrics.statistics import MIN_SEEDS, Figure, Pairs, compare_pairs, shares_best
from plbench.runs.record import Record
from plbench.runs.registry import Registry
from plbench.runs.stored import replicates_of
from plbench.runs.tables import PER_CLASS, EntryError, parse_per_class
from plbench.spec import UNRANKED_SELECTIONS, RunSpec


@dataclass(frozen=True)
class Row:
    """One method in one setting.

    Attributes:
        label: the method's title, with what distinguishes it from other rows of the same method.
        same: labels of rows with bit-identical scores, which this row represents.
        figures: by name: "map_c", "map_o", and the dataset's groups.
        share_best: probability that its mAP(C) is the highest of the setting's rows with other test images and seeds.
        rank: 1 + the number of rows that are significantly better; None with too few seeds.
        difference: of mAP(C) to the best row, percentage points, with an interval that excludes 0 exactly where the two
            are significantly different; None for the best row itself.
        p_value: of that difference, two-sided, adjusted for all pairs of the setting's rows.
        studies: number of tuning studies that the row is a mean over; 0 if its values were not tuned.
    """

    method: str
    label: str
    seeds: tuple[int, ...]
    keys: tuple[str, ...]
    figures: dict[str, Figure]
    num_classes_scored: int
    num_classes: int
    share_best: float
    rank: int | None = None
    difference: Figure | None = None
    p_value: float | None = None
    same: tuple[str, ...] = ()
    studies: int = 0


@dataclass(frozen=True)
class Setting:
    """Comparable rows, with one protocol, regime, backbone and head; best first.

    Attributes:
        num_images: number of scored images: of test or, with folds, of train images with a known label.
        chance: approximate mAP(C) of random scores on these images, the mean share of positives; NaN if a run's
            per-class table is missing.
        detectable: the difference from the best row, in points of mAP(C), that is detected with 80 % power; NaN if
            nothing is tested.
        folds: number of folds of train, each scored by models that were not trained on it; None if test is scored.
        foldable: number of train images that 5 folds would score; 0 if not possible or not requested.
    """

    protocol: str
    regime: str
    model: str
    num_images: int
    rows: tuple[Row, ...]
    detectable: float = math.nan
    chance: float = math.nan
    folds: int | None = None
    foldable: int = 0

    @property
    def images(self) -> str:
        """Description of the scored images."""
        if self.folds is None:
            return f"{self.num_images:,} test images"
        return f"{self.num_images:,} train images in {self.folds} folds"

    @property
    def other_images(self) -> str:
        """Description of the population of images that intervals refer to."""
        return "test images" if self.folds is None else "images"

    @property
    def tied(self) -> tuple[Row, ...]:
        """Rows that are statistically tied with the best; see `Pairs.tied`."""
        best, *others = self.rows
        return tuple(row for row in others if self.has_few_seeds(row, best) or row.rank == 1)

    @staticmethod
    def has_few_seeds(*rows: Row) -> bool:
        """Return whether any of the rows has too few seeds to be tested."""
        return any(len(row.seeds) < MIN_SEEDS for row in rows)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: NaN as None."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)), parse_constant=lambda _: None)
        return plain


def compare(runs: Iterable[tuple[Path, Record]], registry: Registry | None = None) -> list[Setting]:
    """Group finished runs into settings and rows.

    Args:
        runs: folder and record of each run. Failed runs, and runs without test figures, are left out.
        registry: provides the names of variants; without it, parameters are shown.

    Raises:
        StoreError: if the replicates of a run are missing or were changed.
    """
    settings: dict[tuple[str, ...], list[tuple[Path, Record]]] = defaultdict(list)
    for folder, record in runs:
        if record.status == "done" and "test" in record.metrics:
            settings[setting_of(record)].append((folder, record))
    compared = []
    for _, members in sorted(settings.items(), key=lambda item: item[0][0]):
        scored = [ScoredRun(record, replicates_of(folder, record)) for folder, record in members]
        compared.append(setting_from(scored, registry, _chance(members[0][0])))
    return compared


def setting_of(record: Record) -> tuple[str, ...]:
    """Return the key that runs must share to be paired by image; left-out images make a different test set."""
    spec = record.spec
    model, skipped = spec.model.model_dump_json(), repr(spec.skipped_images)
    protocol = (spec.protocol.name, spec.protocol.canonical(), spec.dataset_fingerprint)
    return (*protocol, spec.regime, model, skipped)


def setting_from(
    runs: Sequence[ScoredRun], registry: Registry | None, chance: float, folds: int | None = None
) -> Setting:
    """Compare runs that were scored on the same images.

    Args:
        runs: of one setting, in any order.
        registry: provides the names of variants; without it, parameters are shown.
        chance, folds: as in `Setting`.
    """
    groups: dict[str, list[ScoredRun]] = defaultdict(list)
    for run in runs:
        groups[row_key(run.record)].append(run)
    labels = row_labels([group[0].record for group in groups.values()], registry)
    rows = merge_identical([RowScores(label, group) for label, group in zip(labels, groups.values(), strict=True)])
    from plbench.randomness import derive_seed  # imports torch, which boards do not need

    rows.sort(key=lambda row: -row.value)
    samples = [row.sample("map_c") for row in rows]
    spec, num_images = runs[0].record.spec, runs[0].metrics.num_images
    pairs, seed = compare_pairs(samples), derive_seed(0, "compare", spec.protocol.name)
    shares = shares_best(samples, seed=seed)
    compared = tuple(_row(place, row, pairs, float(shares[place])) for place, row in enumerate(rows))
    of_all = (spec.protocol.name, spec.regime, model_words(spec), num_images, compared)
    return Setting(*of_all, pairs.detectable, chance, folds)


def _chance(folder: Path) -> float:
    try:
        rows = parse_per_class((folder / PER_CLASS).read_bytes())
    except (OSError, EntryError):
        return math.nan
    return share_of_positives([row.positives for row in rows], [row.negatives for row in rows])


def share_of_positives(positives: Iterable[int], negatives: Iterable[int]) -> float:
    """Return the approximate mAP(C) of random scores, percent: the mean share of positives; NaN if nothing is scored.

    Args:
        positives, negatives: number of known ones by class.
    """
    counts = [(ones, zeros) for ones, zeros in zip(positives, negatives, strict=True) if ones and zeros]
    return 100 * sum(ones / (ones + zeros) for ones, zeros in counts) / len(counts) if counts else math.nan


def _row(place: int, runs: RowScores[ScoredRun], pairs: Pairs, share_best: float) -> Row:
    metrics = runs.runs[0].metrics
    gap, reach = float(pairs.differences[place, 0]), float(pairs.reach[place, 0])
    p_value = float(pairs.p_values[place, 0])
    return Row(
        method=runs.records[0].spec.method.name,
        label=runs.label,
        seeds=runs.seeds,
        keys=tuple(key for run in runs.runs for key in run.keys),
        figures={name: runs.figure(name) for name in runs.metrics},
        num_classes_scored=metrics.num_classes_scored,
        num_classes=metrics.num_classes,
        share_best=share_best,
        rank=pairs.ranks[place] if len(runs.seeds) >= MIN_SEEDS else None,
        difference=Figure(gap, gap - reach, gap + reach) if place else None,
        p_value=p_value if place and not math.isnan(p_value) else None,
        same=runs.same,
        studies=runs.num_studies,
    )


def model_words(spec: RunSpec) -> str:
    """Return backbone, resolution and head, for a heading."""
    return f"{spec.model.backbone} at {spec.model.image_size} px, {spec.model.head} head"


def row_labels(records: Sequence[Record], registry: Registry | None = None) -> list[str]:
    """Return titles, with the variant, and the parameters and plan values in which rows of one method differ.

    If rows differ in length of training, batch size or selection of the epoch, all labels include it; selections that
    no board ranks are always included. Rows tuned by a study are labelled as tuned and compared among themselves,
    without the searched values.

    Args:
        records: one of each row.
        registry: provides the names of variants.
    """
    values = [_flat(record) for record in records]
    effort = [
        name for name in ("plan.epochs", "plan.batch_size", "selection") if len({own.get(name) for own in values}) > 1
    ]
    kinds = [(record.spec.method.name, record.spec.tuned_by is None) for record in records]
    labels = []
    for record, own, kind in zip(records, values, kinds, strict=True):
        rivals = [place for place, other in enumerate(kinds) if other == kind]
        reports = [report for place in rivals if (report := records[place].tuning) is not None]
        searched = {name for report in reports for name in report.space}
        differing = [
            name
            for name in own
            if name.rpartition(".")[2] not in searched and len({str(values[place].get(name)) for place in rivals}) > 1
        ]
        said = [*effort, *(["selection"] if record.spec.selection in UNRANKED_SELECTIONS else [])]
        unequal = [name for name in dict.fromkeys(said) if name not in differing]
        variant, settled = _variant(record.spec, registry)
        detail = [variant] if variant else []
        detail += [f"{name.rpartition('.')[2]}={own[name]}" for name in (*differing, *unequal) if name not in settled]
        label = f"{record.title} ({', '.join(detail)})" if detail else record.title
        labels.append(f"{label}, tuned" if record.spec.tuned_by else label)
    ambiguous = {label for label in labels if labels.count(label) > 1}
    for place, record in enumerate(records):
        if record.spec.tuned_by and labels[place] in ambiguous:  # rows from different studies
            trials = f" in {record.tuning.num_trials} trials" if record.tuning is not None else ""
            labels[place] += f" by {record.spec.tuned_by[:8]}{trials}"
    return labels


def _variant(spec: RunSpec, registry: Registry | None) -> tuple[str | None, set[str]]:
    """Return the variant with the row's parameters, if any, and the parameters that it covers."""
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
    plain |= {name: getattr(spec, name) for name in ("recipe", "precision", "selection", "numerics")}
    plain["embeddings"] = spec.embeddings and spec.embeddings[:8]
    return plain | {"source": spec.method.source_sha256[:8], "version": spec.method.version}

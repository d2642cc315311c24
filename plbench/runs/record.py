"""The run record in JSON, validated when written and when read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from plbench.errors import StoreError, first_invalid
from plbench.files import write_text
from plbench.files.plain_json import parse_json
from plbench.runs.migrations import OLDEST_VERSION, SCHEMA_VERSION, upgraded
from plbench.runs.pretraining import Pretraining
from plbench.runs.store import RECORD
from plbench.spec import Frozen, RunSpec, Selection
from plbench.tracking.tracker import numbers

Percent = Annotated[float, Field(ge=0.0, le=100.0)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Correlation = Annotated[float, Field(ge=-1 - 1e-9, le=1 + 1e-9)]


class Estimate(Frozen):
    """A percentage with its 95 % interval over test images; None if undefined.

    Attributes:
        low, high: `plbench.metrics.statistics.Estimate.interval`, of one training, without the uncertainty from seeds.
        lowest: value of the worst ranking of the same cells, the lower bound of intervals.
    """

    value: Percent | None
    low: Percent | None = None
    high: Percent | None = None
    lowest: Percent | None = None


class GroupMetrics(Frozen):
    """mAP(C) over the classes of a group that can be scored."""

    map_c: Estimate
    num_classes_scored: Count
    num_classes: Count


class F1Figures(Frozen):
    """CF1 and OF1 with their precision and recall, percent; see `plbench.metrics.F1`."""

    cf1: Percent | None
    of1: Percent | None
    class_precision: Percent | None
    class_recall: Percent | None
    overall_precision: Percent | None
    overall_recall: Percent | None


class ThresholdReport(Frozen):
    """How the classes' thresholds were chosen; the thresholds are in `per_class.csv`.

    Attributes:
        part: the part whose known cells were used.
        labels: of that part: its partial ones, or the complete ones that a simulation hid (an oracle).
        held_out: whether the scoring model was trained without that part. By default a run trains on all of train, so
            its scores there are better than on unseen images, and thresholds are too high.
        num_images: of that part.
        num_pooled: number of classes without a known positive, which use `pooled`, the best threshold of all cells
            together.
    """

    part: Literal["validation"]
    labels: Literal["partial", "complete"]
    held_out: bool
    num_images: Count
    num_pooled: Count
    pooled: float


class SplitMetrics(Frozen):
    """All figures of one evaluation, from known cells only, in percent unless stated otherwise.

    Attributes:
        num_classes_scored: number of classes with a known positive and a known negative, over which mAP(C) is a mean.
        f1: at the thresholds of `thresholds`; None without thresholds: for the last weights besides averaged ones, and
            if the validation part cannot be used to choose any.
        f1_top3: of predicting each image's 3 highest-scored classes.
        auroc: mean over the same classes as mAP(C).
        ece: expected calibration error of known cells, 15 bins; None if scores are not probabilities. Records before
            schema 5 have none of these four.
        ranking_loss: share of known (positive, negative) pairs of an image in the wrong order, in [0, 1].
        precision_at_k: by k; only for complete labels.
        quintiles: five equal groups of classes by number of train annotations, fewest first.
    """

    map_c: Estimate
    map_o: Estimate
    micro_ap: Percent | None
    f1: F1Figures | None = None
    thresholds: ThresholdReport | None = None
    f1_top3: F1Figures | None = None
    auroc: Percent | None = None
    ece: Percent | None = None
    ranking_loss: Share | None
    precision_at_k: dict[str, Percent] | None
    num_images: Count
    num_classes: Count
    num_classes_scored: Count
    num_cells: Count
    num_positives: Count
    groups: dict[str, GroupMetrics] = Field(default_factory=dict)
    quintiles: list[GroupMetrics] = Field(default_factory=list)

    @property
    def estimates(self) -> dict[str, Estimate]:
        """The headline metrics and mAP(C) of each group, by name: the figures that have replicates."""
        return {"map_c": self.map_c, "map_o": self.map_o} | {name: own.map_c for name, own in self.groups.items()}


class FileReference(Frozen):
    """A file in the run's folder, identified by content."""

    sha256: str
    num_bytes: Count


class StandardCost(Frozen):
    """The cost of a run alone, from scratch, in counts that do not depend on machine, load or caches.

    It is the sum over the run, its stages and the run that chose its epoch; work shared by several rows counts in full.
    It includes training, computations of methods and stages between epochs and from a trained model, selection, and one
    evaluation, but not the diagnostics of every run (last weights, hidden labels, thresholds).

    Attributes:
        trainings: number of trainings.
        extracted: images whose features are computed once, by split; empty if the backbone is trained.
        forward: number of images in forward passes of the backbone without a gradient.
        trained: number of images in forward and backward passes of the backbone.
        head: number of images that a head is trained on, steps times batch size, over all trainings.
    """

    trainings: Annotated[int, Field(ge=1)]
    extracted: dict[str, Count] = Field(default_factory=dict)
    forward: Count = 0
    trained: Count = 0
    head: Count = 0

    @property
    def image_passes(self) -> int:
        """Equivalent forward passes of an image through the backbone; forward and backward count as three."""
        return sum(self.extracted.values()) + self.forward + 3 * self.trained


class Cost(Frozen):
    """Resources used by the run on the machine in `environment`.

    Attributes:
        seconds: wall time by part of the run, without stages; "total" is the sum.
        phases: training seconds by phase, see `plbench.training.clock`; estimated from some steps on a GPU. Empty if
            trained in a stack, and in records before schema 4.
        images_per_second: training throughput.
        peak_memory_mb: of the GPU, or of the process on a CPU.
        measured_alone: whether no other training of the same program used the machine; None in older records.
        shared_with: number of other heads that trained in the same pass.
        standard: comparable between rows; None in older records, and if a required run lacks it.
    """

    seconds: dict[str, Seconds]
    phases: dict[str, Seconds] = Field(default_factory=dict)
    images_per_second: Annotated[float, Field(ge=0.0)]
    peak_memory_mb: Annotated[float, Field(gt=0.0)]
    measured_alone: bool | None = None
    shared_with: Count = 0
    standard: StandardCost | None = None

    @field_validator("shared_with")
    @classmethod
    def _none_where_alone(cls, value: int, info: ValidationInfo) -> int:
        if value and info.data.get("measured_alone"):
            raise ValueError("a run that was measured alone shared its pass with 0 others")
        return value


class DataSummary(Frozen):
    """The run's training and evaluation data."""

    num_train: Count
    num_train_known: Count
    train_density: float
    train_positives: Count
    train_negatives: Count
    num_test: Count
    num_validation: Count = 0
    classes_without_train_positives: Count
    skipped_images: Count = 0


class PriorDiagnostics(Frozen):
    """A stage's estimate of the class prior, and how it ranks the classes of the hidden truth (CSL, fig. 5, 7)."""

    total: float
    top: list[tuple[str, float]]
    spearman_by_depth: dict[str, Correlation | None] | None = None


class HiddenTruth(Frozen):
    """Diagnostics against labels hidden by a simulation, never used in training or selection.

    Attributes:
        map_c_unknown: mAP(C) on the train cells that were hidden.
        precision: of each mask that a method reports (such as the labels ignored by Selective): share truly present,
            percent.
        base_rate: share of hidden cells that are truly present, percent.
    """

    map_c_unknown: Percent | None
    base_rate: Percent | None
    precision: dict[str, Percent | None] = Field(default_factory=dict)
    num_marked: dict[str, Count] = Field(default_factory=dict)


class SelectionReport(Frozen):
    """The selected epoch, the criterion, and the curve (mAP(C) by epoch, percent)."""

    rule: Selection
    labels: Literal["none", "partial", "complete", "test"]
    epoch: Count
    weights: Literal["ema", "raw"]
    curve: list[dict[str, Any]] = Field(default_factory=list)


class SearchedRange(Frozen):
    """A study's search range of one value."""

    low: float
    high: float
    log: bool = False
    integer: bool = False


class TuningReport(Frozen):
    """How a study chose the values of a run.

    Attributes:
        study: its key, the spec's `tuned_by`.
        regime: of the trials; a proxy if the run's differs.
        num_trials: number of trials with an outcome, including pruned and failed ones.
        space: ranges by name: the method's parameters, and "lr" and "weight_decay" of the plan.
        seed: of the sampler and the trials.
        labels: validation labels used: partial ones, or complete ones (oracle selection).
        chosen: the winner's values by name; default: values of the first trial, the paper's.
        value, default_value: validation mAP(C) of both, percent.
    """

    study: str
    regime: Literal["finetune", "probe"]
    num_trials: Annotated[int, Field(ge=1)]
    space: dict[str, SearchedRange]
    sampler: str
    pruner: str
    seed: Count
    labels: Literal["partial", "complete"]
    chosen: dict[str, float]
    default: dict[str, float]
    value: Percent
    default_value: Percent | None


class Record(Frozen):
    """One finished or failed run.

    Attributes:
        protocol_sha256: of the spec's protocol, which boards compare with theirs.
        paper: the method's reference. source_file: its file below the repository's root; None for a plugin's.
        configuration: "default" if parameters, plan and model are those of protocol and recipe, "tuned" if chosen by a
            study, "custom" if set by the user; "unknown" for a failed run.
        tuning: report on the study that chose the values, if any.
        metrics: by evaluation: "test" (averaged weights, the headline), "test_raw" (last weights), "validation".
        pretraining: pretraining data of the backbone's weights; None in records before schema 5 with other weights.
        defaults_tuned_here: whether default values of the method were chosen by scores on this dataset.
        test_seen_in_pretraining: why the test images overlap with the pretraining data, by names of collections; None
            if they do not.
        files: by name in the run's folder.
        warnings: on the run's figures, and on parts of the method without effect (`plbench.method.Method.idle`).
        notes: on how its labels were read, from the plan.
    """

    schema_version: Literal[5] = 5
    key: str
    spec_sha256: str
    spec: RunSpec
    protocol_sha256: str | None = None
    status: Literal["done", "failed"]
    finished_at: str
    title: str
    paper: str = ""
    source_file: str | None = None
    configuration: Literal["default", "tuned", "custom", "unknown"] = "unknown"
    tuning: TuningReport | None = None
    pretraining: Pretraining | None = None
    test_seen_in_pretraining: str | None = None
    defaults_tuned_here: bool = False
    environment: dict[str, Any]
    data: DataSummary | None = None
    metrics: dict[str, SplitMetrics] = Field(default_factory=dict)
    selection: SelectionReport | None = None
    priors: dict[str, PriorDiagnostics] = Field(default_factory=dict)
    hidden_truth: HiddenTruth | None = None
    cost: Cost | None = None
    training: dict[str, float] = Field(default_factory=dict)
    files: dict[str, FileReference] = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    error: str | None = None

    @field_validator("error")
    @classmethod
    def _none_where_done(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("status") == "done":
            raise ValueError("a run that is done has no error")
        return value

    @property
    def test(self) -> SplitMetrics:
        """The headline evaluation."""
        return self.metrics["test"]


def write_record(folder: Path, record: Record) -> None:
    """Write `record.json`, the last of a run's files: its presence marks the run as complete.

    Raises:
        StoreError: if it cannot be written.
    """
    content = record.model_dump(mode="json", exclude_none=False)
    write_text(folder / RECORD, json.dumps(content, indent=1, allow_nan=False) + "\n")


def figures(record: Record) -> dict[str, float]:
    """Return a run's figures by name: percentages of each evaluation ("test/map_c"), and costs."""
    found: dict[str, float] = {}
    for split, metrics in record.metrics.items():
        values = {name: getattr(metrics, name).value for name in ("map_c", "map_o")}
        values |= {name: getattr(metrics, name) for name in ("micro_ap", "auroc", "ece")}
        for name, f1 in (("", metrics.f1), ("_top3", metrics.f1_top3)):
            values |= {} if f1 is None else {f"cf1{name}": f1.cf1, f"of1{name}": f1.of1}
        values |= {f"map_c of {group}": held.map_c.value for group, held in metrics.groups.items()}
        found |= {f"{split}/{name}": value for name, value in values.items() if value is not None}
    return found | numbers({"cost": {} if record.cost is None else record.cost.model_dump()})


def read_record(folder: Path) -> Record:
    """Read and validate a run's record.

    Raises:
        StoreError: if it is missing, damaged, of another schema, or does not match its key.
    """
    path = folder / RECORD
    try:
        record = parse_record(path.read_bytes(), path)
    except OSError as error:
        raise StoreError(f"{path} cannot be read as a record: {error}") from error
    if record.spec.sha256() != record.spec_sha256 or record.spec.key != record.key:
        raise StoreError(f"{path} was changed: its spec has sha256 {record.spec.sha256()[:16]}, it says {record.key}")
    if record.status == "done" and (record.metrics.keys().isdisjoint({"test", "validation"}) or record.cost is None):
        missing = "cost" if record.metrics else "metrics"
        raise StoreError(
            f"{path} is of a run that is done, but has no {missing}; run it again with `force=True`, or delete {folder}"
        )
    return record


def parse_record(content: bytes, path: Path) -> Record:
    """Parse a record from JSON, of this schema or an older one, without verifying hashes.

    Raises:
        StoreError: if it is not JSON, of an unknown schema, or not valid, with the field.
    """
    try:
        found = upgraded(parse_json(content))
    except ValueError as error:
        raise StoreError(f"{path} cannot be read as a record: {error}") from error
    version = found.get("schema_version") if isinstance(found, dict) else None
    if version != SCHEMA_VERSION:
        raise StoreError(
            f"{path} has record schema {version!r}; this plbench reads {OLDEST_VERSION} to {SCHEMA_VERSION}"
        )
    try:
        return Record.model_validate(found)
    except ValidationError as error:
        field, message, *_ = first_invalid(error)
        raise StoreError(f"{path} is not a valid record: {field}: {message}") from error


def reference(path: Path) -> FileReference:
    """Return a file's sha256 and size."""
    with path.open("rb") as file:
        return FileReference(sha256=hashlib.file_digest(file, "sha256").hexdigest(), num_bytes=path.stat().st_size)


def whole_file(folder: Path, record: Record, name: str) -> Path:
    """Return the path of a file that a record refers to, after verifying its hash.

    Raises:
        StoreError: if it is missing or has changed.
    """
    path, what = folder / name, "was changed since"
    try:
        if reference(path) == record.files.get(name):
            return path
    except OSError as error:
        what = "is missing from" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror}), of"
    raise StoreError(f"{path} {what} run {record.key}; run it again with `force=True`, or delete {folder}")

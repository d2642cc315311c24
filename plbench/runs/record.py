"""The run record: what happened, in JSON, validated when written and when read."""

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
    """A percentage with its 95 % interval over test images; None where it is not defined.

    Attributes:
        low, high: `plbench.metrics.statistics.Estimate.interval`, of one training: what other seeds would give is
            not in it.
        lowest: what the worst ranking of the same cells comes to; no interval reaches below.
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
    """CF1 and OF1 with what they are harmonic means of, percent; see `plbench.metrics.F1`."""

    cf1: Percent | None
    of1: Percent | None
    class_precision: Percent | None
    class_recall: Percent | None
    overall_precision: Percent | None
    overall_recall: Percent | None


class ThresholdReport(Frozen):
    """How the classes' thresholds were chosen; `per_class.csv` holds the thresholds themselves.

    Attributes:
        part: the part whose known cells chose them.
        labels: of that part: its partial ones, or the complete ones that a simulation hid (an oracle).
        held_out: whether the model that chose was trained without that part. By default a run trains on all of train,
            so that its scores there are better than on images it has not seen, and thresholds come out too high.
        num_images: of that part.
        num_pooled: classes without a known positive there, which take `pooled`, the best threshold of all cells
            together.
    """

    part: Literal["validation"]
    labels: Literal["partial", "complete"]
    held_out: bool
    num_images: Count
    num_pooled: Count
    pooled: float


class SplitMetrics(Frozen):
    """All figures of one evaluation, from known cells only. Percent where nothing else is said.

    Attributes:
        num_classes_scored: classes with a known positive and a known negative; mAP(C) is a mean over these.
        f1: at the threshold of each class that `thresholds` speaks of; None where none were chosen: of the last
            weights beside averaged ones, and where the validation part cannot choose any.
        f1_top3: where each image's 3 highest-scored classes are predicted.
        auroc: mean over the classes that mAP(C) is a mean over.
        ece: expected calibration error of known cells, 15 bins; None where scores are no probabilities.
            Records before schema 5 have none of these four.
        ranking_loss: share of known (positive, negative) pairs of an image in the wrong order, in [0, 1].
        precision_at_k: by k; only where every label is known.
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
    """A file of the run's folder, by content."""

    sha256: str
    num_bytes: Count


class StandardCost(Frozen):
    """What it takes to make a run alone, from nothing, in counts that no machine, neighbour or cache changes.

    It sums over the run, its stages and the run that chose its epoch; what several rows could share counts in full.
    Counted are training, what methods and stages compute between epochs and from a trained model, selection, and one
    scoring. What every run is diagnosed by (last weights, hidden truth, thresholds) is not.

    Attributes:
        trainings: that there are.
        extracted: images whose features are computed once, by split; empty where the backbone is trained.
        forward: images that pass through the backbone without a gradient.
        trained: images that pass through the backbone forward and back.
        head: images that a head is trained on, steps times batch, in all trainings.
    """

    trainings: Annotated[int, Field(ge=1)]
    extracted: dict[str, Count] = Field(default_factory=dict)
    forward: Count = 0
    trained: Count = 0
    head: Count = 0

    @property
    def image_passes(self) -> int:
        """Forward passes of an image through the backbone; forward and back are three."""
        return sum(self.extracted.values()) + self.forward + 3 * self.trained


class Cost(Frozen):
    """What the run took on the machine of `environment`.

    Attributes:
        seconds: wall time by part of the run, stages apart; "total" is the sum.
        phases: what the training's seconds went into, see `plbench.training.clock`; of a GPU estimated from some steps.
            Empty where it trained together with others, and in records before schema 4.
        images_per_second: training throughput.
        peak_memory_mb: of the device where it is a GPU, else of the process.
        measured_alone: whether no other training of the same program shared the machine; None in older records.
        shared_with: number of other heads that trained in the same pass.
        standard: what compares rows; None in older records, and where a run that this one needed does not tell.
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
    """What the run trained and was scored on."""

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
    """Diagnostics against the labels that a simulation hid. Nothing here reaches a training or a selection.

    Attributes:
        map_c_unknown: mAP(C) on the train cells that were hidden.
        precision: of each mask that a method reports (what Selective ignores, say): share truly present, percent.
        base_rate: share of hidden cells that are truly present, percent.
    """

    map_c_unknown: Percent | None
    base_rate: Percent | None
    precision: dict[str, Percent | None] = Field(default_factory=dict)
    num_marked: dict[str, Count] = Field(default_factory=dict)


class SelectionReport(Frozen):
    """What was chosen, by what, and the curve that it was chosen from (mAP(C) by epoch, percent)."""

    rule: Selection
    labels: Literal["none", "partial", "complete", "test"]
    epoch: Count
    weights: Literal["ema", "raw"]
    curve: list[dict[str, Any]] = Field(default_factory=list)


class SearchedRange(Frozen):
    """Where a study looked for one value."""

    low: float
    high: float
    log: bool = False
    integer: bool = False


class TuningReport(Frozen):
    """How a study chose the values of a run.

    Attributes:
        study: its key, the spec's `tuned_by`.
        regime: that the trials were trained in; a proxy where the run's is another.
        num_trials: that were told a value, pruned ones and failures included.
        space: ranges by name: the method's parameters, and "lr" and "weight_decay" of the plan.
        seed: of the sampler and the trials.
        labels: of the validation part that chose: its partial ones, or complete ones (oracle selection).
        chosen: the winner's values by name; default: those of the first trial, the paper's.
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
        protocol_sha256: of the spec's protocol, which a board compares with its own.
        paper: the method's reference. source_file: its file below the repository's root; None for a plugin's.
        configuration: "default" where parameters, plan and model are those of protocol and recipe, "tuned" where a
            study chose them, "custom" where a person did; "unknown" of a run that failed.
        tuning: how a study chose the values, where one did.
        metrics: by evaluation: "test" (averaged weights, the headline), "test_raw" (last weights), "validation".
        pretraining: what the backbone's weights have seen; None in records before schema 5 of weights from elsewhere.
        defaults_tuned_here: whether default values of the method were chosen by scores on this very dataset.
        test_seen_in_pretraining: why the test images are among what they have seen, as far as names of collections
            tell; None where they are not.
        files: by name in the run's folder.
        warnings: on the run's figures, and what parts of the method did nothing (`plbench.method.Method.idle`).
        notes: on how its labels were read, as the plan said them.
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
    """Write `record.json`, last of a run's files: its presence says that the run is whole.

    Raises:
        StoreError: if it cannot be written.
    """
    content = record.model_dump(mode="json", exclude_none=False)
    write_text(folder / RECORD, json.dumps(content, indent=1, allow_nan=False) + "\n")


def figures(record: Record) -> dict[str, float]:
    """Return what came of a run, by name: percentages of each evaluation ("test/map_c"), and what the run took."""
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
        StoreError: if it is missing, damaged, of another schema, or not what its own key says.
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
    """Return a record from its JSON, of this schema or an older one; whether its hashes agree is not looked at.

    Raises:
        StoreError: if it is no JSON, of a schema that is not known, or not valid, with the field.
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
    """Return the path of a file that a record refers to, if it is the very one.

    Raises:
        StoreError: if it is missing, or was changed since.
    """
    path, what = folder / name, "was changed since"
    try:
        if reference(path) == record.files.get(name):
            return path
    except OSError as error:
        what = "is missing from" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror}), of"
    raise StoreError(f"{path} {what} run {record.key}; run it again with `force=True`, or delete {folder}")

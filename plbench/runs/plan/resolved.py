"""A resolved run: a method with its parameters in a setting, and its prerequisites."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError

from plbench.errors import PlbenchError, PluginError, did_you_mean, first_invalid
from plbench.loading.transforms import TrainTransform, eval_transform
from plbench.method import Method, Stage, Task
from plbench.models.backbones import feature_shape
from plbench.progress import counted
from plbench.randomness import generator
from plbench.runs.plan.label_check import check_learnable
from plbench.runs.plan.map_check import check_takes_maps
from plbench.runs.protocol import ProtocolData
from plbench.runs.record import Record, TuningReport
from plbench.runs.registry import Registry, source_sha256
from plbench.runs.store import Store
from plbench.runs.stored import finished_record
from plbench.spec import MethodSpec, ModelSpec, Recipe, RunSpec
from plbench.training.hooks import Guarded, construct

_MAX_STAGE_DEPTH = 8
_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class ResolvedRun:
    """A spec with everything required to run it, and its prerequisites.

    Attributes:
        stages: by name, each with the run that it reduces.
        chooser: the run that selects the epoch on the validation part; None if there is none.
        tuning: how a study chose its values; None if none did, or the study is not available.
    """

    spec: RunSpec
    method: type[Method]
    params: Any
    protocol_data: ProtocolData
    recipe: Recipe
    stages: dict[str, tuple[Stage, ResolvedRun]]
    chooser: ResolvedRun | None = None
    tuning: TuningReport | None = None

    @property
    def prerequisites(self) -> list[ResolvedRun]:
        """Runs that must be finished before this one: its stages, and the one that selects its epoch."""
        return [*(run for _, run in self.stages.values()), *([self.chooser] if self.chooser is not None else [])]

    @property
    def features_model(self) -> ModelSpec:
        """The model as the method sees its backbone: without pooling if it needs the feature map."""
        return features_model_of(self.method, self.spec.model)

    @property
    def steps_per_epoch(self) -> int:
        """Optimisation steps per epoch."""
        return math.ceil(len(self.protocol_data.train(self.spec.train_part).rows) / self.spec.plan.batch_size)

    @property
    def num_steps(self) -> int:
        """Optimisation steps of the whole training."""
        return self.steps_per_epoch * self.spec.plan.epochs if self.method.learns else 0

    def finished(self, store: Store) -> Record | None:
        """Return the record of the run if it is done."""
        return finished_record(store.run_folder(self.spec.key))

    def describe(self) -> str:
        """Return a one-line description of the run."""
        spec = self.spec
        training = f"{counted(spec.plan.epochs, 'epoch')} of {spec.plan.batch_size}"
        return (
            f"Run {spec.key}: {self.method.title} on {spec.protocol.name}, {spec.regime}, {spec.model.backbone} at "
            f"{spec.model.image_size} px, {training if self.method.learns else 'nothing trained'}, seed {spec.seed}"
        )


def complete(
    base: RunSpec,
    method_params: Mapping[str, Any],
    protocol_data: ProtocolData,
    recipe: Recipe,
    registry: Registry,
    depth: int = 0,
) -> ResolvedRun:
    """Complete method, parameters and stages of a spec whose other fields are final.

    The plan's data has the spec's seed, regardless of that of the given data.

    Raises:
        PlbenchError: if the method or a parameter does not fit. PluginError: if stages depend on each other in a
            circle.
    """
    if depth > _MAX_STAGE_DEPTH:
        raise PluginError(f"the stages of method {base.method.name!r} depend on each other in a circle")
    method, protocol_data = registry.method(base.method.name), protocol_data.at_seed(base.seed)
    suggested = protocol_data.protocol.suggested.get(method.name, {}) if not base.method.version else {}
    params = validate_params(method, _starting(method, suggested, method_params))
    _check_needs(method, base, protocol_data)
    if (seen := features_model_of(method, base.model)).pooling == "none":
        feature_shape(seen)  # rejects backbones without feature maps
    needs_embeddings = "embeddings" in method.needs
    task = make_task(base if needs_embeddings else base.model_copy(update={"embeddings": None}), protocol_data)
    params = params.completed(task)
    stages: dict[str, tuple[Stage, ResolvedRun]] = {}
    for stage in Guarded(method).stages(params, task):
        tuned = {name: getattr(recipe.plans[base.regime], name) for name in ("lr", "weight_decay")}
        changes = {
            "method": without_source(stage.method),
            # never a trial's own rate or decay, so that all trials share the stage
            "plan": base.plan.model_copy(update=tuned),
            "selection": "last",
            "tuned_by": None,
            "stages": {},
        }
        try:
            plan = complete(base.model_copy(update=changes), stage.params, protocol_data, recipe, registry, depth + 1)
        except PlbenchError as error:
            raise type(error)(f"stage {stage.name!r} of method {method.name!r}: {error}") from error
        stages[stage.name] = (stage, plan)
    if not stages:  # report what the method refuses, such as a table that would not fit, before anything trains
        made = construct(method, params, task)
        if base.regime == "finetune" and method.transform is not Method.transform:
            Guarded(made).transform(TrainTransform(eval_transform(base.model), base.plan))
        if base.model.is_spatial:
            labels = protocol_data.train(base.train_part).labels
            check_takes_maps(lambda: construct(method, params, task), base.model, labels)
    spec = base.model_copy(
        update={
            "method": MethodSpec(
                name=method.name,
                version=method.version,
                source_sha256=source_sha256(method),
                params=params.model_dump(mode="json", exclude_none=True),
            ),
            "stages": {name: plan.spec.key for name, (_, plan) in stages.items()},
        }
    )
    if not (needs_embeddings or any(plan.spec.embeddings for _, plan in stages.values())):
        spec = spec.model_copy(update={"embeddings": None})  # the run does not depend on embeddings
    chooser = None
    if spec.selection == "validation" and spec.train_part == "train":
        fit = base.model_copy(update={"train_part": "fit"})
        chooser = complete(fit, spec.method.params, protocol_data, recipe, registry, depth)
    return ResolvedRun(spec, method, params, protocol_data, recipe, stages, chooser)


def in_order(runs: Sequence[ResolvedRun], but: Collection[str] = ()) -> dict[str, ResolvedRun]:
    """Return runs and all their prerequisites by key, each once, after its prerequisites.

    Args:
        runs: requested runs.
        but: keys of runs to leave out, with prerequisites that only they need.
    """
    found: dict[str, ResolvedRun] = {}
    for run in runs:
        if run.spec.key not in found and run.spec.key not in but:
            for one in (*in_order(run.prerequisites, but).values(), run):
                found.setdefault(one.spec.key, one)
    return found


def is_default(plan: ResolvedRun, *, opens_data: bool = True) -> bool:
    """Return whether a run has the values of its protocol and recipe, without any chosen by hand.

    Variants declared by the method also count, with the values that define them.

    Args:
        plan: of the run.
        opens_data: whether the dataset may be opened for values that only it determines; otherwise these may be any.
    """
    spec, recipe, method = plan.spec, plan.recipe, plan.method
    suggested = plan.protocol_data.protocol.suggested.get(method.name, {})
    model = spec.model.model_copy(update={"weights_sha256": recipe.model.weights_sha256})
    if spec.plan != recipe.plans[spec.regime] or model != recipe.model:
        return False
    for variant in ({}, *method.variants.values()):
        row = validate_params(method, _starting(method, suggested, variant))
        left = row.left_to_task()
        if left and opens_data:
            row = row.completed(make_task(spec, plan.protocol_data))
        declared = row.model_dump(mode="json", exclude_none=True)
        if not opens_data:
            declared |= {name: spec.method.params.get(name) for name in left if name in spec.method.params}
        if spec.method.params == declared:
            return True
    return False


def without_source(method: str) -> MethodSpec:
    """Return a method with only its name, for `complete` to fill in."""
    return MethodSpec(name=method, version="", source_sha256="", params={})


def _starting(method: type[Method], suggested: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given values, and those of the protocol's suggestions that they do not replace."""
    replaced = {name for names in method.Params.alternatives if names & given.keys() for name in names}
    return {**{name: value for name, value in suggested.items() if name not in replaced}, **given}


def validate_params(method: type[Method], values: Mapping[str, Any]) -> Any:
    """Return a method's parameters, typed and range-checked.

    Raises:
        PlbenchError: with the parameter, its value and what would be valid.
    """
    known = method.Params.model_fields
    for name in values:
        if name not in known:
            listing = did_you_mean(name, known) if known else "it takes none"
            raise PlbenchError(f"method {method.name!r} has no parameter {name!r}; {listing}")
    chosen = dict(values)
    for names in method.Params.alternatives:
        given = sorted(name for name in names if values.get(name) is not None)
        if len(given) > 1:
            raise PlbenchError(
                f"{' and '.join(given)} of method {method.name!r} set the same thing in two ways; give only one of them"
            )
        if given:
            chosen |= dict.fromkeys(names - {*given})
    return checked(method.Params, chosen, f"parameters of method {method.name!r}")


def make_task(spec: RunSpec, protocol_data: ProtocolData, artifacts: Mapping[str, torch.Tensor] | None = None) -> Task:
    """Return the information available to the method of a run."""
    part = protocol_data.train(spec.train_part)
    positives, negatives = part.labels.counts()
    found = {} if spec.embeddings is None else protocol_data.embedded(spec.embeddings, part)
    return Task(
        num_classes=part.labels.num_classes,
        class_ids=part.labels.class_ids,
        class_names=part.labels.class_names,
        positives=positives,
        negatives=negatives,
        num_train=len(part.rows),
        epochs=spec.plan.epochs,
        steps_per_epoch=math.ceil(len(part.rows) / spec.plan.batch_size),
        regime=spec.regime,
        generator=generator(spec.seed, "method", spec.method.name),
        artifacts={**(artifacts or {}), **{name: torch.from_numpy(value) for name, value in found.items()}},
        expected_positives=protocol_data.expected_positives,
    )


def features_model_of(method: type[Method], model: ModelSpec) -> ModelSpec:
    """Return a model as a method sees its backbone: without pooling if it needs the feature map."""
    return model.model_copy(update={"pooling": "none"}) if "feature_map" in method.needs else model


def _check_needs(method: type[Method], spec: RunSpec, protocol_data: ProtocolData) -> None:
    if spec.regime == "probe" and "images" in method.needs:
        raise PlbenchError(f'method {method.name!r} needs images, not cached features; give `regime="finetune"`')
    if "embeddings" in method.needs and spec.embeddings is None:
        raise PlbenchError(
            f"method {method.name!r} needs a vision-language model's embeddings of images and class names; give the "
            f"file with `embeddings=FILE`, which plbench data embeddings {spec.protocol.dataset} makes"
        )
    check_learnable(protocol_data, spec.train_part)
    if spec.train_part != "train":
        protocol_data.held_out(spec.train_part)  # rejects one that cannot be scored
    if "negatives" in method.needs and protocol_data.train(spec.train_part).labels.counts()[1].sum() == 0:
        raise PlbenchError(
            f"method {method.name!r} needs verified negatives, and protocol {spec.protocol.name} has none; use a "
            "method that treats unknown labels as negatives, such as those that plbench methods list shows without "
            "that need"
        )


def checked(kind: type[_Model], values: Mapping[str, Any], what: str) -> _Model:
    """Return values as a validated model.

    Raises:
        PlbenchError: if a value is invalid; the message names `what`.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        field, message, given, _ = first_invalid(error)
        raise PlbenchError(f"{what}: {field} = {given!r} is not valid: {message}") from error

"""From what a person asked for to the complete spec of a run, and of every run that must be there first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pydantic import ValidationError

from plbench.data.dataset import Dataset
from plbench.data.digests import file_sha256
from plbench.errors import PlbenchError, PluginError, did_you_mean
from plbench.method import Method, Stage, Task
from plbench.models import Backbone, default_normalisation, resolve_backbone, weights_path
from plbench.progress import Reporter
from plbench.randomness import generator, seeded
from plbench.runs.plan.duplicates import check_apart
from plbench.runs.plan.image_check import check_images
from plbench.runs.plan.label_check import check_learnable, notes_on
from plbench.runs.protocol import ProtocolData, choose_protocol, custom, granting, is_official
from plbench.runs.record import Record, TuningReport
from plbench.runs.registry import Registry, source_sha256
from plbench.runs.store import Store
from plbench.runs.stored import finished_record
from plbench.runs.workspace import Workspace, fingerprint, open_dataset
from plbench.spec import (
    MethodSpec,
    ModelSpec,
    Plan,
    Precision,
    Protocol,
    Recipe,
    Regime,
    RunSpec,
    Selection,
    differences,
)
from plbench.training.dropout import draws_alone, has_batch_statistics
from plbench.training.hooks import Guarded

_MAX_STAGE_DEPTH = 8


@dataclass(frozen=True)
class Request:
    """What a person asked for. None leaves a choice to the protocol or the recipe.

    Attributes:
        method_params: typed values by name, or texts "name=value" as given with -P.
        model, plan: fields of `ModelSpec` and `Plan` to change from the recipe's.
        scores_test: False where the test split must stay closed, as while something is tuned.
    """

    dataset: str
    method: str
    method_params: Mapping[str, Any] = field(default_factory=dict)
    simulate: str | None = None
    simulation_seed: int | None = None
    recipe: str | None = None
    regime: Regime | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    precision: Precision | None = None
    seed: int = 0
    selection: Selection = "last"
    skip_unreadable: bool = False
    allow_duplicates: bool = False
    scores_test: bool = True


@dataclass(frozen=True)
class ResolvedRun:
    """A spec with all that it was made from, ready to run, and the runs that must be there first.

    Attributes:
        stages: by name, each with the run that it reduces.
        chooser: the run that chooses the epoch on the validation part; None where none does.
        tuning: how a study chose its values; None where none did, or where the study is not here.
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
        """The runs that must be there before this one: its stages, and the one that chooses its epoch."""
        return [*(run for _, run in self.stages.values()), *([self.chooser] if self.chooser is not None else [])]

    def finished(self, store: Store) -> Record | None:
        """Return the record of the run if it is done."""
        return finished_record(store.run_folder(self.spec.key))

    def describe(self) -> str:
        """Return one line on what will run."""
        spec = self.spec
        epochs = "1 epoch" if spec.plan.epochs == 1 else f"{spec.plan.epochs} epochs"
        return (
            f"Run {spec.key}: {self.method.title} on {spec.protocol.name}, {spec.regime}, {spec.model.backbone} at "
            f"{spec.model.image_size} px, {epochs} of {spec.plan.batch_size}, seed {spec.seed}"
        )


@dataclass(frozen=True)
class ResolvedSetting:
    """What runs of many methods have in common: dataset, protocol, recipe, model and plan, checked against the data.

    Attributes:
        spec: of no method yet, with seed 0.
    """

    spec: RunSpec
    protocol_data: ProtocolData
    recipe: Recipe

    def run(self, method: str, params: Mapping[str, Any], seed: int, registry: Registry) -> ResolvedRun:
        """Return the run of a method in this setting.

        Raises:
            PlbenchError: if method or parameters do not exist, or do not fit the setting.
        """
        spec = self.spec.model_copy(update={"method": _without_source(method), "seed": seed})
        return complete(spec, params, self.protocol_data, self.recipe, registry)

    def with_budget(self, num_trials: int, reporter: Reporter) -> ResolvedSetting:
        """Return the setting under a protocol that grants so many trials: its own, or else a custom one.

        Args:
            num_trials: of each study.
            reporter: is told if the protocol becomes a custom one.
        """
        protocol = granting(self.spec.protocol, num_trials, reporter)
        return replace(self, spec=self.spec.model_copy(update={"protocol": protocol}))


class MissingWeightsError(PlbenchError):
    """The weights of a backbone cannot be had here.

    Attributes:
        setting: as it would be, but for the hash of the weights: what a run would take can be estimated from it.
    """

    def __init__(self, message: str, setting: ResolvedSetting) -> None:
        """Keep the setting."""
        super().__init__(message)
        self.setting = setting


def plan_run(request: Request, workspace: Workspace) -> ResolvedRun:
    """Checks a request against the data and completes it.

    Raises:
        PlbenchError: if anything asked for does not exist or does not fit; nothing has been computed then.
        MissingWeightsError: if only the weights are missing.
    """
    workspace.registry.method(request.method)  # a mistyped method is said before data is drawn
    setting = resolve_setting(request, workspace)
    return setting.run(request.method, request.method_params, request.seed, workspace.registry)


def resolve_setting(request: Request, workspace: Workspace, opened: Sequence[ProtocolData] = ()) -> ResolvedSetting:
    """Checks all of a request but its method, parameters and seed against the data.

    Args:
        request: what was asked for.
        workspace: where and how.
        opened: of other settings in this workspace: a dataset or its data that is among them is not opened again.

    Raises:
        PlbenchError: if anything asked for does not exist or does not fit; nothing has been computed then.
        MissingWeightsError: if only the weights are missing.
    """
    dataset = _opened_dataset(request.dataset, workspace, opened)
    protocol = choose_protocol(
        dataset, request.simulate, request.simulation_seed, selects_on_test=request.selection == "best-on-test"
    )
    skipped = check_images(dataset, protocol, workspace, skip=request.skip_unreadable)
    duplicates = check_apart(dataset, protocol, workspace, skipped, allow=request.allow_duplicates)
    if skipped or duplicates or not is_official(dataset, protocol):
        protocol = custom(protocol)
    recipe = _choose_recipe(dataset, request.recipe)
    regime = request.regime or recipe.regime
    protocol_data = _opened_protocol_data(dataset, protocol, skipped, opened)
    _check_labels(protocol_data, request.selection, workspace, scores_test=request.scores_test)
    base = RunSpec(
        protocol=protocol,
        dataset_fingerprint=fingerprint(dataset, workspace),
        method=_without_source(""),
        model=_choose_model(recipe, request.model),
        regime=regime,
        recipe=recipe.name,
        plan=_checked(Plan, {**recipe.plans[regime].model_dump(), **request.plan}, "training plan"),
        precision=request.precision or ("bfloat16" if workspace.device.type == "cuda" else "float32"),
        seed=0,
        selection=request.selection,
        skipped_images=skipped,
        duplicates=duplicates,
    )
    if base.regime == "probe" and base.plan.grad_checkpointing:
        raise PlbenchError(
            "--grad-checkpointing is for the activations of a backbone, and the probe regime trains a head on cached "
            "features; leave it out, or give --regime finetune"
        )
    base = base.model_copy(update={"processes": _deciding_processes(base, workspace)})
    if base.model.weights == "pretrained":
        workspace.reporter.line(f"Looking for the weights of {base.model.backbone}, here and on timm's hub")
    try:
        path = weights_path(base.model, workspace.weights_file)
    except PlbenchError as error:
        if base.model.weights != "pretrained":
            raise
        raise MissingWeightsError(str(error), ResolvedSetting(base, protocol_data, recipe)) from error
    weights = {"weights_sha256": file_sha256(path, workspace.store.cache) if path is not None else None}
    base = base.model_copy(update={"model": base.model.model_copy(update=weights)})
    return ResolvedSetting(base, protocol_data, recipe)


def plan_from_spec(spec: RunSpec, workspace: Workspace, opened: Sequence[ProtocolData] = ()) -> ResolvedRun:
    """The plan of a run that was written down, on this machine's data and code.

    Args:
        spec: the run.
        workspace: where and how.
        opened: as `plan_run`.

    Raises:
        PlbenchError: if data, weights or code are no longer what the spec says, naming what differs.
    """
    dataset = _opened_dataset(spec.protocol.dataset, workspace, opened)
    recipe = _choose_recipe(dataset, spec.recipe)
    own = next((p for p in dataset.protocols if p.name == spec.protocol.name), spec.protocol)
    suggested = {"suggested": own.suggested, "tuned_here": own.tuned_here}
    protocol = spec.protocol.model_copy(update=suggested)
    skipped = check_images(dataset, protocol, workspace, skip=bool(spec.skipped_images))
    protocol_data = _opened_protocol_data(dataset, protocol, skipped, opened)
    _check_labels(protocol_data, spec.selection, workspace, scores_test=spec.train_part == "train")
    resolve_backbone(spec.model.backbone)  # timm would fetch, or read from a folder, what a stranger names by address
    path = weights_path(spec.model, workspace.weights_file)
    here = spec.model_copy(
        update={
            "dataset_fingerprint": fingerprint(dataset, workspace),
            "model": spec.model.model_copy(
                update={"weights_sha256": file_sha256(path, workspace.store.cache) if path else None}
            ),
            "skipped_images": skipped,
            "duplicates": check_apart(dataset, protocol, workspace, skipped, allow=spec.duplicates is not None),
            "numerics": RunSpec.model_fields["numerics"].default,
        }
    )
    here = here.model_copy(update={"processes": _deciding_processes(here, workspace)})
    plan = complete(here, spec.method.params, protocol_data, recipe, workspace.registry)
    differs = differences(spec.model_dump(mode="json"), plan.spec.model_dump(mode="json"))
    if differs:
        raise PlbenchError(
            f"the run written down cannot be the same here, since {'; '.join(differs)}; use the data and the version "
            "of plbench that it was written with, or give its options instead of --config"
        )
    return plan


def complete(
    base: RunSpec,
    method_params: Mapping[str, Any],
    protocol_data: ProtocolData,
    recipe: Recipe,
    registry: Registry,
    depth: int = 0,
) -> ResolvedRun:
    """Fills in method, parameters and stages of a spec whose other fields stand.

    The plan's data is that of the spec's seed, whatever seed the given one is of.

    Raises:
        PlbenchError: if the method or a parameter does not fit. PluginError: if stages need each other in a circle.
    """
    if depth > _MAX_STAGE_DEPTH:
        raise PluginError(f"the stages of method {base.method.name!r} need each other in a circle")
    method, protocol_data = registry.method(base.method.name), protocol_data.at_seed(base.seed)
    suggested = protocol_data.protocol.suggested.get(method.name, {}) if not base.method.version else {}
    params = validate_params(method, _starting(method, suggested, method_params))
    _check_needs(method, base, protocol_data)
    task = make_task(base, protocol_data)
    params = params.completed(task)
    stages: dict[str, tuple[Stage, ResolvedRun]] = {}
    for stage in Guarded(method).stages(params, task):
        tuned = {name: getattr(recipe.plans[base.regime], name) for name in ("lr", "weight_decay")}
        changes = {
            "method": _without_source(stage.method),
            "plan": base.plan.model_copy(update=tuned),  # shared by every trial: never its learning rate or decay
            "selection": "last",
            "tuned_by": None,
            "stages": {},
        }
        try:
            plan = complete(base.model_copy(update=changes), stage.params, protocol_data, recipe, registry, depth + 1)
        except PlbenchError as error:
            raise type(error)(f"stage {stage.name!r} of method {method.name!r}: {error}") from error
        stages[stage.name] = (stage, plan)
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
    chooser = None
    if spec.selection == "validation" and spec.train_part == "train":
        fit = base.model_copy(update={"train_part": "fit"})
        chooser = complete(fit, spec.method.params, protocol_data, recipe, registry, depth)
    return ResolvedRun(spec, method, params, protocol_data, recipe, stages, chooser)


def in_order(runs: Sequence[ResolvedRun]) -> dict[str, ResolvedRun]:
    """Return runs by key with all that they need, each once, after what must be there before it."""
    found: dict[str, ResolvedRun] = {}
    for run in runs:
        if run.spec.key not in found:
            for key, first in in_order(run.prerequisites).items():
                found.setdefault(key, first)
            found[run.spec.key] = run
    return found


def is_default(plan: ResolvedRun, *, opens_data: bool = True) -> bool:
    """Whether a run takes the values of its protocol and recipe as they stand, so that no person tuned it by hand.

    A variant that the method declares has those values, too, but for what makes it that variant.

    Args:
        plan: of the run.
        opens_data: whether the dataset may be opened for values that only it determines; else they may be any.
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
        taken = {name: spec.method.params.get(name) for name in left if name in spec.method.params}
        if spec.method.params == (declared if opens_data else declared | taken):
            return True
    return False


def fit_part_plan(plan: ResolvedRun, registry: Registry) -> ResolvedRun:
    """The same run on train without its validation part: where an early stopping epoch is chosen."""
    base = plan.spec.model_copy(update={"train_part": "fit"})
    return complete(base, plan.spec.method.params, plan.protocol_data, plan.recipe, registry)


def _without_source(method: str) -> MethodSpec:
    """A method by its name: `complete` fills in the rest."""
    return MethodSpec(name=method, version="", source_sha256="", params={})


def _starting(method: type[Method], suggested: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Values that were given, and of those that a protocol suggests the ones that they do not replace."""
    replaced = {name for names in method.Params.alternatives if names & given.keys() for name in names}
    return {**{name: value for name, value in suggested.items() if name not in replaced}, **given}


def validate_params(method: type[Method], values: Mapping[str, Any]) -> Any:
    """A method's parameters, typed and range-checked.

    Raises:
        PlbenchError: naming the parameter, what was given and what would be right.
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
                f"{' and '.join(given)} of method {method.name!r} say the same in two ways; give one of them"
            )
        if given:
            chosen |= dict.fromkeys(names - {*given})
    return _checked(method.Params, chosen, f"parameters of method {method.name!r}")


def make_task(spec: RunSpec, protocol_data: ProtocolData, artifacts: Mapping[str, torch.Tensor] | None = None) -> Task:
    """What the method of a run may know."""
    part = protocol_data.train(spec.train_part)
    positives, negatives = part.labels.counts()
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
        artifacts=artifacts or {},
        expected_positives=protocol_data.expected_positives,
    )


def _check_needs(method: type[Method], spec: RunSpec, protocol_data: ProtocolData) -> None:
    if spec.regime == "probe" and method.needs & {"images", "feature_map"}:
        raise PlbenchError(f"method {method.name!r} needs images, not cached features; give --regime finetune")
    check_learnable(protocol_data, spec.train_part)
    if spec.train_part == "fit":
        protocol_data.check_validation()
    if "negatives" in method.needs and protocol_data.train(spec.train_part).labels.counts()[1].sum() == 0:
        raise PlbenchError(
            f"method {method.name!r} learns from verified negatives, and protocol {spec.protocol.name} has none; use a "
            "method that takes unknown labels for negatives, such as those that plbench methods list shows without "
            "that need"
        )


def _check_labels(
    protocol_data: ProtocolData, selection: Selection, workspace: Workspace, *, scores_test: bool
) -> None:
    """Says what was noted about the labels, and makes sure that something can be learned and scored.

    Raises:
        DataError: if nothing can.
    """
    check_learnable(protocol_data, "train")
    if scores_test:
        protocol_data.test()
    if selection == "validation":
        protocol_data.check_validation()
    for note in notes_on(protocol_data):
        workspace.reporter.note(note)


def _deciding_processes(spec: RunSpec, workspace: Workspace) -> int | None:
    """The number of processes where a run's result depends on it.

    Among GPUs, batch normalisation takes the statistics of all of them, of a batch that is computed in one piece.
    """
    if spec.regime == "probe" or workspace.world.size == 1:
        return None
    with seeded(0):
        backbone = Backbone(spec.model)
    shares = has_batch_statistics(backbone) and (workspace.device.type != "cuda" or spec.plan.accumulate > 1)
    return workspace.world.size if shares or draws_alone(backbone) else None


def _opened_dataset(name: str, workspace: Workspace, opened: Sequence[ProtocolData]) -> Dataset:
    found = (protocol_data.dataset for protocol_data in opened if protocol_data.dataset.name == name)
    return next(found, None) or open_dataset(name, workspace)


def _opened_protocol_data(
    dataset: Dataset, protocol: Protocol, skipped: tuple[str, ...], opened: Sequence[ProtocolData]
) -> ProtocolData:
    """ProtocolData keeps labels and parts that take a while to make."""
    same = next((protocol_data for protocol_data in opened if protocol_data.is_of(dataset, protocol, skipped)), None)
    return same or ProtocolData(dataset, protocol, skipped)


def _choose_recipe(dataset: Dataset, name: str | None) -> Recipe:
    recipes = {recipe.name: recipe for recipe in dataset.recipes}
    if name is None:
        return dataset.recipes[0]
    if name not in recipes:
        raise PlbenchError(f"dataset {dataset.name!r} has no recipe {name!r}; {did_you_mean(name, recipes)}")
    return recipes[name]


def _choose_model(recipe: Recipe, changes: Mapping[str, Any]) -> ModelSpec:
    """The recipe's model with what was asked for; another backbone brings its own weights and normalisation."""
    values = {**recipe.model.model_dump(), **changes}
    if "backbone" in changes:
        values["backbone"] = resolve_backbone(values["backbone"])
        if values["backbone"] != recipe.model.backbone:
            values["mean"], values["std"] = default_normalisation(values["backbone"])
            if recipe.model.weights == "packaged":
                values["weights"] = changes.get("weights", "pretrained")
    model: ModelSpec = _checked(ModelSpec, values, "model")
    return model


def _checked(kind: type[Any], values: Mapping[str, Any], what: str) -> Any:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise PlbenchError(f"{what}: {name} = {first['input']!r} is not valid: {first['msg']}") from error


def parse_assignments(texts: Sequence[str]) -> dict[str, str]:
    """Texts "name=value" as a dictionary.

    Raises:
        PlbenchError: if one has no "=", or a name comes twice.
    """
    values: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise PlbenchError(f"-P {text!r} is not of the form name=value, such as -P gamma_unann=4")
        if name in values:
            raise PlbenchError(f"-P {name} is given twice ({values[name]} and {value})")
        values[name] = value
    return values

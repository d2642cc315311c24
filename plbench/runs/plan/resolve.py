"""Resolve what the user asked for to the complete spec of a run, and of all its prerequisites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from plbench.data.dataset import Dataset
from plbench.data.digests import file_sha256
from plbench.data.embeddings import keep_embeddings
from plbench.data.simulation import parse
from plbench.errors import PlbenchError, did_you_mean
from plbench.models.backbones import Backbone, default_normalisation, resolve_backbone, weights_path
from plbench.randomness import seeded
from plbench.runs.plan.duplicates import check_apart
from plbench.runs.plan.image_check import check_images
from plbench.runs.plan.label_check import check_learnable, notes_on
from plbench.runs.plan.resolved import ResolvedRun, checked, complete, without_source
from plbench.runs.protocol import ProtocolData, choose_protocol, custom, is_official
from plbench.runs.registry import Registry
from plbench.runs.workspace import Workspace, fingerprint, open_dataset
from plbench.spec import (
    PACKAGES,
    SPATIAL_HEADS,
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


@dataclass(frozen=True)
class Request:
    """What the user asked for. None leaves a choice to the protocol or the recipe.

    Attributes:
        method_params: typed values by name, or texts "name=value".
        model, plan: fields of `ModelSpec` and `Plan` that differ from the recipe's.
        embeddings: path of a file for `plbench.data.embeddings`, or the sha256 of one that was given before.
        scores_test: False if the test split must stay closed, as during tuning.
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
    embeddings: str | None = None
    scores_test: bool = True


@dataclass(frozen=True)
class ResolvedSetting:
    """What runs of several methods share: dataset, protocol, recipe, model and plan, checked against the data.

    Attributes:
        spec: without a method, with seed 0.
    """

    spec: RunSpec
    protocol_data: ProtocolData
    recipe: Recipe

    def run(self, method: str, params: Mapping[str, Any], seed: int, registry: Registry) -> ResolvedRun:
        """Return the run of a method in this setting.

        Raises:
            PlbenchError: if method or parameters do not exist, or do not fit the setting.
        """
        spec = self.spec.model_copy(update={"method": without_source(method), "seed": seed})
        return complete(spec, params, self.protocol_data, self.recipe, registry)

    def without_fold(self, number: int, num_folds: int) -> ResolvedSetting:
        """Return the same setting for cross-validation: runs train on train without one fold, and are scored on that.

        Args:
            number: of the fold, from 1.
            num_folds: into which train is split, by a hash of the image id.
        """
        part = f"without-fold-{number}-of-{num_folds}"
        return replace(self, spec=self.spec.model_copy(update={"train_part": part}))


class MissingWeightsError(PlbenchError):
    """The weights of a backbone are not available.

    Attributes:
        setting: without the hash of the weights, so that the cost of a run can still be estimated.
    """

    def __init__(self, message: str, setting: ResolvedSetting) -> None:
        """Store message and setting."""
        super().__init__(message)
        self.setting = setting


def plan_run(request: Request, workspace: Workspace) -> ResolvedRun:
    """Check a request against the data and complete it.

    Raises:
        PlbenchError: if anything in the request does not exist or fit; nothing has been computed then.
        MissingWeightsError: if only the weights are missing.
    """
    workspace.registry.method(request.method)  # report a mistyped method before data is rendered
    setting = resolve_setting(request, workspace)
    plan = setting.run(request.method, request.method_params, request.seed, workspace.registry)
    refuse_unused_embeddings(request, [plan])
    return plan


def refuse_unused_embeddings(request: Request, plans: Sequence[ResolvedRun]) -> None:
    """Reject an embedding file that none of the requested runs uses."""
    if request.embeddings is not None and all(plan.spec.embeddings is None for plan in plans):
        names = ", ".join(dict.fromkeys(plan.method.name for plan in plans))
        raise PlbenchError(f"`embeddings={request.embeddings}` is not used by {names}; leave it out")


def resolve_setting(request: Request, workspace: Workspace, opened: Sequence[ProtocolData] = ()) -> ResolvedSetting:
    """Check a request, except for its method, parameters and seed, against the data.

    Args:
        request: what was asked for.
        workspace: where and how.
        opened: data of other settings in this workspace, reused instead of opening it again.

    Raises:
        PlbenchError: if anything in the request does not exist or fit; nothing has been computed then.
        MissingWeightsError: if only the weights are missing.
    """
    kind = workspace.registry.dataset(request.dataset)
    # before files are read or drawn, which may take minutes
    if request.simulate is not None:
        parse(request.simulate)
    recipe = _choose_recipe(kind, request.recipe)
    regime = request.regime or recipe.regime
    if regime not in recipe.plans:
        raise PlbenchError(
            f"recipe {recipe.name!r} of dataset {kind.name!r} has no plan for the {regime} regime; give "
            f'`regime="{recipe.regime}"` or another recipe'
        )
    model = _choose_model(recipe, request.model)
    plan = checked(Plan, {**recipe.plans[regime].model_dump(), **request.plan}, "training plan")
    dataset = _opened_dataset(request.dataset, workspace, opened)
    protocol = choose_protocol(dataset, request.simulate, request.simulation_seed, selection=request.selection)
    skipped = check_images(dataset, protocol, workspace, skip=request.skip_unreadable)
    duplicates = check_apart(dataset, protocol, workspace, skipped, allow=request.allow_duplicates)
    if skipped or duplicates or not is_official(dataset, protocol):
        protocol = custom(protocol)
    for note in recipe.notes:
        workspace.reporter.note(f"recipe {recipe.name}: {note}")
    protocol_data = _checked_data(
        dataset, protocol, skipped, opened, workspace, request.selection, scores_test=request.scores_test
    )
    base = RunSpec(
        protocol=protocol,
        dataset_fingerprint=fingerprint(dataset, workspace),
        method=without_source(""),
        model=model,
        regime=regime,
        recipe=recipe.name,
        plan=plan,
        precision=request.precision or ("bfloat16" if workspace.device.type == "cuda" else "float32"),
        seed=0,
        selection=request.selection,
        train_part="fit" if request.selection == "validation-no-retrain" else "train",
        skipped_images=skipped,
        duplicates=duplicates,
        embeddings=None if request.embeddings is None else keep_embeddings(request.embeddings, workspace.store.cache),
    )
    _refuse_of_backbone(base)
    base = base.model_copy(update={"processes": _deciding_processes(base, workspace)})
    if base.model.weights == "pretrained":
        workspace.reporter.line(f"Looking for the weights of {base.model.backbone}, here and on timm's hub")
    try:
        with_weights = _with_weights(base.model, workspace)
    except PlbenchError as error:
        if base.model.weights != "pretrained":
            raise
        raise MissingWeightsError(str(error), ResolvedSetting(base, protocol_data, recipe)) from error
    return ResolvedSetting(base.model_copy(update={"model": with_weights}), protocol_data, recipe)


def _refuse_of_backbone(spec: RunSpec) -> None:
    """Reject values of a plan that affect images or the backbone if a head is trained on cached features."""
    plan = spec.plan
    given = {
        "`grad_checkpointing=True` is for the activations of a backbone": plan.grad_checkpointing,
        f"`randaugment={plan.randaugment!r}` is for images": plan.randaugment,
        f"`cutout={plan.cutout}` is for images": plan.cutout,
        f"`horizontal_flip={plan.horizontal_flip}` is for images": plan.horizontal_flip,
        f"`random_resized_crop={plan.random_resized_crop}` is for images": plan.random_resized_crop < 1,
        f"`head_lr_multiplier={plan.head_lr_multiplier}` sets a head apart from a backbone that learns too": (
            plan.head_lr_multiplier != 1.0
        ),
    }
    for what in (text for text, is_given in given.items() if is_given and spec.regime == "probe"):
        raise PlbenchError(
            f'{what}, and the probe regime trains a head on cached features; leave it out, or give `regime="finetune"`'
        )


def plan_from_spec(spec: RunSpec, workspace: Workspace, opened: Sequence[ProtocolData] = ()) -> ResolvedRun:
    """Return the plan of a stored spec, with this machine's data and code.

    Args:
        spec: the run.
        workspace: where and how.
        opened: as in `resolve_setting`.

    Raises:
        PlbenchError: if data, weights or code differ from the spec, with the difference.
    """
    dataset = _opened_dataset(spec.protocol.dataset, workspace, opened)
    recipe = _choose_recipe(dataset, spec.recipe)
    own = next((p for p in dataset.protocols if p.name == spec.protocol.name), spec.protocol)
    protocol = spec.protocol.model_copy(update={"suggested": own.suggested, "tuned_here": own.tuned_here})
    skipped = check_images(dataset, protocol, workspace, skip=bool(spec.skipped_images))
    protocol_data = _checked_data(
        dataset, protocol, skipped, opened, workspace, spec.selection, scores_test=not spec.only_selects
    )
    # otherwise timm would download from, or read, any address in an untrusted spec
    resolve_backbone(spec.model.backbone)
    here = spec.model_copy(
        update={
            "dataset_fingerprint": fingerprint(dataset, workspace),
            "model": _with_weights(spec.model, workspace),
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
            f"this run cannot be repeated exactly here, since {'; '.join(differs)}; use the data and the version "
            "of plbench that it was written with, or give its options instead of `config=`"
        )
    return plan


def _with_weights(model: ModelSpec, workspace: Workspace) -> ModelSpec:
    path = weights_path(model, workspace.weights_file)
    return model.model_copy(
        update={"weights_sha256": None if path is None else file_sha256(path, workspace.store.cache)}
    )


def _opened_dataset(name: str, workspace: Workspace, opened: Sequence[ProtocolData]) -> Dataset:
    found = (protocol_data.dataset for protocol_data in opened if protocol_data.dataset.name == name)
    return next(found, None) or open_dataset(name, workspace)


def _checked_data(
    dataset: Dataset,
    protocol: Protocol,
    skipped: tuple[str, ...],
    opened: Sequence[ProtocolData],
    workspace: Workspace,
    selection: Selection,
    *,
    scores_test: bool,
) -> ProtocolData:
    """Return the data, reused if already open, after checking that there is something to learn from and to score."""
    same = (protocol_data for protocol_data in opened if protocol_data.is_of(dataset, protocol, skipped))
    protocol_data = next(same, None) or ProtocolData(dataset, protocol, skipped)
    check_learnable(protocol_data, "train")
    if scores_test:
        protocol_data.test()
    if selection in ("validation", "validation-no-retrain"):
        protocol_data.validation()
    for note in notes_on(protocol_data):
        workspace.reporter.note(note)
    return protocol_data


def _deciding_processes(spec: RunSpec, workspace: Workspace) -> int | None:
    """Return the number of processes if a run's result depends on it.

    On GPUs, batch normalisation uses the statistics of all processes, but only of batches without gradient
    accumulation.
    """
    number = max(workspace.world.size, workspace.nproc)
    if spec.regime == "probe" or number == 1:
        return None
    with seeded(0):
        backbone = Backbone(spec.model)
    shares = has_batch_statistics(backbone) and (workspace.device.type != "cuda" or spec.plan.accumulate > 1)
    return number if shares or draws_alone(backbone) else None


def _choose_recipe(dataset: Dataset | type[Dataset], name: str | None) -> Recipe:
    recipes = {recipe.name: recipe for recipe in dataset.recipes}
    if name is None:
        return dataset.recipes[0]
    if name not in recipes:
        raise PlbenchError(f"dataset {dataset.name!r} has no recipe {name!r}; {did_you_mean(name, recipes)}")
    return recipes[name]


def _choose_model(recipe: Recipe, changes: Mapping[str, Any]) -> ModelSpec:
    """Return the recipe's model with the requested changes.

    Another backbone has its own weights and normalisation; a head on feature maps implies no pooling.
    """
    values = {**recipe.model.model_dump(), **changes}
    if "backbone" in changes:
        values["backbone"] = resolve_backbone(values["backbone"])
        if values["backbone"] != recipe.model.backbone:
            values["mean"], values["std"] = default_normalisation(values["backbone"])
            if recipe.model.weights == "packaged":
                has_package = values["backbone"] in PACKAGES
                values["weights"] = changes.get("weights", "packaged" if has_package else "pretrained")
    if "pooling" not in changes and (values["head"] in SPATIAL_HEADS) != (values["pooling"] == "none"):
        values["pooling"] = "none" if values["head"] in SPATIAL_HEADS else "mean"
    return checked(ModelSpec, values, "model")

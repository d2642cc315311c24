"""What a run is about to do and about how long it will take, said before it starts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import nn

from plbench.loading.features import features_key, features_name, stored_features
from plbench.models import Backbone, make_head
from plbench.progress import duration
from plbench.randomness import seeded
from plbench.runs.plan.resolve import ResolvedRun, fit_part_plan
from plbench.runs.workspace import Workspace
from plbench.spec import ModelSpec
from plbench.training.execution import Execution

DAY = 86400.0
_MEASURED_IMAGES = {"cpu": 4, "cuda": 32}
_REPEATS = 4
_LONG = 2.0  # seconds


@dataclass(frozen=True)
class Forecast:
    """One line on what will run, the number of trainings that it takes, and seconds for all of them."""

    text: str
    seconds: float


def describe_world(plan: ResolvedRun, workspace: Workspace) -> str:
    """One line on the processes that train together."""
    size, batch = workspace.world.size, plan.spec.plan.batch_size
    whose = "all of them" if workspace.device.type == "cuda" else "each one's share"
    return f"{size} processes share each batch of {batch}; batch normalisation takes its statistics over {whose}"


def forecast(plan: ResolvedRun, workspace: Workspace, *, force: bool = False) -> Forecast:
    """Measures a few images through the model on this device and scales that up to the run and its stages.

    Args:
        plan: the run.
        workspace: where and how.
        force: the run, though not its stages, is repeated if it is done.
    """
    train, infer = _seconds_per_image(plan, workspace)
    seconds = _seconds(plan, workspace, train, infer, set(), force=force)
    text = f"{plan.describe()}; about {duration(seconds)} on {workspace.device.type}"
    if workspace.decode == "gpu":
        text += ", JPEG files decoded there"
    waiting = [name for name, (_, stage) in plan.stages.items() if stage.finished(workspace.store) is None]
    if waiting:
        text += f", stage {', '.join(waiting)} included"
    quick = any(recipe.name == "quick" for recipe in plan.protocol_data.dataset.recipes)
    if seconds > DAY and quick and plan.recipe.name != "quick":
        text += "; --recipe quick takes minutes to hours"
    return Forecast(text, seconds)


def seconds_of_all(plans: Sequence[ResolvedRun], workspace: Workspace, paces: Mapping[str, float]) -> float:
    """Seconds that runs of one setting take one after another, prerequisites included; what is shared counts once.

    Args:
        plans: the runs.
        workspace: where and how.
        paces: seconds of training per image of the runs, by key, where they are known; others are measured.
    """
    train, infer = _seconds_per_image(plans[0], workspace)
    counted: set[str] = set()
    return sum(_seconds(plan, workspace, train, infer, counted, paces=paces) for plan in plans)


def forecast_study(
    plan: ResolvedRun, num_trials: int, num_seeds: int, workspace: Workspace, then: ResolvedRun | None = None
) -> Forecast:
    """What a study and its final rows take where nothing of them is there, and each training is on its own.

    Args:
        plan: the method's run on all of train.
        num_trials: of the study.
        num_seeds: of each final row; 0 where only the search is asked for.
        workspace: where and how.
        then: the same run in another regime, if its final rows are asked for, too.
    """
    train, infer = _seconds_per_image(plan, workspace)
    counted: set[str] = set()
    trial = fit_part_plan(plan, workspace.registry)
    first = _seconds(trial, workspace, train, infer, counted)
    features = {name for name in counted if name.endswith(".npy")}
    total = first + (num_trials - 1) * _seconds(replace(trial, stages={}), workspace, train, infer, {*features})
    for final in (plan, then) if num_seeds else ():
        if final is not None:
            train, infer = (train, infer) if final is plan else _seconds_per_image(final, workspace)
            default = _seconds(final, workspace, train, infer, {*features})
            tuned = _seconds(replace(final, stages={}), workspace, train, infer, {*features})
            total += num_seeds * (default + tuned)  # a seed's stages serve both rows
    rows = "" if not num_seeds else f", then 2 rows of {num_seeds} seeds" + (" in each regime" if then else "")
    text = (
        f"Study of {plan.method.title} on {plan.spec.protocol.name}: {num_trials} trials{rows}; about "
        f"{duration(total)} on {workspace.device.type}, less what is there already, is pruned or trains together"
    )
    return Forecast(text, total)


def _seconds(
    plan: ResolvedRun,
    workspace: Workspace,
    train: float,
    infer: float,
    counted: set[str],
    *,
    force: bool = False,
    paces: Mapping[str, float] = MappingProxyType({}),
) -> float:
    """Of a run and of those of its stages that are not done; features that are cached cost nothing."""
    if (not force and (plan.finished(workspace.store) is not None)) or plan.spec.key in counted:
        return 0.0
    counted.add(plan.spec.key)
    total = sum(_seconds(stage, workspace, train, infer, counted, paces=paces) for _, stage in plan.stages.values())
    num_train = len(plan.protocol_data.train(plan.spec.train_part).rows)
    num_test = len(plan.protocol_data.whole(plan.spec.protocol.test_split).rows)
    if plan.spec.selection == "validation" and plan.spec.train_part == "train":  # a run that chooses comes first
        num_train += round((1 - plan.spec.protocol.validation_share) * num_train)
    if plan.spec.regime == "finetune":
        passes = 2 if plan.spec.plan.ema_decay else 1  # averaged and last weights are scored apart
        return total + num_train * plan.spec.plan.epochs * train + (passes * num_test + num_train) * infer
    for split in (plan.spec.protocol.train_split, plan.spec.protocol.test_split):
        path = features_path(plan, workspace, split)
        if path.name not in counted and not path.is_file():
            counted.add(path.name)
            total += len(plan.protocol_data.whole(split).images) * infer
    return total + num_train * plan.spec.plan.epochs * paces.get(plan.spec.key, train)


def _seconds_per_image(plan: ResolvedRun, workspace: Workspace) -> tuple[float, float]:
    """Training and inference time per image; in the probe regime training is the head's alone."""
    spec, device = plan.spec, workspace.device
    execution = Execution(device, spec.precision)
    num_classes = plan.protocol_data.train(spec.train_part).labels.num_classes
    cached = cached_width(plan, workspace)
    if spec.regime == "probe" and cached is not None:
        return _head_seconds(plan, cached, num_classes, execution), 0.0
    with seeded(0):
        backbone = Backbone(spec.model)
        head = make_head(spec.model, backbone.num_features, num_classes)
    backbone = backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    head = head.to(device)
    images = _synthetic(spec.model, device)
    infer = _timed(lambda: _infer(backbone, images, execution), device) / len(images)
    if spec.regime == "finetune":
        whole = nn.Sequential(backbone, head)
        return _timed(lambda: _train(whole, images, execution), device) / len(images), infer
    return _head_seconds(plan, backbone.num_features, num_classes, execution), infer


def _head_seconds(plan: ResolvedRun, num_features: int, num_classes: int, execution: Execution) -> float:
    """Training time per image of the head; twice what forward and backward take, for optimiser and average."""
    with seeded(0):
        head = make_head(plan.spec.model, num_features, num_classes).to(execution.device)
    features = torch.zeros(plan.spec.plan.batch_size, num_features, device=execution.device)
    return 2 * _timed(lambda: _train(head, features, execution), execution.device) / len(features)


def cached_width(plan: ResolvedRun, workspace: Workspace) -> int | None:
    """Width of the cached features; None where any split's are missing."""
    width = None
    for split in (plan.spec.protocol.train_split, plan.spec.protocol.test_split):
        features = stored_features(
            features_path(plan, workspace, split), num_images=len(plan.protocol_data.whole(split).images)
        )
        if features is None:
            return None
        width = int(features.shape[1])
    return width


def features_path(plan: ResolvedRun, workspace: Workspace, split: str) -> Path:
    """Where the features of a split lie in the cache, or will."""
    spec, images = plan.spec, plan.protocol_data.whole(split).images
    key = features_key(spec.dataset_fingerprint, split, images, spec.model, spec.precision, spec.seed, workspace.decode)
    return workspace.store.cache / features_name(key)


def _synthetic(model: ModelSpec, device: torch.device) -> torch.Tensor:
    number = _MEASURED_IMAGES.get(device.type, 4)
    images = torch.zeros(number, 3, model.image_size, model.image_size, device=device)
    return images.to(memory_format=torch.channels_last)


def _infer(model: nn.Module, images: torch.Tensor, execution: Execution) -> None:
    with torch.inference_mode(), execution.autocast():
        model.eval()(images)


def _train(model: nn.Module, inputs: torch.Tensor, execution: Execution) -> None:
    with execution.autocast():
        output = model.train()(inputs)
    output.float().sum().backward()


def _timed(work: Callable[[], None], device: torch.device) -> float:
    """Seconds that work takes: once where that is long, else the best of a few, after a warm-up."""
    best = math.inf
    for repeat in range(_REPEATS):
        start = time.perf_counter()
        work()
        _wait(device)
        seconds = time.perf_counter() - start
        if seconds > _LONG:
            return seconds
        if repeat:  # the first one warms up
            best = min(best, seconds)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

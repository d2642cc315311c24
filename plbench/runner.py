"""One run, from spec to record. Read this first."""

from __future__ import annotations

import contextlib
import copy
import datetime
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tomli_w
import torch
from torch import Tensor, nn

from plbench import checkpoint, environment, evaluation
from plbench.api import Method, Stage
from plbench.diagnostics import diagnose_prior, diagnose_training
from plbench.engine import Execution, FitState, View, collect_cells, fit, predict, prepare_fit
from plbench.errors import TrainingError
from plbench.features import cached_features, features_key
from plbench.forecast import describe
from plbench.images import TrainTransform, eval_transform
from plbench.inputs import FeatureInputs, ImageInputs, Inputs
from plbench.metrics import Cells, evaluate_cells
from plbench.models import build_backbone, make_head, weights_path
from plbench.protocol import Part
from plbench.randomness import derive_seed, seeded
from plbench.record import (
    Cost,
    DataSummary,
    HiddenTruth,
    PriorDiagnostics,
    Record,
    SelectionReport,
    SplitMetrics,
    read_record,
    reference,
    write_record,
)
from plbench.resolve import RunPlan, Workspace, fit_part_plan, make_task
from plbench.store import CHECKPOINT, write_atomically, write_text

SAVE_EVERY_SECONDS = 20.0
_FILES = ("spec.toml", "log.jsonl", "cells.npz", "per_class.csv", "replicates.csv", CHECKPOINT)


def run(plan: RunPlan, workspace: Workspace, *, force: bool = False) -> Record:
    """Trains and evaluates what a plan says, and leaves a record; a run that is done is read, not repeated.

    Raises:
        PlbenchError: if the run cannot be made; what was worth keeping (a checkpoint) stays.
    """
    store, key = workspace.store, plan.spec.key
    if not force and (record := finished(plan, workspace)):
        return record
    artifacts = {name: stage_artifact(plan, name, workspace) for name in plan.stages}
    stop_after = _chosen_epoch(plan, workspace)
    with store.lock(key):
        if not force and (record := finished(plan, workspace)):
            return record  # another process made it while this one waited
        if force:
            store.remove(key)
        folder = store.run_folder(key)
        with _keeping_only_what_is_whole(plan, folder, workspace):
            return _Run(plan, workspace, folder, artifacts, stop_after).make()


def finished(plan: RunPlan, workspace: Workspace) -> Record | None:
    """The record of a run that is done."""
    if not workspace.store.is_done(plan.spec.key):
        return None
    record = read_record(workspace.store.run_folder(plan.spec.key))
    return record if record.status == "done" else None


def stage_artifact(plan: RunPlan, name: str, workspace: Workspace) -> Tensor:
    """What a stage hands on: the stage's own run, made once for everyone, then reduced to a tensor, once too."""
    stage, stage_plan = plan.stages[name]
    if finished(stage_plan, workspace) is None:
        workspace.reporter.line(f"Stage {name!r}: {describe(stage_plan)}")
    run(stage_plan, workspace)
    folder = workspace.store.run_folder(stage_plan.spec.key)
    path = folder / "artifacts" / f"{name}-{plan.spec.method.source_sha256[:16]}.npy"
    if not path.is_file():
        value = _reduce(stage, stage_plan, workspace, folder).cpu().numpy()
        write_atomically(path, lambda file: np.save(file, value, allow_pickle=False))
    return torch.from_numpy(np.load(path, allow_pickle=False))


def _reduce(stage: Stage, plan: RunPlan, workspace: Workspace, folder: Path) -> Tensor:
    """Applies a stage's reduction to its trained model, over its whole training part."""
    artifacts = {name: stage_artifact(plan, name, workspace) for name in plan.stages}
    made = _Run(plan, workspace, folder, artifacts, None)
    made.prepare()
    saved = checkpoint.load(folder / CHECKPOINT, plan.spec.sha256())
    made.state.model.load_state_dict(saved["model"])
    if made.state.ema is not None:
        made.state.ema.module.load_state_dict(saved["ema"])
    return stage.reduce(View(made.state, made.train_inputs, made.execution))


def _chosen_epoch(plan: RunPlan, workspace: Workspace) -> int | None:
    """Under validation selection, the best epoch of the same run on train without its validation part."""
    if plan.spec.selection != "validation" or plan.spec.train_part == "fit":
        return None
    choosing = fit_part_plan(plan, workspace.registry)
    workspace.reporter.line(f"Choosing the epoch on the validation part: run {choosing.spec.key}")
    selection = run(choosing, workspace).selection
    assert selection is not None
    return selection.epoch


@dataclass
class _Best:
    """The best epoch so far, where one is selected."""

    value: float = -1.0
    epoch: int = 0
    weights: Literal["ema", "raw"] = "ema"
    state: dict[str, Any] | None = None
    curve: list[dict[str, Any]] = field(default_factory=list)


class _Run:
    """The run under way."""

    def __init__(
        self,
        plan: RunPlan,
        workspace: Workspace,
        folder: Path,
        artifacts: dict[str, Tensor],
        stop_after: int | None,
    ) -> None:
        self.plan, self.spec, self.workspace, self.folder = plan, plan.spec, workspace, folder
        self.artifacts, self.stop_after = artifacts, stop_after
        self.execution = Execution(workspace.device, plan.spec.precision)
        self.seconds: dict[str, float] = {}
        self.best = _Best()
        self.last_save = time.monotonic()

    def make(self) -> Record:
        """Trains, evaluates, writes."""
        write_text(self.folder / "spec.toml", tomli_w.dumps(self.spec.model_dump(mode="json", exclude_none=True)))
        with self.phase("data"):
            self.prepare()
            scored = self._scored_part()
            scored_inputs = self._inputs(scored)
        self._train(scored, scored_inputs)
        state = self.state
        if self.best.state is not None:
            state.averaged(self.best.weights).load_state_dict(self.best.state)
        checkpoint.save(self.folder / CHECKPOINT, self.spec.sha256(), state.weights())
        with self.phase("evaluation"):
            weights: Literal["ema", "raw"] = self.best.weights if self.best.state is not None else "ema"
            cells = self._cells(weights, scored, scored_inputs)
            raw = self._cells("raw", scored, scored_inputs) if self._has_two_weights() else None
            hidden = self._hidden_truth(weights)
        with self.phase("intervals"):
            metrics = self._metrics(cells, raw, scored)
        return self._write(metrics, hidden, scored)

    def prepare(self) -> None:
        """Training inputs, the method, and the model in its initial state."""
        plan, spec = self.plan, self.spec
        self.train_part = plan.material.train(spec.train_part)
        self.method: Method = plan.method(plan.params, make_task(spec, plan.material, self.artifacts))
        self.train_inputs = self._inputs(self.train_part, training=True)
        model = self._model()
        steps = self.method.task.steps_per_epoch
        self.state = prepare_fit(model, self.method, spec.plan, steps, self.execution)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times a part of the run."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def _scored_part(self) -> Part:
        """What the run is scored on: the validation part where it only selects, else test."""
        material = self.plan.material
        return material.validation() if self.spec.train_part == "fit" else material.test()

    def _inputs(self, part: Part, *, training: bool = False) -> Inputs:
        spec, workspace = self.spec, self.workspace
        if spec.regime == "probe":
            return FeatureInputs(self._features(part.split), part.rows, part.labels, spec.seed)
        base = eval_transform(spec.model)
        transform = self.method.transform(TrainTransform(base, spec.plan)) if training else None
        return ImageInputs(part.images, part.labels, base, workspace.workers, transform, spec.seed)

    def _features(self, split: str) -> np.ndarray:
        spec, workspace = self.spec, self.workspace
        images = self.plan.material.whole(split).images
        key = features_key(spec.dataset_fingerprint, split, images, spec.model, spec.precision)
        with workspace.reporter.task(f"Features of {len(images):,} {split} images") as report:
            return cached_features(
                workspace.store,
                key,
                images,
                lambda: build_backbone(spec.model, weights_path(spec.model, workspace.weights_file), spec.seed),
                spec.model,
                device=workspace.device,
                precision=spec.precision,
                workers=workspace.workers,
                report=report,
            )

    def _model(self) -> nn.Module:
        spec, num_classes = self.spec, self.train_part.labels.num_classes
        if isinstance(self.train_inputs, FeatureInputs):
            backbone: nn.Module = nn.Identity()
            num_features = self.train_inputs.features.shape[1]
        else:
            built = build_backbone(spec.model, weights_path(spec.model, self.workspace.weights_file), spec.seed)
            backbone, num_features = built, built.num_features
        with seeded(derive_seed(spec.seed, "init", "head")):
            return self.method.build(backbone, lambda: make_head(spec.model, num_features, num_classes))

    def _train(self, scored: Part, scored_inputs: Inputs) -> None:
        path = self.folder / CHECKPOINT
        if path.is_file():
            saved = checkpoint.load(path, self.spec.sha256())
            if "optimizer" in saved:
                self.best = _Best(**saved.pop("best"))
                self.state.load_state_dict(saved)
                self.workspace.reporter.line(f"Going on from epoch {self.state.epoch} of {self.spec.plan.epochs}")

        def after_epoch(state: FitState) -> None:
            if self._selects_here():
                with self.phase("selection"):
                    self._consider(scored, scored_inputs)
            self._save_if_due()

        start = time.perf_counter()
        title = f"Training {self.method.title}, {self.spec.plan.epochs} epochs"
        with self.workspace.reporter.task(title) as report:
            try:
                fit(
                    self.state,
                    self.train_inputs,
                    self.spec.plan,
                    self.execution,
                    seed=self.spec.seed,
                    stop_after=self.stop_after,
                    after_epoch=after_epoch,
                    report=report,
                )
            except TrainingError as error:
                last = f"last good checkpoint: {path}" if path.is_file() else "no checkpoint had been saved yet"
                raise TrainingError(f"{error}; {last}; try a lower --lr or --precision float32") from error
        self.seconds["training"] = time.perf_counter() - start - self.seconds.get("selection", 0.0)

    def _selects_here(self) -> bool:
        return self.spec.train_part == "fit" or self.spec.selection == "best-on-test"

    def _consider(self, scored: Part, scored_inputs: Inputs) -> None:
        """Scores the epoch that just ended and keeps its weights if they are the best so far."""
        point: dict[str, Any] = {"epoch": self.state.epoch}
        choices: tuple[Literal["ema", "raw"], ...] = ("ema",)
        if self.spec.selection == "best-on-test" and self._has_two_weights():
            choices = ("ema", "raw")
        for weights in choices:
            value = evaluate_cells(self._cells(weights, scored, scored_inputs)).map_c
            point[weights] = value
            if value > self.best.value:
                state = copy.deepcopy(self.state.averaged(weights).state_dict())
                self.best = _Best(value, self.state.epoch, weights, state, self.best.curve)
        self.best.curve.append(point)

    def _save_if_due(self) -> None:
        done = self.state.epoch >= (self.stop_after or self.spec.plan.epochs)
        if done or time.monotonic() - self.last_save < SAVE_EVERY_SECONDS:
            return
        state = {**self.state.state_dict(), "best": vars(self.best)}
        checkpoint.save(self.folder / CHECKPOINT, self.spec.sha256(), state)
        self._write_log()
        self.last_save = time.monotonic()

    def _write_log(self) -> None:
        import json

        write_text(self.folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in self.state.history))

    def _has_two_weights(self) -> bool:
        return self.state.ema is not None

    def _cells(self, weights: Literal["ema", "raw"], part: Part, inputs: Inputs) -> Cells:
        model = self.state.averaged(weights)
        with self.workspace.reporter.task(f"Scoring {len(inputs):,} images") as report:
            return collect_cells(predict(model, self.method, inputs, self.execution, report=report), part.labels)

    def _hidden_truth(self, weights: Literal["ema", "raw"]) -> HiddenTruth | None:
        truth = self.plan.material.hidden_truth(self.spec.train_part)
        if truth is None:
            return None
        model = self.state.averaged(weights)
        return diagnose_training(model, self.method, self.train_inputs, truth, self.execution)

    def _metrics(self, cells: Cells, raw: Cells | None, part: Part) -> dict[str, SplitMetrics]:
        """Summaries by name, with the cells, the per-class table and the replicates behind the headline."""
        name = "validation" if self.spec.train_part == "fit" else "test"
        groups = self.plan.material.dataset.groups()
        annotations = np.add(*self.train_part.labels.counts())
        seed = derive_seed(0, "bootstrap", self.spec.protocol.name, part.split)
        with self.workspace.reporter.task("Intervals") as report:
            drawn = evaluation.draw_replicates(cells, part.labels, groups, seed, report)
        cells.save(self.folder / "cells.npz")
        evaluation.write_per_class(self.folder / "per_class.csv", cells, part.labels)
        evaluation.write_replicates(self.folder / "replicates.csv", drawn)
        summaries = {name: evaluation.summarise(cells, part.labels, groups, annotations, drawn)}
        if raw is not None:
            summaries[f"{name}_raw"] = evaluation.summarise(raw, part.labels, groups, annotations, None)
        return summaries

    def _write(self, metrics: dict[str, SplitMetrics], hidden: HiddenTruth | None, scored: Part) -> Record:
        self._write_log()
        record = Record(
            key=self.spec.key,
            spec_sha256=self.spec.sha256(),
            spec=self.spec,
            status="done",
            finished_at=_now(),
            title=self.plan.method.title,
            regime_title=self.plan.recipe.title if self.spec.regime == self.plan.recipe.regime else self.spec.regime,
            environment=environment.describe(self.workspace.device),
            data=self._data_summary(scored),
            metrics=metrics,
            selection=self._selection(),
            priors=self._priors(),
            hidden_truth=hidden,
            cost=self._cost(),
            training={"final_loss": self.state.history[-1]["loss"], "steps": float(self.state.step)},
            files={name: reference(self.folder / name) for name in _FILES},
            warnings=self._warnings(metrics),
        )
        write_record(self.folder, record)
        return record

    def _data_summary(self, scored: Part) -> DataSummary:
        labels = self.train_part.labels
        positives, negatives = labels.counts()
        selecting = self.spec.train_part == "fit"
        return DataSummary(
            num_train=labels.num_images,
            num_train_known=labels.num_known,
            train_density=labels.density,
            train_positives=int(positives.sum()),
            train_negatives=int(negatives.sum()),
            num_test=0 if selecting else len(scored.rows),
            num_validation=len(scored.rows) if selecting else 0,
            classes_without_train_positives=int((positives == 0).sum()),
            skipped_images=len(self.spec.skipped_images),
        )

    def _selection(self) -> SelectionReport:
        spec, protocol = self.spec, self.spec.protocol
        if spec.selection == "validation":
            labels: Any = protocol.validation_labels if protocol.simulation != "none" else "partial"
        else:
            labels = "test" if spec.selection == "best-on-test" else "none"
        return SelectionReport(
            rule=spec.selection,
            labels=labels,
            epoch=self.best.epoch or self.state.epoch,
            weights=self.best.weights if self._has_two_weights() else "raw",
            curve=self.best.curve,
        )

    def _priors(self) -> dict[str, PriorDiagnostics]:
        labels = self.train_part.labels
        truth = self.plan.material.hidden_truth(self.spec.train_part)
        vectors = {n: v for n, v in self.artifacts.items() if v.shape == (labels.num_classes,)}
        return {name: diagnose_prior(vector, labels.class_names, truth) for name, vector in vectors.items()}

    def _cost(self) -> Cost:
        images = self.state.epoch * len(self.train_inputs)
        gpu = self.workspace.device.type == "cuda"
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
        peak = torch.cuda.max_memory_allocated() / 2**20 if gpu else kilobytes / 1024
        rate = images / max(self.seconds["training"], 1e-9)
        seconds = {**self.seconds, "total": sum(self.seconds.values())}
        return Cost(seconds=seconds, images_per_second=rate, peak_memory_mb=peak)

    def _warnings(self, metrics: dict[str, SplitMetrics]) -> list[str]:
        warnings = []
        headline = next(iter(metrics.values()))
        unscored = headline.num_classes - headline.num_classes_scored
        if unscored:
            warnings.append(
                f"{unscored} of {headline.num_classes} classes have no known positive or no known negative in test "
                "and are not scored"
            )
        if self.spec.selection == "best-on-test":
            warnings.append("the epoch was selected on the test split: no board ranks this run")
        if self.spec.skipped_images:
            warnings.append(f"{len(self.spec.skipped_images)} unreadable images were left out")
        return warnings


@contextlib.contextmanager
def _keeping_only_what_is_whole(plan: RunPlan, folder: Path, workspace: Workspace) -> Iterator[None]:
    """On failure: a failed training leaves a failed record; without a checkpoint, anything else leaves nothing."""
    try:
        yield
    except TrainingError as error:
        record = Record(
            key=plan.spec.key,
            spec_sha256=plan.spec.sha256(),
            spec=plan.spec,
            status="failed",
            finished_at=_now(),
            title=plan.method.title,
            regime_title=plan.spec.regime,
            environment=environment.describe(workspace.device),
            error=str(error),
        )
        write_record(folder, record)
        raise
    except BaseException:
        if not (folder / CHECKPOINT).is_file():
            workspace.store.remove(plan.spec.key)
        raise


def next_steps(plan: RunPlan, workspace: Workspace, was_done: bool) -> list[str]:
    """What a person might do after a run, as commands."""
    spec = plan.spec
    simulate = f" --simulate {spec.protocol.simulation}"
    others = [name for name in workspace.registry.names("method") if name != spec.method.name]
    steps = [f"plbench run --method {others[0]} --dataset {spec.protocol.dataset}{simulate}"] if others else []
    steps.append("plbench runs compare")
    return ["this run was done already; --force repeats it", *steps] if was_done else steps


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

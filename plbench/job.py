"""A run under way: its inputs, its model, the training with its checkpoints, and what is selected."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from plbench import checkpoint
from plbench.api import Method
from plbench.cells import Cells
from plbench.engine import FitState, collect_cells, fit, own_copy, predict, prepare_fit
from plbench.errors import TrainingError
from plbench.execution import Execution
from plbench.features import cached_features, features_key
from plbench.images import TrainTransform, eval_transform
from plbench.inputs import FeatureInputs, ImageInputs, Inputs
from plbench.metrics import evaluate_cells
from plbench.models import build_backbone, make_head, weights_path
from plbench.protocol import Part
from plbench.randomness import derive_seed, seeded
from plbench.resolve import RunPlan, make_task
from plbench.store import CHECKPOINT, write_text
from plbench.workspace import Workspace

SAVE_EVERY_SECONDS = 20.0
Weights = Literal["ema", "raw"]
Watch = Callable[[int, float], None]


@dataclass
class Best:
    """The best epoch so far, where one is selected: its mAP(C) in percent, its weights, and the curve it is on."""

    value: float = -1.0
    epoch: int = 0
    weights: Weights = "ema"
    state: dict[str, Any] | None = None
    curve: list[dict[str, Any]] = field(default_factory=list)


class Job:
    """One run under way.

    Attributes:
        train_part, train_inputs: what it learns from. scored_part, scored_inputs: what it is scored on: test, or
            the validation part where the run only selects.
        seconds: wall time by phase.
    """

    method: Method
    state: FitState
    train_part: Part
    train_inputs: Inputs
    scored_part: Part
    scored_inputs: Inputs

    def __init__(
        self,
        plan: RunPlan,
        workspace: Workspace,
        artifacts: dict[str, Tensor],
        stop_after: int | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Nothing is read or computed yet.

        Args:
            plan: what to run.
            workspace: where and how.
            artifacts: what the plan's stages produced.
            stop_after: number of epochs, where fewer than the plan's were chosen.
            watch: is told each epoch and its mAP(C) on the scored part, by the headline weights.
        """
        self.plan, self.spec, self.workspace = plan, plan.spec, workspace
        self.artifacts, self.stop_after, self.watch = artifacts, stop_after, watch
        self.execution = Execution(workspace.device, plan.spec.precision)
        self.seconds: dict[str, float] = {}
        self.best = Best()
        self.images_trained = 0

    @property
    def only_selects(self) -> bool:
        """Whether the run serves to choose something on the validation part, and never sees test."""
        return self.spec.train_part == "fit"

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times a part of the run."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def prepare(self, like: Job | None = None) -> None:
        """Training inputs, the method, and the model in its initial state.

        Args:
            like: a job on the same cached features, which are then not read again.
        """
        spec = self.spec
        self.train_part = self.plan.material.train(spec.train_part) if like is None else like.train_part
        task = make_task(spec, self.plan.material, self.artifacts)
        self.method = self.plan.method(self.plan.params, task)
        self.train_inputs = self._inputs(self.train_part, training=True) if like is None else like.train_inputs
        self.state = prepare_fit(self._model(), self.method, spec.plan, task.steps_per_epoch, self.execution)

    def open_scored_part(self, like: Job | None = None) -> None:
        """The part that the run is scored on; that of a job like it where one is given."""
        material = self.plan.material
        if like is not None:
            self.scored_part, self.scored_inputs = like.scored_part, like.scored_inputs
            return
        self.scored_part = material.validation() if self.only_selects else material.test()
        self.scored_inputs = self._inputs(self.scored_part)

    def train(self, folder: Path) -> None:
        """Trains to the end, from the folder's checkpoint where there is one, and puts selected weights in place.

        Raises:
            TrainingError: if the loss is no longer finite.
        """
        self.resume(folder)
        first_epoch, start = self.state.epoch, time.perf_counter()
        with self.workspace.reporter.task(f"Training {self.method.title}") as report:
            try:
                fit(
                    self.state,
                    self.train_inputs,
                    self.spec.plan,
                    self.execution,
                    seed=self.spec.seed,
                    stop_after=self.stop_after,
                    after_epoch=self.epoch_end(folder),
                    report=report,
                )
            except TrainingError as error:
                raise self.explained(error, folder) from error
        self.conclude(first_epoch, time.perf_counter() - start - self.seconds.get("selection", 0.0))

    def epoch_end(self, folder: Path) -> Callable[[FitState], None]:
        """What is done at the end of each epoch: selection, telling whoever watches, a checkpoint now and then."""
        last_save = time.monotonic()

        def after_epoch(state: FitState) -> None:
            nonlocal last_save
            if self._selects_by_epoch():
                with self.phase("selection"):
                    self._consider()
            if self.watch is not None:
                with self.phase("selection"):
                    self.watch(state.epoch, evaluate_cells(self.cells(self.headline_weights)).map_c)
            if time.monotonic() - last_save >= SAVE_EVERY_SECONDS:
                saved = {**state.state_dict(), "best": vars(self.best)}
                checkpoint.save(folder / CHECKPOINT, self.spec.sha256(), saved)
                self.write_log(folder)
                last_save = time.monotonic()

        return after_epoch

    def conclude(self, first_epoch: int, seconds: float) -> None:
        """Notes what the training took, from an epoch on, and puts selected weights in place."""
        self.seconds["training"] = seconds
        self.images_trained = (self.state.epoch - first_epoch) * len(self.train_inputs)
        if self.best.state is not None:
            self.state.averaged(self.best.weights).load_state_dict(self.best.state)

    def explained(self, error: TrainingError, folder: Path) -> TrainingError:
        """An error of the training with where to go on from and what to try."""
        path = folder / CHECKPOINT
        last = f"last good checkpoint: {path}" if path.is_file() else "no checkpoint had been saved yet"
        return TrainingError(f"{error}; {last}; try a lower --lr or --precision float32")

    @property
    def headline_weights(self) -> Weights:
        """The weights that the run is judged by: averaged ones, unless others were selected or there are none."""
        if self.best.state is not None:
            return self.best.weights
        return "ema" if self.has_two_weights else "raw"

    @property
    def has_two_weights(self) -> bool:
        """Whether averaged weights exist beside the last ones."""
        return self.state.ema is not None

    def cells(self, weights: Weights) -> Cells:
        """Scores at the known cells of the scored part."""
        model = self.state.averaged(weights)
        with self.workspace.reporter.task(f"Scoring {len(self.scored_inputs):,} images") as report:
            stream = predict(model, self.method, self.scored_inputs, self.execution, report=report)
            return collect_cells(stream, self.scored_part.labels)

    def write_log(self, folder: Path) -> None:
        """One JSON line an epoch."""
        write_text(folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in self.state.history))

    def resume(self, folder: Path) -> None:
        """Puts the training where the folder's checkpoint left it, if there is one."""
        path = folder / CHECKPOINT
        if not path.is_file():
            return
        saved = checkpoint.load(path, self.spec.sha256())
        if "optimizer" not in saved:
            return  # weights of a run that had ended but left no record: it is made anew
        self.best = Best(**saved.pop("best"))
        self.state.load_state_dict(saved)
        self.workspace.reporter.line(f"Going on after epoch {self.state.epoch} of {self.spec.plan.epochs}")

    def _selects_by_epoch(self) -> bool:
        by_validation = self.only_selects and self.spec.selection == "validation"
        return by_validation or self.spec.selection == "best-on-test"

    def _consider(self) -> None:
        """Scores the epoch that just ended and keeps its weights if they are the best so far."""
        point: dict[str, Any] = {"epoch": self.state.epoch}
        both = self.spec.selection == "best-on-test" and self.has_two_weights
        choices: tuple[Weights, ...] = ("ema", "raw") if both else (("ema",) if self.has_two_weights else ("raw",))
        for weights in choices:
            point[weights] = value = evaluate_cells(self.cells(weights)).map_c
            if value > self.best.value:
                state = own_copy(self.state.averaged(weights))
                self.best = Best(value, self.state.epoch, weights, state, self.best.curve)
        self.best.curve.append(point)

    def _inputs(self, part: Part, *, training: bool = False) -> Inputs:
        spec = self.spec
        if spec.regime == "probe":
            return FeatureInputs(self._features(part.split), part.rows, part.labels, spec.seed)
        base = eval_transform(spec.model)
        transform = self.method.transform(TrainTransform(base, spec.plan)) if training else None
        return ImageInputs(part.images, part.labels, base, self.workspace.workers, transform, spec.seed)

    def _features(self, split: str) -> np.ndarray:
        spec, workspace = self.spec, self.workspace
        images = self.plan.material.whole(split).images
        with workspace.reporter.task(f"Features of {len(images):,} {split} images") as report:
            return cached_features(
                workspace.store,
                features_key(spec.dataset_fingerprint, split, images, spec.model, spec.precision, spec.seed),
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

"""A run in progress: inputs, model, training with checkpoints, and selection."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from plbench.errors import TrainingError
from plbench.files import write_text
from plbench.method import Method
from plbench.metrics import evaluate_cells
from plbench.metrics.cells import Cells, joined_cells
from plbench.models.backbones import GivenMaps, build_backbone, make_head, weights_path
from plbench.randomness import derive_seed, seeded
from plbench.runs.inputs import OpenInputs
from plbench.runs.plan.resolved import ResolvedRun, make_task
from plbench.runs.protocol import Part
from plbench.runs.workspace import Workspace
from plbench.tracking.follow import Tracking, follow
from plbench.training.checkpoint import Checkpoints
from plbench.training.engine import fit, prepare_fit
from plbench.training.evaluation import collect_cells, predict_share
from plbench.training.execution import Execution
from plbench.training.hooks import Guarded, construct, try_it
from plbench.training.inputs import FeatureInputs, Inputs
from plbench.training.interruption import Interruption, Stopped, listening
from plbench.training.profiling import traced
from plbench.training.state import ControlRequest, FitState, own_copy

Watch = Callable[[int, float], None]
Weights = Literal["ema", "raw"]


@dataclass
class Best:
    """The best epoch so far, if epochs are selected: its mAP(C) in percent, its weights, and the curve."""

    value: float = -1.0
    epoch: int = 0
    weights: Weights = "ema"
    state: dict[str, Any] | None = None
    curve: list[dict[str, Any]] = field(default_factory=list)


class ActiveRun:
    """One run in progress, trained alone or in a stack.

    Attributes:
        folder: of its files.
        train_part, train_inputs: training data. scored_part, scored_inputs: evaluation data: test, or the held-out part
            of train if the run is not trained on all of it.
        chosen_part, chosen_inputs: data for selecting the epoch: the scored ones, unless it is selected on the
            validation part and scored on test.
        best: the epoch selected so far.
        seconds: wall time by part of the run.
        tracking: receives training progress; none until set by the runner.
    """

    method: Method
    state: FitState
    train_part: Part
    train_inputs: Inputs
    scored_part: Part
    scored_inputs: Inputs
    chosen_part: Part
    chosen_inputs: Inputs

    def __init__(
        self,
        plan: ResolvedRun,
        workspace: Workspace,
        artifacts: dict[str, Tensor],
        inputs: OpenInputs | None = None,
        stop_after: int | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Store the arguments; nothing is read or computed yet.

        Args:
            plan: the run.
            workspace: locations and compute options.
            artifacts: outputs of the plan's stages.
            inputs: opens the run's inputs; can be shared by runs on the same features. None for its own.
            stop_after: number of epochs, if fewer than the plan's were selected.
            watch: receives each epoch and its mAP(C) on the scored part, with the headline weights.
        """
        self.plan, self.spec, self.workspace = plan, plan.spec, workspace
        self.artifacts, self.stop_after, self.watch = artifacts, stop_after, watch
        self.inputs = OpenInputs(workspace) if inputs is None else inputs
        self.folder = workspace.store.run_folder(plan.spec.key)
        self.execution = Execution(workspace.device, plan.spec.precision, workspace.world, workspace.compiles)
        self.seconds: dict[str, float] = {}
        self.best = Best()
        self._last_save = time.monotonic()
        self.tracking = Tracking({}, workspace.reporter.line)

    @property
    def only_selects(self) -> bool:
        """Whether the run is scored on a held-out part of train and never uses test."""
        return self.spec.only_selects

    def followed(self) -> contextlib.AbstractContextManager[Tracking]:
        """Return a context with the workspace's trackers, notified of the run's start and outcome."""
        workspace = self.workspace
        return follow(self.spec, self.folder, workspace.trackers, workspace.dropped, workspace.reporter.line)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a part of the run."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def prepare(self) -> None:
        """Open the training data, and build the method and the model in its initial state."""
        spec, protocol_data = self.spec, self.plan.protocol_data
        self.train_part = protocol_data.train(spec.train_part)
        task = make_task(spec, protocol_data, self.artifacts)
        self.method = construct(self.plan.method, self.plan.params, task)
        self.train_inputs = self._opened(self.train_part, self.method)
        backbone: nn.Module = nn.Identity()
        if isinstance(self.train_inputs, FeatureInputs):
            features = self.train_inputs.features
            num_features = features.shape[1]
            backbone = GivenMaps(num_features) if features.ndim == 4 else backbone
        else:
            model_spec = self.plan.features_model
            built = build_backbone(model_spec, weights_path(model_spec, self.workspace.weights_file), spec.seed)
            if spec.plan.grad_checkpointing:
                built.checkpoint_gradients()
            backbone, num_features = built, built.num_features
        num_classes = self.train_part.labels.num_classes
        with seeded(derive_seed(spec.seed, "init", "head")):
            model = Guarded(self.method).build(backbone, lambda: make_head(spec.model, num_features, num_classes))
        self.state = prepare_fit(model, self.method, spec.plan, task.steps_per_epoch, self.execution)

    def open_scored_part(self) -> None:
        """Open the evaluation data."""
        protocol_data = self.plan.protocol_data
        self.scored_part = protocol_data.held_out(self.spec.train_part) if self.only_selects else protocol_data.test()
        self.scored_inputs = self._opened(self.scored_part)
        self.chosen_part, self.chosen_inputs = self.scored_part, self.scored_inputs
        if self.spec.selects_on_validation and not self.only_selects:
            self.chosen_part = protocol_data.validation()
            self.chosen_inputs = self._opened(self.chosen_part)

    def _opened(self, part: Part, method: Method | None = None) -> Inputs:
        """Return the inputs of a part; `method` is given if they are for training."""
        spec, protocol_data = self.spec, self.plan.protocol_data
        if self.plan.method.learns or spec.embeddings is None:
            return self.inputs.open(self.plan, part, method)
        similarity = protocol_data.embedded(spec.embeddings, part)["similarity"]
        return FeatureInputs(similarity, np.arange(len(similarity)), part.labels, spec.seed)

    def train(self) -> None:
        """Train to the end, from the run's newest checkpoint if there is one, and load selected weights.

        Raises:
            TrainingError: if the loss is no longer finite. Stopped: on a stop signal; the state is saved.
        """
        for sentence in self.resume():
            self.workspace.reporter.line(sentence)
        workspace, world = self.workspace, self.workspace.world
        profiler: contextlib.AbstractContextManager[Callable[[], None]] = contextlib.nullcontext(lambda: None)
        if workspace.profiles:
            profiler = traced(self.folder, rank=world.rank, device=workspace.device, tell=workspace.reporter.line)
        with (
            workspace.reporter.task(f"Training {self.method.title}") as report,
            listening(among_several=world.size > 1) as heard,
            profiler as after_step,
        ):

            def after_epoch(state: FitState) -> None:
                self.epoch_end(state)
                if any(world.gather_objects(heard.number is not None)):
                    self._stop(heard)

            try:
                self._fit(
                    after_epoch=after_epoch,
                    report=report,
                    requested=lambda: ControlRequest(self._is_time_to_save(), heard.number is not None),
                    handle=lambda request: self._stop(heard) if request.stop else self.save(),
                    after_step=after_step,
                )
            except TrainingError as error:
                raise self.explained(error) from error
        self.conclude()

    def finish_epoch(self) -> None:
        """Finish a partly trained epoch, so that the run can be stacked."""
        if self.state.batch:
            self._fit(stop_after=self.state.epoch + 1, after_epoch=self.epoch_end)

    def _fit(self, **options: Any) -> None:
        spec, options = self.spec, {"stop_after": self.stop_after, **options}
        options["patience"] = self.workspace.reporter.patience
        fit(self.state, self.train_inputs, spec.plan, self.execution, seed=spec.seed, **options)

    def epoch_end(self, state: FitState) -> None:
        """Do the work at the end of an epoch: selection, notifications, and checkpoints if due."""
        self.tracking.logged(state.step, state.history[-1])
        # on test if requested, and on the validation part in a run that selects an epoch there
        if self.spec.selection == "best-on-test" or self.spec.selects_on_validation:
            with self.phase("selection"):
                self._select(state)
            part = "validation" if self.spec.selects_on_validation else "test"
            self.tracking.logged(state.step, {f"{part}/map_c": self.best.curve[-1]})
        if self.watch is not None:
            with self.phase("selection"):
                self.watch(state.epoch, self.map_c(self.headline_weights))
        epochs = self.workspace.save_epochs
        is_due = epochs is not None and state.epoch % epochs == 0
        if is_due or self.workspace.world.shared(self._is_time_to_save):
            self.save()

    def _select(self, state: FitState) -> None:
        """Score the epoch that just ended and keep its weights if they are the best so far."""
        best = self.best
        point: dict[str, Any] = {"epoch": state.epoch}
        choices: tuple[Weights, ...] = ("raw",) if state.ema is None else ("ema",)
        if self.spec.selection == "best-on-test" and state.ema is not None:
            choices = ("ema", "raw")  # the last weights compete with the averaged ones
        for weights in choices:
            point[weights] = value = self.map_c(weights)
            if value > best.value:
                best.value, best.epoch, best.weights = value, state.epoch, weights
                best.state = own_copy(state.averaged(weights))
        best.curve.append(point)

    def _is_time_to_save(self) -> bool:
        return self.workspace.world.is_main and time.monotonic() - self._last_save >= self.workspace.save_every

    def save(self) -> None:
        """Write a checkpoint. Called by every process; only the main one writes."""
        world, state = self.workspace.world, self.state
        if world.is_main:
            saved = {**state.state_dict(), "generators": state.generators, "best": vars(self.best)}
            Checkpoints(self.folder, self.spec).save(saved, world.size)
            self.write_log()
        self._last_save = time.monotonic()

    def _stop(self, heard: Interruption) -> None:
        self.save()
        done, total = self.state.step, self.method.task.steps_per_epoch * self.spec.plan.epochs
        self.workspace.reporter.line(f"Saved at step {done:,} of {total:,}")
        raise Stopped(heard.number or signal.SIGTERM)  # if another process received it

    def conclude(self) -> None:
        """Record training time over all sessions, and load selected weights."""
        self.seconds["training"] = sum(row["seconds"] for row in self.state.history)
        if self.best.state is not None:
            self.state.averaged(self.best.weights).load_state_dict(self.best.state)

    def explained(self, error: TrainingError) -> TrainingError:
        """Return a training error with hints on how to resume and what to try."""
        found = Checkpoints(self.folder, self.spec).newest(self.workspace.reporter.line)
        last = f"last good checkpoint: {found.path}" if found else "no checkpoint had been saved yet"
        return TrainingError(f"{error}; {last}; try a lower --lr or --precision float32", try_it(self.method))

    @property
    def headline_weights(self) -> Weights:
        """The weights of the headline figures: averaged ones, unless others were selected or there are none."""
        if self.best.state is not None:
            return self.best.weights
        return "raw" if self.state.ema is None else "ema"

    def cells(self, weights: Weights) -> Cells | None:
        """Return scores at the known cells of the scored part, in the main process; each one scores a share."""
        return self._cells_of(self.scored_part, self.scored_inputs, weights)

    def validation_cells(self, weights: Weights) -> Cells | None:
        """Return the same on the validation part.

        Raises:
            DataError: if there is no such part, or nothing in it can be scored.
        """
        if self.spec.selects_on_validation:
            return self._cells_of(self.chosen_part, self.chosen_inputs, weights)
        part = self.plan.protocol_data.validation()
        if isinstance(self.train_inputs, FeatureInputs):  # trained on all of train, whose features are available
            rows = self.train_inputs.rows[part.rows]
            inputs: Inputs = FeatureInputs(self.train_inputs.features, rows, part.labels, self.spec.seed)
        else:
            inputs = self._opened(part)
        return self._cells_of(part, inputs, weights)

    def _cells_of(self, part: Part, inputs: Inputs, weights: Weights) -> Cells | None:
        model, world = self.state.averaged(weights), self.workspace.world
        with self.workspace.reporter.task(f"Scoring {len(inputs):,} images") as report:
            stream = predict_share(model, self.method, inputs, self.execution, report=report)
            parts = world.gather_objects(collect_cells(stream, part.labels))
        return joined_cells(parts) if world.is_main else None

    def map_c(self, weights: Weights) -> float:
        """Return mAP(C) in percent on the part for selecting the epoch, in every process."""
        cells = self._cells_of(self.chosen_part, self.chosen_inputs, weights)
        return self.workspace.world.shared(lambda: evaluate_cells(cells).map_c)  # type: ignore[arg-type]

    def write_log(self) -> None:
        """Write one JSON line per epoch."""
        write_text(self.folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in self.state.history))

    def resume(self) -> list[str]:
        """Restore the run's newest checkpoint, if there is one, and return messages about it.

        Raises:
            StoreError: if the checkpoint is damaged, or belongs to another run.
        """
        checkpoints, world = Checkpoints(self.folder, self.spec), self.workspace.world
        found = world.shared(lambda: checkpoints.newest(self.workspace.reporter.line))
        if found is None:
            return []
        saved = checkpoints.load(found)
        if self.workspace.chose_threads and found.threads is not None:
            torch.set_num_threads(found.threads)  # for the same result as an uninterrupted training
        self.best = Best(**saved.pop("best"))
        self.state.generators = saved.pop("generators")
        self.state.load_state_dict(saved)
        steps = self.method.task.steps_per_epoch * self.spec.plan.epochs
        return [f"Continuing after step {self.state.step:,} of {steps:,}"]

"""Measure seconds and bytes of a run's training step here, by a few steps.

Model, loss, optimiser and weight average are the run's own, and the engine does the steps. Inputs are random numbers of
the true shape, since real ones may not exist yet; so are the artifacts of the run's stages.
"""

from __future__ import annotations

import contextlib
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from plbench.loading.features import BATCH_SIZE as FEATURE_BATCH_SIZE
from plbench.loading.transforms import TrainTransform, eval_transform
from plbench.method import Batch, Progress
from plbench.models.backbones import Backbone
from plbench.randomness import seeded
from plbench.runs.estimate.synthetic import SyntheticInputs, about_to_train, synthetic_batch
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.workspace import Workspace
from plbench.training.engine import fit
from plbench.training.evaluation import EVAL_BATCH_SIZE
from plbench.training.execution import Execution, evaluation_mode, widened
from plbench.training.hooks import mixture_of

_BUDGET_SECONDS = 8.0
"""Approximate limit for all timed steps together; larger batches are measured at a smaller size."""

_FIRST_IMAGES = {"cpu": 4, "cuda": 32}  # initial batch size for whole images, whose time is still unknown
_SCORED_IMAGES = 4  # whole images, on a CPU
_STEPS = 3  # timed steps, if thorough
_LOADED_IMAGES = 4  # for each step
_LONG = 2.0  # seconds of a step that is not repeated
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Measured:
    """Measurement of one process.

    Attributes:
        num_parameters, num_trainable: of the model.
        batch_images: per step and process. piece_images: at once, with gradient accumulation.
        measured_images: of a timed step; if fewer than `batch_images`, seconds and bytes are extrapolated.
        step_seconds: per step with the whole batch. infer_seconds: for scoring one image. load_seconds: for reading,
            decoding and augmenting one image in one worker; 0 for features.
        extract_seconds: for the features of one image; 0 if the run needs none.
        state_bytes: parameters, buffers, gradients, moments and average. activation_bytes: kept for the backward pass
            of `piece_images`. other_bytes: peak of everything else.
        is_too_large: whether the whole batch did not fit in the device's memory.
    """

    num_parameters: int
    num_trainable: int
    batch_images: int
    piece_images: int
    measured_images: int
    step_seconds: float
    infer_seconds: float
    load_seconds: float
    extract_seconds: float
    state_bytes: int
    activation_bytes: int
    other_bytes: int
    program_bytes: int
    is_too_large: bool

    @property
    def peak_bytes(self) -> int:
        """Peak memory of the run, without the program itself."""
        return self.state_bytes + self.activation_bytes + self.other_bytes


def measure(
    plan: ResolvedRun, workspace: Workspace, shape: tuple[int, ...] | None, *, thorough: bool = True
) -> Measured:
    """Measure a few steps.

    Args:
        plan: the run.
        workspace: where and how; with several processes, this one's share is measured.
        shape: of an image's cached features in the probe regime; None if they are still to be computed.
        thorough: measure several steps, on a GPU of the whole batch; otherwise one of a few images.

    Raises:
        PlbenchError: if a stage of the run cannot be simulated, or the method rejects the plan.
    """
    trial = _Trial(plan, workspace, shape, thorough)
    measured_images, step_seconds, is_too_large = trial.step()
    side = plan.spec.model.image_size
    extract_seconds, extract_bytes = 0.0, 0
    with evaluation_mode(trial.state.model), torch.inference_mode():
        infer_seconds, infer_bytes = trial.inference(trial.score, trial.inputs.shape, EVAL_BATCH_SIZE)
        if plan.spec.regime == "probe" and trial.backbone is not None:
            backbone = trial.backbone.eval().to(trial.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            extract_seconds, extract_bytes = trial.inference(
                lambda batch: backbone(batch.inputs), (3, side, side), FEATURE_BATCH_SIZE
            )
            extract_bytes += sum(p.nbytes for p in backbone.parameters())
    parameters = list(trial.state.model.parameters())
    return Measured(
        num_parameters=sum(p.numel() for p in parameters),
        num_trainable=sum(p.numel() for p in parameters if p.requires_grad),
        batch_images=trial.batch_images,
        piece_images=trial.piece_images,
        measured_images=measured_images,
        step_seconds=step_seconds * trial.batch_images / measured_images,
        infer_seconds=infer_seconds,
        load_seconds=trial.load_seconds(),
        extract_seconds=extract_seconds,
        state_bytes=trial.state_bytes(),
        activation_bytes=trial.activation_bytes,
        program_bytes=trial.program_bytes,
        other_bytes=max(trial.other_bytes, infer_bytes - trial.activation_bytes, extract_bytes),
        is_too_large=is_too_large,
    )


def scored_images(plan: ResolvedRun, *, is_stage: bool) -> float:
    """Return the number of images to score besides training: for selection, and at the end."""
    spec, protocol_data = plan.spec, plan.protocol_data
    num_train = len(protocol_data.train(spec.train_part).rows)
    scored = protocol_data.held_out(spec.train_part) if spec.only_selects else protocol_data.test()
    num_scored = len(scored.rows)
    num_weights = 2 if spec.plan.ema_decay else 1
    passes: float = num_weights * num_scored
    if spec.selection == "best-on-test":
        passes += num_weights * num_scored * spec.plan.epochs
    elif spec.selects_on_validation:
        passes += len(protocol_data.validation().rows) * spec.plan.epochs
    passes += num_train * ((protocol_data.hidden_truth(spec.train_part) is not None) + is_stage)
    if spec.train_part == "train" and spec.selection != "validation":  # for thresholds of the classes
        passes += spec.protocol.validation_share * num_train
    return passes


class _Trial:
    """A run about to train, with synthetic inputs."""

    def __init__(self, plan: ResolvedRun, workspace: Workspace, shape: tuple[int, ...] | None, thorough: bool) -> None:
        self.spec, self.device, self.thorough = plan.spec, workspace.device, thorough
        self.num_steps = _STEPS if thorough else 1
        self.execution = Execution(workspace.device, plan.spec.precision, compiles=workspace.compiles and thorough)
        self.part = plan.protocol_data.train(plan.spec.train_part)
        self.batch_images = math.ceil(min(self.spec.plan.batch_size, len(self.part.rows)) / workspace.world.size)
        self.piece_images = math.ceil(self.batch_images / self.spec.plan.accumulate)
        self.activation_bytes = self.other_bytes = 0
        is_probe = self.spec.regime == "probe"
        with seeded(0):
            self.backbone = Backbone(plan.features_model) if not is_probe or shape is None else None
        if shape is None:
            shape = () if self.backbone is None else self.backbone.feature_shape
        backbone = None if is_probe else self.backbone
        self.state = about_to_train(plan, backbone, shape, self.execution)
        # memory of the libraries loaded so far; there are no gradients and moments yet
        self.program_bytes = max(0, resident_bytes() - self.state_bytes())
        side = self.spec.model.image_size
        views = None if is_probe else self._loaded(0)
        views = views if isinstance(views, tuple) and len(views) > 1 else ()
        self.inputs = SyntheticInputs(self.part.labels, shape if is_probe else (3, side, side), views)

    def _loaded(self, row: int) -> Any:
        """Return an image as loaded for training."""
        base = eval_transform(self.spec.model)
        if self.spec.regime == "probe":
            return base(self.part.images.load(row, base.size))
        own = TrainTransform(base, self.spec.plan)
        with seeded(row):
            return self.state.method.transform(own)(self.part.images.load(row, own.min_side))

    def load_seconds(self) -> float:
        """Return the seconds for loading one image in one process; 0 for cached features."""
        if self.backbone is None:
            return 0.0
        rows = range(min(_LOADED_IMAGES * self.num_steps, len(self.part.images)))
        self._loaded(0)
        start = time.perf_counter()
        for row in rows:
            self._loaded(row)
        return self._images_per_input() * (time.perf_counter() - start) / len(rows)

    def _images_per_input(self) -> float:
        """Return the number of loaded images per image that the model sees."""
        mixture = None if self.spec.regime == "probe" else mixture_of(self.state.method)
        if mixture is None:
            return 1.0
        rows, _ = mixture(torch.arange(self.batch_images), 0)
        return len(rows.unique()) / len(rows)

    def step(self) -> tuple[int, float, bool]:
        """Return images and seconds of the largest affordable step, and whether memory prevents a larger one.

        Memory is measured along the way.
        """
        size = self.batch_images
        if self.spec.regime == "finetune" and not (self.thorough and self.device.type == "cuda"):
            size = min(_FIRST_IMAGES[self.device.type], self.piece_images)
        fitting, first_seconds = _largest_that_fits(size, self._warm_up)
        if not self.thorough and first_seconds > _LONG and fitting <= self.piece_images:
            return fitting, first_seconds, fitting < size
        # the first step of a size is slower
        seconds = statistics.median(self._steps(fitting, self.num_steps + 1)[1:])
        is_too_large = fitting < size
        if self.thorough and not is_too_large:
            # with few images, the constant cost of a step has too much weight
            affordable = int(fitting * _BUDGET_SECONDS / self.num_steps / max(seconds, 1e-6))
            larger = min(affordable, self.batch_images)
            if larger >= 2 * fitting:
                fitting, seconds = larger, statistics.median(self._steps(larger, self.num_steps + 1)[1:])
        return fitting, seconds, is_too_large

    def _warm_up(self, size: int) -> float:
        """Run one step and measure its memory: on a CPU what is kept for the backward pass, on a GPU the peak.

        Returns:
            Its seconds.
        """
        piece = min(size, self.piece_images)
        if self.device.type == "cuda":
            self._steps(size, 1)  # the first step creates the moments
            torch.cuda.reset_peak_memory_stats(self.device)
            (seconds,) = self._steps(size, 1)
            beside = torch.cuda.max_memory_allocated(self.device) - self.state_bytes()
            self.activation_bytes = beside * self.piece_images // piece
            return seconds
        kept = _Kept(self.state.model)
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
            (seconds,) = self._steps(piece, 1)
        scale = self.piece_images / piece
        self.activation_bytes = int(kept.num_bytes * scale)
        self.other_bytes = int(kept.largest * scale)  # gradient of the largest
        return seconds

    def _steps(self, size: int, number: int) -> list[float]:
        """Return the seconds of each of several steps of the engine."""
        accumulate = math.ceil(size / self.piece_images)
        plan = self.spec.plan.model_copy(update={"batch_size": size, "accumulate": accumulate})
        self.inputs.batch_size, self.state.epoch = size, 0
        ends: list[float] = []

        def report(done: int, total: int) -> None:  # called before the first step and after each
            _wait(self.device)
            ends.append(time.perf_counter())
            if len(ends) > number:
                raise _Enough

        with seeded(0), contextlib.suppress(_Enough):
            fit(self.state, self.inputs, plan, self.execution, seed=0, report=report)
        return np.diff(ends).tolist()

    def state_bytes(self) -> int:
        """Return the bytes of parameters, buffers, gradients, moments and average."""
        model, ema = self.state.model, self.state.ema
        tensors = [*model.parameters(), *model.buffers()]
        tensors += [p for p in model.parameters() if p.requires_grad]  # their gradients
        tensors += [] if ema is None else [*ema.module.parameters(), *ema.module.buffers()]
        for moments in self.state.optimizer.state.values():
            tensors += [value for value in moments.values() if isinstance(value, Tensor)]
        return sum(tensor.nbytes for tensor in tensors)

    def score(self, batch: Batch) -> Any:
        """Return the scores of a batch."""
        output = self.state.method.forward(self.state.model, batch, Progress(0, 1, 0, 1))
        return self.state.method.scores(widened(output))

    def inference(self, work: Callable[[Batch], Any], shape: tuple[int, ...], most: int) -> tuple[float, int]:
        """Return seconds per input, and bytes of a batch of `most` inputs, without the model."""

        def attempt(size: int) -> tuple[Batch, int]:
            batch = self.execution.move(synthetic_batch(self.part.labels, size, shape))
            with self.execution.autocast():
                return batch, self._bytes_of(lambda: work(batch))

        size = min(most, _SCORED_IMAGES if self.device.type == "cpu" and shape[0] == 3 else most)
        size, (batch, num_bytes) = _largest_that_fits(size, attempt)
        seconds = []
        for _ in range(self.num_steps):
            start = time.perf_counter()
            with self.execution.autocast():
                work(batch)
            _wait(self.device)
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds) / size, (num_bytes + batch.inputs.nbytes) * most // size

    def _bytes_of(self, work: Callable[[], Any]) -> int:
        """Return the peak memory of a computation without its inputs; on a CPU, inputs and outputs of a layer."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            work()
            return torch.cuda.max_memory_allocated(self.device) - before
        seen = [0]

        def see(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            seen.append(sum(value.nbytes for value in (*inputs, output) if isinstance(value, Tensor)))

        with contextlib.ExitStack() as watched:
            for model in (self.state.model, self.backbone or nn.Identity()):
                for leaf in (module for module in model.modules() if not list(module.children())):
                    watched.enter_context(leaf.register_forward_hook(see))
            work()
        return max(seen)


class _Kept:
    """Counts the bytes that autograd keeps for the backward pass, without parameters, each storage once."""

    def __init__(self, model: nn.Module) -> None:
        self._seen = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.num_bytes = self.largest = 0

    def pack(self, tensor: Tensor) -> Tensor:
        """Count a tensor that autograd keeps; a pack hook."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.num_bytes += storage.nbytes()
            self.largest = max(self.largest, storage.nbytes())
        return tensor.detach()


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes: current on Linux, peak elsewhere."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


class _Enough(Exception):
    """Ends a training after the measured steps."""


def _largest_that_fits(size: int, attempt: Callable[[int], _Found]) -> tuple[int, _Found]:
    """Return the largest number of images up to `size` that fits in memory, and the result of the attempt."""
    while True:
        try:
            return size, attempt(size)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        torch.cuda.empty_cache()
        size //= 2


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

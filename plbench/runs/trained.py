"""The model of a finished run, loaded from its folder to score other images, if possible without its dataset."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plbench.data.digests import file_sha256
from plbench.data.images import ImageSource
from plbench.data.labels import PartialLabels
from plbench.errors import PlbenchError, StoreError
from plbench.loading.features import BATCH_SIZE, GPU_BATCH_SIZE, extract, feature_dtype
from plbench.loading.jpegs import jpeg_decoder
from plbench.loading.transforms import eval_transform
from plbench.method import Method, Task
from plbench.metrics import thresholds_for_precision
from plbench.metrics.cells import Cells
from plbench.models.backbones import GivenMaps, build_backbone, make_head, weights_path
from plbench.randomness import derive_seed, seeded
from plbench.runs import run as runner
from plbench.runs.inputs import OpenInputs
from plbench.runs.plan.resolve import plan_from_spec
from plbench.runs.plan.resolved import features_model_of, make_task, validate_params
from plbench.runs.protocol import Part, ProtocolData
from plbench.runs.record import Record, whole_file
from plbench.runs.registry import source_sha256
from plbench.runs.store import CELLS, CHECKPOINT
from plbench.runs.stored import read_run
from plbench.runs.tables import PER_CLASS
from plbench.runs.task_file import TASK, read_task
from plbench.runs.workspace import Workspace
from plbench.spec import RunSpec
from plbench.training import checkpoint
from plbench.training.distributed import ALONE, World
from plbench.training.evaluation import EVAL_BATCH_SIZE, collect_cells, predict_share
from plbench.training.execution import Execution
from plbench.training.hooks import Guarded, construct
from plbench.training.inputs import ImageInputs, Inputs


@dataclass(frozen=True)
class TrainedModel:
    """A run's model with its headline weights.

    Attributes:
        folder: of the run.
        backbone: frozen, in the probe regime; otherwise it is a part of `model`.
        class_names: [C] display names; ids if two classes share a name.
    """

    folder: Path
    record: Record
    method: Method
    model: nn.Module
    backbone: nn.Module | None
    execution: Execution
    class_names: tuple[str, ...]

    def scores(self, images: ImageSource, workspace: Workspace) -> Iterator[Tensor]:
        """Stream scores [b, C] float32 in [0, 1] of images in their order, `EVAL_BATCH_SIZE` at a time.

        Batches are the same as in a run's test evaluation, so that equal images in equal order give bit-identical
        scores.

        Raises:
            DataError: if an image cannot be read.
        """
        spec = self.record.spec
        ids = self.method.task.class_ids
        unknown = PartialLabels.from_cells([], [], [], num_rows=len(images), class_ids=ids)
        own: dict[str, Any] = {
            "images": images,
            "labels": unknown,
            "eval_transform": eval_transform(spec.model),
            "workers": workspace.workers,
            "device": workspace.device,
            "decoder": jpeg_decoder(workspace.decode, workspace.device),
        }
        inputs: Inputs = ImageInputs(**own)
        if self.backbone is not None:
            inputs = _FrozenInputs(**own, extract=self._extract)
        for _, scores in predict_share(self.model, self.method, inputs, self.execution):
            yield scores

    def part_scores(self, part: Part, protocol_data: ProtocolData, inputs: OpenInputs) -> Iterator[Tensor]:
        """Stream scores as `scores` does, of images of the run's own dataset: from cached features in the probe regime.

        Args:
            part: of `protocol_data`, with the run's dataset.
            inputs: open features, which runs can share.

        Raises:
            DataError: if an image cannot be read.
        """
        spec = self.record.spec
        if self.backbone is None:
            yield from self.scores(part.images, inputs.workspace)
            return
        features = inputs.features(spec, features_model_of(type(self.method), spec.model), protocol_data, part)
        for _, scores in predict_share(self.model, self.method, features, self.execution):
            yield scores

    def _extract(self, pixels: Tensor) -> Tensor:
        """Return features as in a run's feature cache."""
        assert self.backbone is not None
        spec, dtype = self.record.spec, feature_dtype(self.backbone.feature_shape)  # type: ignore[arg-type]
        features = extract(self.backbone, pixels, spec.precision, spec.model.backbone, dtype)
        values = torch.from_numpy(features.astype(dtype, copy=False))
        return values.to(torch.float32) if values.dtype == torch.float16 else values

    def thresholds(self, instead: str = "`threshold=0.5`") -> np.ndarray:
        """Return the run's threshold of each class, chosen on its validation part, [C] float64.

        Args:
            instead: alternative option, for the error message.

        Raises:
            PlbenchError: if it chose none.
        """
        table = whole_file(self.folder, self.record, PER_CLASS).read_text(encoding="utf-8")
        texts = [row.get("threshold") for row in csv.DictReader(io.StringIO(table))]
        if not all(texts):
            raise PlbenchError(
                f"run {self.record.key} chose no thresholds on its validation part; give a number, such as {instead}"
            )
        return np.array(texts, np.float64)

    def thresholds_for_precision(self, precision: float, workspace: Workspace) -> tuple[np.ndarray, bool]:
        """Return each class's lowest threshold that reaches the wanted precision on the validation part.

        Args:
            precision: wanted precision, in (0, 1].
            workspace: locations and compute options, including those of the run's dataset.

        Returns:
            [C] float64, infinity for a class that never reaches it; and whether the scores are from a model that was
            not trained on that part.

        Raises:
            PlbenchError: if `precision` is out of range, or the dataset is missing or has changed.
        """
        if not 0 < precision <= 1:
            raise PlbenchError(f"precision is {precision}; give a share above 0 and up to 1, such as 0.9")
        plan = plan_from_spec(self.record.spec, workspace)
        if plan.chooser is not None:  # the run that chose the epoch was not trained on that part
            folder = workspace.store.run_folder(plan.chooser.spec.key)
            return thresholds_for_precision(Cells.load(whole_file(folder, read_run(folder), CELLS)), precision), True
        part = plan.protocol_data.validation()
        places = torch.arange(len(part.rows)).split(EVAL_BATCH_SIZE)
        cells = collect_cells(zip(places, self.scores(part.images, workspace), strict=True), part.labels)
        return thresholds_for_precision(cells, precision), self.record.spec.train_part == "fit"


@dataclass(frozen=True)
class _FrozenInputs(ImageInputs):
    """Features computed by a frozen backbone on the fly, without a cache."""

    extract: Callable[[Tensor], Tensor] = torch.as_tensor

    def ordered(self, batch_size: int, world: World = ALONE) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield evaluation batches of features, extracted in the same batches as for the cache."""
        small = GPU_BATCH_SIZE if self.device.type == "cuda" else BATCH_SIZE
        assert batch_size % small == 0
        rows, parts = [], []
        for row, images in super().ordered(small, world):
            rows.append(row)
            parts.append(self.extract(images))
            if len(rows) * small == batch_size:
                yield torch.cat(rows), _together(parts)
                rows, parts = [], []
        if rows:
            yield torch.cat(rows), _together(parts)


def _together(parts: list[Tensor]) -> Tensor:
    values = torch.cat(parts)
    return values.contiguous(memory_format=torch.channels_last) if values.ndim == 4 else values


def load_model(folder: Path, workspace: Workspace) -> TrainedModel:
    """Return the model of a finished run.

    Args:
        folder: of the run.
        workspace: locations and compute options; the precision is the run's.

    Raises:
        StoreError: if the record or the weights are missing or damaged.
        PlbenchError: if method or backbone weights differ from the run's, or the method cannot score other images.
    """
    record = read_run(folder)
    spec, name = record.spec, record.spec.method.name
    if record.status != "done" or record.selection is None:
        raise PlbenchError(f"run {record.key} failed ({record.error}); only a finished run has a model")
    kind = workspace.registry.method(name)
    if not kind.learns:
        raise PlbenchError(
            f"run {record.key}: method {name!r} scores by embeddings of its dataset's images, and other images have "
            "none; use a run of another method"
        )
    if source_sha256(kind) != spec.method.source_sha256:
        workspace.reporter.note(f"method {name} has changed since run {record.key}; its scores may differ")
    execution = Execution(workspace.device, spec.precision)
    if TASK in record.files:
        task = read_task(whole_file(folder, record, TASK), spec)
    else:  # from an older version, or with embeddings of the dataset's images
        task = _task_of_dataset(spec, workspace)
    method = construct(kind, validate_params(kind, spec.method.params), task)
    model_spec, is_probe = features_model_of(kind, spec.model), spec.regime == "probe"
    # if the whole network was trained, the run's checkpoint includes the backbone
    path = weights_path(model_spec, workspace.weights_file) if is_probe else None
    if path is not None and file_sha256(path, workspace.store.cache) != spec.model.weights_sha256:
        raise PlbenchError(
            f"{path} does not hold the weights of {spec.model.backbone} that run {record.key} was made with (sha256 "
            f"{str(spec.model.weights_sha256)[:16]}…); give the file that does with `weights=FILE`"
        )
    backbone = build_backbone(model_spec, path, spec.seed)
    body: nn.Module = backbone
    if is_probe:
        body = nn.Identity() if len(backbone.feature_shape) == 1 else GivenMaps(backbone.num_features)
    with seeded(derive_seed(spec.seed, "init", "head")):
        model = Guarded(method).build(body, lambda: make_head(spec.model, backbone.num_features, task.num_classes))
    saved = checkpoint.load(whole_file(folder, record, CHECKPOINT), spec.sha256())
    averaged = saved.get("ema") if record.selection.weights == "ema" else None
    try:
        model.load_state_dict(saved["model"] if averaged is None else averaged)
    except (KeyError, RuntimeError, TypeError, AttributeError) as error:  # the run may be from another source
        raise StoreError(
            f"{folder / CHECKPOINT} does not hold weights of the model that its record describes"
        ) from error
    for part in (model, backbone):
        part.to(workspace.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    unique = len(set(task.class_names)) == len(task.class_names)
    names = task.class_names if unique else task.class_ids
    return TrainedModel(folder, record, method, model, backbone if is_probe else None, execution, names)


def _task_of_dataset(spec: RunSpec, workspace: Workspace) -> Task:
    plan = plan_from_spec(spec, workspace)
    artifacts = {name: runner.stage_artifact(plan, name, workspace) for name in plan.stages}
    return make_task(plan.spec, plan.protocol_data, artifacts)

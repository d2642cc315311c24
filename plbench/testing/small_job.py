"""A method on small data: built, trained and evaluated by the same engine as in a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plbench.loading.transforms import TrainTransform, eval_transform
from plbench.method import Batch, Method, Task
from plbench.models.backbones import GivenMaps, make_head
from plbench.randomness import derive_seed, seeded
from plbench.runs.plan.resolved import make_task, validate_params
from plbench.runs.protocol import ProtocolData
from plbench.runs.registry import Registry
from plbench.spec import MethodSpec, ModelSpec, Plan, Precision, Regime, RunSpec
from plbench.testing.small_data import IMAGE_SIZE, NUM_FEATURES, SIZE, Size, SmallDataset
from plbench.training import hooks
from plbench.training.distributed import ALONE, World
from plbench.training.engine import fit, prepare_fit
from plbench.training.evaluation import View, predict
from plbench.training.execution import Execution
from plbench.training.inputs import FeatureInputs, ImageInputs, Inputs
from plbench.training.state import FitState

_MODEL = ModelSpec(backbone="small", weights="random", image_size=IMAGE_SIZE)


@dataclass(frozen=True)
class Subject:
    """The method to check, with some of its parameters.

    Attributes:
        values: values of parameters, by name; others have their defaults.
        registry: registry of the methods of its stages.
        on_images: whether it trains on images although features would suffice.
    """

    kind: type[Method]
    values: Mapping[str, Any]
    registry: Registry
    on_images: bool = False

    @property
    def label(self) -> str:
        """Its name in findings."""
        return " ".join([self.kind.name, *(f"{name}={value}" for name, value in self.values.items())])

    @property
    def regime(self) -> Regime:
        """Probe, unless the method requires images."""
        return "finetune" if self.on_images or "images" in self.kind.needs else "probe"

    @property
    def sees_maps(self) -> bool:
        """Whether features are feature maps."""
        return "feature_map" in self.kind.needs


@dataclass(frozen=True)
class SmallJob:
    """One training of a method on small data.

    Attributes:
        other_truth: whether the hidden labels are inverted.
        wide: whether to use float64 without dropout, for precise comparisons.
        world: processes of distributed training.
    """

    subject: Subject
    size: Size = SIZE
    seed: int = 0
    precision: Precision = "float32"
    other_truth: bool = False
    wide: bool = False
    world: World = ALONE

    @cached_property
    def execution(self) -> Execution:
        """Execution on the CPU."""
        return Execution(torch.device("cpu"), self.precision, self.world)

    @cached_property
    def plan(self) -> Plan:
        """A short plan."""
        lr = 2e-2 if self.subject.regime == "probe" else 2e-3
        return Plan(epochs=self.size.epochs, batch_size=self.size.batch_size, lr=lr, ema_horizon=0.2)

    @cached_property
    def dataset(self) -> SmallDataset:
        """Complete labels; with `other_truth`, hidden ones are inverted."""
        dataset = SmallDataset(self.size)
        known = ProtocolData(dataset, dataset.protocols[0]).partial_labels if self.other_truth else None
        return SmallDataset(self.size, known)

    @cached_property
    def protocol_data(self) -> ProtocolData:
        """The dataset under its protocol, the only source of training data, as in a run."""
        return ProtocolData(self.dataset, self.dataset.protocols[0])

    @cached_property
    def params(self) -> Any:
        """The method's validated parameters."""
        return validate_params(self.subject.kind, self.subject.values)

    def task(self, artifacts: Mapping[str, Tensor] | None = None) -> Task:
        """Return what the method may know."""
        spec = RunSpec(
            protocol=self.protocol_data.protocol,
            dataset_fingerprint="",
            method=MethodSpec(name=self.subject.kind.name, version="", source_sha256="", params={}),
            model=_MODEL,
            regime=self.subject.regime,
            recipe="check",
            plan=self.plan,
            precision=self.precision,
            seed=self.seed,
        )
        found = dict(artifacts or {})
        if "embeddings" in self.subject.kind.needs:
            found |= {"similarity": torch.from_numpy(self.dataset.similarity())}
            found |= {"logit_scale": torch.tensor(100.0), "logit_bias": torch.tensor(-20.0)}
        return make_task(spec, self.protocol_data, found)

    @cached_property
    def artifacts(self) -> dict[str, Tensor]:
        """Outputs of the stages, each trained and reduced."""
        registry, reduced = self.subject.registry, {}
        for stage in hooks.Guarded(self.subject.kind).stages(self.params, self.task()):
            job = replace(
                self, subject=Subject(registry.method(stage.method), stage.params, registry, self.subject.on_images)
            )
            reduced[stage.name] = stage.reduce(job.view(job.trained()))
        return reduced

    def method(self) -> Method:
        """Return a new instance."""
        return hooks.construct(self.subject.kind, self.params, self.task(self.artifacts))

    def backbone(self) -> nn.Module:
        """Return the backbone in its initial state; empty in the probe regime."""
        with seeded(derive_seed(self.seed, "init", "backbone")):
            if self.subject.regime == "finetune":
                return _SmallBackbone(self.subject.sees_maps)
            return GivenMaps(NUM_FEATURES) if self.subject.sees_maps else nn.Identity()

    def model(self, method: Method, backbone: nn.Module | None = None) -> nn.Module:
        """Return the model in its initial state."""
        backbone = self.backbone() if backbone is None else backbone
        with seeded(derive_seed(self.seed, "init", "head")):
            model: nn.Module = hooks.Guarded(method).build(
                backbone, lambda: make_head(_MODEL, NUM_FEATURES, self.size.classes)
            )
        if self.wide:
            model = model.double()
            for group in method.param_groups(model):
                for parameter in group["params"]:  # including the method's own
                    parameter.data = parameter.data.double()
        return model

    @cached_property
    def inputs(self) -> Inputs:
        """The training inputs."""
        part = self.protocol_data.train()
        if not self.subject.kind.learns:
            similarity = self.dataset.similarity().astype(np.float64 if self.wide else np.float32)
            return FeatureInputs(similarity, part.rows, part.labels, self.seed)
        if self.subject.regime == "probe":
            features = self.dataset.maps() if self.subject.sees_maps else self.dataset.features()
            features = features.astype(np.float64 if self.wide else np.float32)
            return FeatureInputs(features, part.rows, part.labels, self.seed).mixing(hooks.mixture_of(self.method()))
        base, method = eval_transform(_MODEL), self.method()
        transform = method.transform(TrainTransform(base, self.plan))
        mixture = hooks.mixture_of(method)
        images = ImageInputs(part.images, part.labels, base, 0, transform, self.seed, mixture=mixture)
        return _Widened(images) if self.wide else images

    def state(self) -> FitState:
        """Return the state before training."""
        method = self.method()
        return prepare_fit(self.model(method), method, self.plan, self.size.steps_per_epoch, self.execution)

    def trained(self, **options: Any) -> FitState:
        """Return the state after training; options as in `go_on`."""
        state = self.state()
        self.go_on(state, **options)
        return state

    def go_on(self, state: FitState, **options: Any) -> None:
        """Train to the end from a state; options are those of `plbench.training.engine.fit`."""
        fit(state, self.inputs, self.plan, self.execution, seed=self.seed, **options)

    def view(self, state: FitState) -> View:
        """Return the view of train that the method's hooks get."""
        return View(state, self.inputs, self.execution)

    def scores(self, state: FitState) -> Tensor:
        """Return scores [N, C] of the training images."""
        stream = predict(state.averaged(), state.method, self.inputs, self.execution)
        return torch.cat([scores for _, scores in stream])


class _SmallBackbone(nn.Module):
    """A small backbone with the interface of a run's: images [B, 3, H, W] to features [B, D], or to maps [B, D, h, w].

    It has no batch statistics, which would differ between processes that share a batch.
    """

    num_features = NUM_FEATURES

    def __init__(self, gives_maps: bool) -> None:
        super().__init__()
        self._gives_maps = gives_maps
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, 8, kernel_size=4, stride=4), nn.GELU(), nn.Conv2d(8, NUM_FEATURES, kernel_size=2, stride=2)
        )

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.convolutions(images)
        return maps if self._gives_maps else maps.mean(dim=(-2, -1))


@dataclass(frozen=True)
class _Widened:
    """Inputs in float64."""

    inputs: Inputs

    @property
    def labels(self) -> Any:
        return self.inputs.labels

    def __len__(self) -> int:
        return len(self.inputs)

    def shuffled(self, *args: Any, **kwargs: Any) -> Any:
        for batch in self.inputs.shuffled(*args, **kwargs):
            views = tuple(view.double() for view in batch.views)
            yield Batch(batch.inputs.double(), batch.labels, batch.index, views)

    def ordered(self, *args: Any, **kwargs: Any) -> Any:
        for rows, values in self.inputs.ordered(*args, **kwargs):
            yield rows, values.double()

"""The contract of a method: its parameters and their ranges, its inputs and its outputs.

A method is one class with parameters and a loss; everything else has a default.
"""

from __future__ import annotations

import contextlib
import copy
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from plbench.data.labels import PartialLabels
from plbench.errors import PlbenchError
from plbench.spec import Regime

BatchScope = Literal["sample", "batch"]
"""Whether the loss of an image depends on that image alone, or on the others of its batch too."""


@dataclass(frozen=True)
class SearchRange:
    """The range in which tuning searches a parameter, within its valid values. A bound may depend on the task.

    Attributes:
        when: by name of another parameter, the values for which this one has an effect; otherwise it is not searched.
    """

    low: float | Callable[[Task], float]
    high: float | Callable[[Task], float]
    log: bool = False
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def applies(self, params: BaseModel) -> bool:
        """Return whether the parameter has an effect, given the others."""
        return all(getattr(params, name) in values for name, values in self.when.items())

    def bounds(self, task: Task) -> tuple[float, float]:
        """Return the lowest and the highest value to try on this task."""
        low, high = (end(task) if callable(end) else end for end in (self.low, self.high))
        return low, high


def tunable(
    default: Any,
    low: float | Callable[[Task], float],
    high: float | Callable[[Task], float],
    *,
    log: bool = False,
    when: Mapping[str, tuple[Any, ...]] | None = None,
    from_task: Callable[[Task], Any] | None = None,
    description: str = "",
    **valid: Any,
) -> Any:
    """Declare a parameter that tuning may search.

    Args:
        default: the paper's value.
        low: the lowest value searched, or a function of the task.
        high: the highest (top-K grows with the number of classes).
        log: whether to search on a logarithmic scale.
        when: values of other parameters for which this one has an effect, as in `when={"variant": ("ls",)}`.
        from_task: computes the value if it was left at its default, None; raises a `PlbenchError` if the task does not
            determine one. A run's spec holds the computed value.
        description: one line, with the paper's symbol.
        **valid: pydantic's constraints on valid values (`ge`, `gt`, `le`, `lt`).

    Returns:
        A pydantic field.
    """
    extra = {"search": SearchRange(low, high, log, when or {}), "from_task": from_task}
    return Field(default, description=description, json_schema_extra=extra, **valid)  # type: ignore[arg-type]


class MethodParams(BaseModel):
    """Base of a method's `Params`: immutable, strict about unknown names and about non-finite numbers.

    Class attributes:
        alternatives: groups of parameters that set the same thing in different ways, such as a threshold and a
            quantile. Giving one of a group sets the others to None, whatever their defaults or the protocol's
            suggestions.
    """

    alternatives: ClassVar[tuple[frozenset[str], ...]] = ()

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def left_to_task(self) -> dict[str, Callable[[Task], Any]]:
        """Return the functions (`tunable`'s `from_task`) of all values that were not given and depend on the task."""
        declared = self._tunable().items()
        return {name: said["from_task"] for name, said in declared if said["from_task"] and getattr(self, name) is None}

    def completed(self, task: Task) -> Self:
        """Return the parameters with the values that depend on the task filled in.

        Raises:
            PlbenchError: if the task does not determine a value that was not given.
        """
        found = {name: determine(task) for name, determine in self.left_to_task().items()}
        return type(self).model_validate({**self.model_dump(), **found}) if found else self

    @classmethod
    def is_whole(cls, name: str) -> bool:
        """Return whether a parameter takes whole numbers."""
        annotation = cls.model_fields[name].annotation
        return annotation is int or int in typing.get_args(annotation)

    @classmethod
    def search_space(cls) -> dict[str, SearchRange]:
        """Return the tunable parameters and their ranges."""
        return {name: said["search"] for name, said in cls._tunable().items()}

    @classmethod
    def _tunable(cls) -> dict[str, dict[str, Any]]:
        """Return the arguments of `tunable` for each parameter declared with it."""
        extras: dict[str, Any] = {name: info.json_schema_extra for name, info in cls.model_fields.items()}
        return {name: extra for name, extra in extras.items() if isinstance(extra, dict) and "search" in extra}


@dataclass(frozen=True)
class Progress:
    """Current position in training. Steps and epochs count from 0."""

    step: int
    num_steps: int
    epoch: int
    num_epochs: int

    @property
    def fraction(self) -> float:
        """Fraction of the training completed, in [0, 1)."""
        return self.step / self.num_steps


@dataclass(frozen=True)
class Task:
    """What a method may know about the job: nothing about the test set, and one number about the hidden labels.

    Attributes:
        expected_positives: mean number of positives per image: the published figure, otherwise that of the complete
            train labels before simulation; None if the dataset's own labels are partial.
        positives, negatives: [C] number of known positives and known negatives of each class in train.
        generator: seeded for this run and method; the only one to sample from.
        artifacts: outputs of the method's stages, by stage name. A method that needs "embeddings" also gets
            "similarity", read-only cosine similarities [num_train, C] float32 of each train image to each class in a
            vision-language model, and, if the model has them, "logit_scale" and "logit_bias": logits are scale * cosine
            + bias.
    """

    num_classes: int
    class_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    positives: np.ndarray
    negatives: np.ndarray
    num_train: int
    epochs: int
    steps_per_epoch: int
    regime: Regime
    generator: torch.Generator
    artifacts: Mapping[str, Tensor] = field(default_factory=dict)
    expected_positives: float | None = None

    @property
    def num_unknown(self) -> int:
        """Number of unknown labels in train."""
        return self.num_train * self.num_classes - int(self.positives.sum()) - int(self.negatives.sum())


@dataclass(frozen=True)
class Batch:
    """One mini-batch.

    Attributes:
        inputs: images [B, 3, H, W], or in the probe regime features [B, D] or feature maps [B, D, h, w].
        labels: int8 [B, C]: +1 present, -1 verified absent, 0 unknown. Read-only.
        index: int64 [B]: row in train, the same in every stage.
        views: what the method's transform returns of each image, if that is a tuple: `inputs`, further views, and
            tensors such as the views' locations.
    """

    inputs: Tensor
    labels: Tensor
    index: Tensor
    views: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Loss:
    """A summed loss and its weight. The engine divides by the weight of the whole global batch.

    Attributes:
        total: scalar tensor with a gradient; [H] of a stacked method.
        weight: number of images, or of known labels, that `total` sums over. A step with weight 0 is skipped.
    """

    total: Tensor
    weight: Tensor | float

    @classmethod
    def of_images(cls, per_image: Tensor) -> Loss:
        """Return the usual reduction: the mean over images of a loss [B] (stacked: [H, B]), summed over classes."""
        return cls(per_image.sum(dim=-1), float(per_image.shape[-1]))


class TrainView(Protocol):
    """Access to a trained (or training) model's outputs on the training images, without augmentation."""

    labels: PartialLabels

    def predict(
        self, weights: Literal["ema", "raw"] = "ema", *, dropout: bool = False, passes: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Stream (row index [b] int64, scores [b, C] in [0, 1]) over the training part, in order.

        With `dropout`, dropout stays active; with `passes` > 1, scores are averaged over that many passes.
        """

    def compute(
        self, function: Callable[[nn.Module, Tensor], Tensor], weights: Literal["ema", "raw"] = "ema"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Stream (row index [b] int64, `function(model, inputs)` float32 [b, …]), in order.

        For more than scores: `lambda model, inputs: model[0](inputs)` returns the features of a default model.
        """

    def model(self, weights: Literal["ema", "raw"] = "ema") -> nn.Module:
        """Return the model itself, for a stage to pass on its weights or to set buffers between epochs.

        Without EMA, both are the same model. Buffers are averaged too, so set a lasting value in both models.
        """


class ImageTransform(Protocol):
    """A run's training transform: turns an image into a tensor [3, H, W], with random crops, flips and so on."""

    def __call__(self, image: Any, /) -> Tensor:
        """Return one view of the image."""

    def with_location(self) -> Callable[[Any], tuple[Tensor, Tensor]]:
        """Return the same transform with a second result: where in the image the view lies, float32 [4].

        A location is the view's left, top, right and bottom edge, as fractions of the image's width and height. That of
        a mirrored view has its left edge to the right of its right one. Views are the same, and so is what is drawn
        from the generators.

        Raises:
            PlbenchError: if the plan's RandAugment may rotate, shear or shift images.
        """


@dataclass(frozen=True)
class Stage:
    """A prerequisite run, shared by all runs that need it, and the output to keep of its model.

    Attributes:
        name: key of the artifact in `Task.artifacts`.
        method: name of the method that the stage trains, with the recipe's plan and the same seed.
        reduce: turns the stage's trained model into a tensor.
        params: parameters of that method that differ from its defaults.
    """

    name: str
    method: str
    reduce: Callable[[TrainView], Tensor]
    params: Mapping[str, Any] = field(default_factory=dict)


class LabelCount:
    """Number of labels that a method treated specially, over all steps of a training.

    In a stack, one count covers all heads; each head's own count knows its share.
    """

    def __init__(self) -> None:
        self._before = 0
        self._here: Tensor | None = None
        self._stack: tuple[LabelCount, int] | None = None

    def add(self, marked: Tensor) -> None:
        """Count the marks of a training step.

        Args:
            marked: bool [B, C], or [H, B, C] for a stacked method.
        """
        number = marked.sum(dim=(-2, -1))
        self._here = number if self._here is None else self._here + number

    def total(self) -> int:
        """Return the number of marks so far; synchronizes with the device."""
        if self._stack is None:
            here = self._here
        else:
            stacked, head = self._stack
            here = stacked._here
            if here is not None and here.ndim:  # marks shared by all heads are [1, B, C] or [B, C]
                here = here[head if len(here) > 1 else 0]
        return self._before + (0 if here is None else int(here))

    def restart(self, total: int) -> None:
        """Continue from the total saved in a checkpoint."""
        self._before, self._here, self._stack = total, None, None

    @classmethod
    def stacked(cls, members: Sequence[LabelCount]) -> LabelCount:
        """Return one count that adds to the totals of H heads from now on."""
        stack = cls()
        for head, member in enumerate(members):
            member.restart(member.total())
            member._stack = stack, head
        return stack


def stacked_value(values: Sequence[Any]) -> Any:
    """Return a value that all H heads share unchanged.

    Otherwise stack numbers to a tensor [H, 1, 1], vectors [C] to [H, 1, C].

    Raises:
        PlbenchError: if they differ and are neither numbers nor tensors.
    """
    first = values[0]
    if isinstance(first, Tensor):
        same = all(value is first or torch.equal(value, first) for value in values)
        return first if same else torch.stack(list(values)).reshape(len(values), 1, -1)
    if all(value == first for value in values):
        return first
    if not all(_is_number(value) for value in values):
        raise PlbenchError(f"{', '.join(sorted({str(value) for value in values}))} cannot be stacked")
    whole = all(isinstance(value, int) for value in values)
    return torch.tensor(values, dtype=torch.int64 if whole else torch.float64).reshape(-1, 1, 1)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class Method(ABC):
    """A method of learning from partial labels. Subclasses define a name and a loss.

    Attributes:
        marked: number of labels counted in `loss`; see `idle`.

    Class attributes:
        name: used on the command line. title: printed in tables. paper: reference. version: increase it when results
            change.
        batch_scope: "batch" if the loss of an image depends on the others of its batch. If that depends on a parameter,
            declare the parameter as `scope: BatchScope`, with exactly that type; its value is then used.
        needs: what the method requires: "negatives", "images", "feature_map", "sample_state", "embeddings". With
            "feature_map", the backbone passed to `build` returns maps [B, D, h, w], D its `num_features`; in the probe
            regime it passes cached maps through.
        learns: whether anything is trained. If not, no step is taken, and the model's inputs are the cosine
            similarities of the images to the classes, [B, C]; the method then needs "embeddings".
        tags: groups that the method belongs to, such as "paper".
        tuned_on: names of the datasets whose scores were used to choose default values; their boards say so.
        variants: further rows of the method in comparisons: parameters by variant name.
        stackable: whether the loss broadcasts over a leading dimension of heads (see `stack`), so that many parameters
            and seeds train in one pass over cached features.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str] = ""
    version: ClassVar[str] = "1"
    batch_scope: BatchScope = "sample"
    needs: ClassVar[frozenset[str]] = frozenset()
    learns: ClassVar[bool] = True
    tags: ClassVar[frozenset[str]] = frozenset()
    tuned_on: ClassVar[frozenset[str]] = frozenset()
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    stackable: ClassVar[bool] = False

    class Params(MethodParams):
        """A method without parameters."""

    def __init__(self, params: Any, task: Task) -> None:
        """Keep the task and the validated parameters, with values that depend on the task filled in."""
        self.params = params = params.completed(task)
        self.task = task
        self.marked = LabelCount()
        scope = type(params).model_fields.get("scope")
        if scope is not None and scope.annotation == BatchScope and params.scope == "batch":
            self.batch_scope = "batch"

    @classmethod
    def stack(cls, members: Sequence[Any]) -> Any:
        """Return one method that represents H of them: its logits are [H, B, C], its loss's total is [H].

        Labels are [H, B, C], or [1, B, C] if all heads see the same batch. Numeric parameters in which the members
        differ become tensors [H, 1, 1], float64 or, for integers, int64; other differing parameters are left out. If
        the constructor derives further values from parameters or artifacts, override this method and call it first.

        Args:
            members: methods of this class with equal `stack_key`.
        """
        stacked = copy.copy(members[0])
        values: dict[str, Any] = {}
        for name in cls.Params.model_fields:
            with contextlib.suppress(PlbenchError):  # differs and is not a number: `stack_key` left it out on purpose
                values[name] = stacked_value([getattr(member.params, name) for member in members])
        stacked.params = SimpleNamespace(**values)
        stacked.marked = LabelCount.stacked([member.marked for member in members])
        return stacked

    def stack_key(self) -> Hashable:
        """Return what must be equal across the members of a stack: by default the non-numeric parameters."""
        return tuple((name, value) for name, value in self.params if not _is_number(value))

    @classmethod
    def stages(cls, params: Any, task: Task) -> Sequence[Stage]:
        """Return the runs required first. Called before the method is built; `task` has no artifacts yet."""
        return ()

    def build(self, backbone: nn.Module, make_head: Callable[[], nn.Module]) -> nn.Module:
        """Return the model to train: by default the spec's backbone and head."""
        return nn.Sequential(backbone, make_head())

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return optimiser groups: dictionaries with "params" and, optionally, "lr_scale", a factor."""
        return [{"params": list(model.parameters())}]

    def transform(self, train_transform: ImageTransform) -> Callable[[Any], Any]:
        """Return the training transform of one image.

        For several views, the transform returns a tuple of tensors. `train_transform.with_location()` gives a view and
        where it lies in the image.
        """
        return train_transform

    def mixture(self, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Return the training images mixed into each training input, as rows and weights, both [B, K].

        By default, nothing is mixed. `batch.inputs` and `batch.views` of row i are the weighted sums over the images,
        or the features, of those rows; `batch.labels` and `batch.index` stay those of row i. `loss` decides on the
        labels of the mixture and may call this again with `batch.index` and `progress.epoch`. The result must depend
        only on row and epoch and be the same in every process. Inputs are not mixed in evaluation.

        Args:
            index: int64 [B] on the CPU, rows in train.
            epoch: counted from 0.

        Returns:
            Rows in train, int64 [B, K], and their weights, float [B, K].
        """
        return index[:, None], torch.ones(len(index), 1)

    def forward(self, model: nn.Module, batch: Batch, progress: Progress) -> Any:
        """Return the model's output on a batch, as `loss` and `scores` expect it: by default logits [B, C]."""
        return model(batch.inputs)

    @abstractmethod
    def loss(self, output: Any, batch: Batch, progress: Progress) -> Loss:
        """Return the loss of a batch. Tensors in `output` are float32 or wider, even under autocast."""

    def epoch_start(self, view: TrainView, progress: Progress) -> None:  # noqa: B027  (optional hook)
        """Run before each epoch, for instance for relabelling or curricula."""

    def epoch_end(self, view: TrainView, progress: Progress) -> None:  # noqa: B027  (optional hook)
        """Run after each epoch."""

    def scores(self, output: Any) -> Tensor:
        """Return scores [B, C] in [0, 1] of a model output: by default the sigmoid of its logits."""
        return torch.sigmoid(output)

    def diagnostics(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        """Return the method's assumptions about unknown labels, to compare with hidden labels: masks bool [B, C].

        Names are for instance "ignored" or "pseudo_positive". Only unknown labels may be marked.
        """
        return {}

    def idle(self) -> list[str]:
        """Return one sentence for each part of the method that had no effect in this training. Called once, at the end.

        Examples are a set of ignored labels that stayed empty, or a limit at which the method equals another. The
        record keeps the sentences as warnings. If parameters, task and state are not enough to tell, count in `loss`
        with `self.marked.add(mask)` and read `self.marked.total()` here: the count stays on the device, is saved in
        checkpoints and is separate for each head of a stack. Sentences must not contain figures that differ between
        processes.
        """
        return []

    def state_dict(self) -> dict[str, Any]:
        """Return per-sample or running state to save: tensors and plain values only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            PlbenchError: if there is state but the method keeps none.
        """
        if state:
            raise PlbenchError(f"method {self.name!r} has saved state but no load_state_dict to read it back")

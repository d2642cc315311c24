"""The contract of a method: its parameters with their ranges, what it may know, and what it gives.

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
    """Where tuning looks for a parameter: narrower than what is valid. A bound may depend on the task.

    Attributes:
        when: values of other parameters, by name, with one of which this one has an effect; else it is not searched.
    """

    low: float | Callable[[Task], float]
    high: float | Callable[[Task], float]
    log: bool = False
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def applies(self, params: BaseModel) -> bool:
        """Return whether the parameter has an effect beside these others."""
        return all(getattr(params, name) in values for name, values in self.when.items())

    def bounds(self, task: Task) -> tuple[float, float]:
        """Return lowest and highest value to try on this task."""
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
        when: values of other parameters with which this one has an effect, as in `when={"variant": ("ls",)}`.
        from_task: gives the value where the default, None, was left; it raises a `PlbenchError` where the task does
            not determine one. A run's spec holds the value that it gave.
        description: one line, with the paper's symbol.
        **valid: pydantic's constraints on what is valid at all (`ge`, `gt`, `le`, `lt`).

    Returns:
        A pydantic field.
    """
    extra = {"search": SearchRange(low, high, log, when or {}), "from_task": from_task}
    return Field(default, description=description, json_schema_extra=extra, **valid)  # type: ignore[arg-type]


class MethodParams(BaseModel):
    """Base of a method's `Params`: immutable, strict about unknown names and about non-finite numbers.

    Class attributes:
        alternatives: groups of parameters that say one thing in several ways, such as a threshold and a quantile. Who
            gives one of a group sets the others to None, whatever their defaults and what a protocol suggests.
    """

    alternatives: ClassVar[tuple[frozenset[str], ...]] = ()

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def left_to_task(self) -> dict[str, Callable[[Task], Any]]:
        """Return what determines each value that nobody gave and only the task knows (`tunable`'s `from_task`)."""
        declared = self._tunable().items()
        return {name: said["from_task"] for name, said in declared if said["from_task"] and getattr(self, name) is None}

    def completed(self, task: Task) -> Self:
        """Return the parameters with what only the task determines.

        Raises:
            PlbenchError: if the task does not determine a value that nobody gave.
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
        """Return what `tunable` was told of each parameter that it declared."""
        extras: dict[str, Any] = {name: info.json_schema_extra for name, info in cls.model_fields.items()}
        return {name: extra for name, extra in extras.items() if isinstance(extra, dict) and "search" in extra}


@dataclass(frozen=True)
class Progress:
    """Where a training stands. Steps and epochs count from 0."""

    step: int
    num_steps: int
    epoch: int
    num_epochs: int

    @property
    def fraction(self) -> float:
        """Share of the training that is done, in [0, 1)."""
        return self.step / self.num_steps


@dataclass(frozen=True)
class Task:
    """What a method may know about the job: nothing of the test set, and one number of the hidden truth.

    Attributes:
        expected_positives: mean number of positives of an image: what is published of the dataset, else that of its
            complete train labels, before a simulation hid any; None where labels are partial as they come.
        positives, negatives: [C] known positives and known negatives of each class in train.
        generator: seeded for this run and method; draw from no other.
        artifacts: what the method's stages produced, by stage name. Of a method that needs "embeddings" also
            "similarity", cosines [num_train, C] float32 of each train image to each class in a vision-language model,
            not to be written to; and, where the model has them, "logit_scale" and "logit_bias": it takes
            `scale cosine + bias` for a logit.
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
        labels: int8 [B, C]: +1 present, -1 verified absent, 0 unknown. Not to be written to.
        index: int64 [B]: the row in train, the same in every stage.
        views: further views of the images, where the method's transform makes more than one.
    """

    inputs: Tensor
    labels: Tensor
    index: Tensor
    views: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Loss:
    """A sum, and what it is a sum over. The engine divides by the weight of the whole global batch.

    Attributes:
        total: scalar tensor with a gradient; [H] of a stacked method.
        weight: number of images, or of known labels, that `total` sums over. A weight of 0 takes no step.
    """

    total: Tensor
    weight: Tensor | float

    @classmethod
    def of_images(cls, per_image: Tensor) -> Loss:
        """Return the usual reduction: the mean over images of a loss [B] (stacked: [H, B]), summed over classes."""
        return cls(per_image.sum(dim=-1), float(per_image.shape[-1]))


class TrainView(Protocol):
    """A trained (or training) model looking at the training images without augmentation."""

    labels: PartialLabels

    def predict(
        self, weights: Literal["ema", "raw"] = "ema", *, dropout: bool = False, passes: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Stream (row index [b] int64, scores [b, C] in [0, 1]) over the training part, in order.

        With `dropout`, dropout stays on; with `passes` > 1 the scores are the mean of that many passes.
        """

    def compute(
        self, function: Callable[[nn.Module, Tensor], Tensor], weights: Literal["ema", "raw"] = "ema"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Stream (row index [b] int64, what a function makes of model and inputs, float32 [b, …]), in order.

        For what scores do not show: `lambda model, inputs: model[0](inputs)` gives features of a default model.
        """

    def model(self, weights: Literal["ema", "raw"] = "ema") -> nn.Module:
        """Return the model itself: for a stage to hand on its weights, or to set buffers between epochs.

        Without a weight average both are one model. Buffers are averaged, too: what is to stay has to be set in both.
        """


@dataclass(frozen=True)
class Stage:
    """A prerequisite: a run of its own, shared by everyone who needs it, and what to keep of its model.

    Attributes:
        name: key of the artifact in `Task.artifacts`.
        method: name of the method that the stage trains, at the recipe's plan and the same seed.
        reduce: turns the stage's trained model into a tensor.
        params: parameters of that method where not its defaults.
    """

    name: str
    method: str
    reduce: Callable[[TrainView], Tensor]
    params: Mapping[str, Any] = field(default_factory=dict)


class LabelCount:
    """How many labels a method treated apart from others, over all steps of a training.

    In a stack one count stands for those of all heads; each head's own count knows where its share is.
    """

    def __init__(self) -> None:
        self._before = 0
        self._here: Tensor | None = None
        self._stack: tuple[LabelCount, int] | None = None

    def add(self, marked: Tensor) -> None:
        """Count the marks of a training step.

        Args:
            marked: bool [B, C], of a stacked method [H, B, C].
        """
        number = marked.sum(dim=(-2, -1))
        self._here = number if self._here is None else self._here + number

    def total(self) -> int:
        """Return the number of marks so far; waits for the device."""
        if self._stack is None:
            here = self._here
        else:
            stacked, head = self._stack
            here = stacked._here
            if here is not None and here.ndim:  # marks that all heads have in common come as [1, B, C], or [B, C]
                here = here[head if len(here) > 1 else 0]
        return self._before + (0 if here is None else int(here))

    def restart(self, total: int) -> None:
        """Go on from a total, as a checkpoint has it."""
        self._before, self._here, self._stack = total, None, None

    @classmethod
    def stacked(cls, members: Sequence[LabelCount]) -> LabelCount:
        """Return one count for those of H heads, whose totals it raises from now on."""
        stack = cls()
        for head, member in enumerate(members):
            member.restart(member.total())
            member._stack = stack, head
        return stack


def stacked_value(values: Sequence[Any]) -> Any:
    """Return a value that all H heads have in common as it is.

    Else numbers as a tensor [H, 1, 1], vectors [C] as [H, 1, C].

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
    """A way of learning from partial labels. Subclass, name it, give it a loss.

    Attributes:
        marked: labels that `loss` counted; see `idle`.

    Class attributes:
        name: as typed on the command line. title: as printed in tables. paper: reference. version: raise it when
        results change.
        batch_scope: "batch" where the loss of an image depends on the others of its batch. Where that is for a
            parameter to say, declare it as `scope: BatchScope`, with exactly that type: its value "batch" makes it so.
        needs: what the method cannot do without: "negatives", "images", "feature_map", "sample_state", "embeddings".
            With "feature_map", the backbone that `build` gets makes maps [B, D, h, w], D its `num_features`; in the
            probe regime it passes cached ones on.
        learns: whether anything is trained. Where not, no step is taken, and what the model sees in place of images or
            features are their cosines to the classes, [B, C]: the method needs "embeddings".
        tags: groups that it belongs to, such as "paper".
        tuned_on: names of datasets by whose scores default values were chosen: boards of these say so.
        variants: further rows that comparisons show of it: parameters by the variant's name.
        stackable: whether the loss broadcasts over a leading dimension of heads (see `stack`), so that many
            parameters and seeds train in one pass over cached features.
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
        """Keep the validated parameters, with what only the task determines, and the task."""
        self.params = params = params.completed(task)
        self.task = task
        self.marked = LabelCount()
        scope = type(params).model_fields.get("scope")
        if scope is not None and scope.annotation == BatchScope and params.scope == "batch":
            self.batch_scope = "batch"

    @classmethod
    def stack(cls, members: Sequence[Any]) -> Any:
        """Return one method that stands for H of them: its logits are [H, B, C], its loss's total is [H].

        Labels come as [H, B, C], or [1, B, C] where all heads see one batch. Parameters in which the members differ
        become tensors [H, 1, 1], float64 or, of whole numbers, int64; others that they differ in are left out. Override
        it, calling this first, where the constructor derives other values from parameters or artifacts.

        Args:
            members: methods of this class that agree in `stack_key`.
        """
        stacked = copy.copy(members[0])
        values: dict[str, Any] = {}
        for name in cls.Params.model_fields:
            with contextlib.suppress(PlbenchError):  # what differs and is no number, `stack_key` left out on purpose
                values[name] = stacked_value([getattr(member.params, name) for member in members])
        stacked.params = SimpleNamespace(**values)
        stacked.marked = LabelCount.stacked([member.marked for member in members])
        return stacked

    def stack_key(self) -> Hashable:
        """Return what members of a stack must agree in: by default the parameters that are no numbers."""
        return tuple((name, value) for name, value in self.params if not _is_number(value))

    @classmethod
    def stages(cls, params: Any, task: Task) -> Sequence[Stage]:
        """Return runs that must be there first. Called before the method is built; `task` has no artifacts yet."""
        return ()

    def build(self, backbone: nn.Module, make_head: Callable[[], nn.Module]) -> nn.Module:
        """Return the model to train: by default the backbone and the head that the spec asks for."""
        return nn.Sequential(backbone, make_head())

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return optimiser groups: dictionaries with "params" and, where it differs, "lr_scale", a factor."""
        return [{"params": list(model.parameters())}]

    def transform(self, train_transform: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return the training transform of one image; return one that gives a tuple of tensors for several views."""
        return train_transform

    def mixture(self, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Return of which training images each training input is the mean: rows and weights, both [B, K].

        By default each is its own image. `batch.inputs` and `batch.views` of row i are then the weighted sums over the
        images, or the features, of those rows; `batch.labels` and `batch.index` stay those of row i, and what labels
        the mean has is for `loss` to say, which may call this again with `batch.index` and `progress.epoch`. It has to
        follow from row and epoch alone, the same in every process. Evaluation mixes nothing.

        Args:
            index: int64 [B] on the CPU, rows in train.
            epoch: counted from 0.

        Returns:
            Rows int64 [B, K], any of train's, and their weights float [B, K].
        """
        return index[:, None], torch.ones(len(index), 1)

    def forward(self, model: nn.Module, batch: Batch, progress: Progress) -> Any:
        """Return the model's output on a batch, whatever `loss` and `scores` expect: by default logits [B, C]."""
        return model(batch.inputs)

    @abstractmethod
    def loss(self, output: Any, batch: Batch, progress: Progress) -> Loss:
        """Return the loss of a batch. Tensors in `output` are float32 or wider, whatever the autocast."""

    def epoch_start(self, view: TrainView, progress: Progress) -> None:  # noqa: B027  (optional hook)
        """Prepare an epoch, before it: relabelling, curricula."""

    def epoch_end(self, view: TrainView, progress: Progress) -> None:  # noqa: B027  (optional hook)
        """Conclude an epoch, after it."""

    def scores(self, output: Any) -> Tensor:
        """Return scores [B, C] in [0, 1] of a model output: by default the sigmoid of its logits."""
        return torch.sigmoid(output)

    def diagnostics(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        """Return what the method assumed about unknown labels, for comparison with a hidden truth: masks bool [B, C].

        Named for instance "ignored" or "pseudo_positive"; all within unknown cells.
        """
        return {}

    def idle(self) -> list[str]:
        """Say what parts of the method did nothing in this training, in a sentence each; called once, at its end.

        Such as a set of ignored labels that stayed empty, or a limit at which the method is another one. The record
        carries them as warnings. What parameters, task and state do not tell is counted in `loss`, with
        `self.marked.add(mask)`, and read here, with `self.marked.total()`: the count stays on the device, survives
        checkpoints, and is each head's own in a stack. Sentences hold no figures that differ between processes.
        """
        return []

    def state_dict(self) -> dict[str, Any]:
        """Return per-sample or running state to save: tensors and plain values only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            PlbenchError: if there is state but the method keeps none.
        """
        if state:
            raise PlbenchError(f"method {self.name!r} has saved state but no load_state_dict to read it back")

"""Batches that a loss must handle, and the reduction of a failing one to the smallest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn

from plbench.errors import PlbenchError
from plbench.method import Batch, Loss, Method, Progress
from plbench.progress import counted
from plbench.testing.findings import Mismatch, in_words
from plbench.testing.small_data import Size
from plbench.testing.small_job import SmallJob, Subject
from plbench.training.execution import widened
from plbench.training.hooks import Guarded

_MAX_SHOWN = 12  # values of an output

LABELS: dict[str, Callable[[Tensor], Tensor]] = {
    "mixed": lambda mixed: mixed,
    "all unknown": torch.zeros_like,
    "all present": torch.ones_like,
    "all absent": lambda mixed: -torch.ones_like(mixed),
    "a single row": lambda mixed: mixed[:1],
    "a class without known labels": lambda mixed: mixed * (torch.arange(mixed.shape[1]) > 0),
    "a row without known labels": lambda mixed: mixed * (torch.arange(len(mixed)) > 0)[:, None],
}
"""Functions from mixed labels int8 [B, C] to the labels of one kind of batch."""


@dataclass(frozen=True)
class Bench:
    """A method in training, on data with a given number of classes, ready for batches."""

    job: SmallJob

    @cached_property
    def method(self) -> Method:
        """The method in its first epoch."""
        method = self.job.method()
        if type(method).epoch_start is not Method.epoch_start:
            state = self.job.state()
            state.method = method
            Guarded(method).epoch_start(self.job.view(state), self.progress(0))
        return method

    @cached_property
    def backbone(self) -> nn.Module:
        """The backbone of the method's model; empty in the probe regime."""
        return self.job.backbone()

    @cached_property
    def model(self) -> nn.Module:
        """The model in its initial state, in training mode."""
        return self.job.model(self.method, self.backbone).train()

    def progress(self, step: int | None = None) -> Progress:
        """Return the progress at a step; by default in the last epoch."""
        size = self.job.size
        step = size.num_steps - 1 if step is None else step
        return Progress(step, size.num_steps, step // size.steps_per_epoch, size.epochs)

    def output(self, batch: Batch) -> Any:
        """Return the model's output on a batch."""
        return widened(Guarded(self.method).forward(self.model, batch, self.progress()))

    def loss(self, output: Any, batch: Batch) -> Loss:
        """Return the loss of a batch."""
        return Guarded(self.method).loss(output, batch, self.progress())


Benches = Callable[[int], Bench]
"""Function from a number of classes to its bench."""


def benches_of(subject: Subject, *, wide: bool = False) -> Benches:
    """Return the benches of a subject, each built on first use."""
    return cache(lambda classes: Bench(SmallJob(subject, Size(rows=16, classes=classes, batch_size=8), wide=wide)))


@dataclass(frozen=True)
class _Example:
    """A batch for a method.

    Attributes:
        kind: such as "all unknown". labels: int8 [B, C]. inputs: [B, …].
    """

    kind: str
    labels: Tensor
    inputs: Tensor

    @classmethod
    def of_kind(cls, kind: str, bench: Bench, scale: float) -> _Example:
        """Return an example on a bench with random inputs times a scale."""
        values = torch.tensor([1, -1, 0, 0], dtype=torch.int8)
        mixed = values[torch.randint(4, (8, bench.job.size.classes), generator=torch.Generator().manual_seed(1))]
        labels = LABELS[kind](mixed).to(torch.int8)
        _, inputs = next(iter(bench.job.inputs.ordered(8)))
        noise = torch.randn(inputs[: len(labels)].shape, generator=torch.Generator().manual_seed(2), dtype=inputs.dtype)
        return cls(kind if scale == 1 else f"{kind}, inputs times {scale:g}", labels, scale * noise)

    def batch(self) -> Batch:
        """Return the batch with copies of the tensors."""
        return Batch(self.inputs.clone(), self.labels.clone(), torch.arange(len(self.labels)))

    def without(self, axis: int, place: int) -> _Example:
        """Return the example without one image (axis 0) or one class (axis 1)."""
        rest = torch.tensor([other for other in range(self.labels.shape[axis]) if other != place])
        inputs = self.inputs[rest] if axis == 0 else self.inputs
        return _Example(self.kind, self.labels.index_select(axis, rest), inputs)

    def described(self, benches: Benches) -> str:
        """Return a description: size, labels and the model's output."""
        images, classes = self.labels.shape
        size = f"{counted(images, 'image')}, {counted(classes, 'class', 'classes')}"
        text = f"{size} ({self.kind}), labels {self.labels.tolist()}"
        try:
            output = benches(classes).output(self.batch())
        except Exception:  # this failure is itself the finding
            return text
        if isinstance(output, Tensor) and output.numel() <= _MAX_SHOWN:
            shown = [[float(f"{value:.4g}") for value in row] for row in output.detach().reshape(images, -1).tolist()]
            text += f", output {shown}"
        return text


Problem = Callable[[Bench, Batch], str | None]
"""What is wrong with a method on a batch, or None."""


def ask(
    problem: Problem,
    benches: Benches,
    *,
    expected: str = "",
    kinds: Iterable[str] = ("mixed",),
    scales: Iterable[float] = (1.0,),
) -> None:
    """Test a method on a batch of each kind and scale, and reduce the first failing batch.

    Raises:
        Mismatch: with the smallest batch that still shows a problem.
    """
    whole = benches(Size().classes)
    for example in (_Example.of_kind(kind, whole, scale) for scale in scales for kind in kinds):
        if _seen(problem, example, benches) is not None:
            smallest = _smallest(problem, example, benches)
            seen = _seen(problem, smallest, benches) or ""
            raise Mismatch(seen, expected=expected, smallest=smallest.described(benches))


def _seen(problem: Problem, example: _Example, benches: Benches) -> str | None:
    bench = benches(example.labels.shape[1])
    bench.model  # noqa: B018  (failures here are not due to the example)
    try:
        return problem(bench, example.batch())
    except Exception as error:  # torch raises various errors, for instance from backward
        return in_words(error)


def _smallest(problem: Problem, example: _Example, benches: Benches) -> _Example:
    """Remove rows, then classes, one by one, as long as the problem remains."""
    for axis in (0, 1):
        for place in range(example.labels.shape[axis] - 1, -1, -1):
            if example.labels.shape[axis] == 1:
                break
            smaller = example.without(axis, place)
            try:
                if _seen(problem, smaller, benches) is not None:
                    example = smaller
            except PlbenchError:  # the method cannot be this small, e.g. K exceeds the number of classes
                pass
    return example

"""Checks of single calls on one batch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from plbench.method import Batch, Method
from plbench.testing.examples import LABELS, Bench, ask, benches_of
from plbench.testing.findings import Mismatch, check
from plbench.testing.small_data import Size
from plbench.testing.small_job import SmallJob, Subject
from plbench.training.hooks import Guarded


@check(
    "finite loss",
    "a finite loss, a weight of at least 0 and finite gradients, whatever is known and however sure the model is",
)
def check_finite(subject: Subject) -> None:
    """Check loss and gradient on every kind of batch, at ordinary and at extreme inputs."""
    ask(_not_finite, benches_of(subject), kinds=LABELS, scales=(1.0, 1000.0))


def _not_finite(bench: Bench, batch: Batch) -> str | None:
    loss = bench.loss(bench.output(batch), batch)
    if not torch.isfinite(loss.total):
        return f"a total of {float(loss.total.detach())}"
    weight = float(loss.weight)
    if not np.isfinite(weight) or weight < 0:
        return f"a weight of {weight}"
    parameters = trained_parameters(bench)
    gradients = torch.autograd.grad(loss.total, list(parameters.values()), allow_unused=True)
    for name, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None and not torch.isfinite(gradient).all():
            return f"a gradient of {name} that is not finite, at a loss of {float(loss.total.detach()):.4g}"
    return None


def trained_parameters(bench: Bench) -> dict[str, Tensor]:
    """Return the parameters passed to the optimiser, by name."""
    groups = Guarded(bench.method).param_groups(bench.model)
    named = {id(parameter): name for name, parameter in bench.model.named_parameters()}
    parameters = [parameter for group in groups for parameter in group["params"] if parameter.requires_grad]
    return {named.get(id(p), f"parameter {number} of the method's own"): p for number, p in enumerate(parameters)}


@check("inputs untouched", "inputs, labels and outputs as they were, and diagnostics of unknown labels")
def check_untouched(subject: Subject) -> None:
    """Check that forward, loss, backward, scores and diagnostics do not modify inputs, labels and outputs."""
    ask(_touched, benches_of(subject))


def _touched(bench: Bench, batch: Batch) -> str | None:
    before = {name: getattr(batch, name).clone() for name in ("inputs", "labels", "index")}
    output = bench.output(batch)
    parts = [part for part in tree_flatten(output)[0] if isinstance(part, Tensor)]
    seen = [part.detach().clone() for part in parts]
    bench.loss(output, batch).total.backward()
    Guarded(bench.method).scores(output)
    masks = Guarded(bench.method).diagnostics(output, batch)
    for name, tensor in before.items():
        if not torch.equal(getattr(batch, name), tensor):
            return f"batch.{name} was written to; change a copy, such as batch.{name}.clone()"
    if not all(map(torch.equal, parts, seen)):
        return "the output of forward was written to; change a copy"
    for name, mask in masks.items():
        if mask.dtype != torch.bool or mask.shape != batch.labels.shape:
            return f"diagnostics {name!r} is {mask.dtype} {list(mask.shape)}, not bool {list(batch.labels.shape)}"
        if (mask & (batch.labels != 0)).any():
            return f"diagnostics {name!r} marks known labels; mark unknown ones only, with & (batch.labels == 0)"
    return None


@check("scores in [0, 1]", "a score in [0, 1] of each class for each image")
def check_scores(subject: Subject) -> None:
    """Check scores at ordinary and at extreme inputs."""
    ask(_wrong_scores, benches_of(subject), scales=(1.0, 1000.0))


def _wrong_scores(bench: Bench, batch: Batch) -> str | None:
    bench.model.eval()
    try:
        with torch.inference_mode():
            unlabelled = Batch(batch.inputs, torch.zeros_like(batch.labels), batch.index)  # as in a run's evaluation
            scores = Guarded(bench.method).scores(bench.output(unlabelled), tuple(batch.labels.shape))
    finally:
        bench.model.train()
    low, high = float(scores.min()), float(scores.max())
    if not torch.isfinite(scores).all():
        return "scores that are not finite"
    return None if low >= 0 and high <= 1 else f"scores from {low:.4g} to {high:.4g}; is a sigmoid missing?"


@check("global randomness untouched", "the caller's generators as they were")
def check_generators(subject: Subject) -> None:
    """Check that no hook uses global generators outside a scope that seeds and restores them."""
    job = SmallJob(subject, Size(rows=16, batch_size=8))
    job.artifacts, job.inputs  # noqa: B018  (computed by the engine)
    for hook, call in _hook_calls(job):
        if (drawn := drawn_from(call)) is not None:
            raise Mismatch(
                f"its {hook} drew from the global generator of {drawn}; draw from self.task.generator, as in "
                "torch.rand(n, generator=self.task.generator)",
                smallest="one call, on 16 images of 6 classes",
            )


def _hook_calls(job: SmallJob) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the hooks in the order of a run.

    Random numbers in `build` and `forward` (initial weights, dropout) are seeded by the engine.
    """
    made: list[Method] = []
    yield "constructor", lambda: made.append(job.method())
    method = Guarded(made[0])
    state = job.state()
    state.method = made[0]
    start, view = Bench(job).progress(0), job.view(state)
    yield "epoch_start", lambda: method.epoch_start(view, start)
    batch = next(iter(job.inputs.shuffled(8, 0)))
    output = method.forward(state.model.eval(), batch, start)
    yield "loss", lambda: method.loss(output, batch, start)
    yield "scores", lambda: method.scores(output)
    yield "diagnostics", lambda: method.diagnostics(output, batch)
    yield "epoch_end", lambda: method.epoch_end(view, start)
    yield "state_dict", method.state_dict


def drawn_from(call: Callable[[], Any]) -> str | None:
    """Call a function, and return the name of the global generator that it used, if any."""
    before = _global_states()
    call()
    after = _global_states()
    return next((name for name, state in before.items() if not np.array_equal(state, after[name])), None)


def _global_states() -> dict[str, np.ndarray]:
    _, keys, position, *_ = np.random.get_state()  # noqa: NPY002  (only inspected)
    return {
        "Python's random": np.array(random.getstate()[1], dtype=np.float64),
        "numpy": np.array([*keys, position], dtype=np.float64),
        "torch": torch.get_rng_state().numpy(),
    }

"""Cost of a method relative to cross-entropy: time per epoch on the same small data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from plbench.errors import PlbenchError
from plbench.losses import partial_asymmetric_loss
from plbench.method import Batch, Loss, Method, Progress
from plbench.progress import Reporter
from plbench.runs.registry import Registry
from plbench.testing.small_data import Size
from plbench.testing.small_job import SmallJob, Subject

_SIZE = {"probe": Size(rows=2048, classes=80, batch_size=256, epochs=3), "finetune": Size(192, 80, 64, 3)}
_REPEATS = 3


class CrossEntropy(Method):
    """The reference: unknown labels are negatives."""

    name = "cross-entropy"
    title = "CE"

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Return the cross-entropy."""
        return Loss.of_images(
            partial_asymmetric_loss(output, batch.labels, gamma_pos=0.0, gamma_neg=0.0, gamma_unann=0.0)
        )


def add_measured(rows: list[dict[str, Any]], registry: Registry, reporter: Reporter) -> None:
    """Add to each row's cost the time per epoch of the method's training, relative to cross-entropy.

    On small features and one linear layer, methods look more expensive than they are for a large network.
    """
    torch.set_num_threads(1)
    with reporter.task("Measuring") as report:
        for number, row in enumerate(rows, 1):
            if row["cost"] is not None:
                row["cost"] += _measured(row["name"], registry)
            report(number, len(rows))


def _measured(name: str, registry: Registry) -> str:
    subject = Subject(registry.method(name), {}, registry)
    if not subject.kind.learns:
        return ""
    size = _SIZE[subject.regime]
    yardstick = Subject(CrossEntropy, {}, registry, on_images=subject.regime == "finetune")
    try:
        jobs = [SmallJob(which, size) for which in (subject, yardstick)]
        # the first epoch is a warm-up
        trials = [[min(row["seconds"] for row in job.trained().history[1:]) for job in jobs] for _ in range(_REPEATS)]
        times = [min(of_job) for of_job in zip(*trials, strict=True)]
    except PlbenchError as error:
        return f"; not measured: {error}"
    return f", an epoch {times[0] / times[1]:.1f} x CE"

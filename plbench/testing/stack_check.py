"""Check that a stackable method computes the same loss for each head in a stack as alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from plbench.errors import PluginError
from plbench.method import Batch
from plbench.runs.plan.resolved import validate_params
from plbench.testing.examples import Bench, ask, benches_of
from plbench.testing.findings import NotApplicable, check
from plbench.testing.small_job import Subject
from plbench.training import hooks
from plbench.training.stacked.heads import is_stackable

_CLOSE = 1e-4


@check("stacked as alone", "the loss and gradient of each head that it has alone")
def check_stack(subject: Subject) -> None:
    """Compare three heads with different logits and parameters: one stacked loss against three separate ones."""
    if not is_stackable(subject.kind):
        raise NotApplicable("the method does not say that it can be stacked")
    ask(_differs, benches_of(subject), kinds=("mixed", "all unknown"))


def _differs(bench: Bench, batch: Batch) -> str | None:
    members = _members(bench)
    with torch.no_grad():
        logits = torch.stack([scale * bench.output(batch) for scale in (1.0, -0.5, 2.0)]).requires_grad_()
    stacked = type(members[0]).stack(members)
    whole = Batch(batch.inputs, batch.labels[None], batch.index)
    try:
        loss = hooks.Guarded(stacked).loss(logits, whole, bench.progress(), shape=(len(members),))
    except PluginError as error:
        return (
            f"that stacked, where parameters in which heads differ are tensors [H, 1, 1], {error.what}; let the loss "
            "take those, or say stackable = False"
        )
    (gradient,) = torch.autograd.grad(loss.total.sum(), logits)
    weights = torch.as_tensor(loss.weight, dtype=torch.float64).expand(len(members))
    for head, member in enumerate(members):
        alone = logits[head].detach().requires_grad_()
        own = hooks.Guarded(member).loss(alone, batch, bench.progress())
        (own_gradient,) = torch.autograd.grad(own.total, alone)
        pairs: dict[str, tuple[Any, Any]] = {
            "a total": (loss.total[head], own.total),
            "a weight": (weights[head], torch.as_tensor(own.weight)),
            "a gradient": (gradient[head], own_gradient),
        }
        for what, (here, there) in pairs.items():
            if not torch.allclose(here.double(), there.double(), rtol=_CLOSE, atol=_CLOSE):
                return (
                    f"{what} of head {head + 1} of {len(members)} that is {_shown(here)} stacked and {_shown(there)} "
                    "alone; does the loss broadcast over a leading dimension [H], with parameters [H, 1, 1]?"
                )
    return None


def _members(bench: Bench) -> list[Any]:
    """Return three stackable methods, if possible with both ends and the middle of each search range."""
    job, kind = bench.job, bench.job.subject.kind
    task = job.task()
    chosen: list[Any] = []
    for share in (0.0, 0.5, 1.0):
        values = dict(job.subject.values)
        for name, search in kind.Params.search_space().items():
            if search.applies(job.params):
                low, high = search.bounds(task)
                value = low + share * (high - low)
                values[name] = round(value) if kind.Params.is_whole(name) else value
        member = hooks.construct(kind, validate_params(kind, values), job.task(job.artifacts))
        if not chosen or member.stack_key() == chosen[0].stack_key():
            chosen.append(member)
    return [*chosen, *[chosen[0]] * (3 - len(chosen))]


def _shown(value: Tensor) -> str:
    return f"{float(value.detach().double().sum()):.6g}"

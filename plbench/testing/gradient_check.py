"""Check that the gradient of a loss is correct and reaches the parameters."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from plbench.method import Batch
from plbench.randomness import seeded
from plbench.testing.constants import Constants, PathChanged
from plbench.testing.examples import Bench, ask, benches_of
from plbench.testing.findings import NotApplicable, check
from plbench.testing.loss_checks import trained_parameters
from plbench.testing.small_job import Subject
from plbench.training.hooks import Guarded

_STEP, _TOLERANCE = 1e-6, 1e-5
_NARROW_STEP, _NARROW_TOLERANCE = 1e-3, 2e-2  # if the loss is computed in float32
_MAX_DIRECTIONS = 6


@check("gradient", "the slope that differences of the loss have, in float64")
def check_gradient(subject: Subject) -> None:
    """Compare with finite differences in float64, in random directions, with detached values held constant."""
    if not subject.kind.learns:
        raise NotApplicable("nothing is trained")
    benches = benches_of(subject, wide=True)
    ask(_unreached, benches, expected="a gradient for all that param_groups hands out")
    ask(_wrong_gradient, benches, kinds=("mixed", "all present", "a single row"))


def _unreached(bench: Bench, batch: Batch) -> str | None:
    loss = bench.loss(bench.output(batch), batch)
    parameters = trained_parameters(bench)
    gradients = torch.autograd.grad(loss.total, list(parameters.values()), allow_unused=True)
    pairs = list(zip(parameters.items(), gradients, strict=True))
    of_backbone = {id(parameter) for parameter in bench.backbone.parameters()}  # a method may use only some of them
    missing = [name for (name, p), gradient in pairs if gradient is None and id(p) not in of_backbone]
    if missing:
        return f"no gradient for {', '.join(missing[:3])}; leave it out of param_groups, or use it in forward"
    if not any(bool(gradient.abs().sum() > 0) for gradient in gradients if gradient is not None):
        return "a gradient of 0 everywhere"
    return None


def _wrong_gradient(bench: Bench, batch: Batch) -> str | None:
    method, parameters = bench.method, trained_parameters(bench)
    chance, state = method.task.generator.get_state(), copy.deepcopy(method.state_dict())

    def total(context: AbstractContextManager[None], moved: dict[str, Tensor], step: float) -> Tensor:
        """Return the loss at shifted parameters, with the method's state and generator restored."""
        method.task.generator.set_state(chance)
        Guarded(method).load_state_dict(copy.deepcopy(state))  # may hold parameters, so they are shifted afterwards
        _move(parameters, moved, step)
        try:
            with context, seeded(0):
                return bench.loss(bench.output(batch), batch).total
        finally:
            _move(parameters, moved, -step)

    own = total(nullcontext(), {}, 0.0)
    gradients = torch.autograd.grad(own, list(parameters.values()), allow_unused=True)
    constants = Constants()
    plain = float(total(constants.noting(), {}, 0.0).detach())
    if abs(plain - float(own.detach())) > 1e-6 * (1 + abs(plain)):
        return f"a loss of {float(own.detach()):.8g} where its function's `plain` gives {plain:.8g}"
    step, tolerance = (_NARROW_STEP, _NARROW_TOLERANCE) if constants.is_narrowed else (_STEP, _TOLERANCE)
    number = min(len(parameters), _MAX_DIRECTIONS)
    for part in range(number):  # each parameter alone if there are few, otherwise in groups
        names = list(parameters)[len(parameters) * part // number : len(parameters) * (part + 1) // number]
        directions = _directions({name: parameters[name] for name in names})
        slope = sum(
            float((gradient * directions[name]).sum())
            for name, gradient in zip(parameters, gradients, strict=True)
            if name in directions and gradient is not None
        )
        try:
            above, below = (float(total(constants.putting_back(), directions, s * step).detach()) for s in (1, -1))
        except PathChanged:
            return "the loss calls other functions at the second time than at the first, on the same batch"
        difference = (above - below) / (2 * step)
        if abs(slope - difference) > tolerance * (1 + abs(slope) + abs(plain)):
            where = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
            return (
                f"a slope of {slope:.6g} by backward and of {difference:.6g} by differences, along one direction of "
                f"{where}; is a part detached that should not be, or a backward pass wrong?"
            )
    return None


@torch.no_grad()
def _move(parameters: dict[str, Tensor], directions: dict[str, Tensor], step: float) -> None:
    for name, direction in directions.items():
        parameters[name].add_(direction, alpha=step)


def _directions(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a random direction of length 1 over all parameters."""
    chance = torch.Generator().manual_seed(5)
    raw = {name: torch.randn(p.shape, generator=chance, dtype=torch.float64) for name, p in parameters.items()}
    length = torch.stack([direction.square().sum() for direction in raw.values()]).sum().sqrt()
    return {name: (direction / length).to(parameters[name]) for name, direction in raw.items()}

"""Checks of whole trainings on small data."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path

from plbench.method import Progress
from plbench.testing.findings import Mismatch, NotApplicable, check
from plbench.testing.pair import Request, outcome, shared_pair
from plbench.testing.small_data import SIZE, Size
from plbench.testing.small_job import SmallJob, Subject
from plbench.training.hooks import Guarded
from plbench.training.state import ControlRequest, FitState

_CLOSE = 1e-8
_LADDER = (Size(2, 2, 2, 1), Size(2, 6, 2, 1), Size(4, 6, 2, 1), Size(4, 6, 2, 2), Size(8, 6, 4, 2), Size(16, 6, 8, 2))
"""Sizes of data in ascending order, to find the smallest that fails."""


def _ask(trouble: Callable[[Size], str | None], size: Size = SIZE) -> None:
    """Look for problems in trainings of a given size; if there are any, find the smallest size that has them."""
    seen = trouble(size)
    if seen is None:
        return
    for smaller in _LADDER:
        try:
            smaller_seen = trouble(smaller)
        except Exception:  # the method does not work at this size, or fails differently
            continue
        if smaller_seen is not None:
            seen, size = smaller_seen, smaller
            break
    raise Mismatch(seen, smallest=str(size))


@check("loss falls", "a loss that has fallen by a tenth at least after 52 steps")
def check_falls(subject: Subject) -> None:
    """Check that training reduces the loss, measured with the method's final labels, estimates and weights."""
    _skip_untrained(subject)
    size = Size(rows=64, batch_size=16, epochs=13)
    job = SmallJob(subject, size)
    state = job.state()
    start = copy.deepcopy(state.model)
    job.go_on(state)
    method = Guarded(state.method)
    method.idle()  # called at the end of a run, where a failure would lose the whole run
    progress = Progress(size.num_steps - 1, size.num_steps, size.epochs - 1, size.epochs)
    batch = next(iter(job.inputs.shuffled(size.rows, epoch=0)))
    means = []
    for model in (start, state.model):
        loss = method.loss(state.method.forward(model, batch, progress), batch, progress)
        means.append(float(loss.total.detach()) / max(float(loss.weight), 1.0))
    before, after = means
    if not after < before - 0.1 * abs(before):
        raise Mismatch(f"{before:.4g} before, {after:.4g} after", smallest=str(size))


@check("same seed, same bits", "the same weights from the same seed")
def check_same_bits(subject: Subject) -> None:
    """Check that two trainings with the same seed are bit-identical, and one with another seed differs."""

    def trouble(size: Size) -> str | None:
        first, second = (SmallJob(subject, size).trained() for _ in range(2))
        return _difference(first, second, "a second training of the same seed")

    _ask(trouble)
    if not subject.kind.learns:
        return  # weights do not depend on the seed
    first, other = (SmallJob(subject, SIZE, seed=seed).trained() for seed in (0, 1))
    if _difference(first, other, "") is None:
        seen = "the same weights for seeds 0 and 1"
        raise Mismatch(seen, expected="another seed gives other weights", smallest=str(SIZE))


@check("blind to hidden truth", "the same weights, whatever the truth behind unknown labels")
def check_other_truth(subject: Subject) -> None:
    """Check that training does not depend on hidden labels: the same partial labels from two opposite sets of them."""
    one, other = (SmallJob(subject, SIZE, other_truth=is_other) for is_other in (False, True))
    assert one.protocol_data.partial_labels.fingerprint() == other.protocol_data.partial_labels.fingerprint()
    assert one.dataset.fingerprint() != other.dataset.fingerprint()
    seen = _difference(one.trained(), other.trained(), "a training on the same labels of another truth")
    if seen is not None:
        raise Mismatch(seen, smallest=str(SIZE))


@check("resume", "the weights of an uninterrupted training, whichever step it was saved after")
def check_resume(subject: Subject) -> None:
    """Check that resuming from a checkpoint of any step equals an uninterrupted training."""

    def trouble(size: Size) -> str | None:
        job = SmallJob(subject, size)
        saved: list[tuple[int, bytes]] = []

        def keep(state: FitState) -> None:
            file = io.BytesIO()
            torch.save({**state.state_dict(), "generators": state.generators}, file)
            saved.append((state.step, file.getvalue()))

        state = job.state()
        job.go_on(
            state, after_epoch=keep, requested=lambda: ControlRequest(save=True), handle=lambda request: keep(state)
        )
        for step, content in saved:
            resumed = job.state()
            values = torch.load(io.BytesIO(content), weights_only=True)
            resumed.generators = values.pop("generators")
            resumed.load_state_dict(values)
            job.go_on(resumed)
            seen = _difference(state, resumed, f"a training that was saved after step {step} and went on")
            if seen is not None:
                return f"{seen}; is all that the method remembers in state_dict and load_state_dict?"
        return None

    _ask(trouble)


@check("two processes equal one", "the weights that one process comes to, to 1e-8 in float64")
def check_two_processes(subject: Subject) -> None:
    """Compare training in one process and in two sharing each batch; the last batch has one image."""

    def trouble(size: Size) -> str | None:
        job = SmallJob(subject, size, wide=True)
        request = Request.of(job)
        one, two = outcome(job.trained()), shared_pair().train(request)
        for part in ("weights", "averaged weights", "method state"):
            theirs = [_flat(other[part]) for other in two]
            for name, value in _flat(one[part]).items():
                for rank, values in enumerate(theirs):
                    largest = _distance(value, values.get(name))
                    if largest > _CLOSE:
                        return (
                            f"{part} {name} of process {rank} differ by up to {largest:.3g}; does the loss of an image "
                            'depend on the others of its batch (then say batch_scope = "batch"), or is something '
                            "remembered of one process's images alone?"
                        )
        return None

    _ask(trouble, Size(rows=33))


def _flat(state: Any) -> dict[str, Any]:
    return {keystr(path): value for path, value in tree_flatten_with_path(state)[0]}


def _distance(value: Any, other: Any) -> float:
    """Return the largest difference of two tensors, relative to 1 or their magnitude; for others, 0 or infinity."""
    if not isinstance(value, Tensor) or not isinstance(other, Tensor):
        return 0.0 if value == other else math.inf
    if value.shape != other.shape:
        return math.inf
    if value.numel() == 0:
        return 0.0
    return float(((value.double() - other.double()).abs() / value.double().abs().clamp(min=1.0)).max())


@check("bfloat16", "finite losses with a forward pass in bfloat16")
def check_half_precision(subject: Subject) -> None:
    """Check training with a forward pass in bfloat16."""
    _skip_untrained(subject)
    state, plain = (SmallJob(subject, SIZE, precision=precision).trained() for precision in ("bfloat16", "float32"))
    _refuse_infinite(state, SIZE)
    if state.history[0]["loss"] == plain.history[0]["loss"]:
        seen = "the very loss of float32; does forward leave autocast?"
        raise Mismatch(seen, expected="a forward pass in bfloat16", smallest=str(SIZE))


@check("trains on images too", "finite losses in the finetune regime, and scores in [0, 1]")
def check_on_images(subject: Subject) -> None:
    """Check the image regime: a whole network with a backbone."""
    if subject.regime == "finetune":
        raise NotApplicable("the method trains on images anyway")
    job = SmallJob(replace(subject, on_images=True), Size(rows=24, batch_size=8, epochs=2))
    state = job.trained()
    _refuse_infinite(state, job.size)
    _refuse_outside(job.scores(state), job.size)


@check("scores of a run", "scores [N, C] in [0, 1] that differ between images")
def check_scored(subject: Subject) -> None:
    """Check scores of a trained model on the training part, as in a run's evaluation."""
    job = SmallJob(subject, SIZE)
    scores = job.scores(job.trained())
    if scores.shape != (SIZE.rows, SIZE.classes):
        raise Mismatch(f"scores {list(scores.shape)}", smallest=str(SIZE))
    _refuse_outside(scores, SIZE)
    if float(scores.std(dim=0).max()) == 0:
        raise Mismatch("the same scores for every image", smallest=str(SIZE))


def _skip_untrained(subject: Subject) -> None:
    if not subject.kind.learns:
        raise NotApplicable("nothing is trained")


def _refuse_infinite(state: FitState, size: Size) -> None:
    losses = [row["loss"] for row in state.history]
    if not all(map(math.isfinite, losses)):
        raise Mismatch(f"losses of {losses}", smallest=str(size))


def _refuse_outside(scores: Tensor, size: Size) -> None:
    low, high = float(scores.min()), float(scores.max())
    if low < 0 or high > 1:
        raise Mismatch(f"scores from {low:.4g} to {high:.4g}", smallest=str(size))


def _difference(first: FitState, second: FitState, what: str) -> str | None:
    """Return a message on the first tensor in which two trainings differ."""
    for (name, left), (_, right) in zip(_tensors(first), _tensors(second), strict=True):
        if left.shape != right.shape or not torch.equal(left, right):
            largest = f" by up to {float((left - right).abs().max()):.3g}" if left.shape == right.shape else ""
            return f"{what} differs in {name}{largest}"
    return None


def _tensors(state: FitState) -> Iterator[tuple[str, Tensor]]:
    for weights in ("raw", "ema") if state.ema is not None else ("raw",):
        for name, value in state.averaged(weights).state_dict().items():
            yield f"{weights} weights {name}", value.double()

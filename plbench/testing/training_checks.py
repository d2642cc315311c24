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
from plbench.testing.findings import Check, Mismatch, NotApplicable
from plbench.testing.pair import Request, outcome, shared_pair
from plbench.testing.small_data import SIZE, Size
from plbench.testing.small_job import SmallJob, Subject
from plbench.training.hooks import Guarded
from plbench.training.state import ControlRequest, FitState

_LADDER = (Size(2, 2, 2, 1), Size(2, 6, 2, 1), Size(4, 6, 2, 1), Size(4, 6, 2, 2), Size(8, 6, 4, 2), Size(16, 6, 8, 2))
"""From the smallest job on: which of them is the first to fail?"""

Trouble = Callable[[Size], str | None]
"""What is wrong with trainings of a size, or None."""


def ask_of_jobs(trouble: Trouble, expected: str, size: Size = SIZE, ladder: tuple[Size, ...] = _LADDER) -> None:
    """Look at a training, and for the smallest that fails where one does.

    Raises:
        Mismatch: with that.
    """
    seen = trouble(size)
    if seen is None:
        return
    for smaller in ladder:
        try:
            smaller_seen = trouble(smaller)
        except Exception:  # the method cannot be had so small, or fails in another way there
            continue
        if smaller_seen is not None:
            raise Mismatch(expected, smaller_seen, str(smaller))
    raise Mismatch(expected, seen, str(size))


def check_falls(subject: Subject) -> None:
    """Check the loss before and after, by the labels, estimates and weights that the method ends with."""
    size = Size(rows=64, batch_size=16, epochs=13)

    def trouble(size: Size) -> str | None:
        job = SmallJob(subject, size)
        state = job.state()
        start = copy.deepcopy(state.model)
        job.go_on(state)
        Guarded(state.method).idle()  # which a run asks at its end, when failing would cost all of it
        before, after = (_loss_of_all(job, state, model) for model in (start, state.model))
        return None if after < before - 0.1 * abs(before) else f"{before:.4g} before, {after:.4g} after"

    ask_of_jobs(trouble, FALLS.expected, size, ladder=())


def _loss_of_all(job: SmallJob, state: FitState, model: torch.nn.Module) -> float:
    """Return the loss per image of all images, some at a time where the method can do so, in the last step."""
    size = job.size
    progress = Progress(size.num_steps - 1, size.num_steps, size.epochs - 1, size.epochs)
    batch = next(iter(job.inputs.shuffled(size.rows, epoch=0)))
    loss = Guarded(state.method).loss(state.method.forward(model, batch, progress), batch, progress)
    return float(loss.total.detach()) / max(float(loss.weight), 1.0)


def check_same_bits(subject: Subject) -> None:
    """Check two trainings of one seed, and one of another."""

    def trouble(size: Size) -> str | None:
        first, second = (SmallJob(subject, size).trained() for _ in range(2))
        return _difference(first, second, "a second training of the same seed")

    ask_of_jobs(trouble, SAME_BITS.expected)
    first, other = (SmallJob(subject, SIZE, seed=seed).trained() for seed in (0, 1))
    if _difference(first, other, "") is None:
        raise Mismatch("another seed gives other weights", "the same weights for seeds 0 and 1", str(SIZE))


def check_other_truth(subject: Subject) -> None:
    """Check the same partial labels, drawn from two truths that are opposite wherever labels are hidden."""

    def trouble(size: Size) -> str | None:
        jobs = [SmallJob(subject, size, other_truth=other) for other in (False, True)]
        assert jobs[0].protocol_data.partial_labels.fingerprint() == jobs[1].protocol_data.partial_labels.fingerprint()
        assert jobs[0].dataset.fingerprint() != jobs[1].dataset.fingerprint()
        return _difference(jobs[0].trained(), jobs[1].trained(), "a training on the same labels of another truth")

    ask_of_jobs(trouble, OTHER_TRUTH.expected, ladder=())


def check_resume(subject: Subject) -> None:
    """Go on from a checkpoint of every step, as safely read back from bytes, and compare with who never stopped."""

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

    ask_of_jobs(trouble, RESUME.expected)


def check_two_processes(subject: Subject) -> None:
    """Check the same training by one process and by two that share each batch, in float64.

    The last batch is one image.
    """
    pair = shared_pair()

    def trouble(size: Size) -> str | None:
        job = SmallJob(subject, size, wide=True)
        request = Request.of(job)
        one, two = outcome(job.trained()), (pair if pair.is_alive else shared_pair()).train(request)
        for part in ("weights", "averaged weights", "method state"):
            for name, value in _flat(one[part]):
                for rank, theirs in enumerate(two):
                    largest = _distance(value, dict(_flat(theirs[part])).get(name))
                    if largest > _CLOSE:
                        return (
                            f"{part} {name} of process {rank} differ by up to {largest:.3g}; does the loss of an image "
                            'depend on the others of its batch (then say batch_scope = "batch"), or is something '
                            "remembered of one process's images alone?"
                        )
        return None

    ask_of_jobs(trouble, TWO_PROCESSES.expected, Size(rows=33))


_CLOSE = 1e-8


def _flat(state: Any) -> Iterator[tuple[str, Any]]:
    for path, value in tree_flatten_with_path(state)[0]:
        yield keystr(path), value


def _distance(value: Any, other: Any) -> float:
    """Return largest difference of two tensors, relative to 1 or to their size; of anything else, 0 or infinite."""
    if not isinstance(value, Tensor) or not isinstance(other, Tensor):
        return 0.0 if value == other else math.inf
    if value.shape != other.shape:
        return math.inf
    if value.numel() == 0:
        return 0.0
    return float(((value.double() - other.double()).abs() / value.double().abs().clamp(min=1.0)).max())


def check_half_precision(subject: Subject) -> None:
    """Check a training whose forward pass is in bfloat16."""
    state = SmallJob(subject, SIZE, precision="bfloat16").trained()
    losses = [row["loss"] for row in state.history]
    if not all(math.isfinite(loss) for loss in losses):
        raise Mismatch(HALF_PRECISION.expected, f"losses of {losses}", str(SIZE))
    plain = SmallJob(subject, SIZE).trained()
    if state.history[0]["loss"] == plain.history[0]["loss"]:
        raise Mismatch(
            "a forward pass in bfloat16", "the very loss of float32; does forward leave autocast?", str(SIZE)
        )


def check_scored(subject: Subject) -> None:
    """Check scores of a trained model over the training part, as a run evaluates."""
    job = SmallJob(subject, SIZE)
    scores = job.scores(job.trained())
    if scores.shape != (SIZE.rows, SIZE.classes):
        raise Mismatch(SCORED.expected, f"scores {list(scores.shape)}", str(SIZE))
    if float(scores.min()) < 0 or float(scores.max()) > 1:
        raise Mismatch(
            SCORED.expected, f"scores from {float(scores.min()):.4g} to {float(scores.max()):.4g}", str(SIZE)
        )
    if float(scores.std(dim=0).max()) == 0:
        raise Mismatch(SCORED.expected, "the same scores for every image", str(SIZE))


def check_images(subject: Subject) -> None:
    """Check the other regime: a whole network, whose backbone the method's model is built on."""
    if subject.regime == "finetune":
        raise NotApplicable("the method trains on images anyway")
    job = SmallJob(replace(subject, on_images=True), Size(rows=24, batch_size=8, epochs=2))
    state = job.trained()
    losses = [row["loss"] for row in state.history]
    if not all(math.isfinite(loss) for loss in losses):
        raise Mismatch(ON_IMAGES.expected, f"losses of {losses}", str(job.size))
    scores = job.scores(state)
    if float(scores.min()) < 0 or float(scores.max()) > 1:
        raise Mismatch(ON_IMAGES.expected, f"scores from {float(scores.min()):.4g} to {float(scores.max()):.4g}")


def _difference(first: FitState, second: FitState, what: str) -> str | None:
    """Return the first tensor in which two trainings differ."""
    for (name, left), (_, right) in zip(_tensors(first), _tensors(second), strict=True):
        if left.shape != right.shape or not torch.equal(left, right):
            largest = f" by up to {float((left - right).abs().max()):.3g}" if left.shape == right.shape else ""
            return f"{what} differs in {name}{largest}"
    return None


def _tensors(state: FitState) -> Iterator[tuple[str, Tensor]]:
    for weights in ("raw", "ema") if state.ema is not None else ("raw",):
        for name, value in state.averaged(weights).state_dict().items():
            yield f"{weights} weights {name}", value.double()


FALLS = Check("loss falls", "a loss that has fallen by a tenth at least after 52 steps", check_falls)
SAME_BITS = Check("same seed, same bits", "the same weights from the same seed", check_same_bits)
OTHER_TRUTH = Check(
    "blind to hidden truth", "the same weights, whatever the truth behind unknown labels", check_other_truth
)
RESUME = Check("resume", "the weights of an uninterrupted training, whichever step it was saved after", check_resume)
TWO_PROCESSES = Check(
    "two processes equal one", "the weights that one process comes to, to 1e-8 in float64", check_two_processes
)
HALF_PRECISION = Check("bfloat16", "finite losses with a forward pass in bfloat16", check_half_precision)
ON_IMAGES = Check("trains on images too", "finite losses in the finetune regime, and scores in [0, 1]", check_images)
SCORED = Check("scores of a run", "scores [N, C] in [0, 1] that differ between images", check_scored)

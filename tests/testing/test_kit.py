"""The checks of methods can fail: each is shown a method with the very fault that it looks for."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

from plbench.api import Batch, Loss, Method, MethodParams, Progress, tunable
from plbench.losses import partial_asymmetric_loss
from plbench.progress import Reporter
from plbench.runs.registry import Registry
from plbench.testing import CheckFailed, check_method
from plbench.testing.constants import Constants
from plbench.testing.cost import add_measured
from plbench.testing.gradient_check import check_gradient
from plbench.testing.pair import shared_pair
from plbench.testing.small_job import Subject


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    shared_pair()
    yield
    torch.set_num_threads(before)


def cross_entropy(output: Tensor, labels: Tensor) -> Tensor:
    return partial_asymmetric_loss(output, labels, gamma_pos=0.0, gamma_neg=0.0, gamma_unann=0.0)


class Sound(Method):
    """Cross-entropy, and nothing wrong with it."""

    name = "sound"
    title = "Sound"

    def loss(self, output: Any, batch: Batch, progress: Progress) -> Loss:
        return Loss.of_images(cross_entropy(output, batch.labels))


class NotANumber(Sound):
    """log of a sigmoid that can be 0."""

    def loss(self, output: Any, batch: Batch, progress: Progress) -> Loss:
        probability = torch.where(batch.labels > 0, torch.sigmoid(output), torch.sigmoid(-output))
        return Loss.of_images(-probability.log().sum(-1))


class DividesByKnown(Sound):
    """0 / 0 where nothing is known."""

    def loss(self, output: Any, batch: Batch, progress: Progress) -> Loss:
        known = (batch.labels != 0).sum(-1)
        return Loss.of_images(cross_entropy(output, batch.labels) * known / known)


class WritesLabels(Sound):
    """Unknown labels become negatives where they stand."""

    def loss(self, output: Any, batch: Batch, progress: Progress) -> Loss:
        batch.labels[batch.labels == 0] = -1
        return super().loss(output, batch, progress)


class WritesOutput(Sound):
    """Clamps logits in place."""

    def loss(self, output: Any, batch: Batch, progress: Progress) -> Loss:
        with torch.no_grad():
            output.clamp_(-0.01, 0.01)
        return super().loss(output, batch, progress)


class WrongShape(Sound):
    """A loss for every image."""

    def loss(self, output: Any, batch: Batch, progress: Progress) -> Loss:
        return Loss(cross_entropy(output, batch.labels), 1.0)


class NoLoss(Sound):
    """A bare tensor."""

    def loss(self, output: Any, batch: Batch, progress: Progress) -> Any:
        return cross_entropy(output, batch.labels).mean()


class NoGradient(Sound):
    """Detached from the model."""

    def loss(self, output: Any, batch: Batch, progress: Progress) -> Loss:
        return super().loss(output.detach(), batch, progress)


class RaisesInConstructor(Sound):
    """Asks the task for what it has not."""

    def __init__(self, params: Any, task: Any) -> None:
        super().__init__(params, task)
        self.prior = task.artifacts["prior"]


class ForgetsSuper(Sound):
    """Leaves params and task unset."""

    def __init__(self, params: Any, task: Any) -> None:
        self.weight = 1.0


class Bare(Sound):
    """Scores without a sigmoid."""

    def scores(self, output: Any) -> Tensor:
        return output


class TooFewScores(Sound):
    """Scores of the first class."""

    def scores(self, output: Any) -> Tensor:
        return torch.sigmoid(output[:, :1])


class Unreached(Sound):
    """A layer that no output comes through."""

    def build(self, backbone: nn.Module, make_head: Any) -> nn.Module:
        model = super().build(backbone, make_head)
        model.idle = nn.Linear(2, 2)
        return model

    def forward(self, model: Any, batch: Batch, progress: Progress) -> Any:
        return model[1](model[0](batch.inputs))


class Doubled(torch.autograd.Function):
    """A square whose backward pass forgets the 2."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return values.square()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return ctx.saved_tensors[0] * gradients[0]


class WrongBackward(Sound):
    """A custom function whose gradient is half of what it should be."""

    def loss(self, output: Any, batch: Batch, progress: Progress) -> Loss:
        return Loss.of_images(cross_entropy(output, batch.labels) + Doubled.apply(output).sum(-1))


class Focused(Sound):
    """All that may be detached: a factor, a rank, a choice, a temperature read as a number, a table written to."""

    def loss(self, output: Any, batch: Batch, progress: Progress) -> Loss:
        probability = torch.sigmoid(output)
        factor = probability.detach() ** 2
        with torch.no_grad():
            rank = probability.argsort(-1).argsort(-1)
            table = torch.zeros_like(output)
            table[:, 0] = output[:, 0].exp()
            table[table > 1] *= probability[table > 1]
        temperature = 1 + output.abs().mean().item()
        unknown = factor * (rank > 1) * nn.functional.softplus(output / temperature) + table * output
        per_label = torch.where(batch.labels == 0, unknown, nn.functional.softplus(-batch.labels * output))
        return Loss.of_images(per_label.sum(-1))


class DrawsGlobally(Sound):
    """Dropout of labels by the global generator."""

    def loss(self, output: Any, batch: Batch, progress: Progress) -> Loss:
        return Loss.of_images((torch.rand(len(output)) < 0.9) * cross_entropy(output, batch.labels))


class DrawsInConstructor(Sound):
    """A table from numpy's global generator."""

    def __init__(self, params: Any, task: Any) -> None:
        super().__init__(params, task)
        self.table = np.random.rand(3)  # noqa: NPY002


class Climbs(Sound):
    """Goes up."""

    def loss(self, output: Any, batch: Batch, progress: Progress) -> Loss:
        return Loss.of_images(-output.square().sum(-1) * 0.0 + output.sum(-1).square().detach() + 0 * output.sum(-1))


class ByTheClock(Sound):
    """Not the same twice."""

    def loss(self, output: Any, batch: Batch, progress: Progress) -> Loss:
        return Loss.of_images(cross_entropy(output, batch.labels) * (1 + time.perf_counter_ns() % 1000 / 1000))


class Forgetful(Sound):
    """A running mean that no checkpoint holds."""

    def __init__(self, params: Any, task: Any) -> None:
        super().__init__(params, task)
        self.mean = torch.zeros(task.num_classes)

    def loss(self, output: Any, batch: Batch, progress: Progress) -> Loss:
        self.mean = 0.9 * self.mean + 0.1 * torch.sigmoid(output.detach()).mean(0)
        return Loss.of_images(((1 + self.mean) * nn.functional.softplus(output)).sum(-1))


class Remembering(Forgetful):
    """The same, kept; computed from the batch of one process alone."""

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean = state["mean"]


class Together(Sound):
    """The loss of an image depends on the others of its batch, and it does not say so."""

    def loss(self, output: Any, batch: Batch, progress: Progress) -> Loss:
        return Loss.of_images(cross_entropy(output - output.mean(0), batch.labels))


class TogetherAndSaysSo(Together):
    """The same, said."""

    batch_scope: ClassVar[Literal["sample", "batch"]] = "batch"


class StacksAverages(Sound):
    """Says that it can be stacked, and sums over heads."""

    stackable = True

    def loss(self, output: Any, batch: Batch, progress: Progress) -> Loss:
        weight = torch.sigmoid(output.detach().mean(0))  # of the batch alone, of the heads where it is stacked
        return Loss.of_images((weight * nn.functional.softplus(output)).sum(-1))


class TakesNumbers(Sound):
    """Says that it can be stacked, and takes its parameter for a number, which it is alone."""

    stackable = True

    class Params(MethodParams):
        weight: float = tunable(0.5, 0.1, 0.9, ge=0.0, le=1.0, description="of everything")

    def loss(self, output: Any, batch: Batch, progress: Progress) -> Loss:
        return Loss.of_images((float(self.params.weight) * nn.functional.softplus(output)).sum(-1))


class FailsInOneProcess(Sound):
    """The second of two gives up, and the first waits for it."""

    def forward(self, model: Any, batch: Batch, progress: Progress) -> Any:
        if torch.distributed.is_initialized() and torch.distributed.get_rank() == 1:
            raise RuntimeError("given up")
        return super().forward(model, batch, progress)


class BadRange(Sound):
    """Searched where it is not valid."""

    class Params(MethodParams):
        weight: float = tunable(0.5, 0.1, 2.0, ge=0.0, le=1.0, description="w")


class NoDescription(Sound):
    """A parameter that nobody explains."""

    class Params(MethodParams):
        weight: float = 0.5


class OneBadVariant(Sound):
    """Sound by default."""

    class Params(MethodParams):
        rule: Literal["well", "ill"] = Field("well", description="which")

    def loss(self, output: Any, batch: Batch, progress: Progress) -> Loss:
        if self.params.rule == "ill":
            raise KeyError("ill")
        return super().loss(output, batch, progress)


FAULTS: list[tuple[type[Method], str, list[str]]] = [
    (NotANumber, "finite loss", ["a total of inf", "1 image, 1 class (mixed, inputs times 1000), labels [[-1]]"]),
    (DividesByKnown, "finite loss", ["a total of nan", "1 image, 1 class (all unknown), labels [[0]]"]),
    (
        WritesLabels,
        "inputs untouched",
        ["its loss wrote to batch.labels", "batch.labels.clone()", "1 image, 1 class (mixed)"],
    ),
    (WritesOutput, "inputs untouched", ["the output of forward was written to", "1 image, 1 class"]),
    (WrongShape, "finite loss", ["its loss gave a total of shape [1]", "Loss.of_images(per_image)"]),
    (NoLoss, "finite loss", ["its loss gave a tensor [] where a plbench.api.Loss is right", "Loss.of_images"]),
    (NoGradient, "gradient", ["a total without a gradient", ".detach()"]),
    (RaisesInConstructor, "can be built", ["its constructor raised KeyError: 'prior' (line ", "plbench.api.Task"]),
    (ForgetsSuper, "can be built", ["leaves self.params unset", "super().__init__(params, task)"]),
    (Bare, "scores in [0, 1]", ["is a sigmoid missing?", "1 image, 2 classes"]),
    (TooFewScores, "scores in [0, 1]", ["its scores gave [1, 1] where [B, C] = [1, 2]", "1 image, 2 classes"]),
    (Unreached, "gradient", ["no gradient for idle.weight, idle.bias"]),
    (WrongBackward, "gradient", ["by backward and of", "1 image, 1 class"]),
    (
        DrawsGlobally,
        "global randomness untouched",
        ["its loss drew from the global generator of torch", "task.generator"],
    ),
    (DrawsInConstructor, "global randomness untouched", ["its constructor drew", "of numpy"]),
    (Climbs, "loss falls", ["before", "after"]),
    (ByTheClock, "same seed, same bits", ["a second training of the same seed differs", "1 epoch of"]),
    (Forgetful, "resume", ["saved after step 1 and went on differs", "state_dict", "4 images"]),
    (Remembering, "two processes equal one", ["of process", "one process's images alone"]),
    (Together, "two processes equal one", ['batch_scope = "batch"', "2 images, 2 classes, 1 epoch of 1 step"]),
    (FailsInOneProcess, "two processes equal one", ["process 1 of two", "its forward raised RuntimeError: given up"]),
    (StacksAverages, "stacked as alone", ["of head 1 of 3", "[H, 1, 1]"]),
    (TakesNumbers, "stacked as alone", ["differ are tensors [H, 1, 1]", "or say stackable = False"]),
    (BadRange, "parameter ranges", ["weight = 1.05 for 6 classes", "less than or equal to 1"]),
    (NoDescription, "says what it is", ["no description of parameter 'weight'"]),
]


@pytest.mark.parametrize(("kind", "check", "pieces"), FAULTS, ids=lambda value: getattr(value, "__name__", None))
def test_a_fault_is_found_and_explained(kind: type[Method], check: str, pieces: list[str]) -> None:
    with pytest.raises(CheckFailed) as raised:
        check_method(kind)
    found = {finding.check: finding for finding in raised.value.findings}
    assert check in found, raised.value
    text = found[check].explained()
    assert all(piece in text for piece in pieces), text
    assert found[check].expected and found[check].expected in text
    assert "plbench methods check" not in text  # that is what the person has just typed


@pytest.mark.parametrize("kind", [Sound, TogetherAndSaysSo])
def test_what_is_sound_passes(kind: type[Method]) -> None:
    check_method(kind)


def test_whatever_way_a_loss_detaches_its_gradient_is_found_right() -> None:
    subject = Subject(Focused, {}, Registry.discover())
    finding = check_gradient.finding("focused", subject)
    assert finding.passed, finding.explained()


def test_the_variant_at_fault_is_named() -> None:
    with pytest.raises(CheckFailed) as raised:
        check_method(OneBadVariant)
    assert {finding.of for finding in raised.value.findings} == {"sound rule=ill"}
    check_method(OneBadVariant, params={"rule": "well"})


def test_a_class_that_no_other_process_can_find_is_checked_in_all_else() -> None:
    class Local(Sound):
        """Defined in a function."""

    check_method(Local)


def test_the_cost_of_a_method_is_measured_in_epochs_of_cross_entropy() -> None:
    rows = [{"name": "ce-negative", "cost": "1 training"}, {"name": "broken", "cost": None}]
    add_measured(rows, Registry.discover(), Reporter())
    found = re.fullmatch(r"1 training, an epoch (\d+\.\d) x CE", rows[0]["cost"])
    assert found and 0.2 < float(found[1]) < 5  # it is cross-entropy
    assert rows[1]["cost"] is None


def test_without_constants_held_still_the_difference_would_be_another() -> None:
    point = torch.tensor([0.3, -0.7], dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        return (torch.sigmoid(point).detach() * point).sum()

    gradient = torch.autograd.grad(loss(), point)[0]
    constants, step, slopes = Constants(), 1e-6, {}
    with constants.noting():
        loss()
    for held in (True, False):
        totals = []
        for sign in (1, -1):
            with torch.no_grad():
                point[0] += sign * step
            with constants.putting_back() if held else torch.enable_grad():
                total = loss()
            totals.append(float(total.detach()))
            with torch.no_grad():
                point[0] -= sign * step
        slopes[held] = (totals[0] - totals[1]) / (2 * step)
    assert slopes[True] == pytest.approx(float(gradient[0]), rel=1e-8)
    assert slopes[False] != pytest.approx(float(gradient[0]), rel=1e-2)


class OnFeaturesAlone(Sound):
    """Takes it for granted that inputs are features."""

    def forward(self, model: Any, batch: Batch, progress: Progress) -> Any:
        rows, _ = batch.inputs.shape
        assert rows
        return model(batch.inputs)


def test_a_method_that_only_knows_features_is_told() -> None:
    with pytest.raises(CheckFailed, match="trains on images too") as raised:
        check_method(OnFeaturesAlone)
    (finding,) = raised.value.findings
    assert "its forward raised ValueError: too many values to unpack" in finding.seen

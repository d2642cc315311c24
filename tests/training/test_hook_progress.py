"""A method that works for long between steps: whoever watches the training is told of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from plbench.api import Batch, Loss, Method, PartialLabels, Plan, Progress, Task, TrainView
from plbench.losses import partial_asymmetric_loss
from plbench.training.engine import fit, prepare_fit
from plbench.training.execution import Execution
from plbench.training.inputs import FeatureInputs


class Patient(Method):
    """Notes what is being said while its hooks are at work."""

    name = "patient"
    title = "Patience"
    said: list[str]
    heard: list[str]

    def loss(self, output: torch.Tensor, batch: Batch, progress: Progress) -> Loss:
        assert not self.said  # silence while steps are taken: the steps themselves are reported
        none = {"gamma_pos": 0.0, "gamma_neg": 0.0, "gamma_unann": 0.0}
        return Loss.of_images(partial_asymmetric_loss(output, batch.labels, **none))

    def epoch_start(self, view: TrainView, progress: Progress) -> None:
        self.heard += self.said

    epoch_end = epoch_start


def test_what_a_hook_does_is_said_while_it_does_it(make_task: Callable[..., Task]) -> None:
    method, said = Patient(Patient.Params(), make_task(2)), list[str]()
    method.said, method.heard = said, []

    @contextmanager
    def patience(text: str) -> Iterator[None]:
        said.append(text)
        yield
        said.remove(text)

    labels = PartialLabels.from_dense(np.ones((4, 2), np.int8), ["a", "b"])
    inputs = FeatureInputs(np.ones((4, 3), np.float32), np.arange(4), labels)
    plan, execution = Plan(epochs=3, batch_size=2, lr=0.1), Execution(torch.device("cpu"), "float32")
    state = prepare_fit(method.build(nn.Identity(), lambda: nn.Linear(3, 2)), method, plan, 2, execution)
    fit(state, inputs, plan, execution, seed=0, stop_after=2, patience=patience)
    assert method.heard == [
        "Patience prepares epoch 1 of 2",
        "Patience concludes epoch 1 of 2",
        "Patience prepares epoch 2 of 2",
        "Patience concludes epoch 2 of 2",
    ]

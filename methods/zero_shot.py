"""Zero-shot classification: a vision-language model's scores, without training (Radford et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from plbench.api import Batch, Loss, Method, MethodParams, PlbenchError, Progress, Task, tunable


def temperature_of_the_model(task: Task) -> float:
    """T where nobody gave it: 1 / `logit_scale` of the file of embeddings.

    Raises:
        PlbenchError: if the file does not say.
    """
    if "logit_scale" not in task.artifacts:
        raise PlbenchError(
            "temperature, by which cosines are divided, does not follow from the file of embeddings, which has no "
            "logit_scale; give it with -P temperature=T, such as 0.01, which is CLIP's"
        )
    return 1 / float(task.artifacts["logit_scale"])


class ZeroShot(Method):
    """`softmax_c(cos(x, c) / T)`, or `sigmoid(cos(x, c) / T + b)`: nothing is trained, and no label is looked at.

    Cosines of a vision-language model's embeddings of the image x and of the name of class c. A softmax over all C
    classes is CLIP's, of which one is right; a sigmoid is for models that were trained with one, such as SigLIP, whose
    b the file of embeddings has. What a backbone would see is not looked at: this row is there to be compared with.
    Tried here with synthetic embeddings alone.
    """

    name = "zero-shot"
    title = "Zero-shot"
    paper = "Radford et al., ICML 2021, arXiv 2103.00020"
    needs = frozenset({"embeddings"})
    tags = frozenset({"single-positive"})
    learns = False

    class Params(MethodParams):
        """The model's own values."""

        temperature: float | None = tunable(
            None,
            0.001,
            1.0,
            log=True,
            from_task=temperature_of_the_model,
            gt=0.0,
            description="T, by which cosines are divided; default: the model's own",
        )
        activation: Literal["softmax", "sigmoid"] = Field("softmax", description="over the classes, or of each class")

    def __init__(self, params: Any, task: Task) -> None:
        """Refuse a sigmoid without an offset, of which all scores would be about 1.

        Raises:
            PlbenchError: if the file of embeddings has no `logit_bias`.
        """
        super().__init__(params, task)
        if params.activation == "sigmoid" and "logit_bias" not in task.artifacts:
            raise PlbenchError(
                "method 'zero-shot': activation=sigmoid needs the model's logit_bias, which the file of embeddings "
                "does not have; leave it out for a softmax"
            )

    def build(self, backbone: nn.Module, make_head: Callable[[], nn.Module]) -> nn.Module:
        """Only the model's scale: what comes in are cosines."""
        return _Scale(1 / self.params.temperature)

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """None: a weight of 0."""
        return Loss(output.sum() * 0.0, 0.0)

    def scores(self, output: Tensor) -> Tensor:
        """As the model was trained."""
        if self.params.activation == "softmax":
            return torch.softmax(output, dim=-1)
        return torch.sigmoid(output + self.task.artifacts["logit_bias"].to(output))


class _Scale(nn.Module):
    """Cosines [B, C] to logits [B, C]."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, cosines: Tensor) -> Tensor:
        """`cos / T`."""
        return self.scale * cosines

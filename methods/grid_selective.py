"""The cells of {CE, focal, ASL} x Selective, which `selective` has for P-ASL alone: eq. 9 of CSL under other losses."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import create_model
from torch import Tensor

from plbench.api import Batch, Loss, MethodParams, PlbenchError, Progress, Stage, Task
from plbench.losses import partial_asymmetric_loss

from .asl_negative import ASLNegative
from .focal import Focal
from .pasl_negative import PASLNegative
from .selective import Selective

_TREATMENT: dict[str, Any] = {
    name: (field.annotation, field)
    for name, field in Selective.Params.model_fields.items()
    if name not in PASLNegative.Params.model_fields
}
Treatment: Any = create_model("Treatment", __base__=MethodParams, __doc__="What is ignored.", **_TREATMENT)
Treatment.alternatives = Selective.Params.alternatives


class SelectiveUnder(Selective):
    """Another loss in place of P-ASL; what is ignored, and the prior's stage, are those of `selective`."""

    tags = frozenset({"grid"})
    variants: ClassVar = {"likelihood": {"mode": "likelihood"}}  # the mode that needs no verified negatives

    @abstractmethod
    def focus(self) -> dict[str, Any]:
        """Return the loss's arguments to `partial_asymmetric_loss`."""

    @classmethod
    def stages(cls, params: Any, task: Task) -> Sequence[Stage]:
        """Return the stage of `selective`.

        Raises:
            PlbenchError: as `selective` does, in this method's name.
        """
        try:
            return super().stages(params, task)
        except PlbenchError as error:
            raise PlbenchError(error.what.replace(f"'{Selective.name}'", f"'{cls.name}'")) from None

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Return the loss with the weights of eq. 9."""
        weight = self.weight(output, batch.labels)
        return Loss.of_images(partial_asymmetric_loss(output, batch.labels, unann_weight=weight, **self.focus()))


class CESelective(SelectiveUnder):
    """`-sum_P log p - sum_N log(1 - p) - sum_U w log(1 - p)`: `ce-negative` without what `selective` ignores."""

    name = "ce-selective"
    title = "CE, Selective"

    class Params(Treatment):
        """Those of `selective` that say what is ignored."""

    def focus(self) -> dict[str, Any]:
        """Return gammas of 0."""
        return {"gamma_pos": 0.0, "gamma_neg": 0.0, "gamma_unann": 0.0}


class FocalSelective(SelectiveUnder):
    """`focal` without what `selective` ignores; the factor carries its gradient, as in `focal`."""

    name = "focal-selective"
    title = "Focal, Selective"

    class Params(Treatment, Focal.Params):
        """Those of `focal`, and those of `selective` that say what is ignored."""

    def focus(self) -> dict[str, Any]:
        """Return one gamma for all labels."""
        gamma = self.params.gamma
        return {"gamma_pos": gamma, "gamma_neg": gamma, "gamma_unann": gamma, "detach_focus": False}


class ASLSelective(SelectiveUnder):
    """`asl-negative` without what `selective` ignores: `selective` with one gamma- for all negatives, and a shift."""

    name = "asl-selective"
    title = "ASL, Selective"

    class Params(Treatment, ASLNegative.Params):
        """Those of `asl-negative`, and those of `selective` that say what is ignored."""

    def focus(self) -> dict[str, Any]:
        """Return gamma- for unknown labels too."""
        p = self.params
        return {"gamma_pos": p.gamma_pos, "gamma_neg": p.gamma_neg, "gamma_unann": p.gamma_neg, "clip": p.clip}

"""The cells of {CE, focal, ASL, P-ASL} x Ignore that have no name elsewhere: known labels alone teach."""

from __future__ import annotations

from torch import Tensor

from plbench.api import Batch, Loss, Progress, tunable
from plbench.losses import partial_asymmetric_loss

from .asl_negative import ASLNegative
from .ce_ignore import CEIgnore
from .focal import Focal


class FocalIgnore(Focal):
    """`-sum_P (1 - p)^gamma log p - sum_N p^gamma log(1 - p)`: `focal` without its unknown labels.

    gamma = 0 is `ce-ignore`. The factor carries its gradient, as in `focal`.
    """

    name = "focal-ignore"
    title = "Focal, Ignore"
    needs = CEIgnore.needs
    tags = frozenset({"grid"})

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Return the focal loss of known labels."""
        gamma = self.params.gamma
        per_image = partial_asymmetric_loss(
            output,
            batch.labels,
            gamma_pos=gamma,
            gamma_neg=gamma,
            gamma_unann=0.0,
            unann_weight=0.0,
            detach_focus=False,
        )
        return Loss.of_images(per_image)


class ASLIgnore(ASLNegative):
    """`sum_P LF(p, g+) + sum_N LF(1 - p', g-)`: `asl-negative` without its unknown labels.

    With both gammas and the shift 0 it is `ce-ignore`.
    """

    name = "asl-ignore"
    title = "ASL, Ignore"
    needs = CEIgnore.needs
    tags = frozenset({"grid"})

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Return the asymmetric loss of known labels."""
        p = self.params
        per_image = partial_asymmetric_loss(
            output,
            batch.labels,
            gamma_pos=p.gamma_pos,
            gamma_neg=p.gamma_neg,
            gamma_unann=0.0,
            clip=p.clip,
            unann_weight=0.0,
        )
        return Loss.of_images(per_image)


class PASLIgnore(ASLIgnore):
    """The same loss as `asl-ignore` with the values of P-ASL: what P-ASL adds to ASL is of unknown labels alone.

    It is `selective` in the limit where everything unknown is ignored.
    """

    name = "pasl-ignore"
    title = "P-ASL, Ignore"
    paper = CEIgnore.paper

    class Params(ASLIgnore.Params):
        """Those of `pasl-negative`, but that no label is left to gamma_u."""

        gamma_neg: float = tunable(3.0, 0.0, 4.0, ge=0.0, description="focusing of verified negatives, gamma-")
        clip: float = tunable(0.0, 0.0, 0.1, ge=0.0, lt=1.0, description="probability shift, m")

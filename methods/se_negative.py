"""Softened negatives: unknown labels taken for negatives, but less surely (Kundu and Tighe 2020)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from plbench.api import Batch, Loss, Method, MethodParams, Progress, tunable
from plbench.losses import label_smoothing_loss, temperature_negative_loss


class SENegative(Method):
    """Variant `ls`: targets `1 - epsilon` for positives and `epsilon` for the rest, known or not.

    Variant `temperature`: `-log(1 - sigmoid(z/T))` on unknown labels. CSL's text speaks of a temperature, its
    tables of label smoothing; both are here and the record says which.
    """

    name = "se-negative"
    title = "SE (LS), Negative"
    paper = "Kundu and Tighe, NeurIPS 2020"
    tags = frozenset({"paper"})
    stackable = True

    class Params(MethodParams):
        """epsilon is the field's usual 0.1; no source gives T, 2 is ours."""

        variant: Literal["ls", "temperature"] = Field("ls", description="label smoothing or temperature")
        epsilon: float = tunable(
            0.1, 0.01, 0.3, when={"variant": ("ls",)}, ge=0.0, lt=0.5, description="smoothing of variant ls"
        )
        temperature: float = tunable(
            2.0,
            1.0,
            5.0,
            log=True,
            when={"variant": ("temperature",)},
            gt=0.0,
            description="T of variant temperature; ours",
        )

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Cross-entropy against softened targets."""
        if self.params.variant == "ls":
            return Loss.of_images(label_smoothing_loss(output, batch.labels, epsilon=self.params.epsilon))
        per_image = temperature_negative_loss(output, batch.labels, temperature=self.params.temperature)
        return Loss.of_images(per_image)

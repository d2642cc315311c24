"""LL-Cp: unknown labels with large losses become positives for good (Kim et al. 2022)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from plbench.api import Batch, Progress, Task, TrainView
from plbench.sample_state import CellValues, check_state_size

from .large_loss import PAPER, LargeLoss, Rule


class LLCp(LargeLoss):
    """In each epoch but the first, delta per cent of a batch's unknown labels turn positive: those of largest loss.

    They have `-log p` in that step and in every later epoch; they are no longer unknown, so that each epoch finds
    further ones. With delta = 0 it is `ce-negative`. The paper's released code compares the rule's name with `is`
    and so took the growing share of LL-Ct; that is not repeated here. What turned positive is remembered sparsely. What
    LL-R, LL-Ct and LL-Cp share stands with `LargeLoss`.
    """

    name = "ll-cp"
    title = "LL-Cp"
    paper = PAPER
    needs = frozenset({"sample_state"})
    rule: Rule = "correct-for-good"

    def __init__(self, params: Any, task: Task) -> None:
        """Nothing is corrected yet.

        Raises:
            PlbenchError: if what turns positive by the last epoch would not fit into memory.
        """
        super().__init__(params, task)
        self.corrected = CellValues(task.num_classes)
        self._found: list[Tensor] = []
        if self.rule == "correct-for-good":
            self._check_size()

    def _check_size(self) -> None:
        task, share = self.task, self.params.delta_percent / 100
        num_cells = task.num_train * task.num_classes * (1 - (1 - share) ** (task.epochs - 1))
        check_state_size(
            12 * num_cells,
            method=self.name,
            keeps=f"what {self.params.delta_percent:g} % in each of {task.epochs - 1} epochs make of "
            f"{task.num_train:,} x {task.num_classes:,} cells",
            cure="give a smaller -P delta_percent, or take the rule of ll-ct, which keeps none",
        )

    def current_labels(self, batch: Batch) -> Tensor:
        """The batch's labels, [B, C], with what turned positive in earlier epochs."""
        is_corrected, _ = self.corrected.dense(batch.index)
        return torch.where(is_corrected & (batch.labels == 0), 1, batch.labels)

    def note(self, batch: Batch, largest: Tensor) -> None:
        """Collects what the step found. An epoch sees an image once: it matters from the next epoch on."""
        if self.rule != "correct-for-good":  # of BoostLU: what it rejects is not to turn positive
            return
        row, column = largest.nonzero(as_tuple=True)
        self._found.append((batch.index[row] * self.task.num_classes + column).cpu())

    def epoch_end(self, view: TrainView, progress: Progress) -> None:
        """Makes what the epoch found permanent."""
        if self._found:
            cells = torch.cat(self._found)
            self.corrected.add(cells, torch.ones(len(cells)))
            self._found = []

    def diagnostics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The unknown labels that turned positive."""
        if self.rule != "correct-for-good":
            return super().diagnostics(output, batch)
        return {"pseudo_positive": self.corrected.dense(batch.index)[0] & (batch.labels == 0)}

    def state_dict(self) -> dict[str, Any]:
        """What turned positive, and what this epoch has found so far."""
        nothing = torch.empty(0, dtype=torch.int64)
        return {**self.corrected.state_dict(), "found": torch.cat([nothing, *self._found])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores both."""
        self.corrected.load_state_dict(state)
        self._found = [state["found"]]

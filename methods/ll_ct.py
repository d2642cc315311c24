"""LL-Ct: unknown labels with large losses count as positive in that step (Kim et al. 2022)."""

from __future__ import annotations

from .large_loss import PAPER, LargeLoss


class LLCt(LargeLoss):
    """In epoch t the `(t - 1) delta` per cent of the batch's unknown labels with the largest losses have `-log p`.

    The rest is cross-entropy with unknown labels as negatives: with delta = 0 it is `ce-negative`. What LL-R, LL-Ct
    and LL-Cp share, and where their released code differs, stands with `LargeLoss`.
    """

    name = "ll-ct"
    title = "LL-Ct"
    paper = PAPER
    stackable = True
    rule = "correct"

"""LL-R: unknown labels with large losses are left out (Kim et al. 2022)."""

from __future__ import annotations

from .large_loss import PAPER, LargeLoss


class LLR(LargeLoss):
    """In epoch t the `(t - 1) delta` per cent of the batch's unknown labels with the largest losses have weight 0.

    The rest is cross-entropy with unknown labels as negatives: with delta = 0 it is `ce-negative`. What LL-R, LL-Ct
    and LL-Cp share, and where their released code differs, stands with `LargeLoss`.
    """

    name = "ll-r"
    title = "LL-R"
    paper = PAPER
    stackable = True
    rule = "reject"

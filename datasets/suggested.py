"""Suggested values of the methods of CSL's table and of the grid around it, for the protocols of all datasets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SELECTIVE_UNDER_OTHER_LOSSES = ("ce-selective", "focal-selective", "asl-selective")


def suggested_values(gammas: Mapping[str, float], ignored: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return suggested values of every method that shares the loss of `selective`, or what it ignores.

    A comparison of losses under one treatment, or of treatments under one loss, then changes nothing else.

    Args:
        gammas: of P-ASL.
        ignored: parameters of `selective` that say what is ignored.
    """
    of_known = {name: value for name, value in gammas.items() if name != "gamma_unann"}
    return {
        "pasl-negative": {**gammas},
        "pasl-ignore": of_known,
        "selective": {**gammas, **ignored},
        **{name: {**ignored} for name in SELECTIVE_UNDER_OTHER_LOSSES},
    }

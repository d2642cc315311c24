"""The paper's experiments and a few more, each in a short file based on shared functions.

An experiment defines its runs (`cases`), measurements, figure and claims; the shared parts are in
`plbench.experiments.shared`. (`plbench.tuning.study` is unrelated: a search for a method's values.)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from plbench.errors import PlbenchError, did_you_mean

if TYPE_CHECKING:
    from plbench.experiments.shared.experiment import Experiment

NAMES = (
    "annotation-schemes",
    "prior-estimation",
    "focusing",
    "likelihood-k",
    "prior-threshold",
    "soft-prior",
    "tables",
    "decision-boundary",
    "which-mode",
)
"""In the paper's order, with additional ones last."""


def find(name: str) -> Experiment:
    """Return the experiment with a name.

    Raises:
        PlbenchError: if there is none.
    """
    if name not in NAMES:
        raise PlbenchError(f"there is no study {name!r}; {did_you_mean(name, NAMES)}")
    module = importlib.import_module(f"plbench.experiments.{name.replace('-', '_')}")
    found: Experiment = module.EXPERIMENT
    return found

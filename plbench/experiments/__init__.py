"""The paper's experiments, and a few beyond it: one short file each, over the same few functions.

An experiment says what runs (`cases`), what is measured, how it is drawn and which claims it tests; what it is made of
is in `plbench.experiments.shared`. (`plbench.tuning.study` is another thing: a search for a method's values.)
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
"""In the order in which the paper has them; those beyond it last."""


def find(name: str) -> Experiment:
    """Return the experiment of a name.

    Raises:
        PlbenchError: if there is none.
    """
    if name not in NAMES:
        raise PlbenchError(f"there is no study {name!r}; {did_you_mean(name, NAMES)}")
    module = importlib.import_module(f"plbench.experiments.{name.replace('-', '_')}")
    found: Experiment = module.EXPERIMENT
    return found

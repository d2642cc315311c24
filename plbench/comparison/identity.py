"""What records must have in common to be of one row."""

from __future__ import annotations

import json

from plbench.runs.record import Record
from plbench.spec import RunSpec


def same_but_seed(spec: RunSpec) -> str:
    """Return all of a spec but the seed, and the stages that follow from it."""
    return spec.model_copy(update={"seed": 0, "stages": {}}).canonical()


def row_key(record: Record) -> str:
    """Return what the runs of one row have in common: all but the seed.

    Where a study chose its values, that is also all but which study, and what it chose. Method, variant, setting, the
    number of trials, where they looked and where they began stay: studies of one row differ in their seeds alone. A
    record that does not tell of its study shares a row with those that name the same one.
    """
    spec, tuning = record.spec, record.tuning
    if spec.tuned_by is None or tuning is None:
        return same_but_seed(spec)
    params = {name: value for name, value in spec.method.params.items() if name not in tuning.space}
    # in another regime a winner's rate and decay are not taken over: they are a person's then
    chosen = [name for name in ("lr", "weight_decay") if name in tuning.space and tuning.regime == spec.regime]
    without = {
        "tuned_by": "a study",
        "method": spec.method.model_copy(update={"params": params}),
        "plan": spec.plan.model_copy(update=dict.fromkeys(chosen, 1.0)),
    }
    study = tuning.model_dump(mode="json", exclude={"study", "seed", "chosen", "value", "default_value"})
    return f"{same_but_seed(spec.model_copy(update=without))} {json.dumps(study, sort_keys=True)}"

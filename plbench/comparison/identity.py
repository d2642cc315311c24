"""Identity of rows: what their records have in common."""

from __future__ import annotations

import json

from plbench.runs.record import Record
from plbench.spec import RunSpec


def same_but_seed(spec: RunSpec) -> str:
    """Return a spec without the seed and the stages that depend on it."""
    return spec.model_copy(update={"seed": 0, "stages": {}}).canonical()


def row_key(record: Record) -> str:
    """Return the key shared by the runs of one row: everything but the seed.

    For tuned rows, the study and its chosen values are also left out. Method, variant, setting, number of trials,
    search space and starting values remain: studies of one row differ only in their seeds. A record without a report on
    its study shares a row with those of the same study.
    """
    spec, tuning = record.spec, record.tuning
    if spec.tuned_by is None or tuning is None:
        return same_but_seed(spec)
    params = {name: value for name, value in spec.method.params.items() if name not in tuning.space}
    # in a different regime, the winner's rate and decay are not transferred: they were set by the user
    chosen = [name for name in ("lr", "weight_decay") if name in tuning.space and tuning.regime == spec.regime]
    without = {
        "tuned_by": "a study",
        "method": spec.method.model_copy(update={"params": params}),
        "plan": spec.plan.model_copy(update=dict.fromkeys(chosen, 1.0)),
    }
    study = tuning.model_dump(mode="json", exclude={"study", "seed", "chosen", "value", "default_value"})
    return f"{same_but_seed(spec.model_copy(update=without))} {json.dumps(study, sort_keys=True)}"

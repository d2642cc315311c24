"""What records must have in common to be of one row."""

from __future__ import annotations

import json
from typing import Any

from plbench.runs.record import Record, TuningReport
from plbench.spec import RunSpec

_OF_PLAN = ("lr", "weight_decay")
_OF_ONE_STUDY = {"study", "seed", "chosen", "value", "default_value"}


def row_key(record: Record) -> str:
    """Return what the runs of one row have in common.

    That is all but the seed, and where studies chose its values, all but which study and what it chose.
    """
    return same_but_seed_and_study(record) if record.spec.tuned_by else same_but_seed(record.spec)


def same_but_seed(spec: RunSpec) -> str:
    """Return all of a spec but the seed, and the stages that follow from it."""
    return spec.model_copy(update={"seed": 0, "stages": {}}).canonical()


def same_but_seed_and_study(record: Record) -> str:
    """Return what the runs of one tuned row have in common.

    That is all but the seed, which study chose its values, and what it chose. Method, variant, setting, the number of
    trials, where they looked and where they began stay: studies of one row differ in their seeds alone. A record that
    does not tell of its study shares a row with those that name the same one.
    """
    common: dict[str, Any] = {"seed": 0, "stages": {}}
    if record.tuning is None:
        return record.spec.model_copy(update=common).canonical()
    common |= {"tuned_by": "a study", **_without_chosen(record.spec, record.tuning)}
    study = record.tuning.model_dump(mode="json", exclude=_OF_ONE_STUDY)
    return f"{record.spec.model_copy(update=common).canonical()} {json.dumps(study, sort_keys=True)}"


def _without_chosen(spec: RunSpec, tuning: TuningReport) -> dict[str, Any]:
    """Return fields of a spec without the values that a study chose; rate and decay stay in another regime."""
    params = {name: value for name, value in spec.method.params.items() if name not in tuning.space}
    chosen = [name for name in _OF_PLAN if name in tuning.space and tuning.regime == spec.regime]
    return {
        "method": spec.method.model_copy(update={"params": params}),
        "plan": spec.plan.model_copy(update=dict.fromkeys(chosen, 1.0)),
    }

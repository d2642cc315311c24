"""Which records are of one tuned row: same method, variant, setting and kind of study; whatever study, choice, seed."""

from __future__ import annotations

from typing import Any

import pytest

from plbench.comparison.identity import row_key
from plbench.runs.record import Record, SearchedRange, TuningReport
from plbench.spec import MethodSpec, ModelSpec, Plan, Protocol, RunSpec

SPACE = {
    "top_k": SearchedRange(low=0, high=9, integer=True),
    "lr": SearchedRange(low=1e-4, high=1e-1, log=True),
    "weight_decay": SearchedRange(low=1e-6, high=1e-2, log=True),
}
START = {"top_k": 5.0, "lr": 1e-2, "weight_decay": 1e-4}


def tuned(
    study: int = 0,
    seed: int = 0,
    chosen: dict[str, float] | None = None,
    *,
    params: dict[str, Any] | None = None,
    plan: dict[str, Any] | None = None,
    tuning: dict[str, Any] | None = None,
    **spec: Any,
) -> Record:
    """A record of a run that the values of a study made."""
    values = {**START, **(chosen or {})}
    of_plan = {name: values[name] for name in ("lr", "weight_decay")}
    method = {"name": "selective", "version": "1", "source_sha256": "a" * 64}
    own = {"mode": "both", "top_k": values["top_k"], **(params or {})}
    fields = {
        "protocol": Protocol(name="tiny/v2", dataset="tiny", simulation="fpc=8"),
        "dataset_fingerprint": "f" * 64,
        "method": MethodSpec(**method, params=own),
        "model": ModelSpec(backbone="test_resnet", weights="random", image_size=32),
        "regime": "probe",
        "recipe": "standard",
        "plan": Plan(**{"epochs": 3, "batch_size": 16, **of_plan, **(plan or {})}),
        "precision": "float32",
        "seed": seed,
        "tuned_by": f"{study:016x}",
        "stages": {"prior": f"{seed + 77:016x}"},
    }
    report = TuningReport(
        study=f"{study:016x}",
        regime="probe",
        num_trials=16,
        space=SPACE,
        sampler="TPE",
        pruner="none",
        seed=study,
        labels="partial",
        chosen=values,
        default=START,
        value=50.0 + study,
        default_value=49.0 - study,
    ).model_copy(update=tuning or {})
    made = RunSpec(**{**fields, **spec})
    return Record(
        key=made.key,
        spec_sha256=made.sha256(),
        spec=made,
        status="done",
        finished_at="2026-01-01T00:00:00+00:00",
        title="Selective",
        environment={},
        tuning=report,
    )


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 4},
        {"study": 2},
        {"study": 1, "seed": 3, "chosen": {"lr": 0.03}},
        {"study": 1, "chosen": {"top_k": 2.0, "weight_decay": 1e-5, "lr": 2e-3}},
    ],
)
def test_studies_of_one_row_differ_in_seed_and_choice(other: dict[str, Any]) -> None:
    assert row_key(tuned()) == row_key(tuned(**other))


@pytest.mark.parametrize(
    "other",
    [
        {"params": {"mode": "prior"}},
        {"params": {"gamma_neg": 4.0}},
        {"method": MethodSpec(name="wan", version="1", source_sha256="a" * 64, params={"top_k": 5})},
        {"method": MethodSpec(name="selective", version="2", source_sha256="b" * 64, params={"top_k": 5})},
        {"plan": {"epochs": 4}},
        {"plan": {"ema_horizon": 0.5}},
        {"regime": "finetune"},
        {"selection": "validation"},
        {"protocol": Protocol(name="tiny/v2", dataset="tiny", simulation="fpc=9")},
        {"protocol": Protocol(name="tiny/v2", dataset="tiny", simulation="fpc=8", simulation_seed=0)},
        {"tuning": {"num_trials": 17}},
        {"tuning": {"space": {**SPACE, "lr": SearchedRange(low=1e-3, high=1e-1, log=True)}}},
        {"tuning": {"space": {name: SPACE[name] for name in ("lr", "weight_decay")}}},
        {"tuning": {"default": {**START, "lr": 0.05}}},
        {"tuning": {"pruner": "median"}},
    ],
)
def test_another_question_or_another_kind_of_study_is_another_row(other: dict[str, Any]) -> None:
    assert row_key(tuned()) != row_key(tuned(**other))


def test_what_was_fixed_tells_rows_apart_though_another_study_searched_it() -> None:
    space = {name: SPACE[name] for name in ("lr", "weight_decay")}
    two, five = (tuned(chosen={"top_k": k}, tuning={"space": space}) for k in (2.0, 5.0))
    assert row_key(two) != row_key(five)


def test_rate_and_decay_of_another_regime_were_not_chosen() -> None:
    """A winner's parameters go over into a whole network; its rate and decay do not, so a person's are a difference."""
    one, other = (tuned(chosen={"lr": rate}, regime="finetune") for rate in (1e-3, 2e-3))
    assert row_key(one) != row_key(other)
    searched = tuned(study=1, chosen={"top_k": 1.0}, regime="finetune")
    assert row_key(tuned(regime="finetune")) == row_key(searched)


def test_where_no_study_is_told_the_seed_alone_is_left_out() -> None:
    rows = [record.model_copy(update={"tuning": None}) for record in (tuned(), tuned(seed=1), tuned(study=1))]
    first, second, third = map(row_key, rows)
    assert first == second != third

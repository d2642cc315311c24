"""A run's identity: a canonical form that stays what it is, and a key that every field has a say in."""

import json
import tomllib
from typing import Any

import pytest
import tomli_w
from pydantic import BaseModel, ValidationError

from plbench.spec import SPATIAL_HEADS, MethodSpec, ModelSpec, Plan, Protocol, RunSpec

GOLDEN_KEY = "3b9bb825eede9c2f"


def a_spec() -> RunSpec:
    return RunSpec(
        protocol=Protocol(name="tiny/v1", dataset="tiny", simulation="fpc=8", simulation_seed=0),
        dataset_fingerprint="f" * 64,
        method=MethodSpec(name="m", version="1", source_sha256="a" * 64, params={"gamma": 4.0, "k": 5, "mode": "both"}),
        model=ModelSpec(backbone="test_resnet", weights="random", image_size=32),
        regime="probe",
        recipe="tiny",
        plan=Plan(epochs=3, batch_size=16, lr=1e-3),
        precision="float32",
        seed=0,
    )


def test_the_key_is_the_same_for_good() -> None:
    # A new key here asks every finished run of everybody again: only NUMERICS or a new field may change it.
    assert a_spec().model_copy(update={"numerics": 1}).key == GOLDEN_KEY


def test_the_canonical_form_is_sorted_json_without_absent_values() -> None:
    spec = a_spec()
    content = json.loads(spec.canonical())
    assert spec.canonical() == json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert "weights_sha256" not in content["model"]
    assert "clip_grad" not in content["plan"]
    assert "embeddings" not in content
    assert content["plan"]["lr"] == 1e-3
    assert len(spec.sha256()) == 64
    assert spec.sha256().startswith(spec.key)


def test_what_a_plan_gained_since_the_first_records_is_left_out_where_it_changes_nothing() -> None:
    plan = json.loads(a_spec().canonical())["plan"]
    assert not plan.keys() & {"schedule", "momentum", "nesterov", "horizontal_flip", "random_resized_crop"}
    assert "head_lr_multiplier" not in plan
    said = Plan(epochs=3, batch_size=16, lr=1e-3, schedule="one-cycle", random_resized_crop=1.0, momentum=0.9)
    assert a_spec().model_copy(update={"plan": said, "numerics": 1}).key == GOLDEN_KEY


def test_what_a_head_gained_since_the_first_records_is_left_out_where_it_is_not_given() -> None:
    assert not json.loads(a_spec().canonical())["model"].keys() & SPATIAL_FIELDS
    assert not a_spec().model.model_dump(mode="json").keys() & SPATIAL_FIELDS
    assert a_spec().model_copy(update={"numerics": 1}).key == GOLDEN_KEY


@pytest.mark.parametrize("head", SPATIAL_HEADS)
def test_a_papers_values_are_one_spec_given_or_not(head: str) -> None:
    common = {"backbone": "x", "weights": "random", "image_size": 32, "pooling": "none", "head": head}
    given = ModelSpec(**common, **SPATIAL_HEADS[head])  # type: ignore[arg-type]
    assert given == ModelSpec(**common)  # type: ignore[arg-type]
    assert given.head_values == SPATIAL_HEADS[head]
    assert ModelSpec.model_validate_json(given.model_dump_json()) == given


@pytest.mark.parametrize(("said", "meant"), [("1, 2.0,inf", "1,2,max"), ("max", "max"), ("0.50", "0.5")])
def test_temperatures_have_one_spelling(said: str, meant: str) -> None:
    common = {"backbone": "x", "weights": "random", "image_size": 32, "pooling": "none", "head": "csra"}
    assert ModelSpec(**common, head_temperatures=said).head_temperatures == meant  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "meant"), [("step=10,factor=0.1", "step=10"), ("step=2,3,factor=5e-1", "step=2,3,factor=0.5")]
)
def test_a_schedule_has_one_spelling(said: str, meant: str) -> None:
    assert Plan(epochs=3, batch_size=16, lr=1e-3, schedule=said).schedule == meant


def test_the_order_of_parameters_does_not_matter() -> None:
    spec = a_spec()
    method = spec.method.model_copy(update={"params": dict(reversed(spec.method.params.items()))})
    assert spec.model_copy(update={"method": method}).key == spec.key


def test_it_survives_being_written_down() -> None:
    spec = a_spec().model_copy(update={"skipped_images": ("x",), "stages": {"prior": "0123456789abcdef"}})
    text = tomli_w.dumps(spec.model_dump(mode="json", exclude_none=True))
    assert RunSpec.model_validate(tomllib.loads(text)) == spec
    assert RunSpec.model_validate(tomllib.loads(text)).key == spec.key
    assert RunSpec.model_validate_json(spec.model_dump_json()).key == spec.key


def test_where_a_protocols_suggestions_come_from_is_no_part_of_it() -> None:
    spec = a_spec()
    protocol = spec.protocol.model_copy(update={"suggested": {"m": {"k": 3}}, "sources": {"k": "a paper"}})
    assert spec.model_copy(update={"protocol": protocol}).key == spec.key


CHANGED: dict[str, dict[str, Any]] = {
    "protocol": {
        "name": "custom/tiny",
        "dataset": "other",
        "simulation": "none",
        "simulation_seed": 1,
        "train_split": "train2",
        "test_split": "test2",
        "metric_rules": "known-cells/2",
        "validation_share": 0.2,
        "validation_labels": "complete",
        "max_trials": 65,
    },
    "method": {"name": "n", "version": "2", "source_sha256": "b" * 64, "params": {"gamma": 4.0, "k": 6}},
    "model": {
        "backbone": "test_vit",
        "weights": "file",
        "weights_sha256": "c" * 64,
        "pooling": "mean+max",
        "head": "mlp",
        "head_width": 513,
        "head_dropout": 0.1,
        "head_lambda": 0.5,
        "head_temperatures": "1,max",
        "head_groups": 3,
        "head_layers": 3,
        "head_attention_heads": 2,
        "image_size": 33,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
    },
    "plan": {
        "epochs": 4,
        "batch_size": 17,
        "lr": 2e-3,
        "weight_decay": 0.0,
        "optimizer": "adam-coupled",
        "pct_start": 0.3,
        "ema_decay": 0.5,
        "ema_horizon": 0.1,
        "randaugment": "rand-m9-mstd0.5",
        "cutout": 0.5,
        "accumulate": 2,
        "clip_grad": 1.0,
        "grad_checkpointing": True,
        "schedule": "step=10,factor=0.5",
        "momentum": 0.8,
        "nesterov": True,
        "horizontal_flip": 0.5,
        "random_resized_crop": 0.25,
        "head_lr_multiplier": 10.0,
    },
    "": {
        "dataset_fingerprint": "e" * 64,
        "regime": "finetune",
        "recipe": "other",
        "precision": "bfloat16",
        "seed": 1,
        "selection": "validation",
        "train_part": "fit",
        "skipped_images": ("x",),
        "duplicates": 3,
        "tuned_by": "0123456789abcdef",
        "stages": {"prior": "0123456789abcdef"},
        "processes": 2,
        "numerics": 999,
        "embeddings": "f" * 64,
    },
}
SPATIAL_FIELDS = {name for values in SPATIAL_HEADS.values() for name in values}
MODEL = {"backbone": "x", "weights": "random", "image_size": 32}
NO_IDENTITY = {"suggested", "sources", "tuned_here"}


def test_every_field_has_a_change_below() -> None:
    parts: dict[str, type[BaseModel]] = {"protocol": Protocol, "method": MethodSpec, "model": ModelSpec, "plan": Plan}
    for part, kind in parts.items():
        assert set(kind.model_fields) - NO_IDENTITY == set(CHANGED[part])
    assert set(RunSpec.model_fields) == set(CHANGED[""]) | set(parts)


@pytest.mark.parametrize(("part", "name"), [(part, name) for part, values in CHANGED.items() for name in values])
def test_every_field_changes_the_key(part: str, name: str) -> None:
    spec, value = a_spec(), {name: CHANGED[part][name]}
    if head := next((head for head, values in SPATIAL_HEADS.items() if name in values), None):  # which no other has
        spec = spec.model_copy(
            update={"model": spec.model.model_copy(update={"head": head, "pooling": "none", "head_width": 16})}
        )
    if name in ("momentum", "nesterov"):  # which no other optimiser has
        spec = spec.model_copy(update={"plan": spec.plan.model_copy(update={"optimizer": "sgd"})})
    changed = spec.model_copy(update=value if not part else {part: getattr(spec, part).model_copy(update=value)})
    assert changed.key != spec.key
    assert RunSpec.model_validate_json(changed.model_dump_json()) == changed  # the change is one that is valid


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Plan, {"epochs": 0, "batch_size": 1, "lr": 1.0}),
        (Plan, {"epochs": 1, "batch_size": 1, "lr": 0.0}),
        (Plan, {"epochs": 1, "batch_size": 1, "lr": float("nan")}),
        (Plan, {"epochs": 1, "batch_size": 1, "lr": 1.0, "pct_start": 1.0}),
        (Plan, {"epochs": 1, "batch_size": 1, "lr": 1.0, "schedule": "step"}),
        (Plan, {"epochs": 1, "batch_size": 1, "lr": 1.0, "schedule": "step=0"}),
        (Plan, {"epochs": 1, "batch_size": 1, "lr": 1.0, "schedule": "step=3,2"}),
        (Plan, {"epochs": 1, "batch_size": 1, "lr": 1.0, "schedule": "step=3,factor=1"}),
        (Plan, {"epochs": 1, "batch_size": 1, "lr": 1.0, "schedule": "step=3,factor=e"}),
        (Plan, {"epochs": 1, "batch_size": 1, "lr": 1.0, "momentum": 0.5}),
        (Plan, {"epochs": 1, "batch_size": 1, "lr": 1.0, "optimizer": "sgd", "momentum": 0.0, "nesterov": True}),
        (Plan, {"epochs": 1, "batch_size": 1, "lr": 1.0, "random_resized_crop": 0.0}),
        (Plan, {"epochs": 1, "batch_size": 1, "lr": 1.0, "learning_rate": 1.0}),
        (ModelSpec, {"backbone": "x", "weights": "downloaded", "image_size": 32}),
        (ModelSpec, {"backbone": "x", "weights": "random", "image_size": 4}),
        (ModelSpec, {**MODEL, "pooling": "none"}),
        (ModelSpec, {**MODEL, "head": "csra"}),
        (ModelSpec, {**MODEL, "head_lambda": 0.5}),
        (ModelSpec, {**MODEL, "head": "csra", "pooling": "none", "head_layers": 2}),
        (ModelSpec, {**MODEL, "head": "csra", "pooling": "none", "head_temperatures": "1,,2"}),
        (ModelSpec, {**MODEL, "head": "csra", "pooling": "none", "head_temperatures": "0"}),
        (ModelSpec, {**MODEL, "head": "csra", "pooling": "none", "head_temperatures": "nan"}),
        (ModelSpec, {**MODEL, "head": "query2label", "pooling": "none", "head_width": 18}),
    ],
)
def test_what_is_out_of_range_or_unknown_is_refused(kind: type[BaseModel], values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(values)


def test_a_spec_is_immutable() -> None:
    with pytest.raises(ValidationError):
        a_spec().seed = 3  # type: ignore[misc]

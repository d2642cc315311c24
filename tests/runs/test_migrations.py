"""Records of older schema versions are brought up to the present one."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from plbench.errors import StoreError
from plbench.runs.migrations import OLDEST_VERSION, SCHEMA_VERSION, upgraded
from plbench.runs.record import RECORD, Record, read_record
from plbench.spec import RunSpec

SPEC: dict[str, Any] = {
    "protocol": {
        "name": "scenes-fpc300/v1",
        "dataset": "scenes",
        "simulation": "fpc=300",
        "simulation_seed": 0,
        "train_split": "train",
        "test_split": "test",
        "metric_rules": "known-cells/1",
        "validation_share": 0.1,
        "validation_labels": "partial",
    },
    "dataset_fingerprint": "8" * 64,
    "method": {"name": "ce-ignore", "version": "1", "source_sha256": "a" * 64, "params": {}},
    "model": {"backbone": "test_resnet", "weights": "random", "image_size": 32},
    "regime": "probe",
    "recipe": "quick",
    "plan": {"epochs": 3, "batch_size": 16, "lr": 0.001},
    "precision": "float32",
    "seed": 0,
}
KEY = RunSpec.model_validate(SPEC).sha256()
VERSION_4: dict[str, Any] = {
    "schema_version": 4,
    "key": KEY[:16],
    "spec_sha256": KEY,
    "spec": SPEC,
    "protocol_sha256": RunSpec.model_validate(SPEC).protocol.sha256(),
    "status": "done",
    "finished_at": "2026-11-01T12:00:00+00:00",
    "title": "CE, Ignore",
    "paper": "",
    "source_file": "methods/ce_ignore.py",
    "configuration": "default",
    "tuning": None,
    "environment": {"plbench": "0.1.0", "git_commit": "0" * 40, "git_dirty": False},
    "data": None,
    "metrics": {},
    "selection": None,
    "priors": {},
    "hidden_truth": None,
    "cost": {"seconds": {"total": 11.0}, "images_per_second": 900.0, "peak_memory_mb": 800.0},
    "training": {"final_loss": 0.25, "steps": 96.0},
    "files": {},
    "warnings": [],
    "error": None,
}
"""As plbench wrote it before schema 5."""


VERSION_4_METRICS: dict[str, Any] = {
    "map_c": {"value": 48.3, "low": 47.0, "high": 49.5},
    "map_o": {"value": 69.7, "low": 69.1, "high": 70.2},
    "micro_ap": 61.0,
    "cf1": 12.8,
    "of1": 5.3,
    "threshold": 0.5,
    "ranking_loss": 0.1,
    "precision_at_k": None,
    "num_images": 100,
    "num_classes": 4,
    "num_classes_scored": 4,
    "num_cells": 200,
    "num_positives": 50,
    "groups": {},
    "quintiles": [],
}


def with_weights(content: dict[str, Any], weights: str) -> dict[str, Any]:
    spec = {**content["spec"], "model": {**content["spec"]["model"], "weights": weights}}
    key = RunSpec.model_validate(spec).sha256()
    return {**content, "spec": spec, "spec_sha256": key, "key": key[:16]}


@pytest.mark.parametrize(
    ("weights", "seen"), [("random", ()), ("packaged", ("imagenet-1k",)), ("pretrained", "?"), ("file", "?")]
)
def test_a_record_of_schema_4_is_read_without_its_f1_at_half(tmp_path: Path, weights: str, seen: Any) -> None:
    metrics = {"test": VERSION_4_METRICS, "test_raw": {**VERSION_4_METRICS, "cf1": 1.0}}
    fourth = with_weights({**VERSION_4, "metrics": metrics}, weights)
    (tmp_path / RECORD).write_text(json.dumps(fourth))
    record = read_record(tmp_path)
    assert (record.schema_version, record.spec_sha256) == (5, fourth["spec_sha256"])
    for split in record.metrics.values():
        assert (split.f1, split.thresholds, split.f1_top3, split.auroc, split.ece) == (None,) * 5
        kept = VERSION_4_METRICS.keys() - {"cf1", "of1", "threshold"}
        told = split.model_dump(exclude_unset=True)
        assert {name: told[name] for name in kept} == {name: VERSION_4_METRICS[name] for name in kept}
    assert record.test_seen_in_pretraining is None
    if seen == "?":
        assert record.pretraining is None
    else:
        assert record.pretraining is not None and record.pretraining.datasets == seen


@pytest.mark.parametrize("name", ["f1", "thresholds", "f1_top3", "auroc", "ece"])
def test_figures_of_schema_5_in_a_record_of_schema_4_are_refused(name: str) -> None:
    fourth = {**VERSION_4, "metrics": {"test": {**VERSION_4_METRICS, name: None}}}
    with pytest.raises(ValueError, match=f"no field 'metrics.{name}'"):
        upgraded(fourth)


@pytest.mark.parametrize("name", ["pretraining", "test_seen_in_pretraining"])
def test_pretraining_in_a_record_of_schema_4_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"no field '{name}'"):
        upgraded({**VERSION_4, name: None})


@pytest.mark.parametrize("metrics", [None, [], {"test": 3}, "metrics"])
def test_metrics_that_are_none_are_left_to_validation(metrics: Any) -> None:
    fourth = {**VERSION_4, "metrics": metrics}
    assert upgraded(fourth)["metrics"] == metrics


def test_a_record_of_schema_3_is_read(tmp_path: Path) -> None:
    third = {**VERSION_4, "schema_version": 3, "status": "failed", "error": "it diverged"}
    (tmp_path / RECORD).write_text(json.dumps(third))
    record = read_record(tmp_path)
    assert (record.schema_version, record.configuration, record.tuning) == (5, "default", None)
    kept = third.keys() - {"schema_version", "spec", "cost"}
    assert {name: record.model_dump()[name] for name in kept} == {name: third[name] for name in kept}
    assert record.spec.sha256() == record.spec_sha256


def test_what_is_upgraded_is_not_changed_in_place() -> None:
    before = copy.deepcopy(VERSION_4)
    upgraded(VERSION_4)
    assert before == VERSION_4


def test_the_present_schema_stays_as_it_is() -> None:
    present = Record.model_validate(upgraded(VERSION_4)).model_dump(mode="json")
    assert present["schema_version"] == SCHEMA_VERSION
    assert upgraded(present) == present


@pytest.mark.parametrize("version", [0, 1, 2, 6, -1, "1", 1.5, None, True, [1]])
def test_an_unknown_schema_stays_as_it_is(version: Any) -> None:
    content = {**VERSION_4, "schema_version": version}
    assert upgraded(content) == content


@pytest.mark.parametrize("version", [1, 2])
def test_records_that_nobody_has_are_refused(tmp_path: Path, version: int) -> None:
    (tmp_path / RECORD).write_text(json.dumps({**VERSION_4, "schema_version": version}))
    with pytest.raises(StoreError, match=f"has record schema {version}; this plbench reads 3 to 5"):
        read_record(tmp_path)


def test_where_the_time_went_came_with_schema_4() -> None:
    cost = {"seconds": {"training": 1.0}, "images_per_second": 10.0, "peak_memory_mb": 100.0}
    third = {**VERSION_4, "schema_version": 3, "cost": cost}
    record = Record.model_validate(upgraded(third))
    assert record.cost is not None and record.cost.phases == {}
    with pytest.raises(ValueError, match=r"no field 'cost.phases'"):
        upgraded({**third, "cost": {**cost, "phases": {"data": 1.0}}})


def test_every_version_has_a_step() -> None:
    """From the oldest that is read to the present, each one up."""
    for version in range(OLDEST_VERSION, SCHEMA_VERSION):
        assert upgraded({**VERSION_4, "schema_version": version})["schema_version"] == SCHEMA_VERSION

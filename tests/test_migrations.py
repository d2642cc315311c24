"""Records of older schema versions are brought up to the present one."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from plbench.errors import StoreError
from plbench.migrations import SCHEMA_VERSION, upgraded
from plbench.record import RECORD, Record, read_record
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
VERSION_1: dict[str, Any] = {
    "schema_version": 1,
    "key": KEY[:16],
    "spec_sha256": KEY,
    "spec": SPEC,
    "status": "done",
    "finished_at": "2026-11-01T12:00:00+00:00",
    "title": "CE, Ignore",
    "environment": {"plbench": "0.1.0", "git_commit": "0" * 40, "git_dirty": False},
    "data": None,
    "metrics": {},
    "selection": None,
    "priors": {},
    "hidden_truth": None,
    "cost": None,
    "training": {"final_loss": 0.25, "steps": 96.0},
    "files": {},
    "warnings": [],
    "error": None,
}
"""As plbench wrote it before schema 2."""


def test_a_record_of_schema_1_is_read(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text(json.dumps(VERSION_1))
    record = read_record(tmp_path)
    assert (record.schema_version, record.configuration, record.protocol_sha256) == (4, "unknown", None)
    assert record.tuning is None
    assert (record.paper, record.source_file) == ("", None)
    kept = VERSION_1.keys() - {"schema_version", "spec"}
    assert {name: record.model_dump()[name] for name in kept} == {name: VERSION_1[name] for name in kept}
    assert record.spec.sha256() == record.spec_sha256


def test_what_is_upgraded_is_not_changed_in_place() -> None:
    before = copy.deepcopy(VERSION_1)
    upgraded(VERSION_1)
    assert before == VERSION_1


def test_the_present_schema_stays_as_it_is() -> None:
    present = Record.model_validate(upgraded(VERSION_1)).model_dump(mode="json")
    assert present["schema_version"] == SCHEMA_VERSION
    assert upgraded(present) == present


@pytest.mark.parametrize("version", [0, 5, -1, "1", 1.5, None, True, [1]])
def test_an_unknown_schema_stays_as_it_is(version: Any) -> None:
    content = {**VERSION_1, "schema_version": version}
    assert upgraded(content) == content


@pytest.mark.parametrize("name", ["paper", "source_file", "configuration", "protocol_sha256", "tuning"])
def test_a_field_that_came_later_is_refused(tmp_path: Path, name: str) -> None:
    """Else a record could claim to be of schema 1, and so escape what is asked of later ones."""
    (tmp_path / RECORD).write_text(json.dumps({**VERSION_1, name: "default"}))
    with pytest.raises(StoreError, match=f"schema . has no field '{name}'"):
        read_record(tmp_path)


def test_where_the_time_went_came_with_schema_4() -> None:
    cost = {"seconds": {"training": 1.0}, "images_per_second": 10.0, "peak_memory_mb": 100.0}
    third = {**upgraded(VERSION_1), "schema_version": 3, "cost": cost}
    record = Record.model_validate(upgraded(third))
    assert record.cost is not None and record.cost.phases == {}
    with pytest.raises(ValueError, match=r"no field 'cost.phases'"):
        upgraded({**third, "cost": {**cost, "phases": {"data": 1.0}}})


def test_every_version_has_a_step() -> None:
    """From the first to the present, each one up."""
    for version in range(1, SCHEMA_VERSION):
        assert upgraded({**VERSION_1, "schema_version": version})["schema_version"] == SCHEMA_VERSION

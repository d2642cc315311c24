"""The run record: written and read under one schema, and refused where it is not what it says."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from plbench.errors import StoreError
from plbench.runs.record import RECORD, Estimate, Record, read_record, reference, write_record
from plbench.spec import MethodSpec, ModelSpec, Plan, Protocol, RunSpec


def a_record(**changes: Any) -> Record:
    spec = RunSpec(
        protocol=Protocol(name="tiny/v1", dataset="tiny"),
        dataset_fingerprint="f" * 64,
        method=MethodSpec(name="m", version="1", source_sha256="a" * 64, params={"gamma": 4.0}),
        model=ModelSpec(backbone="test_resnet", weights="random", image_size=32),
        regime="probe",
        recipe="tiny",
        plan=Plan(epochs=3, batch_size=16, lr=1e-3),
        precision="float32",
        seed=0,
    )
    values = {
        "key": spec.key,
        "spec_sha256": spec.sha256(),
        "spec": spec,
        "status": "done",
        "finished_at": "2026-01-01T00:00:00+00:00",
        "title": "M",
        "environment": {"python": "3.11"},
    }
    return Record(**(values | changes))


def edited(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The record's file in `folder` with its JSON changed."""
    write_record(folder, a_record())
    content = json.loads((folder / RECORD).read_text())
    change(content)
    (folder / RECORD).write_text(json.dumps(content))
    return folder


def test_what_is_written_is_read(tmp_path: Path) -> None:
    record = a_record(status="failed", error="it diverged", training={"final_loss": 0.1 + 0.2}, warnings=["é"])
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record


def test_no_number_is_nan(tmp_path: Path) -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValidationError):
            a_record(training={"final_loss": value})
        with pytest.raises(ValidationError):
            Estimate(value=value)
    for value in (-0.1, 100.1):
        with pytest.raises(ValidationError):
            Estimate(value=value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c.update(schema_version=6), "has record schema 6; this plbench reads 3 to 5"),
        (lambda c: c.pop("schema_version"), "has record schema None"),
        (lambda c: c.pop("spec"), "is not a valid record: spec: it is missing"),
        (lambda c: c.update(status="fine"), "is not a valid record: status: "),
        (lambda c: c.update(extra=1), "is not a valid record: extra: "),
        (lambda c: c["spec"]["plan"].update(epochs=0), "is not a valid record: spec.plan.epochs: "),
        (lambda c: c.update(error="it stopped"), "is not a valid record: error: a run that is done has no error"),
        (lambda c: c["spec"].update(seed=1), "was changed: its spec has sha256"),
        (lambda c: c.update(key="0" * 16), "was changed: its spec has sha256 .* it says 0000000000000000"),
        (lambda c: c.update(spec_sha256="0" * 64), "was changed"),
    ],
)
def test_a_record_that_is_not_what_it_says_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], sentence: str
) -> None:
    with pytest.raises(StoreError, match=sentence):
        read_record(edited(tmp_path, change))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"1", b"\xff\xfe", b"null", b"[" * 100_000])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / RECORD).write_bytes(content)
    with pytest.raises(StoreError, match=str(tmp_path / RECORD)):
        read_record(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot be read as a record: .*No such file"):
        read_record(tmp_path)


def test_a_key_that_is_a_shorter_start_of_the_hash_is_not_enough(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="was changed"):
        read_record(edited(tmp_path, lambda content: content.update(key="")))


def test_a_file_is_referred_to_by_content(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    found = reference(tmp_path / "file")
    assert found.sha256 == hashlib.sha256(b"abc").hexdigest()
    assert found.num_bytes == 3

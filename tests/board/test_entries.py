"""Records from anybody: files are read within limits, and what is wrong is said of a file and a line."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plbench.board.entries import FILES, MAX_BYTES, ClassRow, EntryError, parse_entry, read_contents
from plbench.runs import tables
from plbench.runs.record import Record, write_record
from plbench.spec import MethodSpec, ModelSpec, Plan, Protocol, RunSpec

TABLE = "class_id,class_name,ap,positives,negatives,groups,quintile\n"
ROWS = TABLE + '/m/01,"Salt, pepper",12.5,3,4,rare;kitchen,1\nb,B,,0,7,,2\n'
REPLICATES = "map_c,map_o,rare\n1.5,2.5,nan\n3.5,4.5,5.5\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    spec = RunSpec(
        protocol=Protocol(name="tiny/v1", dataset="tiny"),
        dataset_fingerprint="f" * 64,
        method=MethodSpec(name="m", version="1", source_sha256="a" * 64, params={}),
        model=ModelSpec(backbone="test_resnet", weights="random", image_size=32),
        regime="probe",
        recipe="tiny",
        plan=Plan(epochs=3, batch_size=16, lr=1e-3),
        precision="float32",
        seed=0,
    )
    record = Record(
        key=spec.key,
        spec_sha256=spec.sha256(),
        spec=spec,
        status="done",
        finished_at="2026-01-01T00:00:00+00:00",
        title="M",
        environment={},
    )
    write_record(tmp_path, record)
    (tmp_path / "per_class.csv").write_text(ROWS)
    (tmp_path / "replicates.csv").write_text(REPLICATES)
    return tmp_path


def test_what_was_written_is_read(folder: Path) -> None:
    entry = parse_entry(read_contents(folder))
    assert entry.key == entry.record.spec.key
    assert entry.per_class == (
        ClassRow("/m/01", "Salt, pepper", 12.5, 3, 4, ("rare", "kitchen"), 1),
        ClassRow("b", "B", None, 0, 7, (), 2),
    )
    assert entry.replicates["map_o"].tolist() == [2.5, 4.5]
    assert entry.replicates["rare"][1] == 5.5
    assert entry.sha256 == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}


def test_tables_without_groups_are_read(folder: Path) -> None:
    (folder / "per_class.csv").write_text("class_id,class_name,ap,positives,negatives\na,A,1,2,3\n")
    assert parse_entry(read_contents(folder)).per_class == (ClassRow("a", "A", 1.0, 2, 3, (), None),)


@pytest.mark.parametrize(
    ("name", "content", "field"),
    [
        ("record.json", "", "record.json"),
        ("record.json", "[]", "schema_version"),
        ("record.json", "[" * 100_000, "record.json"),
        ("record.json", '{"schema_version": 6}', "schema_version"),
        ("record.json", '{"schema_version": true}', "schema_version"),
        ("record.json", '{"schema_version": 3}', "key"),
        ("record.json", "NaN", "record.json"),
        ("record.json", b"\xff", "record.json"),
        ("per_class.csv", "", "per_class.csv"),
        ("per_class.csv", TABLE, "per_class.csv"),
        ("per_class.csv", b"\xff", "per_class.csv"),
        ("per_class.csv", TABLE + 'a,"A,1,2,3,,1\n', "per_class.csv"),
        ("per_class.csv", TABLE + f'a,"{"x" * 200_000}",1,2,3,,1\n', "per_class.csv"),
        ("per_class.csv", "class_id,class_name\na,A\n", "per_class.csv, line 2"),
        ("per_class.csv", TABLE + "a,A,nan,2,3,,1\n", "per_class.csv, line 2"),
        ("per_class.csv", TABLE + "a,A,inf,2,3,,1\n", "per_class.csv, line 2"),
        ("per_class.csv", TABLE + "a,A,100.1,2,3,,1\n", "per_class.csv, line 2"),
        ("per_class.csv", TABLE + "a,A,1,2,3,,1\nb,B,1,-2,3,,1\n", "per_class.csv, line 3"),
        ("per_class.csv", TABLE + f"a,A,1,{10**10},3,,1\n", "per_class.csv, line 2"),
        ("per_class.csv", TABLE + "a,A,1,2\n", "per_class.csv, line 2"),
        ("per_class.csv", TABLE + "a,A,1,2.5,3,,1\n", "per_class.csv, line 2"),
        ("replicates.csv", "", "replicates.csv"),
        ("replicates.csv", "map_c,map_c\n1,2\n", "replicates.csv"),
        ("replicates.csv", "map_c\n" + "1\n" * 20_001, "replicates.csv"),
        ("replicates.csv", "map_c,map_o\n1,2\n3\n", "replicates.csv, line 3"),
        ("replicates.csv", "map_c,map_o\n1,2,3\n", "replicates.csv, line 2"),
        ("replicates.csv", "map_c\n1e400\n", "replicates.csv, line 2"),
        ("replicates.csv", "map_c\n-1\n", "replicates.csv, line 2"),
        ("replicates.csv", "map_c\nx\n", "replicates.csv, line 2"),
    ],
)
def test_what_is_wrong_is_said_where(folder: Path, name: str, content: str | bytes, field: str) -> None:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(EntryError) as raised:
        parse_entry(read_contents(folder))
    assert raised.value.field == field
    assert str(raised.value) == f"{field}: {raised.value.found}"


@pytest.mark.parametrize("name", FILES)
def test_a_large_file_is_not_read(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with (folder / name).open("r+b") as file:
        file.truncate(50 << 20)
    opened: list[Path] = []
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(path) or real(path))
    with pytest.raises(EntryError, match=f"{name}: has 52,428,800 bytes; expected at most {MAX_BYTES[name]:,}"):
        parse_entry(read_contents(folder))
    assert folder / name not in opened


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("act", ["missing", "folder", "link", "pipe"])
def test_only_plain_files_are_read(folder: Path, name: str, act: str) -> None:
    path = folder / name
    path.rename(folder / "kept")
    {
        "missing": lambda: None,
        "folder": path.mkdir,
        "link": lambda: path.symlink_to(folder / "kept"),
        "pipe": lambda: os.mkfifo(path),
    }[act]()
    with pytest.raises(EntryError, match="is missing, or not a plain file"):
        parse_entry(read_contents(folder))


def test_the_field_of_a_record_is_named(folder: Path) -> None:
    content = json.loads((folder / "record.json").read_text())
    content["spec"]["plan"]["epochs"] = 0
    (folder / "record.json").write_text(json.dumps(content))
    with pytest.raises(EntryError) as raised:
        parse_entry(read_contents(folder))
    assert raised.value.field == "spec.plan.epochs"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(FILES[1:]), place=st.integers(0, 200), noise=st.binary(max_size=8))
def test_noise_is_read_or_refused(folder: Path, name: str, place: int, noise: bytes) -> None:
    """No file raises anything else."""
    content = {"per_class.csv": ROWS, "replicates.csv": REPLICATES}[name].encode()
    (folder / name).write_bytes(content[:place] + noise + content[place + len(noise) :])
    try:
        parse_entry(read_contents(folder))
    except EntryError as error:
        assert error.field.startswith(name)
    finally:
        (folder / name).write_bytes(content)


def test_the_limits_hold_what_the_largest_dataset_needs() -> None:
    """OpenImages has 9,600 image-level classes; LVIS 1,203."""
    assert tables.MAX_CLASSES >= 9_600
    longest = len(",".join(("/m/0123456", "x" * 40, "12.345678901234567", "123456", "123456", "group", "5"))) + 1
    assert MAX_BYTES["per_class.csv"] >= 9_600 * longest

"""Columns of text behave as the tuple of their rows does, wherever they are kept."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plbench.data import text_column as columns
from plbench.data.text_column import PatternColumn, TextColumn, take
from plbench.errors import DataError

TEXTS = st.lists(st.text(max_size=5), max_size=12)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Iteration goes over several chunks."""
    monkeypatch.setattr(columns, "_CHUNK", 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("columns")


def forms(texts: list[str], folder: Path) -> Iterator[TextColumn]:
    """The same column in memory, from chunks of Arrow's, and memory-mapped."""
    yield TextColumn.of(iter(texts))
    cut = len(texts) // 2
    yield TextColumn.of_arrow(pa.chunked_array([texts[:cut], texts[cut:]], pa.string()))
    path = folder / f"{random.Random(repr(texts)).getrandbits(64)}.arrow"
    TextColumn.of(texts).save(path)
    yield TextColumn.open(path)


@settings(max_examples=40, deadline=None)
@given(texts=TEXTS, data=st.data())
def test_a_column_is_the_tuple_of_its_rows(texts: list[str], data: st.DataObject, folder: Path) -> None:
    index = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=6)) if texts else []
    cut = data.draw(st.slices(len(texts)))
    for column in forms(texts, folder):
        assert len(column) == len(texts) and list(column) == texts
        assert column == texts and column == tuple(texts) and column == TextColumn.of(texts)
        assert [column[row] for row in range(-len(texts), len(texts))] == texts + texts
        assert list(column[cut]) == texts[cut]
        assert list(take(column, np.array(index, np.int64))) == [texts[row] for row in index]
        assert column != [*texts, "more"] and column != TextColumn.of([*texts, "more"])
        with pytest.raises(IndexError):
            column[len(texts)]


@settings(max_examples=20, deadline=None)
@given(texts=TEXTS)
def test_a_pattern_says_what_each_id_becomes(texts: list[str]) -> None:
    ids = [f"f{text}" for text in texts]
    column = PatternColumn(TextColumn.of(ids), "train/train_{id[0]}/{id}.jpg")
    paths = [f"train/train_f/{identity}.jpg" for identity in ids]
    assert len(column) == len(ids) and list(column) == paths
    assert [column[row] for row in range(len(ids))] == paths
    assert list(column[1::2]) == paths[1::2]
    assert list(take(column, np.arange(len(ids))[::-1])) == paths[::-1]


def test_taking_of_a_plain_sequence_gives_a_tuple() -> None:
    assert take(["a", "b", "c"], np.array([2, 0, 2])) == ("c", "a", "c")


def test_a_column_does_not_hide_behind_its_address() -> None:
    assert repr(TextColumn.of(list("abcd"))) == "TextColumn(4 rows: 'a', 'b', 'c', …)"
    assert repr(TextColumn.of(["é"])) == "TextColumn(1 rows: 'é')"
    assert (TextColumn.of(["a"]) == 3) is False
    with pytest.raises(TypeError):
        hash(TextColumn.of(["a"]))


def test_an_open_column_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    TextColumn.of([f"{number:016x}" for number in range(50_000)]).save(tmp_path / "ids.arrow")
    before = pa.total_allocated_bytes()
    column = TextColumn.open(tmp_path / "ids.arrow")
    assert column[49_999] == f"{49_999:016x}"
    assert pa.total_allocated_bytes() - before < 10_000


def write_ipc(path: Path, *arrays: pa.Array, name: str = "text") -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, pa.schema([(name, arrays[0].type)])) as writer:
        for array in arrays:
            writer.write_batch(pa.record_batch([array], names=[name]))


FOREIGN = {
    "numbers": lambda path: write_ipc(path, pa.array([1, 2])),
    "short text": lambda path: write_ipc(path, pa.array(["a"], pa.string())),
    "nulls": lambda path: write_ipc(path, pa.array(["a", None], pa.large_string())),
    "another name": lambda path: write_ipc(path, pa.array(["a"], pa.large_string()), name="words"),
    "no batch": lambda path: pa.ipc.new_file(str(path), pa.schema([("text", pa.large_string())])).close(),
    "text": lambda path: path.write_text("a\nb\n"),
    "nothing": lambda path: path.write_bytes(b""),
    "a folder": lambda path: path.mkdir(),
    "no file": lambda path: None,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_column_is_refused_by_name(name: str, tmp_path: Path) -> None:
    FOREIGN[name](tmp_path / "ids.arrow")
    with pytest.raises(DataError, match=r"ids\.arrow does not hold a column written by plbench"):
        TextColumn.open(tmp_path / "ids.arrow")


def test_a_cut_off_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "ids.arrow"
    TextColumn.of([f"image {number}" for number in range(40)]).save(path)
    content = path.read_bytes()
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match=r"ids\.arrow does not hold"):
            TextColumn.open(path)


def test_a_damaged_file_never_reads_foreign_memory(tmp_path: Path) -> None:
    path = tmp_path / "ids.arrow"
    texts = [f"image {number}" for number in range(40)]
    TextColumn.of(texts).save(path)
    content = path.read_bytes()
    refused = 0
    for place in range(0, len(content), 3):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            column = TextColumn.open(path)
        except DataError:
            refused += 1
        else:
            assert sum(map(len, column)) <= len(content)  # other letters at most
    assert refused > 100

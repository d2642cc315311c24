"""Rows of annotation files become the labels that a reader with dictionaries makes of them."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plbench.data.annotations import collect
from plbench.data.annotations.collect import Annotations, CellCollector, settle_cells
from plbench.data.labels import PartialLabels
from plbench.data.text_column import TextColumn
from plbench.errors import DataError

Row = tuple[str, str, bool]
Cells = dict[tuple[str, str], int]
FOREIGN = ("/m/foreign", "", "c")

OUTSIDE = "{} of {} rows name classes that are not in the class list; left out"
REPEATED = "{} rows repeat what another says; each cell counts once"
CONTRADICTED = "{} (image, class) cells are called both present and absent; taken as unknown"


@dataclass(frozen=True)
class Naive:
    """What rows say, one row at a time: images in order of first mention, known cells, sentences."""

    images: list[str]
    cells: Cells
    notes: tuple[str, ...]

    @classmethod
    def read(cls, rows: Sequence[Row], class_ids: Sequence[str]) -> Naive:
        said: dict[tuple[str, str], Counter[bool]] = {}
        outside = 0
        for image, name, present in rows:
            if name in class_ids:
                said.setdefault((image, name), Counter())[present] += 1
            else:
                outside += 1
        repeated = sum(count - 1 for signs in said.values() for count in signs.values())
        cells = {cell: 1 if True in signs else -1 for cell, signs in said.items() if len(signs) == 1}
        numbers = [
            (outside, OUTSIDE.format(f"{outside:,}", f"{len(rows):,}")),
            (repeated, REPEATED.format(f"{repeated:,}")),
            (len(said) - len(cells), CONTRADICTED.format(f"{len(said) - len(cells):,}")),
        ]
        images = list(dict.fromkeys(image for image, _, _ in rows))
        return cls(images, cells, tuple(sentence for number, sentence in numbers if number))


def collected(rows: Sequence[Row], class_ids: Sequence[str], cuts: Sequence[int] = ()) -> Annotations:
    """The collector's reading, with the rows cut into batches at some places."""
    collector = CellCollector(class_ids, [f"name of {name}" for name in class_ids])
    bounds = [0, *sorted(cuts), len(rows)]
    for start, stop in itertools.pairwise(bounds):
        batch = rows[start:stop]
        images, names = (pa.array([row[part] for row in batch], pa.string()) for part in (0, 1))
        collector.add(images, names, np.array([row[2] for row in batch], bool))
    return collector.finish()


def known(found: Annotations) -> Cells:
    rows, columns, values = (array.tolist() for array in found.labels.cells())
    cells = {
        (found.image_ids[row], found.labels.class_ids[column]): value
        for row, column, value in zip(rows, columns, values, strict=True)
    }
    assert len(cells) == len(rows)
    return cells


def check_canonical(labels: PartialLabels) -> None:
    """Nobody may have to take the collector's word for what scipy would find."""
    matrix = labels.matrix
    matrix.check_format(full_check=True)
    assert matrix.dtype == np.int8 and matrix.indices.dtype == matrix.indptr.dtype
    for start, stop in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
        assert (np.diff(matrix.indices[start:stop]) > 0).all()


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[Row], list[str], list[int]]:
    """Rows, classes, and where the rows are cut into batches; a row is likely to be met again, or contradicted."""
    class_ids = [f"/m/{number}" for number in draw(st.permutations(range(draw(st.integers(1, 5)))))]
    images = draw(st.lists(st.text("aé0", max_size=3), min_size=1, max_size=6, unique=True))
    row = st.tuples(st.sampled_from(images), st.sampled_from([*class_ids, *FOREIGN]), st.booleans())
    rows = draw(st.lists(row, max_size=40))
    order = draw(st.sampled_from(["any", "rising", "falling"]))
    if order != "any":
        rows.sort(key=lambda item: item[0].encode(), reverse=order == "falling")
    return rows, class_ids, draw(st.lists(st.integers(0, len(rows)), max_size=4))


@pytest.mark.parametrize("piece", [1, 3, 1 << 18])
@settings(max_examples=60, deadline=None)
@given(table=tables())
def test_any_rows_are_read_as_a_naive_reader_reads_them(
    piece: int, table: tuple[list[Row], list[str], list[int]]
) -> None:
    rows, class_ids, cuts = table
    expected = Naive.read(rows, class_ids)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(collect, "_PIECE", piece)
        found = collected(rows, class_ids, cuts)
    assert list(found.image_ids) == expected.images
    assert known(found) == expected.cells
    assert found.notes == expected.notes
    assert found.labels.class_ids == tuple(class_ids)
    assert found.labels.class_names == tuple(f"name of {name}" for name in class_ids)
    check_canonical(found.labels)


@settings(max_examples=40, deadline=None)
@given(table=tables(), seed=st.integers(0, 2**32 - 1))
def test_shuffled_rows_change_nothing_but_the_order_of_images(
    table: tuple[list[Row], list[str], list[int]], seed: int
) -> None:
    rows, class_ids, cuts = table
    order = np.random.default_rng(seed).permutation(len(rows))
    one, other = collected(rows, class_ids, cuts), collected([rows[row] for row in order], class_ids)
    assert known(one) == known(other) and one.notes == other.notes
    assert sorted(one.image_ids) == sorted(other.image_ids)


@settings(max_examples=40, deadline=None)
@given(table=tables(), extra=st.integers(0, 3))
def test_cells_in_memory_are_settled_the_same_way(table: tuple[list[Row], list[str], list[int]], extra: int) -> None:
    rows, class_ids, _ = table
    expected = Naive.read(rows, class_ids)
    labels, notes = settle_cells(
        np.array([expected.images.index(image) for image, _, _ in rows], np.int64),
        np.array([class_ids.index(name) if name in class_ids else -1 for _, name, _ in rows], np.int32),
        np.array([present for _, _, present in rows], bool),
        num_images=len(expected.images) + extra,
        class_ids=class_ids,
        class_names=class_ids,
        what="rows",
    )
    images = TextColumn.of([*expected.images, *(f"without rows {number}" for number in range(extra))])
    assert known(Annotations(images, labels)) == expected.cells and notes == expected.notes
    assert labels.num_images == len(images)
    check_canonical(labels)


@pytest.mark.parametrize("num_classes", [2**15 - 1, 2**15, 40_000])
@pytest.mark.parametrize("rising", [True, False])
def test_the_last_of_many_classes_is_told_from_none(num_classes: int, rising: bool) -> None:
    class_ids = [str(number) for number in range(num_classes)]
    rng = np.random.default_rng(num_classes)
    names = [class_ids[-1], class_ids[0], class_ids[2**15 - 2], "foreign", *rng.choice(class_ids, 200).tolist()]
    rows = [(f"{rng.integers(20):02d}", name, bool(rng.random() < 0.5)) for name in names for _ in range(2)]
    rows = sorted(rows) if rising else rows
    expected = Naive.read(rows, class_ids)
    found = collected(rows, class_ids, [len(rows) // 3])
    assert known(found) == expected.cells and found.notes == expected.notes
    assert list(found.image_ids) == expected.images


def test_many_rows_in_many_pieces() -> None:
    rng = np.random.default_rng(0)
    num_rows = 3 * collect._PIECE
    images = np.sort(rng.integers(0, 40_000, num_rows))
    columns, present = rng.integers(-1, 30, num_rows), rng.random(num_rows) < 0.5
    names = [f"/m/{number}" for number in range(30)]
    collector = CellCollector(names, names)
    texts, classes = pa.array([f"{i:08x}" for i in images]), pa.array([f"/m/{c}" for c in columns])
    for start in range(0, num_rows, 100_001):
        part = slice(start, start + 100_001)
        collector.add(texts[part], classes[part], present[part])
    found = collector.finish()
    dense = np.zeros((2, 40_000, 30), np.int64)
    inside = columns >= 0
    np.add.at(dense, (present[inside].astype(int), images[inside], columns[inside]), 1)
    signs = dense > 0
    expected = (signs[1].astype(np.int8) - signs[0])[np.unique(images)]
    assert np.array_equal(found.labels.matrix.toarray(), expected)
    assert list(found.image_ids) == [f"{i:08x}" for i in np.unique(images)]
    counts = (int((~inside).sum()), int((dense - signs).sum()), int(signs.all(axis=0).sum()))
    assert [int(note.split()[0].replace(",", "")) for note in found.notes] == list(counts)


def test_no_rows_are_no_images() -> None:
    for found in (CellCollector(["a"], ["A"]).finish(), collected([], ["a"])):
        assert len(found.image_ids) == found.labels.num_images == 0 and found.notes == ()


EXAMPLE = collected([("b", "x", True), ("b", "y", False), ("a", "x", True), ("c", "y", True)], ["x", "y", "z"])
WHOLE = Annotations(
    EXAMPLE.image_ids,
    EXAMPLE.labels,
    TextColumn.of(["1/b", "2/a", "c"]),
    {"few": ("x", "z"), "none": ()},
    ("Said 舞.",),
)


def content(found: Annotations) -> object:
    paths = None if found.image_paths is None else list(found.image_paths)
    names = found.labels.class_ids, found.labels.class_names
    shape = found.labels.matrix.shape
    return list(found.image_ids), known(found), names, shape, paths, dict(found.groups), found.notes


@pytest.mark.parametrize("found", [EXAMPLE, WHOLE], ids=["least", "all"])
def test_round_trip(found: Annotations, tmp_path: Path) -> None:
    found.write(tmp_path)
    opened = Annotations.open(tmp_path)
    assert content(opened) == content(found)
    assert opened.labels.fingerprint() == found.labels.fingerprint()


@settings(max_examples=25, deadline=None)
@given(table=tables())
def test_round_trip_of_any(
    table: tuple[list[Row], list[str], list[int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("annotations")
    found = collected(table[0], table[1])
    found.write(folder)
    assert content(Annotations.open(folder)) == content(found)


@pytest.mark.parametrize("wide", [False, True])
def test_labels_on_disk_are_whatever_type_their_index_has(wide: bool, tmp_path: Path) -> None:
    matrix = WHOLE.labels.matrix.copy()
    if wide:
        matrix.indices, matrix.indptr = (array.astype(np.int64) for array in (matrix.indices, matrix.indptr))
    labels = PartialLabels(matrix, WHOLE.labels.class_ids, WHOLE.labels.class_names)
    labels.write(tmp_path)
    opened = PartialLabels.open(tmp_path)
    assert opened.fingerprint() == labels.fingerprint()
    assert {np.load(tmp_path / f"{name}.npy").dtype for name in ("indptr", "indices")} == {np.dtype(np.int32)}


def is_mapped(array: npt.NDArray[np.generic]) -> bool:
    """Whether an array, or what it is a view of, lies in a file."""
    base: object = array
    while base is not None:
        if isinstance(base, np.memmap):
            return True
        base = getattr(base, "base", None)
    return False


def test_open_labels_stay_in_their_files(tmp_path: Path) -> None:
    WHOLE.write(tmp_path)
    matrix = Annotations.open(tmp_path).labels.matrix
    assert all(is_mapped(array) for array in (matrix.data, matrix.indices, matrix.indptr))
    assert not is_mapped(WHOLE.labels.matrix.data)
    with pytest.raises(ValueError, match="read-only"):
        matrix.data[0] = -1


_GROWTH = """
import resource, sys
from pathlib import Path
import numpy as np
from plbench.data.annotations.collect import Annotations
def private():
    return sum(int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if line.startswith("Anonymous"))
Annotations.open(Path(sys.argv[1])).labels.rows([0])  # modules that are loaded late
before = private()
found = Annotations.open(Path(sys.argv[2]))
found.labels.rows([7, 80_000]), found.image_ids[99_999]
print(private() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="asks Linux")
def test_opening_takes_memory_for_what_is_looked_at(tmp_path: Path) -> None:
    num_images, num_known = 100_000, 6_000_000
    cells = np.sort(np.random.default_rng(0).choice(num_images * 100, num_known, replace=False))
    rows, columns = np.divmod(cells, 100)
    names = [str(number) for number in range(100)]
    labels, _ = settle_cells(
        rows, columns, np.ones(num_known, bool), num_images=num_images, class_ids=names, class_names=names
    )
    for folder, found in (
        ("small", WHOLE),
        ("large", Annotations(TextColumn.of([f"{i:016x}" for i in range(num_images)]), labels)),
    ):
        (tmp_path / folder).mkdir()
        found.write(tmp_path / folder)
    arguments = [sys.executable, "-c", _GROWTH, tmp_path / "small", tmp_path / "large"]
    grown = int(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)
    size = sum(path.stat().st_size for path in (tmp_path / "large").iterdir())
    assert size > 30e6
    assert 1024 * grown < size / 3


FILES = ("indptr.npy", "indices.npy", "values.npy", "class_ids.arrow", "class_names.arrow", "said.json")


def refused(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        Annotations.open(folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", [*FILES, "image_ids.arrow"])
def test_a_missing_or_cut_off_file_is_refused(name: str, tmp_path: Path) -> None:
    WHOLE.write(tmp_path)
    whole = (tmp_path / name).read_bytes()
    for size in (0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        (tmp_path / name).write_bytes(whole[:size])
        refused(tmp_path)
    (tmp_path / name).unlink()
    refused(tmp_path)
    (tmp_path / name).mkdir()
    refused(tmp_path)
    (tmp_path / name).rmdir()
    (tmp_path / name).write_bytes(whole)
    assert content(Annotations.open(tmp_path)) == content(WHOLE)


def test_no_folder_and_a_foreign_one_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file")
    (tmp_path / "foreign").mkdir()
    for name in FILES:
        (tmp_path / "foreign" / name).write_text("something else\n")
    refused(tmp_path / "foreign")


SAID = {
    "not an object": [],
    "no notes": {"groups": {}},
    "groups are a list": {"groups": [], "notes": []},
    "groups are numbers": {"groups": {"few": 3}, "notes": []},
    "notes are a number": {"groups": {}, "notes": 3},
}


@pytest.mark.parametrize("name", SAID)
def test_words_of_another_kind_are_refused(name: str, tmp_path: Path) -> None:
    WHOLE.write(tmp_path)
    (tmp_path / "said.json").write_text(json.dumps(SAID[name]))
    refused(tmp_path)


def replaced(name: str, change: Callable[[npt.NDArray[np.generic]], npt.ArrayLike]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        array = np.load(folder / name)
        np.save(folder / name, change(array))

    return write


DAMAGED: dict[str, Callable[[Path], None]] = {
    "a class beyond the last": replaced("indices.npy", lambda indices: indices + 2),
    "a class before the first": replaced("indices.npy", lambda indices: indices - 1),
    "classes out of order": replaced("indices.npy", lambda indices: indices[[1, 0, 2, 3]]),
    "a class twice": replaced("indices.npy", lambda indices: indices * 0),
    "rows that run backwards": replaced("indptr.npy", lambda indptr: indptr[[0, 2, 1, 3]]),
    "more rows than cells": replaced("indptr.npy", lambda indptr: indptr + 1),
    "no rows at all": replaced("indptr.npy", lambda indptr: indptr[:0]),
    "a label of 2": replaced("values.npy", lambda values: values * 2),
    "wide labels": replaced("values.npy", lambda values: values.astype(np.int64)),
    "labels of fractions": replaced("values.npy", lambda values: values / 2),
    "too few labels": replaced("values.npy", lambda values: values[:-1]),
    "a number for rows": replaced("indptr.npy", lambda indptr: indptr[-1]),
    "a table for rows": replaced("indptr.npy", lambda indptr: indptr[None]),
    "fractions for rows": replaced("indptr.npy", lambda indptr: indptr / 1.0),
    "text for classes": replaced("indices.npy", lambda indices: indices.astype(str)),
    "a class too few": lambda folder: TextColumn.of(["x", "y"]).save(folder / "class_names.arrow"),
    "a class id twice": lambda folder: TextColumn.of(["x", "y", "x"]).save(folder / "class_ids.arrow"),
    "an image too few": lambda folder: TextColumn.of(["b", "a"]).save(folder / "image_ids.arrow"),
    "a path too few": lambda folder: TextColumn.of(["b", "a"]).save(folder / "paths.arrow"),
    "pickled labels": lambda folder: np.save(folder / "values.npy", np.array([None] * 4), allow_pickle=True),
    "a file for paths": lambda folder: shutil.copy(folder / "said.json", folder / "paths.arrow") and None,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_cells_that_cannot_be_are_refused(name: str, tmp_path: Path) -> None:
    WHOLE.write(tmp_path)
    DAMAGED[name](tmp_path)
    refused(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    WHOLE.write(tmp_path)
    (tmp_path / "values.npy").chmod(0)
    refused(tmp_path)

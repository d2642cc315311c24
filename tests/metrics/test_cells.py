"""Cells on disk and at the door: round trips, damage, malformed columns."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import strategies as st

from plbench.errors import PlbenchError, StoreError
from plbench.metrics import (
    average_precision,
    evaluate,
)
from plbench.metrics.cells import Cells

Array = npt.NDArray[Any]
SEEDS = st.integers(0, 2**32 - 1)


def draw(seed: int, *, density: float = 0.6, levels: int = 6) -> tuple[Array, Array]:
    """Small scores [N, C] with many ties (`levels` values; 0: none) and partial labels [N, C] int8."""
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 25)), int(rng.integers(1, 12)))
    scores = rng.integers(levels, size=shape) / levels if levels else rng.random(shape)
    present = rng.random(shape) < rng.uniform(0.05, 0.7)
    labels = np.where(present, 1, -1) * (rng.random(shape) < density)
    return scores.astype(f"f{rng.choice([4, 8])}"), labels.astype(np.int8)


def columns_equal(one: Cells, other: Cells) -> bool:
    return all(
        np.array_equal(a, b) and np.asarray(a).dtype == np.asarray(b).dtype
        for a, b in zip(vars(one).values(), vars(other).values(), strict=True)
    )


def test_cells_survive_a_round_trip(tmp_path: Path) -> None:
    cells = Cells.from_scores(*draw(1))
    cells.save(tmp_path / "cells.npz")
    assert columns_equal(cells, Cells.load(tmp_path / "cells.npz"))
    empty = Cells.from_scores(np.ones((4, 3)), np.zeros((4, 3), np.int8))
    empty.save(tmp_path / "empty.npz")
    assert columns_equal(empty, Cells.load(tmp_path / "empty.npz"))


def test_a_damaged_file_is_one_sentence_or_harmless(tmp_path: Path) -> None:
    cells = Cells.from_scores(*draw(2))
    path = tmp_path / "cells.npz"
    cells.save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(StoreError, match="does not hold"):
            Cells.load(path)
    for position in range(0, len(whole), 3):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x21]) + whole[position + 1 :])
        with suppress(StoreError):
            assert columns_equal(cells, Cells.load(path))  # a changed date stamp, say, does no harm


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", np.ones(3))
    np.savez(tmp_path / "pickled.npz", rows=np.array([{}], dtype=object))
    for name in ("array.npy", "pickled.npz", "missing.npz"):
        with pytest.raises(StoreError, match=name):
            Cells.load(tmp_path / name)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="could not write"):
        Cells.from_scores(*draw(2)).save(tmp_path / "file" / "cells.npz")


INTEGERS, FLOATS, BOOLS = np.array([0, 1]), np.array([0.5, 0.1]), np.array([True, False])


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ((INTEGERS, np.array([0.5, np.nan]), BOOLS), "NaN or infinite"),
        ((INTEGERS, np.array([np.inf, 0.1]), BOOLS), "NaN or infinite"),
        ((INTEGERS, FLOATS[:1], BOOLS), "equally long"),
        ((INTEGERS[None], FLOATS[None], BOOLS[None]), "1-D"),
        ((INTEGERS + 1, FLOATS, BOOLS), "class index"),
        ((INTEGERS - 1, FLOATS, BOOLS), "class index"),
        ((INTEGERS * 0.5, FLOATS, BOOLS), "integers"),
        ((INTEGERS, FLOATS, np.array([1, -1])), "bools"),
        ((INTEGERS, np.array(["a", "b"]), BOOLS), "floats"),
    ],
)
def test_malformed_columns_are_one_sentence(columns: tuple[Array, Array, Array], sentence: str) -> None:
    with pytest.raises(PlbenchError, match=sentence):
        average_precision(*columns, num_classes=2)


@pytest.mark.parametrize(
    ("scores", "labels", "sentence"),
    [
        (np.ones((2, 3)), np.ones((3, 2)), r"scores are \[2, 3\], labels \[3, 2\]"),
        (np.ones(3), np.ones(3), "must be"),
        (np.ones((1, 2)), [[1, 2]], "verified absent"),
        ([[np.nan, 1.0]], [[1, -1]], "diverge"),
    ],
)
def test_malformed_scores_are_one_sentence(scores: Any, labels: Any, sentence: str) -> None:
    with pytest.raises(PlbenchError, match=sentence):
        evaluate(scores, labels)


@pytest.mark.parametrize(
    ("rows", "sentence"), [([0, 0], "twice"), ([0, 2], "image index"), ([0], "rows"), ([0.0, 1.0], "rows")]
)
def test_cells_check_their_images(rows: list[float], sentence: str) -> None:
    with pytest.raises(PlbenchError, match=sentence):
        Cells(np.array(rows), np.array([1, 1]), FLOATS, BOOLS, num_images=2, num_classes=2)

"""Values of single cells: looked up as a dictionary would, whatever the order they came in."""

import pytest
import torch

from plbench.errors import PlbenchError
from plbench.losses.sample_state import CellValues, check_state_size

NUM_CLASSES = 7


def filled(*, seed: int) -> tuple[CellValues, dict[int, float]]:
    """A table that was filled in three portions, some cells twice, and what it should hold."""
    generator = torch.Generator().manual_seed(seed)
    table, expected = CellValues(NUM_CLASSES), {}
    for _ in range(3):
        cells = torch.randint(20 * NUM_CLASSES, (15,), generator=generator)
        values = torch.rand(15, generator=generator)
        table.add(cells, values)
        for cell, value in zip(cells.tolist(), values.tolist(), strict=True):
            expected.setdefault(cell, value)
    return table, expected


@pytest.mark.parametrize("seed", range(5))
def test_dense_rows_hold_what_was_added_first(seed: int) -> None:
    table, expected = filled(seed=seed)
    rows = torch.randperm(22, generator=torch.Generator().manual_seed(seed))[:9]
    has_value, values = table.dense(rows)
    for place, row in enumerate(rows.tolist()):
        for column in range(NUM_CLASSES):
            cell = row * NUM_CLASSES + column
            assert bool(has_value[place, column]) == (cell in expected)
            assert float(values[place, column]) == expected.get(cell, 0.0)
    assert table.cells.tolist() == sorted(expected)


def test_an_empty_table_has_no_value() -> None:
    table = CellValues(NUM_CLASSES)
    table.add(torch.empty(0, dtype=torch.int64), torch.empty(0))
    has_value, values = table.dense(torch.arange(3))
    assert has_value.shape == values.shape == (3, NUM_CLASSES)
    assert not has_value.any()
    assert not values.any()


def test_a_restored_table_is_the_same() -> None:
    table, _ = filled(seed=0)
    restored = CellValues(NUM_CLASSES)
    restored.load_state_dict(table.state_dict())
    for one, other in zip(table.dense(torch.arange(20)), restored.dense(torch.arange(20)), strict=True):
        assert torch.equal(one, other)


def test_what_does_not_fit_is_refused_with_its_size() -> None:
    check_state_size(4 << 30, method="m", keeps="a table", cure="use n")
    sentence = "method 'm' keeps a table, which takes about 5 GB of memory, but only 4 GB are allowed; use n"
    with pytest.raises(PlbenchError, match=f"^{sentence}$"):
        check_state_size(5e9, method="m", keeps="a table", cure="use n")

"""Artifacts of stages are found again by what computes them: `plbench.runs.artifacts`."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from plbench.api import Stage
from plbench.runs import artifacts

SOURCE = """
import functools
import torch


def histogram(view, num_bins=8, edges=None):
    return torch.zeros(num_bins)


def other(view):
    return torch.zeros(8)


def bound(num_bins):
    def reduce(view):
        return histogram(view, num_bins)
    return reduce


class Reduction:
    def __init__(self, num_bins):
        self.num_bins = num_bins

    def __call__(self, view):
        return histogram(view, self.num_bins)

    def reduce(self, view):
        return self(view)
"""
VALUES: list[Any] = [4, 4.0, True, None, "4", (4,), {"a": 4}, {4}, np.arange(4), torch.arange(4), torch.zeros(4)]


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Any]:
    """A module with reductions, from its source; loaded anew each time, as by another process."""
    numbers = itertools.count()

    def loaded(source: str = SOURCE) -> Any:
        path = tmp_path / f"reductions_{next(numbers)}.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location("reductions", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return loaded


def name_of(reduce: Callable[..., Tensor], stage: str = "scores") -> str:
    return artifacts.path_of(Stage(stage, "ce-ignore", reduce), Path("run")).name


def reductions(module: Any) -> list[Callable[..., Tensor]]:
    """No two of them are the same, as far as can be told without calling them."""
    return [
        module.histogram,
        module.other,
        module.bound(8),
        module.bound(9),
        functools.partial(module.other, num_bins=8),
        *(functools.partial(module.histogram, num_bins=8, edges=value) for value in VALUES),
    ]


def test_each_function_and_each_value_has_a_file_of_its_own(load: Callable[..., Any]) -> None:
    names = [name_of(reduce) for reduce in reductions(load())]
    assert len(set(names)) == len(names)


def test_another_process_finds_the_same_file(load: Callable[..., Any]) -> None:
    first, second = ([name_of(reduce) for reduce in reductions(load())] for _ in range(2))
    assert first == second


def test_objects_are_known_by_their_attributes(load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    module = load()
    monkeypatch.setitem(sys.modules, "reductions", module)  # where Python looks for the file of a class
    objects = [module.Reduction(8), module.Reduction(9)]
    names = [name_of(reduce) for one in objects for reduce in (one, one.reduce)]
    assert len(set(names)) == 4
    assert [name_of(module.Reduction(8)), name_of(module.Reduction(8).reduce)] == names[:2]


def test_another_source_or_stage_gives_another_file(load: Callable[..., Any]) -> None:
    before, after = load().histogram, load(SOURCE.replace("torch.zeros(8)", "torch.ones(8)")).histogram
    assert len({name_of(before), name_of(after), name_of(before, "prior")}) == 3


def test_what_contains_itself_has_a_file() -> None:
    def reduce(view: Any) -> Any:
        return reduce if view is None else torch.zeros(1)

    holder = SimpleNamespace()
    holder.itself = holder
    assert name_of(reduce) == name_of(reduce)
    assert name_of(functools.partial(reduce, holder)) != name_of(reduce)

"""How many positives were hidden, as estimated from what was not; and what is advised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from plbench.data.labels import PartialLabels
from plbench.data.simulation import parse
from plbench.errors import PlbenchError
from plbench.experiments.mechanism.advice import ModeMap, advise, leave_one_out, read_maps, winners
from plbench.experiments.mechanism.phase_map import MODES
from plbench.experiments.mechanism.placement import (
    NUM_BINS,
    Placement,
    estimated_positives,
    place,
    spread,
    true_placement,
    unknown_scores,
)
from plbench.runs.plan.resolve import Request
from plbench.runs.workspace import Workspace

SHARES = np.linspace(0.05, 0.45, 12)


class FakeView:
    """A model that knows: Gaussian evidence of distance `apart` for each class, with the balance that it was told."""

    def __init__(self, truth: np.ndarray, labels: PartialLabels, apart: float, balance: np.ndarray) -> None:
        rng = np.random.default_rng(5)
        evidence = rng.normal(np.where(truth > 0, apart / 2, -apart / 2), 1.0)
        self.labels = labels
        self.logits = apart * evidence + np.log(balance / (1 - balance))

    def predict(self, weights: str = "ema", *, dropout: bool = False, passes: int = 1):  # type: ignore[no-untyped-def]
        for start in range(0, len(self.logits), 700):
            rows = torch.arange(start, min(start + 700, len(self.logits)))
            yield rows, torch.sigmoid(torch.from_numpy(self.logits[rows.numpy()]))


def world(simulation: str, num_images: int = 6000) -> tuple[np.ndarray, PartialLabels, PartialLabels]:
    draws = np.random.default_rng(1).random((num_images, len(SHARES)))
    truth = np.where(draws < SHARES, 1, -1).astype(np.int8)
    complete = PartialLabels.from_dense(truth, tuple(f"c{n}" for n in range(len(SHARES))))
    return truth, complete, parse(simulation).apply(complete, seed=9)


def estimate(simulation: str, apart: float = 2.5) -> tuple[np.ndarray, PartialLabels, PartialLabels]:
    truth, complete, partial = world(simulation)
    positives, negatives = partial.counts()
    view = FakeView(truth, partial, apart, positives / (positives + negatives))
    return estimated_positives(unknown_scores(view).numpy(), partial), partial, complete  # type: ignore[arg-type]


@pytest.mark.parametrize("simulation", ["fpc=150", "rpa=0.7", "frequency-biased=0.3,bias=1,negatives=0.5"])
def test_a_model_that_was_told_the_wrong_balance_finds_the_right_one(simulation: str) -> None:
    found, partial, complete = estimate(simulation)
    np.testing.assert_allclose(found, complete.counts()[0], rtol=0.12)
    placed, true = place(partial, found), true_placement(partial, complete)
    assert placed is not None and true is not None
    assert placed.share == pytest.approx(true.share, rel=0.1)
    assert placed.advantage == pytest.approx(true.advantage, rel=0.15)
    assert placed.negatives == pytest.approx(true.negatives)


def test_where_the_model_sees_nothing_nothing_is_said() -> None:
    assert np.isnan(estimate("fpc=150", apart=0.0)[0]).all()
    assert not np.isnan(estimate("fpc=150", apart=1.5)[0]).any()


def test_histograms_count_every_unknown_cell_once() -> None:
    truth, _, partial = world("rpa=0.5", 900)
    histogram = unknown_scores(FakeView(truth, partial, 1.0, SHARES)).numpy()  # type: ignore[arg-type]
    assert histogram.shape == (len(SHARES), NUM_BINS)
    np.testing.assert_allclose(histogram.sum(axis=1), 900 - np.add(*partial.counts()))


def test_true_placement_of_what_is_known_by_construction() -> None:
    _, complete, partial = world("fpc=150")
    placed = true_placement(partial, complete)
    assert placed is not None
    assert placed.share == pytest.approx(12 * 150 / complete.counts()[0].sum()) and placed.negatives == 1.0
    counts = np.sort(complete.counts()[0])
    assert placed.advantage == pytest.approx(counts[6:].sum() / counts[:6].sum())
    kept = true_placement(complete, complete)
    assert kept is not None and (kept.share, kept.advantage) == (1.0, 1.0)


def test_classes_with_too_few_labels_do_not_count() -> None:
    found, _, _ = estimate("fpc=150")
    truth, _, partial = world("fpc=10")
    view = FakeView(truth, partial, 2.0, np.full(12, 0.5))
    few = estimated_positives(unknown_scores(view).numpy(), partial)  # type: ignore[arg-type]
    assert np.isnan(few).all() and place(partial, few) is None and not np.isnan(found).any()


def test_spread_is_the_range_of_each_coordinate() -> None:
    low, high = spread([Placement(0.1, 2.0, 1.0), Placement(0.3, 1.0, 1.0)])
    assert (low, high) == (Placement(0.1, 1.0, 1.0), Placement(0.3, 2.0, 1.0))


SHORT = Request("tiny", "", plan={"epochs": 1}, regime="probe")


def map_of(*cells: tuple[float, float, float, str], dataset: str = "made") -> ModeMap:
    rows = [
        {
            **{"share": 0.9, "advantage": 9.0, "negatives": 9.0},  # the truth, which nobody can compare theirs with
            "estimated": {"share": s, "advantage": a, "negatives": n},
            **{"means": {**dict.fromkeys(MODES, 0.0), best: 1.0}, "best": best, "tied": [best]},
        }
        for s, a, n, best in cells
    ]
    unplaced = {**rows[0], "estimated": None, "best": "Ignore", "tied": ["Ignore"]}
    rows.append(unplaced)
    return ModeMap.model_validate({"made_on": {"dataset": dataset}, "cells": rows})


def test_without_negatives_nothing_is_identifiable_and_nothing_is_trained(
    make_workspace: Callable[..., Workspace],
) -> None:
    workspace = make_workspace()
    advice = advise(replace(SHORT, simulate="single-positive"), workspace, read_maps())
    assert advice.low is None and advice.answer[0].startswith("Not identifiable: there is no verified negative")
    assert "ce-ignore" not in advice.methods and "ce-negative" in advice.methods
    assert not list(workspace.store.keys())


def test_few_labels_are_not_identifiable_and_all_labels_need_no_advice(
    make_workspace: Callable[..., Workspace],
) -> None:
    few = advise(SHORT, make_workspace(), read_maps())
    assert few.answer[0].startswith("Not identifiable: 0 of 6 classes have 20 known positives")
    assert advise(replace(SHORT, simulate="none"), make_workspace(), read_maps()).methods == ("ce-negative",)


def test_near_settings_of_the_map_name_the_methods(
    make_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plbench.experiments.mechanism.placement.MIN_KNOWN", 2)
    monkeypatch.setattr("plbench.experiments.mechanism.placement.MAX_ERROR", np.inf)
    monkeypatch.setattr("plbench.experiments.mechanism.advice.MIN_KNOWN", 2)
    workspace = make_workspace()
    somewhere = advise(SHORT, workspace, [map_of((0.001, 50.0, 1.0, "Ignore"))], num_seeds=2)
    assert "No setting of the maps is close" in somewhere.answer[-1] and somewhere.modes == {}
    low, high = somewhere.low, somewhere.high
    assert low is not None and high is not None and 0 < low.share <= high.share <= 1
    assert len(somewhere.classes) == 6 and somewhere.positives == 48
    assert len(list(workspace.store.keys())) == 2
    at = (low.share, low.advantage, low.negatives)
    advice = advise(SHORT, workspace, [map_of((*at, "Selective"), (0.001, 50.0, 1.0, "Ignore"))], num_seeds=2)
    assert advice.modes == {"Selective": 1.0} and advice.methods == ("selective", "selective:likelihood")
    assert advice.rivals == ("ce-ignore", "ce-negative")
    off = f"{0.9 / low.share:.2g} times the estimated one."  # the map's truth is 0.9
    assert f"In these settings the true share was {off}" in advice.answer
    both = advise(SHORT, workspace, [map_of((*at, "Selective"), (*at, "Negative"))], num_seeds=2)
    assert both.modes == {"Negative": 0.5, "Selective": 0.5} and both.rivals == ("ce-ignore",)


def test_a_map_of_many_settings_has_no_more_to_say_than_one_of_few() -> None:
    at = (0.3, 1.0, 1.0)
    many, few = map_of(*[(*at, "Ignore")] * 9, dataset="a"), map_of((*at, "Negative"), dataset="b")
    far = map_of((0.01, 30.0, 30.0, "Selective"), dataset="c")
    place_ = Placement(*at)
    assert winners([many, few, far], place_, place_) == {"Ignore": 0.5, "Negative": 0.5}
    assert winners([far], place_, place_) == {}


def test_a_left_out_dataset_is_judged_by_the_others_alone() -> None:
    means = {"Ignore": 40.0, "Negative": 46.0, "Selective": 45.0}
    maps = []
    for name, best in (("a", "Negative"), ("b", "Negative"), ("c", "Ignore")):
        known = map_of((0.3, 1.0, 1.0, best), (0.001, 90.0, 90.0, best), dataset=name)
        cells = [cell.model_copy(update={"means": means | {best: 50.0}}) for cell in known.cells]
        maps.append(known.model_copy(update={"cells": cells[:1] if name == "c" else cells}))
    a, _, c = leave_one_out(maps)
    # where b and c disagree, Ignore stands first, 10 points behind
    assert (a.dataset, a.settings, a.near, a.right) == ("a", 2, 2, 1) and a.loss == 5.0
    assert a.always == {"Ignore": 10.0, "Negative": 0.0, "Selective": 5.0}
    assert (c.settings, c.near, c.right) == (1, 1, 0) and c.loss == 4.0  # they name Negative, 46 to Ignore's 50


def test_the_maps_that_come_along_are_of_datasets_of_their_own() -> None:
    names = [known.dataset for known in read_maps()]
    assert len(set(names)) == len(names) and all(known.cells for known in read_maps())


def test_a_file_that_is_no_map_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(PlbenchError, match="is not a map of modes"):
        read_maps([path])
    with pytest.raises(PlbenchError, match="is not a map of modes"):
        read_maps([tmp_path / "absent.json"])

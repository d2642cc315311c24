"""A comparison that can tell little says so: few images, few steps; and what is known before the data is here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import plbench

from plbench.comparison.candidates import choose_candidates
from plbench.comparison.compare import compare
from plbench.comparison.plan import FEW_STEPS, caution_on_steps, make_runs, plan_comparison
from plbench.comparison.verdict import verdict
from plbench.runs.estimate.without_data import seconds_per_image
from plbench.runs.plan.resolve import Request
from plbench.runs.record import read_record
from plbench.runs.tables import PER_CLASS
from plbench.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("quick_records")


def test_chance_and_steps_are_said(make_workspace: Callable[..., Any]) -> None:
    workspace = make_workspace()
    candidates, _ = choose_candidates(["ce-negative"], workspace.registry)
    comparison = plan_comparison(Request("tiny", "", plan={"epochs": 2}), candidates, 1, workspace)
    said = caution_on_steps(comparison)
    assert said is not None and "a training has only 6 steps" in said and "more epochs than 2" in said
    longer = plan_comparison(Request("tiny", "", plan={"epochs": FEW_STEPS // 3 + 1}), candidates, 1, workspace)
    assert caution_on_steps(longer) is None
    runs, _ = make_runs(comparison, workspace)
    (setting,) = compare(runs)
    table = (runs[0][0] / PER_CLASS).read_text().splitlines()
    names = table[0].split(",")
    counts = [dict(zip(names, line.split(","), strict=True)) for line in table[1:]]
    shares = [int(own["positives"]) / (int(own["positives"]) + int(own["negatives"])) for own in counts]
    assert setting.chance == pytest.approx(100 * sum(shares) / len(shares))
    assert f"Random scores would reach about {setting.chance:.1f} on them" in " ".join(verdict(setting))
    (runs[0][0] / PER_CLASS).unlink()
    (setting,) = compare([(runs[0][0], read_record(runs[0][0]))])
    assert "Random" not in " ".join(verdict(setting)) and json.loads(json.dumps(setting.as_dict()))["chance"] is None


@pytest.mark.parametrize("command", [["run", "-m", "selective"], ["compare"], ["tune", "-m", "selective"]])
def test_sizes_are_said_before_the_data_is_here(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLBENCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PLBENCH_CACHE", str(tmp_path / "cache"))
    small = ["--backbone", "test_resnet", "--image-size", 32]
    said = plbench(*command, "--dataset", "coco", "--data-root", tmp_path, "--epochs", 5, *small, "--dry-run")
    assert said.code == 2 and "dataset 'coco' needs annotations/instances_train2014.json" in said.err
    assert "COCO 2014: 82,081 train and 40,137 test images, 80 classes, as published" in said.err
    assert "To fetch: 20.4 GB in 3 files (plbench data download coco)" in said.err
    assert "5 epochs of 1,283 steps of 64 images, 6,415 steps in all" in said.err
    assert re.search(r"the network takes about [\d.]+ (s|min|h) on (cpu|cuda) \(measured on random images\)", said.err)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--image-size", 0], "image_size = 0 is not valid"),
        (["--image-size", 10**5], "image_size = 100000 is not valid"),
        (["--backbone", "no_such_net"], "'no_such_net' is not a timm model"),
        (["--simulate", "fcp=3"], "there is no simulation 'fcp'"),
        (["--recipe", "no_such_recipe"], "has no recipe 'no_such_recipe'"),
    ],
)
def test_a_mistake_is_said_before_the_data_is_here(wrong: list[object], message: str, tmp_path: Path) -> None:
    said = plbench("run", "-m", "ce-ignore", "--dataset", "coco", "--data-root", tmp_path, *wrong, "--dry-run")
    assert said.code == 2 and message in said.err and "steps in all" not in said.err


def test_what_takes_long_to_measure_is_left_out(tmp_path: Path) -> None:
    size = ["--image-size", 1088]
    said = plbench("run", "-m", "ce-ignore", "--dataset", "coco", "--data-root", tmp_path, *size, "--dry-run")
    assert said.code == 2 and "steps in all" in said.err and "measured on" not in said.err


def test_a_network_that_is_trained_takes_longer_and_so_does_a_larger_image() -> None:
    model = ModelSpec(backbone="test_resnet", weights="random", image_size=64)
    scored, trained = (seconds_per_image(model, regime, torch.device("cpu")) for regime in ("probe", "finetune"))
    larger = seconds_per_image(model.model_copy(update={"image_size": 256}), "probe", torch.device("cpu"))
    assert 0 < scored < trained and scored < larger


def test_the_words_of_pydantic_are_not_shown(tmp_path: Path) -> None:
    assert "'--to': 'exe' is not one of 'onnx'" in plbench("export", "abc", "--to", "exe").err
    assert "'--seed': expected a whole number" in plbench("run", "--seed", "x").err
    assert "'--seed': expected a number greater than or equal to 0" in plbench("run", "--seed", "-1").err

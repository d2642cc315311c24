"""One run from plan to record: what it leaves, what it shares, what it never sees, and how it comes back."""

import contextlib
import csv
import errno
import json
import os
import platform
import random
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from plbench.api import Batch, Dataset, Loss, Method, Progress
from plbench.board.boards import Board
from plbench.board.identity import check_identity
from plbench.board.installed import Installed
from plbench.comparison.compare import row_labels
from plbench.errors import PluginError, StoreError, TrainingError
from plbench.loading.transforms import eval_transform
from plbench.metrics import evaluate_cells
from plbench.metrics.cells import Cells
from plbench.models.backbones import build_backbone, make_head
from plbench.runs import active
from plbench.runs import run as runner
from plbench.runs.findings import Findings
from plbench.runs.outcome import FILES
from plbench.runs.plan.resolve import Request, plan_from_spec, plan_run
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.record import read_record, reference
from plbench.runs.store import CHECKPOINT, RECORD
from plbench.runs.stored import replicates_of
from plbench.runs.workspace import Workspace
from plbench.spec import RunSpec
from plbench.training import checkpoint, engine
from plbench.training.state import FitState
from plbench.training.step import Stepper

pytestmark = pytest.mark.usefixtures("quick_records")

both_regimes = pytest.mark.parametrize("regime", ["probe", "finetune"])


def a_plan(workspace: Workspace, method: str = "ce-negative", **request: Any) -> ResolvedRun:
    return plan_run(Request("tiny", method, **request), workspace)


def folder_of(plan: ResolvedRun, workspace: Workspace) -> Path:
    return workspace.store.run_folder(plan.spec.key)


def weights_of(plan: ResolvedRun, workspace: Workspace) -> dict[str, Any]:
    return checkpoint.load(folder_of(plan, workspace) / CHECKPOINT, plan.spec.sha256())


def saving(workspace: Workspace) -> Workspace:
    """The same workspace, with a checkpoint after every step."""
    return replace(workspace, save_every=0.0)


def same_bits(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether raw and averaged weights are equal bit by bit."""
    return all(
        one[kind].keys() == other[kind].keys()
        and all(torch.equal(value, other[kind][name]) for name, value in one[kind].items())
        for kind in ("model", "ema")
    )


def forbid_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*arguments: Any) -> None:
        raise AssertionError("something was trained")

    monkeypatch.setattr(Stepper, "take", step)


class TestRecord:
    def test_without_groups_there_is_no_file_of_theirs(
        self, make_workspace: Callable[..., Workspace], tiny_dataset: type[Dataset], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tiny_dataset, "groups", lambda self: {})
        workspace = make_workspace()
        plan = a_plan(workspace, "ce-negative")
        record = runner.run(plan, workspace)
        assert {path.name for path in folder_of(plan, workspace).iterdir()} == {*FILES, RECORD, "task.npz"}
        assert set(record.files) == {*FILES, "task.npz"}
        assert set(replicates_of(folder_of(plan, workspace), record)) == {"map_c", "map_o"}

    @both_regimes
    @pytest.mark.parametrize("method", ["selective", "se-negative"])
    def test_it_is_whole_and_says_what_happened(
        self, make_workspace: Callable[..., Workspace], tmp_path: Path, method: str, regime: str
    ) -> None:
        workspace = make_workspace()
        plan = a_plan(workspace, method, regime=regime)
        record = runner.run(plan, workspace)
        folder = folder_of(plan, workspace)
        assert read_record(folder) == record
        names = (*FILES, "group_replicates.csv", "task.npz")
        assert {path.name for path in folder.iterdir()} == {*names, RECORD}
        assert {name: reference(folder / name) for name in names} == record.files
        columns = [(folder / name).read_text().split("\n")[0] for name in ("replicates.csv", "group_replicates.csv")]
        assert columns == ["map_c,map_o", "frequent,rare"]
        assert record.status == "done"
        assert record.spec == plan.spec
        assert set(record.metrics) == {"test", "test_raw"}
        assert set(record.priors) == ({"prior"} if method == "selective" else set())
        assert record.data is not None
        assert (record.data.num_train, record.data.num_test, record.data.num_validation) == (48, 24, 0)
        assert record.data.num_train_known == plan.protocol_data.partial_labels.num_known < 48 * 6
        assert record.training["steps"] == plan.spec.plan.epochs * 3
        assert record.test.num_classes_scored == 6
        assert set(record.test.groups) == {"frequent", "rare"}
        estimate = record.test.map_c
        assert estimate.low is not None
        assert estimate.low < estimate.value < estimate.high
        assert record.cost is not None
        assert record.cost.seconds["total"] == pytest.approx(sum(record.cost.seconds.values()) / 2)
        text = (folder / RECORD).read_text()
        assert str(tmp_path) not in text
        assert not platform.node() or platform.node() not in text

    def test_its_figures_follow_from_its_cells(self, make_workspace: Callable[..., Workspace]) -> None:
        workspace = make_workspace()
        plan = a_plan(workspace)
        record = runner.run(plan, workspace)
        folder = folder_of(plan, workspace)
        cells = Cells.load(folder / "cells.npz")
        result = evaluate_cells(cells)
        assert record.test.map_c.value == round(result.map_c, 6)
        assert record.test.map_o.value == round(result.map_o, 6)
        assert record.test.num_cells == len(cells.scores) == 24 * 6
        with (folder / "per_class.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 6
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        assert [row["epoch"] for row in log] == [1, 2, 3, 4]
        assert record.training["final_loss"] == log[-1]["loss"]

    def test_its_scores_are_those_of_the_model_it_keeps(self, make_workspace: Callable[..., Workspace]) -> None:
        workspace = make_workspace()
        plan = a_plan(workspace, regime="finetune")
        runner.run(plan, workspace)
        scores = direct_scores(plan, workspace, plan.protocol_data.test().images)
        cells = Cells.load(folder_of(plan, workspace) / "cells.npz")
        np.testing.assert_allclose(cells.scores, scores.numpy()[cells.rows, cells.class_index], atol=1e-5)

    def test_its_spec_is_the_same_run_again(
        self, make_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        workspace = make_workspace()
        plan = a_plan(workspace, "selective", simulate="rpa=0.4", seed=3, method_params={"top_k": "2"})
        record = runner.run(plan, workspace)
        written = tomllib.loads((folder_of(plan, workspace) / "spec.toml").read_text())
        again = plan_from_spec(RunSpec.model_validate(written), workspace)
        assert again.spec == plan.spec
        forbid_training(monkeypatch)
        assert runner.run(again, workspace) == record


def direct_scores(plan: ResolvedRun, workspace: Workspace, images: Any) -> Tensor:
    """Sigmoid of the averaged model's logits over images, put together from the checkpoint by hand."""
    spec = plan.spec
    frozen = build_backbone(spec.model, None, spec.seed).eval()
    backbone = nn.Identity() if spec.regime == "probe" else build_backbone(spec.model, None, spec.seed)
    model = nn.Sequential(backbone, make_head(spec.model, frozen.num_features, 6)).eval()
    model.load_state_dict(weights_of(plan, workspace)["ema"])
    transform = eval_transform(spec.model)
    pixels = torch.stack([transform(images.load(row)) for row in range(len(images))])
    with torch.inference_mode():
        return torch.sigmoid(model(frozen(pixels) if spec.regime == "probe" else pixels))


class TestRepeating:
    def test_a_run_that_is_done_is_read(
        self, make_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        workspace = make_workspace()
        record = runner.run(a_plan(workspace, "selective"), workspace)
        forbid_training(monkeypatch)
        monkeypatch.setattr(active, "predict_share", None)
        assert runner.run(a_plan(workspace, "selective"), workspace) == record

    @pytest.mark.parametrize(("method", "regime"), [("selective", "probe"), ("ce-negative", "finetune")])
    def test_force_repeats_it_to_the_bit(
        self, make_workspace: Callable[..., Workspace], method: str, regime: str
    ) -> None:
        workspace = make_workspace()
        plan = a_plan(workspace, method, regime=regime)
        first, weights = runner.run(plan, workspace), weights_of(plan, workspace)
        (folder_of(plan, workspace) / "left over").touch()
        second = runner.run(plan, workspace, force=True)
        assert second.metrics == first.metrics
        assert second.files["cells.npz"] == first.files["cells.npz"]
        assert second.files["replicates.csv"] == first.files["replicates.csv"]
        assert same_bits(weights_of(plan, workspace), weights)
        assert not (folder_of(plan, workspace) / "left over").exists()

    def test_another_seed_is_another_run(self, make_workspace: Callable[..., Workspace]) -> None:
        workspace, fresh = make_workspace(), make_workspace(name="fresh")
        plans = [a_plan(workspace, seed=seed) for seed in (0, 1)]
        for plan in plans:
            runner.run(plan, workspace)
        assert plans[0].spec.key != plans[1].spec.key
        assert not same_bits(weights_of(plans[0], workspace), weights_of(plans[1], workspace))
        runner.run(plans[1], fresh)  # what the cache holds from another seed has no say
        assert same_bits(weights_of(plans[1], workspace), weights_of(plans[1], fresh))

    def test_the_callers_random_state_is_left_alone(self, make_workspace: Callable[..., Workspace]) -> None:
        workspace = make_workspace()
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
        for regime in ("probe", "finetune"):
            runner.run(a_plan(workspace, regime=regime), workspace)
        after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
        assert before == after


class TestPriorStage:
    def test_it_is_the_ce_ignore_run_of_the_same_spec(
        self, make_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        workspace = make_workspace()
        selective, ignore = (a_plan(workspace, name) for name in ("selective", "ce-ignore"))
        assert selective.spec.stages == {"prior": ignore.spec.key}
        runner.run(selective, workspace)
        forbid_training(monkeypatch)
        assert runner.run(ignore, workspace).status == "done"

    def test_every_trial_and_variant_shares_it(self, make_workspace: Callable[..., Workspace]) -> None:
        workspace = make_workspace()
        keys = {
            a_plan(workspace, "selective", **changes).spec.stages["prior"]
            for changes in (
                {},
                {"plan": {"lr": 0.5}},
                {"plan": {"weight_decay": 0.5}},
                {"method_params": {"gamma_neg": 1.0}},
                {"method_params": {"mode": "prior"}},
            )
        }
        assert len(keys) == 1
        others = {
            a_plan(workspace, "selective", **changes).spec.stages["prior"]
            for changes in ({}, {"seed": 1}, {"simulate": "rpa=0.5"}, {"regime": "finetune"}, {"plan": {"epochs": 5}})
        }
        assert len(others) == 5

    @both_regimes
    def test_the_prior_is_the_mean_probability_over_train(
        self, make_workspace: Callable[..., Workspace], regime: str
    ) -> None:
        workspace = make_workspace()
        plan = a_plan(workspace, "selective", regime=regime)
        prior = runner.stage_artifact(plan, "prior", workspace)
        _, stage = plan.stages["prior"]
        expected = direct_scores(stage, workspace, stage.protocol_data.train().images).double().mean(dim=0)
        torch.testing.assert_close(prior, expected, rtol=1e-5, atol=1e-6)

    def test_it_is_reduced_once(
        self, make_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        workspace = make_workspace()
        first = a_plan(workspace, "selective")
        record = runner.run(first, workspace)
        monkeypatch.setattr(runner, "View", None)  # what a model is reduced over
        prior = runner.stage_artifact(first, "prior", workspace)
        assert record.priors["prior"].total == pytest.approx(float(prior.sum()))
        runner.run(a_plan(workspace, "selective", method_params={"gamma_neg": 1.0}), workspace)

    @pytest.mark.parametrize("damage", [b"", b"no array"])
    def test_a_damaged_one_is_reduced_again(self, make_workspace: Callable[..., Workspace], damage: bytes) -> None:
        workspace = make_workspace()
        plan = a_plan(workspace, "selective")
        prior = runner.stage_artifact(plan, "prior", workspace)
        (path,) = workspace.store.runs.glob("*/artifacts/prior-*.npy")
        path.write_bytes(damage)
        assert torch.equal(runner.stage_artifact(plan, "prior", workspace), prior)


class TestHonesty:
    @pytest.mark.parametrize(("method", "regime"), [("selective", "probe"), ("ce-negative", "finetune")])
    def test_the_hidden_truth_reaches_no_weight(
        self, make_workspace: Callable[..., Workspace], tiny_dataset: type[Any], method: str, regime: str
    ) -> None:
        known = a_plan(make_workspace(), simulate="rpa=0.5").protocol_data.partial_labels.rows(np.arange(48))

        class Lying(tiny_dataset):
            """Says the opposite wherever the simulation hides the label."""

            def truth(self, split: str) -> np.ndarray:
                truth = super().truth(split)
                return np.where(known == 0, -truth, truth) if split == "train" else truth

        request = {"simulate": "rpa=0.5", "regime": regime}
        honest, lying = make_workspace(name="honest"), make_workspace(Lying, name="lying")
        plans = [a_plan(workspace, method, **request) for workspace in (honest, lying)]
        truths = [plan.protocol_data.hidden_truth() for plan in plans]
        partial = [plan.protocol_data.partial_labels.fingerprint() for plan in plans]
        assert partial[0] == partial[1]
        assert truths[0].fingerprint() != truths[1].fingerprint()
        records = [runner.run(*pair) for pair in zip(plans, (honest, lying), strict=True)]
        assert same_bits(weights_of(plans[0], honest), weights_of(plans[1], lying))
        assert records[0].metrics == records[1].metrics
        assert records[0].hidden_truth != records[1].hidden_truth  # diagnostics alone look at it

    def test_a_run_that_only_selects_never_opens_test(
        self, make_workspace: Callable[..., Workspace], tiny_dataset: type[Any]
    ) -> None:
        class Locked(tiny_dataset):
            def split(self, name: str) -> Any:
                assert name == "train", f"split {name} was opened"
                return super().split(name)

        workspace = make_workspace(Locked)
        request = {"selection": "validation", "simulate": "rpa=0.2", "scores_test": False}
        choosing = a_plan(workspace, "selective", **request).chooser
        assert choosing is not None
        record = runner.run(choosing, workspace)
        assert choosing.stages["prior"][1].spec.train_part == "fit"
        assert set(record.metrics) == {"validation", "validation_raw"}
        assert record.data is not None
        assert record.data.num_test == 0
        assert record.data.num_train + record.data.num_validation == 48
        with pytest.raises(AssertionError, match="split test was opened"):
            runner.run(a_plan(workspace, "ce-negative"), workspace)


class TestSelection:
    @both_regimes
    def test_validation_chooses_the_epoch_and_the_winner_learns_from_all_of_train(
        self, make_workspace: Callable[..., Workspace], regime: str
    ) -> None:
        workspace = make_workspace()
        plan = a_plan(workspace, regime=regime, selection="validation", simulate="rpa=0.2")
        record = runner.run(plan, workspace)
        assert plan.chooser is not None
        chosen = runner.run(plan.chooser, workspace).selection
        assert chosen is not None
        curve = [point["ema"] for point in chosen.curve]
        assert len(curve) == plan.spec.plan.epochs
        assert chosen.epoch == 1 + int(np.argmax(curve))
        assert record.selection is not None
        assert (record.selection.rule, record.selection.labels) == ("validation", "partial")
        assert record.selection.epoch == chosen.epoch
        assert record.training["steps"] == 3 * chosen.epoch
        assert record.data is not None
        assert (record.data.num_train, record.data.num_test) == (48, 24)

    def test_it_is_the_unselected_run_up_to_that_epoch(
        self, make_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        workspace = make_workspace()
        seen: list[dict[str, Tensor]] = []
        record_weights(monkeypatch, seen)
        runner.run(a_plan(workspace, simulate="rpa=0.2"), workspace)
        plan = a_plan(workspace, selection="validation", simulate="rpa=0.2")
        choose = runner.chosen_epoch  # whose run chooses the thresholds, too
        monkeypatch.setattr(runner, "chosen_epoch", lambda plan, workspace: choose(plan, workspace) and 2)
        runner.run(plan, workspace)
        assert all(torch.equal(value, seen[1][name]) for name, value in weights_of(plan, workspace)["ema"].items())

    def test_validation_labels_are_the_partial_ones(self, make_workspace: Callable[..., Workspace]) -> None:
        plan = a_plan(make_workspace(), simulate="rpa=0.2", selection="validation")
        assert (
            0 < plan.protocol_data.validation().labels.num_known < plan.protocol_data.validation().labels.num_images * 6
        )
        single = a_plan(make_workspace(), simulate="single-positive", selection="validation")
        assert single.spec.protocol.validation_labels == "complete"
        assert single.protocol_data.validation().labels.is_complete
        rows = np.concatenate([single.protocol_data.validation().rows, single.protocol_data.train("fit").rows])
        assert sorted(rows) == list(range(48))

    @both_regimes
    @pytest.mark.parametrize("simulate", ["rpa=0.2", "single-positive"])
    def test_without_retraining_the_best_model_itself_is_tested(
        self, make_workspace: Callable[..., Workspace], regime: str, simulate: str
    ) -> None:
        workspace = make_workspace()
        request = {"regime": regime, "simulate": simulate, "plan": {"epochs": 4}}
        plan = a_plan(workspace, selection="validation-no-retrain", **request)
        assert plan.prerequisites == []
        record = runner.run(plan, workspace)
        chooser = a_plan(workspace, selection="validation", **request).chooser
        assert chooser is not None
        choosing = runner.run(chooser, workspace)
        assert record.selection is not None and choosing.selection is not None
        labels = "complete" if simulate == "single-positive" else "partial"
        assert (record.selection.rule, record.selection.labels) == ("validation-no-retrain", labels)
        assert record.selection.curve == choosing.selection.curve
        assert record.selection.epoch == choosing.selection.epoch
        weights, theirs = weights_of(plan, workspace), weights_of(chooser, workspace)
        assert all(torch.equal(value, theirs["ema"][name]) for name, value in weights["ema"].items())
        assert set(record.metrics) == {"test", "test_raw"}
        assert record.data is not None and choosing.data is not None
        assert (record.data.num_train, record.data.num_test) == (choosing.data.num_train, 24)
        assert record.data.num_train < 48
        assert record.test.thresholds is not None and record.test.thresholds.held_out
        assert record.test.thresholds.labels == labels

    def test_without_retraining_it_is_marked_and_no_board_takes_it(
        self, make_workspace: Callable[..., Workspace]
    ) -> None:
        workspace = make_workspace()
        plan = a_plan(workspace, "selective", selection="validation-no-retrain", simulate="rpa=0.2")
        record = runner.run(plan, workspace)
        assert plan.stages["prior"][1].spec.train_part == "fit"  # a prior must not come from what validates
        assert plan.spec.protocol.name.startswith("custom/")
        (warning,) = [text for text in record.warnings if text.startswith("selection=validation-no-retrain")]
        assert f"{record.data.num_train} of 48 train images" in warning  # type: ignore[union-attr]
        other = runner.run(a_plan(workspace, "ce-negative", simulate="rpa=0.2"), workspace)
        assert row_labels([record])[0].endswith("(selection=validation-no-retrain)")
        assert all("selection=" in label for label in row_labels([record, other]))
        board = Board(name="b", title="B", protocol=plan.spec.protocol.name, protocol_sha256="0" * 64, dataset="tiny")
        findings = Findings(record.key)
        check_identity(record, board, "row", Installed(), findings)
        assert {"spec.protocol.name", "spec.train_part"} <= {problem.field for problem in findings.problems}

    def test_selection_on_test_is_marked(self, make_workspace: Callable[..., Workspace]) -> None:
        workspace = make_workspace()
        plan = a_plan(workspace, selection="best-on-test")
        record = runner.run(plan, workspace)
        assert plan.spec.protocol.name == "custom/tiny-fpc8"
        assert any("selected on the test split" in warning for warning in record.warnings)
        assert record.selection is not None
        assert record.selection.labels == "test"
        best = max(max(point["ema"], point["raw"]) for point in record.selection.curve)
        assert record.test.map_c.value == pytest.approx(best, abs=1e-5)
        assert record.selection.curve[record.selection.epoch - 1][record.selection.weights] == best


def record_weights(monkeypatch: pytest.MonkeyPatch, seen: list[dict[str, Tensor]]) -> None:
    """Appends a copy of the averaged weights at the end of each epoch of every training."""
    fit = active.fit

    def spied(*arguments: Any, after_epoch: Callable[[FitState], None], **options: Any) -> None:
        def noting(state: FitState) -> None:
            seen.append({name: value.clone() for name, value in state.averaged().state_dict().items()})
            after_epoch(state)

        fit(*arguments, after_epoch=noting, **options)

    monkeypatch.setattr(active, "fit", spied)


def interrupt_after(monkeypatch: pytest.MonkeyPatch, epoch: int, error: BaseException) -> None:
    """Raises at the end of an epoch, after what is done there."""
    fit = engine.fit

    def interrupted(*arguments: Any, after_epoch: Callable[[FitState], None], **options: Any) -> None:
        def stop(state: FitState) -> None:
            after_epoch(state)
            if state.epoch == epoch:
                raise error

        fit(*arguments, after_epoch=stop, **options)

    monkeypatch.setattr(active, "fit", interrupted)


class Uneven(Method):
    """Keeps state of its own and draws from its own generator: what a resumed training must find again."""

    name, title = "uneven", "Uneven"

    def __init__(self, params: Any, task: Any) -> None:
        super().__init__(params, task)
        self.running = torch.zeros(task.num_classes)

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        noise = torch.rand(output.shape, generator=self.task.generator)
        self.running = 0.9 * self.running + 0.1 * output.detach().mean(dim=0)
        return Loss.of_images(((output - self.running - noise) ** 2).sum(dim=-1))

    def state_dict(self) -> dict[str, Any]:
        return {"running": self.running}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.running = state["running"]


class TestInterruption:
    @pytest.mark.parametrize(
        ("regime", "method", "selection", "epoch"),
        [
            ("probe", "ce-negative", "last", 3),
            ("probe", "ce-negative", "best-on-test", 1),
            ("probe", "ce-negative", "validation-no-retrain", 2),
            ("probe", "uneven", "last", 4),
            ("finetune", "ce-negative", "last", 1),
            ("finetune", "uneven", "best-on-test", 1),
        ],
    )
    def test_what_goes_on_ends_as_what_was_never_stopped(
        self,
        make_workspace: Callable[..., Workspace],
        monkeypatch: pytest.MonkeyPatch,
        regime: str,
        method: str,
        selection: str,
        epoch: int,
    ) -> None:
        request = {"regime": regime, "selection": selection}
        whole, stopped = make_workspace(Uneven, name="whole"), saving(make_workspace(Uneven, name="stopped"))
        plan = a_plan(whole, method, **request)
        expected = runner.run(plan, whole)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt_after(patch, epoch, KeyboardInterrupt())
            runner.run(a_plan(stopped, method, **request), stopped)
        folder = folder_of(plan, stopped)
        assert {path.name for path in folder.iterdir()} == {"spec.toml", "log.jsonl", checkpoint.FOLDER}
        epochs: list[dict[str, Tensor]] = []
        record_weights(monkeypatch, epochs)
        record = runner.run(a_plan(stopped, method, **request), stopped)
        assert len(epochs) == plan.spec.plan.epochs - epoch
        assert same_bits(weights_of(plan, stopped), weights_of(plan, whole))
        assert record.metrics == expected.metrics
        assert record.selection == expected.selection
        assert record.files["cells.npz"] == expected.files["cells.npz"]
        logs = [
            [{**json.loads(line), "seconds": 0} for line in (path / "log.jsonl").read_text().splitlines()]
            for path in (folder, folder_of(plan, whole))
        ]
        assert logs[0] == logs[1]

    def test_a_stop_during_evaluation_costs_no_training(
        self, make_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole, stopped = make_workspace(name="whole"), saving(make_workspace(name="stopped"))
        plan = a_plan(whole, regime="finetune")
        expected = runner.run(plan, whole)

        def interrupted(job: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(runner.outcome, "score", interrupted)
            runner.run(plan, stopped)
        forbid_training(monkeypatch)
        assert runner.run(plan, stopped).metrics == expected.metrics
        assert same_bits(weights_of(plan, stopped), weights_of(plan, whole))

    def test_a_stop_before_the_first_checkpoint_leaves_nothing(
        self, make_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        workspace = make_workspace()
        interrupt_after(monkeypatch, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            runner.run(a_plan(workspace), workspace)
        assert not list(workspace.store.runs.iterdir())

    def test_a_checkpoint_of_another_run_is_refused(
        self, make_workspace: Callable[..., Workspace], tmp_path: Path
    ) -> None:
        checkpoint.save(tmp_path / CHECKPOINT, "a" * 64, {"model": {}})
        with pytest.raises(StoreError, match=r"belongs to another run \(aaaaaaaaaaaaaaaa\).*`force=True`"):
            checkpoint.load(tmp_path / CHECKPOINT, "b" * 64)
        (tmp_path / CHECKPOINT).write_bytes(b"half")
        with pytest.raises(StoreError, match=r"cannot be read.*`force=True`"):
            checkpoint.load(tmp_path / CHECKPOINT, "a" * 64)


class Exploding(Method):
    """Its loss is NaN from the second epoch on."""

    name, title = "exploding", "Exploding"

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        return Loss.of_images((output**2).sum(dim=-1) * (torch.nan if progress.epoch else 1.0))


class Crashing(Exploding):
    """Has a mistake in its code."""

    name = "crashing"

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        raise ZeroDivisionError


class TestFailure:
    def test_a_failed_training_leaves_a_record_that_says_so(self, make_workspace: Callable[..., Workspace]) -> None:
        workspace = make_workspace(Exploding)
        plan = a_plan(workspace, "exploding")
        sentence = r"loss of method 'exploding' is nan at step 3 \(epoch 2\); no checkpoint had been saved yet; try a"
        for _ in range(2):  # it is tried again, since it is not done
            with pytest.raises(TrainingError, match=sentence):
                runner.run(plan, workspace)
        record = read_record(folder_of(plan, workspace))
        assert record.status == "failed"
        assert record.error is not None
        assert "exploding" in record.error
        assert not record.metrics
        assert plan.finished(workspace.store) is None

    def test_its_last_good_checkpoint_is_named_and_whole(
        self, make_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        workspace = saving(make_workspace(Exploding))
        plan = a_plan(workspace, "exploding")
        checkpoints = checkpoint.Checkpoints(folder_of(plan, workspace), plan.spec)
        with pytest.raises(TrainingError, match=f"last good checkpoint: {checkpoints.folder}/step-00000003.pt"):
            runner.run(plan, workspace)
        found = checkpoints.newest(print)
        assert found is not None
        saved = checkpoints.load(found)
        assert (saved["epoch"], saved["batch"]) == (1, 0)
        assert all(torch.isfinite(value).all() for value in saved["model"].values())

    def test_any_other_error_leaves_nothing(self, make_workspace: Callable[..., Workspace]) -> None:
        workspace = make_workspace(Crashing)
        with pytest.raises(PluginError, match="raised ZeroDivisionError"):
            runner.run(a_plan(workspace, "crashing"), workspace)
        assert not list(workspace.store.runs.iterdir())

    def test_a_run_under_way_elsewhere_is_waited_for_and_not_repeated(
        self, make_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        workspace = make_workspace()
        plan = a_plan(workspace)
        real, trainings = active.fit, []
        monkeypatch.setattr(active, "fit", lambda *a, **k: (trainings.append(1), real(*a, **k)))
        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(lambda _: runner.run(plan, workspace), range(2))
        assert first == second and len(trainings) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte; skips where the tests may not mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "plbench-tests", str(path)], capture_output=True, text=True
        )
    except OSError as error:
        pytest.skip(f"mount cannot be run: {error}")
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)


class TestFullDisk:
    small, large = {"model": torch.ones(1000)}, {"model": torch.ones(1 << 19)}  # 4 kB and 2 MB

    def still_good(self, path: Path) -> bool:
        """Whether the folder holds the small checkpoint, whole, and nothing else."""
        found = checkpoint.load(path, "a" * 64)["model"]
        return torch.equal(found, self.small["model"]) and list(path.parent.iterdir()) == [path]

    def test_the_last_good_checkpoint_stays(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        path = tmp_path / "run" / CHECKPOINT
        checkpoint.save(path, "a" * 64, self.small)
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match=f"^could not write {path}: No space left on device; free some space"):
            checkpoint.save(path, "a" * 64, self.large)
        assert self.still_good(path)

    def test_it_stays_on_a_disk_that_is_really_full(self, small_disk: Path) -> None:
        path = small_disk / "run" / CHECKPOINT
        checkpoint.save(path, "a" * 64, self.small)
        with pytest.raises(StoreError, match=f"^could not write {path}: .*; free some space") as caught:
            checkpoint.save(path, "a" * 64, self.large)
        assert "\n" not in str(caught.value)
        assert self.still_good(path)

    def test_the_last_checkpoint_of_a_training_stays_and_is_gone_on_from(
        self, make_workspace: Callable[..., Workspace], small_disk: Path
    ) -> None:
        workspace = make_workspace()
        spec = a_plan(workspace).spec
        checkpoints = checkpoint.Checkpoints(small_disk / "run", spec)
        for step in (1, 2):
            checkpoints.save({**self.small, "step": step, "epoch": 0, "batch": step}, 1)
        with pytest.raises(StoreError, match=r"^could not write .*step-00000003.pt: .*; free some space"):
            checkpoints.save({**self.large, "step": 3, "epoch": 0, "batch": 3}, 1)
        found = checkpoints.newest(print)
        assert found is not None and found.step == 2
        assert torch.equal(checkpoints.load(found)["model"], self.small["model"])
        assert {path.stem for path in checkpoints.folder.iterdir()} == {"step-00000002"}

    def test_a_run_leaves_nothing_half_written(
        self, make_workspace: Callable[..., Workspace], small_disk: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        workspace = saving(make_workspace(name=small_disk.name))  # its store lies on the small disk
        with pytest.raises(StoreError, match=r"could not write .*; free some space"):
            runner.run(a_plan(workspace, regime="finetune"), workspace)
        assert not list(workspace.store.runs.iterdir())
        assert not [path for path in small_disk.rglob("*") if path.suffix in (".tmp", ".partial")]

    def test_features_that_do_not_fit_are_refused_before_they_are_computed(
        self, make_workspace: Callable[..., Workspace], small_disk: Path
    ) -> None:
        workspace = make_workspace(name=small_disk.name)
        plan = a_plan(workspace)  # draws the images
        with (small_disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 12))
        with pytest.raises(StoreError, match=r"could not write .*: No space left on device"):
            runner.run(plan, workspace)
        assert not list(small_disk.rglob("*.partial"))

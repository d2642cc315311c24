"""What a run would take, said before it starts: what is there, what is missing, and figures from a few real steps."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from plbench.cli import app
from plbench.cli.display.dry_run import print_dry_run
from plbench.errors import PlbenchError, StoreError
from plbench.runs import run as runner
from plbench.runs.estimate import estimate, measured
from plbench.runs.estimate.estimate import Estimate, describe, estimate_runs
from plbench.runs.estimate.stacked import Stack
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.registry import Registry
from plbench.runs.workspace import Workspace
from plbench.training.checkpoint import Checkpoints
from plbench.tuning.tune import estimate_study

pytestmark = pytest.mark.usefixtures("quick_records")

METHODS = Registry.discover().names("method")
BOTH = ("probe", "finetune")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "_STEPS", 1)


@pytest.fixture
def workspace(make_workspace: Callable[..., Workspace]) -> Workspace:
    return make_workspace()


def a_plan(workspace: Workspace, method: str = "ce-negative", **request: Any) -> ResolvedRun:
    return plan_run(Request("tiny", method, **request), workspace)


def dry_run(plan: ResolvedRun, workspace: Workspace, *, force: bool = False, processes: int = 1) -> Estimate:
    return estimate_runs([plan], workspace, force=force, processes=processes, thorough=True)


def states(found: Estimate) -> dict[str, str]:
    return {item.what: item.state for item in found.items}


class TestWhatIsThere:
    def test_everything_is_missing_and_nothing_is_made(self, workspace: Workspace) -> None:
        plan = a_plan(workspace, "selective")
        before = {path for path in workspace.store.cache.rglob("*") if path.is_file()}
        found = dry_run(plan, workspace)
        assert states(found) == {
            "features of 48 train images": "to do",
            "features of 24 test images": "to do",
            "stage prior: CE, Ignore": "to do",
            "run: P-ASL, Selective": "to do",
        }
        assert [item.key for item in found.items[2:]] == [plan.spec.stages["prior"], plan.spec.key]
        assert all(item.seconds > 0 for item in found.items)
        assert found.seconds == pytest.approx(sum(item.seconds for item in found.items))
        assert not workspace.store.runs.exists()
        assert {path for path in workspace.store.cache.rglob("*") if path.is_file()} == before

    def test_what_was_made_is_done(self, workspace: Workspace) -> None:
        plan = a_plan(workspace, "selective")
        runner.run(plan.stages["prior"][1], workspace)
        found = dry_run(plan, workspace)
        assert list(states(found).values()) == ["done", "done", "done", "to do"]
        assert found.items[-1].seconds == found.seconds > 0

    def test_a_run_that_is_done_is_not_measured(self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        plan = a_plan(workspace)
        record = runner.run(plan, workspace)
        again = dry_run(plan, workspace, force=True)
        assert again.items[-1].state == "to do" and again.seconds > 0
        assert again.plan.num_steps == record.training["steps"]
        monkeypatch.setattr("plbench.runs.estimate.estimate.measure", None)  # would fail if it were called
        found = dry_run(plan, workspace)
        assert set(states(found).values()) == {"done"}
        assert found.seconds == 0 and found.measured is None and found.peak_bytes is None
        assert (found.steps_left, found.words) == (0, "nothing to do")

    def test_a_training_goes_on_from_its_checkpoint(self, workspace: Workspace) -> None:
        plan = a_plan(workspace)
        checkpoints = Checkpoints(workspace.store.run_folder(plan.spec.key), plan.spec)
        path = checkpoints.save({"step": 9, "epoch": 3, "batch": 0}, 1)
        found = dry_run(plan, workspace)
        assert found.items[-1].state == "going on" and found.items[-1].steps_done == 9
        assert found.steps_left == 3
        forced = dry_run(plan, workspace, force=True)
        assert forced.items[-1].state == "to do" and forced.items[-1].steps_done == 0
        path.write_bytes(b"cut")
        with pytest.raises(StoreError, match="truncated or changed"):
            dry_run(plan, workspace)

    def test_the_run_that_chooses_the_epoch_is_listed(self, workspace: Workspace) -> None:
        found = dry_run(a_plan(workspace, selection="validation"), workspace)
        assert list(states(found))[2:] == ["choice of the epoch: CE, Negative", "run: CE, Negative"]

    def test_finetuning_has_no_features(self, workspace: Workspace) -> None:
        found = dry_run(a_plan(workspace, regime="finetune"), workspace)
        assert list(states(found)) == ["run: CE, Negative"]
        assert (found.plan.steps_per_epoch, found.plan.num_steps) == (3, 6)


class TestMeasured:
    @pytest.mark.parametrize("regime", BOTH)
    @pytest.mark.parametrize("method", METHODS)
    def test_every_method(self, method: str, regime: Any, workspace: Workspace) -> None:
        try:
            plan = a_plan(workspace, method, regime=regime)
        except PlbenchError as error:
            pytest.skip(str(error))
        rng, numpy_rng = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr] # noqa: NPY002
        found = dry_run(plan, workspace).measured
        assert found is not None
        assert found.step_seconds > 0 and found.infer_seconds > 0 and found.load_seconds > 0
        assert found.batch_images == found.piece_images == 16 and not found.is_too_large
        assert found.activation_bytes > 0 and found.other_bytes > 0 and found.program_bytes > 2**20
        assert torch.equal(torch.get_rng_state(), rng)
        assert np.array_equal(np.random.get_state()[1], numpy_rng)  # type: ignore[index] # noqa: NPY002

    def test_the_images_that_a_mix_is_made_of_are_loaded_too(self, workspace: Workspace) -> None:
        found = []
        for probability in (0.0, 1.0):
            params = {"probability": probability, "max_images": 2}
            plan = a_plan(workspace, "logicmix", regime="finetune", method_params=params)
            found.append(measured._Trial(plan, workspace, None, thorough=False)._images_per_input())
        assert found[0] == 1.0 and 1.2 < found[1] <= 2.0  # partners of 16 images, of all 48

    def test_memory_of_weights_is_exact(self, workspace: Workspace) -> None:
        """A linear head [6, D] with its bias: weights, gradients, two moments, average, and a count of steps each."""
        plan = a_plan(workspace, model={"head_dropout": 0.0})
        found = dry_run(plan, workspace).measured
        runner.run(plan, workspace)
        width = np.load(next((workspace.store.cache / "features").glob("*.npy"))).shape[1]
        assert found is not None and found.num_parameters == found.num_trainable == 6 * width + 6
        assert found.state_bytes == 4 * (5 * found.num_parameters + 2)
        without = dry_run(a_plan(workspace, model={"head_dropout": 0.0}, plan={"ema_decay": 0.0}), workspace).measured
        assert without is not None and without.state_bytes == 4 * (4 * found.num_parameters + 2)

    def test_what_a_step_keeps_is_counted_once_and_grows_with_the_piece(self, workspace: Workspace) -> None:
        """A linear layer keeps its input; the loss keeps a few tensors of the size of the logits."""

        def kept(**plan: Any) -> int:
            found = dry_run(a_plan(workspace, model={"head_dropout": 0.0}, plan=plan), workspace).measured
            assert found is not None
            return found.activation_bytes

        whole, half, pieces = kept(), kept(batch_size=8), kept(accumulate=2)
        assert whole == pytest.approx(2 * half, rel=0.01) and half == pytest.approx(pieces, rel=0.01)
        runner.run(a_plan(workspace), workspace)
        width = np.load(next((workspace.store.cache / "features").glob("*.npy"))).shape[1]
        assert 4 * 16 * width < whole < 4 * 16 * (width + 12 * 6)

    def test_a_batch_that_takes_long_is_measured_smaller_and_scaled_up(
        self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(measured, "_BUDGET_SECONDS", 1e9)
        whole = dry_run(a_plan(workspace, regime="finetune"), workspace).measured
        assert whole is not None and whole.measured_images == whole.batch_images == 16
        monkeypatch.setattr(measured, "_BUDGET_SECONDS", 0.0)
        found = dry_run(a_plan(workspace, regime="finetune"), workspace)
        assert found.measured is not None
        assert (found.measured.measured_images, found.measured.batch_images) == (4, 16)
        print_dry_run(found)
        assert "from a few steps of 4 images with synthetic inputs, scaled up to 16" in capsys.readouterr().out

    def test_a_batch_that_does_not_fit_is_halved(self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        warm_up = measured._Trial._warm_up

        def small_device(self: Any, size: int) -> float:
            if size > 4:
                raise torch.OutOfMemoryError("no room")
            return warm_up(self, size)

        monkeypatch.setattr(measured._Trial, "_warm_up", small_device)
        plan = a_plan(workspace)
        found = measured.measure(plan, workspace, None)
        assert found.is_too_large and found.measured_images == 4
        monkeypatch.undo()
        assert found.activation_bytes == pytest.approx(
            measured.measure(plan, workspace, None).activation_bytes, rel=0.01
        )

    def test_several_processes_share_a_batch(self, workspace: Workspace) -> None:
        found = dry_run(a_plan(workspace), workspace, processes=4)
        assert found.measured is not None and found.measured.batch_images == 4
        assert found.as_dict()["processes"] == 4 and any("communication" in note for note in found.notes)

    def test_a_method_that_cannot_be_computed_in_pieces_is_refused_as_by_the_run(self, workspace: Workspace) -> None:
        with pytest.raises(PlbenchError, match="needs the whole batch at once"):
            dry_run(a_plan(workspace, "epr", plan={"accumulate": 2}), workspace)

    def test_the_line_before_a_run_comes_from_the_same_steps_but_fewer(
        self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of four images of a batch of 16, twice to warm up and three times to be timed."""
        sizes: list[int] = []
        steps = measured._Trial._steps

        def count(self: Any, size: int, number: int) -> list[float]:
            sizes.extend([size] * (number + 1))
            return steps(self, size, number)

        monkeypatch.setattr(measured._Trial, "_steps", count)
        monkeypatch.setattr(measured, "_STEPS", 3)
        plan = a_plan(workspace, regime="finetune")
        said = describe(plan, workspace)
        assert re.fullmatch(
            rf"{re.escape(plan.describe())}; about \d+ s on cpu, 6 steps, [\d.]+ [MG]iB of memory at the peak", said
        )
        assert sizes == [4] * 5
        monkeypatch.setattr(measured, "_LONG", 0.0)  # a step that takes long is not taken again
        sizes.clear()
        assert describe(plan, workspace).startswith(plan.describe() + "; about")
        assert sizes == [4] * 2

    def test_a_run_that_cannot_be_measured_is_described_without_figures(self, workspace: Workspace) -> None:
        plan = a_plan(workspace, "epr", plan={"accumulate": 2})
        assert describe(plan, workspace) == plan.describe()

    def test_the_stages_of_a_run_are_named(self, workspace: Workspace) -> None:
        assert ", 24 steps, " in describe(a_plan(workspace, "selective"), workspace)
        assert describe(a_plan(workspace, "selective"), workspace).endswith(", stage prior included")


class TestCommands:
    @pytest.fixture
    def say(self, tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
        """A command on the tiny dataset; standard output."""
        monkeypatch.setattr("plbench.runs.registry.Registry.discover", lambda plugins: workspace.registry)
        monkeypatch.setenv("PLBENCH_CACHE", str(tmp_path / "cache"))

        def run(*arguments: object) -> str:
            words = [str(word) for word in arguments]
            words += ["--dataset", "tiny", "--runs", str(tmp_path / "runs"), "--device", "cpu", "--quiet"]
            result = CliRunner().invoke(app, words, catch_exceptions=False)
            assert result.exit_code == 0
            assert not (tmp_path / "runs").exists()
            return result.stdout

        return run

    def test_run_in_words(self, say: Callable[..., str]) -> None:
        said = say("run", "--method", "selective", "--accumulate", 2, "--dry-run")
        assert re.search(r"^stage prior: CE, Ignore +[0-9a-f]{16} +to do +about", said, flags=re.MULTILINE)
        for part in ("3 in each of 4 epochs, 12 in total", "16 images, in 2 pieces", "float32 on cpu, 1 process"):
            assert part in said
        assert "Memory: about" in said and "are estimated" in said

    def test_run_as_json(self, say: Callable[..., str]) -> None:
        found = json.loads(say("run", "--method", "ce-ignore", "--dry-run", "--json"))
        assert found["num_steps"] == 12 and found["spec"]["method"]["name"] == "ce-ignore"
        assert found["peak_memory_mb"] > 10 and found["trainable_parameters"] == found["parameters"] > 0
        assert found["seconds"] == pytest.approx(sum(item["seconds"] for item in found["items"]))

    def test_compare_and_tune(self, say: Callable[..., str]) -> None:
        found = json.loads(say("compare", "--methods", "focal", "--seeds", 2, "--dry-run", "--json"))
        assert found["num_missing"] == 2 and found["steps"] == 24
        assert found["seconds"] > 0 and found["peak_memory_mb"] > 10
        tune = ("tune", "--method", "focal", "--trials", 5, "--dry-run")
        assert "5 trials, then 2 rows of 3 seeds; about" in say(*tune)
        found = json.loads(say(*tune, "--json"))
        plan_steps, trial_steps = 4 * 3, 4 * 2  # a trial trains on no more than 32 images
        assert found["steps"] == 6 * plan_steps + 5 * trial_steps and found["peak_memory_mb"] > 10

    def test_study(self, say: Callable[..., str]) -> None:
        found = json.loads(say("study", "prior-threshold", "--scale", "tiny", "--dry-run", "--json"))
        assert found["seconds"] > 0 and found["steps"] > 0 and found["peak_memory_mb"] > 10
        assert f"{found['steps']:,} steps" in found["text"]


def test_a_study_takes_as_long_as_its_trainings(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 1 s a step: 12 of a final run, as many of a trial as its part of train has."""
    monkeypatch.setattr("plbench.runs.estimate.estimate.measure_stack", lambda *_: Stack(1.0, 0.0, 0, 0))
    pretend = estimate._Pace.run
    monkeypatch.setattr(estimate._Pace, "features", lambda *_: 0.0)

    def seconds(self: Any, plan: ResolvedRun, members: list[ResolvedRun], steps: int, **given: Any) -> float:
        if len(members) > 1:
            return pretend(self, plan, members, steps, **given)
        return float(plan.num_steps)

    monkeypatch.setattr(estimate._Pace, "run", seconds)

    def total(plan: ResolvedRun, num_seeds: int, then: ResolvedRun | None = None) -> float:
        return estimate_study(plan, 3, num_seeds, workspace, then)[1].seconds

    plan = a_plan(workspace)
    trial = 4.0 * math.ceil(len(plan.protocol_data.train("fit").rows) / 16)
    assert total(plan, 0) == pytest.approx(3 * trial)
    assert total(plan, 2) == pytest.approx(3 * trial + 4 * 12)
    staged = a_plan(workspace, "selective")  # its prior once for all trials, and once for each final seed
    assert total(staged, 2) == pytest.approx(4 * trial + 6 * 12)
    then = a_plan(workspace, regime="finetune")
    assert total(plan, 2, then) == pytest.approx(3 * trial + 4 * 12 + 4 * 6)

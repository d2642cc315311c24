"""Tuning: what a study tries and keeps, how it is continued and shared, and that test stays shut until the end."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from plbench.api import BenchmarkProtocol, Dataset, LabelledSplit, PartialLabels
from plbench.board.identity import check_tuning
from plbench.errors import PlbenchError, StoreError, TrainingError
from plbench.runs.findings import Findings
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.record import read_record
from plbench.runs.workspace import Workspace
from plbench.tuning import trials, tune
from plbench.tuning.study import StudyRecord, read_study
from plbench.tuning.trials import TrialResult
from plbench.tuning.tune import Settings, search, tuned_plan

pytestmark = pytest.mark.usefixtures("quick_records")

Make = Callable[..., Workspace]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "POLL_SECONDS", 0.02)


def a_plan(workspace: Workspace, method: str = "pasl-negative", dataset: str = "tiny", **request: Any) -> ResolvedRun:
    request.setdefault("plan", {"epochs": 1})
    return plan_run(Request(dataset, method, **request), workspace)


def pretend(plan: ResolvedRun) -> TrialResult:
    """A value that the parameters decide, without training."""
    distance = abs(math.log10(plan.spec.plan.lr) + 1.7) + sum(abs(float(v) - 1) for _, v in plan.params) / 20
    return TrialResult(60 - 10 * distance, 0.01)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Trials that only take the time they are told to: in batches, or one at a time."""

    def pretend_to_train(*, together: bool, seconds: float = 0.0) -> None:
        def score_together(plans: Sequence[ResolvedRun], workspace: Workspace) -> list[TrialResult]:
            time.sleep(seconds * len(plans))
            return [pretend(plan) for plan in plans]

        def score_alone(plan: ResolvedRun, workspace: Workspace, watch: Any) -> TrialResult:
            return score_together([plan], workspace)[0]

        monkeypatch.setattr(tune, "can_stack", lambda plan: together)
        monkeypatch.setattr(trials, "score_together", score_together)
        monkeypatch.setattr(trials, "score_alone", score_alone)

    return pretend_to_train


def folder_of(study: StudyRecord, workspace: Workspace) -> Path:
    return workspace.store.runs / "studies" / study.key


def said(study: StudyRecord) -> list[tuple[dict[str, float], str, float | None]]:
    return [(trial.values, trial.state, trial.value) for trial in study.trials]


both = pytest.mark.parametrize("together", [True, False])


class TestSearch:
    @both
    def test_the_first_trial_has_the_starting_values_and_the_best_one_wins(
        self, together: bool, make_workspace: Make, pretended: Callable[..., None]
    ) -> None:
        pretended(together=together)
        workspace = make_workspace()
        plan = a_plan(workspace, method_params={"gamma_neg": 2.5}, plan={"epochs": 1, "weight_decay": 0.0})
        study = search(plan, Settings(6), workspace)
        assert study.trials[0].values == study.spec.start
        assert study.spec.start["gamma_neg"] == 2.5 and study.spec.start["weight_decay"] == 0.0
        assert len(study.trials) == 6 and study.best.value == max(trial.value or 0 for trial in study.trials)
        assert study.spec.pruner.startswith("none" if together else "median")
        for trial in study.trials[1:]:
            assert all(found.low <= trial.values[name] <= found.high for name, found in study.spec.space.items())
        assert read_study(folder_of(study, workspace)) == study

    @both
    def test_the_same_again_is_answered_and_more_trials_continue(
        self, together: bool, make_workspace: Make, pretended: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pretended(together=together)
        workspace = make_workspace()
        plan = a_plan(workspace)
        study = search(plan, Settings(4), workspace)
        more = search(plan, Settings(9), workspace)
        assert more.key == study.key and said(more)[:4] == said(study) and len(more.trials) == 9
        monkeypatch.setattr(trials, "score_together", None)
        monkeypatch.setattr(trials, "score_alone", None)
        assert search(plan, Settings(9), workspace) == more
        assert search(plan, Settings(2), workspace) == more  # what was tried is not forgotten

    def test_two_studies_of_one_seed_are_equal_and_of_another_are_not(
        self, make_workspace: Make, pretended: Callable[..., None]
    ) -> None:
        pretended(together=True)
        one, same = (make_workspace(name=name) for name in ("one", "same"))
        study = search(a_plan(one), Settings(20), one)
        assert said(search(a_plan(same), Settings(20), same)) == said(study)
        assert said(search(a_plan(one), Settings(20, seed=1), one))[1:] != said(study)[1:]

    def test_batches_are_of_sixteen_at_most(
        self, make_workspace: Make, pretended: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pretended(together=True)
        sizes: list[int] = []

        def score(plans: Sequence[ResolvedRun], workspace: Workspace) -> list[TrialResult]:
            sizes.append(len(plans))
            return [pretend(plan) for plan in plans]

        monkeypatch.setattr(trials, "score_together", score)
        workspace = make_workspace()
        search(a_plan(workspace), Settings(20), workspace)
        search(a_plan(workspace), Settings(40), workspace)
        assert sizes == [16, 4, 12, 8]

    def test_a_training_that_fails_counts_and_says_why(
        self, make_workspace: Make, pretended: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pretended(together=True)
        workspace = make_workspace()
        plan = a_plan(workspace)

        def score(plans: Sequence[ResolvedRun], workspace: Workspace) -> list[TrialResult]:
            results = [pretend(plan) for plan in plans]
            return [TrialResult(None, 0.1, "loss is nan"), TrialResult(math.nan, 0.1), *results[2:]]

        monkeypatch.setattr(trials, "score_together", score)
        study = search(plan, Settings(5), workspace)
        assert [trial.state for trial in study.trials] == ["failed", "failed", *3 * ["complete"]]
        assert study.trials[0].error == "loss is nan" and "validation" in (study.trials[1].error or "")
        assert study.winner >= 2 and study.report().default_value is None

    def test_without_a_complete_trial_there_is_one_sentence(
        self, make_workspace: Make, pretended: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pretended(together=True)
        monkeypatch.setattr(trials, "score_together", lambda plans, _: [TrialResult(None, 0.1, "inf")] * len(plans))
        workspace = make_workspace()
        with pytest.raises(
            TrainingError, match=r"none of the 3 trials of study \w+ .* the last failed: inf; give other"
        ):
            search(a_plan(workspace), Settings(3), workspace)

    def test_an_error_that_is_no_training_gives_the_trials_back(
        self, make_workspace: Make, pretended: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pretended(together=True)
        undisturbed, workspace = make_workspace(name="other"), make_workspace()
        expected = search(a_plan(undisturbed), Settings(5), undisturbed)
        with monkeypatch.context() as patched:
            patched.setattr(trials, "score_together", lambda plans, _: (_ for _ in ()).throw(StoreError("disk full")))
            with pytest.raises(StoreError, match="disk full"):
                search(a_plan(workspace), Settings(5), workspace)
        assert said(search(a_plan(workspace), Settings(5), workspace)) == said(expected)


class TestPruning:
    def test_what_is_below_the_median_ends_early_leaves_nothing_and_counts(
        self, make_workspace: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tune, "can_stack", lambda plan: False)
        monkeypatch.setattr(tune, "_PRUNED_AFTER", 2)
        score, calls = trials.score_alone, []

        def worse_and_worse(plan: ResolvedRun, workspace: Workspace, watch: Any) -> TrialResult:
            calls.append(plan.spec.key)
            number = len(calls)
            return score(plan, workspace, lambda epoch, value: watch(epoch, 90.0 - 10 * number))

        monkeypatch.setattr(trials, "score_alone", worse_and_worse)
        workspace = make_workspace()
        study = search(a_plan(workspace, plan={"epochs": 3}), Settings(4), workspace)
        assert [trial.state for trial in study.trials] == ["complete", "complete", "pruned", "pruned"]
        assert study.trials[2].value is None and study.winner in (0, 1)
        assert sorted(workspace.store.keys()) == sorted(calls[:2])
        assert not any(workspace.store.run_folder(key).exists() for key in calls[2:])


class Shut(PartialLabels):
    """Labels that nobody may look at before the end."""

    opened: bool = False

    def __getattribute__(self, name: str) -> Any:
        if name in ("num_images", "num_classes", "__class__", "__dict__") or name.startswith("__"):
            return object.__getattribute__(self, name)
        if not Shut.opened:
            raise AssertionError(f"the labels of test were asked for {name}")
        return object.__getattribute__(self, name)


def shut(labels: PartialLabels) -> PartialLabels:
    closed = object.__new__(Shut)
    closed.__dict__.update(vars(labels))
    return closed


class TestShut:
    @both
    @pytest.mark.parametrize("simulate", ["fpc=8", "single-positive"])
    @pytest.mark.parametrize("method", ["selective", "ce-negative"])
    def test_test_is_not_looked_at_during_the_search(
        self,
        together: bool,
        simulate: str,
        method: str,
        tiny_dataset: type[Dataset],
        make_workspace: Make,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        class Locked(tiny_dataset):  # type: ignore[misc,valid-type]
            def split(self, name: str) -> LabelledSplit:
                whole = super().split(name)
                return whole if name == "train" else LabelledSplit(whole.images, shut(whole.labels))

        monkeypatch.setattr(Shut, "opened", False)
        workspace = make_workspace(Locked)
        params = {"mode": "likelihood"} if (method, simulate) == ("selective", "single-positive") else {}
        plan = a_plan(workspace, method, simulate=simulate, method_params=params, scores_test=False)
        with pytest.raises(AssertionError, match="labels of test"):
            plan.protocol_data.test()
        if not together:
            monkeypatch.setattr(tune, "can_stack", lambda plan: False)
        study = search(plan, Settings(3), workspace)
        assert [trial.state for trial in study.trials] == 3 * ["complete"]
        labels = "complete" if simulate == "single-positive" else "partial"
        assert study.report().labels == labels == study.spec.protocol.validation_labels
        with pytest.raises(AssertionError, match="labels of test"):  # the final runs are the first to look
            tune.tune(plan, Settings(3), workspace, num_seeds=1)
        monkeypatch.setattr(Shut, "opened", True)
        made = tune.tune(plan, Settings(3), workspace, num_seeds=1)
        assert sum(1 + len(row.same) for row in made.settings[0].rows) == 2


class TestEnd:
    def test_default_and_tuned_rows_over_fresh_seeds(self, make_workspace: Make) -> None:
        workspace = make_workspace()
        plan = a_plan(workspace)
        made = tune.tune(plan, Settings(4), workspace, num_seeds=2)
        (rows,) = made.study.rows
        assert len(rows.default) == len(rows.tuned) == 2 and len({*rows.default, *rows.tuned}) == 4
        tuned = [read_record(workspace.store.run_folder(key)) for key in rows.tuned]
        default = [read_record(workspace.store.run_folder(key)) for key in rows.default]
        assert [record.spec.seed for record in tuned] == [0, 1] == [record.spec.seed for record in default]
        for record in tuned:
            assert record.configuration == "tuned" and record.spec.tuned_by == made.study.key
            assert record.tuning == made.study.report()
            assert record.spec.plan.lr == made.study.best.values["lr"] and record.spec.train_part == "train"
        assert all(record.spec.tuned_by is None and record.tuning is None for record in default)
        assert made.study.spec.trial_seed not in (0, 1)
        (setting,) = made.settings
        labels = [label for row in setting.rows for label in (row.label, *row.same)]  # one row where they are the same
        assert sorted(labels) == ["P-ASL, Negative", "P-ASL, Negative, tuned"]
        again = tune.tune(plan, Settings(4), workspace, num_seeds=2)
        assert again.study == made.study == read_study(made.folder)

    @pytest.mark.parametrize(
        ("change", "granted", "refused"),
        [
            ({}, 5, []),
            ({}, 4, ["tuning.num_trials"]),
            ({"study": "0" * 16}, 5, ["tuning.study"]),
            ({"labels": "complete"}, 5, ["tuning.labels"]),
            ({"chosen": {"lr": 0.5}}, 5, ["tuning.chosen", "tuning.chosen.lr"]),
            ({"regime": "finetune"}, 5, []),
        ],
    )
    def test_a_board_refuses_what_no_study_of_its_budget_chose(
        self,
        make_workspace: Make,
        pretended: Callable[..., None],
        change: dict[str, Any],
        granted: int,
        refused: list[str],
    ) -> None:
        pretended(together=True)
        workspace = make_workspace()
        plan = a_plan(workspace)
        study = search(plan, Settings(5), workspace)
        tuning, spec = study.report().model_copy(update=change), tuned_plan(plan, study, workspace).spec
        findings = Findings("a key")
        record = SimpleNamespace(tuning=tuning, spec=spec, configuration="tuned")
        check_tuning(record, SimpleNamespace(max_trials=granted), findings)  # type: ignore[arg-type]
        assert [problem.field for problem in findings.problems] == refused

    @pytest.mark.parametrize(
        ("configuration", "has_study", "tuned_by"),
        [("tuned", False, None), ("default", True, "0" * 16), ("default", False, "0" * 16), ("tuned", False, "0" * 16)],
    )
    def test_a_board_refuses_a_study_that_is_named_in_one_place_only(
        self, make_workspace: Make, configuration: str, has_study: bool, tuned_by: str | None
    ) -> None:
        plan = a_plan(make_workspace())
        tuning = SimpleNamespace(study=tuned_by, num_trials=1, labels="partial", regime="probe", chosen={}, space={})
        spec = plan.spec.model_copy(update={"tuned_by": tuned_by})
        record = SimpleNamespace(tuning=tuning if has_study else None, spec=spec, configuration=configuration)
        findings = Findings("a key")
        check_tuning(record, SimpleNamespace(max_trials=50), findings)  # type: ignore[arg-type]
        assert [problem.field for problem in findings.problems] == ["configuration"]

    def test_pictures_are_drawn(self, make_workspace: Make, pretended: Callable[..., None]) -> None:
        pretended(together=True)
        workspace = make_workspace()
        made = tune.tune(a_plan(workspace), Settings(12), workspace, search_only=True)
        assert made.study.rows == () and made.settings == ()
        assert {Path(name).stem for name in made.study.pictures} == {"history", "slices", "importances"}
        for name in made.study.pictures:
            path = made.folder / name
            if path.suffix == ".png":
                pixels = np.asarray(Image.open(path).convert("RGB"))
                assert min(pixels.shape[:2]) > 200 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10
            else:
                assert "<svg" in path.read_text()

    def test_one_trial_can_be_drawn_too(self, make_workspace: Make, pretended: Callable[..., None]) -> None:
        pretended(together=True)
        workspace = make_workspace()
        made = tune.tune(a_plan(workspace), Settings(1), workspace, search_only=True)
        assert {Path(name).stem for name in made.study.pictures} == {"history", "slices"}

    def test_the_winner_of_a_probe_is_trained_fully(self, make_workspace: Make) -> None:
        workspace = make_workspace()
        plan = a_plan(workspace)
        then = a_plan(workspace, regime="finetune", plan={})
        made = tune.tune(plan, Settings(3), workspace, num_seeds=1, then=then)
        assert [rows.regime for rows in made.study.rows] == ["probe", "finetune"]
        record = read_record(workspace.store.run_folder(made.study.rows[1].tuned[0]))
        assert record.spec.regime == "finetune" and record.tuning is not None and record.tuning.regime == "probe"
        assert record.spec.plan == then.spec.plan
        assert record.spec.method.params["gamma_neg"] == made.study.best.values["gamma_neg"]
        assert sorted(setting.regime for setting in made.settings) == ["finetune", "probe"]

    def test_a_larger_budget_than_the_protocols_is_custom(
        self, make_workspace: Make, tiny_dataset: type[Dataset], pretended: Callable[..., None]
    ) -> None:
        class Tight(tiny_dataset):  # type: ignore[misc,valid-type]
            protocols = (
                BenchmarkProtocol(
                    name="tiny-fpc8/v1", dataset="tiny", simulation="fpc=8", validation_share=0.3, max_trials=3
                ),
            )

        pretended(together=True)
        workspace = make_workspace(Tight)
        plan = a_plan(workspace)
        made = tune.tune(plan, Settings(3), workspace, num_seeds=1)
        assert made.settings[0].protocol == "tiny-fpc8/v1"
        more = tune.tune(plan, Settings(4), workspace, num_seeds=1)
        assert more.study.key == made.study.key and more.settings[0].protocol == "custom/tiny-fpc8"
        record = read_record(workspace.store.run_folder(more.study.rows[0].tuned[0]))
        assert record.spec.protocol.max_trials == 4
        fewer = tune.tune(plan, Settings(3), workspace, num_seeds=1)  # four were made, whatever is asked for now
        assert fewer.settings[0].protocol == "custom/tiny-fpc8"


@pytest.fixture
def worker(in_a_process: Callable[[Callable[[], Any]], Any]) -> Callable[..., Any]:
    """Starts `search` in a process of its own."""

    def start(workspace: Workspace, num_trials: int) -> Any:
        plan = a_plan(workspace)
        return in_a_process(lambda: search(plan, Settings(num_trials), workspace))

    return start


def lines(workspace: Workspace) -> int:
    return sum(path.read_bytes().count(b"\n") for path in workspace.store.runs.glob("studies/*/journal.log"))


def operations(workspace: Workspace) -> list[dict[str, Any]]:
    (path,) = workspace.store.runs.glob("studies/*/journal.log")
    return [json.loads(line) for line in path.read_text().splitlines()]


class TestWorkers:
    @pytest.mark.parametrize(
        ("together", "after"),
        [(True, lines) for lines in (1, 3, 6, 60, 150, 200, 230)] + [(False, lines) for lines in (2, 40, 125, 200)],
    )
    def test_a_study_that_was_killed_goes_on_as_one_that_was_not(
        self,
        together: bool,
        after: int,
        make_workspace: Make,
        pretended: Callable[..., None],
        worker: Callable[..., Any],
    ) -> None:
        """Killed when its journal has so many lines: while it is made, asks, trains, or tells."""
        pretended(together=together, seconds=0.002)
        undisturbed, workspace = make_workspace(name="undisturbed"), make_workspace()
        expected = search(a_plan(undisturbed), Settings(24), undisturbed)
        process = worker(workspace, 24)
        while lines(workspace) < after and process.is_alive():
            time.sleep(0.0005)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        study = search(a_plan(workspace), Settings(24), workspace)
        assert len(study.trials) == 24 and said(study) == said(expected) and study.winner == expected.winner
        assert not list(folder_of(study, workspace).glob("workers/????????????????*.lock"))

    @both
    def test_two_workers_make_exactly_so_many_trials_and_none_twice(
        self, together: bool, make_workspace: Make, pretended: Callable[..., None], worker: Callable[..., Any]
    ) -> None:
        pretended(together=together, seconds=0.01)
        workspace = make_workspace()
        processes = [worker(workspace, 40) for _ in range(2)]
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
        study = search(a_plan(workspace), Settings(40), workspace)
        assert len(study.trials) == 40
        assert len({tuple(trial.values.items()) for trial in study.trials}) == 40
        workers = {op["user_attr"]["worker"] for op in operations(workspace) if "worker" in op.get("user_attr", {})}
        assert len(workers) == 2

    def test_a_worker_that_dies_loses_only_its_trial_which_is_tried_again(
        self, make_workspace: Make, pretended: Callable[..., None], worker: Callable[..., Any]
    ) -> None:
        pretended(together=False, seconds=0.05)
        workspace = make_workspace()
        first = worker(workspace, 12)
        second = worker(workspace, 12)
        while lines(workspace) < 60 and first.is_alive():
            time.sleep(0.002)
        os.kill(first.pid, signal.SIGKILL)
        first.join()
        second.join(60)
        assert second.exitcode == 0
        study = search(a_plan(workspace), Settings(12), workspace)
        assert [trial.state for trial in study.trials] == 12 * ["complete"]
        assert len({tuple(trial.values.items()) for trial in study.trials}) == 12
        failed = [op for op in operations(workspace) if op["op_code"] == 6 and op["state"] == 3]
        assert len(failed) <= 1

    def test_a_run_of_a_worker_that_lives_is_left_to_it(
        self, make_workspace: Make, pretended: Callable[..., None], worker: Callable[..., Any]
    ) -> None:
        pretended(together=False, seconds=0.4)
        workspace = make_workspace()
        process = worker(workspace, 1)
        while lines(workspace) < 10 and process.is_alive():
            time.sleep(0.005)
        study = search(a_plan(workspace), Settings(1), workspace)
        process.join()
        assert process.exitcode == 0 and len(study.trials) == 1
        assert len([op for op in operations(workspace) if op["op_code"] == 4]) == 1

    def test_a_torn_last_line_is_cut(self, make_workspace: Make, pretended: Callable[..., None]) -> None:
        pretended(together=True)
        workspace = make_workspace()
        study = search(a_plan(workspace), Settings(3), workspace)
        with (folder_of(study, workspace) / "journal.log").open("ab") as file:
            file.write(b'{"op_code":4,"wor')
        assert said(search(a_plan(workspace), Settings(5), workspace))[:3] == said(study)
        assert len(search(a_plan(workspace), Settings(5), workspace).trials) == 5

    @pytest.mark.parametrize(
        "damage",
        [
            lambda raw: b"\x00\x01 no journal",
            lambda raw: b"no journal\n",
            lambda raw: raw.replace(b'"op_code":4', b'"op_code":"', 1),
            lambda raw: raw[: len(raw) // 2] + b"\n" + raw[len(raw) // 2 :],
            lambda raw: raw + b"[]\n",
        ],
    )
    def test_a_damaged_journal_is_a_sentence(
        self, damage: Callable[[bytes], bytes], make_workspace: Make, pretended: Callable[..., None]
    ) -> None:
        pretended(together=True)
        workspace = make_workspace()
        path = folder_of(search(a_plan(workspace), Settings(3), workspace), workspace) / "journal.log"
        path.write_bytes(damage(path.read_bytes()))
        before = path.read_bytes()
        with pytest.raises(StoreError, match=r"journal\.log is damaged .* move it away") as raised:
            search(a_plan(workspace), Settings(3), workspace)
        assert "\n" not in str(raised.value) and path.read_bytes() == before
        path.unlink()
        assert len(search(a_plan(workspace), Settings(3), workspace).trials) == 3


class TestTunedPlan:
    def test_the_seed_of_the_plan_stays_and_stages_are_those_of_the_default(
        self, make_workspace: Make, pretended: Callable[..., None]
    ) -> None:
        pretended(together=True)
        workspace = make_workspace()
        plan = a_plan(workspace, "selective", seed=3)

        study = None
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(trials, "score_together", lambda plans, _: [TrialResult(50.0 + i, 1) for i in range(4)])
            study = search(plan, Settings(4), workspace)
        tuned = tuned_plan(plan, study, workspace)
        assert study.winner == 3 and tuned.spec.seed == 3 and tuned.spec.stages == plan.spec.stages
        assert tuned.params.eta == study.best.values["eta"] and isinstance(tuned.params.top_k, int)

    def test_equal_values_are_another_run(self, make_workspace: Make, pretended: Callable[..., None]) -> None:
        pretended(together=True)
        workspace = make_workspace()
        plan = a_plan(workspace)
        study = search(plan, Settings(1), workspace)
        tuned = tuned_plan(plan, study, workspace)
        assert tuned.spec.method.params == plan.spec.method.params and tuned.spec.key != plan.spec.key


def test_settings_that_cannot_be(make_workspace: Make) -> None:
    workspace = make_workspace()
    plan = a_plan(workspace)
    for settings, says in (
        (Settings(0), "`trials=0`"),
        (Settings(-3), "`trials=-3`"),
        (Settings(3, seed=-1), "`study_seed=-1`"),
        (Settings(3, study=" "), "`study=`: the name is empty"),
    ):
        with pytest.raises(PlbenchError, match=says):
            search(plan, settings, workspace)
    for number in (0, -2):
        with pytest.raises(PlbenchError, match=f"`seeds={number}`: "):
            tune.tune(plan, Settings(3), workspace, num_seeds=number)
    assert not workspace.store.runs.exists() or list(workspace.store.runs.rglob("*")) == []


def test_a_lock_of_a_worker_is_held_for_as_long_as_it_works(
    make_workspace: Make, pretended: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended(together=True)
    workspace = make_workspace()
    held: list[bool] = []

    def score(plans: Sequence[ResolvedRun], workspace: Workspace) -> list[TrialResult]:
        found = [path for path in workspace.store.runs.glob("studies/*/workers/*.lock") if len(path.stem) == 32]
        held.extend(FileLock(path).is_locked or not _free(path) for path in found)
        return [pretend(plan) for plan in plans]

    monkeypatch.setattr(trials, "score_together", score)
    search(a_plan(workspace), Settings(2), workspace)
    assert held == [True]


def _free(path: Path) -> bool:
    from filelock import Timeout

    try:
        with FileLock(path, timeout=0):
            return True
    except Timeout:
        return False

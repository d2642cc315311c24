"""A study in words: its identity, the space that it searches, what its trials train on, and its file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plbench.api import Batch, Loss, Method, MethodParams, Progress, tunable
from plbench.errors import PlbenchError, StoreError
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.workspace import Workspace
from plbench.tuning.study import (
    StudyRecord,
    StudySpec,
    Trial,
    parse_ranges,
    read_study,
    search_space,
    study_spec,
    trial_plan,
    write_study,
)

Make = Callable[..., Workspace]
NONE: frozenset[str] = frozenset()


def a_plan(workspace: Workspace, method: str = "selective", **request: Any) -> ResolvedRun:
    return plan_run(Request("tiny", method, **request), workspace)


def a_spec(plan: ResolvedRun, workspace: Workspace, seed: int = 0, **ranges: tuple[float, float]) -> StudySpec:
    return study_spec(plan, seed, NONE, ranges, workspace.registry, sampler="a sampler", pruner="none")


class TestSpace:
    def test_whole_numbers_logarithms_and_bounds_by_the_task(self, make_workspace: Make) -> None:
        space = search_space(a_plan(make_workspace()), NONE, {})
        top_k = space["top_k"]  # up to a quarter of 6 classes, widened to the paper's 5
        assert (top_k.low, top_k.high, top_k.integer, top_k.log) == (0, 5, True, False)
        assert not space["eta"].integer and not space["eta"].log
        assert space["lr"].log and space["lr"].low == pytest.approx(1e-3) and space["lr"].high == pytest.approx(1e-1)

    @pytest.mark.parametrize(
        ("params", "has", "lacks"),
        [
            ({"mode": "likelihood"}, {"top_k"}, {"eta", "alpha"}),
            ({"mode": "prior"}, {"eta"}, {"top_k", "alpha"}),
            ({"mode": "soft-prior"}, {"top_k", "alpha"}, {"eta"}),
            ({"mode": "both", "eta_top": 2}, {"top_k", "eta_top"}, {"eta"}),
            ({"mode": "both", "eta": 0.2}, {"top_k", "eta"}, {"eta_top"}),
            ({"mode": "likelihood", "eta_top": 2}, {"top_k"}, {"eta", "eta_top"}),
        ],
    )
    def test_only_what_has_an_effect(
        self, params: dict[str, Any], has: set[str], lacks: set[str], make_workspace: Make
    ) -> None:
        found = set(search_space(a_plan(make_workspace(), method_params=params), NONE, {}))
        assert has <= found and not lacks & found

    def test_what_is_fixed_is_not_searched(self, make_workspace: Make) -> None:
        plan = a_plan(make_workspace(), method_params={"top_k": 2})
        assert "top_k" not in search_space(plan, frozenset({"top_k"}), {})
        assert "top_k" in search_space(plan, NONE, {})

    def test_a_range_is_widened_to_the_starting_value(self, make_workspace: Make) -> None:
        space = search_space(a_plan(make_workspace(), method_params={"gamma_neg": 9.0}), NONE, {})
        assert (space["gamma_neg"].low, space["gamma_neg"].high) == (0.0, 9.0)

    def test_a_range_given_replaces_the_declared_one(self, make_workspace: Make) -> None:
        space = search_space(a_plan(make_workspace()), NONE, {"eta": (0.1, 0.2), "lr": (1e-5, 1e-4)})
        assert (space["eta"].low, space["eta"].high) == (0.1, 0.2)
        assert (space["lr"].low, space["lr"].high, space["lr"].log) == (1e-5, 1e-4, True)

    def test_rate_and_decay_are_equal_for_all_methods(self, make_workspace: Make) -> None:
        workspace = make_workspace()
        registry = workspace.registry
        names = [n for n in registry.names("method") if not registry.method(n).needs & {"images", "feature_map"}]
        found = []
        for name in names:
            try:
                space = search_space(a_plan(workspace, name), NONE, {})
            except PlbenchError:  # of another kind of labels
                continue
            found.append({value: space[value] for value in ("lr", "weight_decay")})
        assert len(found) >= 7 and all(one == found[0] for one in found)

    def test_without_decay_there_is_a_range_and_the_first_trial_still_has_none(self, make_workspace: Make) -> None:
        workspace = make_workspace()
        spec = a_spec(a_plan(workspace, plan={"weight_decay": 0.0}), workspace)
        assert (spec.space["weight_decay"].low, spec.space["weight_decay"].high) == (1e-6, 1e-1)
        assert spec.start["weight_decay"] == 0.0

    def test_a_range_of_one_value_is_left_out(self, make_workspace: Make) -> None:
        class Settled(Method):
            name = title = "settled"

            class Params(MethodParams):
                here: int = tunable(1, 0.6, 1.4)
                there: float = tunable(1.0, 0.5, 2.0, log=True)

            def loss(self, output: Any, batch: Batch, progress: Progress) -> Loss:
                return Loss.of_images(output.square())

        space = search_space(a_plan(make_workspace(Settled), "settled"), NONE, {})
        assert "here" not in space and space["there"].log

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("lr", 'is not of the form name=low:high, such as `range="lr=1e-4:1e-1"`'),
            ("lr=1e-3", "not of the form"),
            ("lr=a:b", "not of the form"),
            ("=1:2", "not of the form"),
            ("eta=0.6:0.1", "reversed or empty"),
            ("eta=0.3:0.3", "reversed or empty"),
            ("eta=0.1:inf", "must be finite"),
            ("eta=nan:0.4", "must be finite"),
            ("eta=0.5:1.5", "eta=0.5:1.5\"`: parameters of method 'selective': eta = 1.5 is not valid"),
            ("lr=0:0.1", "lr = 0.0 is not valid: expected a number greater than 0"),
            ("weight_decay=-1:1", "weight_decay = -1.0 is not valid"),
            ("top_k=1:7", "top_k = 7 of method 'selective' exceeds the 6 classes"),
            ("top_k=0.5:3", "takes whole numbers"),
            ("gamma=1:2", "no parameter 'gamma'; did you mean gamma_"),
            ("mode=1:2", "tuning does not search mode"),
            ("alpha=1:2", "alpha has no effect here, since it needs mode = soft-prior, not both"),
            ("gamma_pos=0:1", "gamma_pos is fixed with `params.gamma_pos=0.5`"),
        ],
    )
    def test_a_range_that_cannot_be_is_a_sentence(self, text: str, says: str, make_workspace: Make) -> None:
        workspace = make_workspace()
        plan = a_plan(workspace, method_params={"gamma_pos": 0.5})
        with pytest.raises(PlbenchError) as raised:
            study_spec(
                plan,
                0,
                frozenset({"gamma_pos"}),
                parse_ranges([text]),
                workspace.registry,
                sampler="a sampler",
                pruner="none",
            )
        assert says in str(raised.value) and str(raised.value).startswith("`range=")

    def test_a_range_given_twice(self) -> None:
        with pytest.raises(PlbenchError, match='`range="lr"` is given twice'):
            parse_ranges(["lr=1:2", "lr=2:3"])


class TestIdentity:
    def test_what_changes_a_study_and_what_does_not(self, make_workspace: Make) -> None:
        workspace = make_workspace()
        plan = a_plan(workspace)
        spec = a_spec(plan, workspace)
        assert spec.key == a_spec(a_plan(workspace, seed=5), workspace).key  # the seed of the final rows
        more = plan.spec.model_copy(update={"protocol": plan.spec.protocol.model_copy(update={"max_trials": 9})})
        assert spec.key == a_spec(ResolvedRun(more, *list(vars(plan).values())[1:]), workspace).key
        others = [
            a_spec(plan, workspace, seed=1),
            a_spec(plan, workspace, eta=(0.1, 0.2)),
            a_spec(a_plan(workspace, plan={"epochs": 3}), workspace),
            a_spec(a_plan(workspace, method_params={"top_k": 1}), workspace),
            a_spec(a_plan(workspace, "pasl-negative"), workspace),
            a_spec(a_plan(workspace, simulate="rpa=0.5"), workspace),
        ]
        assert len({spec.key, *(other.key for other in others)}) == 7
        assert spec.sampler == "a sampler" and spec.pruner == "none" and spec.seed == 0

    def test_trials_train_on_the_fit_part_by_a_seed_of_their_own(self, make_workspace: Make) -> None:
        workspace = make_workspace()
        plan = a_plan(workspace)
        spec = a_spec(plan, workspace)
        trial = trial_plan(plan, {"eta": 0.2, "lr": 0.02, "top_k": 1.0}, spec.trial_seed, workspace.registry)
        assert trial.spec.train_part == "fit" and trial.spec.selection == "last" and trial.spec.tuned_by is None
        assert trial.spec.seed == spec.trial_seed > 100
        assert (trial.params.eta, trial.params.top_k, trial.spec.plan.lr) == (0.2, 1, 0.02)
        assert trial.params.gamma_neg == plan.params.gamma_neg and trial.spec.plan.epochs == plan.spec.plan.epochs
        ((_, stage),) = trial.stages.values()
        assert stage.spec.train_part == "fit" and stage.spec.plan.lr == plan.spec.plan.lr


class TestFile:
    @pytest.fixture
    def study(self, make_workspace: Make) -> StudyRecord:
        workspace = make_workspace()
        spec = a_spec(a_plan(workspace), workspace)
        first = Trial(values=spec.start, state="complete", value=50.0, seconds=1.0)
        better = first.model_copy(update={"values": {**spec.start, "eta": 0.3}, "value": 51.0})
        failed = Trial(values=spec.start, state="failed", error="the loss is nan")
        return StudyRecord(key=spec.key, spec_sha256=spec.sha256(), spec=spec, trials=(first, failed, better), winner=2)

    def test_it_is_read_as_it_was_written_and_reports_the_study(self, study: StudyRecord, tmp_path: Path) -> None:
        write_study(tmp_path, study)
        assert read_study(tmp_path) == study
        report = read_study(tmp_path).report()
        assert report.study == study.key and report.num_trials == 3 and report.space == study.spec.space
        assert (report.sampler, report.pruner, report.seed, report.labels) == ("a sampler", "none", 0, "partial")
        assert (report.value, report.default_value, report.chosen["eta"], report.default["eta"]) == (51, 50, 0.3, 0.5)

    @pytest.mark.parametrize(
        ("damage", "says"),
        [
            (lambda content: {**content, "schema_version": 2}, "not a valid study: schema_version"),
            (lambda content: {**content, "key": "0" * 16}, "was changed"),
            (lambda content: {**content, "trials": []}, "trials"),
            (lambda content: None, "not a valid study"),
        ],
    )
    def test_a_damaged_one_is_named(
        self, damage: Callable[[Any], Any], says: str, study: StudyRecord, tmp_path: Path
    ) -> None:
        write_study(tmp_path, study)
        path = tmp_path / "study.json"
        path.write_text(json.dumps(damage(json.loads(path.read_text()))))
        with pytest.raises(StoreError, match=says):
            read_study(tmp_path)

    def test_a_missing_one_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match=r"study\.json cannot be read"):
            read_study(tmp_path)

"""How long runs will take where heads train together: which are measured, how many at once; nothing is left behind."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from plbench.errors import PlbenchError
from plbench.models.backbones import Backbone
from plbench.randomness import seeded
from plbench.runs import run as runner
from plbench.runs import together
from plbench.runs.estimate import estimate, stacked
from plbench.runs.estimate.estimate import Estimate, estimate_runs
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.workspace import Workspace

pytestmark = pytest.mark.usefixtures("quick_records")


@pytest.fixture
def workspace(make_workspace: Callable[..., Workspace]) -> Workspace:
    return make_workspace()


def a_plan(workspace: Workspace, method: str = "selective", **request: Any) -> ResolvedRun:
    return plan_run(Request("tiny", method, **request), workspace)


def variants(workspace: Workspace, number: int = 3) -> list[ResolvedRun]:
    """Of Selective, with two seeds each; those of one seed share the stage that estimates the prior."""
    return [
        a_plan(workspace, seed=seed, method_params={"top_k": top_k})
        for top_k in range(1, number + 1)
        for seed in range(2)
    ]


def a_head(plan: ResolvedRun, workspace: Workspace) -> torch.nn.Module:
    return stacked._state(plan, Backbone(plan.spec.model).num_features, workspace).model


def seconds(found: Estimate) -> dict[str | None, float]:
    """Of each missing run, by key."""
    return {item.key: item.seconds for item in found.missing}


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The keys of each measurement, which takes no time: a hundredth of a second for each step and head."""
    seen: list[list[str]] = []

    def pretend(members: Sequence[ResolvedRun], width: int, workspace: Workspace) -> float:
        seen.append([plan.spec.key for plan in members])
        return 0.01

    monkeypatch.setattr(stacked, "_timed", pretend)
    monkeypatch.setattr(stacked, "_scoring_seconds", lambda *_: 0.0)
    return seen


class TestWhatIsMeasured:
    def test_missing_runs_and_their_stages(self, workspace: Workspace, timed: list[list[str]]) -> None:
        plans = variants(workspace)
        stages = {plan.stages["prior"][1].spec.key for plan in plans}
        found = estimate_runs(plans, workspace)
        assert seconds(found).keys() == {plan.spec.key for plan in plans} | stages
        # the features of random weights are those of a seed; of three that train together, one is measured alone first
        assert [len(members) for members in timed] == [1, 3, 1, 3]
        assert {key for members in timed for key in members} == {plan.spec.key for plan in plans}
        assert found.measured is not None, "the stages of a seed are alone, so that they are measured as such runs are"

    def test_what_is_done_is_not(self, workspace: Workspace, timed: list[list[str]]) -> None:
        plans = variants(workspace)
        runner.run(plans[0], workspace)
        done = {plans[0].spec.key, plans[0].stages["prior"][1].spec.key}
        assert not done & seconds(estimate_runs(plans, workspace)).keys()
        assert not done & {key for members in timed for key in members}
        found = estimate_runs(plans[:1], workspace)
        assert found.seconds == 0.0 and found.missing == []

    @pytest.mark.parametrize("request_", [{"method": "role"}, {"regime": "finetune"}])
    def test_what_trains_alone_is_not(
        self, workspace: Workspace, timed: list[list[str]], request_: dict[str, Any]
    ) -> None:
        plans = [a_plan(workspace, **request_, plan={"lr": rate}) for rate in (0.01, 0.02)]
        found = estimate_runs(plans, workspace)
        assert not {plan.spec.key for plan in plans} & {key for members in timed for key in members}
        assert all(seconds(found)[plan.spec.key] > 0.0 for plan in plans)

    def test_groups_that_are_alike_are_measured_once(self, workspace: Workspace, timed: list[list[str]]) -> None:
        plans = [
            a_plan(workspace, "ce-negative", simulate=f"fpc={number}", plan={"lr": rate})
            for number in (4, 6, 8)
            for rate in (0.01, 0.02)
        ]
        found = estimate_runs(plans, workspace)
        assert [len(members) for members in timed] == [1, 2]
        assert list(seconds(found).values()) == pytest.approx([12 * 0.01] * 6)

    def test_no_more_heads_than_the_time_allows(
        self, workspace: Workspace, timed: list[list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plans = [a_plan(workspace, "ce-negative", plan={"lr": 0.01 / number}) for number in range(1, 40)]
        estimate_runs(plans, workspace)
        afforded = int(stacked._BUDGET_SECONDS / (2 * stacked._STEPS * 0.01))
        afforded = min(afforded, stacked._MAX_HEADS)
        assert [len(members) for members in timed] == [1, afforded]
        monkeypatch.setattr(stacked, "_BUDGET_SECONDS", 1.0)
        estimate_runs(plans, workspace)
        assert 1 < len(timed[-1]) == int(1.0 / (2 * stacked._STEPS * 0.01)) < stacked._MAX_HEADS
        monkeypatch.setattr(stacked, "_BUDGET_SECONDS", 1e9)
        estimate_runs(plans, workspace)
        assert len(timed[-1]) == stacked._MAX_HEADS
        monkeypatch.setattr(together, "STACK_BYTES", 2 * together.bytes_per_head(a_head(plans[0], workspace), 16))
        estimate_runs(plans, workspace)
        assert len(timed[-1]) == 2, "as many as memory holds"

    def test_one_that_cannot_be_measured_in_a_stack_is_measured_alone(
        self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(members: Sequence[ResolvedRun], width: int, workspace: Workspace) -> float:
            raise PlbenchError("no")

        monkeypatch.setattr(stacked, "_timed", fail)
        plans = variants(workspace)
        found = estimate_runs(plans, workspace)
        assert all(value > 0.0 for value in seconds(found).values()) and found.peak_bytes

    def test_one_of_many_that_cannot_be_measured_at_all_is_named(
        self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*arguments: Any, **options: Any) -> float:
            raise PlbenchError("no")

        monkeypatch.setattr(estimate, "measure", fail)
        found = estimate_runs([a_plan(workspace, "role", seed=seed) for seed in range(2)], workspace)
        assert found.seconds == 0.0 and "cannot be estimated in advance" in found.words
        assert any("no" in note for note in found.notes)


def test_paces_count_for_their_runs_and_shared_stages_once(
    workspace: Workspace, timed: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = variants(workspace)
    found = estimate_runs(plans, workspace)
    assert len(found.missing) == 8 and found.steps_left == 8 * 12  # six runs and two stages
    before = sum(seconds(found)[plan.spec.key] for plan in plans)
    monkeypatch.setattr(stacked, "_timed", lambda *_: 10.01)
    slower = estimate_runs(plans, workspace)
    assert sum(seconds(slower)[plan.spec.key] for plan in plans) - before == pytest.approx(6 * 12 * 10.0)


def test_heads_are_measured_and_nothing_is_left(workspace: Workspace) -> None:
    plans = variants(workspace, 2)
    head = a_head(plans[0], workspace)
    rng, numpy_rng = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr] # noqa: NPY002
    threads = torch.get_num_threads()
    found = estimate_runs(plans, workspace)
    assert len(found.missing) == 6 and all(0.0 < value < 16.0 * 12 for value in seconds(found).values())
    with seeded(0):
        width = Backbone(plans[0].spec.model).num_features
    stack = stacked.measure_stack([plan for plan in plans if plan.spec.seed == 0], width, workspace)
    assert stack.step_seconds > 0.0 and stack.scoring_seconds > 0.0
    assert stack.peak_bytes == 2 * together.bytes_per_head(head, 16)
    assert torch.equal(torch.get_rng_state(), rng) and torch.get_num_threads() == threads
    assert np.array_equal(np.random.get_state()[1], numpy_rng)  # type: ignore[index] # noqa: NPY002
    assert not workspace.store.runs.exists() and not list(workspace.store.cache.rglob("*.npy"))

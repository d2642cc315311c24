"""How long runs will take where heads train together: which are measured, how many at once; nothing is left behind."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from plbench.errors import PlbenchError
from plbench.runs import run as runner
from plbench.runs import together
from plbench.runs.estimate import estimate
from plbench.runs.estimate import stacked as foreseen
from plbench.runs.plan.resolve import Request, ResolvedRun, plan_run
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
    return foreseen._state(plan, foreseen._width(plan, workspace), workspace).model


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The keys of each measurement, which takes no time: a thousandth of a second for each image and head."""
    seen: list[list[str]] = []

    def pretend(members: Sequence[ResolvedRun], workspace: Workspace) -> float:
        seen.append([plan.spec.key for plan in members])
        return 0.001

    monkeypatch.setattr(foreseen, "_timed", pretend)
    return seen


class TestWhatIsMeasured:
    def test_missing_runs_and_their_stages(self, workspace: Workspace, timed: list[list[str]]) -> None:
        plans = variants(workspace)
        stages = {plan.stages["prior"][1].spec.key for plan in plans}
        assert foreseen.paces(plans, workspace).keys() == {plan.spec.key for plan in plans} | stages
        # the features of random weights are those of a seed; of three that train together, one is measured alone first
        assert [len(members) for members in timed] == [1, 1, 1, 3, 1, 3]
        assert {*timed[0], *timed[1]} == stages

    def test_what_is_done_is_not(self, workspace: Workspace, timed: list[list[str]]) -> None:
        plans = variants(workspace)
        runner.run(plans[0], workspace)
        done = {plans[0].spec.key, plans[0].stages["prior"][1].spec.key}
        assert not done & foreseen.paces(plans, workspace).keys()
        assert foreseen.paces(plans[:1], workspace) == {}
        assert foreseen.seconds_of_all(plans[:1], workspace) == 0.0

    @pytest.mark.parametrize("request_", [{"method": "role"}, {"regime": "finetune"}])
    def test_what_trains_alone_is_not(
        self, workspace: Workspace, timed: list[list[str]], request_: dict[str, Any]
    ) -> None:
        plan = a_plan(workspace, **request_)
        others = foreseen.paces([plan], workspace)
        assert plan.spec.key not in others
        assert foreseen.seconds_of_all([plan], workspace) > 0.0

    def test_groups_that_are_alike_are_measured_once(self, workspace: Workspace, timed: list[list[str]]) -> None:
        plans = [a_plan(workspace, "ce-negative", simulate=f"fpc={number}") for number in (4, 6, 8)]
        assert set(foreseen.paces(plans, workspace).values()) == {0.001}
        assert len(timed) == 1

    def test_no_more_heads_than_the_time_allows(
        self, workspace: Workspace, timed: list[list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plans = [a_plan(workspace, "ce-negative", plan={"lr": 0.01 / number}) for number in range(1, 40)]
        foreseen.paces(plans, workspace)
        seconds_of_one = 2 * foreseen._STEPS * plans[0].spec.plan.batch_size * 0.001
        afforded = int(foreseen._BUDGET_SECONDS / seconds_of_one)
        assert [len(members) for members in timed] == [1, afforded] and 1 < afforded < foreseen._MOST_HEADS
        monkeypatch.setattr(foreseen, "_BUDGET_SECONDS", 1e9)
        foreseen.paces(plans, workspace)
        assert len(timed[-1]) == foreseen._MOST_HEADS
        monkeypatch.setattr(together, "STACK_BYTES", 2 * together.bytes_per_head(a_head(plans[0], workspace), 16))
        foreseen.paces(plans, workspace)
        assert len(timed[-1]) == 2, "as many as memory holds"

    def test_one_that_cannot_be_measured_is_left_to_the_plain_estimate(
        self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(members: Sequence[ResolvedRun], workspace: Workspace) -> float:
            raise PlbenchError("no")

        monkeypatch.setattr(foreseen, "_timed", fail)
        plans = variants(workspace)
        assert foreseen.paces(plans, workspace) == {}
        assert foreseen.seconds_of_all(plans, workspace) > 0.0


def test_paces_count_for_their_runs_and_shared_stages_once(workspace: Workspace, timed: list[list[str]]) -> None:
    plans = variants(workspace)
    found = foreseen.paces(plans, workspace)
    images = len(plans[0].protocol_data.train("train").rows) * plans[0].spec.plan.epochs
    slower = {key: pace + 10.0 for key, pace in found.items()}
    extra = estimate.seconds_of_all(plans, workspace, slower) - estimate.seconds_of_all(plans, workspace, found)
    assert extra == pytest.approx(8 * images * 10.0, rel=1e-3)  # six runs and two stages


def test_heads_are_measured_and_nothing_is_left(workspace: Workspace) -> None:
    plans = variants(workspace, 2)
    rng, numpy_rng = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr] # noqa: NPY002
    threads = torch.get_num_threads()
    found = foreseen.paces(plans, workspace)
    assert len(found) == 6 and all(0.0 < pace < 1.0 for pace in found.values())
    assert foreseen._scoring_seconds(plans[0], workspace) > 0.0
    assert torch.equal(torch.get_rng_state(), rng) and torch.get_num_threads() == threads
    assert np.array_equal(np.random.get_state()[1], numpy_rng)  # type: ignore[index] # noqa: NPY002
    assert not workspace.store.runs.exists() and not list(workspace.store.cache.rglob("*.npy"))

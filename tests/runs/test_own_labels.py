"""Each run draws its own labels where a simulation hides some: paired over methods, by the run's seed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from plbench.cli.request import options_of
from plbench.comparison.candidates import choose_candidates
from plbench.comparison.plan import plan_comparison
from plbench.data.simulation import parse
from plbench.runs import run as runner
from plbench.runs import schedule, together
from plbench.runs.plan.resolve import Request, plan_from_spec, plan_run
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.protocol import choose_protocol
from plbench.runs.record import Record, read_record
from plbench.runs.workspace import Workspace
from plbench.spec import Protocol, RunSpec
from plbench.tuning.study import with_values

MakeWorkspace = Callable[..., Workspace]

SIMULATIONS = ("fpc=8", "rpa=0.5", "single-positive", "positive-only=0.5", "frequency-biased=0.5")
ONE_BACKBONE = {"backbone": "tf_efficientnet_lite0", "weights": "packaged"}
"""Of which all seeds have the same features."""


def a_plan(workspace: Workspace, method: str = "ce-negative", **request: Any) -> ResolvedRun:
    return plan_run(Request("tiny", method, **request), workspace)


def mask(plan: ResolvedRun) -> str:
    return plan.protocol_data.train(plan.spec.train_part).labels.fingerprint()


@pytest.mark.parametrize("simulate", SIMULATIONS)
def test_a_seed_has_labels_of_its_own_which_all_methods_share(make_workspace: MakeWorkspace, simulate: str) -> None:
    workspace = make_workspace()
    plans = {
        (method, seed): a_plan(workspace, method, simulate=simulate, seed=seed)
        for method in ("ce-negative", "wan")
        for seed in (0, 1, 2)
    }
    for seed in (0, 1, 2):
        assert mask(plans["ce-negative", seed]) == mask(plans["wan", seed])
    assert len({mask(plan) for plan in plans.values()}) == 3
    assert len({plan.spec.protocol.sha256() for plan in plans.values()}) == 1  # so they are rows of one table
    assert len({plan.protocol_data.test().labels.fingerprint() for plan in plans.values()}) == 1


@pytest.mark.parametrize("fixed", [0, 7])
@pytest.mark.parametrize("simulate", SIMULATIONS[:3])
def test_a_simulation_seed_fixes_one_mask_for_all(make_workspace: MakeWorkspace, simulate: str, fixed: int) -> None:
    workspace = make_workspace()
    plans = [a_plan(workspace, simulate=simulate, simulation_seed=fixed, seed=seed) for seed in (0, 1)]
    assert len({mask(plan) for plan in plans}) == 1
    assert mask(plans[0]) == mask(a_plan(workspace, simulate=simulate, seed=fixed))  # the one that this seed draws
    assert all(plan.spec.protocol.name.startswith("custom/") for plan in plans)
    words = options_of(plans[0], workspace)
    assert words[words.index("--simulation-seed") + 1] == str(fixed)
    assert "--simulation-seed" not in options_of(a_plan(workspace, simulate=simulate, seed=fixed), workspace)


def test_stages_and_the_choosing_run_have_the_labels_of_their_run(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    seen = []
    for seed in (0, 1):
        plan = a_plan(workspace, "selective", seed=seed, selection="validation", method_params={"top_k": 2})
        first = plan.prerequisites
        (choosing,) = [p for p in first if p.spec.train_part == "fit"]
        stages = [stage for p in (plan, choosing) for _, stage in p.stages.values()]
        assert len(stages) == 2
        assert {p.spec.seed for p in (*first, *stages)} == {seed}
        assert {id(p.protocol_data) for p in (plan, *first, *stages)} == {id(plan.protocol_data)}
        seen.append(choosing.protocol_data.validation().labels.fingerprint())
    assert seen[0] != seen[1]  # the held-out part selects by the labels of its seed, too


def test_a_record_counts_its_own_labels_and_is_the_same_run_again(
    make_workspace: MakeWorkspace, quick_records: None
) -> None:
    workspace = make_workspace()
    plans = [a_plan(workspace, "ce-ignore", simulate="rpa=0.5", seed=seed) for seed in (0, 1)]
    records = [runner.run(plan, workspace) for plan in plans]
    for plan, record in zip(plans, records, strict=True):
        assert record.data is not None and record.hidden_truth is not None
        assert record.data.num_train_known == plan.protocol_data.partial_labels.num_known
        written = read_record(workspace.store.run_folder(record.key)).spec
        assert written == plan.spec and written.protocol.simulation_seed is None
        assert mask(plan_from_spec(written, workspace)) == mask(plan)
    assert records[0].data != records[1].data
    assert records[0].protocol_sha256 == records[1].protocol_sha256


@pytest.mark.usefixtures("quick_records")
def test_seeds_that_train_together_have_the_labels_that_they_have_alone(make_workspace: MakeWorkspace) -> None:
    workspace, other = make_workspace(), make_workspace(name="alone")
    candidates, _ = choose_candidates(["ce-ignore", "selective"], workspace.registry)
    comparison = plan_comparison(Request("tiny", "", model=ONE_BACKBONE), candidates, 3, workspace)
    (group,) = together.groups(comparison.plans)
    assert len({mask(plan) for plan in group}) == 3
    for plan, record in zip(comparison.plans, schedule.run_all(comparison.plans, workspace), strict=True):
        assert isinstance(record, Record)
        expected = runner.run(plan, other)
        assert record.data == expected.data and record.spec == expected.spec
        assert record.training["final_loss"] == pytest.approx(expected.training["final_loss"], rel=1e-4)
        assert record.test.map_c.value == pytest.approx(expected.test.map_c.value, abs=0.05)
        assert record.hidden_truth is not None and expected.hidden_truth is not None
        assert record.hidden_truth.base_rate == expected.hidden_truth.base_rate


def test_features_of_all_seeds_are_in_memory_once(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    for part in ("train", "fit"):
        plans = [a_plan(workspace, model=ONE_BACKBONE, seed=seed) for seed in (0, 1, 2)]
        plans = [_on(plan, part, workspace) for plan in plans]
        (jobs,) = together.in_memory(plans, workspace)
        assert len({id(job.train_inputs.features) for job in jobs}) == 1
        assert len({id(job.scored_inputs.features) for job in jobs}) == 1
        assert len({job.train_inputs.labels.fingerprint() for job in jobs}) == 3
        scored = {job.scored_inputs.labels.fingerprint() for job in jobs}
        assert len(scored) == (3 if part == "fit" else 1)
        for plan, job in zip(plans, jobs, strict=True):
            assert job.train_inputs.labels.fingerprint() == mask(plan)
            assert np.array_equal(job.scored_part.labels.matrix.data, job.scored_inputs.labels.matrix.data)


def _on(plan: ResolvedRun, part: str, workspace: Workspace) -> ResolvedRun:
    return plan if part == "train" else with_values(plan, {}, {"train_part": "fit"}, workspace.registry)


class TestIdentity:
    def test_a_protocol_without_a_simulation_has_one_form(self, make_workspace: MakeWorkspace) -> None:
        plain = Protocol(name="tiny/v1", dataset="tiny")
        assert plain == Protocol(name="tiny/v1", dataset="tiny", simulation_seed=None)
        assert plain.simulation_seed == 0 and '"simulation_seed":0' in plain.canonical()
        asked = [a_plan(make_workspace(), simulate="none", simulation_seed=seed, seed=4).spec for seed in (None, 0, 3)]
        assert len({spec.key for spec in asked}) == 1

    def test_a_protocol_that_was_written_with_a_seed_keeps_its_mask(self, make_workspace: MakeWorkspace) -> None:
        """Records of version 1 protocols: all runs had the labels of seed 0."""
        workspace = make_workspace()
        plan = a_plan(workspace, simulate="rpa=0.5", seed=5)
        old = plan.spec.model_dump(mode="json")
        old["protocol"] |= {"name": "tiny-rpa/v0", "simulation_seed": 0}
        again = plan_from_spec(RunSpec.model_validate(old), workspace)
        assert again.spec.protocol.simulation_seed == 0
        assert mask(again) == mask(a_plan(workspace, simulate="rpa=0.5", seed=0)) != mask(plan)

    def test_bootstrap_resamples_are_those_of_the_protocol_for_all_seeds(
        self, make_workspace: MakeWorkspace, quick_records: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from plbench.runs import summary

        workspace, seeds = make_workspace(), []
        draw = summary.draw_replicates
        monkeypatch.setattr(summary, "draw_replicates", lambda *a: (seeds.append(a[3]), draw(*a))[1])
        for seed in (0, 1):
            runner.run(a_plan(workspace, seed=seed), workspace)
        assert len(seeds) == 2 and len(set(seeds)) == 1

    def test_official_protocols_that_hide_labels_let_each_run_draw_its_own(self, make_workspace: MakeWorkspace) -> None:
        registry = make_workspace().registry
        for name in ("scenes", "coco", "coco2017"):
            for protocol in registry.dataset(name).protocols:
                hides = protocol.simulation != "none"
                if parse(protocol.simulation).is_published:
                    assert (protocol.simulation_seed, protocol.name[-3:]) == (0, "/v1")  # the very labels of a paper
                    continue
                assert protocol.simulation_seed == (None if hides else 0)
                assert protocol.name.endswith("/v2" if hides else "/v1")

    def test_the_ceiling_stays_what_boards_know_it_by(self, make_workspace: MakeWorkspace) -> None:
        dataset = make_workspace().registry.dataset("scenes")(None)
        ceiling = choose_protocol(dataset, "none", None)
        assert ceiling.sha256() == "4678fb52ef20ae5ab11974e2ab0e89d45c7c51ea10800f7493c1f64ef1009c0b"

"""Who takes part in a comparison, which runs that takes, and what comes of them."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from plbench.api import Batch, Loss, Method, Progress
from plbench.cli import main
from plbench.comparison.candidates import choose_candidates
from plbench.comparison.compare import Setting, compare
from plbench.comparison.plan import Comparison, estimate_comparison, make_runs, plan_comparison
from plbench.errors import PlbenchError, PluginError, TrainingError
from plbench.runs import schedule
from plbench.runs.plan.resolve import Request
from plbench.runs.registry import Registry, Source
from plbench.runs.workspace import Workspace
from plbench.training.step import Stepper
from plbench.tuning import tune
from plbench.tuning.rows import describe_studies, with_tuned
from plbench.tuning.study import read_study, study_folder

pytestmark = pytest.mark.usefixtures("quick_records")

TABLE_1 = [
    *("asl-negative", "ce-ignore", "ce-negative", "pasl-negative", "se-negative"),
    *("selective", "selective:likelihood", "selective:prior", "wce-ignore"),
]
SHORT = Request("tiny", "", plan={"epochs": 1})


class Halves(Method):
    """A stranger's method with a tag and a variant of its own."""

    name = "halves"
    title = "Halves"
    tags = frozenset({"strange"})

    def loss(self, output: Any, batch: Batch, progress: Progress) -> Loss:
        per_cell = torch.nn.functional.softplus(output) - (batch.labels > 0) * output
        return Loss.of_images(per_cell.sum(dim=-1))


class Exploding(Halves):
    """Its loss is no number from the start."""

    name = "exploding"
    title = "Exploding"

    def loss(self, output: Any, batch: Batch, progress: Progress) -> Loss:
        return Loss.of_images(output.sum(dim=-1) * torch.nan)


class NeedsNegatives(Halves):
    name = "needy"
    title = "Needy"
    tags = frozenset({"needy"})
    needs = frozenset({"negatives"})


def names(texts: list[str], registry: Registry) -> list[str]:
    return [candidate.words for candidate in choose_candidates(texts, registry)[0]]


def comparison_of(texts: list[str], workspace: Workspace, num_seeds: int = 1, request: Request = SHORT) -> Comparison:
    candidates, broken = choose_candidates(texts, workspace.registry)
    return plan_comparison(request, candidates, num_seeds, workspace, skipped=broken)


def table_of(comparison: Comparison, workspace: Workspace) -> Setting:
    (setting,) = compare(make_runs(comparison, workspace)[0], workspace.registry)
    return setting


class TestChoosing:
    @pytest.mark.parametrize(
        ("texts", "expected"),
        [
            (["paper"], TABLE_1),
            (["ce-ignore"], ["ce-ignore"]),
            (["selective"], ["selective"]),
            (["selective:prior, ce-ignore"], ["selective:prior", "ce-ignore"]),
            (["selective:*"], ["selective", "selective:likelihood", "selective:prior"]),
            (["ce-ignore", "ce-negative,ce-ignore"], ["ce-ignore", "ce-negative"]),
            (["wce-ignore,paper"], ["wce-ignore", *TABLE_1[:-1]]),
            (["strange"], ["halves"]),
        ],
    )
    def test_tags_bring_variants_and_names_come_alone(
        self, make_workspace: Callable[..., Workspace], texts: list[str], expected: list[str]
    ) -> None:
        assert names(texts, make_workspace(Halves).registry) == expected

    def test_all_is_everything_that_is_installed(self, make_workspace: Callable[..., Workspace]) -> None:
        registry = make_workspace(Halves).registry
        found = names(["all"], registry)
        assert {*TABLE_1, "halves"} <= set(found) and set(registry.names("method")) <= set(found)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("papr", "did you mean paper?"),
            ("selectve", "did you mean selective?"),
            ("selective:prio", "did you mean prior?"),
            ("ce-ignore:prior", "it has none"),
            ("paper:prior", "there is no method 'paper'"),
            (" , ", "names nobody"),
        ],
    )
    def test_names_that_are_none_are_said(self, make_workspace: Callable[..., Workspace], text: str, said: str) -> None:
        with pytest.raises(PlbenchError, match=re.escape(said)):
            choose_candidates([text], make_workspace().registry)

    def test_a_broken_plugin_is_left_out_of_groups_and_an_error_by_name(
        self, make_workspace: Callable[..., Workspace]
    ) -> None:
        registry = make_workspace().registry
        registry.sources["method"]["broken"] = [Source("broken", "the tests", loaded=int)]
        candidates, left_out = choose_candidates(["paper"], registry)
        assert [candidate.words for candidate in candidates] == TABLE_1
        assert [entry.who for entry in left_out] == ["broken"] and "not a subclass" in left_out[0].why
        assert choose_candidates(["ce-ignore"], registry)[1] == []
        with pytest.raises(PluginError, match="not a subclass"):
            choose_candidates(["paper,broken"], registry)


class TestPlanning:
    def test_table_1_has_nine_rows_of_equal_seeds(self, make_workspace: Callable[..., Workspace]) -> None:
        workspace = make_workspace()
        comparison = comparison_of(["paper"], workspace, num_seeds=2)
        assert [candidate.words for candidate, _ in comparison.rows] == TABLE_1
        assert all([plan.spec.seed for plan in plans] == [0, 1] for _, plans in comparison.rows)
        assert len({plan.spec.key for plan in comparison.plans}) == 18
        assert len({id(plan.protocol_data) for plan in comparison.plans}) == 2  # simulated once a seed
        assert len({id(plan.protocol_data.whole_train.labels) for plan in comparison.plans}) == 1  # opened once
        text, foreseen = estimate_comparison(comparison, workspace)  # the prior's stage is the row of CE, Ignore
        assert foreseen.num_trainings == len(foreseen.missing) == 18 and foreseen.seconds > 0
        assert "9 rows with 2 seeds each, 18 trainings, 0 of them done" in text
        assert len({plan.spec.protocol.canonical() for plan in comparison.plans}) == 1

    def test_values_that_the_protocol_suggests_are_taken(
        self, make_workspace: Callable[..., Workspace], tiny_dataset: type[Any]
    ) -> None:
        class Suggesting(tiny_dataset):  # type: ignore[misc]
            protocols = (
                tiny_dataset.protocols[0].model_copy(update={"suggested": {"selective": {"top_k": 2, "eta": 0.25}}}),
            )

        comparison = comparison_of(["selective:*"], make_workspace(Suggesting))
        found = [plans[0].spec.method.params for _, plans in comparison.rows]
        assert [params["mode"] for params in found] == ["both", "likelihood", "prior"]
        assert all(params["top_k"] == 2 and params["eta"] == 0.25 for params in found)

    def test_who_does_not_apply_is_left_out_with_the_reason(self, make_workspace: Callable[..., Workspace]) -> None:
        request = Request("tiny", "", simulate="single-positive", plan={"epochs": 1})
        comparison = comparison_of(["paper"], make_workspace(), request=request)
        assert {entry.who for entry in comparison.skipped} == {
            "ce-ignore",
            "wce-ignore",
            "selective",
            "selective:prior",
        }
        assert all("verified negatives" in entry.why for entry in comparison.skipped)
        assert len(comparison.rows) == 5

    @pytest.mark.parametrize(
        ("texts", "said"),
        [
            (["ce-ignore,ce-negative"], "method 'ce-ignore' needs verified"),
            (["needy"], "no method that `methods=` names can be used"),
        ],
    )
    def test_who_was_named_must_apply_and_somebody_must(
        self, make_workspace: Callable[..., Workspace], texts: list[str], said: str
    ) -> None:
        workspace = make_workspace(*([NeedsNegatives] if texts != ["needy"] else []))
        if texts == ["needy"]:  # the tag of a method by another name
            kind = type("Other", (NeedsNegatives,), {"name": "other"})
            workspace.registry.sources["method"]["other"] = [Source("other", "the tests", loaded=kind)]
        with pytest.raises(PlbenchError, match=said):
            comparison_of(texts, workspace, request=Request("tiny", "", simulate="single-positive"))

    def test_no_seed_is_an_error(self, make_workspace: Callable[..., Workspace]) -> None:
        with pytest.raises(PlbenchError, match="`seeds=0`"):
            comparison_of(["paper"], make_workspace(), num_seeds=0)


class TestRuns:
    def test_all_are_made_in_one_sweep_and_a_second_time_nothing_is(
        self, make_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        workspace, calls = make_workspace(), []
        run_all = schedule.run_all

        def counted(plans: Any, *arguments: Any, **options: Any) -> Any:
            calls.append(len(plans))
            return run_all(plans, *arguments, **options)

        monkeypatch.setattr(schedule, "run_all", counted)
        comparison = comparison_of(["paper"], workspace)
        first = table_of(comparison, workspace)
        assert calls[0] == 9 and sum(1 + len(row.same) for row in first.rows) == 9
        assert sum(row.share_best for row in first.rows) == pytest.approx(1)
        assert {row.label for row in first.rows} >= {"P-ASL, Selective", "P-ASL, Selective (prior)", "CE, Ignore"}

        def no_step(*arguments: Any) -> float:
            raise AssertionError("something was trained")

        monkeypatch.setattr(Stepper, "take", no_step)
        monkeypatch.setattr("plbench.runs.together.run_group", no_step, raising=False)
        text, foreseen = estimate_comparison(comparison, workspace)
        assert not foreseen.missing and "all done already" in text
        assert table_of(comparison_of(["paper"], workspace), workspace).as_dict() == first.as_dict()

    def test_a_stage_that_is_a_row_itself_counts_once(self, make_workspace: Callable[..., Workspace]) -> None:
        workspace, told = make_workspace(), []
        plans = comparison_of(["ce-ignore,selective"], workspace, num_seeds=2).plans
        results = schedule.run_all(plans, workspace, told.extend)
        assert len(told) == len(results) == 4 == len({result.key for result in told})

    def test_one_that_fails_leaves_its_own_row_out(self, make_workspace: Callable[..., Workspace]) -> None:
        workspace = make_workspace(Exploding, Halves)
        comparison = comparison_of(["ce-negative", "strange"], workspace, num_seeds=2)
        runs, failed = make_runs(comparison, workspace)
        assert [record.spec.method.name for _, record in runs] == ["ce-negative"] * 2 + ["halves"] * 2
        assert [entry.who for entry in failed] == ["exploding"]
        assert "seed 0 failed" in failed[0].why and "is nan" in failed[0].why


class TestTuned:
    def test_every_row_gets_a_tuned_one_of_as_many_trials(self, make_workspace: Callable[..., Workspace]) -> None:
        workspace = make_workspace()
        comparison = with_tuned(comparison_of(["ce-negative,asl-negative"], workspace), 2, 1, workspace)
        assert [plans[0].spec.tuned_by is not None for _, plans in comparison.rows] == [False, True, False, True]
        assert {plans[0].tuning.num_trials for _, plans in comparison.rows if plans[0].tuning} == {2}
        table = table_of(comparison, workspace)
        assert {label for row in table.rows for label in (row.label, *row.same)} == {
            *("CE, Negative", "CE, Negative, tuned", "ASL, Negative", "ASL, Negative, tuned")
        }

    def test_a_tuned_row_has_the_winners_of_several_studies(self, make_workspace: Callable[..., Workspace]) -> None:
        workspace = make_workspace()
        comparison = with_tuned(comparison_of(["ce-negative,selective:prior"], workspace, 2), 3, 3, workspace)
        for (_, default), (_, plans) in zip(comparison.rows[::2], comparison.rows[1::2], strict=True):
            assert [plan.spec.seed for plan in default] == [0, 1] and default[0].spec.tuned_by is None
            assert [plan.spec.seed for plan in plans] == [0, 1, 0, 1, 0, 1]
            assert [plan.tuning and plan.tuning.seed for plan in plans] == [0, 0, 1, 1, 2, 2]
            assert all(plan.tuning and plan.tuning.study == plan.spec.tuned_by for plan in plans)
            studies = [read_study(study_folder(workspace.store, str(plan.spec.tuned_by))) for plan in plans[::2]]
            assert len({study.spec.trial_seed for study in studies}) == 3
            assert len({str(study.spec.space) for study in studies}) == 1
            assert len({study.trials[1].values["lr"] for study in studies}) == 3  # each draws its own
            masks = {plans[0].protocol_data.at_seed(study.spec.trial_seed).seed for study in studies}
            assert len(masks) == 3 and not masks & {0, 1}  # labels that no final run has
        said, _ = estimate_comparison(comparison, workspace)
        assert "4 rows with 2 seeds each, 2 of them tuned by 3 studies each" in said
        table = table_of(comparison, workspace)
        tuned = [row for row in table.rows if row.label.endswith("tuned")]
        assert [(len(row.keys), row.studies, row.seeds) for row in tuned] == 2 * [(6, 3, (0, 1))]

    def test_a_row_one_of_whose_studies_fails_has_no_tuned_one(
        self, make_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        search = tune.search

        def unlucky(plan: Any, settings: Any, workspace: Workspace) -> Any:
            if settings.seed == 1 and plan.method.name == "ce-ignore":
                raise TrainingError("none of its trials was completed")
            return search(plan, settings, workspace)

        monkeypatch.setattr(tune, "search", unlucky)
        workspace = make_workspace()
        comparison = with_tuned(comparison_of(["ce-negative,ce-ignore"], workspace), 1, 2, workspace)
        assert [(candidate.words, len(plans)) for candidate, plans in comparison.rows] == [
            *(("ce-negative", 1), ("ce-negative", 2), ("ce-ignore", 1))
        ]
        assert [entry.who for entry in comparison.skipped] == ["ce-ignore, tuned"]

    def test_what_tuning_adds_is_said_first(self, make_workspace: Callable[..., Workspace]) -> None:
        comparison = comparison_of(["ce-negative,asl-negative"], make_workspace(), 5)
        assert describe_studies(comparison, 16, 3) == (
            "before that 3 studies of 16 trials for each row, 96 shorter trainings in all, minus finished ones; they "
            "add 2 tuned rows of 15 trainings each, 30 in all"
        )
        assert describe_studies(comparison_of(["ce-negative"], make_workspace()), 1, 1) == (
            "before that 1 study of 1 trial for each row, 1 shorter training in all, minus finished ones; they add "
            "1 tuned row of 1 training each, 1 in all"
        )

    def test_a_study_that_was_longer_counts_by_its_first_trials(self, make_workspace: Callable[..., Workspace]) -> None:
        workspace = make_workspace()
        comparison = comparison_of(["ce-negative"], workspace)
        longer, shorter = (with_tuned(comparison, number, 1, workspace).rows[1][1][0].tuning for number in (3, 1))
        assert longer is not None and shorter is not None and longer.study == shorter.study
        assert (longer.num_trials, shorter.num_trials) == (3, 1)
        assert shorter.chosen == shorter.default

    def test_more_trials_than_the_protocol_grants_make_it_custom_for_all(
        self, make_workspace: Callable[..., Workspace]
    ) -> None:
        workspace = make_workspace()
        candidates, _ = choose_candidates(["ce-negative,selective"], workspace.registry)
        comparison = plan_comparison(SHORT, candidates, 1, workspace, num_trials=100)
        protocols = {plan.spec.protocol.canonical() for plan in comparison.plans}
        assert len(protocols) == 1 and comparison.plans[0].spec.protocol.max_trials == 100
        assert comparison.plans[0].spec.protocol.name == "custom/tiny-fpc8"


@dataclass(frozen=True)
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str


def plbench(*arguments: object) -> Said:
    """Runs `plbench ARGUMENTS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.MonkeyPatch.context() as patched,
    ):
        patched.setattr(sys, "argv", ["plbench", *map(str, arguments)])
        try:
            main()
        except SystemExit as leave:
            return Said(int(leave.code or 0), out.getvalue(), err.getvalue())
    return Said(0, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[object]]:
    """The words of a comparison on a person's own table; runs and cache are shared by this file's tests."""
    top = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PLBENCH_CACHE", str(top / "cache"))
        patched.setenv("PLBENCH_RUNS", str(top / "runs"))
        assert plbench("data", "make-fixture", "table", top).code == 0
        where = ["--labels", top / "labels-long.csv", "--images", top / "images", "--negative-value", "0"]
        model = ["--backbone", "test_resnet", "--weights", "random", "--image-size", "32", "--workers", "0"]
        yield ["compare", "--dataset", "table", *where, *model, "--epochs", "1"]


class TestCommand:
    def test_it_answers_which_method_to_use_on_my_data(self, own: list[object]) -> None:
        said = plbench(*own, "--methods", "paper", "--seeds", 1)
        assert said.code == 0, said.err
        assert "9 rows with 1 seed each" in said.err
        assert "has the highest mAP(C)" in said.out and "too few to rank methods" in said.out
        assert "give --seeds 5." in " ".join(said.out.split())
        assert "P-ASL, Selective (likelihood)" in said.out and "best in" in said.out
        picture = re.search(r"^Picture: (.*)$", said.out, flags=re.MULTILINE)
        assert picture is not None and picture.group(1).endswith("runs/comparisons/custom-table.png")
        assert Path(picture.group(1)).read_bytes().startswith(b"\x89PNG")
        assert max(len(line) for line in said.out.splitlines() if not re.match("Next|Picture", line)) <= 160

    def test_json_is_all_that_standard_output_holds(self, own: list[object], tmp_path: Path) -> None:
        picture = tmp_path / "deep" / "mine.svg"
        said = plbench(*own, "-m", "ce-ignore,ce-negative", "--seeds", 3, "--out", picture, "--json")
        assert said.code == 0, said.err
        found = json.loads(said.out)
        assert found["protocol"] == "custom/table" and found["num_images"] == 30
        assert [row["seeds"] for row in found["rows"]] == [[0, 1, 2]] * 2
        assert sum(row["share_best"] for row in found["rows"]) == pytest.approx(1)
        assert found["answer"][0].startswith(found["rows"][0]["label"])
        assert any(sentence.endswith("so give --seeds 5.") for sentence in found["answer"])
        assert found["left_out"] == [] and found["picture"] == str(picture) and picture.is_file()
        assert set(found["tied"]) <= {row["label"] for row in found["rows"][1:]}

    def test_the_next_commands_work_as_they_stand(self, own: list[object]) -> None:
        said = plbench(*own, "-m", "ce-ignore,ce-negative", "--seeds", 1)
        steps = re.findall(r"^Next: plbench (.*)$", said.out, flags=re.MULTILINE)
        assert len(steps) == 2 and "--seeds 5" in steps[0]
        assert [plbench(*shlex.split(step), "--json").code for step in steps] == [0, 0]

    def test_a_plan_runs_nothing(self, own: list[object]) -> None:
        said = plbench(*own, "-m", "focal", "--seeds", 2, "--dry-run", "--json")
        found = json.loads(said.out)
        assert found["rows"] == ["focal"] and found["num_missing"] == found["num_trainings"] == 2

    @pytest.mark.parametrize(
        ("options", "part"),
        [
            (["-m", "papr"], "did you mean paper?"),
            (["-m", "selective:pr"], "did you mean prior?"),
            (["--seeds", "0"], "--seeds 0"),
            (["--tune", "0"], "--tune 0"),
            (["--tune", "-3"], "--tune -3"),
            (["--studies", "3"], "--studies 3: studies need --tune"),
            (["--tune", "2", "--studies", "0"], "--studies 0: a tuned row needs at least one"),
            (["--out", "table.html"], ".png, .svg, .pdf"),
            (["--recipe", "quik"], "did you mean quick?"),
        ],
    )
    def test_what_is_wrong_is_one_sentence(self, own: list[object], options: list[str], part: str) -> None:
        said = plbench(*own, *options)
        assert said.code == 2 and said.out == ""
        assert part in said.err and len(said.err.splitlines()) == 1

    def test_the_dataset_must_be_said(self) -> None:
        said = plbench("compare")
        assert said.code == 2 and "--dataset is missing" in said.err

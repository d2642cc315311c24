"""Which runs may be paired image by image, how sure their order is, what rows are called, and the answer in words."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plbench.comparison.compare import Row, Setting, compare, row_labels
from plbench.comparison.verdict import share_words, verdict
from plbench.metrics.statistics import Figure
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.record import Record, SearchedRange, TuningReport
from plbench.runs.registry import Registry
from plbench.runs.run import run
from plbench.runs.workspace import Workspace


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.discover()


@pytest.fixture
def made(make_workspace: Callable[..., Workspace]) -> tuple[Path, Record]:
    """Folder and record of one short run."""
    workspace = make_workspace()
    record = run(plan_run(Request("tiny", "ce-negative", plan={"epochs": 1}), workspace), workspace)
    return workspace.store.run_folder(record.key), record


def test_runs_that_left_out_other_images_are_not_paired(made: tuple[Path, Record]) -> None:
    folder, record = made
    fewer = record.model_copy(update={"spec": record.spec.model_copy(update={"skipped_images": ("test/tiny-3",)})})
    assert len(compare([(folder, record), (folder, fewer)])) == 2
    assert len(compare([(folder, record), (folder, record)])) == 1


def test_a_row_alone_is_the_best_and_the_same_row_under_two_names_is_one(made: tuple[Path, Record]) -> None:
    folder, record = made
    (alone,) = compare([made])
    assert [row.share_best for row in alone.rows] == [1.0] and alone.num_images == 24
    named = record.spec.method.model_copy(update={"params": {"mode": "both"}})
    other = record.model_copy(update={"spec": record.spec.model_copy(update={"method": named})})
    (both,) = compare([made, (folder, other)])
    assert len(both.rows) == 1 and len(both.rows[0].same) == 1
    assert both.as_dict()["rows"][0]["share_best"] == 1.0 and json.dumps(both.as_dict(), allow_nan=False)


def test_rows_that_were_trained_for_longer_than_others_say_so(made: tuple[Path, Record]) -> None:
    _, record = made

    def changed(method: str, **plan: int) -> Record:
        spec = record.spec
        named = spec.method.model_copy(update={"name": method})
        spec = spec.model_copy(update={"method": named, "plan": spec.plan.model_copy(update=plan)})
        return record.model_copy(update={"spec": spec, "title": method})

    alike = [changed("a"), changed("b")]
    assert row_labels(alike) == ["a", "b"]
    assert row_labels([changed("a", epochs=2), changed("b", epochs=10)]) == ["a (epochs=2)", "b (epochs=10)"]
    twice = [changed("a", epochs=2), changed("a", epochs=10), changed("b", epochs=10, batch_size=8)]
    assert row_labels(twice) == [
        "a (epochs=2, batch_size=16)",
        "a (epochs=10, batch_size=16)",
        "b (epochs=10, batch_size=8)",
    ]


def altered(record: Record, method: str = "selective", title: str = "Selective", **changes: Any) -> Record:
    """The record of another row: other parameters, rate and study."""
    spec = record.spec
    params = {"mode": "both", "top_k": 5, **changes.pop("params", {})}
    lr = changes.pop("lr", spec.plan.lr)
    spec = spec.model_copy(
        update={
            "method": spec.method.model_copy(update={"name": method, "params": params}),
            "plan": spec.plan.model_copy(update={"lr": lr}),
            **changes,
        }
    )
    tuning = None
    if spec.tuned_by:
        ranges = {"lr": SearchedRange(low=1e-4, high=1e-1), "top_k": SearchedRange(low=0, high=9)}
        tuning = TuningReport(
            study=spec.tuned_by,
            regime="probe",
            num_trials=16,
            space=ranges,
            sampler="tpe",
            pruner="none",
            seed=0,
            labels="partial",
            chosen={"lr": lr},
            default={"lr": 1e-2},
            value=50.0,
            default_value=49.0,
        )
    return record.model_copy(update={"spec": spec, "title": title, "tuning": tuning})


class TestLabels:
    def test_variants_are_named(self, made: tuple[Path, Record], registry: Registry) -> None:
        rows = [altered(made[1], params=params) for params in ({}, {"mode": "likelihood"}, {"mode": "prior"})]
        assert row_labels(rows, registry) == ["Selective", "Selective (likelihood)", "Selective (prior)"]
        assert row_labels(rows) == ["Selective (mode=both)", "Selective (mode=likelihood)", "Selective (mode=prior)"]

    def test_what_else_differs_is_listed(self, made: tuple[Path, Record], registry: Registry) -> None:
        rows = [altered(made[1], params=p) for p in ({}, {"mode": "prior", "top_k": 3}, {"mode": "soft-prior"})]
        assert row_labels(rows, registry) == [
            "Selective (top_k=5)",
            "Selective (prior, top_k=3)",
            "Selective (mode=soft-prior, top_k=5)",
        ]

    def test_tuned_rows_list_nothing_that_was_searched(self, made: tuple[Path, Record], registry: Registry) -> None:
        rows = [
            altered(made[1]),
            altered(made[1], params={"top_k": 2}, lr=0.03, tuned_by="a" * 16),
            altered(made[1], params={"top_k": 7, "mode": "prior"}, lr=0.002, tuned_by="b" * 16),
        ]
        assert row_labels(rows, registry) == ["Selective", "Selective, tuned", "Selective (prior), tuned"]

    def test_two_studies_of_one_method_have_labels_of_their_own(
        self, made: tuple[Path, Record], registry: Registry
    ) -> None:
        rows = [altered(made[1], lr=lr, tuned_by=study * 16) for lr, study in ((0.1, "a"), (0.2, "b"))]
        assert row_labels(rows, registry) == [
            "Selective, tuned by aaaaaaaa in 16 trials",
            "Selective, tuned by bbbbbbbb in 16 trials",
        ]

    def test_a_method_that_is_not_installed_shows_its_parameters(
        self, made: tuple[Path, Record], registry: Registry
    ) -> None:
        rows = [altered(made[1], "gone", "Gone", params={"top_k": k}) for k in (1, 2)]
        assert row_labels(rows, registry) == ["Gone (top_k=1)", "Gone (top_k=2)"]


def setting_of(
    p_values: Sequence[float | None], num_seeds: int = 5, half: float = 0.5, scored: int = 60, classes: int = 60
) -> Setting:
    """Rows A, B, … a point apart, A the best; those of p at least 0.05 share its rank."""
    rows = []
    for place, p_value in enumerate(p_values):
        mean = 60.0 - place
        rows.append(
            Row(
                method="m",
                label="ABCDEFGH"[place],
                seeds=tuple(range(num_seeds)),
                keys=(f"k{place}",),
                figures={name: Figure(mean, mean - half, mean + half) for name in ("map_c", "map_o")},
                num_classes_scored=scored,
                num_classes=classes,
                share_best=0.9 if place == 0 else 0.1 / (len(p_values) - 1),
                difference=None if place == 0 else Figure(-place, -place - 1, -place + 1),
                p_value=p_value,
                rank=1 if p_value is None or p_value >= 0.05 else place + 1,
            )
        )
    return Setting("tiny/v1", "probe", "a model", 3000, tuple(rows), 1.25)


class TestVerdict:
    def test_a_clear_winner(self) -> None:
        first, second = verdict(setting_of([None, 0.01, 0.002]))
        assert first == (
            "A has the highest mAP(C), 60.00 ±0.50 over 5 seeds. The chance that it would also be best with other test "
            "images and seeds is 90 %."
        )
        assert second == "The other 2 rows are significantly worse (p < 0.05, all pairs tested together)."

    def test_ties_are_named_with_what_could_have_been_found(self) -> None:
        setting = setting_of([None, 0.4, 0.05, 0.01])
        assert [row.label for row in setting.tied] == ["B", "C"]
        said = verdict(setting)[1]
        assert "B (3 %) and C (3 %) are not significantly worse, but unlikely to be best." in said
        assert "easiest" not in said
        assert "The other row is significantly worse" in said
        assert said.endswith("A difference of 1.2 points would be detected in 4 of 5 such comparisons.")

    def test_a_row_that_another_than_the_best_beats_is_not_said_to_be_worse_than_the_best(self) -> None:
        setting = setting_of([None, 0.4, 0.1])
        rows = (*setting.rows[:2], replace(setting.rows[2], rank=2))
        said = verdict(replace(setting, rows=rows))[1]
        assert "The other row is significantly worse than it or another row (p < 0.05" in said

    def test_a_tie_is_a_free_choice_only_among_rows_that_may_be_best(self) -> None:
        setting = setting_of([None, 0.4])
        assert "statistically tied with B (10 %): use whichever is easiest" in verdict(setting)[1]
        rows = (*setting.rows, replace(setting.rows[1], label="C", share_best=0.01))
        said = verdict(replace(setting, rows=rows))[1]
        assert "tied with B (10 %): use" in said and "C (1 %) is not significantly worse, but unlikely" in said

    @pytest.mark.parametrize("num_seeds", [1, 2])
    def test_few_seeds_rank_nothing(self, num_seeds: int) -> None:
        setting = setting_of([None, 0.001], num_seeds)
        assert [row.label for row in setting.tied] == ["B"]
        assert f"{num_seeds} seed" in verdict(setting)[1] and "too few to rank methods" in verdict(setting)[1]

    def test_three_seeds_are_provisional(self) -> None:
        assert any(said.startswith("Provisional: 3 seeds") for said in verdict(setting_of([None, 0.001], 3)))
        assert not any("Provisional" in said for said in verdict(setting_of([None, 0.001], 5)))

    def test_a_row_alone_has_nothing_to_be_compared_to(self) -> None:
        assert "only row" in verdict(setting_of([None]))[0]

    def test_another_best_by_map_o_is_said(self) -> None:
        setting = setting_of([None, 0.01])
        first, second = setting.rows
        second = replace(second, figures={**second.figures, "map_o": Figure(70.0, 69.0, 71.0)})
        said = " ".join(verdict(replace(setting, rows=(first, second))))
        assert "In mAP(O), where frequent classes weigh more, B leads: 70.00 ±1.00 against 60.00 ±0.50." in said

    @pytest.mark.parametrize(
        ("changes", "part"),
        [
            ({"scored": 12}, "only 12 of 60 classes are scored"),
            ({"scored": 3, "classes": 3}, "a mean over only 3 classes"),
            ({"half": 4.0}, "3,000 test images determine mAP(C) only to within ±4.0 points"),
        ],
    )
    def test_what_makes_it_unsure_is_said(self, changes: dict[str, Any], part: str) -> None:
        assert part in verdict(setting_of([None, 0.01], **changes))[-1]
        assert not any("Careful" in sentence for sentence in verdict(setting_of([None, 0.01])))

    @pytest.mark.parametrize(
        ("share", "words"), [(1.0, "100 %"), (0.9994, ">99 %"), (0.0, "0 %"), (0.004, "<1 %"), (float("nan"), "–")]
    )
    def test_shares_read_as_certain_only_where_they_are(self, share: float, words: str) -> None:
        assert share_words(share) == words

"""Every study at a tiny scale: what must be true whatever the data say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from plbench import experiments as studies
from plbench.api import Batch, Loss, Method, MethodParams, Progress
from plbench.board.boards import BoardFolder
from plbench.errors import PlbenchError
from plbench.experiments.mechanism.advice import read_maps
from plbench.experiments.shared import plane
from plbench.experiments.shared.estimates import COUNTS, PRIOR, SPEARMAN
from plbench.experiments.shared.execute import execute, inspect_data, metrics_of_records, plan_all
from plbench.experiments.shared.experiment import Case, Experiment, Findings
from plbench.experiments.shared.paper_tables import TABLES
from plbench.experiments.shared.report import conclude
from plbench.losses import partial_asymmetric_loss
from plbench.randomness import on_threads
from plbench.runs import schedule
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.workspace import Workspace

SHORT = Request("tiny", "", plan={"epochs": 2})
GAMMAS = {"gamma_pos": 0.0, "gamma_neg": 3.0, "gamma_unann": 4.0}
ON_DATA = [name for name in studies.NAMES if studies.find(name).needs_dataset]


class PASLIgnore(Method):
    """P-ASL with unknown labels left out altogether: what Selective becomes where it ignores all of them."""

    name = "pasl-ignore"
    title = "P-ASL, Ignore"

    class Params(MethodParams):
        gamma_pos: float = 0.0
        gamma_neg: float = 3.0
        gamma_unann: float = 4.0

    def loss(self, output: torch.Tensor, batch: Batch, progress: Progress) -> Loss:
        p = self.params
        per_image = partial_asymmetric_loss(output, batch.labels, **p.model_dump(), unann_weight=0.0)
        return Loss.of_images(per_image)


def findings_of(cases: list[Case], workspace: Workspace, request: Request = SHORT) -> Findings:
    """An experiment of these cases alone."""
    base = studies.find("focusing")
    own = replace(base, cases=lambda context: cases, measure=metrics_of_records)
    return execute(own, request, workspace, scale="tiny", num_seeds=1)


def same(findings: Findings, one: str, other: str) -> bool:
    """Whether two series came to the same figures, on every resample."""
    a, b = findings.line(one)[0], findings.line(other)[0]
    return all(np.array_equal(a.values[name].replicates, b.values[name].replicates) for name in a.values)


@pytest.mark.parametrize("name", ON_DATA)
def test_every_study_runs_draws_and_runs_nothing_twice(
    name: str, make_workspace: Callable[..., Workspace], tmp_path: Path
) -> None:
    workspace, experiment = make_workspace(), studies.find(name)
    findings = execute(experiment, SHORT, workspace, scale="tiny", num_seeds=1)
    result = conclude(experiment, findings, f"plbench study {name}", tmp_path / "a")
    assert {path.name for path in (tmp_path / "a").iterdir()} == set(result["files"])
    runs = set(workspace.store.keys())
    assert runs and {key for point in findings.points for key in point.keys} <= runs
    written = json.loads((tmp_path / "a" / f"{name}.json").read_text(encoding="utf-8"))
    assert len(written["points"]) == len(findings.points) and written["claims"]
    assert {c["status"] for c in written["claims"] if "factor" not in c["claim"]} <= {
        "undecided"
    }  # one seed decides nothing
    made = _times(workspace)
    again = execute(experiment, SHORT, workspace, scale="tiny", num_seeds=1)
    conclude(experiment, again, f"plbench study {name}", tmp_path / "b")
    assert made == _times(workspace)
    for file in (f"{name}.csv", f"{name}.svg", f"{name}.png", "caption.md"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_an_interrupted_study_goes_on(
    make_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, experiment = make_workspace(), studies.find("annotation-schemes")
    whole, calls = schedule.run_all, 0

    def stopped(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return whole(*args, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("plbench.experiments.shared.execute.schedule.run_all", stopped)
        execute(experiment, SHORT, workspace, scale="tiny", num_seeds=1)
    before = _times(workspace)
    assert len(before) == 4  # two settings of two runs
    said: list[str] = []
    monkeypatch.setattr(workspace.reporter, "line", said.append)
    monkeypatch.setattr(schedule.Count, "seconds_left", lambda count: 10.0 * (count.total - count.made))
    execute(experiment, SHORT, workspace, scale="tiny", num_seeds=1)
    settings = [line for line in said if line.startswith("Setting ")]
    assert [line.partition(": ")[0] for line in settings] == [
        "Setting 3 of 6",  # nothing was made yet, so that no pace is known
        "Setting 4 of 6, about 40 s left",
        "Setting 5 of 6, about 20 s left",
        "Setting 6 of 6, about 10 s left",
    ]
    after = _times(workspace)
    assert len(after) == 10 and {key: after[key] for key in before} == before


def _times(workspace: Workspace) -> dict[str, int]:
    """When the record of each run was written."""
    found = list(workspace.store.keys())
    return {key: (workspace.store.run_folder(key) / "record.json").stat().st_mtime_ns for key in found}


@pytest.mark.parametrize("name", studies.NAMES)
def test_a_study_is_a_short_file(name: str) -> None:
    module = Path(studies.__file__).parent / f"{name.replace('-', '_')}.py"
    assert len(module.read_text(encoding="utf-8").splitlines()) < 60
    assert studies.find(name).name == name


@pytest.mark.parametrize("name", ON_DATA)
def test_larger_scales_hold_all_places_of_smaller_ones(name: str, make_workspace: Callable[..., Workspace]) -> None:
    workspace, experiment = make_workspace(), studies.find(name)
    numbers = []
    for scale in ("tiny", "default", "full"):
        context = inspect_data(SHORT, workspace, scale)  # type: ignore[arg-type]
        comparisons, _ = plan_all(experiment, SHORT, context, 1, workspace)
        numbers.append(sum(len(comparison.plans) for comparison, _ in comparisons))
    assert numbers == sorted(numbers) and numbers[0] > 0


def test_on_complete_labels_ignore_is_negative(make_workspace: Callable[..., Workspace]) -> None:
    both = [Case(name, 0, name, simulate="fpc=48") for name in ("ce-ignore", "ce-negative")]
    assert same(findings_of(both, make_workspace()), "ce-ignore", "ce-negative")


def test_focusing_ends_at_the_asymmetric_loss_without_shift(make_workspace: Callable[..., Workspace]) -> None:
    cases = [
        Case("asl", 0, "asl-negative", {"gamma_pos": 0.0, "gamma_neg": 4.0, "clip": 0.0}),
        Case("pasl", 0, "pasl-negative", {"gamma_pos": 0.0, "gamma_neg": 4.0, "gamma_unann": 4.0}),
        Case("lower", 0, "pasl-negative", {"gamma_pos": 0.0, "gamma_neg": 1.0, "gamma_unann": 4.0}),
    ]
    findings = findings_of(cases, make_workspace())
    assert same(findings, "asl", "pasl") and not same(findings, "asl", "lower")


def test_ends_of_likelihood_threshold_and_soft_prior(make_workspace: Callable[..., Workspace]) -> None:
    """K = 0, eta = 1 are P-ASL, Negative; K = C, eta = 0 are P-ASL, Ignore; alpha = 0 is likelihood alone."""
    chosen: dict[str, dict[str, Any]] = {
        "K=0": {"mode": "likelihood", "top_k": 0},
        "K=C": {"mode": "likelihood", "top_k": 6},
        "K=2": {"mode": "likelihood", "top_k": 2},
        "eta=0": {"mode": "prior", "eta": 0.0},
        "eta=1": {"mode": "prior", "eta": 1.0},
        "alpha=0": {"mode": "soft-prior", "alpha": 0.0, "top_k": 2},
        "alpha=0, K=0": {"mode": "soft-prior", "alpha": 0.0, "top_k": 0},
        "both=C": {"mode": "both", "eta_top": 1, "top_k": 6},
    }
    cases = [Case(name, 0, "selective", {**GAMMAS, **params}) for name, params in chosen.items()]
    cases += [Case("Negative", 0, "pasl-negative", GAMMAS), Case("Ignore", 0, "pasl-ignore", GAMMAS)]
    findings = findings_of(cases, make_workspace(PASLIgnore))
    for name in ("K=0", "eta=1", "alpha=0, K=0"):
        assert same(findings, name, "Negative"), name
    for name in ("K=C", "eta=0", "both=C"):
        assert same(findings, name, "Ignore"), name
    assert same(findings, "alpha=0", "K=2")
    assert not same(findings, "Negative", "Ignore") and not same(findings, "K=2", "Negative")


def test_a_threshold_that_all_classes_exceed_is_ignore(make_workspace: Callable[..., Workspace]) -> None:
    cases = [Case("all", 0, "selective", {**GAMMAS, "mode": "prior", "eta_top": 6})]
    findings = findings_of([*cases, Case("Ignore", 0, "pasl-ignore", GAMMAS)], make_workspace(PASLIgnore))
    assert same(findings, "all", "Ignore")


def test_correlations_are_scipys_and_counts_need_no_model(make_workspace: Callable[..., Workspace]) -> None:
    workspace, experiment = make_workspace(), studies.find("prior-estimation")
    findings = execute(experiment, SHORT, workspace, scale="tiny", num_seeds=1)
    point = findings.at("trained with Ignore", 6.0, "fpc=8")
    assert point is not None
    named = [p for p in findings.points if p.series == point.series and PRIOR in p.values]
    estimates = [p.values[PRIOR].points[0] for p in named]
    truth = [p.facts["true_share"] for p in named]
    assert estimates == sorted(estimates, reverse=True) and all(0 <= e <= 1 for e in estimates)
    assert point.values[SPEARMAN].points[0] == pytest.approx(stats.spearmanr(estimates, truth).statistic)
    intervals = [p.values[SPEARMAN].figure() for p in findings.points if SPEARMAN in p.values]
    assert intervals and all(-1 <= f.low <= f.mean <= f.high <= 1 for f in intervals)
    counts = findings.at(COUNTS, 6.0, "fpc=8")
    assert counts is not None and counts.keys == ()
    assert {p.x for p in findings.points if PRIOR in p.values} == set("abcdef")


def test_without_truth_there_are_names_only(make_workspace: Callable[..., Workspace], tmp_path: Path) -> None:
    workspace, experiment = make_workspace(), studies.find("prior-estimation")
    findings = execute(experiment, replace(SHORT, simulate="none"), workspace, scale="tiny", num_seeds=1)
    assert findings.panels == ["as annotated"]
    assert not any(SPEARMAN in p.values or "true_share" in p.facts for p in findings.points)
    result = conclude(experiment, findings, "plbench study prior-estimation", tmp_path)
    assert result["claims"] == [] and "top-as annotated.md" in result["files"]


def test_tables_show_every_row_and_reproduce_nothing_elsewhere(
    make_workspace: Callable[..., Workspace], tmp_path: Path
) -> None:
    workspace, experiment = make_workspace(), studies.find("tables")
    findings = execute(experiment, SHORT, workspace, scale="tiny", num_seeds=1)
    assert [p.series for p in findings.points] == [row.label for row in TABLES[0].rows]
    assert all(p.facts["reproduction"] == "" for p in findings.points)
    ran = [p for p in findings.points if p.values]
    assert len(ran) == 9 and all(p.keys and p.seeds == (0,) for p in ran)
    conclude(experiment, findings, "plbench study tables", tmp_path)
    table = (tmp_path / "table-1.md").read_text(encoding="utf-8").splitlines()
    assert len(table) == 2 + len(TABLES[0].rows) and "85.38" in table[2]


@pytest.mark.parametrize(
    ("protocol", "recipe", "expected"),
    [
        ("openimages-v6/v1", "paper", True),
        ("openimages-v6-csl/v1", "paper", True),  # the same images, as the paper's authors publish them
        ("openimages-v6/v1", "quick", False),
        ("custom/openimages-v6", "paper", False),
        ("openimages-v3/v1", "paper", False),
    ],
)
def test_a_row_is_compared_where_it_is_what_the_table_reports(
    make_workspace: Callable[..., Workspace], protocol: str, recipe: str, expected: bool
) -> None:
    spec = plan_run(replace(SHORT, method="ce-ignore"), make_workspace()).spec
    named = spec.protocol.model_copy(update={"name": protocol})
    changes = {"protocol": named, "recipe": recipe, "regime": "finetune"}
    assert TABLES[0].reports(spec.model_copy(update=changes)) is expected


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.title)
def test_published_figures_are_those_that_the_boards_quote(table: Any) -> None:
    quoted = BoardFolder(Path(__file__).parents[2] / "leaderboards" / table.board).quotations()
    source = f"arXiv 2110.10955, table {table.number}"
    known = [dict(row.figures) for row in quoted if row.source.endswith(source)]
    assert [dict(zip(table.metrics, row.figures, strict=True)) for row in table.rows] == known
    assert table.leader in {row.label for row in table.rows}


def test_the_map_is_one_that_advise_reads(make_workspace: Callable[..., Workspace], tmp_path: Path) -> None:
    experiment: Experiment = studies.find("which-mode")
    findings = execute(experiment, SHORT, make_workspace(), scale="tiny", num_seeds=1)
    conclude(experiment, findings, "plbench study which-mode", tmp_path)
    (found,) = read_maps([tmp_path / "map.json"])
    assert found.made_on["dataset"] == "tiny" and len(found.cells) == 2
    assert all(
        cell.best in cell.tied and set(cell.means) == {"Ignore", "Negative", "Selective"} for cell in found.cells
    )


def test_on_the_plane_ignoring_all_is_ignore_and_none_is_negative(make_workspace: Callable[..., Workspace]) -> None:
    registry, points = make_workspace().registry, plane.make_plane(3)
    plain = {"gamma_pos": 0.0, "gamma_neg": 0.0, "gamma_unann": 0.0, "mode": "likelihood"}

    def learned(method: str, params: dict[str, Any]) -> torch.Tensor:
        with on_threads(1):
            network = plane.learn(registry.method(method), params, points, 3, {}, num_steps=8)
        return plane.probabilities(network, plane.grid())

    num_classes = len(plane.DISCS)
    assert torch.equal(learned("selective", {**plain, "top_k": 0}), learned("ce-negative", {}))
    assert torch.equal(learned("selective", {**plain, "top_k": num_classes}), learned("ce-ignore", {}))
    assert not torch.equal(learned("ce-negative", {}), learned("ce-ignore", {}))


def test_the_plane_is_the_same_every_time_and_annotated_as_it_says() -> None:
    one, other = plane.make_plane(0), plane.make_plane(0)
    assert torch.equal(one.labels, other.labels) and not torch.equal(one.labels, plane.make_plane(1).labels)
    assert bool((one.truth[one.labels > 0]).all()) and not bool((one.truth[one.labels < 0]).any())
    shares = (one.labels > 0).sum(0) / one.truth.sum(0)
    assert shares[0] < 0.2 and bool((shares[1:] > 0.7).all())
    region = np.array([True, True, False, False])
    assert plane.overlap(region, region) == 100.0
    assert plane.overlap(region, np.array([False, True, True, False])) == pytest.approx(100 / 3)


def test_an_unknown_study_and_one_that_cannot_run_are_one_sentence(make_workspace: Callable[..., Workspace]) -> None:
    with pytest.raises(PlbenchError, match="did you mean focusing"):
        studies.find("focussing")
    nowhere = replace(studies.find("focusing"), cases=lambda context: [Case("a", 0, "absent")])
    with pytest.raises(PlbenchError, match=r"study focusing has nothing to run here: .*absent"):
        execute(nowhere, SHORT, make_workspace(), scale="tiny", num_seeds=1)

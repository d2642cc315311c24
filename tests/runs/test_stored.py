"""Records that lie: figures that the run's own tables do not give are named, and never shown or built upon."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from plbench.cli import app
from plbench.cli.wording import in_options
from plbench.comparison.compare import compare
from plbench.errors import StoreError
from plbench.metrics import Metrics
from plbench.runs import run as runner
from plbench.runs import summary
from plbench.runs.agreement import lowest_of
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.record import reference
from plbench.runs.schedule import standings
from plbench.runs.stored import finished_record, read_own_run, read_run, replicates_of
from plbench.runs.workspace import Workspace

Content = dict[str, Any]
Edit = Callable[[Content], Any]

_MADE: dict[str, Path] = {}


@pytest.fixture
def workspace(make_workspace: Callable[..., Workspace]) -> Workspace:
    return make_workspace()


@pytest.fixture
def plan(workspace: Workspace) -> ResolvedRun:
    return plan_run(Request("tiny", "ce-negative"), workspace)


@pytest.fixture
def run(workspace: Workspace, plan: ResolvedRun, quick_records: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on the tiny dataset, a fresh copy of one that is made once."""
    if "run" not in _MADE:
        runner.run(plan, workspace)
        _MADE["run"] = tmp_path_factory.mktemp("made") / plan.spec.key
        shutil.copytree(workspace.store.run_folder(plan.spec.key), _MADE["run"])
    folder = workspace.store.run_folder(plan.spec.key)
    shutil.copytree(_MADE["run"], folder, dirs_exist_ok=True)
    return folder


def edit(folder: Path, change: Edit) -> None:
    content = json.loads((folder / "record.json").read_text())
    change(content)
    (folder / "record.json").write_text(json.dumps(content))


def figure(path: str, value: Any) -> Edit:
    def change(content: Content) -> None:
        *parents, last = path.split("/")
        place: Any = content["metrics"]
        for name in parents:
            place = place[int(name) if isinstance(place, list) else name]
        place[last] = value

    return change


LIES = {
    "mAP(C)": (figure("test/map_c/value", 99.0), r"metrics.test.map_c.value is 99.0; expected \d"),
    "mAP(O)": (figure("test/map_o/value", 99.0), "metrics.test.map_o.value is 99.0"),
    "undefined": (figure("test/map_c/value", None), "metrics.test.map_c.value is None"),
    "a group": (figure("test/groups/rare/map_c/value", 99.0), "groups.rare.map_c.value is 99.0"),
    "a group that is none": (lambda c: c["metrics"]["test"]["groups"].pop("rare"), "metrics.test.groups"),
    "a quintile": (figure("test/quintiles/0/map_c/value", 99.0), "quintiles.0.map_c.value is 99.0"),
    "classes scored": (figure("test/num_classes_scored", 5), "num_classes_scored is 5; expected 6"),
    "cells": (figure("test/num_cells", 1), "num_cells is 1"),
    "last weights": (figure("test_raw/num_positives", 1), "metrics.test_raw.num_positives is 1"),
    "another table's hash": (
        lambda c: c["files"]["per_class.csv"].update(sha256="0" * 64),
        "per_class.csv was changed",
    ),
    "no table": (lambda c: c["files"].pop("per_class.csv"), "per_class.csv was changed"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_figure_that_the_table_does_not_give_is_refused(run: Path, name: str) -> None:
    assert read_run(run).key == run.name
    change, says = LIES[name]
    edit(run, change)
    for read in (read_run, read_own_run, finished_record):
        with pytest.raises(StoreError, match=rf"{says}.*; run it again with `force=True`, or delete {run}"):
            read(run)


@pytest.mark.parametrize("act", ["missing", "another value", "noise", "a link to another"])
def test_a_table_that_is_not_the_records_is_refused(run: Path, act: str, tmp_path: Path) -> None:
    path = run / "per_class.csv"
    table = path.read_text()
    path.unlink()
    if act == "another value":
        path.write_text(table.replace("a,a,", "a,a,1", 1))
    elif act == "noise":
        path.write_bytes(b"\xff")
        edit(run, lambda content: content["files"].update({path.name: reference(path).model_dump()}))
    elif act == "a link to another":
        (tmp_path / "other.csv").write_text(table + "\n")
        path.symlink_to(tmp_path / "other.csv")
    with pytest.raises(StoreError, match=r"per_class.csv.*`force=True`"):
        read_run(run)


@pytest.mark.parametrize("path", ["test/map_c/low", "test/map_o/high", "test/groups/frequent/map_c/low"])
def test_an_interval_that_the_replicates_do_not_give_is_refused_where_it_is_read(run: Path, path: str) -> None:
    record = read_run(run)
    assert sorted(replicates_of(run, record)) == ["frequent", "map_c", "map_o", "rare"]
    edit(run, figure(path, 1.5))
    record = read_run(run)
    with pytest.raises(StoreError, match=rf"metrics.{path.replace('/', '.')} is 1.5.*`force=True`"):
        compare([(run, record)])


@pytest.mark.parametrize(("name", "column"), [("replicates.csv", "map_c"), ("group_replicates.csv", "rare")])
def test_replicates_of_another_run_are_refused(run: Path, name: str, column: str) -> None:
    record = read_run(run)
    (run / name).write_text((run / name).read_text().replace(column, "map_d", 1))
    with pytest.raises(StoreError, match=rf"/{name} was changed since.*`force=True`"):
        compare([(run, record)])


def test_a_run_of_before_groups_had_a_file_of_their_own_is_read_as_ever(run: Path) -> None:
    record = read_run(run)
    replicates, settings = replicates_of(run, record), compare([(run, record)])
    lines = [(run / name).read_text().splitlines() for name in ("replicates.csv", "group_replicates.csv")]
    (run / "replicates.csv").write_text("".join(f"{one},{other}\n" for one, other in zip(*lines, strict=True)))
    (run / "group_replicates.csv").unlink()

    def older(content: Content) -> None:
        del content["files"]["group_replicates.csv"]
        content["files"]["replicates.csv"] = reference(run / "replicates.csv").model_dump()

    edit(run, older)
    record = read_run(run)
    old = replicates_of(run, record)
    assert list(old) == list(replicates) and all(np.array_equal(old[name], replicates[name]) for name in old)
    assert compare([(run, record)]) == settings


def test_replicates_of_groups_are_not_left_out_in_a_store(run: Path) -> None:
    edit(run, lambda content: content["files"].pop("group_replicates.csv"))
    record = read_run(run)
    with pytest.raises(StoreError, match=r"replicates is .*'map_c', 'map_o'.*; expected .*'rare'"):
        compare([(run, record)])


def test_a_copy_under_another_key_is_not_a_second_run(run: Path) -> None:
    copy = run.with_name("0" * 16)
    shutil.copytree(run, copy)
    assert read_run(copy).key == run.name  # a copy may be looked at
    with pytest.raises(StoreError, match=f"is of run {run.name}, not of {'0' * 16}; delete"):
        finished_record(copy)


def test_it_is_not_done_already_and_made_again_by_force(run: Path, plan: ResolvedRun, workspace: Workspace) -> None:
    right = read_run(run).test.map_c.value
    edit(run, figure("test/map_c/value", 99.0))
    (standing,) = standings([plan], workspace.store)
    assert standing.state == "failed" and "map_c.value is 99.0" in str(standing.why)
    with pytest.raises(StoreError, match=r"map_c.value is 99.0"):
        runner.run(plan, workspace)
    assert runner.run(plan, workspace, force=True).test.map_c.value == pytest.approx(right, abs=1e-6)
    assert runner.run(plan, workspace).test.map_c.value == pytest.approx(right, abs=1e-6)


def test_no_command_shows_it(run: Path) -> None:
    edit(run, figure("test/map_c/value", 99.0))
    where = ["--runs", str(run.parent)]
    for words in (["runs", "list"], ["runs", "compare"], ["runs", "show", run.name], ["runs", "compare", run.name]):
        result = CliRunner().invoke(app, [*words, *where])
        shown = result.output.replace(str(result.exception), "")
        assert "99.00" not in shown and run.name not in shown.replace(str(run), "").split("left out")[0]
        told = in_options(f"{result.output} {result.exception}")  # as `main` says it
        assert "map_c.value is 99.0" in told and "--force" in told
    assert isinstance(CliRunner().invoke(app, ["board", "card", run.name, *where]).exception, StoreError)


@pytest.mark.parametrize(("value", "lowest"), [(99.99, 0.0), (0.0123456789, 0.0), (60.123456789, 60.1), (99.2, 99.1)])
def test_an_interval_is_that_of_what_is_written_down(value: float, lowest: float) -> None:
    """Near a bound, log odds make much of the last digit: an interval of unrounded values was refused as changed."""
    drawn = np.clip(value + np.random.default_rng(0).normal(0, 0.05, 400), lowest, 100.0)
    drawn[::2] = np.clip(np.round(drawn[::2], 2) + 0.005, lowest, 100.0)  # halves, which numpy and Python round apart
    stated = summary._estimate(value, lowest, drawn)
    written = np.array([float(f"{one:.{summary.REPLICATE_DECIMALS}f}") for one in drawn])
    assert stated.value is not None and stated.low is not None and stated.high is not None
    assert (stated.low, stated.high) == pytest.approx(
        summary.image_interval(stated.value, written, stated.lowest), abs=1e-6
    )


@pytest.mark.parametrize("most", [1, 30, 40_000])
def test_the_quick_lowest_is_that_of_the_digammas(most: int) -> None:
    generator = np.random.default_rng(most)
    positives, negatives = generator.integers(0, most + 1, (2, 200))
    ap = np.where((positives > 0) & (negatives > 0), 0.5, np.nan)
    classes = Metrics(ap, positives, negatives)
    np.testing.assert_allclose(lowest_of(classes).ap, classes.lowest.ap, rtol=0, atol=1e-9)
    huge = Metrics(np.array([0.5]), np.array([10**9]), np.array([10**9]))  # as a stranger's table may claim
    assert lowest_of(huge).map_c == huge.lowest.map_c

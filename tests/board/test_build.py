"""From finished runs to built boards, and back: adding, ranking, building, withdrawing, repeating, exporting."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from packing import change_member, contents_of

from plbench.board import build
from plbench.board.boards import Event, open_boards
from plbench.board.checks import verify_board
from plbench.board.entries import parse_entry
from plbench.board.packs import read_packs, records_of
from plbench.board.publish import export, model_index
from plbench.board.reproduce import ROUNDING, compare_records, home_of, promote, reproduce
from plbench.board.rows import board_values
from plbench.board.submit import add, new_board, withdraw
from plbench.comparison.compare import compare
from plbench.comparison.identity import same_but_seed
from plbench.errors import PlbenchError
from plbench.metrics.statistics import Estimate
from plbench.runs import run as runner
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.record import Record, read_record, reference, write_record
from plbench.runs.workspace import Workspace
from plbench.spec import Protocol

METHODS = ("ce-negative", "ce-ignore")
SEEDS = (0, 1, 2, 3, 4)
_MADE: dict[str, Path] = {}


@pytest.fixture
def workspace(make_workspace: Callable[..., Workspace]) -> Workspace:
    return make_workspace()


@pytest.fixture
def runs(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two methods, five seeds, as a clean checkout makes them: fresh copies of what is made once."""
    plans = [plan_run(Request("tiny", method, seed=seed), workspace) for method in METHODS for seed in SEEDS]
    folders = [workspace.store.run_folder(plan.spec.key) for plan in plans]
    if "runs" in _MADE:
        shutil.copytree(_MADE["runs"], workspace.store.runs)
        return folders
    for plan, folder in zip(plans, folders, strict=True):
        runner.run(plan, workspace)
        clean(folder)
    _MADE["runs"] = tmp_path_factory.mktemp("made") / "runs"
    shutil.copytree(workspace.store.runs, _MADE["runs"])
    return folders


def clean(folder: Path) -> Path:
    record = read_record(folder)
    environment = {**record.environment, "git_commit": "0" * 40, "git_dirty": False}
    write_record(folder, record.model_copy(update={"environment": environment}))
    return folder


@pytest.fixture
def root(runs: list[Path], tmp_path: Path) -> Path:
    """A folder of boards with one that asks what the runs answer."""
    record = read_record(runs[0])
    new_board(tmp_path / "boards", "tiny", "Tiny blocks & more", protocol(record))
    return tmp_path / "boards"


def protocol(record: Record) -> Protocol:
    return record.spec.protocol


def rows(root: Path) -> list[dict[str, Any]]:
    return [row for section in board_values(open_boards(root)[0])["sections"] for row in section["rows"]]


def test_records_become_rows_and_the_same_records_the_same_bytes(root: Path, runs: list[Path]) -> None:
    assert {board for board, _ in add(runs, root)} == {"tiny"}
    assert add(runs, root) == []  # each once
    files = build.build(root)
    assert build.differing(files) == list(files) and build.write(root, files) == list(files)
    assert build.build(root) == files and build.differing(files) == []
    found = rows(root)
    assert {row["method"] for row in found} == set(METHODS)
    for row in found:
        values = [read_record(folder).test.map_c.value for folder in runs if read_record(folder).key in row["keys"]]
        assert row["figures"]["map_c"]["mean"] == pytest.approx(np.mean(values), abs=1e-4)
        assert row["seeds"] == list(SEEDS) and not row["provisional"] and row["tier"] == "self-reported"
        ap = [value for value in row["ap"] if value is not None]
        assert np.mean(ap) == pytest.approx(row["figures"]["map_c"]["mean"], abs=1e-3)
    assert sorted(row["rank"] for row in found) in ([1, 1], [1, 2])


def test_what_is_added_together_of_a_row_is_one_pack(root: Path, runs: list[Path]) -> None:
    def keys(*places: int) -> list[str]:
        return [read_record(runs[place]).key for place in places]

    add([*runs[:2], *runs[5:]], root)
    packs = read_packs(open_boards(root)[0])
    assert {path.name for path in packs.paths} == {f"{min(keys(0, 1))}.tar.xz", f"{min(keys(5, 6, 7, 8, 9))}.tar.xz"}
    before = {path: path.read_bytes() for path in packs.paths}
    assert [key for _, key in add(runs, root)] == keys(2, 3, 4)
    packs = read_packs(open_boards(root)[0])
    assert len(packs.paths) == 3 and packs.problems == [] and len(packs.records) == 10
    assert all(path.read_bytes() == content for path, content in before.items())
    assert set(contents_of(root, keys(0)[0])) == {"record.json", "per_class.csv", "replicates.csv"}


class TestGroups:
    """Their replicates stay with the runs."""

    def test_of_one_record_the_interval_is_its_own(self, root: Path, runs: list[Path]) -> None:
        add(runs[:1], root)
        (row,) = rows(root)
        groups = read_record(runs[0]).test.groups
        assert set(groups) == {"frequent", "rare"}
        for name, group in groups.items():
            ends = {"low": group.map_c.low, "high": group.map_c.high}
            assert row["figures"][name] == pytest.approx({"mean": group.map_c.value} | ends, abs=1e-4)

    def test_of_seeds_the_deviations_are_averaged(self, root: Path, runs: list[Path]) -> None:
        add(runs[:5], root)
        (row,) = rows(root)
        estimates = [read_record(folder).test.groups["rare"].map_c for folder in runs[:5]]
        values = np.array([estimate.value for estimate in estimates])
        lowest = estimates[0].lowest
        assert lowest is not None

        def odds(value: float | None) -> float:
            assert value is not None
            return math.log((value - lowest) / (100 - value))

        deviations = [  # on the scale of log odds an end is 1.96 deviations away; its slope brings it to that of values
            (odds(e.high) - odds(e.low)) / 2 / 1.959964 * (e.value - lowest) * (100 - e.value) / (100 - lowest)
            for e in estimates
            if e.value is not None
        ]
        plain = Estimate(values.mean(), np.mean(deviations) ** 2, values.var(ddof=1) / 5, 4, (lowest, 100.0))
        low, high = plain.interval
        expected = {"mean": values.mean(), "low": low, "high": high}
        assert row["figures"]["rare"] == pytest.approx(expected, abs=1e-3)
        (setting,) = compare([(folder, read_record(folder)) for folder in runs[:5]])
        exact = setting.rows[0].figures["rare"]  # from the replicates, which the store has
        assert exact.half < row["figures"]["rare"]["high"] - row["figures"]["rare"]["mean"] < 2 * exact.half

    def test_older_runs_with_one_file_for_all_are_taken(self, root: Path, runs: list[Path]) -> None:
        for folder in runs[:5]:
            lines = [(folder / name).read_text().splitlines() for name in ("replicates.csv", "group_replicates.csv")]
            (folder / "replicates.csv").write_text("".join(f"{a},{b}\n" for a, b in zip(*lines, strict=True)))
            record = read_record(folder)
            files = {name: file for name, file in record.files.items() if name != "group_replicates.csv"}
            files["replicates.csv"] = reference(folder / "replicates.csv")
            write_record(folder, record.model_copy(update={"files": files}))
        add(runs[:5], root)
        assert verify_board(open_boards(root)[0], cells=runs[0].parent) == []
        (row,), (setting,) = rows(root), compare([(folder, read_record(folder)) for folder in runs[:5]])
        for name, figure in setting.rows[0].figures.items():
            assert row["figures"][name] == pytest.approx(asdict(figure), abs=1e-4)


def test_built_files_agree_with_each_other(root: Path, runs: list[Path]) -> None:
    add(runs, root)
    files = {path.name: content for path, content in build.build(root).items() if path.parent.name == "tiny"}
    table = list(csv.DictReader(io.StringIO(files["table.csv"])))
    values = json.loads(files["table.json"])
    assert [row["method"] for row in table] == [row["method"] for row in values["sections"][0]["rows"]]
    for line, row in zip(table, values["sections"][0]["rows"], strict=True):
        assert float(line["map_c_mean"]) == row["figures"]["map_c"]["mean"]
        shown = f"{row['figures']['map_c']['mean']:.2f} ±"
        assert shown in files["README.md"] and shown in files["table.tex"]
    assert files["table.tex"].count(r"\toprule") == files["table.tex"].count(r"\bottomrule") == 1
    assert r"blocks \& more" in files["table.tex"]  # what LaTeX would trip over is escaped


def test_with_four_seeds_a_row_is_provisional_and_has_no_rank(root: Path, runs: list[Path]) -> None:
    add(runs[:9], root)
    ranks = {row["method"]: (row["rank"], row["provisional"]) for row in rows(root)}
    assert ranks == {"ce-negative": (1, False), "ce-ignore": (None, True)}


def test_a_withdrawn_record_stays_and_has_no_rank(root: Path, runs: list[Path]) -> None:
    add(runs, root)
    key = read_record(runs[0]).key
    assert withdraw(key, "trained on the wrong labels", root) == ["tiny"]
    board = open_boards(root)[0]
    assert board.board.version == 1 and key in records_of(board) and key in board.withdrawn
    kept = [row for row in rows(root) if row["method"] == "ce-negative"]
    assert sorted((row["withdrawn"] is not None, len(row["keys"]), row["rank"] is None) for row in kept) == [
        (False, 4, True),  # four seeds are left: provisional
        (True, 1, True),
    ]
    with pytest.raises(PlbenchError, match="not withdrawn yet"):
        withdraw(key, "again", root)


def test_a_record_is_repeated_and_promoted(root: Path, runs: list[Path], workspace: Workspace) -> None:
    add(runs, root)
    board, key = home_of(open_boards(root), read_record(runs[0]).key[:8])
    record, compared = reproduce(board, key, workspace)
    assert record.key == key and all(comparison.within for comparison in compared)
    assert [c.metric for c in compared] == ["map_c", "map_o", "frequent", "rare"]
    promote(board, key, "the tests")
    assert next(row for row in rows(root) if key in row["keys"])["tier"] == "verified"
    with pytest.raises(PlbenchError, match="no board has 'ffff'"):
        home_of(open_boards(root), "ffff")


def test_a_record_of_many_heads_is_repeated_on_the_threads_that_each_had(
    root: Path, runs: list[Path], workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = read_record(runs[0])
    assert record.cost is not None
    cost = record.cost.model_copy(update={"shared_with": 3, "measured_alone": False})
    environment = {**record.environment, "torch_threads": 2}
    write_record(runs[0], record.model_copy(update={"cost": cost, "environment": environment}))
    add(runs, root)
    board, key = home_of(open_boards(root), record.key)
    run, seen = runner.run, []

    def watched(*arguments: Any, **options: Any) -> Record:
        seen.append(torch.get_num_threads())
        return run(*arguments, **options)

    monkeypatch.setattr(runner, "run", watched)
    before = torch.get_num_threads()
    repeated, compared = reproduce(board, key, workspace)
    assert seen == [1] and torch.get_num_threads() == before
    assert {one.allowed for one in compared} == {ROUNDING} and all(one.within for one in compared)
    moved = repeated.test.model_copy(update={"map_c": repeated.test.map_c.model_copy(update={"value": 1.0})})
    other = repeated.model_copy(update={"metrics": {**repeated.metrics, "test": moved}})
    worse = compare_records(parse_entry(contents_of(root, key)), other, [])[0]
    assert not worse.within and "has to agree to 0.0001 points" in worse.words


def test_on_another_processor_a_figure_may_differ_as_those_of_seeds_do(root: Path, runs: list[Path]) -> None:
    add(runs, root)
    entries = [parse_entry(contents_of(root, read_record(run).key)) for run in runs]
    entry = entries[0]
    row = [other.record for other in entries if same_but_seed(other.record.spec) == same_but_seed(entry.record.spec)]
    elsewhere = entry.record.model_copy(update={"environment": {**entry.record.environment, "cpu": "another"}})
    same, other = (compare_records(entry, record, row)[0] for record in (entry.record, elsewhere))
    assert same.allowed == 0 and same.within
    values = [record.test.map_c.value for record in row]
    assert other.allowed == pytest.approx(np.std(values, ddof=1)) and other.allowed > 0


def test_a_run_of_another_protocol_finds_no_board(root: Path, workspace: Workspace) -> None:
    record = runner.run(plan_run(Request("tiny", "ce-negative", simulate="rpa=0.5"), workspace), workspace)
    with pytest.raises(PlbenchError, match="no board has protocol tiny-rpa/v1"):
        add([clean(workspace.store.run_folder(record.key))], root)
    assert open_boards(root)[0].ledger == ()


def test_a_dirty_checkout_is_refused_and_nothing_is_added(root: Path, runs: list[Path]) -> None:
    record = read_record(runs[-1])
    write_record(runs[-1], record.model_copy(update={"environment": {**record.environment, "git_dirty": True}}))
    with pytest.raises(PlbenchError, match=rf"{record.key}.*git_dirty"):
        add(runs, root)
    assert open_boards(root)[0].ledger == ()
    said: list[str] = []
    assert len(add(runs, root, refused=said.append)) == len(runs) - 1  # as --all does
    assert len(said) == 1 and record.key in said[0] and "git_dirty" in said[0]


def test_the_site_has_page_records_and_workflow(root: Path, runs: list[Path], tmp_path: Path) -> None:
    add(runs, root)
    with pytest.raises(PlbenchError, match="plbench board build fixes it"):
        export(root, tmp_path / "site")
    build.write(root, build.build(root))
    written = export(root, tmp_path / "site")
    assert written[0].name == "index.html" and all(path.is_file() for path in written)
    assert len(list((tmp_path / "site").glob("tiny/records/*.tar.xz"))) == len(METHODS)
    workflow = yaml.safe_load((tmp_path / "site" / ".github" / "workflows" / "boards.yml").read_text())
    assert workflow["permissions"] == {"contents": "read"}
    with pytest.raises(PlbenchError, match="lies inside"):
        export(root, root / "site")


def test_a_model_card_has_the_figures(runs: list[Path]) -> None:
    record = read_record(runs[0])
    card = yaml.safe_load(model_index(record).strip().strip("-"))
    metrics = {metric["type"]: metric["value"] for metric in card["model-index"][0]["results"][0]["metrics"]}
    assert metrics["map_c"] == record.test.map_c.value and set(metrics) == {
        "map_c",
        "map_o",
        "map_c_frequent",
        "map_c_rare",
    }


def test_the_ledger_is_append_only_in_memory_and_on_disk(root: Path, runs: list[Path]) -> None:
    add(runs[:1], root)
    board = open_boards(root)[0]
    before = board.ledger
    board.append([Event(event="verified", key=before[0].key, at="2026-01-01T00:00:00Z", by="x")])
    assert open_boards(root)[0].ledger[: len(before)] == before


HOSTILE = "<script>alert(1)</script> | [x](javascript:alert(1)) `=cmd` $\\input{/etc/passwd}$ \u202e"


def test_a_hostile_title_is_refused_and_harmless_where_it_is_built_all_the_same(root: Path, runs: list[Path]) -> None:
    add(runs, root)
    board = open_boards(root)[0]
    for key in board.added:
        record = parse_entry(contents_of(root, key)).record.model_copy(update={"title": HOSTILE, "paper": HOSTILE})
        change_member(root, f"{key}/record.json", lambda _, record=record: record.model_dump_json().encode())
    assert any("title" in problem.field for problem in verify_board(open_boards(root)[0]))
    files = {path.name: content for path, content in build.build(root).items()}
    assert "<script>alert" not in files["index.html"] and 'href="javascript:' not in files["index.html"]
    assert "\\<script\\>" in (own := build.build(root)[root / "tiny" / "README.md"]) and "<script>" not in own
    assert not re.search(r"(?<!\\)\]\(javascript:", own)  # its brackets are escaped: text, and no link
    assert r"\input{" not in files["table.tex"]


@pytest.mark.parametrize("text", ["NaN", "1e400", '"x"', "-3"])
def test_what_is_no_number_stops_a_build_with_one_sentence(root: Path, runs: list[Path], text: str) -> None:
    add(runs[:1], root)
    value = str(read_record(runs[0]).test.map_c.value).encode()
    name = f"{read_record(runs[0]).key}/record.json"
    change_member(root, name, lambda content: content.replace(value, text.encode()))
    with pytest.raises(PlbenchError) as error:
        build.build(root)
    assert "\n" not in str(error.value)
    assert verify_board(open_boards(root)[0])


def test_rows_whose_values_a_person_chose_come_last() -> None:
    """On the boards of this repository, which `board build --check` compares with what is built."""
    boards = Path(__file__).parents[2] / "leaderboards"
    tables = [json.loads(path.read_text(encoding="utf-8")) for path in boards.glob("*/table.json")]
    by_board = [[section["configuration"] == "custom" for section in table["sections"]] for table in tables]
    assert any(len(set(chosen)) == 2 for chosen in by_board)
    assert all(chosen == sorted(chosen) for chosen in by_board)

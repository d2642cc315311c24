"""`plbench study tables` on the datasets that the paper's tables are about, as small imitations of them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from test_cli import plbench

SMALL = ("--weights", "random", "--image-size", 32, "--epochs", 1, "--batch-size", 32, "--workers", 0)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLBENCH_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("dataset", "numbers", "regime"),
    [
        ("lvis", {4: 6}, "finetune"),
        ("openimages-v6", {1: 9, 2: 4}, "probe"),
        ("openimages-v3", {3: 5}, "finetune"),
    ],
)
def test_every_row_runs_and_is_shown_beside_the_papers(
    dataset: str, numbers: dict[int, int], regime: str, tmp_path: Path
) -> None:
    assert plbench("data", "make-fixture", dataset, tmp_path / "data").code == 0
    words = ["study", "tables", "--dataset", dataset, "--data-root", tmp_path / "data", "--scale", "tiny", *SMALL]
    result = plbench(*words, "--regime", regime, "--backbone", "test_resnet", "--out", "out", "--json").json
    assert result["left_out"] == [] and {c["status"] for c in result["claims"]} == {"undecided"}
    assert "1 seed is too few" in result["claims"][0]["why"]
    for number, rows in numbers.items():
        points = [p for p in result["points"] if p["panel"] == f"Table {number}"]
        assert len(points) == rows and all(p["runs"] and "map_c" in p["values"] for p in points)
        lines = (tmp_path / "out" / f"table-{number}.md").read_text(encoding="utf-8").splitlines()
        assert len(lines) == 2 + rows
    if dataset == "lvis":
        assert all("ap_person" in p["values"] for p in result["points"])
    if dataset == "openimages-v3":
        assert {f"group_{n}" for n in range(1, 6)} <= result["points"][0]["values"].keys()
    with (tmp_path / "out" / "tables.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert len({(row["panel"], row["series"]) for row in table}) == sum(numbers.values())

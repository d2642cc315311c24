"""`plbench study` and `plbench advise` as a person types them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from plbench import experiments as studies
from plbench.cli import main


def typed(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Exit code of a command."""
    monkeypatch.setattr(sys, "argv", ["plbench", *words])
    code = 0
    try:
        main()
    except SystemExit as leave:
        code = int(leave.code or 0)
    return code


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLBENCH_CACHE", str(tmp_path / "cache"))


def test_list_names_them_all(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(monkeypatch, "study", "list", "--json") == 0
    assert [row["study"] for row in json.loads(capsys.readouterr().out)] == list(studies.NAMES)
    assert typed(monkeypatch, "study", "list") == 0
    assert "CSL, figure 9" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["focussing"], "did you mean focusing?"),
        (["focusing"], "--dataset is missing"),
        (["focusing", "--dataset", "scenes", "--seeds", "0"], "at least one seed"),
        (["which-mode", "--dataset", "scenes", "--simulate", "fpc=3"], "leave --simulate out"),
        (["decision-boundary", "--dataset", "scenes"], "generates its own points; leave it out"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    words: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(monkeypatch, "study", *words) == 2
    assert sentence in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr("plbench.experiments.shared.execute.execute", None)  # would fail if it were called
    monkeypatch.setattr("plbench.comparison.plan.plan_comparison", None)
    for words in (["study", "focusing"], ["compare"]):
        out = file / ("figure" if words[0] == "study" else "figure.png")
        assert typed(monkeypatch, *words, "--dataset", "scenes", "--out", str(out)) == 2
        assert capsys.readouterr().err.startswith(f"plbench: error: could not write {file}")


def test_a_study_on_own_labels_and_its_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    assert typed(monkeypatch, "data", "make-fixture", "table", str(data)) == 0
    own = ["--labels", str(data / "labels-wide.csv"), "--images", str(data / "images"), "--negative-value", "0"]
    capsys.readouterr()
    small = ["--recipe", "quick", "--backbone", "test_resnet", "--weights", "random", "--image-size", "32"]
    words = ["study", "likelihood-k", "--dataset", "table", *own, *small, "--epochs", "1", "--scale", "tiny", "-q"]
    assert typed(monkeypatch, *words, "--out", "figure", "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["command"].startswith("plbench study likelihood-k --dataset table --recipe quick")
    assert {(tmp_path / "figure" / name).is_file() for name in content["files"]} == {True}
    assert content["left_out"] == []
    assert typed(monkeypatch, "advise", *own, "-q", "--json") == 0
    advice = json.loads(capsys.readouterr().out)
    assert advice["answer"][0].startswith("Not identifiable")
    given = f"--recipe quick --regime probe --labels {own[1]} --images {own[3]} --negative-value 0"
    assert advice["next"] == [f"plbench compare --dataset table {given} --methods {','.join(advice['methods'])}"]

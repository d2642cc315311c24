"""plbench from Python: every example of its functions, the same records as the command line, and errors."""

from __future__ import annotations

import doctest
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest

import plbench
from plbench.cli import main
from plbench.errors import PlbenchError
from plbench.runs import environment, summary
from plbench.runs.record import read_record

TOP = Path(__file__).parents[2]
MODULES = ["cli.console", "python.comparisons", "python.labels", "python.results", "python.studies", "runs.listing"]
OWN = {"labels": "demo/labels-long.csv", "images": "demo/images", "negative_value": 0}


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the small table, and runs and cache of this file's tests."""
    top = tmp_path_factory.mktemp("python")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(top)
        patched.setenv("PLBENCH_CACHE", str(top / "cache"))
        patched.delenv("PLBENCH_RUNS", raising=False)
        patched.setattr(summary, "NUM_REPLICATES", 20)
        patched.setattr(environment, "git_state", lambda: {"git_commit": None, "git_dirty": None})
        command("data", "make-fixture", "table", "demo")
        yield top


def command(*words: str) -> None:
    with patch.object(sys, "argv", ["plbench", *words]):
        try:
            main()
        except SystemExit as leave:
            assert not leave.code


@pytest.mark.parametrize("module", MODULES)
def test_every_example_is_true(module: str) -> None:
    found = doctest.testmod(import_module(f"plbench.{module}"))
    assert found.attempted and not found.failed


def test_every_public_function_has_an_example() -> None:
    for name in plbench.__all__:
        public = getattr(plbench, name)
        if name != "runs" and not isinstance(public, type):
            assert ">>> " in (public.__doc__ or ""), name


def test_the_command_line_gives_the_same_record(tmp_path: Path) -> None:
    words = ["--labels", "demo/labels-long.csv", "--images", "demo/images", "--negative-value", "0", "-P", "top_k=2"]
    command("run", "-m", "selective", "-d", "table", *words, "--seed", "1", "--runs", str(tmp_path / "other"), "-q")
    own = plbench.run("selective", "table", params={"top_k": 2}, seed=1, **OWN)  # type: ignore[arg-type]
    other = read_record(tmp_path / "other" / own.key)
    assert other.spec == own.record.spec and other.metrics == own.record.metrics
    assert other.files["cells.npz"] == own.record.files["cells.npz"]
    assert other.files["checkpoint.pt"] == own.record.files["checkpoint.pt"]


def test_a_comparison_has_the_runs_of_the_command() -> None:
    found = plbench.compare("table", methods="ce-negative,ce-ignore", seeds=2, **OWN)  # type: ignore[arg-type]
    before = set(plbench.runs().index)
    words = ["--labels", "demo/labels-long.csv", "--images", "demo/images", "--negative-value", "0", "-q"]
    command("compare", "-d", "table", "-m", "ce-negative,ce-ignore", "--seeds", "2", *words)
    assert set(plbench.runs().index) == before and {key for row in found.setting.rows for key in row.keys} <= before
    table = found.table
    assert (table["map_c_low"] <= table["map_c"]).all() and table["map_c"].is_monotonic_decreasing
    assert table["rank"].isna().all() and np.isnan(table["difference"].iloc[0]) and not found.left_out
    drawn = Path("comparison.svg")
    figure = found.plot(drawn)
    assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]  # a notebook asks for it
    assert drawn.read_text(encoding="utf-8").startswith("<?xml")


def test_tables_of_a_result_say_what_its_record_says() -> None:
    result = plbench.run("ce-negative", "table", **OWN)  # type: ignore[arg-type]
    classes = result.per_class
    assert classes["ap"].mean() == pytest.approx(result.metrics["map_c"], abs=1e-5)
    row = plbench.runs().loc[result.key]
    assert row["map_c"] == result.metrics["map_c"] and row["dataset"] == "table" and row["seed"] == 0
    assert plbench.load(result.folder).record == result.record == plbench.load(result.key[:6]).record
    shown = result._repr_html_()
    assert f"<td>{result.metrics['map_c']:.2f}</td>" in shown and "table" in shown and "seed 0" in shown
    scores = result.predict([Path("demo/images/garden/te000.jpg")])
    assert scores.dtypes.eq(np.float32).all() and scores.shape == (1, 6)
    whole = result.predict("demo/images")
    np.testing.assert_allclose(whole.loc["garden/te000.jpg"], scores.iloc[0], atol=1e-5)
    assert len(whole) == 90 and isinstance(whole, pd.DataFrame)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"epoch": 2}, r"there is no setting `epoch=`; did you mean epochs\?"),
        ({"epochs": 0}, "epochs"),
        ({"backbone": "test_resne"}, "did you mean"),
        ({"data_options": {"labels": "a.csv"}}, "given twice"),
    ],
)
def test_mistakes_are_one_sentence(setting: dict[str, object], said: str) -> None:
    with pytest.raises(PlbenchError, match=said):
        plbench.run("ce-negative", "table", **{**OWN, **setting})  # type: ignore[arg-type]


def test_importing_it_imports_nothing_heavy() -> None:
    code = "import sys, plbench; dir(plbench); print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "pandas", "pydantic", "matplotlib", "rich"} & set(done.stdout.split())
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        plbench.runn  # type: ignore[attr-defined]  # noqa: B018


def test_the_readme_prints_what_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    """Other processors, and the few bootstrap replicates of these tests, move figures a little."""
    text = (TOP / "README.md").read_text(encoding="utf-8")
    ((code, expected),) = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, flags=re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    number = re.compile(r"\d+\.\d+|NaN")
    printed = capsys.readouterr().out
    assert re.sub(r" +", " ", number.sub("#", printed)) == re.sub(r" +", " ", number.sub("#", expected))
    for found, shown in zip(number.findall(printed), number.findall(expected), strict=True):
        assert float(found) == pytest.approx(float(shown), rel=0.05, abs=0.15, nan_ok=True)


def test_what_the_page_on_python_shows_runs_as_it_stands(own_files: None, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (TOP / "docs/python.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    shown: dict[str, object] = {}
    exec(compile(code, "docs/python.md", "exec"), shown)
    result = shown["result"]
    assert isinstance(result, plbench.Result) and result.record.spec.plan.epochs == 2
    assert capsys.readouterr().out.split()[0] == result.key


def test_what_the_page_on_pages_shows_runs_as_it_stands(own_files: None, here: Path) -> None:
    text = (TOP / "docs/run-page.md").read_text(encoding="utf-8")
    shown: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(compile(block, "docs/run-page.md", "exec"), shown)
    result, page = shown["result"], shown["page"]
    assert isinstance(result, plbench.Result) and page == Path("run.html")
    assert (here / "run.html").read_text(encoding="utf-8").count("<img ") > 10
    ((line,),) = [block.splitlines() for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)]
    command(*shlex.split(line.replace("KEY", result.key))[1:], "--no-open", "-q")
    assert "<h1>P-ASL, Selective on" in (result.folder / "page.html").read_text(encoding="utf-8")


@pytest.fixture
def own_files(here: Path) -> None:
    """The small table under the names that the pages use."""
    for name, target in (("my.csv", "demo/labels-long.csv"), ("photos", "demo/images"), ("new-photos", "demo/images")):
        if not (here / name).exists():
            (here / name).symlink_to(here / target)


def test_what_the_page_on_predicting_shows_runs_as_it_stands(own_files: None, here: Path) -> None:
    page = "docs/predicting.md"
    text = (TOP / page).read_text(encoding="utf-8")
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)):
        shown: dict[str, object] = {}
        exec(compile(block, f"{page}, block {number}", "exec"), shown)
        scores = shown["scores"]
        assert isinstance(scores, pd.DataFrame) and scores.shape == (90, 6) and scores.stack().between(0, 1).all()
    result = shown["result"]
    assert isinstance(result, plbench.Result)
    for line in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL):
        command(*shlex.split(line.replace("KEY", result.key))[1:], "-q")
        table = pd.read_csv(here / "scores.csv", index_col="image").astype(np.float32)
        assert np.array_equal(table.to_numpy(), scores.to_numpy())


def test_the_page_on_labels_shows_what_runs(here: Path) -> None:
    """With fewer and shorter trainings."""
    text = (TOP / "docs/improving-labels.md").read_text(encoding="utf-8").replace("--epochs 40", "--epochs 2")
    shell = [line for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL) for line in block.splitlines()]
    make, issues, *first, label, again = [shlex.split(line)[1:] for line in shell]
    assert make == ["data", "make-fixture", "table", "demo"] and len(first) == 2
    command(*issues, "--folds", "2", "--seeds", "1", "-q")
    listed = pd.read_csv("issues.csv"), pd.read_csv("next.csv")
    rows = re.findall(
        r"^\| (`image`.*?) \|.*?^\| `p_present` .*?^\| (`\w+`.*?) \|", text, flags=re.DOTALL | re.MULTILINE
    )
    assert len(rows) == 2, "the page names the columns of both files"
    for table, (names, last) in zip(listed, rows, strict=True):
        assert {*re.findall(r"`(\w+)`", names + last), "p_present"} <= {*table.columns}
    assert Path("issues.png").stat().st_size > 10_000
    before = set(plbench.runs().index)
    for words in first:
        command(*words, "-q")
    made = plbench.runs().drop(index=list(before))
    keys = {f"KEY{row.seed}": key for key, row in made.iterrows()}
    command(*(keys.get(word, word) for word in label), "-q")
    command(*again, "-q")
    new = plbench.load(plbench.runs().drop(index=[*before, *keys.values()]).index[0])
    known = plbench.load(keys["KEY0"]).record.data
    assert known is not None and new.record.data is not None
    assert new.record.data.num_train_known >= known.num_train_known
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    shown: dict[str, Any] = {}
    exec(compile(block.replace("folds=5, seeds=3", "folds=2, seeds=1"), "improving-labels.md", "exec"), shown)
    assert len(shown["added"]) == shown["again"].record.data.num_train_known - known.num_train_known

"""What the documentation shows is run as it stands."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from plbench.cli import main
from plbench.datasets.scenes import dataset as scenes
from plbench.runs.estimate.measured import Measured
from plbench.runs.estimate.stacked import Stack
from plbench.runs.registry import Registry
from plbench.testing.datasets import CHECKS as DATASET_CHECKS
from plbench.testing.methods import CHECKS as METHOD_CHECKS

TOP = Path(__file__).parents[1]


def blocks(page: str, kind: str) -> list[str]:
    """The fenced blocks of a page."""
    text = (TOP / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"```{kind}\n(.*?)```", text, flags=re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """The words of every command of a page's shell blocks, without comments."""
    lines = "".join(blocks(page, "sh")).splitlines()
    return [shlex.split(line, comments=True) for line in lines]


def run(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a command as typed, which must succeed; what it printed."""
    monkeypatch.setattr(sys, "argv", words)
    try:
        main()
        code: object = 0
    except SystemExit as leave:
        code = leave.code or 0
    said = capsys.readouterr()
    assert code == 0, f"{shlex.join(words)}\n{said.out}\n{said.err}"
    return said.out


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one test's own, with runs and cache below it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PLBENCH_RUNS", str(tmp_path / "runs"))
    return tmp_path


class TestAddingAMethod:
    page = "adding-a-method.md"

    def test_the_example_loads_and_has_its_parameter(self, here: Path) -> None:
        source = blocks(self.page, "python")[0]
        (here / "half_negative.py").write_text(source, encoding="utf-8")
        method = Registry.discover((here / "half_negative.py",)).method("half-negative")
        assert method.Params().weight == 0.5
        assert set(method.Params.search_space()) == {"weight"}
        assert source.count("\n") < 40

    @pytest.mark.parametrize(("number", "name"), [(0, "half-negative"), (1, "self-labels"), (2, "warm-ignore")])
    def test_the_examples_pass_the_check(
        self, number: int, name: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (here / "example.py").write_text(blocks(self.page, "python")[number], encoding="utf-8")
        out = run(["plbench", "methods", "check", name, "--plugin", "example.py", "-q"], monkeypatch, capsys)
        assert "checks passed" in out

    def test_the_first_two_commands_do_as_they_say(
        self, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        new, check, begin = commands(self.page)
        written = run(new, monkeypatch, capsys)
        assert f"Next: {shlex.join(check)}" in written and f"Next: {shlex.join(begin)}" in written
        assert "checks passed" in run([*check, "-q"], monkeypatch, capsys)

    def test_the_table_names_every_check(self) -> None:
        text = (TOP / "docs" / self.page).read_text(encoding="utf-8")
        assert all(check.name in text for check in METHOD_CHECKS)


class TestAddingADataset:
    page = "adding-a-dataset.md"

    def test_the_example_runs_as_it_stands(
        self, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (here / "rooms.py").write_text(blocks(self.page, "python")[0], encoding="utf-8")
        check, fixture, begin, on_files = commands(self.page)
        assert "checks passed" in run([*check, "-q"], monkeypatch, capsys)
        run(fixture, monkeypatch, capsys)
        out = run([*begin, "-q"], monkeypatch, capsys)
        assert "3 of 3 classes scored" in out
        on_files[on_files.index("/data/rooms")] = "small"
        assert "checks passed" in run([*on_files, "-q"], monkeypatch, capsys)

    def test_the_table_names_every_check(self) -> None:
        text = (TOP / "docs" / self.page).read_text(encoding="utf-8")
        names = {
            name for row in re.findall(r"^\| ([a-z, ]+?) \|", text, flags=re.MULTILINE) for name in row.split(", ")
        }
        assert {check.name for check in DATASET_CHECKS} <= names


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_the_readme_names_the_two_commands_and_the_makefile_has_them(command: str) -> None:
    assert command in (TOP / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"^{command.split()[1]}:", (TOP / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (TOP / "docs").glob("*.md"))])
def test_pages_link_to_files_that_exist(page: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", (TOP / page).read_text(encoding="utf-8")):
        assert ((TOP / page).parent / target).is_file(), target


@pytest.mark.slow
def test_the_tutorial_on_own_labels_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (TOP / "docs" / "your-own-data.md").read_text(encoding="utf-8")
    commands = [line for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 14
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLBENCH_CACHE", str(tmp_path / "cache"))
    for command in commands:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with contextlib.suppress(SystemExit):
            assert main() is None
        assert "error" not in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["plbench", "runs", "compare", "--dataset", "table", "--json"])
    with contextlib.suppress(SystemExit):
        main()
    settings = json.loads(capsys.readouterr().out)
    means = {row["method"]: row["figures"]["map_c"]["mean"] for row in settings[0]["rows"]}
    assert len(settings) == 1 and [len(row["seeds"]) for row in settings[0]["rows"]] == [3, 3, 3]
    assert min(means["ce-ignore"], means["selective"]) > means["ce-negative"]  # as the page says
    assert (tmp_path / "demo" / "sheet.png").is_file()


@pytest.mark.slow
def test_the_five_minutes_run_as_they_stand(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a twentieth of the scenes."""
    draw_all = scenes._draw_all
    monkeypatch.setattr(scenes, "_draw_all", lambda *given: draw_all(*given) and scenes.FINGERPRINT)
    monkeypatch.setitem(scenes.SPLIT_SIZES, "train", 400)
    monkeypatch.setitem(scenes.SPLIT_SIZES, "test", 150)
    begin, compare, *look = commands("five-minutes.md")
    assert "P-ASL, Selective on scenes-fpc300" in run(begin, monkeypatch, capsys)
    assert "would be detected in 4 of 5" in run(compare, monkeypatch, capsys)
    listed = [run(words, monkeypatch, capsys) for words in look]
    assert len(listed) == 3 and "eta_top" in listed[1] and listed[2].count("scenes-fpc300") == 9


REPRODUCE = sorted(path.name for path in (TOP / "docs").glob("reproduce-table*.md"))
SMALL = ["--weights", "random", "--image-size", "32"]


@pytest.fixture
def published_layouts(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """Small imitations of the datasets of the paper's tables, where the commands of a page look for them."""
    monkeypatch.setenv("XDG_DATA_HOME", str(here / "share"))
    for name in ("lvis", "openimages-v3", "openimages-v6", "openimages-v6-csl"):
        run(["plbench", "data", "make-fixture", name, str(here / "share" / "plbench" / name)], monkeypatch, capsys)
    return here


@pytest.mark.parametrize("page", REPRODUCE)
def test_commands_that_reproduce_a_table_plan_what_the_page_says(
    page: str, published_layouts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trainings are planned on imitations, with random weights, and not timed; downloads are parsed alone."""
    measured = Measured(*[1] * (len(fields(Measured)) - 1), is_too_large=False)
    monkeypatch.setattr("plbench.runs.estimate.estimate.measure", lambda *_, **__: measured)
    for block in blocks(page, "toml"):
        name = block.splitlines()[0].removeprefix("# ")
        shrunk = f'{block}\n[model]\nweights = "random"\nimage_size = 32\n'
        (published_layouts / name).write_text(shrunk, encoding="utf-8")
    planned = 0
    for line in "".join(blocks(page, "sh")).splitlines():
        words = shlex.split(line, comments=True)
        if words[1] in ("data", "doctor") or "ray" in words:
            if words[1:3] == ["data", "make-fixture"] or "stats" in words:
                run(words, monkeypatch, capsys)
            else:
                run([*words, "--help"], monkeypatch, capsys)  # refuses an option that does not exist
            continue
        if "--weights" in words:  # a file that this machine does not have
            place = words.index("--weights")
            del words[place : place + 2]
        shrinks = [] if words[1] == "sweep" or "quick" in words else SMALL
        words += [*shrinks, *(["--dry-run"] if "--dry-run" not in words else []), "-q"]
        said = run(words, monkeypatch, capsys)
        if counted := re.search(r"# (\d+ (?:trainings|runs))$", line):
            assert counted[1] in said, line
            planned += 1
    assert planned or page == "reproduce-tables.md"


def test_the_readme_and_the_five_minutes_show_the_same_output() -> None:
    """Of a command that the test of the five minutes runs."""
    readme, page = ((TOP / name).read_text(encoding="utf-8") for name in ("README.md", "docs/five-minutes.md"))
    command, output = re.findall(r"```(?:sh|text)\n(.*?)```", readme, flags=re.DOTALL)[:2]
    assert command in page and output in page


# ---- commands of all other pages

WITH_TESTS_OF_THEIR_OWN = ("adding-a-dataset.md", "five-minutes.md", "predicting.md", "your-own-data.md", *REPRODUCE)
OTHERS = ["../README.md", *sorted({path.name for path in (TOP / "docs").glob("*.md")} - {*WITH_TESTS_OF_THEIR_OWN})]
DRY = ("run", "compare", "tune", "sweep", "study")
AT_ONCE = ["methods list", "methods show", "study list", "doctor"]
AT_ONCE += ["runs list", "runs show", "runs compare", "runs prune --dry-run"]
AT_ONCE += ["data list", "data stats", "data show", "data prepare", "sweep status"]
# tried by tests of other pages, or what this machine lacks
NOT_HERE = {"ray", "slurm", "gpu", "--embeddings", "mlflow", "openimages-v3", "openimages-v6"}
IMITATED = ("lvis", "coco")
OWN = ("--labels", "my.csv", "--images", "photos", "--negative-value", "0")


def all_commands(page: str) -> list[str]:
    """Lines of a page's blocks that a shell would run, whatever the kind of the block."""
    text = (TOP / "docs" / page).read_text(encoding="utf-8")
    fenced = re.findall(r"^```(?:sh|)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = "".join(fenced).replace("\\\n", " ").splitlines()
    return [line for line in lines if re.match(r"([A-Z_]+=\S+ )*(plbench|make|pip|torchrun) ", line)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """What the pages' commands name: data, a table, a plugin, a grid, and a run, whose key comes with it."""
    top = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(top)
        for name, folder in (("PLBENCH_CACHE", "cache"), ("PLBENCH_RUNS", "runs"), ("XDG_DATA_HOME", "share")):
            patched.setenv(name, str(top / folder))
        draw_all = scenes._draw_all
        patched.setattr(scenes, "_draw_all", lambda *given: draw_all(*given) and scenes.FINGERPRINT)
        patched.setitem(scenes.SPLIT_SIZES, "train", 120)
        patched.setitem(scenes.SPLIT_SIZES, "test", 30)
        measured = Measured(*[1] * (len(fields(Measured)) - 1), is_too_large=False)
        patched.setattr("plbench.runs.estimate.estimate.measure", lambda *_, **__: measured)
        patched.setattr("plbench.runs.estimate.estimate.measure_stack", lambda *_: Stack(1.0, 1.0, 1, 1))
        for name in IMITATED:
            call(["data", "make-fixture", name, str(top / "share" / "plbench" / name)])
        call(["data", "make-fixture", "table", "demo"])
        for name, target in (("my.csv", "demo/labels-long.csv"), ("photos", "demo/images"), ("new-photos", "photos")):
            (top / name).symlink_to(top / target)
        (top / "grid.toml").write_text(blocks("sweeps.md", "toml")[0], encoding="utf-8")
        for name in ("mine", "my-method"):
            call(["methods", "new", name])
        call(
            [
                "run",
                "-m",
                "ce-negative",
                "-d",
                "table",
                *OWN,
                "--backbone",
                "test_resnet",
                *SMALL,
                "--epochs",
                "1",
                "-q",
            ]
        )
        yield top, next((top / "runs").glob("*/record.json")).parent.name


def call(words: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["plbench", *words])
        with pytest.raises(SystemExit) as left:
            sys.exit(main())
    assert not left.value.code, shlex.join(words)


def how_to_try(words: list[str]) -> list[str]:
    """A command as this test gives it: whole if it takes no time, planned if it trains, else parsed alone."""
    line = shlex.join(words)
    if line.startswith(tuple(AT_ONCE)):
        return words
    if words[0] not in DRY or NOT_HERE & set(words) or "labels-file=" in line or "study tables --dataset lvis" in line:
        return [*words, "--help"]  # refuses options that do not exist
    shrinks = SMALL if {"coco", "lvis", "--recipe"} & set(words) and "quick" not in words else []
    if "--config" in words:
        shrinks = [*OWN]
    if words[0] == "study":
        words = [word for word in words if word not in ("--scale", "full")] + ["--scale", "tiny"]
    return [*words, *shrinks, *([] if "--dry-run" in words else ["--dry-run"]), "-q"]


@pytest.mark.slow
@pytest.mark.parametrize("page", OTHERS)
def test_commands_of_a_page_are_commands(page: str, place: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    makefile = (TOP / "Makefile").read_text(encoding="utf-8")
    project = (TOP / "pyproject.toml").read_text(encoding="utf-8")
    monkeypatch.chdir(place[0])
    for line in all_commands(page):
        words = shlex.split(line.replace("KEY", place[1]).replace("/fast", str(place[0])), comments=True)
        while "=" in words[0]:
            words = words[1:]
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, flags=re.MULTILINE), line
        elif words[0] == "pip":
            for extra in re.findall(r"plbench\[(\w+)\]", line):
                assert re.search(rf"^{extra} = \[", project, flags=re.MULTILINE), line
        else:
            call(how_to_try(words[words.index("plbench") + 1 :]))

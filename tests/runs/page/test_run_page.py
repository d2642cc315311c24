"""The page of a run: what it says, of whatever is there, and how it behaves in a browser."""

from __future__ import annotations

import csv
import doctest
import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plbench.cli import main
from plbench.data.images import ImageFiles
from plbench.errors import PlbenchError, StoreError
from plbench.metrics.cells import Cells
from plbench.runs import run as runner
from plbench.runs.page import charts, images, page
from plbench.runs.page.images import Thumbnails, most_wrong
from plbench.runs.page.page import run_page, write_page
from plbench.runs.page.reading import RunFiles, read_files
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.record import PriorDiagnostics, Record, TuningReport, read_record, write_record
from plbench.runs.tables import ClassRow
from plbench.runs.workspace import Workspace

NASTY = [
    "</script><script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "' onmouseover='window.pwned=1",
    '"><svg onload=window.pwned=1>',
    "{{ 7 * 7 }}{% raw %}",
    "\x00\x1b[31m\u202e\u2028",
    "漢字の長い名前がここにあります、とても長い",
    "x" * 3000,
]
_MADE: dict[str, Path] = {}


@pytest.fixture
def workspace(make_workspace: Callable[..., Workspace]) -> Workspace:
    return make_workspace()


@pytest.fixture
def folder(workspace: Workspace, quick_records: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the tiny dataset, whose images are drawn: a fresh copy of one that is made once."""
    store = workspace.store
    if not _MADE:
        asked = Request("tiny", "selective", {"mode": "likelihood"}, selection="validation", plan={"epochs": 3})
        record = runner.run(plan_run(asked, workspace), workspace)
        _MADE[record.key] = tmp_path_factory.mktemp("made") / "store"
        shutil.copytree(store.runs.parent, _MADE[record.key])
    ((key, made),) = _MADE.items()
    shutil.copytree(made, store.runs.parent, dirs_exist_ok=True)
    return store.run_folder(key)


def rewrite(folder: Path, **changes: Any) -> Record:
    """Changes a record, files and all; a name in `without` goes from both."""
    record = read_record(folder)
    files = dict(record.files)
    for name in changes.pop("without", ()):
        (folder / name).unlink()
        del files[name]
    changed = record.model_copy(update={"files": files, **changes})
    write_record(folder, changed)
    return changed


class Parsed(HTMLParser):
    """Elements, attributes and what a person reads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.words: list[str] = []
        self._silent = False
        self.feed(text)
        self.close()
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        self._silent = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._silent = False

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.words.append(data)

    def values(self, *names: str) -> list[str]:
        return [value or "" for _, name, value in self.attributes if name in names]


def shown(folder: Path, workspace: Workspace) -> Parsed:
    return Parsed(run_page(folder, workspace, folder))


def test_the_page_says_what_the_records_and_tables_say(folder: Path, workspace: Workspace) -> None:
    path = write_page(folder, workspace)
    assert path == folder / "page.html"
    parsed, record = Parsed(path.read_text(encoding="utf-8")), read_record(folder)
    own = record.test
    for figure in (own.map_c, own.map_o, *(group.map_c for group in own.groups.values())):
        assert f"{figure.value:.2f} {figure.low:.2f} to {figure.high:.2f}" in parsed.text
    with (folder / "per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    task = np.load(folder / "task.npz")
    for place, row in enumerate(rows):
        train = int(task["positives"][place]), int(task["negatives"][place])
        expected = rf"{row['class_name']} {float(row['ap']):.2f} [\d.]+ to [\d.]+ {row['positives']} {row['negatives']}"
        assert re.search(rf"{expected} {train[0]} {train[1]} {48 - sum(train)} ", parsed.text), row
    assert "Unknown" not in parsed.text and record.hidden_truth is not None
    unknown = 48 * 6 - sum(int(task[name].sum()) for name in ("positives", "negatives"))
    for name, number in record.hidden_truth.num_marked.items():
        assert f"{name.replace('_', ' ')} {number:,} {100 * number / unknown:.2f} %" in parsed.text
    curve = "mAP(C) on the validation part by averaged weights, percent"  # of the run that chose the epoch
    assert re.search(rf"{re.escape(curve)}; epoch [123] was selected", parsed.text)
    assert "plbench run --config spec.toml" in parsed.text and f'name = "{record.spec.method.name}"' in parsed.text
    assert str(workspace.store.runs) not in parsed.text
    pictures = [value for value in parsed.values("src")]
    assert len(pictures) > 20 and all(value.startswith("data:image/jpeg;base64,") for value in pictures)
    links = [value for value in parsed.values("href") if not value.startswith("#")]
    assert set(links) == {"data:,", "per_class.csv", "https://arxiv.org/abs/2110.10955"}
    assert run_page(folder, workspace, folder) == path.read_text(encoding="utf-8")


def test_what_a_stage_found_and_what_to_beware_of_is_there(folder: Path, workspace: Workspace) -> None:
    prior = PriorDiagnostics(total=2.345, top=[("a", 0.61), ("b", 0.5)], spearman_by_depth={"6": 0.9, "10": None})
    rewrite(folder, priors={"prior": prior}, warnings=["half of it is wrong"], notes=["as read"], source_file=None)
    parsed = shown(folder, workspace)
    assert "Stage prior: 2.35 classes are expected per image. Highest: a 0.61, b 0.50" in parsed.text
    assert "0.90 over the 6 most frequent classes" in parsed.text
    assert "half of it is wrong as read" in parsed.text and "--config spec.toml --plugin FILE" in parsed.text
    tuning = TuningReport(
        study="abc",
        regime="probe",
        num_trials=20,
        space={},
        sampler="tpe",
        pruner="none",
        seed=0,
        labels="partial",
        chosen={"lr": 0.00123},
        default={"lr": 0.01},
        value=51.5,
        default_value=50.25,
    )
    rewrite(folder, hidden_truth=None, tuning=tuning)
    assert "20 trials by tpe: lr 0.00123; validation mAP(C) 51.50 (50.25 with" in shown(folder, workspace).text
    assert "No simulation hid these labels" in shown(folder, workspace).text


def test_a_run_that_only_selects_is_of_its_validation_part(folder: Path, workspace: Workspace) -> None:
    (chooser,) = {*workspace.store.keys()} - {folder.name}
    parsed = shown(workspace.store.run_folder(chooser), workspace)
    assert "never on test" in parsed.text and "validation present" in parsed.text and parsed.tags["img"] > 5


def test_intervals_of_classes_are_on_the_records_own_resamples(folder: Path, workspace: Workspace) -> None:
    """The mean AP of classes has the record's interval, so theirs are of the same resamples."""
    files = read_files(folder)
    found = page.view.class_intervals(files, lambda done, total: None)
    ap = np.array([row.ap for row in files.classes], float)
    assert (found.low <= ap).all() and (ap <= found.high).all() and (found.high - found.low > 1).any()
    one = replace(files, classes=files.classes[:1], cells=None)
    assert np.isnan(page.view.class_intervals(one, lambda done, total: None).low).all()


def test_a_run_that_failed_or_was_interrupted_says_so(folder: Path, workspace: Workspace) -> None:
    done = rewrite(folder, status="failed", metrics={}, files={}, cost=None, error="the loss is <not> finite")
    parsed = shown(folder, workspace)
    assert "The run failed: the loss is <not> finite" in parsed.text and parsed.tags["table"] == 0
    (folder / "record.json").unlink()
    parsed = shown(folder, workspace)
    assert "interrupted before it was saved" in parsed.text and "starts it again" in parsed.text
    assert "Training loss" in parsed.text
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step-00000005.json").write_text('{"step": 5}')
    assert "last saved at step 5" in shown(folder, workspace).text
    with workspace.store.lock(done.key, lambda text: None):
        assert "in progress in another process" in shown(folder, workspace).text
    assert workspace.store.find(done.key[:4], begun=True) == folder
    with pytest.raises(StoreError, match="there is no run"):
        workspace.store.find(done.key[:4])
    (folder / "spec.toml").write_text("seed = 'x'")
    with pytest.raises(StoreError, match="is not a run's spec: "):
        run_page(folder, workspace)


def test_runs_without_some_files_show_the_rest(folder: Path, workspace: Workspace) -> None:
    rewrite(folder, without=["task.npz"])
    assert "train unknown" in shown(folder, workspace).text  # counted in the dataset
    away = replace(workspace, data_root=folder / "nowhere")
    parsed = shown(folder, away)
    assert "train unknown" not in parsed.text and "images are not shown" in parsed.text
    assert parsed.tags["img"] == 0 and "Hardest classes" in parsed.text
    rewrite(folder, without=["cells.npz", "log.jsonl"])
    parsed = shown(folder, workspace)
    assert "no scores of known labels (cells.npz)" in parsed.text
    assert "folder lacks: log.jsonl, cells.npz, task.npz" in parsed.text
    rewrite(folder, without=["per_class.csv"])
    assert "there are no figures for single classes" in shown(folder, workspace).text
    spec = (folder / "spec.toml").read_text(encoding="utf-8")
    (folder / "spec.toml").write_text(spec + "# changed\n")
    (folder / "replicates.csv").unlink()
    assert "mAP(C)" in shown(folder, workspace).text


@pytest.mark.parametrize("name", ["per_class.csv", "cells.npz", "log.jsonl", "task.npz"])
def test_files_that_changed_since_are_refused(name: str, folder: Path, workspace: Workspace) -> None:
    with (folder / name).open("ab") as file:
        file.write(b"\n")
    with pytest.raises(StoreError, match=f"{name} was changed since"):
        run_page(folder, workspace)


def test_a_dataset_with_other_labels_lends_no_images(
    folder: Path,
    workspace: Workspace,
    tiny_dataset: type[Any],
    make_workspace: Callable[..., Workspace],
    listening: Any,
) -> None:
    class Other(tiny_dataset):  # type: ignore[misc]
        def truth(self, split: str) -> np.ndarray:
            return -tiny_dataset.truth(self, split)  # type: ignore[no-any-return]

    others = replace(make_workspace(Other), store=workspace.store, reporter=listening)
    parsed = shown(folder, others)
    assert "are not those of the run" in parsed.text and parsed.tags["img"] == 0
    assert any("are not those that the run was scored on" in line for line in listening.lines)
    others.registry.sources["dataset"].pop("tiny")
    assert "comes from a plugin" in shown(folder, others).text


def test_pictures_stop_where_there_is_no_room_and_leave_out_what_cannot_be_read(
    folder: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images.Thumbnails.__init__, "__defaults__", (5_000,))
    parsed = shown(folder, workspace)
    assert 0 < parsed.tags["img"] < 12 and sum(map(len, parsed.values("src"))) <= 5_000
    assert "more images did not fit" in parsed.text
    for path in (workspace.store.cache / "data" / "tiny" / "test").iterdir():
        path.write_bytes(b"no image")
    parsed = shown(folder, workspace)
    assert parsed.tags["img"] == 0 and "images could not be read" in parsed.text


def test_thumbnails_are_small_copies(tiny_images: ImageFiles) -> None:
    found = Thumbnails(tiny_images).address(3)
    assert found is not None and found[1:] == (16, 16)
    assert Thumbnails(tiny_images, 100).address(3) is None


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.none() | st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_the_most_wrong_cells_are_of_different_images(seed: int, most: int, of_class: int | None) -> None:
    rng = np.random.default_rng(seed)
    cells = Cells.from_scores(rng.integers(0, 9, (9, 4)) / 10, rng.integers(-1, 2, (9, 4)))
    for is_positive in (False, True):
        among = np.flatnonzero(cells.positives == is_positive)
        chosen = most_wrong(cells, among, most, of_class)
        assert len({int(cells.rows[cell]) for cell in chosen}) == len(chosen) <= most
        by_class = Counter(cells.class_index[chosen].tolist())
        assert of_class is None or max(by_class.values(), default=0) <= of_class
        scores = cells.scores[chosen]
        assert (np.diff(scores) >= 0).all() if is_positive else (np.diff(scores) <= 0).all()
        if among.size:
            own = cells.scores[among]
            assert scores[0] == (own.min() if is_positive else own.max())


def with_classes(files: RunFiles, names: list[str]) -> RunFiles:
    """The same run on other classes, each with 12 known cells."""
    rng, number = np.random.default_rng(0), len(names)
    rows = np.tile(np.arange(12), number)
    index, present = np.repeat(np.arange(number, dtype=np.int32), 12), np.tile(np.arange(12) % 3 == 0, number)
    cells = Cells(rows, index, (rng.random(12 * number) + 0.3 * present).astype(np.float32), present, 24, number)
    ap = 100 * np.nan_to_num(page.view.np.linspace(0.1, 0.9, number))
    classes = tuple(ClassRow(f"id-{n}", name, float(ap[n]), 4, 8, quintile=1) for n, name in enumerate(names))
    return replace(files, classes=classes, cells=cells, train=None)


def test_thousands_of_classes_stay_light(folder: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    many = with_classes(read_files(folder), [f"class number {n}" for n in range(9_600)])
    monkeypatch.setattr(page, "read_files", lambda folder: many)
    metrics = many.metrics.model_copy(update={"num_classes": 9_600})
    monkeypatch.setattr(RunFiles, "metrics", metrics)
    text = run_page(folder, workspace, folder)
    parsed = Parsed(text)
    assert len(text) < 500_000
    assert "The table has 400 of 9,600 classes, those with the highest and the lowest AP." in parsed.text
    assert parsed.text.count("class number") > 400 and 'href="per_class.csv"' in text
    assert "class number 9599 id-9599 90.00" in parsed.text and "class number 0 id-0 10.00" in parsed.text


def test_hostile_values_are_only_text(folder: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = []
    for names in ([f"name {n}" for n in range(len(NASTY))], NASTY):
        files = with_classes(read_files(folder), names)
        assert files.record is not None
        record = files.record.model_copy(
            update={"title": names[0], "paper": names[1], "warnings": names, "environment": {names[2]: names[3]}}
        )
        files = replace(files, record=record)
        monkeypatch.setattr(page, "read_files", lambda folder, found=files: found)
        pages.append(Parsed(run_page(folder, workspace, folder)))
    tame, hostile = pages
    assert hostile.tags == tame.tags
    assert {(tag, name) for tag, name, _ in hostile.attributes} == {(tag, name) for tag, name, _ in tame.attributes}
    assert not re.search(r"[\x00-\x08\x1b\u202e]", "".join(hostile.words))
    assert NASTY[0] in hostile.text and "x" * 2001 not in hostile.text


def test_charts_of_little_and_of_odd_values() -> None:
    assert doctest.testmod(charts).failed == 0
    one = charts.curve_chart("one epoch", [(1.0, 0.5)], "epoch")
    assert [text for _, text in one.x.ticks] == ["1"] and len(one.y.ticks) >= 2
    for low, high in ((0, 0), (-3, -3), (1e-9, 2e-9), (0, 1e30), (-5, 1234), (0.1, 0.1000001)):
        ticks = charts.round_ticks(low, high, 4)
        near = 1e-9 * (ticks[-1] - ticks[0])
        assert ticks[0] - near <= low <= high <= ticks[-1] + near and 2 <= len(ticks) <= 7, (low, high)
        words = charts.tick_words(ticks)
        assert len(set(words)) == len(words) and max(map(len, words)) <= 10
    long = charts.curve_chart("long", [(float(n), n**0.5) for n in range(1, 5001)], "epoch")
    assert long.marks[0].path.count("L") == 399 and len(long.marks) == 1


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Any, Any]]:
    """Runs a command line; gives its exit code and what it printed."""

    def run(*words: str) -> tuple[Any, Any]:
        monkeypatch.setattr(sys, "argv", ["plbench", *words])
        code: Any = 0
        try:
            main()
        except SystemExit as leave:
            code = leave.code or 0
        return code, capsys.readouterr()

    return run


def test_the_command_writes_opens_and_refuses(
    folder: Path, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: bool(opened.append(address)) or len(opened) == 1)
    monkeypatch.setenv("PLBENCH_CACHE", str(tmp_path / "cache"))
    where = ["--runs", str(workspace.store.runs), "-q"]
    code, said = command("show", folder.name[:6], *where)
    assert code == 0 and said.out == f"Page: {folder / 'page.html'}\n"
    assert opened == [(folder / "page.html").as_uri()]
    out = tmp_path / "deep" / "run.html"
    code, said = command("show", str(folder), "--out", str(out), *where)
    assert "No browser was found" in said.out and len(opened) == 2
    assert "../store/runs" in out.read_text(encoding="utf-8")  # the table of all classes, as seen from there
    code, said = command("show", folder.name, "--no-open", "--json", *where)
    content = json.loads(said.out)
    assert content == {"run": folder.name, "page": str(folder / "page.html"), "opened": False} and len(opened) == 2
    code, said = command("show", folder.name, "--out", "page.txt", *where)
    assert code == 2 and "--out page.txt: a page is an HTML file" in said.err
    code, said = command("show", "zz", *where)
    assert code == 2 and "there is no run 'zz'" in said.err
    with pytest.raises(PlbenchError, match="could not write"):
        write_page(folder, workspace, folder / "record.json" / "page.html")


# ---- in a browser


@pytest.fixture
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("there is no Chromium; apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield started
        started.close()


def test_in_a_browser(folder: Path, workspace: Workspace, browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accessible and no wider than the window on phones and desktops, light and dark; sorts; loads nothing."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    path = write_page(folder, workspace)
    complaints: list[str] = []
    requests: set[str] = set()

    def visit(address: str, **options: Any) -> Any:
        opened = browser.new_context(reduced_motion="reduce", **options).new_page()
        opened.set_default_timeout(10_000)
        opened.on("console", lambda message: complaints.append(message.text))
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on("request", lambda request: requests.add(request.url.partition("#")[0].partition(",")[0]))
        opened.goto(address)
        return opened

    for width, scheme in ((1280, "light"), (390, "dark")):
        opened = visit(path.as_uri(), color_scheme=scheme, viewport={"width": width, "height": 900})
        opened.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")
        found = axe.Axe().run(opened).response["violations"]
        assert [(each["id"], [node["html"] for node in each["nodes"][:2]]) for each in found] == []
    table = "table[data-key=classes]"
    names = f"{table} tbody th"
    falling = opened.locator(names).all_text_contents()
    opened.locator(f"{table} th[data-key=ap] button").focus()
    opened.keyboard.press("Enter")
    assert opened.locator(f"{table} th[data-key=ap]").get_attribute("aria-sort") == "descending"
    assert opened.locator(names).all_text_contents() == falling
    opened.keyboard.press("Enter")
    assert opened.locator(names).all_text_contents() == falling[::-1]
    link = opened.url
    opened.click("a[href='#cost']")
    assert opened.locator(names).all_text_contents() == falling[::-1]
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = opened.evaluate(paper)
    opened.click("#theme")
    assert opened.evaluate(paper) != dark
    opened.emulate_media(media="print")
    assert opened.evaluate(paper) == "rgb(255, 255, 255)" and not opened.locator("nav").is_visible()
    again = visit(link)
    assert again.locator(names).all_text_contents() == falling[::-1]
    assert again.evaluate("[...document.images].every((each) => each.complete && each.naturalWidth)")
    without = visit(path.as_uri(), java_script_enabled=False)
    assert without.locator(f"{names}:visible").count() == 6 and not without.locator("#theme").is_visible()
    files = with_classes(read_files(folder), NASTY * 15)
    monkeypatch.setattr(page, "read_files", lambda folder: files)
    hostile = visit(write_page(folder, workspace).as_uri())
    assert hostile.evaluate("window.pwned") is None and hostile.locator(f"{table} tbody tr").count() == 50
    assert complaints == [] and requests <= {path.as_uri(), "data:", "data:image/jpeg;base64"}

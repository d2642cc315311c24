from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from plbench.api import ImageFiles, LabelledSplit, PartialLabels
from plbench.cli import main
from plbench.runs.inspect.pictures import contact_sheet
from plbench.runs.listing import runs as listed_runs

CATEGORIES = {3: "bird", 7: "cat", 20: "dog", 21: "cow", 90: "hair drier"}  # ids with gaps
NUM_IMAGES = {"train": 24, "val": 16}
QUICK = ["--recipe", "quick", "--backbone", "test_resnet", "--weights", "random", "--image-size", "32"]
SHORT = [*QUICK, "--epochs", "1", "--workers", "0"]


def words_with(usual: Sequence[object], *given: object) -> list[object]:
    """The words of a command line: the usual `--option value` pairs but for those given anew, and those given."""
    pairs = zip(usual[::2], usual[1::2], strict=True)
    return [word for pair in pairs if pair[0] not in given for word in pair] + list(given)


@dataclass(frozen=True)
class Outcome:
    """What a command left behind: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as JSON without NaN; fails if there is anything else in it."""
        assert self.code == 0, self.err
        return json.loads(self.out, parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))


def plbench(*arguments: object) -> Outcome:
    """Runs `plbench ARGUMENTS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["plbench", *map(str, arguments)]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), patch.object(sys, "argv", argv):
        try:
            main()
        except SystemExit as leave:
            return Outcome(int(leave.code or 0), out.getvalue(), err.getvalue())
    return Outcome(0, out.getvalue(), err.getvalue())


def write_coco(root: Path, year: int = 2017) -> Path:
    """A COCO folder: 32 px photographs of noise; image 0 of each split has no annotation, the others repeat theirs."""
    for name, content in coco_files(year).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@functools.cache
def coco_files(year: int) -> dict[str, bytes]:
    """What a COCO folder holds, made once for the hundreds of folders that tests write."""
    files = {}
    for split, number in NUM_IMAGES.items():
        rng = np.random.default_rng(number)
        content: dict[str, Any] = {"images": [], "annotations": []}
        for image in range(number):
            kind = "png" if image % 3 else "jpeg"
            name, encoded = f"{image:012d}.{kind.replace('e', '')}", io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(encoded, kind)
            files[f"{split}{year}/{name}"] = encoded.getvalue()
            content["images"].append({"id": image, "file_name": name, "width": 32, "height": 32})
            present = rng.choice(list(CATEGORIES), rng.integers(1, 4), replace=False) if image else []
            content["annotations"] += [
                {"id": 0, "image_id": image, "category_id": int(c), "iscrowd": 0, "segmentation": [[1, 2, 3, 4]]}
                for c in [*present, *present]
            ]
        content["categories"] = [{"id": identity, "name": name} for identity, name in CATEGORIES.items()]
        files[f"annotations/instances_{split}{year}.json"] = json.dumps(content).encode()
    return files


@dataclass(frozen=True)
class Bench:
    """A tiny COCO folder and a runs folder."""

    data: Path
    runs: Path

    def run(self, method: str, *options: object) -> Outcome:
        """A run on the tiny data under FPC-4."""
        where = ["--dataset", "coco2017", "--data-root", self.data, "--simulate", "fpc=4"]
        return plbench("run", *words_with(["--method", method, *where, *SHORT], *options))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Runs and cache are shared by this file's tests: what one has made, the next one finds."""
    top = tmp_path_factory.mktemp("cli")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PLBENCH_CACHE", str(top / "cache"))
        patched.setenv("PLBENCH_RUNS", str(top / "runs"))
        yield Bench(write_coco(top / "coco"), top / "runs")


@pytest.fixture(scope="module")
def compared(bench: Bench) -> list[dict[str, Any]]:
    """Records of two methods with two seeds each."""
    methods = [("ce-negative", seed) for seed in (0, 1)] + [("pasl-negative", seed) for seed in (0, 1)]
    return [bench.run(method, "--seed", seed, "--json").json for method, seed in methods]


def num_positives(data: Path, split: str) -> Counter[int]:
    """Images that each category is in, and under the key 0 the images that have any."""
    content = json.loads((data / "annotations" / f"instances_{split}2017.json").read_text())
    cells = {(entry["image_id"], entry["category_id"]) for entry in content["annotations"]}
    return Counter(category for _, category in cells) + Counter({0: len({image for image, _ in cells})})


@pytest.mark.parametrize("regime", ["probe", "finetune"])
def test_a_run_leaves_a_record_and_its_files(bench: Bench, regime: str) -> None:
    record = bench.run("selective", "--regime", regime, "-P", "top_k=2", "--json").json
    folder = bench.runs / record["key"]
    assert record == json.loads((folder / "record.json").read_text())
    assert record["status"] == "done" and record["spec"]["regime"] == regime
    assert record["spec"]["protocol"]["name"] == "custom/coco2017-fpc4"  # a small copy is not COCO
    assert 0 <= record["metrics"]["test"]["map_c"]["value"] <= 100
    assert record["data"]["num_train"] == 23 and record["data"]["num_test"] == 15
    assert {path.name for path in folder.iterdir()} == {*record["files"], "record.json"}
    assert (bench.runs / record["spec"]["stages"]["prior"] / "record.json").is_file()
    assert not list(bench.runs.rglob("*.tmp")) and not list(bench.runs.glob(".*"))


def test_a_run_written_down_is_the_same_run(bench: Bench) -> None:
    record = bench.run("ce-negative", "--json").json
    spec = bench.runs / record["key"] / "spec.toml"
    said = plbench("run", "--config", spec, "--data-root", bench.data)
    assert said.code == 0 and "finished already" in said.out and record["key"] in said.out
    again = plbench("run", "--config", spec, "--data-root", bench.data, "--workers", 0, "--force", "--json").json
    assert again["key"] == record["key"]
    assert again["metrics"] == record["metrics"]


@pytest.mark.parametrize(
    "option",
    [
        ["--method", "selective"],
        ["--seed", "3"],
        ["--seed", "0"],
        ["--selection", "last"],
        ["--weight-decay", "0"],
        ["--weights", "packaged"],
        ["--no-retrain"],
        ["--schedule", "constant"],
        ["--horizontal-flip", "0"],
    ],
)
def test_what_would_change_a_run_written_down_is_refused(bench: Bench, option: list[str]) -> None:
    spec = bench.runs / bench.run("ce-negative", "--json").json["key"] / "spec.toml"
    said = plbench("run", "--config", spec, "--data-root", bench.data, *option)
    assert said.code == 2 and option[0] in said.err


def test_a_model_that_is_not_trained_again_is_marked_wherever_it_is_shown(bench: Bench) -> None:
    chosen = ["--selection", "validation", "--no-retrain", "--simulate", "rpa=0.2"]
    said = bench.run("ce-negative", *chosen)
    assert said.code == 0, said.err
    assert "Note: selection=validation-no-retrain" in said.out and "on custom/coco2017" in said.out
    following = next(line for line in said.out.splitlines() if line.startswith("Next: plbench run"))
    assert "--selection validation --no-retrain" in following
    key = bench.run("ce-negative", *chosen, "--json").json["key"]
    listed = plbench("runs", "list").out
    assert "ce-negative (selection=validation-no-retrain)" in listed
    assert "(selection=validation-no-retrain)" in plbench("runs", "compare", key).out
    assert "selection: validation-no-retrain" in plbench("runs", "show", key).out


def test_a_second_time_it_is_done_already(bench: Bench) -> None:
    key = bench.run("ce-negative", "--json").json["key"]
    path = bench.runs / key / "record.json"
    before = path.stat().st_mtime_ns
    said = bench.run("ce-negative")
    assert said.code == 0 and "finished already" in said.out and str(path) in said.out
    assert all("Note:" in line for line in said.err.splitlines()) and path.stat().st_mtime_ns == before


def test_force_repeats_it_to_the_bit(bench: Bench) -> None:
    first = bench.run("ce-negative", "--json").json
    path = bench.runs / first["key"] / "record.json"
    before = path.stat().st_mtime_ns
    second = bench.run("ce-negative", "--force", "--json").json
    assert path.stat().st_mtime_ns != before
    for name in ("key", "metrics", "hidden_truth"):
        assert first[name] == second[name]
    assert first["files"]["cells.npz"] == second["files"]["cells.npz"]


def test_a_plan_says_what_would_run_and_runs_nothing(bench: Bench) -> None:
    plan = bench.run("selective", "--seed", 77, "--dry-run", "--json").json
    assert plan["spec"]["seed"] == 77 and plan["seconds"] >= 0
    said = bench.run("selective", "--seed", 77, "--dry-run")
    assert "stage prior: CE, Ignore" in said.out and not (bench.runs / plan["spec"]["stages"]["prior"]).exists()


def test_the_next_command_that_is_named_works_as_it_stands(bench: Bench, tmp_path: Path) -> None:
    said = plbench(
        *("run", "--method", "ce-ignore", "--dataset", "coco2017", "--data-root", bench.data, "--simulate", "rpa=0.5"),
        *(*SHORT, "--batch-size", "8", "--lr", "0.01", "--runs", tmp_path / "my runs"),
    )
    steps = re.findall(r"^Next: plbench (.*)$", said.out, flags=re.MULTILINE)
    assert len(steps) == 2
    assert [plbench(*shlex.split(step)).code for step in steps] == [0, 0]
    settings = plbench("runs", "compare", "--runs", tmp_path / "my runs", "--json").json
    assert [len(setting["rows"]) for setting in settings] == [2]  # the two can be compared


def test_parameters_are_typed(bench: Bench) -> None:
    def spec(*options: str) -> dict[str, Any]:
        return dict(bench.run("selective", *options, "--dry-run", "--json").json["spec"])

    params = spec("-P", "top_k=2", "-P", "gamma_neg=1", "-P", "mode=likelihood", "--param", "clip=5e-2")["method"]
    assert params["params"]["top_k"] == 2 and isinstance(params["params"]["top_k"], int)
    assert params["params"]["gamma_neg"] == 1.0 and params["params"]["clip"] == 0.05
    assert params["params"]["mode"] == "likelihood"
    assert spec("-P", "gamma_neg=2") == spec("-P", "gamma_neg=2.0") != spec("-P", "gamma_neg=2.5")


def test_suggested_parameters_are_those_of_the_protocol(bench: Bench) -> None:
    where = ["run", "--method", "selective", "--dataset", "coco2017", "--data-root", bench.data, *SHORT]
    params = plbench(*where, "--simulate", "rpa=0.5", "--dry-run", "--json").json["spec"]["method"]["params"]
    assert params["gamma_neg"] == 1.0 and params["top_k"] == 5
    own = plbench(*where, "--simulate", "rpa=0.5", "-P", "gamma_neg=2", "--dry-run", "--json").json
    assert own["spec"]["method"]["params"]["gamma_neg"] == 2.0


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["methods", "show", "selectiv"], "selective"),
        (["data", "show", "scens"], "scenes"),
        (["data", "stats", "coco2018"], "coco2017"),
        (["run", "--method", "ce-ignor", "--dataset", "scenes"], "ce-ignore"),
        (["run", "--method", "ce-ignore", "--dataset", "scene"], "scenes"),
        (["data", "stats", "scenes", "--simulate", "fcp=4"], "fpc"),
    ],
)
def test_a_mistyped_name_is_guessed(
    arguments: list[str], meant: str, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plbench.datasets.scenes.Scenes.prepare", lambda self, report: None)
    said = plbench(*arguments)
    assert said.code == 2 and f"did you mean {meant}?" in said.err


@pytest.mark.parametrize("option", [["--backbone", "test_resne"], ["--recipe", "quik"], ["-P", "gamma_un=2"]])
def test_a_mistyped_option_is_guessed(bench: Bench, option: list[str]) -> None:
    said = bench.run("selective", *option)
    assert said.code == 2 and "did you mean" in said.err


def every_command(bench: Bench, key: str) -> dict[str, list[object]]:
    root = ["--data-root", bench.data]
    options = ["run", "--method", "ce-negative", "--dataset", "coco2017", *root, "--simulate", "fpc=4", *SHORT]
    return {
        "run": options,
        "run --force": [*options, "--force"],
        "run --dry-run": [*options, "--dry-run"],
        "methods list": ["methods", "list"],
        "methods show": ["methods", "show", "selective"],
        "data list": ["data", "list", *root],
        "data show": ["data", "show", "coco2017", *root],
        "data show --out": ["data", "show", "coco2017", *root, "--out", bench.data / "sheet.png", "--number", 2],
        "data stats": ["data", "stats", "coco2017", *root, "--simulate", "fpc=4"],
        "runs list": ["runs", "list"],
        "runs list --to": ["runs", "list", "--to", bench.data / "runs.csv"],
        "runs show": ["runs", "show", key[:8]],
        "runs show --class": ["runs", "show", key, "--class", "cat"],
        "runs compare": ["runs", "compare"],
        "predict": ["predict", key, bench.data / "val2017", "--out", bench.data / "scores.csv", "--top-k", 2],
        "pseudo-label": ["pseudo-label", key, "--out", bench.data / "more.csv", "--rule", "top=0.1", *root],
        "data issues": ["data", "issues", "coco2017", *root, "--simulate", "rpa=0.3", "--folds", 2, *SHORT],
        "doctor": ["doctor", *root],
    }


COMMANDS = list(every_command(Bench(Path(), Path()), ""))


@pytest.mark.parametrize("command", COMMANDS)
def test_json_is_all_that_standard_output_holds(command: str, bench: Bench, compared: list[dict[str, Any]]) -> None:
    content = plbench(*every_command(bench, compared[0]["key"])[command], "--json").json
    assert content  # some of it: an empty list would be no test


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_speaks_to_people_too(command: str, bench: Bench, compared: list[dict[str, Any]]) -> None:
    said = plbench(*every_command(bench, compared[0]["key"])[command])
    assert said.code == 0
    lines = [line for line in said.out.splitlines() if not line.startswith(("Next:", "Record:", "To "))]
    assert lines and max(map(len, lines)) <= 160
    assert not re.search(r"[{}]|\b(None|nan)\b", said.out)  # what Python prints is not for people


def test_predictions_have_the_labels_that_were_asked_for(bench: Bench, tmp_path: Path) -> None:
    record = bench.run("ce-negative", "--simulate", "rpa=0.2", "--json").json
    out = tmp_path / "deep" / "scores.csv"
    words = ["predict", record["key"], bench.data / "val2017", "--out", out, "--workers", 0]
    assert plbench(*words, "--threshold", "validation", "--json").json["images"] == 16
    rows = list(csv.DictReader(io.StringIO(out.read_text(encoding="utf-8"))))
    assert list(rows[0]) == ["image", "labels", *CATEGORIES.values()]
    table = list(csv.DictReader(io.StringIO((bench.runs / record["key"] / "per_class.csv").read_text("utf-8"))))
    for row in rows:
        chosen = [own["class_name"] for own in table if float(row[own["class_name"]]) >= float(own["threshold"])]
        assert row["labels"] == ";".join(chosen)
    assert any(row["labels"] for row in rows)
    assert plbench(*words, "--threshold", "1.5").err.startswith("plbench: error: --threshold 1.5: give a number")
    (bench.data / "val2017" / "broken.jpg").write_bytes(b"no image")
    try:
        said = plbench(*words)
        assert said.code == 2 and "broken.jpg cannot be read" in said.err and "--skip-unreadable" in said.err
        skipped = plbench(*words, "--skip-unreadable").out
        assert "scores of 16 images" in skipped and "Skipped: image" in skipped
    finally:
        (bench.data / "val2017" / "broken.jpg").unlink()


def test_methods_are_described(bench: Bench) -> None:
    listed = {row["name"]: row for row in plbench("methods", "list", "--json").json}
    assert {"ce-ignore", "selective"} <= listed.keys() and listed["ce-ignore"]["needs"] == "verified negatives"
    shown = plbench("methods", "show", "selective", "--json").json
    top_k = next(row for row in shown["params"] if row["name"] == "top_k")
    assert top_k["default"] == 5 and top_k["type"] == "int" and top_k["valid"] == "≥ 0"
    assert "2110.10955" in plbench("methods", "show", "selective").out


def test_data_that_is_missing_is_listed_with_how_to_get_it(bench: Bench, tmp_path: Path) -> None:
    rows = {row["name"]: row for row in plbench("data", "list", "--data-root", tmp_path, "--json").json}
    assert rows["coco2017"]["state"] == "missing" and "cocodataset.org" in rows["coco2017"]["get"]
    rows = {row["name"]: row for row in plbench("data", "list", "--data-root", bench.data, "--json").json}
    assert rows["coco2017"]["state"] == "here" and rows["coco2017"]["get"] is None
    assert rows["coco"]["state"] == "missing"


def test_doctor_names_what_is_missing_and_what_mends_it(bench: Bench, tmp_path: Path) -> None:
    report = plbench("doctor", "--data-root", tmp_path, "--json").json
    checks = {check["check"]: check for check in report["checks"]}
    assert checks["runs folder"]["well"] and str(bench.runs) in checks["runs folder"]["found"]
    assert not checks["data coco"]["well"] and "cocodataset.org" in checks["data coco"]["fix"]
    assert report["environment"]["device"]


@pytest.mark.parametrize(("images", "columns", "lines"), [(6, 3, 2), (2, 2, 1), (400, 6, 4)])
def test_a_contact_sheet_is_a_picture_of_the_images(
    images: int, columns: int, lines: int, bench: Bench, tmp_path: Path
) -> None:
    sheet = tmp_path / "deep" / "sheet.png"
    options = ["--data-root", bench.data, "--out", sheet, "--number", images, "--split", "train"]
    assert plbench("data", "show", "coco2017", *options).code == 0
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"
        assert picture.size == (8 + columns * (176 + 8), 8 + lines * (176 + 8 + 6 * 15))
        assert len(np.unique(np.asarray(picture))) > 100  # noise, not an empty page
    first = sheet.read_bytes()
    plbench("data", "show", "coco2017", *options)
    assert sheet.read_bytes() == first


@pytest.mark.parametrize("size", [(3, 9), (9, 3), (32, 32), (500, 300), (300, 900)])
def test_an_image_of_any_shape_stays_in_its_place(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", size, (200, 0, 0)).save(tmp_path / "red.png")
    labels = PartialLabels.from_dense(np.array([[1, -1]], np.int8), ["a", "b"])
    contact_sheet(LabelledSplit(ImageFiles(tmp_path, ("red.png",), ("red",)), labels), tmp_path / "sheet.png", 1)
    with Image.open(tmp_path / "sheet.png") as sheet:
        red = np.argwhere(np.asarray(sheet)[:, :, 1] != np.asarray(sheet)[:, :, 0])  # captions are grey
    assert red.min() == 8 and red.max() == 8 + 176 - 1
    assert np.ptp(red[:, 0]) / np.ptp(red[:, 1]) == pytest.approx(size[1] / size[0], rel=0.05)


@pytest.mark.parametrize(("simulate", "limit"), [("none", 1000), ("fpc=4", 4)])
def test_stats_count_what_the_annotations_say(simulate: str, limit: int, bench: Bench) -> None:
    stats = plbench("data", "stats", "coco2017", "--data-root", bench.data, "--simulate", simulate, "--json").json
    train, test = num_positives(bench.data, "train"), num_positives(bench.data, "val")
    assert (train[0], test[0]) == (23, 15)
    expected = {
        name: {
            "class": name,
            "id": str(identity),
            "train_positives": min(limit, train[identity]),
            "train_negatives": min(limit, train[0] - train[identity]),
            "test_positives": test[identity],
            "test_negatives": test[0] - test[identity],
        }
        for identity, name in CATEGORIES.items()
    }
    assert {row["class"]: row for row in stats["classes"]} == expected
    splits = {row["split"]: row for row in stats["splits"]}
    known = sum(row["train_positives"] + row["train_negatives"] for row in expected.values())
    assert splits["train"]["known"] == known and splits["train"]["images"] == 23
    assert splits["train"]["density_percent"] == pytest.approx(100 * known / (23 * 5), abs=1e-3)
    positives = sum(row["test_positives"] for row in expected.values())
    assert splits["test"]["positives_per_image"] == pytest.approx(positives / 15, abs=1e-4)
    assert stats["protocol"].startswith("custom/")  # as a run on these files would be


def class_average(folder: Path) -> float:
    """mAP(C) by its definition, from the per-class table of a run."""
    with (folder / "per_class.csv").open() as file:
        return float(np.mean([float(row["ap"]) for row in csv.DictReader(file) if row["ap"]]))


def test_compare_shows_means_over_seeds(bench: Bench, compared: list[dict[str, Any]]) -> None:
    keys = [record["key"] for record in compared]
    (setting,) = plbench("runs", "compare", *keys, "--json").json
    assert setting["protocol"] == "custom/coco2017-fpc4" and setting["regime"] == "probe"
    means = {
        "ce-negative": np.mean([class_average(bench.runs / key) for key in keys[:2]]),
        "pasl-negative": np.mean([class_average(bench.runs / key) for key in keys[2:]]),
    }
    rows = {row["method"]: row for row in setting["rows"]}
    for method, mean in means.items():
        assert rows[method]["figures"]["map_c"]["mean"] == pytest.approx(mean, abs=1e-4)
        assert rows[method]["seeds"] == [0, 1] and rows[method]["num_classes_scored"] == 5
    best, other = setting["rows"]
    assert best["difference"] is None and best["p_value"] is None
    gap = means[other["method"]] - means[best["method"]]
    assert gap <= 0 and other["difference"]["mean"] == pytest.approx(gap, abs=1e-4)
    assert other["difference"]["low"] <= other["difference"]["high"]
    assert other["p_value"] is None  # two seeds are too few to test
    said = plbench("runs", "compare", *keys)
    assert f"{means[best['method']]:.2f}" in said.out and f"{gap:+.2f}" in said.out


def test_compare_pairs_two_single_runs_by_test_image(bench: Bench, compared: list[dict[str, Any]]) -> None:
    pair = compared[0], compared[2]
    (setting,) = plbench("runs", "compare", *(record["key"] for record in pair), "--json").json
    best, other = setting["rows"]
    drawn = {}
    for row in (best, other):
        folder = bench.runs / row["keys"][0]
        figure, value = row["figures"]["map_c"], class_average(folder)
        table = np.genfromtxt(folder / "replicates.csv", delimiter=",", names=True)
        drawn[row["method"]] = table["map_c"]
        assert figure["mean"] == pytest.approx(value, abs=1e-4)
        # one run: the images alone, on the scale of log odds
        assert figure["low"] < value < figure["high"]
        half = 1.96 * table["map_c"].std(ddof=1)
        assert figure["high"] - figure["low"] == pytest.approx(2 * half, rel=0.15)
    half = 1.96 * (drawn[other["method"]] - drawn[best["method"]]).std(ddof=1)
    gap = other["difference"]
    assert other["p_value"] is None  # one seed each: nothing says what other trainings would give
    assert [gap["low"], gap["high"]] == pytest.approx([gap["mean"] - half, gap["mean"] + half], abs=1e-3)


def test_compare_keeps_settings_apart(bench: Bench, compared: list[dict[str, Any]]) -> None:
    finetuned = bench.run("ce-negative", "--regime", "finetune", "--json").json["key"]
    settings = plbench("runs", "compare", compared[0]["key"], finetuned, "--json").json
    assert {setting["regime"] for setting in settings} == {"probe", "finetune"}
    said = plbench("runs", "compare", "--dataset", "scenes")
    assert said.code == 2 and "no finished runs" in said.err


def test_runs_are_found_by_key_start_and_folder(bench: Bench, compared: list[dict[str, Any]]) -> None:
    key = compared[0]["key"]
    for name in (key, key[:6], bench.runs / key, bench.runs / key / "record.json"):
        assert plbench("runs", "show", name, "--json").json["key"] == key
    assert {record["key"] for record in plbench("runs", "list", "--json").json} >= {key}
    assert key in plbench("runs", "list").out
    rows = plbench("runs", "show", key, "--class", "hair drier", "--json").json
    assert [row["class_id"] for row in rows] == ["90"]


@pytest.mark.parametrize("ending", ["csv", "parquet", "PARQUET"])
def test_a_table_of_runs_is_the_frame_of_the_python_api(bench: Bench, tmp_path: Path, ending: str) -> None:
    assert bench.run("ce-negative").code == 0
    path, expected = tmp_path / "new" / f"runs.{ending}", listed_runs(bench.runs)
    said = plbench("runs", "list", "--to", path, "--json").json
    assert said == {"to": str(path), "runs": len(expected)} and len(expected) > 0
    read = pd.read_csv if ending == "csv" else pd.read_parquet
    pd.testing.assert_frame_equal(read(path).set_index("key"), expected, check_dtype=False)


def test_a_table_of_runs_needs_a_name_that_says_its_kind(bench: Bench, tmp_path: Path) -> None:
    said = plbench("runs", "list", "--to", tmp_path / "runs.txt")
    assert said.code == 2 and said.err.endswith("runs.txt: its name must end in .csv or .parquet\n")
    assert plbench("runs", "list", "--runs", tmp_path, "--to", tmp_path / "none.parquet").code == 0
    assert list(pd.read_parquet(tmp_path / "none.parquet").columns)[:2] == ["key", "method"]


def test_no_runs_yet_is_said(bench: Bench, tmp_path: Path) -> None:
    said = plbench("runs", "list", "--runs", tmp_path)
    assert said.code == 0 and "plbench run" in said.out
    assert plbench("runs", "list", "--runs", tmp_path, "--json").json == []


@pytest.mark.parametrize("command", ["", "methods", "data", "runs", *sorted({c.partition(" --")[0] for c in COMMANDS})])
def test_every_command_has_help(command: str) -> None:
    said = plbench(*command.split(), "--help")
    assert said.code == 0 and said.out.startswith("Usage: ") and said.err == ""


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "plbench", "--help"]
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
    modules = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in modules  # the listing was read right
    assert not modules & {"torch", "torchvision", "timm", "numpy", "scipy", "pydantic", "PIL"}
    assert min(seconds) < 0.5


def test_the_version_is_that_of_the_package() -> None:
    from plbench import __version__

    assert plbench("--version").out == f"plbench {__version__}\n"


def test_files_that_are_not_right_hide_no_other_dataset(tmp_path: Path) -> None:
    (tmp_path / "prepared.json").write_text("{")
    rows = {row["name"]: row for row in plbench("data", "list", "--data-root", tmp_path, "--json").json}
    assert rows["lvis"]["state"] == "not usable" and "plbench data prepare" in rows["lvis"]["get"]
    shown = plbench("data", "show", "lvis", "--data-root", tmp_path, "--json").json
    assert shown["state"] == "not usable" and shown["protocols"][0]["name"] == "lvis/v1"

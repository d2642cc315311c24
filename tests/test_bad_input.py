"""Whatever a person gets wrong is one sentence, exit code 2, and nothing half-written left behind."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from test_cli import SHORT, Bench, Outcome, plbench, words_with, write_coco

from plbench.datasets.coco import Coco2017

IMAGE = "000000000003.jpg"  # with an annotation, in both splits


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A tiny COCO folder, and runs and cache of one test's own."""
    monkeypatch.setenv("PLBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PLBENCH_RUNS", str(tmp_path / "runs"))
    return Bench(write_coco(tmp_path / "coco"), tmp_path / "runs")


def sentence(said: Outcome) -> str:
    """The one line that says what was wrong; only progress may stand before it."""
    assert said.code == 2 and said.out == "", said
    lines = [line for line in said.err.splitlines() if not re.match(r"\[ *\d+\.\d s\] ", line)]
    assert len(lines) == 1 and lines[0].startswith("plbench: error: "), said.err
    assert said.err.splitlines()[-1] == lines[0] and len(lines[0]) < 700
    return lines[0]


def leftovers(bench: Bench) -> list[Path]:
    """Whatever lies in the runs folder, and files of the cache that are not whole."""
    cache = [path for path in (bench.runs.parent / "cache").rglob("*") if path.suffix in (".tmp", ".partial")]
    return [*bench.runs.rglob("*"), *cache]


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def annotations(bench: Bench, split: str) -> Path:
    return bench.data / "annotations" / f"instances_{split}2017.json"


OPTIONS = {
    "parameter that is not there": (["-P", "gamma=1"], ["no parameter 'gamma'", "did you mean gamma_"]),
    "parameter too small": (["-P", "gamma_neg=-1"], ["gamma_neg = '-1'", "greater than or equal to 0"]),
    "parameter too large": (["-P", "eta=1.5"], ["eta = '1.5'", "less than or equal to 1"]),
    "parameter infinite": (["-P", "gamma_neg=inf"], ["gamma_neg = 'inf'", "finite"]),
    "parameter of another type": (["-P", "gamma_neg=big"], ["gamma_neg = 'big'", "expected a number"]),
    "parameter not whole": (["-P", "top_k=1.5"], ["top_k = '1.5'", "expected a whole number"]),
    "parameter of no kind": (["-P", "mode=all"], ["mode = 'all'", "'likelihood'"]),
    "parameter without value": (["-P", "top_k"], ["'top_k' is not of the form name=value"]),
    "parameter twice": (["-P", "top_k=1", "-P", "top_k=2"], ["top_k is given twice"]),
    "K above the number of classes": (["-P", "top_k=6"], ["top_k = 6", "exceeds the 5 classes", "N up to 5"]),
    "top of the prior above it": (["-P", "eta_top=6"], ["eta_top = 6", "exceeds the 5 classes"]),
    "unknown simulation": (["--simulate", "fcp=3"], ["no simulation 'fcp'", "did you mean fpc?"]),
    "simulation of nothing": (["--simulate", "fpc=0"], ["'fpc=0'", "at least 1, not 0"]),
    "simulation of no number": (["--simulate", "rpa=half"], ["rpa needs a number, not 'half'"]),
    "simulation out of range": (["--simulate", "rpa=1.5"], ["from 0 to 1, not 1.5"]),
    "unknown recipe": (["--recipe", "quikc"], ["no recipe 'quikc'", "did you mean quick?"]),
    "no epochs": (["--epochs", "0"], ["epochs = 0", "greater than or equal to 1"]),
    "absurd epochs": (["--epochs", "9" * 30], ["epochs = 9", "less than or equal to 1000000"]),
    "absurd head": (["--head", "mlp", "--head-width", "9" * 12], ["head_width = 9", "less than or equal to 65536"]),
    "negative epochs": (["--epochs", "-1"], ["epochs = -1"]),
    "no rate": (["--lr", "nan"], ["lr = nan", "finite"]),
    "rate of zero": (["--lr", "0"], ["lr = 0.0", "greater than 0"]),
    "negative decay": (["--weight-decay", "-1"], ["weight_decay = -1.0"]),
    "no batch": (["--batch-size", "0"], ["batch_size = 0"]),
    "no pieces": (["--accumulate", "0"], ["accumulate = 0"]),
    "no norm": (["--clip-grad", "0"], ["clip_grad = 0.0"]),
    "pretraining of weights that are known": (["--pretraining", "coco"], ["--pretraining", "--weights FILE"]),
    "unknown optimiser": (["--optimizer", "lamb"], ["optimizer = 'lamb'", "'adamw'"]),
    "unknown schedule": (["--schedule", "linear"], ["schedule = 'linear'", "step=10,15,factor=0.1"]),
    "momentum of Adam": (["--momentum", "0.5"], ["momentum = 0.5", "only sgd has it"]),
    "flip of features": (["--horizontal-flip", "0.5"], ["--horizontal-flip 0.5 is for images", "--regime finetune"]),
    "crop of features": (["--random-resized-crop", "0.3"], ["--random-resized-crop 0.3", "--regime finetune"]),
    "no retraining of nothing": (["--no-retrain"], ["--no-retrain", "--selection validation"]),
    "head of a head": (["--head-lr-multiplier", "10"], ["--head-lr-multiplier 10.0", "--regime finetune"]),
    "no head": (["--head-width", "0"], ["head_width = 0"]),
    "attention of a head without any": (["--head-lambda", "1"], ["head_lambda = 1.0", "only csra has it"]),
    "temperature of nothing": (
        ["--head", "csra", "--head-temperatures", "1,0"],
        ["head_temperatures = '1,0'", "above 0", "1,2,4,max"],
    ),
    "pooling of a map": (["--head", "csra", "--pooling", "mean"], ["head = 'csra'", "the whole feature map"]),
    "map of a pooled head": (["--pooling", "none"], ["head = ", "needs pooled features"]),
    "width of heads": (["--head", "ml-decoder", "--head-width", "12"], ["head_attention_heads", "multiple of 8 heads"]),
    "images too small": (["--image-size", "4"], ["image_size = 4"]),
    "unknown device": (["--device", "gpu"], ["device 'gpu' cannot be used here (available: cpu"]),
    "no device": (["--device", ""], ["device '' cannot be used here"]),
    "device without memory": (["--device", "meta"], ["device 'meta' cannot be used here"]),
    "unknown backbone": (["--backbone", "test_resnett"], ["'test_resnett' is not a timm model", "did you mean test_r"]),
    "weights of another": (["--weights", "packaged"], ["packaged weights are those of", "not of test_resnet"]),
    "weights not there": (["--weights", "nowhere.pt"], ["weights file nowhere.pt does not exist"]),
    "method not there": (["--method", "selectiv"], ["no method 'selectiv'", "did you mean selective?"]),
    "dataset not there": (["--dataset", "coco2018"], ["no dataset 'coco2018'", "did you mean coco2017?"]),
    "data not there": (
        ["--data-root", "/no/such/folder"],
        ["annotations/instances_train2017.json", "val2017", "not found in /no/such/folder", "cocodataset.org"],
    ),
    "plugin not there": (["--plugin", "mine.py"], ["plugin file mine.py does not exist"]),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_cannot_be(name: str, bench: Bench) -> None:
    options, says = OPTIONS[name]
    text = sentence(bench.run("selective", *options))
    assert all(part in text for part in says), text
    assert leftovers(bench) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--epochs", "many"],
        ["run", "--seed", "-1"],
        ["run", "--workers", "-1"],
        ["run", "--regime", "zero-shot"],
        ["run", "--selection", "best"],
        ["run", "--selection", "validation-no-retrain"],
        ["run", "--precision", "int4"],
        ["run", "--epoch-count", "3"],
        ["data", "show", "scenes", "--number", "0"],
        ["methods", "show"],
        ["train"],
        ["runs", "delete"],
    ],
)
def test_an_option_of_the_wrong_kind_is_a_usage_error(arguments: list[str], bench: Bench) -> None:
    said = plbench(*arguments)
    assert said.code == 2 and said.out == ""
    lines = said.err.splitlines()
    assert lines[0].startswith("Usage: ") and lines[-1].startswith("Error: ") and len(lines) <= 4
    assert leftovers(bench) == []


@pytest.mark.parametrize(("options", "says"), [([], "--method is missing"), (["-m", "selective"], "--dataset is")])
def test_a_run_of_nothing(options: list[str], says: str, bench: Bench) -> None:
    assert says in sentence(plbench("run", *options))


def test_a_method_that_needs_negatives_where_there_are_none(bench: Bench) -> None:
    text = sentence(bench.run("ce-ignore", "--simulate", "single-positive"))
    assert "'ce-ignore' needs verified negatives" in text and "plbench methods list" in text
    text = sentence(bench.run("selective", "--simulate", "single-positive"))
    assert "learns from verified negatives" in text and "-P mode=likelihood" in text
    assert leftovers(bench) == []


class TestWeights:
    def test_a_file_that_holds_no_weights(self, bench: Bench, tmp_path: Path) -> None:
        for name in ("notes.pt", "notes.safetensors"):
            (tmp_path / name).write_text("not weights")
            text = sentence(bench.run("ce-negative", "--weights", tmp_path / name))
            assert f"{name} is not a file of weights that can be read safely" in text
        assert leftovers(bench) == []

    def test_a_file_that_would_run_code(self, bench: Bench, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> tuple[Any, ...]:
                return os.system, (f"touch {tmp_path}/owned",)

        torch.save({"model": Evil()}, tmp_path / "evil.pt")
        text = sentence(bench.run("ce-negative", "--weights", tmp_path / "evil.pt"))
        assert "not a file of weights that can be read safely" in text and "weights_only" not in text
        assert not (tmp_path / "owned").exists() and leftovers(bench) == []

    def test_a_file_of_another_architecture(self, bench: Bench, tmp_path: Path) -> None:
        torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pt")
        text = sentence(bench.run("ce-negative", "--weights", tmp_path / "other.pt", "--regime", "finetune"))
        assert "other.pt does not fit the backbone" in text and "conv1" in text
        assert leftovers(bench) == []


class TestData:
    @pytest.mark.parametrize(
        "command",
        [["run", "--method", "selective", "--dataset"], ["data", "stats"], ["data", "show", "--out", "x.png"]],
    )
    def test_missing_files_are_named_with_what_gets_them(self, command: list[str], bench: Bench) -> None:
        shutil.rmtree(bench.data / "val2017")
        annotations(bench, "train").unlink()
        text = sentence(plbench(*command, "coco2017", "--data-root", bench.data))
        assert "needs annotations/instances_train2017.json, val2017, not found in" in text
        assert f"unzip them into {bench.data}" in text and "--data-root DIR" in text
        assert leftovers(bench) == []

    @pytest.mark.parametrize("command", ["run", "data stats", "data show"])
    @pytest.mark.parametrize("split", ["train", "val"])
    def test_truncated_annotations(self, command: str, split: str, bench: Bench) -> None:
        path = annotations(bench, split)
        path.write_bytes(path.read_bytes()[:-300])
        if command == "run":
            said = bench.run("selective")
        else:
            options = ["--out", bench.data / "sheet.png"] if command == "data show" else []
            said = plbench(*command.split(), "coco2017", "--data-root", bench.data, *options)
        text = sentence(said)
        assert f"{path} cannot be read as JSON: Input data was truncated; if it was downloaded, delete it and" in text
        assert "run plbench data download coco2017" in text
        assert leftovers(bench) == [] and not (bench.data / "sheet.png").exists()

    @pytest.mark.parametrize("damage", ["garbage", "cut", "gone", "folder"])
    def test_an_unreadable_image_is_named_before_training(self, damage: str, bench: Bench) -> None:
        path = bench.data / "val2017" / IMAGE
        raw = path.read_bytes()
        path.unlink()
        if damage == "folder":
            path.mkdir()
        elif damage != "gone":
            path.write_bytes(b"no picture" if damage == "garbage" else raw[: len(raw) // 2])
        text = sentence(bench.run("selective"))
        assert f"image {path} " in text and "(1 such images in all)" in text and "--skip-unreadable" in text
        assert leftovers(bench) == []

    @pytest.mark.parametrize("regime", ["probe", "finetune"])
    def test_unreadable_images_can_be_left_out(
        self, regime: str, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Coco2017, "official_num_images", {"train": 23, "test": 15})
        monkeypatch.setattr(Coco2017, "official_num_classes", 5)
        run = ["run", "--method", "ce-negative", "--dataset", "coco2017", "--data-root", bench.data, *SHORT]
        options = ["--regime", regime, "--skip-unreadable", "--json"]
        whole = plbench(*run, *options).json
        assert whole["spec"]["protocol"]["name"] == "coco2017-fpc1000/v2" and whole["data"]["skipped_images"] == 0
        for split in ("train", "val"):
            (bench.data / f"{split}2017" / IMAGE).write_bytes(b"no picture")
        (bench.data / "train2017" / "000000000006.jpg").unlink()
        record = plbench(*run, *options).json
        assert record["spec"]["protocol"]["name"] == "custom/coco2017-fpc1000"
        assert record["key"] != whole["key"] and record["spec"]["skipped_images"] == ["test/3", "train/3", "train/6"]
        assert record["data"]["skipped_images"] == 3
        assert (record["data"]["num_train"], record["data"]["num_test"]) == (21, 14)
        assert any("3 unreadable images were left out" in warning for warning in record["warnings"])

    @pytest.mark.parametrize(("regime", "workers"), [("probe", 0), ("finetune", 0), ("finetune", 1)])
    def test_an_image_that_breaks_after_it_was_checked(self, regime: str, workers: int, bench: Bench) -> None:
        options = ["--regime", regime, "--workers", workers]
        assert bench.run("ce-negative", *options).code == 0
        path = bench.data / "train2017" / IMAGE
        path.write_bytes(b"x" * path.stat().st_size)  # the fingerprint of a COCO folder goes by size
        shutil.rmtree(bench.runs)
        shutil.rmtree(bench.runs.parent / "cache" / "features", ignore_errors=True)
        text = sentence(bench.run("ce-negative", *options))
        assert f"image {path} cannot be read" in text
        assert leftovers(bench) == []

    def test_a_run_written_down_checks_its_images_too(self, bench: Bench, tmp_path: Path) -> None:
        key = bench.run("ce-negative", "--json").json["key"]
        shutil.move(bench.runs / key / "spec.toml", tmp_path / "spec.toml")
        shutil.rmtree(bench.runs)
        path = bench.data / "train2017" / IMAGE
        path.unlink()
        text = sentence(plbench("run", "--config", tmp_path / "spec.toml", "--data-root", bench.data))
        assert f"image {path} does not exist" in text
        assert leftovers(bench) == []

    def test_an_empty_split(self, bench: Bench) -> None:
        edit(annotations(bench, "val"), lambda content: content.update(annotations=[]))
        assert f"{annotations(bench, 'val')}: no image has an annotation" in sentence(bench.run("selective"))
        assert leftovers(bench) == []

    def test_a_split_that_is_left_empty(self, bench: Bench) -> None:
        for path in (bench.data / "val2017").iterdir():
            path.write_bytes(b"no picture")
        assert "split 'test' of 'coco2017'" in sentence(bench.run("selective", "--skip-unreadable"))
        assert leftovers(bench) == []

    def test_no_class_that_can_be_scored(self, bench: Bench) -> None:
        def everything_everywhere(content: dict[str, Any]) -> None:
            ids = [category["id"] for category in content["categories"]]
            pairs = [(image["id"], identity) for image in content["images"] for identity in ids]
            content["annotations"] = [{"image_id": image, "category_id": identity} for image, identity in pairs]

        edit(annotations(bench, "val"), everything_everywhere)
        text = sentence(bench.run("selective"))
        assert "no class in the split 'test' of 'coco2017' (16 images) has both" in text
        assert leftovers(bench) == []

    def test_no_class_of_the_validation_part_that_can_be_scored(self, bench: Bench) -> None:
        text = sentence(bench.run("ce-negative", "--simulate", "fpc=1", "--selection", "validation"))
        assert "validation part" in text
        assert leftovers(bench) == []

    def test_single_classes_without_positives_are_counted_and_said(self, bench: Bench) -> None:
        def without_cats(content: dict[str, Any]) -> None:
            content["annotations"] = [entry for entry in content["annotations"] if entry["category_id"] != 7]

        edit(annotations(bench, "val"), without_cats)
        record = bench.run("selective", "--json").json
        assert record["metrics"]["test"]["num_classes_scored"] == 4 and record["metrics"]["test"]["num_classes"] == 5
        said = bench.run("selective")
        assert said.code == 0 and "4 of 5 classes scored" in said.out
        assert "Note: 1 of 5 classes have no known positive" in said.out

    def test_data_of_other_shape_are_not_drawn_or_fetched(self, bench: Bench) -> None:
        text = sentence(
            plbench("data", "show", "coco2017", "--data-root", bench.data, "--split", "val", "--out", "x.png")
        )
        assert "has splits train, test, not 'val'" in text


class TestConfig:
    @pytest.fixture
    def spec(self, bench: Bench, tmp_path: Path) -> Path:
        """The spec of a run that was made, and whose record is gone."""
        key = bench.run("ce-negative", "--json").json["key"]
        shutil.move(bench.runs / key / "spec.toml", tmp_path / "spec.toml")
        shutil.rmtree(bench.runs)
        return tmp_path / "spec.toml"

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (None, "cannot be read: No such file or directory"),
            (b"seed = ", "is not valid TOML"),
            (b"\xff\xfe\x00", "is not valid TOML"),
            (b"", "is not a run's spec: protocol"),
            (b'[project]\nname = "plbench"\n', "is not a run's spec"),
        ],
    )
    def test_a_file_that_is_no_spec(self, content: bytes | None, says: str, bench: Bench, tmp_path: Path) -> None:
        path = tmp_path / "some.toml"
        if content is not None:
            path.write_bytes(content)
        text = sentence(plbench("run", "--config", path))
        assert str(path) in text and says in text
        assert leftovers(bench) == []

    @pytest.mark.parametrize(
        ("old", "new", "says"),
        [
            ("epochs = 1", "epochs = 0", "plan.epochs: expected a number greater than or equal to 1"),
            ("epochs = 1", "epochs = 1\nepoch_count = 3", "epoch_count: there is no such field"),
            ("seed = 0", "seed = -1", "seed: expected a number greater"),
            ('dataset = "coco2017"', 'dataset = "coco2018"', "no dataset 'coco2018'"),
            ('recipe = "quick"', 'recipe = "slow"', "no recipe 'slow'"),
            ("numerics = ", "numerics = 99", "numerics is 99"),
            ('source_sha256 = "', 'source_sha256 = "ff', "method.source_sha256 is ff"),
        ],
    )
    def test_a_spec_that_cannot_be(self, old: str, new: str, says: str, spec: Path, bench: Bench) -> None:
        text = spec.read_text()
        assert old in text
        spec.write_text(text.replace(old, new, 1))
        assert says in sentence(plbench("run", "--config", spec, "--data-root", bench.data))
        assert leftovers(bench) == []

    def test_a_spec_of_other_data(self, spec: Path, bench: Bench) -> None:
        edit(annotations(bench, "train"), lambda content: content["annotations"].pop())
        text = sentence(plbench("run", "--config", spec, "--data-root", bench.data))
        assert "cannot be repeated exactly here, since dataset_fingerprint is" in text
        assert leftovers(bench) == []


PLUGINS = {
    "no Python": ("def (", "SyntaxError"),
    "raises": ("raise RuntimeError('of its own')", "RuntimeError: of its own"),
    "imports what is not there": ("import no_such_module", "ModuleNotFoundError"),
    "holds nothing": ("x = 1", "defines no subclass of plbench.api.Method"),
    "nameless": (
        "from plbench.api import Method\nclass Mine(Method):\n    def loss(self, output, batch, progress): ...\n",
        'has no name; add: name = "my-method"',
    ),
    "a name that is taken": (
        "from plbench.api import Method\nclass Mine(Method):\n    name = title = 'selective'\n"
        "    def loss(self, output, batch, progress): ...\n",
        "method 'selective' is provided twice",
    ),
}


@pytest.mark.parametrize("name", PLUGINS)
def test_a_broken_plugin_file(name: str, bench: Bench, tmp_path: Path) -> None:
    source, says = PLUGINS[name]
    path = tmp_path / "mine.py"
    path.write_text(source)
    text = sentence(bench.run("selective", "--plugin", path))
    assert says in text and str(path) in text
    assert leftovers(bench) == []


def test_a_loss_that_is_no_number_stops_with_the_step(bench: Bench) -> None:
    options = ["--lr", "1e38", "--epochs", "3", "--batch-size", "4"]
    text = sentence(bench.run("ce-negative", *options))
    assert re.search(r"loss of method 'ce-negative' is (nan|inf) at step \d+ \(epoch \d\)", text) and "--lr" in text
    (record,) = plbench("runs", "list", "--json").json
    assert record["status"] == "failed" and "step" in record["error"]
    assert "failed" in plbench("runs", "list").out and "failed" in plbench("runs", "show", record["key"]).out
    assert "no finished runs" in sentence(plbench("runs", "compare"))
    assert "loss of method" in sentence(bench.run("ce-negative", *options))  # tried again, not answered as done


class TestRuns:
    def test_an_unknown_run(self, bench: Bench) -> None:
        for command in ("show", "compare"):
            text = sentence(plbench("runs", command, "abc123"))
            assert f"no run 'abc123' in {bench.runs}" in text and "plbench runs list" in text

    def test_an_ambiguous_start(self, bench: Bench) -> None:
        for key in ("abc1", "abc2"):
            (bench.runs / key).mkdir(parents=True)
            (bench.runs / key / "record.json").write_text("{}")
        text = sentence(plbench("runs", "show", "abc"))
        assert "'abc' is the start of 2 runs (abc1, abc2" in text and "give more digits" in text

    @pytest.mark.parametrize(
        ("damage", "says"),
        [
            (lambda raw: raw[: len(raw) // 2], "cannot be read as a record"),
            (lambda raw: b"\xff" + raw, "cannot be read as a record"),
            (lambda raw: b"[]", "record schema None"),
            (lambda raw: raw.replace(b'"schema_version": 5', b'"schema_version": 6'), "record schema 6"),
            (lambda raw: raw.replace(b'"status": "done"', b'"status": "perhaps"'), "not a valid record: status"),
            (lambda raw: raw.replace(b'"seed": 0', b'"seed": 1', 1), "was changed"),
        ],
    )
    def test_a_damaged_record_is_named_and_hides_no_other(
        self, damage: Callable[[bytes], bytes], says: str, bench: Bench
    ) -> None:
        good = bench.run("pasl-negative", "--json").json["key"]
        key = bench.run("ce-negative", "--json").json["key"]
        path = bench.runs / key / "record.json"
        path.write_bytes(damage(path.read_bytes()))
        for said in (plbench("runs", "show", key), bench.run("ce-negative")):
            text = sentence(said)
            assert str(path) in text and says in text
        listed = plbench("runs", "list", "--json")
        assert [record["key"] for record in listed.json] == [good] and str(path) in listed.err
        assert bench.run("ce-negative", "--force", "--json").json["key"] == key
        assert plbench("runs", "show", key).code == 0

    def test_a_class_that_is_not_there(self, bench: Bench) -> None:
        key = bench.run("ce-negative", "--json").json["key"]
        assert "did you mean cat?" in sentence(plbench("runs", "show", key, "--class", "catt"))

    @pytest.mark.parametrize("damage", [None, b"", b"map_c,map_o\n1,2\n", b"\xff"])
    @pytest.mark.parametrize(
        ("name", "command"), [("replicates.csv", ["compare"]), ("per_class.csv", ["show", "--class", "cat"])]
    )
    def test_a_file_that_is_no_longer_the_runs(
        self, name: str, command: list[str], damage: bytes | None, bench: Bench
    ) -> None:
        key = bench.run("ce-negative", "--json").json["key"]
        path = bench.runs / key / name
        path.unlink()
        if damage is not None:
            path.write_bytes(damage)
        text = sentence(plbench("runs", *command, key))
        assert str(path) in text and ("is missing" if damage is None else "was changed") in text and "--force" in text

    def test_a_run_under_way_elsewhere(self, bench: Bench) -> None:
        key = bench.run("ce-negative", "--dry-run", "--json").json["spec"]
        bench.runs.mkdir(exist_ok=True)
        from plbench.spec import RunSpec

        key = RunSpec.model_validate(key).key
        held = threading.Event()

        def hold() -> None:
            with FileLock(bench.runs / f".{key}.lock"):
                held.set()
                time.sleep(1)

        thread = threading.Thread(target=hold)
        thread.start()
        assert held.wait(10)
        said = bench.run("ce-negative")
        thread.join()
        assert said.code == 0 and f"Run {key} is in progress in another process; waiting for it" in said.err


class TestDisk:
    @pytest.fixture
    def small_disk(self, tmp_path: Path) -> Iterator[Callable[[str], Path]]:
        """Mounts a file system, or mounts it anew with other options; skips the test where that is not permitted."""
        place = tmp_path / "disk"
        place.mkdir()
        mounted = False

        def mount(options: str) -> Path:
            nonlocal mounted
            remount = "remount," if mounted else ""
            command = ["mount", "-t", "tmpfs", "-o", remount + options, "tmpfs", str(place)]
            if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode != 0:
                pytest.skip("mounting is not permitted here")
            mounted = True
            return place

        yield mount
        if mounted:
            gc.collect()  # labels that are memory-mapped keep the disk busy
            subprocess.run(["umount", str(place)], check=True)

    @pytest.mark.parametrize("what", ["runs", "cache"])
    def test_a_place_below_a_file(self, what: str, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        below = annotations(bench, "train") / what
        if what == "cache":
            monkeypatch.setenv("PLBENCH_CACHE", str(below))
        text = sentence(bench.run("selective", *(["--runs", below] if what == "runs" else [])))
        assert str(below) in text and "Not a directory" in text
        assert text.endswith("choose another place with --runs DIR, --out, --data-root or PLBENCH_CACHE=DIR")
        assert leftovers(bench) == []

    @pytest.mark.parametrize("what", ["runs", "cache"])
    def test_no_write_permission(
        self, what: str, bench: Bench, small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        disk = small_disk("size=1m")
        small_disk("ro")
        if what == "cache":
            monkeypatch.setenv("PLBENCH_CACHE", str(disk / "cache"))
        text = sentence(bench.run("selective", *(["--runs", disk / "runs"] if what == "runs" else [])))
        assert str(disk / what) in text and "Read-only file system" in text
        assert leftovers(bench) == []

    @pytest.mark.parametrize("size", ["16k", "64k", "128k", "256k", "512k"])
    def test_a_full_disk_and_then_a_larger_one(
        self, size: str, bench: Bench, small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        disk = small_disk(f"size={size}")
        monkeypatch.setenv("PLBENCH_CACHE", str(disk / "cache"))
        there = Bench(bench.data, disk / "runs")
        text = sentence(bench.run("selective", "--runs", there.runs))
        assert "No space left on device" in text and str(disk) in text and "free some space" in text
        stages = {path.parent for path in there.runs.glob("*/record.json")}  # what was whole by then may stay
        assert [path for path in leftovers(there) if not stages & {path, *path.parents} or path.suffix == ".tmp"] == []
        small_disk("size=20m")
        assert bench.run("selective", "--runs", there.runs).code == 0

    def test_a_full_disk_while_scenes_are_drawn(
        self, bench: Bench, small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def draw(folder: Path, report: object) -> str:
            (folder / "train.npz").write_bytes(bytes(1 << 20))
            return "not reached"

        monkeypatch.setenv("PLBENCH_CACHE", str(cache := small_disk("size=256k") / "cache"))
        monkeypatch.setattr("plbench.datasets.scenes.dataset._draw_all", draw)
        text = sentence(plbench("data", "stats", "scenes"))
        assert f"could not write {cache / 'data' / 'scenes'}: No space left on device" in text
        assert list((cache / "data" / "scenes").iterdir()) == []

    def test_a_full_disk_while_results_are_written(self, bench: Bench, small_disk: Callable[[str], Path]) -> None:
        disk = small_disk("size=48k")  # takes the spec and the log of a run, not its weights
        text = sentence(bench.run("selective", "--runs", disk / "runs"))
        assert "No space left on device" in text
        assert list((disk / "runs").iterdir()) == []  # not even the stage

    @pytest.mark.parametrize(
        ("name", "says"),
        [("sheet.gif", "must end in one of"), ("sheet", "must end in one of"), ("file/sheet.png", "File exists")],
    )
    def test_a_contact_sheet_that_cannot_be_written(self, name: str, says: str, bench: Bench, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        text = sentence(plbench("data", "show", "coco2017", "--data-root", bench.data, "--out", tmp_path / name))
        assert says in text and str(tmp_path / name) in text
        assert not (tmp_path / name).exists()


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """`plbench ARGUMENTS` as a process of its own, in a process group of its own."""
    command = [sys.executable, "-m", "plbench", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, **options)


def test_ctrl_c_is_a_sentence_and_the_same_command_then_succeeds(bench: Bench) -> None:
    run = ["run", "--method", "ce-negative", "--dataset", "coco2017", "--data-root", bench.data, "--simulate", "fpc=4"]
    run = ["run", *words_with([*run[1:], *SHORT], "--epochs", "800")]
    process = start(*run, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(bench.runs.glob("*/spec.toml")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == ""
    last = err.splitlines()[-1]
    assert last.startswith("plbench: stopped; to continue: plbench run --method ce-negative")
    assert "Traceback" not in err
    kept = {path.name for path in leftovers(bench) if path.is_file()}  # all of a checkpoint, or nothing
    assert not kept or ({"spec.toml", "log.jsonl"} < kept and {Path(name).suffix for name in kept} >= {".pt", ".json"})
    again = plbench(*run)
    assert again.code == 0 and ("Continuing after step" in again.err) == bool(kept)


def test_a_full_device_for_output_is_a_sentence() -> None:
    with Path("/dev/full").open("w") as full:
        process = start("run", "--help", stdout=full)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert (
        err
        == "plbench: error: a file or the output: No space left on device; free some space, allow writing, or choose "
        "another place\n"
    )


def test_a_reader_that_goes_away_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = start("run", "--help", stdout=writing)
    os.close(writing)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and err == ""

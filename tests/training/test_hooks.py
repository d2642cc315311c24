"""What a person reads who runs a method with a fault: the plugin, the hook and the cure; the same for a check."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import SHORT, Bench, plbench, write_coco

from plbench.api import Batch, Loss, Method, Progress, Task
from plbench.errors import PluginError
from plbench.training.hooks import Guarded

GOOD = '''
from plbench.api import Loss, Method
from plbench.losses import partial_asymmetric_loss


class Mine(Method):
    """Cross-entropy."""

    name = "mine"
    title = "Mine"

    def loss(self, output, batch, progress):
        per_image = partial_asymmetric_loss(output, batch.labels, gamma_pos=0.0, gamma_neg=0.0, gamma_unann=0.0)
        return Loss.of_images(per_image)
'''
RETURN = "return Loss.of_images(per_image)"
FAULTS = {
    "raises in its constructor": (
        GOOD + "\n    def __init__(self, params, task):\n        raise KeyError('prior')\n",
        [
            r"method 'mine' of mine\.py: its constructor raised KeyError: 'prior' \(line \d+\)",
            "given an instance of its",
        ],
    ),
    "raises in its loss": (
        GOOD.replace(RETURN, "return Loss.of_images(per_image / self.weights)"),
        [r"method 'mine' of mine\.py: its loss raised AttributeError: .*'weights' \(line \d+\)", r"Loss\.of_images\("],
    ),
    "returns NaN": (
        GOOD.replace(RETURN, "return Loss.of_images(per_image * float('nan'))"),
        ["the loss of method 'mine' is nan at step 0", "plbench methods check mine --plugin"],
    ),
    "returns a wrong shape": (
        GOOD.replace(RETURN, "return Loss(per_image, len(output))"),
        [r"method 'mine' of mine\.py: its loss gave a total of shape \[\d+\]", r"return Loss\.of_images\(per_image\)"],
    ),
    "returns no loss": (
        GOOD.replace(RETURN, "return per_image.mean()"),
        [r"its loss gave a tensor \[\] where a plbench\.api\.Loss is right", r"return Loss\.of_images\(per_image\)"],
    ),
    "mutates labels": (
        GOOD.replace(RETURN, "batch.labels.clamp_(min=0)\n        " + RETURN),
        [r"method 'mine' of mine\.py: its loss wrote to batch\.labels", r"batch\.labels\.clone\(\)"],
    ),
    "gives no gradient": (
        GOOD.replace(RETURN, "return Loss.of_images(per_image.detach())"),
        [r"method 'mine' of mine\.py: its loss gave a total without a gradient", r"without \.detach\(\)"],
    ),
    "scores a wrong shape": (
        GOOD + "\n    def scores(self, output):\n        return output.sigmoid().mean(-1)\n",
        [r"method 'mine'.* scores .*shape \(\d+,\)|its scores gave \[\d+\] where \[B, C\]"],
    ),
    "scores nothing": (
        GOOD + "\n    def scores(self, output):\n        output.sigmoid()\n",
        [r"method 'mine' of mine\.py: its scores gave no tensor but NoneType where \[B, C\]"],
    ),
}
BEFORE_IT_RUNS = {
    "forgets its name": (
        GOOD.replace("    name =", "    nickname ="),
        [r"class Mine in .*mine\.py has no name; add: name = "],
    ),
    "forgets its title": (GOOD.replace("    title =", "    subtitle ="), ["has no title; add: title = "]),
    "shadows a built-in": (
        GOOD.replace('"mine"', '"selective"'),
        [
            r"'selective' is provided twice, by plbench and .*mine\.py",
            r'rename the class in .*, as in name = "my-selective"',
        ],
    ),
}


def test_only_hooks_are_guarded(make_task: Callable[..., Task]) -> None:
    class Mine(Method):
        name, title, batch_scope = "mine", "Mine", "batch"

        def loss(self, output: Any, batch: Batch, progress: Progress) -> Loss:
            return Loss.of_images(output.sum(dim=-1))

        def forward(self, model: Any, batch: Batch, progress: Progress) -> Any:
            raise KeyError("seen")

        def diagnostics(self, output: Any, batch: Batch) -> Any:
            return ["ignored"]

    method = Mine(Mine.Params(), make_task(2))
    guarded = Guarded(method)
    assert (guarded.params, guarded.task, guarded.marked) == (method.params, method.task, method.marked)
    assert (guarded.name, guarded.batch_scope, guarded.stack_key()) == ("mine", "batch", ())
    batch = Batch(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.int8), torch.arange(1))
    with pytest.raises(PluginError, match="its forward raised KeyError: 'seen'"):
        guarded.forward(None, batch, Progress(0, 1, 0, 1))
    with pytest.raises(PluginError, match="its diagnostics gave no tensors by name"):
        guarded.diagnostics(None, batch)
    with pytest.raises(AttributeError, match="nonsense"):
        guarded.nonsense()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A tiny COCO folder, and runs and cache of one test's own."""
    monkeypatch.setenv("PLBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PLBENCH_RUNS", str(tmp_path / "runs"))
    return Bench(write_coco(tmp_path / "coco"), tmp_path / "runs")


def written(folder: Path, source: str) -> Path:
    path = folder / "mine.py"
    path.write_text(source, encoding="utf-8")
    return path


@pytest.mark.parametrize("fault", [*FAULTS, *BEFORE_IT_RUNS])
def test_a_run_says_what_is_wrong_with_a_plugin(fault: str, bench: Bench, tmp_path: Path) -> None:
    source, pieces = {**FAULTS, **BEFORE_IT_RUNS}[fault]
    name = "selective" if "shadows" in fault else "mine"
    said = bench.run(name, "--plugin", written(tmp_path, source), "-q")
    assert said.code == 2 and said.out == "", said
    lines = said.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("plbench: error: "), said.err
    for piece in pieces:
        assert re.search(piece, lines[0]), lines[0]
    if fault in FAULTS:
        assert "plbench methods check mine --plugin" in lines[0]


@pytest.mark.parametrize("fault", [*FAULTS, *BEFORE_IT_RUNS])
def test_a_check_says_it_too(fault: str, tmp_path: Path) -> None:
    source, pieces = {**FAULTS, **BEFORE_IT_RUNS}[fault]
    name = "selective" if "shadows" in fault else "mine"
    said = plbench("methods", "check", name, "--plugin", written(tmp_path, source), "-q")
    if fault in BEFORE_IT_RUNS:
        assert said.code == 2 and all(re.search(piece, said.err) for piece in pieces), said.err
        return
    assert said.code == 1 and "FAILED" in said.out and "checks failed" in said.out
    assert "plbench methods check" not in said.out  # that is what the person has just typed
    if fault != "returns NaN":  # which the check says in words of its own
        assert all(re.search(piece, said.out) for piece in pieces), said.out
    else:
        assert "a total of nan" in said.out and "smallest input that fails: 1 image, 1 class" in said.out


@pytest.mark.parametrize("fault", ["raises in its constructor", "mutates labels"])
@pytest.mark.parametrize("command", ["run --dry-run", "compare --seeds 2"])
def test_other_commands_say_it_too(fault: str, command: str, bench: Bench, tmp_path: Path) -> None:
    source, pieces = FAULTS[fault]
    plugin = ["--plugin", written(tmp_path, source), "--data-root", bench.data, "--simulate", "fpc=4", "-q"]
    name, *words = command.split()
    method = ["--method", "mine"] if name == "run" else ["--methods", "mine,ce-negative"]
    said = plbench(name, *words, *method, "--dataset", "coco2017", *plugin, *SHORT)
    assert said.code == 2, said
    assert all(re.search(piece, said.err) for piece in pieces), said.err


def test_a_sound_method_passes_and_the_findings_are_told_as_json(tmp_path: Path) -> None:
    said = plbench("methods", "check", "mine", "--plugin", written(tmp_path, GOOD), "-q", "--json")
    assert said.code == 0
    assert {"finite loss", "gradient", "resume", "two processes equal one"} <= {row["check"] for row in said.json}
    assert all(row["of"] == "mine" and row["passed"] in (True, None) for row in said.json)


@pytest.mark.parametrize("given", [["no-such-method"], ["mine", "-P", "weight=1"]])
def test_what_is_mistyped_is_said(given: list[str], tmp_path: Path) -> None:
    said = plbench("methods", "check", *given, "--plugin", written(tmp_path, GOOD))
    assert said.code == 2 and said.err.startswith("plbench: error: ")


class TestNew:
    def test_what_is_written_passes_the_check(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        said = plbench("methods", "new", "half-negative")
        assert said.code == 0 and (tmp_path / "half_negative.py").is_file()
        commands = [line.removeprefix("Next: plbench ") for line in said.out.splitlines() if line.startswith("Next: ")]
        assert commands[1] == "run --method half-negative --dataset scenes --plugin half_negative.py"
        checked = plbench(*commands[0].split(), "-q")
        assert checked.code == 0, checked.out

    def test_nothing_is_written_over(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "mine.py").write_text("kept")
        said = plbench("methods", "new", "mine")
        assert said.code == 2 and "mine.py already exists" in said.err
        assert (tmp_path / "mine.py").read_text() == "kept"

    @pytest.mark.parametrize(
        ("name", "piece"),
        [
            ("MyMethod", "did you mean my-method?"),
            ("my_method", "did you mean my-method?"),
            ("2fast", "lowercase letters, digits and hyphens"),
            ("selective", "which a new one must not hide"),
            ("lambda", "a reserved word of Python"),
        ],
    )
    def test_a_name_that_will_not_do_is_refused(
        self, name: str, piece: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        said = plbench("methods", "new", name)
        assert said.code == 2 and piece in said.err and list(tmp_path.iterdir()) == []


def test_a_dataset_is_checked_on_its_fixture(bench: Bench) -> None:
    said = plbench("data", "check", "coco2017", "--fixture", "-q")
    assert said.code == 0 and "checks passed" in said.out
    said = plbench("data", "check", "coco2017", "--data-root", bench.data, "-q", "--json")
    assert said.code == 0 and {"ids", "protocols"} <= {row["check"] for row in said.json}
    assert plbench("data", "check", "coco2016").code == 2


def test_a_prepared_dataset_is_checked_too(bench: Bench, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    made = plbench("data", "prepare", "coco2017", "--data-root", bench.data, "--out", packed, "--short-side", 32, "-q")
    assert made.code == 0, made
    said = plbench("data", "check", "coco2017", "--data-root", packed, "-q")
    assert said.code == 0, said.out

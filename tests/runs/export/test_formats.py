"""Exports of runs: each program gives the scores of `plbench predict`, the page's lines work, and what is refused."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from plbench.cli import main
from plbench.data.images import files_at
from plbench.errors import PlbenchError
from plbench.loading.transforms import eval_transform
from plbench.runs.export import export
from plbench.runs.export.export import export_run
from plbench.runs.export.formats import FORMATS
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.predict import predictions
from plbench.runs.run import run
from plbench.runs.trained import load_model
from plbench.runs.workspace import Workspace

pytestmark = [
    pytest.mark.usefixtures("quick_records"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]
TOP = Path(__file__).parents[3]
HERE = str(TOP).encode()


def made(workspace: Workspace, method: str = "ce-negative", **asked: Any) -> Path:
    record = run(plan_run(Request("tiny", method, **{"plan": {"epochs": 1}, **asked}), workspace), workspace)
    return workspace.store.run_folder(record.key)


def photograph(path: Path) -> None:
    """A JPEG that is decoded at a fraction of its size, and turned by its EXIF orientation."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).resize((280, 180), Image.Resampling.BICUBIC).save(path, exif=exif)


def test_what_the_page_shows_runs_as_it_stands(
    make_workspace: Callable[..., Workspace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands and lines of Python, each of which gives the scores that `plbench predict` gives."""
    workspace = make_workspace()
    folder = made(workspace, model={"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLBENCH_CACHE", str(workspace.store.cache))
    photograph(tmp_path / "photo.jpg")
    photo = files_at([tmp_path / "photo.jpg"])
    with predictions(model := load_model(folder, workspace), photo, workspace) as found:
        wanted = np.array(found.scores)
    page = (TOP / "docs" / "exporting.md").read_text(encoding="utf-8").replace("runs/KEY", str(folder))
    for command in "".join(re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL)).splitlines():
        monkeypatch.setattr(sys, "argv", [*shlex.split(command), "-q"])
        with pytest.raises(SystemExit) as left:
            main()
        assert not left.value.code, command
    shown: dict[str, Any] = {}
    *blocks, api = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block, "docs/exporting.md", "exec"), shown)
        np.testing.assert_allclose(np.asarray(shown.pop("scores")), wanted, rtol=0, atol=1e-5)
        about = shown["about"]
        assert about["class_names"] == list("abcdef") and about["run"] == folder.name
        assert about["thresholds"] == model.thresholds().tolist() and about["image_size"] == 32
    assert shown["names"] == about["class_names"]
    prepared = eval_transform(model.record.spec.model)(photo.load(0, 32)).numpy()
    assert np.array_equal(shown["prepared"]("photo.jpg"), prepared)
    exec(compile(api, "docs/exporting.md", "exec"), shown)
    assert shown["written"].difference <= 1e-5
    for path in (tmp_path / "model.onnx", tmp_path / "model.pt"):
        content = path.read_bytes()
        assert HERE not in content and b"site-packages" not in content, "it tells of this machine"
    config = json.loads((tmp_path / "my-model" / "config.json").read_text())
    assert config["plbench"].items() <= about.items()


@pytest.mark.parametrize(
    ("to", "method", "asked"),
    [
        # scores that are no sigmoid, of feature maps that are rounded between backbone and head
        ("torchscript", "spasl", {"model": {"head": "ml-decoder", "head_width": 16, "head_attention_heads": 2}}),
        ("safetensors", "ce-negative", {"model": {"head": "mlp", "pooling": "mean+max"}, "precision": "bfloat16"}),
        ("timm-hub-folder", "ce-negative", {"regime": "finetune", "model": {"pooling": "mean+max"}}),
    ],
)
def test_an_export_has_the_scores_of_predict(
    to: str, method: str, asked: dict[str, Any], make_workspace: Callable[..., Workspace], tmp_path: Path
) -> None:
    workspace = make_workspace()
    folder = made(workspace, method, **asked)
    written = export_run(folder, to, out := tmp_path / f"model{FORMATS[to].suffix}", workspace)
    assert written.difference <= 1e-5 and written.low < written.high
    bfloat16 = asked.get("precision") == "bfloat16"
    assert (written.precision_difference is not None) == bfloat16
    # not what the export itself compares: other pictures, and a batch of another size
    paths = [workspace.store.cache / "data" / "tiny" / "test" / f"{row}.png" for row in range(11)]
    with predictions(model := load_model(folder, workspace), images := files_at(paths), workspace) as found:
        wanted = np.array(found.scores)
    transform = eval_transform(model.record.spec.model)
    got = FORMATS[to].read(out)(torch.stack([transform(images.load(row)) for row in range(11)]))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=0.01 if bfloat16 else 1e-5)


def test_what_does_not_fit_a_format_is_one_sentence(
    make_workspace: Callable[..., Workspace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_workspace()
    runs = {
        "cnn-rnn": made(workspace, "cnn-rnn"),
        "spasl": made(workspace, "spasl"),
        "latent-noise": made(workspace, "latent-noise"),
        "csra": made(workspace, model={"head": "csra"}),
        "mlp": made(workspace, model={"head": "mlp"}),
    }
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for name, to, out, said in (
        ("cnn-rnn", "torchscript", "a.pt", "'cnn-rnn' cannot be exported, since its steps are not the same for all"),
        ("latent-noise", "safetensors", "a.safetensors", "'latent-noise' builds a network of its own"),
        ("spasl", "timm-hub-folder", "a", "'spasl' gives scores that are not the sigmoid"),
        ("csra", "safetensors", "a.safetensors", "the head is 'csra', which neither timm nor torch knows"),
        ("mlp", "timm-hub-folder", "a", "the head of this run is 'mlp'; train with `head=\"linear\"`"),
        ("mlp", "onnx", "a.pt", "give the name of a file that ends in .onnx"),
        ("mlp", "timm-hub-folder", "full", "is not an empty folder"),
        ("mlp", "onyx", "a.onnx", "did you mean onnx"),
    ):
        with pytest.raises(PlbenchError, match=re.escape(said)):
            export_run(runs[name], to, tmp_path / out, workspace)
        assert not (tmp_path / out).exists() or out == "full"
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(PlbenchError, match=r"needs the package onnxscript.*pip install 'plbench\[export\]'"):
        export_run(runs["mlp"], "onnx", tmp_path / "a.onnx", workspace)
    assert [path.name for path in tmp_path.iterdir() if path.name != "store"] == ["full"]


def test_a_file_that_gives_other_scores_does_not_stay(
    make_workspace: Callable[..., Workspace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_workspace()
    read = FORMATS["safetensors"].read
    wrong = replace(FORMATS["safetensors"], read=lambda path: lambda images: read(path)(images) + np.float32(2e-4))
    monkeypatch.setattr(export, "FORMATS", {"safetensors": wrong})
    out = tmp_path / "model.safetensors"
    out.write_bytes(b"an older one")
    with pytest.raises(PlbenchError, match=r"differ by up to 2.*e-04 from those of plbench predict"):
        export_run(made(workspace), "safetensors", out, workspace)
    assert out.read_bytes() == b"an older one" and not list(tmp_path.glob(".model*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "onnx"], "give --out PATH"),
        (["--to", "hub"], "give --repo USER/NAME"),
        (["--to", "hub", "--repo", "me/it", "--out", "it"], "and leave out --out"),
        (["--to", "onnx", "--out", "it.onnx", "--private"], "neither --repo nor --private"),
    ],
)
def test_options_that_do_not_go_together(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["plbench", "export", "KEY", *words])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2 and said in capsys.readouterr().err

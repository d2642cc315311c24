"""Files of embeddings are made by the real models of transformers: here a CLIP and a SigLIP of a few numbers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import plbench

from plbench.data.embeddings import read_embeddings
from plbench.errors import PlbenchError
from plbench.models.vision_language import VisionLanguageModel
from plbench.runs.inspect import embed as embedding
from plbench.runs.inspect.embed import embed
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.workspace import Workspace, open_dataset

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a CLIP of random weights, whose tokens are single characters."""
    transformers: Any = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    letters = [chr(number) for number in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    start, end = len(words) - 2, len(words) - 1
    of_text = {"vocab_size": len(words), "max_position_embeddings": 24, "bos_token_id": start, "eos_token_id": end}
    torch_state = torch.get_rng_state()
    torch.manual_seed(0)
    model = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={**small, **of_text, "pad_token_id": end},
            vision_config={**small, "image_size": 32, "patch_size": 8},
            projection_dim=8,
        )
    )
    torch.set_rng_state(torch_state)
    model.save_pretrained(folder)
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    transformers.CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return str(folder)


def test_embeddings_are_those_of_the_model(clip: str) -> None:
    transformers: Any = pytest.importorskip("transformers")
    ours = VisionLanguageModel(clip, CPU)
    model, processor = (
        transformers.CLIPModel.from_pretrained(clip).eval(),
        transformers.AutoProcessor.from_pretrained(clip),
    )
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 40, 3), np.uint8))
    texts = ["a cat", "a photo of a very long name that is cut off somewhere"]
    inputs = processor(text=texts, images=[picture], padding=True, truncation=True, max_length=24, return_tensors="pt")
    with torch.inference_mode():
        expected = model(**inputs)
    images, words = ours.embed_images(ours.prepare(picture)[None]), ours.embed_texts(texts)
    torch.testing.assert_close(images / images.norm(), expected.image_embeds)
    torch.testing.assert_close(words / words.norm(dim=1, keepdim=True), expected.text_embeds)
    assert ours.logits == pytest.approx({"logit_scale": float(model.logit_scale.detach().exp())})


def test_a_model_that_was_trained_with_a_sigmoid_has_an_offset(tmp_path: Path, clip: str) -> None:
    transformers: Any = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.SiglipConfig(
        text_config={**small, "vocab_size": 200, "max_position_embeddings": 24, "projection_size": 16},
        vision_config={**small, "image_size": 32, "patch_size": 8},
    )
    transformers.SiglipModel(config).save_pretrained(tmp_path)
    transformers.AutoProcessor.from_pretrained(clip).save_pretrained(tmp_path)
    model = VisionLanguageModel(str(tmp_path), CPU)
    assert model.logits.keys() == {"logit_scale", "logit_bias"}
    assert model.embed_texts(["one", "two"]).shape == (2, 16)


def test_the_command_makes_what_runs_read(clip: str, make_workspace: Callable[..., Workspace], tmp_path: Path) -> None:
    workspace, out = make_workspace(), tmp_path / "e.npz"
    made = embed("tiny", workspace, clip, out, prompt="a {}.")
    assert (made["classes"], made["images"], made["numbers"]) == (6, {"train": 48, "test": 24}, 8)
    file = read_embeddings(out)
    assert file.model == f"{clip}, 'a {{}}.'" and set(file.logits) == {"logit_scale"}
    assert sorted(file.class_rows) == list("abcdef") and len(file.image_rows) == 72
    model, dataset = VisionLanguageModel(clip, CPU), open_dataset("tiny", workspace)
    for split, row in (("train", 0), ("train", 40), ("test", 23)):
        images = dataset.split(split).images
        expected = model.embed_images(model.prepare(images.load(row))[None])[0]
        found = torch.from_numpy(file.images[file.image_rows[f"{split}/{images.ids[row]}"]])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    expected = model.embed_texts(["a b."])[0]
    torch.testing.assert_close(torch.from_numpy(file.classes[file.class_rows["b"]]), expected, atol=1e-5, rtol=1e-4)
    assert plan_run(Request("tiny", "vlpl", embeddings=str(out)), workspace).spec.embeddings is not None


def test_an_interrupted_command_goes_on(
    clip: str, make_workspace: Callable[..., Workspace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, out = make_workspace(), tmp_path / "e.npz"
    monkeypatch.setattr(embedding, "_BATCH_SIZE", 8)
    monkeypatch.setattr(embedding, "_SAVE_EVERY", 1)
    real, calls = VisionLanguageModel.embed_images, []

    def counted(self: VisionLanguageModel, pixels: torch.Tensor) -> torch.Tensor:
        calls.append(len(pixels))
        if len(calls) == 4:  # one image to learn the width, then batches
            raise KeyboardInterrupt
        return real(self, pixels)

    monkeypatch.setattr(VisionLanguageModel, "embed_images", counted)
    with pytest.raises(KeyboardInterrupt):
        embed("tiny", workspace, clip, out)
    assert not out.exists()
    embed("tiny", workspace, clip, out)
    assert calls[4:] == [1, *[8] * 4, 1, *[8] * 3]  # the two batches that were there are not computed again
    calls.clear()
    whole = make_workspace(name="another")
    monkeypatch.setattr(VisionLanguageModel, "embed_images", real)
    embed("tiny", whole, clip, tmp_path / "whole.npz")
    with np.load(out) as one, np.load(tmp_path / "whole.npz") as other:
        assert all(np.array_equal(one[name], other[name]) for name in one.files)


def test_what_cannot_be_is_said_in_a_sentence(
    clip: str, make_workspace: Callable[..., Workspace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers: Any = pytest.importorskip("transformers")
    workspace = make_workspace()
    with pytest.raises(PlbenchError, match=r"must hold \{\} once, where a class's name goes"):
        embed("tiny", workspace, clip, tmp_path / "e.npz", prompt="a photo")
    with pytest.raises(PlbenchError, match=r"does not end in \.npz"):
        embed("tiny", workspace, clip, tmp_path / "e.csv")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(PlbenchError, match=r"the transformers model '.*nowhere' cannot be loaded here: ") as caught:
        embed("tiny", workspace, str(tmp_path / "nowhere"), tmp_path / "e.npz")
    assert "\n" not in str(caught.value)
    transformers.CLIPVisionModel.from_pretrained(clip).save_pretrained(tmp_path / "vision")
    transformers.AutoProcessor.from_pretrained(clip).save_pretrained(tmp_path / "vision")
    with pytest.raises(PlbenchError, match=r"\(CLIPVisionModel\) does not embed images and texts in one space"):
        embed("tiny", workspace, str(tmp_path / "vision"), tmp_path / "e.npz")


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(PlbenchError, match=r"pip install 'plbench\[vlm\]'; or make the file elsewhere"):
        VisionLanguageModel("openai/clip-vit-base-patch32", CPU)


def test_the_command_line_says_what_it_made(clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from plbench.datasets.ucm17 import Ucm17

    monkeypatch.setenv("PLBENCH_CACHE", str(tmp_path / "cache"))
    Ucm17(tmp_path / "ucm17").make_fixture()
    out = tmp_path / "e.npz"
    given = ("ucm17", "--data-root", tmp_path / "ucm17", "--model", clip, "--out", out, "--workers", "0")
    shown = plbench("data", "embeddings", *given)
    assert shown.code == 0 and f"{out}: 17 classes and 60 train images, " in shown.out, shown.err
    run = ("run", "-d", "ucm17", "--data-root", tmp_path / "ucm17", "--weights", "random", "--epochs", "1", "--json")
    where = ("--image-size", "32", "--runs", tmp_path / "runs", "--embeddings", out)
    record = plbench(*run, *where, "-m", "zero-shot").json
    assert record["spec"]["embeddings"] and record["training"]["steps"] == 0
    missing = plbench(*run, *where[:-2], "-m", "vlpl")
    assert (
        missing.code == 2 and "give the file with --embeddings FILE, which plbench data embeddings ucm17" in missing.err
    )

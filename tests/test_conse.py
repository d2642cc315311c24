"""The script that makes embeddings of images and names from a classifier and word vectors."""

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

import plbench.models.torchvision_ops  # noqa: F401  # isort: skip  (before timm)
from timm.data import ImageNetInfo

from plbench.data.embeddings import read_embeddings
from plbench.runs.registry import Registry

MADE = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "conse.py"))
VECTORS = {"black": np.array([3.0, 4.0]), "bear": np.array([0.0, 2.0])}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("glove.txt", "black 3 4\nbear 0 2\n"),
        # wink's end with their length and their place
        ("wink.json", json.dumps({"dimensions": 2, "vectors": {"black": [3, 4, 5, 0], "bear": [0, 2, 2, 1]}})),
    ],
)
def test_vectors_are_read_as_glove_or_wink_writes_them(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    found = MADE["read_vectors"](tmp_path / name)
    assert {word: vector.tolist() for word, vector in found.items()} == {"black": [3, 4], "bear": [0, 2]}


def test_a_name_is_the_mean_of_its_words_that_are_known():
    assert MADE["embed_name"]("American Black_bear", VECTORS) == pytest.approx([0.3, 0.9])
    assert MADE["embed_name"]("zebra", VECTORS) is None


def test_an_image_is_the_weighted_mean_of_its_ten_likeliest_names():
    rng = np.random.default_rng(0)
    likely = softmax(rng.standard_normal((3, 30)), axis=1)
    names = [None if place == 7 else rng.standard_normal(4) for place in range(30)]
    found = MADE["embed_images"](likely, names)
    for row, image in zip(found, likely, strict=True):
        best = sorted((place for place in range(30) if place != 7), key=lambda place: -image[place])[:10]
        expected = sum(image[place] * names[place] for place in best) / sum(image[place] for place in best)
        assert row == pytest.approx(expected)


def test_uncertainty_is_a_share():
    assert MADE["uncertainty"](np.full((2, 8), 1 / 8)) == pytest.approx(1)
    assert MADE["uncertainty"](np.eye(8)) == pytest.approx(0)


def test_the_file_is_one_of_embeddings_as_uncertain_as_the_classifier(tmp_path, monkeypatch, capsys):
    Registry.discover().dataset("ucm17")(tmp_path / "ucm17").make_fixture()
    info, rng = ImageNetInfo("imagenet-1k"), np.random.default_rng(0)
    words = {word for place in range(1000) for word in re.findall(r"[a-z]+", info.index_to_description(place).lower())}
    words |= set(re.findall("[a-z]+", (tmp_path / "ucm17").joinpath("LandUse_Multilabeled.txt").read_text().lower()))
    lines = [f"{word} {' '.join(map(str, rng.standard_normal(5).round(3)))}" for word in sorted(words)]
    (tmp_path / "vectors.txt").write_text("\n".join(lines) + "\n")
    given = ["--data-root", tmp_path / "ucm17", "--vectors", tmp_path / "vectors.txt", "--out", tmp_path / "e.npz"]
    monkeypatch.setattr(sys, "argv", ["conse.py", "ucm17", "--size", "64", *map(str, given)])
    seen, uncertainty = [], MADE["uncertainty"]
    inside = MADE["main"].__globals__  # of the script, which runpy copied
    monkeypatch.setitem(inside, "uncertainty", lambda likely: (seen.append(likely), uncertainty(likely))[1])
    MADE["main"]()
    found = read_embeddings(tmp_path / "e.npz")
    assert found.classes.shape == (17, 6) and len(found.images) == len(found.image_rows) == 90
    unit = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (found.images, found.classes)]
    train = [row for name, row in found.image_rows.items() if name.startswith("train/")]
    scores = softmax(float(found.logits["logit_scale"]) * (unit[0] @ unit[1].T)[train].astype(float), axis=1)
    assert float(found.logits["logit_scale"]) == 100
    assert "17 classes, 90 images" in capsys.readouterr().err
    assert uncertainty(scores) == pytest.approx(uncertainty(seen[0]), abs=1e-4)

"""Figures on a dataset's labels are those that the dense matrix gives, and the picture is one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from test_cli import plbench

from plbench.api import BenchmarkProtocol, LabelledSplit, PartialLabels
from plbench.datasets.openimages import OpenImagesV6
from plbench.errors import PlbenchError, StoreError
from plbench.runs.inspect.statistics import dataset_stats, draw_stats
from plbench.runs.workspace import Workspace

Make = Callable[[dict[str, npt.NDArray[np.int8]]], Workspace]
NAMES = ("cat", "cat", r"$\no$ and", "<dog>", "Bühne & co", "f")


@pytest.fixture
def holding(tiny_dataset: type[Any], make_workspace: Callable[..., Workspace]) -> Make:
    """A workspace whose dataset "given" has the dense labels given, as they are, and also under FPC-2."""

    def make(dense: dict[str, npt.NDArray[np.int8]]) -> Workspace:
        class Given(tiny_dataset):  # type: ignore[misc]
            name = "given"
            protocols = tuple(
                BenchmarkProtocol(name=f"given-{slug}/v1", dataset="given", simulation=simulation)
                for slug, simulation in (("none", "none"), ("fpc2", "fpc=2"))
            )

            def split(self, name: str) -> LabelledSplit:
                images = super().split("train").images.subset(np.arange(len(dense[name])))
                ids = [f"id{column}" for column in range(dense[name].shape[1])]
                return LabelledSplit(images, PartialLabels.from_dense(dense[name], ids, NAMES[: len(ids)]))

            def notes(self) -> dict[str, tuple[str, ...]]:
                return {"train": ("Something was found.",)}

        return make_workspace(Given)

    return make


def random_labels(seed: int) -> dict[str, npt.NDArray[np.int8]]:
    """Splits with images and classes of which nothing, or only one sign, is known; two as frequent as each other."""
    rng = np.random.default_rng(seed)
    dense = {}
    for split, number in (("train", 40), ("test", 17)):
        chances = np.linspace(0.1, 0.7, 6) * rng.random((number, 1))
        dense[split] = rng.choice([1, -1], (number, 6)) * (rng.random((number, 6)) < chances)
        dense[split][:3] = 0
        dense[split][:, 4] = np.abs(dense[split][:, 4])
        dense[split][:, 0] = 0
        dense[split] = dense[split].astype(np.int8)
    return dense


@pytest.mark.parametrize("seed", range(6))
def test_every_figure_is_that_of_the_dense_labels(seed: int, holding: Make) -> None:
    dense = random_labels(seed)
    stats = dataset_stats("given", None, holding(dense))
    assert (stats["dataset"], stats["protocol"]) == ("given", "given-none/v1")
    found, names = stats["notes"]["train"]
    assert found == "Something was found." and names.startswith("classes id0 and id1 are both named 'cat'")
    assert [row["split"] for row in stats["splits"]] == ["train", "test"]
    for row in stats["splits"]:
        labels = dense[row["split"]]
        positives, negatives = labels > 0, labels < 0
        assert row == {
            "split": row["split"],
            "images": len(labels),
            "classes": 6,
            "known": np.count_nonzero(labels),
            "positives": positives.sum(),
            "negatives": negatives.sum(),
            "density_percent": round(100 * float((labels != 0).mean()), 4),
            "positives_per_image": round(float(positives.sum(axis=1).mean()), 4),
            "negatives_per_image": round(float(negatives.sum(axis=1).mean()), 4),
            "images_without_labels": sum(not image.any() for image in labels),
            "classes_without_positives": sum(not column.any() for column in positives.T),
            "classes_scorable": sum(bool(p.any() and n.any()) for p, n in zip(positives.T, negatives.T, strict=True)),
        }
        in_image = positives.sum(axis=1).tolist()
        expected = [in_image.count(number) for number in range(max(in_image) + 1)]
        assert stats["positives_in_an_image"][row["split"]] == expected
    counts = [row["train_positives"] for row in stats["classes"]]
    assert counts == sorted(counts, reverse=True)
    for row in stats["classes"]:
        column = int(row["id"].removeprefix("id"))
        assert row["class"] == NAMES[column]
        for split, labels in dense.items():
            assert row[f"{split}_positives"] == (labels[:, column] > 0).sum()
            assert row[f"{split}_negatives"] == (labels[:, column] < 0).sum()
    assert sorted(row["id"] for row in stats["classes"]) == [f"id{column}" for column in range(6)]


def test_many_positives_in_an_image_are_counted_together(
    tiny_dataset: type[Any], make_workspace: Callable[..., Workspace]
) -> None:
    numbers = [0, 1, 19, 20, 21, 30, 30]

    class Crowded(tiny_dataset):  # type: ignore[misc]
        name = "crowded"
        protocols = (BenchmarkProtocol(name="crowded/v1", dataset="crowded"),)

        def split(self, name: str) -> LabelledSplit:
            dense = np.array([[1] * number + [-1] * (30 - number) for number in numbers], np.int8)
            images = super().split(name).images.subset(np.arange(len(numbers)))
            return LabelledSplit(images, PartialLabels.from_dense(dense, [str(column) for column in range(30)]))

    stats = dataset_stats("crowded", None, make_workspace(Crowded))
    assert stats["positives_in_an_image"]["train"] == [1, 1, *[0] * 17, 1, 4]


def test_under_a_simulation_train_is_what_training_sees(holding: Make) -> None:
    dense = {"train": np.where(random_labels(0)["train"] > 0, 1, -1), "test": random_labels(1)["test"]}
    dense["train"][:5] = 1
    workspace = holding({split: labels.astype(np.int8) for split, labels in dense.items()})
    whole, hidden = dataset_stats("given", None, workspace), dataset_stats("given", "fpc=2", workspace)
    assert hidden["protocol"] == "given-fpc2/v1" and whole["splits"][1] == hidden["splits"][1]
    assert {(row["train_positives"], row["train_negatives"]) for row in hidden["classes"]} == {(2, 2)}
    assert hidden["splits"][0]["known"] == 6 * 4 < whole["splits"][0]["known"] == 40 * 6
    other = dataset_stats("given", "rpa=0.5", workspace)
    assert other["protocol"] == "custom/given-rpa0.5"


@pytest.mark.parametrize("name", ["labels.png", "labels.SVG", "deep/folder/labels.pdf"])
def test_the_picture_is_of_the_kind_that_its_name_says(name: str, holding: Make, tmp_path: Path) -> None:
    path = tmp_path / name
    draw_stats(dataset_stats("given", None, holding(random_labels(0))), path)
    content = path.read_bytes()
    if path.suffix == ".png":
        with Image.open(path) as picture:
            assert picture.format == "PNG" and picture.width > 1000
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 50  # something is drawn
    elif path.suffix == ".SVG":
        assert ElementTree.fromstring(content).tag.endswith("svg")
    else:
        assert content.startswith(b"%PDF")
    assert [item.name for item in path.parent.iterdir() if item.is_file()] == [path.name]


def test_class_names_are_no_formulas_and_no_markup(holding: Make, tmp_path: Path) -> None:
    draw_stats(dataset_stats("given", None, holding(random_labels(0))), tmp_path / "labels.svg")
    text = (tmp_path / "labels.svg").read_text()
    for name in ("&lt;dog&gt;", "Bühne &amp; co"):
        assert f"<!-- {name} -->" in text or name in text


@pytest.mark.parametrize("name", ["labels.jpg", "labels", "labels.png.txt", ".png"])
def test_another_name_is_one_sentence_before_anything_is_read(name: str, tmp_path: Path) -> None:
    with pytest.raises(PlbenchError, match=rf"`out=.*{re.escape(name)}`: give a name that ends in \.png, \.svg, \.pdf"):
        draw_stats({}, tmp_path / name)
    said = plbench("data", "stats", "openimages-v6", "--data-root", tmp_path / "nowhere", "--out", tmp_path / name)
    assert said.code == 2 and "give a name that ends in .png, .svg, .pdf" in said.err and said.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(holding: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"could not write .*labels\.png"):
        draw_stats(dataset_stats("given", None, holding(random_labels(0))), tmp_path / "file" / "labels.png")


def test_the_command_prints_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLBENCH_CACHE", str(tmp_path / "cache"))
    OpenImagesV6(tmp_path / "data").make_fixture()
    command = ["data", "stats", "openimages-v6", "--data-root", tmp_path / "data", "--quiet"]
    stats = plbench(*command, "--json", "--out", tmp_path / "labels.svg").json
    assert (tmp_path / "labels.svg").stat().st_size > 10_000
    assert stats["protocol"] == "custom/openimages-v6" and len(stats["classes"]) == 10
    said = plbench(*command)
    assert said.code == 0 and all(row["class"].split(",")[0] in said.out for row in stats["classes"][:5])
    assert all(f"{row['known']:,}" in said.out for row in stats["splits"])

"""Test images that are train images stop a run, whatever they are called and wherever they lie."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plbench.api import DataError, ImageFiles, LabelledSplit, PartialLabels
from plbench.cli.request import options_of
from plbench.runs.inspect.verify import verify_dataset
from plbench.runs.plan.duplicates import contradicting_copies, find_duplicates
from plbench.runs.plan.near_duplicates import find_near_duplicates
from plbench.runs.plan.resolve import Request, plan_from_spec, plan_run
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.run import run
from plbench.runs.workspace import Workspace, open_dataset
from plbench.testing.datasets import check_one_dataset

pytestmark = pytest.mark.usefixtures("quick_records")


def noise(seed: int, side: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8))


def make_table(folder: Path) -> dict[str, str]:
    """20 train and 10 test images, all different, in folders of their own; options of the dataset `table`."""
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "split", "a", "b"])
        for row in range(30):
            split = "test" if row >= 20 else "train"
            path = folder / "images" / split / f"{row:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise(row).save(path)
            writer.writerow([f"{split}/{path.name}", split, row % 2, row // 2 % 2])
    return {"labels": str(folder / "labels.csv"), "images": str(folder / "images"), "negative_value": "0"}


@pytest.fixture
def workspace(make_workspace: Callable[..., Workspace], tmp_path: Path) -> Workspace:
    return replace(make_workspace(), data_options=make_table(tmp_path))


def planned(workspace: Workspace, **changes: Any) -> ResolvedRun:
    model = {"backbone": "test_resnet", "weights": "random", "image_size": 32}
    return plan_run(Request("table", "ce-negative", model=model, plan={"epochs": 1}, **changes), workspace)


def copied(one: Path, other: Path) -> None:
    shutil.copyfile(one, other)


def linked(one: Path, other: Path) -> None:
    other.unlink()
    other.symlink_to(one)


def hard_linked(one: Path, other: Path) -> None:
    other.unlink()
    os.link(one, other)


@pytest.mark.parametrize("copy", [copied, linked, hard_linked])
def test_they_stop_a_run_by_their_bytes(
    workspace: Workspace, tmp_path: Path, copy: Callable[[Path, Path], None]
) -> None:
    planned(workspace)
    for number in range(4):
        copy(tmp_path / "images" / "train" / f"{number:02d}.png", tmp_path / "images" / "test" / f"{20 + number}.png")
    with pytest.raises(
        DataError,
        match=r"^4 test images are byte-identical to train images \(test/20.png = train/00.png, test/21.png = "
        r"train/01.png, test/22.png = train/02.png, \.\.\.\), so .*`allow_duplicates=True`",
    ):
        planned(workspace)


def test_they_may_stay_where_somebody_says_so(workspace: Workspace, tmp_path: Path) -> None:
    without = planned(workspace, allow_duplicates=True)
    assert without.spec == planned(workspace).spec and without.spec.duplicates is None
    copied(tmp_path / "images" / "train" / "03.png", tmp_path / "images" / "test" / "25.png")
    plan = planned(workspace, allow_duplicates=True)
    assert plan.spec.duplicates == 1 and plan.spec.protocol.name.startswith("custom/")
    assert "--allow-duplicates" in options_of(plan, workspace)
    record = run(plan, workspace)
    assert any("byte-identical to train images: 1 (--allow-duplicates)" in warning for warning in record.warnings)
    assert plan_from_spec(plan.spec, workspace).spec == plan.spec


def test_a_study_or_a_run_on_the_fit_part_is_stopped_without_opening_test_labels(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(tmp_path / "images" / "train" / "03.png", tmp_path / "images" / "test" / "25.png")
    monkeypatch.setattr(PartialLabels, "rows", lambda self, index: pytest.fail("labels were looked at"))
    with pytest.raises(DataError, match="1 test image is byte-identical to a train image"):
        planned(workspace)


def test_images_that_are_left_out_do_not_count(workspace: Workspace, tmp_path: Path) -> None:
    for path in ("train/03.png", "test/25.png"):
        (tmp_path / "images" / path).write_bytes(b"both are broken")
    assert planned(workspace, skip_unreadable=True).spec.duplicates is None


def test_check_and_verify_say_so(workspace: Workspace, tmp_path: Path) -> None:
    def sights() -> tuple[list[Any], list[Any]]:
        findings = check_one_dataset("table", workspace, fixture=False)
        checks = verify_dataset("table", workspace, decode=False)
        return [f for f in findings if f.check == "train apart from test"], [c for c in checks if "apart" in c.what]

    (finding,), (check,) = sights()
    assert finding.passed and check.well
    for number in range(10):
        copied(tmp_path / "images" / "train" / f"{number:02d}.png", tmp_path / "images" / "test" / f"{20 + number}.png")
    (finding,), (check,) = sights()
    assert finding.passed is False and check.well is False
    assert finding.seen.startswith("10 test images are byte-identical to train images (test/20.png = train/00.png, ")
    assert check.found == finding.seen and check.fix is not None and "`allow_duplicates=True`" in check.fix


def test_one_file_in_both_parts_is_called_that(workspace: Workspace) -> None:
    """As LVIS's images of val lie in the folder of COCO's train."""
    dataset = open_dataset("table", workspace)
    train, test = dataset.split("train"), dataset.split("test")
    both = ImageFiles(test.images.root, (*test.images.paths, *train.images.paths[4:7]), tuple(map(str, range(13))))
    dataset._splits["test"] = LabelledSplit(both, PartialLabels.from_dense(np.ones((13, 2)), ("a", "b")))
    found = find_duplicates(dataset, "train", "test")
    assert str(found) == "3 test images are the same files as train images (train/04.png, train/05.png, train/06.png)"


def test_copies_that_contradict_each_other(tmp_path: Path) -> None:
    for row, seed in enumerate((0, 1, 0, 2, 0, 1)):
        noise(seed).save(tmp_path / f"{row}.png")
    images = ImageFiles(tmp_path, tuple(f"{row}.png" for row in range(6)), tuple("abcdef"))
    labels = np.zeros((6, 2), np.int8)
    labels[0], labels[2], labels[4] = (1, 0), (0, 1), (-1, 0)
    labels[1], labels[5] = (1, -1), (1, 0)
    split = LabelledSplit(images, PartialLabels.from_dense(labels, ("x", "y")))
    assert contradicting_copies(split, images.sha256s()) == [("0.png", "4.png")]


class TestNearDuplicates:
    @pytest.fixture
    def pictures(self, tmp_path: Path) -> Callable[[str, list[Image.Image]], ImageFiles]:
        def write(name: str, images: list[Image.Image]) -> ImageFiles:
            (tmp_path / name).mkdir()
            for row, image in enumerate(images):
                image.save(tmp_path / name / f"{row}.png")
            paths = tuple(f"{name}/{row}.png" for row in range(len(images)))
            return ImageFiles(tmp_path, paths, paths)

        return write

    def test_another_size_quality_or_brightness_is_found(
        self, pictures: Callable[..., ImageFiles], tmp_path: Path
    ) -> None:
        large = [noise(seed, 8).resize((160, 120), Image.Resampling.BICUBIC) for seed in range(40)]
        large[3].save(tmp_path / "3.jpg", quality=40)
        changed = [
            large[7].resize((80, 60)),
            Image.open(tmp_path / "3.jpg"),
            large[20].point(lambda value: min(255, value + 4)),
            noise(100, 8).resize((160, 120)),
            large[9].transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        ]
        found = find_near_duplicates(pictures("train", large), pictures("test", changed))
        assert found == [("test/0.png", "train/7.png"), ("test/1.png", "train/3.png"), ("test/2.png", "train/20.png")]

    def test_flat_pictures_and_broken_ones_are_like_no_other(
        self, pictures: Callable[..., ImageFiles], tmp_path: Path
    ) -> None:
        flat = [Image.new("RGB", (32, 32), (value, value, value)) for value in (0, 100, 101, 255)]
        train, test = pictures("train", [*flat, noise(1)]), pictures("test", [*flat, noise(1)])
        (tmp_path / "test" / "4.png").write_bytes(b"broken")
        steps: list[tuple[int, int]] = []
        assert find_near_duplicates(train, test, lambda done, total: steps.append((done, total))) == []
        assert steps[-1] == (10, 10)


def test_a_sweep_can_allow_them(tmp_path: Path) -> None:
    from plbench.sweeps.grid import Grid

    content = {"methods": ["ce-negative"], "datasets": ["table"], "allow_duplicates": True}
    assert Grid.model_validate(json.loads(json.dumps(content))).allow_duplicates == [True]

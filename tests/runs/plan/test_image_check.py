"""Images are checked once; only those that failed are read again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plbench.api import DataError, Dataset
from plbench.runs.plan import image_check
from plbench.runs.plan.image_check import check_images
from plbench.runs.workspace import Workspace, open_dataset


@pytest.fixture
def opened(
    tiny_dataset: type[Any], make_workspace: Callable[..., Workspace], tmp_path: Path
) -> tuple[Dataset, Workspace]:
    class WithFiles(tiny_dataset):  # type: ignore[misc]
        needs_files = True

    WithFiles(tmp_path / "data").prepare(lambda done, total: None)
    workspace = replace(make_workspace(WithFiles), data_root=tmp_path / "data")
    return open_dataset("tiny", workspace), workspace


@pytest.fixture
def num_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each check reads."""
    real, counts = image_check.find_unreadable, []

    def counting(images: Any, report: Any) -> dict[int, str]:
        counts.append(len(images))
        return real(images, report)

    monkeypatch.setattr(image_check, "find_unreadable", counting)
    return counts


def test_whole_images_are_read_once(opened: tuple[Dataset, Workspace], num_read: list[int]) -> None:
    dataset, workspace = opened
    for _ in range(2):
        assert check_images(dataset, dataset.protocols[0], workspace, skip=False) == ()
    assert num_read == [48, 24, 0, 0]


def test_only_broken_images_are_read_again(opened: tuple[Dataset, Workspace], num_read: list[int]) -> None:
    dataset, workspace = opened
    (dataset.root / "train" / "5.png").write_bytes(b"no picture")
    for _ in range(2):
        assert check_images(dataset, dataset.protocols[0], workspace, skip=True) == ("train/train-5",)
    assert num_read == [48, 24, 1, 0]
    (dataset.root / "test" / "7.png").unlink()
    with pytest.raises(DataError, match=r"5\.png cannot be read.*2 such images in all"):
        check_images(dataset, dataset.protocols[0], workspace, skip=False)


@pytest.mark.parametrize("note", ["", "{}", "[]", '{"unreadable": 3}'])
def test_a_note_that_says_nothing_is_as_good_as_none(
    note: str, opened: tuple[Dataset, Workspace], num_read: list[int]
) -> None:
    dataset, workspace = opened
    check_images(dataset, dataset.protocols[0], workspace, skip=False)
    for path in (workspace.store.cache / "checked").glob("*.json"):
        path.write_text(note)
    assert check_images(dataset, dataset.protocols[0], workspace, skip=False) == ()
    assert num_read == [48, 24, 48, 24]

"""Contact sheets: which images are on them, in which order, and that their text stays in its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plbench.data.images import ImageFiles
from plbench.errors import PlbenchError
from plbench.runs.inspect import pictures, sheets
from plbench.runs.inspect.pictures import certainty_sheet, uncertainty
from plbench.runs.inspect.sheets import fitted
from plbench.runs.predict import Predictions


def test_uncertainty_is_the_entropy_of_all_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_ROWS", 2)
    scores = np.array([[0, 1, 1], [0.5, 0.5, 0.5], [0.5, 0, 0.5], [0.25, 1, 0]], np.float32)
    assert uncertainty(scores).tolist() == pytest.approx([0, 3, 2, 2 - 0.75 * np.log2(3)])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Titles of sections, and the last line of each tile: the image's name."""
    found: list[tuple[str, list[str]]] = []
    draw = sheets.draw_sheet

    def listen(sections: list[sheets.Section], path: Path, num_lines: int) -> None:
        found.extend((section.title, [tile.lines[-1][0] for tile in section.tiles]) for section in sections)
        draw(sections, path, num_lines)

    monkeypatch.setattr(pictures, "draw_sheet", listen)
    return found


def scored(folder: Path, certain: list[float], unreadable: tuple[str, ...] = ()) -> tuple[Predictions, ImageFiles]:
    """Images whose colour is their row, with scores that are as sure as asked."""
    names = [f"{row}.png" for row in range(len(certain) + len(unreadable))]
    for row, name in enumerate(names):
        Image.new("RGB", (40, 30), (row * 20, 0, 200)).save(folder / name)
    kept = [name for name in names if name not in unreadable]
    scores = np.array([[value, 1 - value] for value in certain], np.float32)
    found = Predictions(tuple(kept), ("猫 " + "w" * 90, "dog"), scores, dict.fromkeys(unreadable, "broken"))
    return found, ImageFiles(folder, tuple(names), tuple(names))


@pytest.mark.parametrize("ending", [".png", ".jpg", ".pdf"])
def test_the_most_and_the_least_certain_are_drawn(
    ending: str, drawn: list[tuple[str, list[str]]], tmp_path: Path
) -> None:
    found, images = scored(tmp_path, [0.6, 0.99, 0.5, 0.9, 0.7], unreadable=("1.png",))
    certainty_sheet(found, images, tmp_path / f"sheet{ending}", 2)
    assert drawn == [
        ("Most certain: 2 of 5 images", ["2.png", "4.png"]),
        ("Least certain: 2 of 5 images", ["3.png", "0.png"]),
    ]
    content = (tmp_path / f"sheet{ending}").read_bytes()
    assert content.startswith({".png": b"\x89PNG", ".jpg": b"\xff\xd8", ".pdf": b"%PDF"}[ending])
    if ending == ".png":
        with Image.open(tmp_path / "sheet.png") as sheet:
            pixels = np.asarray(sheet)
        height = 26 + 176 + 8 + 6 * 15
        assert pixels.shape == (8 + 2 * height, 8 + 2 * 184, 3)
        tops = [pixels[8 + 26 + 60, 8 + 88], pixels[8 + height + 26 + 60, 8 + 88]]
        assert [int(pixel[0]) for pixel in tops] == [40, 60], "the very images, by their colours"
        gap = pixels[8 + 26 + 176 : 8 + height - 8, 8 + 177 : 8 + 184]
        assert (gap == 255).all(), "a long class name ends before the next image"


@pytest.mark.parametrize(("number", "most", "least"), [(1, 1, 0), (3, 2, 1), (4, 2, 2)])
def test_no_image_is_drawn_twice(
    number: int, most: int, least: int, drawn: list[tuple[str, list[str]]], tmp_path: Path
) -> None:
    found, images = scored(tmp_path, [0.6, 0.99, 0.5, 0.9][:number])
    certainty_sheet(found, images, tmp_path / "sheet.png", 10)
    names = [name for _, tiles in drawn for name in tiles]
    assert [len(tiles) for _, tiles in drawn] == [most, least] and len({*names}) == number


def test_names_are_cut_where_they_do_not_matter() -> None:
    assert fitted("dog", " 0.50") == "dog 0.50"
    long = fitted("w" * 90, " 0.50")
    assert long.endswith("w… 0.50") and sheets._width(long) <= 176
    path = fitted("deep/" * 30 + "last.jpg", keeps_end=True)
    assert path.startswith("…") and path.endswith("/last.jpg") and sheets._width(path) <= 176


def test_a_sheet_of_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlbenchError, match=r"contact_sheet=.*sheet\.gif`: its name must end in one of"):
        sheets.check_sheet_name(tmp_path / "sheet.gif")

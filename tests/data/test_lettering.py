"""Class names in any script: drawn by a font that has them, else by their id, and never as boxes."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.figure import Figure
from PIL import Image

from plbench.api import ImageFiles, LabelledSplit, PartialLabels
from plbench.data import lettering
from plbench.data.lettering import drawable, drawable_names, dress, font_runs
from plbench.experiments.shared.style import new_figure, plain, save, styled
from plbench.runs.inspect.pictures import contact_sheet
from plbench.runs.inspect.statistics import draw_stats

CAT_IN_CHINESE, CAT_IN_THAI, CAT_IN_ARABIC, CAT_IN_JAPANESE = "\u732b", "\u0e41\u0e21\u0e27", "قطة", "ねこ"
BLACK_CAT = "\U0001f408\u200d\u2b1b"  # two emoji that are joined to one
SCHOOL = "e\u0301cole"  # a letter and an accent that combine


def make_font(path: Path, characters: str) -> str:
    """A font of squares, for the given characters alone."""
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for corner in ((100, 700), (700, 700), (700, 0)):
        pen.lineTo(corner)
    pen.closePath()
    names = [".notdef", *(f"uni{ord(character):04X}" for character in characters)]
    font = FontBuilder(1000)
    font.setupGlyphOrder(names)
    font.setupCharacterMap({ord(character): name for character, name in zip(characters, names[1:], strict=True)})
    font.setupGlyf(dict.fromkeys(names, pen.glyph()))
    font.setupHorizontalMetrics(dict.fromkeys(names, (800, 100)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(path)
    return str(path)


@pytest.fixture(autouse=True)
def fonts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The machine's fonts: none beside matplotlib's, until a test adds one. Nothing is known of them yet."""
    installed: list[str] = []
    lettering._font_of.cache_clear()
    monkeypatch.setattr(lettering, "_system_fonts", lambda: installed)
    return installed


@pytest.fixture
def strict() -> Iterator[None]:
    """A warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("name", ["cat", "chat, très noir", "Ελλάς", "кошка", CAT_IN_ARABIC, SCHOOL, "a\nb", ""])
def test_what_comes_with_matplotlib_is_written(name: str) -> None:
    assert drawable(name, "id") == name


@pytest.mark.parametrize("name", [CAT_IN_CHINESE, CAT_IN_JAPANESE, CAT_IN_THAI, BLACK_CAT, "cat\t", "cat\u200e\u202e"])
def test_the_id_is_written_where_no_font_has_the_name(name: str) -> None:
    assert drawable(name, "n01") == "n01"
    escaped = drawable(f"A {name}", name)  # an id that is no better
    assert escaped.startswith("A ") and escaped.isascii() and escaped.isprintable() and "\\u" in escaped


def test_only_what_is_missing_is_escaped() -> None:
    assert drawable(f"café {CAT_IN_CHINESE}") == "café \\u732b"


def test_a_font_that_has_it_is_used(fonts: list[str], tmp_path: Path) -> None:
    chinese = make_font(tmp_path / "Cats.ttf", CAT_IN_CHINESE)
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    fonts += [str(tmp_path / "damaged.ttf"), str(tmp_path / "gone.ttf"), chinese]
    names = drawable_names([CAT_IN_CHINESE, CAT_IN_THAI, "cat"], ["n1", "n2", "n3"])
    assert names == [CAT_IN_CHINESE, "n2", "cat"]
    runs = font_runs(f"cat {CAT_IN_CHINESE}{CAT_IN_CHINESE} é")
    assert [part for _, part in runs] == ["cat ", CAT_IN_CHINESE * 2, " é"]
    assert [font == chinese for font, _ in runs] == [False, True, False]
    assert len(font_runs(f"{CAT_IN_ARABIC}, cat")) == 1, "right to left is laid out as a whole"


def sheet_of(names: list[str], ids: list[str], folder: Path) -> bytes:
    Image.new("RGB", (40, 30), "red").save(folder / "a.png")
    labels = PartialLabels.from_dense(np.array([[1] * len(names), [1, *[-1] * (len(names) - 1)]], np.int8), ids, names)
    images = ImageFiles(folder, ("a.png", "a.png"), ("a", "b"))
    contact_sheet(LabelledSplit(images, labels), folder / "sheet.png", 2)
    return (folder / "sheet.png").read_bytes()


NAMES = [CAT_IN_CHINESE, CAT_IN_THAI, BLACK_CAT, CAT_IN_JAPANESE]
IDS = ["n01", "n02", "n03", "n04"]


@pytest.mark.usefixtures("strict")
def test_a_contact_sheet_has_ids_in_place_of_boxes(tmp_path: Path) -> None:
    assert sheet_of(NAMES, IDS, tmp_path) == sheet_of(IDS, IDS, tmp_path)


@pytest.mark.usefixtures("strict")
def test_a_contact_sheet_has_names_where_a_font_does(fonts: list[str], tmp_path: Path) -> None:
    without = sheet_of(NAMES, IDS, tmp_path)
    lettering._font_of.cache_clear()
    fonts.append(make_font(tmp_path / "Cats.ttf", CAT_IN_CHINESE))
    assert sheet_of(NAMES, IDS, tmp_path) != without
    with Image.open(tmp_path / "sheet.png") as sheet:
        first = np.asarray(sheet)[8 + 176 + 2 : 8 + 176 + 17, 8:20]
    assert (first == 0).all(axis=2).sum() > 30, "the square that the font draws"


@pytest.mark.parametrize("name", [CAT_IN_CHINESE * 60, f"{CAT_IN_ARABIC} " * 40, "w" * 300, "éä " * 100])
def test_a_caption_stays_below_its_image(name: str, fonts: list[str], tmp_path: Path) -> None:
    fonts.append(make_font(tmp_path / "Cats.ttf", CAT_IN_CHINESE))
    sheet_of([name], ["id"], tmp_path)
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    gap = pixels[:, 8 + 176 + 2 : 8 + 176 + 7]  # between the two images
    assert (gap == 255).all()
    assert (pixels[8 + 176 :] < 128).any() and (pixels[-6:] == 255).all()


def stats_of(names: list[str], ids: list[str]) -> dict[str, Any]:
    classes = [
        {"class": name, "id": identity, "train_positives": 3, "train_negatives": 2}
        for name, identity in zip(names, ids, strict=True)
    ]
    return {
        "dataset": "d",
        "protocol": "p",
        "splits": [{"known": 5, "density_percent": 1}],
        "classes": classes,
        "positives_in_an_image": {"train": [1, 2], "test": [1, 2]},
    }


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
@pytest.mark.parametrize("installed", [False, True])
def test_statistics_are_drawn_without_warnings(kind: str, installed: bool, fonts: list[str], tmp_path: Path) -> None:
    if installed:
        fonts.append(make_font(tmp_path / "Cats.ttf", CAT_IN_CHINESE))
    draw_stats(stats_of(NAMES, IDS), tmp_path / f"names.{kind}")
    lettering._font_of.cache_clear()
    fonts.clear()
    draw_stats(stats_of(IDS, IDS), tmp_path / f"ids.{kind}")
    if kind == "png":
        names, ids = (np.asarray(Image.open(tmp_path / f"{what}.png")) for what in ("names", "ids"))
        assert (names.shape == ids.shape and np.array_equal(names, ids)) == (not installed)


@pytest.mark.usefixtures("strict")
def test_figures_of_a_study_are_drawn_without_warnings(fonts: list[str], tmp_path: Path) -> None:
    fonts.append(make_font(tmp_path / "Cats.ttf", CAT_IN_CHINESE))
    with styled():
        figure, (axes,) = new_figure(1)
        axes.set_yticks([0, 1], [plain(f"{CAT_IN_CHINESE} $x$"), plain(CAT_IN_THAI)])
        axes.set_title(plain(f"{BLACK_CAT} {CAT_IN_CHINESE}"))
    save(figure, tmp_path, "f")
    svg = (tmp_path / "f.svg").read_text(encoding="utf-8")
    assert CAT_IN_CHINESE in svg and "Cats" in svg and CAT_IN_THAI not in svg and "\\u0e41" in svg


def test_a_figure_without_such_names_is_left_alone() -> None:
    figure = Figure()
    text = figure.text(0, 0, drawable("cat"))
    before = text.get_fontfamily()
    dress(figure)
    assert text.get_fontfamily() == before

"""A small imitation of Vireo Food-172.

What makes real files awkward is in it: paths that begin with `/`, lines of all splits in one file and in another order,
a value that is neither 1 nor -1, an ingredient's name with a comma, another that stands twice, and lines that end as on
Windows.
"""

from __future__ import annotations

from pathlib import Path

from ..coco.fixture import draw_presence
from ..fixture_images import write_image

_SIZES = {"TR": 60, "VAL": 8, "TE": 30}
_NUM_INGREDIENTS = 12


def write_vireo_fixture(root: Path) -> None:
    """Write lists, ingredients and pictures."""
    folder = root / "SplitAndIngreLabel"
    folder.mkdir(parents=True)
    labels: list[str] = []
    for part, size in _SIZES.items():
        names = []
        for row, present in enumerate(draw_presence(max(size, 14), [20] * _NUM_INGREDIENTS, seed=172 + size)[:size]):
            names.append(f"/{row % 4 + 1}/{size}_{row}.jpg")
            write_image(root / "ready_chinese_food" / names[-1][1:], present, seed=100 * size + row)
            words = ["1" if column in present else "-1" for column in range(_NUM_INGREDIENTS)]
            if row == 5:
                words[words.index("-1")] = "0"
            labels.append(f"{names[-1]} {' '.join(words)}\n")
        (folder / f"{part}.txt").write_text("".join(f"{name}\r\n" for name in names), newline="")
    (folder / "IngreLabel.txt").write_text("".join(sorted(labels, key=lambda line: line[::-1])))
    names = [f"Minced thing {number}" for number in range(_NUM_INGREDIENTS)]
    names[3], names[7] = "Egg, fried", names[2]
    (folder / "IngredientList.txt").write_text("".join(f"{name}\n" for name in names))

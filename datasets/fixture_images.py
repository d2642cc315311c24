"""Small pictures for fixtures: imitations of published datasets, for tests and tutorials.

A class is a mark of its own colour and shape at its own place, so that a network of any size learns it from a few
dozen pictures. Not to be mistaken for `scenes`, which is drawn to be hard.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 112  # px
NUM_CLASSES = 48  # marks that differ

_PLACES = 4  # by 4, each 28 px wide
_COLOURS = np.array(
    [
        *((230, 40, 40), (40, 180, 60), (50, 90, 240), (245, 220, 40), (240, 130, 20)),
        *((170, 60, 220), (40, 210, 220), (245, 130, 190), (130, 80, 40), (250, 250, 250), (15, 15, 15)),
    ],
    np.int16,
)


def draw(present: Sequence[int], seed: int) -> Image.Image:
    """Return a picture of some classes; the same arguments give the same pixels on every machine.

    Args:
        present: numbers of the classes to show, from 0 to `NUM_CLASSES` - 1, in any order. Those 16 apart share a
            place, where the higher one covers the lower.
        seed: of backdrop, grain, and where within their places the marks stand.

    Returns:
        An RGB image, `SIDE` px square.

    Raises:
        ValueError: if there is no such class.
    """
    if unknown := [number for number in present if not 0 <= number < NUM_CLASSES]:
        raise ValueError(f"there is no mark for class {unknown[0]}; they are 0 to {NUM_CLASSES - 1}")
    dice = np.random.PCG64(seed).random_raw(4 + SIDE * SIDE // 8).astype("<u8").view(np.uint8).astype(np.int16)
    canvas = np.empty((SIDE, SIDE, 3), np.int16)
    canvas[:] = 70 + dice[:3] // 3 + np.linspace(0, dice[3] // 8, SIDE).astype(np.int16)[:, None, None]
    canvas += dice[32:].reshape(SIDE, SIDE, 1) // 16
    for number in sorted(set(present)):
        left, top, wide, _ = box(number)
        down, right = (int(dice[4 + (5 * number + axis) % 28]) % 5 - 2 for axis in range(2))
        mark = np.roll(_mark(number % 6, wide), (down, right), (0, 1))
        canvas[top : top + wide, left : left + wide][mark] = _COLOURS[number % len(_COLOURS)]
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))


def box(number: int) -> tuple[int, int, int, int]:
    """Return the place of a class's mark in px: left, top, width, height.

    The mark leaves a margin of one to five in it.
    """
    wide = SIDE // _PLACES
    top, left = divmod(number % _PLACES**2, _PLACES)
    return wide * left, wide * top, wide, wide


def write_image(path: Path, present: Sequence[int], seed: int) -> None:
    """Draw a picture into a file, whose folder is made; the suffix says the format, such as `.jpg`.

    Args:
        present, seed: as `draw` takes them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(present, seed).save(path, quality=90)


def _mark(shape: int, wide: int) -> npt.NDArray[np.bool_]:
    """Return which pixels of a place belong to one of six shapes: three pixels are left free on every side."""
    down, right = np.abs(2 * np.mgrid[:wide, :wide] + 1 - wide)
    radius = wide - 6
    disc: npt.NDArray[np.bool_] = down**2 + right**2 <= radius**2
    box = np.maximum(down, right) <= radius
    shapes = (
        disc,
        box,
        down + right <= radius,  # diamond
        box & (np.minimum(down, right) <= radius // 3),  # cross
        disc & (down**2 + right**2 > (radius // 2) ** 2),  # ring
        box & (down % 16 < 8),  # stripes
    )
    return shapes[shape]

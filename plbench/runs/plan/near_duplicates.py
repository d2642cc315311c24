"""Test images that look like train images: by a perceptual hash, then by their pixels at 16 x 16."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from plbench.data.images import ImageSource
from plbench.errors import DataError
from plbench.runs.plan.duplicates import short_name

MAX_LOOKED_AT = 200_000
"""Maximum number of images to decode: minutes on a few cores."""

_SIDE = 16  # side in pixels of the pictures that are compared
_MAX_BITS = 3  # of 64 that may differ: then one of four bands of 16 bits is identical
_MAX_DIFFERENCE = 6.0  # of 255, mean over the 16 x 16 pixels
_MIN_CONTRAST = 4.0  # standard deviation of those pixels: flatter pictures all look alike


class _Looks(NamedTuple):
    """Of N images: dHash [N] uint64, pixels [N, 256] float32, and whether they have enough contrast [N]."""

    hashes: npt.NDArray[np.uint64]
    pixels: npt.NDArray[np.float32]
    tells: npt.NDArray[np.bool_]


def find_near_duplicates(
    train: ImageSource, test: ImageSource, report: Callable[[int, int], None] = lambda done, total: None
) -> list[tuple[str, str]]:
    """Return pairs of a test and a train image that look alike, each test image once.

    The hash is dHash: whether each of 8 x 8 pixels of a small grey picture is darker than its right neighbour (N.
    Krawetz, 2013). Pairs that share one of its four bands of 16 bits are compared bit by bit, then pixel by pixel.
    Unreadable images have no duplicates.

    Args:
        report: receives the number of images done and in total.
    """
    total = len(train) + len(test)
    ours = _looks(test, lambda done: report(done, total))
    theirs = _looks(train, lambda done: report(len(test) + done, total))
    found: dict[int, int] = {}
    for shift in (0, 16, 32, 48):
        our_band, their_band = ((one.hashes >> np.uint64(shift)) & np.uint64(0xFFFF) for one in (ours, theirs))
        order = np.argsort(their_band, kind="stable")
        begins = np.searchsorted(their_band[order], our_band, "left")
        ends = np.searchsorted(their_band[order], our_band, "right")
        for row in np.flatnonzero((ends > begins) & ours.tells).tolist():
            if row in found:
                continue
            candidates = order[begins[row] : ends[row]]
            candidates = candidates[theirs.tells[candidates]]
            bits = (theirs.hashes[candidates] ^ ours.hashes[row]).view(np.uint8).reshape(-1, 8)
            candidates = candidates[np.unpackbits(bits, axis=1).sum(axis=1) <= _MAX_BITS]
            differences = np.abs(theirs.pixels[candidates] - ours.pixels[row]).mean(axis=1)
            for alike in candidates[differences <= _MAX_DIFFERENCE][:1].tolist():
                found[row] = alike
    return [(short_name(test, row), short_name(train, found[row])) for row in sorted(found)]


def _looks(images: ImageSource, report: Callable[[int], None]) -> _Looks:
    hashes, pixels = np.zeros(len(images), np.uint64), np.zeros((len(images), _SIDE * _SIDE), np.float32)

    def look(row: int) -> None:
        try:
            image = images.load(row, min_side=_SIDE).convert("L")
        except DataError:
            return  # unreadable images are found by another check
        small = np.asarray(image.resize((9, 8), Image.Resampling.BILINEAR))
        hashes[row] = np.packbits(small[:, :-1] < small[:, 1:]).view(np.uint64)[0]
        pixels[row] = np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR), np.float32).ravel()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, _ in enumerate(pool.map(look, range(len(images))), 1):
            report(done)
    return _Looks(hashes, pixels, pixels.std(axis=1) >= _MIN_CONTRAST)

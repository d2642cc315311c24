"""The pictures and truth of `scenes`, the default dataset, drawn from integers alone.

A scene is up to five objects (a shape, plain or striped, of one colour) over a backdrop with up to six
attributes. The frequencies of objects fall geometrically; each shape has a habitual colour, and a class
tends to repeat within a scene. Pixels and labels are the same to the bit on every machine and numpy
version: the one source of chance is the raw stream of PCG64, and no float decides a pixel.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

DRAWING_VERSION = 1
DATASET_SEED = 20_240_917
IMAGE_SIZE = 96
SPLIT_SIZES = {"train": 8000, "test": 3000}

Mask = npt.NDArray[np.bool_]
Canvas = npt.NDArray[np.int16]  # [3, H, W] while drawing: room for overshoot, and whole planes to paint on
Integers = npt.NDArray[np.int64]
Kind = Literal["object", "colour", "attribute"]


class Shape(NamedTuple):
    """A silhouette and the colour it has more often than chance.

    `parts` are added (+) or cut out (-) in order, on the square [-100, 100]^2 with y downwards: "oval" centre
    and radii, "box" left top right bottom, "poly" corner after corner.
    """

    habit: str
    parts: str


SHAPES = {
    "ball": Shape("orange", "+oval 0 0 92 92"),
    "box": Shape("brown", "+box -84 -84 84 84"),
    "triangle": Shape("yellow", "+poly 0 -95 98 82 -98 82"),
    "star": Shape("yellow", "+poly 0 -98 24 -32 95 -30 38 13 59 80 0 40 -59 80 -38 13 -95 -30 -24 -32"),
    "heart": Shape("pink", "+oval -45 -38 49 49, +oval 45 -38 49 49, +poly -90 -18 0 -45 90 -18 0 95"),
    "cross": Shape("red", "+box -32 -95 32 95, +box -95 -32 95 32"),
    "crescent": Shape("white", "+oval 0 0 94 94, -oval 46 -18 78 78"),
    "ring": Shape("purple", "+oval 0 0 94 94, -oval 0 0 50 50"),
    "arrow": Shape("green", "+box -96 -26 15 26, +poly 10 -80 97 0 10 80"),
    "hourglass": Shape("brown", "+poly -80 -95 80 -95 14 0 80 95 -80 95 -14 0"),
    "house": Shape("red", "+box -70 -15 70 92, +poly -98 -10 0 -96 98 -10, -box -18 30 22 92"),
    "tree": Shape(
        "green",
        "+poly 0 -98 48 -30 -48 -30, +poly 0 -60 66 18 -66 18, +poly 0 -15 84 66 -84 66, +box -16 66 16 98",
    ),
    "fish": Shape("cyan", "+oval -24 0 73 50, +poly 20 0 97 -58 78 0 97 58, -oval -60 -14 10 10"),
    "boat": Shape("white", "+poly -97 36 97 36 60 90 -60 90, +poly 10 -98 10 22 84 22, +poly -8 -70 -8 22 -66 22"),
    "car": Shape(
        "blue",
        "+box -97 -8 97 46, +poly -66 -8 -42 -62 40 -62 66 -8, -box -34 -46 -4 -12, -box 10 -46 36 -12, "
        "+oval -52 46 27 27, +oval 52 46 27 27",
    ),
    "mushroom": Shape("brown", "+oval 0 0 96 90, -box -100 5 100 100, +box -26 5 26 96"),
    "umbrella": Shape(
        "purple",
        "+oval 0 0 97 92, -box -100 0 100 100, -oval -65 4 30 24, -oval 65 4 30 24, "
        "+box -8 -5 10 80, +box -44 70 10 90, +box -44 50 -27 90",
    ),
    "flower": Shape(
        "pink",
        "+oval 0 -60 36 36, +oval 57 -19 36 36, +oval 35 48 36 36, +oval -35 48 36 36, +oval -57 -19 36 36, "
        "+oval 0 0 30 30, -oval 0 0 22 22",
    ),
    "bolt": Shape("yellow", "+poly 20 -98 -62 16 -8 16 -30 98 66 -26 10 -26 50 -98"),
    "cup": Shape("blue", "+oval 52 0 46 46, -oval 52 0 25 25, +poly -88 -80 50 -80 36 84 -74 84"),
}
TEXTURES = ("plain", "striped")
OBJECTS = tuple((shape, texture) for shape in SHAPES for texture in TEXTURES)
COLOURS = {
    "red": (208, 36, 40),
    "orange": (244, 134, 26),
    "yellow": (244, 220, 52),
    "green": (52, 156, 58),
    "cyan": (40, 206, 212),
    "blue": (40, 74, 204),
    "purple": (140, 48, 186),
    "pink": (250, 138, 196),
    "brown": (122, 76, 42),
    "white": (246, 246, 244),
}
ATTRIBUTE_PERCENT = {"night": 42, "mountains": 38, "tiled floor": 45, "rain": 40, "fog": 36, "frame": 35}

# Each rank is 11/12 as frequent as the one above; 17 has no factor in common with the 40 objects, so that
# the two textures of a shape lie 17 ranks apart.
_RANKS = tuple((17 * position + 5) % len(OBJECTS) for position in range(len(OBJECTS)))
OBJECT_WEIGHTS = tuple(10**6 * 11**rank // 12**rank for rank in _RANKS)
COLOUR_WEIGHTS = (17, 9, 13, 11, 4, 15, 6, 7, 3, 14)
HABIT_PERCENT = 50
REPEAT_PERCENT = 33  # how often an object is of the class of the one before it
NUM_OBJECTS = (2, 2, 2, 3, 3, 3, 3, 4, 4, 5)
SIZES = (32, 36, 40, 44, 49, 54)
# Cosine, sine and divisor: upright and 16 degrees either way, there a little smaller to keep the corners.
TILTS = ((1, 0, 1), (24, 7, 22), (24, -7, 22))
MIN_VISIBLE_PERCENT = 76
PLACING_TRIES = 30
PLAIN_GROUND_PERCENT = 40  # of the scenes without a tiled floor


@dataclass(frozen=True)
class SceneClass:
    """One class of the dataset; `id` is a stable slug such as "object/striped-star"."""

    id: str
    name: str
    kind: Kind


class Scene(NamedTuple):
    """One image with complete truth: pixels uint8 [H, W, 3], labels bool [C] in the order of `CLASSES`."""

    pixels: npt.NDArray[np.uint8]
    labels: Mask


_NAMES: dict[Kind, list[str]] = {
    "object": [f"{texture} {shape}" for shape, texture in OBJECTS],
    "colour": list(COLOURS),
    "attribute": list(ATTRIBUTE_PERCENT),
}
CLASSES = tuple(
    SceneClass(f"{kind}/{name.replace(' ', '-')}", name, kind) for kind, names in _NAMES.items() for name in names
)

_POSITION = {scene_class.id: position for position, scene_class in enumerate(CLASSES)}
_OBJECT_BOUNDS = tuple(accumulate(OBJECT_WEIGHTS))
_COLOUR_BOUNDS = tuple(accumulate(COLOUR_WEIGHTS))
_INK = np.array([[[26]], [[26]], [[32]]], dtype=np.int16)  # outlines and stripes
_ROW, _COLUMN = np.ogrid[:IMAGE_SIZE, :IMAGE_SIZE]


class _Dice:
    """Integers from a raw PCG64 stream: the only part of numpy.random whose values never change."""

    def __init__(self, split: str, index: int) -> None:
        digest = hashlib.sha256(f"scenes/{DATASET_SEED}/{split}/{index}".encode()).digest()
        self._bits = np.random.PCG64(int.from_bytes(digest[:16], "big"))

    def below(self, limit: int) -> int:
        return (int(self._bits.random_raw()) >> 32) * limit >> 32

    def between(self, low: int, high: int) -> int:
        return low + self.below(high - low + 1)

    def percent(self, chance: int) -> bool:
        return self.below(100) < chance

    def weighted(self, bounds: Sequence[int]) -> int:
        point = self.below(bounds[-1])
        return next(position for position, bound in enumerate(bounds) if point < bound)

    def many_below(self, limit: int, count: int) -> Integers:
        """Return `count` integers below `limit`, which is at most 256."""
        words = self._bits.random_raw(-(-count // 8)).astype("<u8")
        return words.view(np.uint8)[:count].astype(np.int64) * limit >> 8

    def paint(self, red: int, green: int, blue: int, spread: int) -> Canvas:
        """Return a colour near the given one, [3, 1]."""
        return np.array([[c + self.between(-spread, spread)] for c in (red, green, blue)], dtype=np.int16)


def _inside(form: str, numbers: list[int], x: Integers, y: Integers) -> Mask:
    """Return which points lie inside one part of a shape; all numbers in the same unit."""
    if form == "oval":
        centre_x, centre_y, radius_x, radius_y = numbers
        across, down = (x - centre_x) * radius_y, (y - centre_y) * radius_x
        return across * across + down * down <= (radius_x * radius_y) ** 2
    if form == "box":
        left, top, right, bottom = numbers
        return (left <= x) & (x < right) & (top <= y) & (y < bottom)
    inside = np.zeros(x.shape, dtype=np.bool_)
    corners = list(zip(numbers[::2], numbers[1::2], strict=True))
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        if y0 > y1:
            x0, y0, x1, y1 = x1, y1, x0, y0
        inside ^= (y0 <= y) & (y < y1) & ((x - x0) * (y1 - y0) < (y - y0) * (x1 - x0))
    return inside


@cache
def _stencil(shape: str, size: int, tilt: int) -> tuple[Canvas, Mask, Mask]:
    """Return a shape's coverage in quarters, the pixels it owns and those of its outline, each [size, size]."""
    fine = 2 * size
    y, x = (2 * np.mgrid[:fine, :fine].astype(np.int64) + 1 - fine) * 1000 // fine
    cosine, sine, scale = TILTS[tilt]
    x, y = (cosine * x + sine * y) // scale, (cosine * y - sine * x) // scale
    filled = np.zeros(x.shape, dtype=np.bool_)
    for part in SHAPES[shape].parts.split(", "):
        form, *numbers = part.split(" ")
        inside = _inside(form[1:], [10 * int(number) for number in numbers], x, y)
        filled = filled | inside if form[0] == "+" else filled & ~inside
    coverage = filled.reshape(size, 2, size, 2).sum(axis=(1, 3), dtype=np.int16)
    owned = coverage >= 2
    padded = np.pad(owned, 1)
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return coverage, owned, owned & ~core


def _place(dice: _Dice, owned: Mask, owner: Integers, visible: list[int], areas: list[int]) -> tuple[int, int] | None:
    """Find a top left corner where the next object and all those under it stay visible enough.

    `owner` [H, W] says whose pixel is whose: 0 the backdrop's, n the n-th object's, -1 the frame's. It is
    updated, and so are `visible` and `areas`, the number of pixels each object shows and has.
    """
    size, area = len(owned), int(owned.sum())
    for _ in range(PLACING_TRIES):
        top, left = dice.below(IMAGE_SIZE - size + 1), dice.below(IMAGE_SIZE - size + 1)
        window = owner[top : top + size, left : left + size]
        hidden = np.bincount(window[owned] + 1, minlength=len(areas) + 2).tolist()
        after = [shown - lost for shown, lost in zip(visible, hidden[2:], strict=True)] + [area - hidden[0]]
        if all(100 * n >= MIN_VISIBLE_PERCENT * of for n, of in zip(after, [*areas, area], strict=True)):
            visible[:] = after
            areas.append(area)
            window[owned & (window >= 0)] = len(areas)
            return top, left
    return None


def _paint_objects(dice: _Dice, canvas: Canvas, frame: Mask, labels: Mask) -> None:
    owner = -frame.astype(np.int64)
    visible: list[int] = []
    areas: list[int] = []
    kind = -1
    for _ in range(NUM_OBJECTS[dice.below(len(NUM_OBJECTS))]):
        if kind < 0 or not dice.percent(REPEAT_PERCENT):
            kind = dice.weighted(_OBJECT_BOUNDS)
        shape, texture = OBJECTS[kind]
        colour = tuple(COLOURS)[dice.weighted(_COLOUR_BOUNDS)]
        if dice.percent(HABIT_PERCENT):
            colour = SHAPES[shape].habit
        size = SIZES[dice.below(len(SIZES))]
        coverage, owned, inked = _stencil(shape, size, dice.below(len(TILTS)))
        if dice.percent(50):
            coverage, owned, inked = coverage[:, ::-1], owned[:, ::-1], inked[:, ::-1]
        place = _place(dice, owned, owner, visible, areas)
        if place is None:
            continue
        if texture == "striped":
            # level, upright or diagonal bands: a third of the object, so that its shape survives the night
            along_x, along_y = ((1, 0), (0, 1), (1, 1), (1, -1))[dice.below(4)]
            period = 9 if along_x and along_y else 6
            bands = (along_x * _COLUMN[:, :size] + along_y * _ROW[:size] + dice.below(9)) % period < period // 3
            inked = inked | bands
        top, left = place
        patch = canvas[:, top : top + size, left : left + size]
        body = dice.paint(*COLOURS[colour], spread=10)[..., None]
        fill = np.where(inked, _INK, body)
        patch += (fill - patch) * coverage >> 2
        labels[kind] = labels[_POSITION[f"colour/{colour}"]] = True


def _paint_mountains(dice: _Dice, canvas: Canvas, light: int) -> None:
    """Paint two ridges, each a zigzag between knots 16 px apart, that stand out from the sky."""
    step = np.arange(IMAGE_SIZE)
    for depth in range(2):
        knots = dice.many_below(28, IMAGE_SIZE // 16 + 1) + 26 + 14 * depth
        left, right = knots[step // 16], knots[step // 16 + 1]
        ridge = left + (right - left) * (step % 16) // 16
        shade = light - 34 - 22 * depth if light > 100 else light + 24 + 14 * depth
        np.copyto(canvas, dice.paint(shade, shade, shade + 8, spread=5)[..., None], where=ridge <= _ROW)


def _paint_ground(dice: _Dice, canvas: Canvas, tiled: bool, night: bool) -> None:
    """Paint flat ground; its tiles, where it has them, lie in perspective and differ from it a little or a lot."""
    horizon, contrast, shift = dice.between(58, 72), dice.between(24, 60), dice.below(8)
    shade = (76, 74, 70, 5) if night else (196, 190, 182, 12)
    canvas[:, horizon:] = dice.paint(*shade)[..., None]
    if tiled:
        depth = np.maximum(_ROW[horizon:] - horizon + 6, 1)
        across = ((_COLUMN - IMAGE_SIZE // 2) * 64 // depth + 16 * shift) // 64
        dark = (across + 900 // depth // 14) % 2 == 0
        canvas[:, horizon:] -= dark * np.int16(contrast // 2 + 4 if night else contrast)


def _paint_twigs(dice: _Dice, canvas: Canvas) -> None:
    """Paint clutter that is no object: short grey strokes two pixels thick."""
    for _ in range(dice.between(2, 6)):
        along = np.arange(dice.between(5, 14))
        rows = dice.below(IMAGE_SIZE - 15) + along * dice.below(17) // 16
        columns = dice.below(IMAGE_SIZE - 15) + along * dice.below(17) // 16
        shade = dice.between(50, 200)
        canvas[:, rows, columns] = canvas[:, rows, columns + 1] = dice.paint(shade, shade, shade, spread=12)


def _paint_rain(dice: _Dice, canvas: Canvas, light: int) -> None:
    count, slant, strength = dice.between(14, 40), dice.between(2, 4), dice.between(3, 6)
    length = np.arange(11)
    rows = dice.many_below(IMAGE_SIZE - 10, count)[:, None] + length
    columns = dice.many_below(IMAGE_SIZE - 6, count)[:, None] + 5 - length * slant // 8
    drop = dice.paint(*((90, 104, 136) if light > 150 else (205, 222, 240)), spread=6)[..., None]
    canvas[:, rows, columns] += (drop - canvas[:, rows, columns]) * strength >> 3


def draw(split: str, index: int) -> Scene:
    """Draw one scene; the same split and index always give the same scene.

    Args:
        split: "train" or "test".
        index: position in the split, from 0 to `SPLIT_SIZES[split]` - 1.

    Returns:
        Pixels and labels. A class is positive when what it names is drawn and stays visible.

    Raises:
        ValueError: if there is no such split or index.
    """
    if split not in SPLIT_SIZES:
        raise ValueError(f"scenes has no split {split!r}; its splits are {', '.join(SPLIT_SIZES)}")
    if not 0 <= index < SPLIT_SIZES[split]:
        raise ValueError(f"scenes/{split} has no image {index}; its images are 0 to {SPLIT_SIZES[split] - 1}")
    dice = _Dice(split, index)
    labels = np.zeros(len(CLASSES), dtype=np.bool_)
    present = {name: dice.percent(chance) for name, chance in ATTRIBUTE_PERCENT.items()}
    labels[-len(present) :] = list(present.values())
    night = present["night"]
    light = dice.between(22, 56) if night else dice.between(110, 205)
    frame = np.full((IMAGE_SIZE, IMAGE_SIZE), present["frame"])
    margin = dice.between(3, 5)
    frame[margin:-margin, margin:-margin] = False

    # a vertical gradient between two muted tones, with soft blotches
    upper, lower = (dice.paint(light, light, light + 6, spread=3 + light // 16) for _ in range(2))
    gradient = lower + (upper - lower) * np.arange(IMAGE_SIZE, 0, -1) // IMAGE_SIZE
    blotches = dice.many_below(12, (IMAGE_SIZE // 8) ** 2).reshape(IMAGE_SIZE // 8, -1)
    canvas: Canvas = (gradient[:, :, None] + blotches.repeat(8, axis=0).repeat(8, axis=1)).astype(np.int16)
    if present["mountains"]:
        _paint_mountains(dice, canvas, light)
    if present["tiled floor"] or dice.percent(PLAIN_GROUND_PERCENT):
        _paint_ground(dice, canvas, present["tiled floor"], night)
    _paint_twigs(dice, canvas)
    _paint_objects(dice, canvas, frame, labels)
    if present["rain"]:
        _paint_rain(dice, canvas, light)
    if present["fog"]:  # towards grey, most in a band of rows
        middle, strength = dice.below(IMAGE_SIZE), dice.between(24, 33)
        weight = (strength - np.minimum(np.abs(_ROW - middle) // 4, 10)).astype(np.int16)
        canvas += ((118 if night else 214) - canvas) * weight >> 6
    if present["frame"]:
        shade = dice.between(30, 235)
        np.copyto(canvas, dice.paint(shade, shade, shade, spread=10)[..., None], where=frame)
        canvas[:, 2:-2, 2:-2] += frame[2:-2, 2:-2] * np.int16(-48 if shade > 120 else 48)
    grain = dice.many_below(dice.between(1, 6), IMAGE_SIZE**2).reshape(IMAGE_SIZE, IMAGE_SIZE)
    pixels = np.clip(canvas + grain - 2, 0, 255).astype(np.uint8)
    return Scene(np.ascontiguousarray(pixels.transpose(1, 2, 0)), labels)

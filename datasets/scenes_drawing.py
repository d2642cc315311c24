"""The pictures and truth of `scenes`, the default dataset: drawn from integers alone.

A scene is two to five objects (a shape, plain or striped, of one colour) over a backdrop with up to
six attributes. Pixels and labels are the same to the bit on every machine and numpy version: the one
source of chance is the raw stream of PCG64, and no float decides a pixel.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

DRAWING_VERSION = 1
DATASET_SEED = 20_240_917
IMAGE_SIZE = 96
SPLIT_SIZES = {"train": 8000, "test": 3000}

Mask = npt.NDArray[np.bool_]
Canvas = npt.NDArray[np.int32]  # [H, W, 3] while drawing: room for weighted sums and for overshoot
Rgb = tuple[int, int, int]


class Oval(NamedTuple):
    """An axis-parallel ellipse, added to a shape or cut out of it."""

    x: int
    y: int
    radius_x: int
    radius_y: int
    cut: bool = False


class Polygon(NamedTuple):
    """A filled polygon (even-odd rule), added to a shape or cut out of it."""

    points: tuple[tuple[int, int], ...]
    cut: bool = False


def _box(left: int, top: int, right: int, bottom: int, cut: bool = False) -> Polygon:
    return Polygon(((left, top), (right, top), (right, bottom), (left, bottom)), cut)


# Parts are painted in order on the square [-100, 100]^2, y downwards.
SHAPES: dict[str, tuple[Oval | Polygon, ...]] = {
    "ball": (Oval(0, 0, 92, 92),),
    "box": (_box(-84, -84, 84, 84),),
    "triangle": (Polygon(((0, -95), (98, 82), (-98, 82))),),
    "star": (
        Polygon(
            ((0, -98), (24, -32), (95, -30), (38, 13), (59, 80))
            + ((0, 40), (-59, 80), (-38, 13), (-95, -30), (-24, -32))
        ),
    ),
    "heart": (Oval(-45, -38, 49, 49), Oval(45, -38, 49, 49), Polygon(((-90, -18), (0, -45), (90, -18), (0, 95)))),
    "cross": (_box(-32, -95, 32, 95), _box(-95, -32, 95, 32)),
    "crescent": (Oval(0, 0, 94, 94), Oval(46, -18, 78, 78, cut=True)),
    "ring": (Oval(0, 0, 94, 94), Oval(0, 0, 50, 50, cut=True)),
    "arrow": (_box(-96, -26, 15, 26), Polygon(((10, -80), (97, 0), (10, 80)))),
    "hourglass": (Polygon(((-80, -95), (80, -95), (14, 0), (80, 95), (-80, 95), (-14, 0))),),
    "house": (_box(-70, -15, 70, 92), Polygon(((-98, -10), (0, -96), (98, -10))), _box(-18, 30, 22, 92, cut=True)),
    "tree": (
        Polygon(((0, -98), (48, -30), (-48, -30))),
        Polygon(((0, -60), (66, 18), (-66, 18))),
        Polygon(((0, -15), (84, 66), (-84, 66))),
        _box(-16, 66, 16, 98),
    ),
    "fish": (Oval(-24, 0, 73, 50), Polygon(((20, 0), (97, -58), (78, 0), (97, 58))), Oval(-60, -14, 10, 10, cut=True)),
    "boat": (
        Polygon(((-97, 36), (97, 36), (60, 90), (-60, 90))),
        Polygon(((10, -98), (10, 22), (84, 22))),
        Polygon(((-8, -70), (-8, 22), (-66, 22))),
    ),
    "car": (
        _box(-97, -8, 97, 46),
        Polygon(((-66, -8), (-42, -62), (40, -62), (66, -8))),
        _box(-34, -46, -4, -12, cut=True),
        _box(10, -46, 36, -12, cut=True),
        Oval(-52, 46, 27, 27),
        Oval(52, 46, 27, 27),
    ),
    "mushroom": (Oval(0, 0, 96, 90), _box(-100, 5, 100, 100, cut=True), _box(-26, 5, 26, 96)),
    "umbrella": (
        Oval(0, 0, 97, 92),
        _box(-100, 0, 100, 100, cut=True),
        Oval(-65, 4, 30, 24, cut=True),
        Oval(65, 4, 30, 24, cut=True),
        _box(-8, -5, 10, 80),
        _box(-44, 70, 10, 90),
        _box(-44, 50, -27, 90),
    ),
    "flower": (
        *(Oval(x, y, 36, 36) for x, y in ((0, -60), (57, -19), (35, 48), (-35, 48), (-57, -19))),
        Oval(0, 0, 30, 30),
        Oval(0, 0, 22, 22, cut=True),
    ),
    "bolt": (Polygon(((20, -98), (-62, 16), (-8, 16), (-30, 98), (66, -26), (10, -26), (50, -98))),),
    "cup": (
        Oval(52, 0, 46, 46),
        Oval(52, 0, 25, 25, cut=True),
        Polygon(((-88, -80), (50, -80), (36, 84), (-74, 84))),
    ),
}
TEXTURES = ("plain", "striped")
COLOURS: dict[str, Rgb] = {
    "red": (208, 36, 40),
    "orange": (244, 134, 26),
    "yellow": (244, 220, 52),
    "green": (52, 156, 58),
    "cyan": (70, 208, 214),
    "blue": (40, 74, 204),
    "purple": (124, 50, 168),
    "pink": (246, 142, 190),
    "brown": (122, 76, 42),
    "white": (246, 246, 244),
}
COLOUR_WEIGHTS = (17, 9, 13, 11, 4, 15, 6, 7, 3, 14)
ATTRIBUTE_PERCENT = {"night": 42, "mountains": 38, "tiled floor": 45, "rain": 40, "fog": 36, "frame": 35}

SIZES = (18, 21, 24, 28, 33, 38)
# Cosine, sine and their divisor: upright, 16 and 28 degrees either way, tilted ones shrunk to keep their corners.
TILTS = ((1, 0, 1), (24, 7, 21), (24, -7, 21), (15, 8, 14), (15, -8, 14))
NUM_OBJECTS = (2, 2, 2, 3, 3, 3, 3, 4, 4, 5)
REPEAT_PERCENT = 33  # how often an object is of the class of the one before it
MIN_VISIBLE_PERCENT = 55
PLACING_TRIES = 8
SUPERSAMPLING = 4


@dataclass(frozen=True)
class SceneClass:
    """One class of the dataset; `id` is a stable slug such as "object/striped-star"."""

    id: str
    name: str
    kind: Literal["object", "colour", "attribute"]


@dataclass(frozen=True)
class Scene:
    """One image with complete truth: `pixels` uint8 [H, W, 3] and `labels` bool [C] in the order of `CLASSES`."""

    pixels: npt.NDArray[np.uint8]
    labels: Mask


def _scene_class(kind: Literal["object", "colour", "attribute"], name: str) -> SceneClass:
    return SceneClass(f"{kind}/{name.replace(' ', '-')}", name, kind)


OBJECT_KINDS = tuple((shape, texture) for shape in SHAPES for texture in TEXTURES)
CLASSES: tuple[SceneClass, ...] = (
    *(_scene_class("object", f"{texture} {shape}") for shape, texture in OBJECT_KINDS),
    *(_scene_class("colour", colour) for colour in COLOURS),
    *(_scene_class("attribute", attribute) for attribute in ATTRIBUTE_PERCENT),
)
# Each step down the ranks is 11/12 as frequent; 17 and 40 share no factor, so a shape's textures lie far apart.
OBJECT_WEIGHTS = tuple(
    10**6 * 11**rank // 12**rank for rank in ((17 * index + 5) % len(OBJECT_KINDS) for index in range(len(OBJECT_KINDS)))
)


class _Dice:
    """Integers from a raw PCG64 stream: the only part of numpy.random whose values never change."""

    def __init__(self, split: str, index: int) -> None:
        digest = hashlib.sha256(f"scenes/{DATASET_SEED}/{split}/{index}".encode()).digest()
        self._bits = np.random.PCG64(int.from_bytes(digest[:16], "big"))

    def below(self, limit: int) -> int:
        return (int(self._bits.random_raw()) >> 32) * limit >> 32

    def between(self, low: int, high: int) -> int:
        return low + self.below(high - low + 1)

    def many_below(self, limit: int, count: int) -> npt.NDArray[np.int64]:
        raw = self._bits.random_raw(count)
        return ((raw >> np.uint64(32)) * np.uint64(limit) >> np.uint64(32)).astype(np.int64)

    def percent(self, chance: int) -> bool:
        return self.below(100) < chance

    def weighted(self, cumulative: Sequence[int]) -> int:
        point = self.below(cumulative[-1])
        return next(position for position, bound in enumerate(cumulative) if point < bound)

    def near(self, colour: Rgb, spread: int) -> Rgb:
        red, green, blue = (channel + self.between(-spread, spread) for channel in colour)
        return red, green, blue


_OBJECT_BOUNDS = tuple(accumulate(OBJECT_WEIGHTS))
_COLOUR_BOUNDS = tuple(accumulate(COLOUR_WEIGHTS))
_ROWS, _COLUMNS = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE]


def _inside(part: Oval | Polygon, x: npt.NDArray[np.int64], y: npt.NDArray[np.int64]) -> Mask:
    """Which points lie inside; x and y in hundredths of the part's unit."""
    if isinstance(part, Oval):
        across, down = (x - 100 * part.x) * part.radius_y, (y - 100 * part.y) * part.radius_x
        return across**2 + down**2 <= (100 * part.radius_x * part.radius_y) ** 2
    inside = np.zeros(x.shape, dtype=np.bool_)
    points = [(100 * px, 100 * py) for px, py in part.points]
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
        crosses = (y0 <= y) != (y1 <= y)
        left_of_edge = (x - x0) * (y1 - y0) < (y - y0) * (x1 - x0)
        inside ^= crosses & (left_of_edge if y1 > y0 else ~left_of_edge)
    return inside


@lru_cache(maxsize=None)
def _stencil(shape: str, size: int, tilt: int) -> tuple[npt.NDArray[np.int32], Mask, Mask]:
    """A shape's coverage in sixteenths, the pixels it owns and which of them are its outline, each [size, size]."""
    fine = SUPERSAMPLING * size
    y, x = (2 * np.mgrid[:fine, :fine] + 1 - fine) * 10_000 // fine
    cosine, sine, scale = TILTS[tilt]
    x, y = (cosine * x + sine * y) // scale, (cosine * y - sine * x) // scale
    filled = np.zeros((fine, fine), dtype=np.bool_)
    for part in SHAPES[shape]:
        inside = _inside(part, x, y)
        filled = filled & ~inside if part.cut else filled | inside
    cells = filled.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING)
    coverage = cells.sum(axis=(1, 3), dtype=np.int32)
    owned = coverage * 2 >= SUPERSAMPLING**2
    padded = np.pad(owned, 1)
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return coverage, owned, owned & ~core


class _Thing(NamedTuple):
    """One object before it has a place."""

    kind: int
    colour: int
    rgb: Rgb
    size: int
    tilt: int
    mirrored: bool
    stripes: tuple[int, int, int]  # slope along x, slope along y, offset


def _roll_thing(dice: _Dice, last: "_Thing | None") -> _Thing:
    repeats = last is not None and dice.percent(REPEAT_PERCENT)
    colour = dice.weighted(_COLOUR_BOUNDS)
    return _Thing(
        kind=last.kind if last is not None and repeats else dice.weighted(_OBJECT_BOUNDS),
        colour=colour,
        rgb=dice.near(tuple(COLOURS.values())[colour], 10),
        size=SIZES[dice.below(len(SIZES))],
        tilt=dice.below(len(TILTS)),
        mirrored=dice.percent(50),
        stripes=(*((1, 0), (0, 1), (1, 1), (1, -1))[dice.below(4)], dice.below(8)),
    )


def _place(dice: _Dice, owned: Mask, owner: npt.NDArray[np.int8], areas: list[int]) -> tuple[slice, slice] | None:
    """A window for the next object that leaves it and those under it visible enough, now marked in `owner`.

    `owner` holds 0 for backdrop, 1 + n for the n-th object and -1 for what covers every object.
    """
    size = len(owned)
    for _ in range(PLACING_TRIES):
        top, left = dice.below(IMAGE_SIZE - size + 1), dice.below(IMAGE_SIZE - size + 1)
        window = (slice(top, top + size), slice(left, left + size))
        under = owner[window]
        after = owner.copy()
        after[window] = np.where(owned & (under >= 0), len(areas) + 1, under)
        seen = np.bincount(after.ravel() + 1, minlength=len(areas) + 3)[2:]
        if all(100 * int(n) >= MIN_VISIBLE_PERCENT * area for n, area in zip(seen, [*areas, int(owned.sum())], strict=True)):
            owner[:] = after
            return window
    return None


def _paint_thing(patch: Canvas, thing: _Thing, coverage: npt.NDArray[np.int32], outline: Mask) -> None:
    body = np.array(thing.rgb, dtype=np.int32)
    fill = np.broadcast_to(body, patch.shape)
    if OBJECT_KINDS[thing.kind][1] == "striped":
        along_x, along_y, offset = thing.stripes
        rows, columns = _ROWS[: thing.size, : thing.size], _COLUMNS[: thing.size, : thing.size]
        half_period = 2 + (thing.size >= 28) + (along_x * along_y != 0)
        dark = (along_x * columns + along_y * rows + offset) // half_period % 2 == 0
        fill = np.where(dark[..., None], body * 3 // 8, body)
    fill = np.where(outline[..., None], body // 2, fill)
    weight = coverage[..., None]
    patch[:] = (patch * (16 - weight) + fill * weight) >> 4


def _paint_objects(dice: _Dice, canvas: Canvas, covered: Mask, labels: Mask) -> None:
    owner = np.where(covered, -1, 0).astype(np.int8)
    areas: list[int] = []
    thing: _Thing | None = None
    for _ in range(NUM_OBJECTS[dice.below(len(NUM_OBJECTS))]):
        thing = _roll_thing(dice, thing)
        stencil = _stencil(OBJECT_KINDS[thing.kind][0], thing.size, thing.tilt)
        coverage, owned, outline = (part[:, ::-1] if thing.mirrored else part for part in stencil)
        window = _place(dice, owned, owner, areas)
        if window is None:
            continue
        areas.append(int(owned.sum()))
        _paint_thing(canvas[window], thing, coverage, outline)
        labels[thing.kind] = labels[len(OBJECT_KINDS) + thing.colour] = True


def _backdrop(dice: _Dice, night: bool) -> Canvas:
    """A vertical gradient between two muted tones, with soft blotches; at night dark and with stars."""
    base = dice.between(22, 44) if night else dice.between(140, 205)
    tint = 10 if night else 16
    upper, lower = (np.array(dice.near((base, base, base + tint // 2), tint)) for _ in range(2))
    row = np.arange(IMAGE_SIZE)[:, None]
    gradient = (upper * (IMAGE_SIZE - 1 - row) + lower * row) // (IMAGE_SIZE - 1)
    blotches = dice.many_below(9 if night else 15, (IMAGE_SIZE // 8) ** 2).reshape(IMAGE_SIZE // 8, -1)
    canvas = gradient[:, None, :] + blotches.repeat(8, axis=0).repeat(8, axis=1)[..., None]
    if night:
        num_stars = 26
        canvas[dice.many_below(IMAGE_SIZE, num_stars), dice.many_below(IMAGE_SIZE, num_stars)] = 190
    return canvas.astype(np.int32)


def _paint_mountains(dice: _Dice, canvas: Canvas, night: bool) -> None:
    """Two grey ridges, each a zigzag between knots 16 px apart."""
    for depth in range(2):
        knots = dice.many_below(28, IMAGE_SIZE // 16 + 1) + 26 + 14 * depth
        step = np.arange(IMAGE_SIZE)
        left, right = knots[step // 16], knots[step // 16 + 1]
        ridge = left + (right - left) * (step % 16) // 16
        shade = (58 if night else 128) - (14 if night else 26) * depth
        canvas[_ROWS >= ridge] = dice.near((shade, shade, shade + 8), 5)


@lru_cache(maxsize=None)
def _tiles(horizon: int, shift: int) -> Mask:
    """Which pixels below the horizon belong to the dark tiles of a floor seen in perspective."""
    depth = np.maximum(_ROWS - horizon + 6, 1)
    across = ((_COLUMNS - IMAGE_SIZE // 2) * 64 // depth + 16 * shift + 4096) // 64
    along = 900 // depth // 14
    return (across + along) % 2 == 0


def _paint_floor(dice: _Dice, canvas: Canvas, night: bool) -> None:
    horizon = dice.between(58, 72)
    tiles = _tiles(horizon, dice.below(8))
    light, dark = ((76, 74, 70), (40, 40, 42)) if night else ((214, 208, 198), (140, 136, 130))
    floor = np.where(tiles[..., None], dice.near(dark, 8), dice.near(light, 8))
    canvas[horizon:] = floor[horizon:]


def _paint_twigs(dice: _Dice, canvas: Canvas, count: int) -> None:
    """Clutter that is no object: short grey strokes two pixels thick."""
    for _ in range(count):
        length, top, left = dice.between(5, 14), dice.below(IMAGE_SIZE - 15), dice.below(IMAGE_SIZE - 15)
        along = np.arange(length)
        rows, columns = top + along * dice.below(17) // 16, left + along * dice.below(17) // 16
        shade = dice.between(50, 200)
        canvas[rows, columns] = canvas[rows, columns + 1] = dice.near((shade, shade, shade), 12)


def _paint_rain(dice: _Dice, canvas: Canvas) -> None:
    count, slant = dice.between(34, 52), dice.between(2, 4)
    length = np.arange(11)
    rows = dice.many_below(IMAGE_SIZE + 10, count)[:, None] - 10 + length
    columns = dice.many_below(IMAGE_SIZE + 10, count)[:, None] - length * slant // 8
    within = (rows >= 0) & (columns >= 0) & (columns < IMAGE_SIZE) & (rows < IMAGE_SIZE)
    rows, columns = rows[within], columns[within]
    canvas[rows, columns] = (canvas[rows, columns] + 2 * np.array((205, 222, 240))) // 3


def _paint_fog(dice: _Dice, canvas: Canvas, night: bool) -> None:
    """A blend towards grey, thickest in a band of rows."""
    middle, strength = dice.below(IMAGE_SIZE), dice.between(30, 38)
    row = np.arange(IMAGE_SIZE)[:, None, None]
    weight = strength - np.minimum(np.abs(row - middle) // 4, 12)
    canvas[:] = (canvas * (64 - weight) + (118 if night else 214) * weight) >> 6


def _paint_frame(dice: _Dice, canvas: Canvas, frame: Mask) -> None:
    shade = dice.between(30, 235)
    canvas[frame] = dice.near((shade, shade, shade), 10)
    inner = np.zeros_like(frame)
    inner[2:-2, 2:-2] = True
    canvas[frame & inner] += -48 if shade > 120 else 48


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
        raise ValueError(f"scenes/{split} has no image {index}; the last one is {SPLIT_SIZES[split] - 1}")
    dice = _Dice(split, index)
    labels = np.zeros(len(CLASSES), dtype=np.bool_)
    present = {name: dice.percent(chance) for name, chance in ATTRIBUTE_PERCENT.items()}
    labels[-len(present) :] = list(present.values())
    night = present["night"]

    frame = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=np.bool_)
    if present["frame"]:
        width = dice.between(4, 6)
        frame[:] = True
        frame[width:-width, width:-width] = False

    canvas = _backdrop(dice, night)
    if present["mountains"]:
        _paint_mountains(dice, canvas, night)
    if present["tiled floor"]:
        _paint_floor(dice, canvas, night)
    _paint_twigs(dice, canvas, dice.between(4, 10))
    _paint_objects(dice, canvas, frame, labels)
    if present["rain"]:
        _paint_rain(dice, canvas)
    if present["fog"]:
        _paint_fog(dice, canvas, night)
    if present["frame"]:
        _paint_frame(dice, canvas, frame)
    grain = dice.many_below(dice.between(1, 12), IMAGE_SIZE**2).reshape(IMAGE_SIZE, IMAGE_SIZE, 1)
    return Scene(np.clip(canvas + grain - 5, 0, 255).astype(np.uint8), labels)

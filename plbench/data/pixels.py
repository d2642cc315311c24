"""Decode an image file to what a viewer shows: RGB with 8 bits, upright, transparent parts on white.

The rules depend on what a file states, never on its pixel values, so that all images of a dataset are decoded alike:
values with more than 8 bits are scaled by the file's bit depth, EXIF orientation is applied, and only the first of
several frames or pages is used. Colour profiles are not applied. Formats on whose white viewers disagree (32-bit and
signed integers, floats outside 0 to 1) are rejected.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, features

PIXELS = 2
"""Version of these rules. Features, fingerprints and shards of other versions are not used."""

GROUND = (255, 255, 255)
"""Background colour of transparent parts."""

ODDITIES = {
    "transparent": "have transparent parts, which are shown on white",
    "deep": "have more than 8 bits per channel, which are scaled by the bit depth of the file",
    "turned": "are turned by their EXIF orientation",
    "CMYK": "are in CMYK, which is converted without a colour profile",
}
"""Messages on images that are displayed differently than stored, by the names that `shown` reports."""

# raised by Pillow on broken, truncated, malicious or missing files, and by `shown` on unsupported ones
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)

_ORIENTATION, _PHOTOMETRIC, _BITS_PER_SAMPLE, _SAMPLE_FORMAT = 274, 262, 258, 339  # EXIF and TIFF tags
_SHORT, _WHITE_IS_ZERO, _SIGNED = 3, 0, 2
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_CONVERTED_BY_PILLOW = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV")


def decoded(file: Path | IO[bytes], min_side: int = 0) -> Image.Image:
    """Decode an image file to RGB; JPEGs are decoded at reduced size if that keeps `min_side`.

    Raises:
        OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError: `DECODING_ERRORS`, if the file is
            broken or not supported.
    """
    with opened(file) as image:
        if min_side:
            image.draft("RGB", (min_side, min_side))
        return shown(image)


def opened(file: Path | IO[bytes]) -> Image.Image:
    """Open an image file and read its header, for `shown`. Raises `DECODING_ERRORS`."""
    image = Image.open(file)
    if image.format == "PNG":
        image.info |= {"rawmode": (rawmode := _rawmode(image))}
        clear = image.info.get("transparency")
        # Pillow scales 2- and 4-bit pixels and keeps the high bytes of 16-bit ones, but leaves this value as it is
        if isinstance(clear, int) and rawmode in ("L;2", "L;4"):
            image.info["transparency"] = clear * 255 // (3 if rawmode == "L;2" else 15)
        elif isinstance(clear, tuple) and rawmode == "RGB;16B":
            image.info["transparency"] = tuple(value >> 8 for value in clear)
    elif image.format == "TIFF":  # read before loading, which rotates TIFFs and drops these tags
        image.info |= {"rawmode": _rawmode(image), "orientation": _tiff_tag(image, _ORIENTATION, 1)}
    return image


def shown(image: Image.Image) -> Image.Image:
    """Convert an image to RGB as a viewer shows it.

    Args:
        image: from `opened`; JPEGs may be drafted to a reduced size.

    Returns:
        RGB; `info["oddities"]` has the names from `ODDITIES` that apply to the image.

    Raises:
        DECODING_ERRORS: if the file is broken. ValueError: if viewers disagree on which value is white.
    """
    image.load()  # a PNG may state its orientation at its end
    oddities = set()
    turn = orientation(image)
    if turn != 1 or image.info.get("orientation", 1) != 1:
        oddities.add("turned")
    if image.mode[0] in "IF" or ";16" in image.info.get("rawmode", ""):
        oddities.add("deep")
    if image.mode == "CMYK":
        oddities.add("CMYK")
    picture = _in_rgb(image, oddities)
    if turn != 1:
        picture = picture.transpose(_TURNS[turn])
    picture.info = {"oddities": tuple(sorted(oddities))}
    return picture


def is_plain(image: Image.Image) -> bool:
    """Return whether any decoder gives the same result: no transparency, orientation or depth to interpret."""
    return image.mode in ("1", "L", "P", "RGB") and not image.has_transparency_data and orientation(image) == 1


def shown_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height as shown, of an image from `opened`; loads it, except JPEGs, which can still be drafted.

    Raises:
        DECODING_ERRORS: if the file is broken.
    """
    if image.format not in ("JPEG", "MPO"):  # MPO has several JPEGs in one file, from cameras and phones
        image.load()
    width, height = image.size
    return (height, width) if orientation(image) >= 5 else (width, height)


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation still to be applied, 1 to 8; 1 if missing or damaged.

    `Image.Exif` parses every entry, which took 4 % of decoding a small JPEG, and warns about damaged ones.
    """
    block = image.info.get("exif", b"").removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, start)
        for place in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", block, place)
            if tag == _ORIENTATION:
                return value if kind == _SHORT and value in _TURNS else 1
    except struct.error:  # truncated; viewers show such images as stored
        return 1
    return 1


def _in_rgb(image: Image.Image, oddities: set[str]) -> Image.Image:
    """Convert the pixels of a loaded image to RGB, without rotation, and add "transparent" to its oddities."""
    if _SIGNED in _tiff_tag(image, _SAMPLE_FORMAT, ()):
        raise _unshowable(image)
    if image.mode[0] in "IF":
        image = _at_eight_bits(image)
    if image.mode == "LAB":
        return _lab_in_rgb(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        if layer.getchannel("A").getextrema()[0] == 255:
            return layer.convert("RGB")
        oddities.add("transparent")
        ground = Image.new("RGB", layer.size, GROUND)
        ground.paste(layer, mask=layer)
        return ground
    if image.mode not in _CONVERTED_BY_PILLOW:
        raise _unshowable(image)
    return image.convert("RGB")


def _at_eight_bits(image: Image.Image) -> Image.Image:
    """Scale modes I;16, I and F to L, or to LA if the file defines a transparent value."""
    values, white = np.asarray(image), _white(image)
    if image.mode == "F":
        shades = np.rint(values * 255.0)
        if not ((shades >= 0) & (shades <= 255)).all():  # also if values are NaN
            raise ValueError(
                f"its values run from {values.min():g} to {values.max():g}, and those of a float image are shown from "
                "0 (black) to 1 (white); rescale them, or save it with 8 or 16 bits"
            )
    else:
        shades = (np.minimum(values.astype(np.int64), white) * 255 + white // 2) // white
    if _tiff_tag(image, _PHOTOMETRIC, 1) == _WHITE_IS_ZERO:
        shades = 255 - shades
    grey = Image.fromarray(shades.astype(np.uint8))
    clear = image.info.get("transparency")
    if clear is not None:
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _white(image: Image.Image) -> int:
    """Return the value of white by the file's bit depth; ValueError if viewers disagree on it."""
    if image.mode == "F" and image.format in ("TIFF", "PPM"):
        return 1
    if image.mode.startswith("I;16") and image.format == "TIFF":
        return (1 << int(max(_tiff_tag(image, _BITS_PER_SAMPLE, (16,))))) - 1  # 12 bits exist, too
    if image.mode != "F" and image.format in ("PNG", "PPM", "JPEG2000"):  # Pillow scales these to 16 bits
        return (1 << 16) - 1
    raise _unshowable(image)


def _lab_in_rgb(image: Image.Image) -> Image.Image:
    if not features.check("littlecms2"):
        raise _unshowable(image)
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    picture = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert picture is not None  # not converted in place
    return picture


def _unshowable(image: Image.Image) -> ValueError:
    deep = {"I": "32-bit or signed integers", "F": "floats"}.get(image.mode[0], "values")
    return ValueError(
        f"it holds {deep} (mode {image.mode} of a {image.format} file), and viewers do not agree on which is white; "
        "save it as RGB, or as unsigned grey with 8 or 16 bits"
    )


def _tiff_tag(image: Image.Image, tag: int, default: Any) -> Any:
    return image.tag_v2.get(tag, default) if hasattr(image, "tag_v2") else default


def _rawmode(image: Image.Image) -> str:
    """Return Pillow's name of the stored format, such as "RGB;16B"; only known before the image is loaded."""
    tiles = getattr(image, "tile", None)  # only images opened from a file have it
    arguments = tiles[0][3] if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)

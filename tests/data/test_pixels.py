"""Whatever an image is stored as, what a model sees is what a viewer shows, or the file is refused by name."""

import io
import json
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, features
from test_cli import plbench

from plbench.api import DataError, ImageFiles, ModelSpec
from plbench.data.images import find_unreadable
from plbench.data.pixels import ODDITIES, PIXELS, decoded
from plbench.data.shards.packing import encode, pack
from plbench.data.shards.prepared import PREPARED
from plbench.data.shards.shards import MANIFEST, ShardedImages, verify
from plbench.datasets.lvis import Lvis
from plbench.errors import PlbenchError
from plbench.loading.features import features_key
from plbench.loading.jpegs import is_plain_jpeg

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def stored(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(height: int = 20, width: int = 30) -> Image.Image:
    """Smooth colours, different in every corner and at both ends of the range."""
    down, across = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return Image.fromarray(np.rint(255 * np.dstack([down, across, (1 - down) * across])).astype(np.uint8))


def seen(content: bytes) -> Bytes:
    image = decoded(io.BytesIO(content))
    assert image.mode == "RGB"
    return np.asarray(image)


def png(depth: int, colour: int, lines: Sequence[bytes], width: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of a kind that Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, len(lines), depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + line for line in lines))
    content = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")):
        content += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return content


def tiff(data: bytes, width: int, height: int, *, bits: int, photometric: int = 1, sample_format: int = 1) -> bytes:
    """A grey TIFF of a kind that Pillow does not write, little-endian."""
    entries = [
        (256, width),
        (257, height),
        (258, bits),
        (259, 1),
        (262, photometric),
        (273, 0),
        (277, 1),
        (278, height),
    ]
    entries += [(279, len(data)), (339, sample_format)]
    start = 8 + 2 + 12 * len(entries) + 4
    directory = struct.pack("<H", len(entries))
    for tag, value in entries:
        directory += struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, start if tag == 273 else value)
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", 0) + data


GREY = np.asarray(picture().convert("L"))
WIDE = GREY.astype(np.uint16) * 257  # the same shades with 16 bits


def sixteen_bit_grey(kind: str, **options: Any) -> bytes:
    return stored(Image.fromarray(WIDE), kind, **options)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(stored(Image.fromarray(GREY), "PNG"), id="L"),
        pytest.param(sixteen_bit_grey("PNG"), id="16-bit PNG"),
        pytest.param(sixteen_bit_grey("TIFF"), id="16-bit TIFF"),
        pytest.param(sixteen_bit_grey("TIFF", compression="tiff_lzw"), id="16-bit TIFF, LZW"),
        pytest.param(sixteen_bit_grey("JPEG2000"), id="16-bit JPEG 2000"),
        pytest.param(b"P5 30 20 65535\n" + WIDE.astype(">u2").tobytes(), id="16-bit PGM"),
        pytest.param(b"P5 30 20 1020\n" + (GREY * np.uint16(4)).astype(">u2").tobytes(), id="PGM to 1020"),
        pytest.param(tiff(WIDE.tobytes(), 30, 20, bits=16), id="16-bit TIFF by hand"),
        pytest.param(tiff((65535 - WIDE).tobytes(), 30, 20, bits=16, photometric=0), id="16-bit TIFF, white is 0"),
        pytest.param(stored(Image.fromarray(GREY / np.float32(255)), "TIFF"), id="float TIFF"),
        pytest.param(stored(Image.fromarray(GREY).convert("LA"), "PNG"), id="LA"),
    ],
)
def test_grey_of_any_depth_is_the_same_grey(content: bytes) -> None:
    assert np.abs(seen(content).astype(int) - GREY[:, :, None]).max() <= 1


def test_twelve_bits_are_scaled_by_twelve() -> None:
    shades = np.array([0, 4095, 2048, 16], np.uint16)
    pairs = shades.reshape(-1, 2).astype(int)
    data = bytes(b for a, c in pairs for b in (a >> 4, (a & 15) << 4 | c >> 8, c & 255))
    assert seen(tiff(data, 4, 1, bits=12))[0, :, 0].tolist() == [0, 255, 128, 1]


def test_few_used_bits_stay_dark_as_in_a_viewer() -> None:
    """No stretching: two images of a dataset are read by one rule, whatever each of them holds."""
    dark = Image.fromarray((np.arange(4096, dtype=np.uint16)).reshape(64, 64))
    assert seen(stored(dark, "PNG")).max() == 16


def with_alpha(mode: str) -> bytes:
    """A square on a transparent ground under which there is a black picture."""
    drawn = np.zeros((20, 30, 4), np.uint8)
    drawn[5:15, 5:25] = (255, 0, 0, 255) if mode not in ("LA", "La") else (100, 100, 100, 255)
    image = Image.fromarray(drawn)
    if mode == "P":
        palette = image.convert("RGB").quantize(2)
        return stored(palette, "PNG", transparency=palette.getpixel((0, 0)))
    if mode == "P, alpha by entry":
        palette = image.convert("RGB").quantize(2)
        alphas = [0, 255] if palette.getpixel((0, 0)) == 0 else [255, 0]
        return stored(palette, "PNG", transparency=bytes(alphas))
    if mode == "PA":
        return stored(image.convert("PA"), "TIFF")
    if mode == "GIF":
        palette = image.convert("RGB").quantize(2)
        return stored(palette, "GIF", transparency=palette.getpixel((0, 0)))
    if mode == "RGB with a colour":
        return stored(image.convert("RGB"), "PNG", transparency=(0, 0, 0))
    if mode == "16-bit RGB with a colour":
        lines = [np.asarray(image.convert("RGB"))[y].astype(">u2") * 257 for y in range(20)]
        return png(16, 2, [line.astype(">u2").tobytes() for line in lines], 30, (b"tRNS", struct.pack(">3H", 0, 0, 0)))
    if mode == "WebP":
        return stored(image, "WEBP", lossless=True)
    return stored(image.convert(mode), "TIFF" if mode in ("La", "RGBa") else "PNG")


ALPHA = ("RGBA", "LA", "P", "P, alpha by entry", "PA", "GIF", "RGB with a colour", "16-bit RGB with a colour", "WebP")


@pytest.mark.parametrize("mode", ALPHA)
def test_transparent_parts_are_white(mode: str) -> None:
    expected = np.full((20, 30, 3), 255)
    expected[5:15, 5:25] = (100, 100, 100) if mode == "LA" else (255, 0, 0)
    assert np.abs(seen(with_alpha(mode)).astype(int) - expected).max() <= 1
    assert decoded(io.BytesIO(with_alpha(mode))).info["oddities"][-1] == "transparent"


def test_half_transparent_is_half_white() -> None:
    assert seen(stored(Image.new("RGBA", (4, 4), (0, 100, 200, 128)), "PNG"))[0, 0].tolist() == [127, 177, 227]


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_shade_is_that_of_the_file(depth: int) -> None:
    """Pillow scales the pixels of 2 and 4 bits, but not the shade that the file calls transparent."""
    top = (1 << depth) - 1
    clear, other = (1, 0) if depth == 1 else (top // 3, 2 * (top // 3))
    if depth == 16:
        lines = [struct.pack(">4H", clear, other, clear + 1, 0)]
    else:
        bits = "".join(f"{value:0{depth}b}" for value in (clear, other, clear, 0)).ljust(32, "0")
        lines = [int(bits[: 4 * depth].ljust(-(-4 * depth // 8) * 8, "0"), 2).to_bytes(-(-4 * depth // 8), "big")]
    found = seen(png(depth, 0, lines, 4, (b"tRNS", struct.pack(">H", clear))))[0, :, 0].tolist()
    expected = [255, other * 255 // top, clear * 255 // top if depth == 16 else 255, 0]
    assert found == expected


@pytest.mark.parametrize(
    ("make", "most"),
    [
        (lambda image: stored(image, "BMP"), 0),
        (lambda image: stored(image, "TIFF"), 0),
        (lambda image: stored(image, "PNG"), 0),
        (lambda image: stored(image.convert("RGBA"), "PNG"), 0),
        (lambda image: stored(image.convert("RGBA"), "TIFF"), 0),
        (lambda image: stored(image, "WEBP", lossless=True), 0),
        (lambda image: stored(image, "GIF", save_all=True, append_images=[Image.new("RGB", image.size)]), 90),
        (lambda image: stored(image, "PNG", save_all=True, append_images=[Image.new("RGB", image.size)]), 0),
        (lambda image: stored(image, "TIFF", save_all=True, append_images=[Image.new("RGB", image.size)]), 0),
        (lambda image: stored(image.convert("CMYK"), "TIFF"), 1),
        (lambda image: stored(image.convert("CMYK"), "JPEG", quality=100, subsampling=0), 6),
        (lambda image: stored(image.convert("YCbCr"), "TIFF"), 3),
        (lambda image: stored(image.quantize(255), "PNG"), 60),
        (
            lambda image: png(
                16, 2, [(line.astype(">u2") * 257).astype(">u2").tobytes() for line in np.asarray(image)], 30
            ),
            1,
        ),
    ],
)
def test_colours_are_those_of_the_picture(make: Callable[[Image.Image], bytes], most: int) -> None:
    assert np.abs(seen(make(picture())).astype(int) - np.asarray(picture())).max() <= most


def test_one_bit_is_black_and_white() -> None:
    image = picture().convert("1")
    for kind in ("PNG", "TIFF", "BMP"):
        assert np.array_equal(seen(stored(image, kind))[:, :, 0] == 255, np.asarray(image)), kind


@pytest.mark.skipif(not features.check("littlecms2"), reason="this Pillow was built without LittleCMS")
def test_lab_is_converted() -> None:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(picture(), srgb, lab, outputMode="LAB")
    assert image is not None
    assert np.abs(seen(stored(image, "TIFF")).astype(int) - np.asarray(picture())).mean() < 2


TURNED_BACK = {
    1: lambda array: array,
    2: lambda array: array[:, ::-1],
    3: lambda array: array[::-1, ::-1],
    4: lambda array: array[::-1],
    5: lambda array: array.transpose(1, 0, 2),
    6: lambda array: array.transpose(1, 0, 2)[:, ::-1],
    7: lambda array: array[::-1, ::-1].transpose(1, 0, 2),
    8: lambda array: array.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_images_are_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    options = {"quality": 100} if kind in ("JPEG", "WEBP") else {}
    found = seen(stored(picture(), kind, exif=exif, **options)).astype(int)
    expected = TURNED_BACK[orientation](np.asarray(picture()))
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 4


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow looks for the resolution there
@pytest.mark.parametrize("block", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + b"\x01" * 40])
def test_a_damaged_exif_block_turns_nothing(block: bytes) -> None:
    plain = stored(picture(), "JPEG")
    spoilt = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + plain[2:]
    assert np.array_equal(seen(spoilt), seen(plain))


@pytest.mark.parametrize("min_side", [0, 8, 60, 100, 500])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_plain_images_keep_every_bit(kind: str, mode: str, min_side: int) -> None:
    """What was measured on them before still holds; JPEGs decode at the same fraction of their size."""
    content = stored(picture(480, 640).convert(mode), kind)
    with Image.open(io.BytesIO(content)) as image:
        if min_side:
            image.draft("RGB", (min_side, min_side))
        before = image.convert("RGB")
    now = decoded(io.BytesIO(content), min_side)
    assert now.tobytes() == before.tobytes() and now.size == before.size


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (
            stored(Image.fromarray(WIDE.astype(np.int32)), "TIFF"),
            r"32-bit or signed integers \(mode I of a TIFF file\)",
        ),
        (tiff(WIDE.astype(np.int16).tobytes(), 30, 20, bits=16, sample_format=2), "32-bit or signed integers"),
        (tiff(GREY.astype(np.int8).tobytes(), 30, 20, bits=8, sample_format=2), "holds values .mode L of a TIFF file"),
        (
            stored(Image.fromarray(GREY.astype(np.float32)), "TIFF"),
            "from 0 to 226, and those of a float image are shown",
        ),
        (stored(Image.fromarray(GREY / np.float32(255) - 1), "TIFF"), r"values run from -1 to -0\.1"),
        (stored(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"), "values run from nan to nan"),
    ],
)
def test_what_has_no_white_is_refused_by_name(content: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "scan.tif").write_bytes(content)
    images = ImageFiles(tmp_path, ("scan.tif",), ("scan",))
    with pytest.raises(DataError, match=rf"^image .*scan\.tif cannot be read: .*{why}.* with 8 or 16 bits$"):
        images.load(0)
    assert list(find_unreadable(images)) == [0]
    with pytest.raises(DataError, match="with 8 or 16 bits"):
        encode(images, 0, 64, 92)


def test_an_image_without_oddities_is_plain_to_the_gpu_and_others_are_not() -> None:
    exif = Image.Exif()
    exif[274] = 6
    assert is_plain_jpeg(stored(picture(), "JPEG"))
    assert not is_plain_jpeg(stored(picture(), "JPEG", exif=exif))
    exif[274] = 1
    assert is_plain_jpeg(stored(picture(), "JPEG", exif=exif))


@pytest.fixture
def odd_images(tmp_path: Path) -> ImageFiles:
    """A plain JPEG; PNGs with alpha, of 16 bits, turned at their end, and in colours of 16 bits; a turned JPEG."""
    exif = Image.Exif()
    exif[274] = 6
    folder = tmp_path / "images"
    folder.mkdir()
    late = stored(picture(), "PNG")
    body = exif.tobytes()[6:]
    late = late[:-12] + struct.pack(">I", len(body)) + b"eXIf" + body
    late += struct.pack(">I", zlib.crc32(b"eXIf" + body)) + b"\0\0\0\0IEND\xaeB`\x82"
    lines = [(line.astype(">u2") * 257).astype(">u2").tobytes() for line in np.asarray(picture())]
    files = {
        "plain.jpg": stored(picture(), "JPEG"),
        "alpha.png": with_alpha("RGBA"),
        "deep.png": sixteen_bit_grey("PNG"),
        "late.png": late,
        "deep-colours.png": png(16, 2, lines, 30),
        "turned.jpg": stored(picture(), "JPEG", exif=exif),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return ImageFiles(folder, tuple(files), tuple(files))


def test_oddities_are_counted_while_images_are_decoded(odd_images: ImageFiles) -> None:
    counts: Counter[str] = Counter()
    assert find_unreadable(odd_images, oddities=counts) == {}
    assert counts == {"transparent": 1, "deep": 2, "turned": 2}
    assert set(counts) <= set(ODDITIES)


@pytest.mark.parametrize("short_side", [256, 12])
def test_shards_hold_what_is_shown(odd_images: ImageFiles, short_side: int, tmp_path: Path) -> None:
    pack(odd_images, tmp_path / "packed", short_side=short_side)
    packed = ShardedImages(tmp_path / "packed")
    assert sorted(packed.ids) == sorted(odd_images.ids)
    for row, name in enumerate(packed.ids):
        image = odd_images.load(odd_images.ids.index(name))
        with Image.open(io.BytesIO(packed.read(row))) as content:  # as anyone else reads it
            assert "exif" not in content.info
            found = content.convert("RGB")
        assert found.size == (image.size if short_side == 256 else {(30, 20): (18, 12), (20, 30): (12, 18)}[image.size])
        off = np.abs(np.asarray(found, int) - np.asarray(image.resize(found.size, Image.Resampling.LANCZOS), int))
        assert off.mean() < (0.1 if short_side == 256 and name.endswith("png") else 20), name  # chroma of tiny JPEGs
        assert packed.load(row).tobytes() == found.tobytes()


def test_a_large_turned_jpeg_shrinks_as_an_upright_one(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 8
    upright = picture(480, 641)
    upright.save(tmp_path / "upright.jpg", quality=100)
    upright.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "turned.jpg", quality=100, exif=exif)
    images = ImageFiles(tmp_path, ("upright.jpg", "turned.jpg"), ("upright", "turned"))
    one, other = (encode(images, row, 96, 92) for row in (0, 1))
    assert (one.width, one.height) == (other.width, other.height) == (128, 96)
    off = seen(one.content).astype(int) - seen(other.content)
    assert np.abs(off).mean() < 2


class TestShardsOfAnOlderVersion:
    @pytest.fixture
    def older(self, odd_images: ImageFiles, tmp_path: Path) -> Path:
        """A packed split whose manifest is as it was before versions of decoding were noted."""
        folder = tmp_path / "packed"
        pack(odd_images, folder, short_side=256)
        manifest = json.loads((folder / MANIFEST).read_text())
        del manifest["settings"]["pixels"]
        (folder / MANIFEST).write_text(json.dumps(manifest))
        return folder

    @pytest.mark.parametrize("use", ["open", "pack", "verify"])
    def test_they_are_refused(self, use: str, older: Path, odd_images: ImageFiles) -> None:
        with pytest.raises(
            PlbenchError, match=r"was packed by an older plbench.*delete the folder and run plbench data"
        ):
            if use == "open":
                ShardedImages(older)
            elif use == "pack":
                pack(odd_images, older, short_side=256)
            else:
                verify(older, decode=False)


@pytest.fixture
def table(odd_images: ImageFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Options of a table of the odd images: the first four train, the others test."""
    monkeypatch.setenv("PLBENCH_CACHE", str(tmp_path / "cache"))
    rows = [f"{name},{number % 2},{'train' if number < 4 else 'test'}" for number, name in enumerate(odd_images.ids)]
    (tmp_path / "labels.csv").write_text("\n".join(["image,shape,split", *rows]) + "\n")
    return ["--labels", tmp_path / "labels.csv", "--images", odd_images.root, "--negative-value", 0, "--quiet"]


def test_verify_says_what_is_odd(table: list[object]) -> None:
    said = plbench("data", "verify", "table", "--decode", "--json", *table)
    notes = [check["found"] for check in said.json if check["what"].endswith(": pixels")]
    assert said.code == 0
    assert notes == [
        f"1 of 4 {ODDITIES['deep']}",
        f"1 of 4 {ODDITIES['transparent']}",
        f"1 of 4 {ODDITIES['turned']}",
        f"1 of 2 {ODDITIES['deep']}",
        f"1 of 2 {ODDITIES['turned']}",
    ]


def test_verify_names_what_is_refused(table: list[object], odd_images: ImageFiles) -> None:
    (odd_images.root / "deep.png").write_bytes(stored(Image.fromarray(WIDE.astype(np.int32)), "TIFF"))
    said = plbench("data", "verify", "table", "--decode", "--json", *table)
    assert said.code == 2 and "deep.png cannot be read: it holds 32-bit" in said.out


def test_fingerprints_and_features_of_other_rules_are_others(
    tiny_images: ImageFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Lvis(tmp_path).make_fixture()
    model = ModelSpec(backbone="test_vit", weights="random", image_size=32)

    def identities() -> tuple[str, str]:
        return Lvis(tmp_path).fingerprint(), features_key("f", "train", tiny_images, model, "float32", 0)

    now = identities()
    assert now == identities()
    for module in ("plbench.data.dataset", "plbench.loading.features"):
        monkeypatch.setattr(f"{module}.PIXELS", 1)
    assert all(before != after for before, after in zip(identities(), now, strict=True))


def test_a_prepared_folder_of_an_older_version_is_refused(table: list[object], tmp_path: Path) -> None:
    out = tmp_path / "prepared"
    assert plbench("data", "prepare", "table", "--out", out, *table).code == 0
    assert plbench("data", "stats", "table", "--data-root", out, "--quiet").code == 0
    about = json.loads((out / PREPARED).read_text())
    assert about.pop("pixels") == PIXELS
    (out / PREPARED).write_text(json.dumps(about))
    for command in (["stats", "table", "--data-root", out, "--quiet"], ["prepare", "table", "--out", out, *table]):
        said = plbench("data", *command)
        assert said.code == 2 and f"{out} was packed by an older plbench" in said.err.replace("\n", " ")

"""Images in tar files are the images in the folders that were packed."""

from __future__ import annotations

import gc
import gzip
import io
import os
import pickle
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from plbench.api import DataError, ImageFiles, TextColumn
from plbench.data import digests
from plbench.data.images import find_unreadable, ordered_batches
from plbench.data.shards import tars as tars_module
from plbench.data.shards.tars import TarImages
from plbench.loading.batches import ImageLoader
from plbench.loading.transforms import EvalTransform

NUM_IMAGES = 30
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
LONG = "a" * 120  # a folder whose name does not fit in where names usually stand


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ImageFiles:
    """Photographs of noise in two folders, in JPEG and PNG."""
    root = tmp_path_factory.mktemp("files")
    ids, paths = [], []
    for row in range(NUM_IMAGES):
        identity, folder = f"{row:04x}", "even" if row % 2 == 0 else f"odd/{LONG}"
        path = f"{folder}/{identity}.{'png' if row % 5 == 0 else 'jpg'}"
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(row).integers(0, 255, (20 + row, 70 - row, 3), np.uint8)
        Image.fromarray(pixels).save(root / path)
        ids.append(identity)
        paths.append(path)
    return ImageFiles(root, tuple(paths), tuple(ids))


def pack(files: ImageFiles, rows: Sequence[int], path: Path, form: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar file as `tar cf` makes it: folders, and something that is no image among the files."""
    with tarfile.open(path, "w", format=form) as tar:
        tar.add(files.root / "even", "even", recursive=False)
        tar.addfile(tarfile.TarInfo("readme.txt"), io.BytesIO())
        for row in rows:
            tar.add(files.root / files.paths[row], files.paths[row])
    return path


def packed(files: ImageFiles, folder: Path, form: int = tarfile.USTAR_FORMAT) -> list[Path]:
    """All images in two tar files, in an order of their own."""
    order = np.random.default_rng(0).permutation(NUM_IMAGES).tolist()
    return [pack(files, order[:11], folder / "0.tar", form), pack(files, order[11:], folder / "1.tar", form)]


@pytest.fixture(scope="module")
def images(files: ImageFiles, tmp_path_factory: pytest.TempPathFactory) -> TarImages:
    return TarImages.open(packed(files, tmp_path_factory.mktemp("tars")), TextColumn.of(files.ids), None)


def check_same(images: TarImages, files: ImageFiles) -> None:
    assert len(images) == len(files) and list(images.ids) == list(files.ids)
    for row in range(len(files)):
        assert images.read(row) == files.read(row)
        one, other = images.load(row), files.load(row)
        assert one.mode == other.mode == "RGB" and np.array_equal(np.asarray(one), np.asarray(other))
        assert images.load(row, min_side=8).size == files.load(row, min_side=8).size


@pytest.mark.parametrize("form", FORMATS)
def test_they_are_the_images_of_the_files(form: int, files: ImageFiles, tmp_path: Path) -> None:
    images = TarImages.open(packed(files, tmp_path, form), TextColumn.of(files.ids), None)
    check_same(images, files)
    assert images.absent() == files.absent() == [] and find_unreadable(images) == {}


def test_a_part_in_any_order_is_that_of_the_files(images: TarImages, files: ImageFiles) -> None:
    index = np.random.default_rng(1).integers(0, NUM_IMAGES, 12)
    check_same(images.subset(index), files.subset(index))
    check_same(images.subset(index).subset(np.array([3, 1])), files.subset(index[[3, 1]]))
    assert len(images.subset(np.array([], np.int64))) == 0


def test_they_travel_to_other_processes(images: TarImages, files: ImageFiles) -> None:
    images.read(3)  # some file is open
    check_same(pickle.loads(pickle.dumps(images)), files)
    check_same(pickle.loads(pickle.dumps(images.subset(np.array([2, 1])))), files.subset(np.array([2, 1])))


def test_threads_that_open_a_tar_at_once_all_read_it(images: TarImages) -> None:
    content = images.read(0)
    for _ in range(300):
        fresh = TarImages(images.tars, images.ids, images.places)
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(fresh.read, [0] * 8)) == [content] * 8


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_loader_gets_the_same_batches(workers: int, images: TarImages, files: ImageFiles) -> None:
    transform = EvalTransform(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    images.load(0)  # open before the workers fork

    def batches(source: TarImages | ImageFiles, number: int) -> list[tuple[np.ndarray, list[int]]]:
        order = ordered_batches(NUM_IMAGES, 7)
        loaded = ImageLoader(source, transform, min_side=16, workers=number).batches(order)
        return [(views[0].numpy(), rows.tolist()) for views, rows in loaded]

    for one, other in zip(batches(images, workers), batches(files, 0), strict=True):
        assert np.array_equal(one[0], other[0]) and one[1] == other[1]


def test_an_image_that_no_tar_holds_is_absent_and_named(files: ImageFiles, tmp_path: Path) -> None:
    tar = pack(files, range(1, NUM_IMAGES), tmp_path / "all.tar")
    images = TarImages.open([tar], TextColumn.of([*files.ids, "never seen"]), None)
    assert images.absent() == [0, NUM_IMAGES]
    assert images.subset(np.array([NUM_IMAGES, 3])).absent() == [0]
    for attempt in (images.read, images.load):
        with pytest.raises(DataError, match=f"image never seen of {tmp_path} cannot be read: it is in none of the tar"):
            attempt(NUM_IMAGES)
    assert set(find_unreadable(images)) == {0, NUM_IMAGES}


def test_a_broken_image_is_named_with_its_tar(files: ImageFiles, tmp_path: Path) -> None:
    root = tmp_path / "files"
    (root / "even").mkdir(parents=True)
    content = files.read(1)
    for name, damaged in (("cut", content[: len(content) // 2]), ("text", b"no picture"), ("empty", b"")):
        (root / f"{name}.jpg").write_bytes(damaged)
    broken = ImageFiles(root, ("cut.jpg", "text.jpg", "empty.jpg"), ("cut", "text", "empty"))
    tar = pack(broken, range(3), tmp_path / "broken.tar")
    images = TarImages.open([tar], TextColumn.of(broken.ids), None)
    reasons = find_unreadable(images)
    assert sorted(reasons) == [0, 1, 2]
    assert all(reasons[row].startswith(f"image {broken.ids[row]} of {tar} cannot be read: ") for row in reasons)


def refused(path: Path, cache: Path | None = None) -> str:
    with pytest.raises(DataError) as caught:
        TarImages.open([path], TextColumn.of(["0001"]), cache)
    message = str(caught.value)
    assert message.startswith(str(path)) and message.isprintable() and len(message) - len(str(path)) < 200
    return message


OTHERS: dict[str, Callable[[bytes], bytes]] = {
    "compressed": gzip.compress,
    "empty": lambda content: b"",
    "text": lambda content: b"no tar file\n" * 100,
    "a picture": lambda content: content[content.index(b"\xff\xd8\xff") :],
    "cut off in the first header": lambda content: content[:300],
    "cut off in an image": lambda content: content[:40_000],
    "cut off in the last image": lambda content: content[: len(content.rstrip(b"\0")) - 10],
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_plain_tar_is_one_sentence(name: str, files: ImageFiles, tmp_path: Path) -> None:
    content = pack(files, range(NUM_IMAGES), tmp_path / "whole.tar").read_bytes()
    (tmp_path / "train.tar").write_bytes(OTHERS[name](content))
    message = refused(tmp_path / "train.tar", tmp_path / "cache")
    assert "cannot be read as a plain tar file" in message and "download it again" in message
    assert not list(tmp_path.glob("cache/index/tar-*"))


def test_a_folder_and_no_file_are_one_sentence(tmp_path: Path) -> None:
    assert "Is a directory" in refused(tmp_path)
    assert "No such file" in refused(tmp_path / "absent.tar")


def test_a_tar_cut_off_between_two_images_lacks_the_rest(files: ImageFiles, tmp_path: Path) -> None:
    tar = pack(files, range(1, 5), tmp_path / "train.tar")
    with tarfile.open(tar) as whole:
        third = whole.getmembers()[4].offset  # after folder, readme and two images
    tar.write_bytes(tar.read_bytes()[:third])
    images = TarImages.open([tar], TextColumn.of(files.ids[1:5]), None)
    assert images.absent() == [2, 3] and images.read(1) == files.read(2)


def test_a_tar_that_shrinks_or_goes_is_named(files: ImageFiles, tmp_path: Path) -> None:
    tar = pack(files, range(NUM_IMAGES), tmp_path / "train.tar")
    images = TarImages.open([tar], TextColumn.of(files.ids), None)
    tar.write_bytes(tar.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"image 001d of .*train\.tar cannot be read"):
        images.load(NUM_IMAGES - 1)
    tar.unlink()
    with pytest.raises(DataError, match=r"train\.tar cannot be read: .*No such file"):
        TarImages(images.tars, images.ids, images.places).read(0)


class TestScan:
    @pytest.fixture
    def scans(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Names of the tar files that are scanned; as if they were written long ago."""
        monkeypatch.setattr(digests, "_FRESH_NS", 0)
        names: list[str] = []
        scan = tars_module._scan
        monkeypatch.setattr(tars_module, "_scan", lambda tar: names.append(tar.name) or scan(tar))
        return names

    def test_it_is_kept(self, files: ImageFiles, tmp_path: Path, scans: list[str]) -> None:
        tars, ids = packed(files, tmp_path), TextColumn.of(files.ids)
        for _ in range(3):
            check_same(TarImages.open(tars, ids, tmp_path / "cache"), files)
        assert scans == ["0.tar", "1.tar"]

    def test_a_changed_tar_is_scanned_again(self, files: ImageFiles, tmp_path: Path, scans: list[str]) -> None:
        ids, cache = TextColumn.of(files.ids), tmp_path / "cache"
        tar = pack(files, range(5), tmp_path / "0.tar")
        assert len(TarImages.open([tar], ids, cache).absent()) == NUM_IMAGES - 5
        pack(files, range(NUM_IMAGES), tar)
        check_same(TarImages.open([tar], ids, cache), files)
        os.utime(tar, (1e9, 1e9))
        check_same(TarImages.open([tar], ids, cache), files)
        assert scans == ["0.tar"] * 3

    def test_a_damaged_one_is_made_anew(self, files: ImageFiles, tmp_path: Path, scans: list[str]) -> None:
        tars, ids, cache = packed(files, tmp_path), TextColumn.of(files.ids), tmp_path / "cache"
        TarImages.open(tars, ids, cache)
        kept = sorted((cache / "index").glob("tar-*"))
        assert len(kept) == 2
        content = kept[0].read_bytes()
        for damaged in (b"", content[:9], content[: len(content) // 2], content[:-1], b"x" * len(content)):
            kept[0].write_bytes(damaged)
            check_same(TarImages.open(tars, ids, cache), files)
        assert len(scans) == 2 + 5

    def test_a_killed_one_is_not_mistaken(
        self, files: ImageFiles, tmp_path: Path, scans: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tars, ids, cache = packed(files, tmp_path), TextColumn.of(files.ids), tmp_path / "cache"

        def die(file: IO[bytes], schema: object) -> None:
            file.write(b"ARROW1")
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(pa.ipc, "new_file", die)
            with pytest.raises(KeyboardInterrupt):
                TarImages.open(tars, ids, cache)
        assert not list((cache / "index").glob("*"))
        check_same(TarImages.open(tars, ids, cache), files)

    def test_without_a_cache_nothing_is_kept(self, files: ImageFiles, tmp_path: Path, scans: list[str]) -> None:
        tars, ids = packed(files, tmp_path), TextColumn.of(files.ids)
        for _ in range(2):
            TarImages.open(tars, ids, None)
        assert len(scans) == 4 and sorted(tmp_path.iterdir()) == tars


def test_the_fingerprint_tells_other_images(images: TarImages, files: ImageFiles, tmp_path: Path) -> None:
    again = TarImages.open(packed(files, tmp_path), TextColumn.of(files.ids), None)
    assert again.fingerprint() == images.fingerprint()
    lacking = TarImages.open([pack(files, range(5), tmp_path / "few.tar")], TextColumn.of(files.ids), None)
    assert len({images.fingerprint(), lacking.fingerprint(), images.subset(np.array([1, 0])).fingerprint()}) == 3


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks Linux")
def test_files_are_closed_when_nobody_reads_them(files: ImageFiles, tmp_path: Path) -> None:
    tars = packed(files, tmp_path)

    def num_open() -> int:
        links = Path("/proc/self/fd").iterdir()
        return sum(os.path.realpath(link).startswith(str(tmp_path)) for link in links)

    for _ in range(3):
        images = TarImages.open(tars, TextColumn.of(files.ids), None)
        part = images.subset(np.arange(4))
        find_unreadable(images), find_unreadable(part)
        assert 2 <= num_open() <= 4
        del images, part
        gc.collect()
        assert num_open() == 0

"""Packed images: the same bytes however often packing was killed, every image by row, every damage by its name."""

import itertools
import json
import multiprocessing
import os
import pickle
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from plbench.api import DataError, ImageFiles
from plbench.data.images import find_unreadable, ordered_batches
from plbench.data.shards.packing import encode, pack, packing_order
from plbench.data.shards.shards import BLOCK_ROWS, PackedSplit, ShardedImages, verify
from plbench.errors import StoreError
from plbench.loading.batches import ImageLoader
from plbench.loading.order import EpochOrder
from plbench.loading.transforms import EvalTransform

SHORT_SIDE = 24
NUM_IMAGES = 300
ROWS_PER_SHARD = 2 * BLOCK_ROWS
BASE = EvalTransform(16, (0.5, 0.4, 0.3), (0.2, 0.25, 0.5))


def noise(row: int, width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(row).integers(0, 255, (6, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> ImageFiles:
    """Images of many sizes, in JPEG and PNG, sorted by kind."""
    root = tmp_path_factory.mktemp("drawn")
    names = []
    for row in range(NUM_IMAGES):
        width, height = 16 + row % 50, 20 + row % 31
        names.append(f"{row:03d}.{'jpg' if row < 200 else 'png'}")
        noise(row, width, height).save(root / names[-1])
    return ImageFiles(root, tuple(names), tuple(f"id-{row}" for row in range(NUM_IMAGES)))


def pack_small(source: ImageFiles, folder: Path, **options: Any) -> PackedSplit:
    options = {"short_side": SHORT_SIDE, "rows_per_shard": ROWS_PER_SHARD, **options}
    return pack(source, folder, **options)


@pytest.fixture(scope="module")
def packed(drawn: ImageFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed split that tests only read."""
    folder = tmp_path_factory.mktemp("packed") / "split"
    pack_small(drawn, folder)
    return folder


@pytest.fixture
def images(drawn: ImageFiles, tmp_path: Path) -> ShardedImages:
    """A packed split that a test may spoil."""
    pack_small(drawn, tmp_path / "split")
    return ShardedImages(tmp_path / "split")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def stop_at(number: int) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        if done >= number:
            raise KeyboardInterrupt

    return report


def source_row(source: ImageFiles, images: ShardedImages, row: int) -> int:
    return list(source.ids).index(images.ids[row])


class TestPacking:
    def test_every_image_is_there_once_in_an_order_of_its_own(self, drawn: ImageFiles, packed: Path) -> None:
        images = ShardedImages(packed)
        assert sorted(images.ids) == sorted(drawn.ids)
        assert list(images.ids) == [drawn.ids[row] for row in packing_order(drawn.ids)]
        kinds = ["jpg" if int(name.removeprefix("id-")) < 200 else "png" for name in images.ids]
        switches = sum(a != b for a, b in itertools.pairwise(kinds))
        assert switches > 90, "133 of 299 neighbours differ where nothing is sorted, 1 in the source"

    def test_the_order_follows_from_the_ids_alone(self, drawn: ImageFiles) -> None:
        shuffled = np.random.default_rng(0).permutation(NUM_IMAGES)
        part = drawn.subset(shuffled)
        assert [part.ids[row] for row in packing_order(part.ids)] == [
            drawn.ids[row] for row in packing_order(drawn.ids)
        ]
        assert [drawn.ids[row] for row in packing_order(drawn.ids)[:3]] == ["id-186", "id-125", "id-69"]

    @pytest.mark.parametrize("workers", [0, 2])
    def test_twice_gives_the_same_bytes(self, drawn: ImageFiles, packed: Path, tmp_path: Path, workers: int) -> None:
        pack_small(drawn, tmp_path / "again", workers=workers)
        assert contents(tmp_path / "again") == contents(packed)

    def test_shards_are_plain_arrow_files(self, drawn: ImageFiles, packed: Path) -> None:
        manifest = PackedSplit.stored(packed)
        assert manifest is not None
        assert [shard.rows for shard in manifest.shards] == [128, 128, 44]
        images, row = ShardedImages(packed), 0
        for shard in manifest.shards:
            with pa.memory_map(str(packed / shard.name)) as file:
                table = pa.ipc.open_file(file).read_all()
            assert {len(batch) for batch in table.to_batches()[:-1]} <= {BLOCK_ROWS}
            for record in table.to_pylist():
                assert record["id"] == images.ids[row]
                assert record["image"] == images.read(row)
                assert (record["width"], record["height"]) == images.load(row).size
                row += 1
        assert row == NUM_IMAGES

    def test_progress_is_told_to_the_end(self, drawn: ImageFiles, tmp_path: Path) -> None:
        steps: list[tuple[int, int]] = []
        pack_small(drawn, tmp_path / "split", report=lambda done, total: steps.append((done, total)))
        assert steps[0] == (0, NUM_IMAGES) and steps[-1] == (NUM_IMAGES, NUM_IMAGES)
        assert steps == sorted(steps)

    def test_nothing_to_pack_is_an_empty_split(self, drawn: ImageFiles, tmp_path: Path) -> None:
        pack_small(drawn.subset(np.array([], np.int64)), tmp_path / "split")
        assert len(ShardedImages(tmp_path / "split")) == 0


class TestEncoding:
    def test_short_sides_are_exact(self, drawn: ImageFiles, packed: Path) -> None:
        images = ShardedImages(packed)
        for row in range(NUM_IMAGES):
            before, after = drawn.load(source_row(drawn, images, row)).size, images.load(row).size
            assert min(after) == min(*before, SHORT_SIDE)
            assert (before[0] < before[1]) == (after[0] < after[1])
            assert abs(max(after) - max(before) * min(after) / min(before)) <= 0.5

    def test_what_need_not_shrink_is_kept_byte_for_byte(self, drawn: ImageFiles, packed: Path) -> None:
        images = ShardedImages(packed)
        kept = 0
        for row in range(NUM_IMAGES):
            original = source_row(drawn, images, row)
            small = min(drawn.load(original).size) <= SHORT_SIDE
            assert (images.read(row) == drawn.read(original)) == small
            kept += small
        assert 50 < kept < 250

    @pytest.mark.parametrize(
        ("mode", "suffix", "kept"),
        [
            ("RGB", "jpg", True),
            ("L", "jpg", True),
            ("CMYK", "jpg", False),
            ("P", "png", True),
            ("RGBA", "png", False),
            ("I;16", "png", False),
            ("RGB", "webp", False),
            ("RGB", "bmp", False),
            ("P", "gif", False),
        ],
    )
    def test_other_kinds_are_written_in_rgb(self, tmp_path: Path, mode: str, suffix: str, kept: bool) -> None:
        picture = Image.new(mode, (20, 30)) if mode == "I;16" else noise(0, 20, 30).convert(mode)
        picture.save(tmp_path / f"x.{suffix}")
        source = ImageFiles(tmp_path, (f"x.{suffix}",), ("x",))
        content = encode(source, 0, SHORT_SIDE, 92).content
        assert (content == source.read(0)) == kept
        for short_side in (SHORT_SIDE, 10):
            (tmp_path / "y").write_bytes(encode(source, 0, short_side, 92).content)
            with Image.open(tmp_path / "y") as image:
                small = short_side == SHORT_SIDE
                assert image.size == ((20, 30) if small else (10, 15))
                written = "PNG" if small and suffix == "png" else "JPEG"
                assert (kept and small) or (image.format, image.mode) == (written, "RGB")
        shrunk = ImageFiles(tmp_path, ("y",), ("y",)).load(0).convert("L")
        plain = source.load(0).resize((10, 15), Image.Resampling.LANCZOS).convert("L")
        assert np.abs(np.asarray(shrunk, int) - np.asarray(plain, int)).mean() < 4, "a picture of the same thing"

    def test_a_large_jpeg_shrinks_to_what_it_would_undecimated(self, tmp_path: Path) -> None:
        noise(1, 640, 480).save(tmp_path / "x.jpg", quality=95)
        source = ImageFiles(tmp_path, ("x.jpg",), ("x",))
        encoded = encode(source, 0, 96, 92)
        assert (encoded.width, encoded.height) == (128, 96)
        (tmp_path / "y.jpg").write_bytes(encoded.content)
        shrunk = ImageFiles(tmp_path, ("y.jpg",), ("y",)).load(0)
        plain = source.load(0).resize((128, 96), Image.Resampling.LANCZOS)
        assert np.abs(np.asarray(shrunk, int) - np.asarray(plain, int)).mean() < 2

    def test_quality_is_heeded(self, drawn: ImageFiles) -> None:
        low, high = (len(encode(drawn, 49, SHORT_SIDE, quality).content) for quality in (50, 95))
        assert low < high


class TestUnreadable:
    def test_they_are_left_out_and_listed(self, drawn: ImageFiles, tmp_path: Path) -> None:
        root = Path(tmp_path.anchor)  # above those that are sound and those that are not
        names, order = [str((drawn.root / name).relative_to(root)) for name in drawn.paths], packing_order(drawn.ids)
        (tmp_path / "cut.jpg").write_bytes(drawn.read(60)[:-200])
        (tmp_path / "small and cut.jpg").write_bytes(drawn.read(0)[:-60])  # one that would be kept as it is
        (tmp_path / "page.jpg").write_text("<html>404</html>")
        rows = dict(
            zip(("cut.jpg", "small and cut.jpg", "page.jpg", "gone.png"), order[[3, 127, 150, 299]], strict=True)
        )
        for name, row in rows.items():
            names[row] = str((tmp_path / name).relative_to(root))
        source = ImageFiles(root, tuple(names), drawn.ids)
        split = pack_small(source, tmp_path / "split", workers=1)
        assert set(split.unreadable) == {drawn.ids[row] for row in rows.values()}
        for name, row in rows.items():
            assert f"{tmp_path / name} cannot be read" in split.unreadable[drawn.ids[row]]
        assert "Pillow reads" in split.unreadable[drawn.ids[rows["page.jpg"]]]
        assert "No such file" in split.unreadable[drawn.ids[rows["gone.png"]]]
        images = ShardedImages(tmp_path / "split")
        assert set(images.ids) == set(drawn.ids) - set(split.unreadable)
        assert [(shard.rows, shard.taken) for shard in split.shards] == [(128, 130), (128, 129), (40, 41)]
        assert split.taken == NUM_IMAGES
        assert find_unreadable(images) == {}

        with pytest.raises(KeyboardInterrupt):
            pack_small(source, tmp_path / "again", report=stop_at(192))
        assert pack_small(source, tmp_path / "again") == split
        assert contents(tmp_path / "again") == contents(tmp_path / "split")
        (tmp_path / "again" / "shard-00001.arrow").unlink()
        assert pack_small(source, tmp_path / "again") == split
        assert contents(tmp_path / "again") == contents(tmp_path / "split")

    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_disk_that_is_gone_ends_it(self, drawn: ImageFiles, tmp_path: Path, workers: int) -> None:
        source = ImageFiles(tmp_path / "gone", drawn.paths, drawn.ids)
        before = set(multiprocessing.active_children())
        with pytest.raises(
            DataError, match=r"64 images in a row cannot be read, the last because image .*No such file"
        ):
            pack_small(source, tmp_path / "split", workers=workers)
        assert set(multiprocessing.active_children()) <= before


def killed_at(call: int, source: ImageFiles, folder: Path) -> None:
    """Packs in this process, which ends itself by SIGKILL at one of its calls of fsync, rename or unlink."""
    left = call

    def before(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return counted

    os.fsync, Path.replace = before(os.fsync), before(Path.replace)  # type: ignore
    pack_small(source, folder)


def run(target: Callable[..., None], *arguments: Any, after: float | None = None) -> int | None:
    """Runs a function in a process of its own, and kills that after so many seconds. Returns its exit code."""
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    process.join(after)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


class TestInterruption:
    def test_killed_at_every_step_it_ends_the_same(self, drawn: ImageFiles, tmp_path: Path) -> None:
        few = drawn.subset(np.arange(150))
        run(pack_small, few, tmp_path / "whole")
        for call in range(40):
            folder = tmp_path / str(call)
            code = run(killed_at, call, few, folder)
            assert code in (0, -signal.SIGKILL)
            pack_small(few, folder)
            assert contents(folder) == contents(tmp_path / "whole")
            if code == 0:
                break
        assert call == 12, "two calls for each of two shards, their two manifests, the index and its manifest"

    def test_killed_at_any_moment_again_and_again(self, drawn: ImageFiles, packed: Path, tmp_path: Path) -> None:
        begin = time.perf_counter()
        run(pack_small, drawn, tmp_path / "timed")
        seconds = time.perf_counter() - begin
        chance, codes = random.Random(0), []
        for attempt in range(5):
            folder = tmp_path / str(attempt)
            codes += [run(pack_small, drawn, folder, after=chance.uniform(0, seconds / 2)) for _ in range(3)]
            pack_small(drawn, folder)
            assert contents(folder) == contents(packed)
        assert -signal.SIGKILL in codes

    def test_finished_shards_are_not_made_again(
        self, drawn: ImageFiles, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(KeyboardInterrupt):
            pack_small(drawn, tmp_path / "split", report=stop_at(192))
        with pytest.raises(DataError, match="has 128 of 300 images; run plbench data prepare again"):
            ShardedImages(tmp_path / "split")
        first = (tmp_path / "split" / "shard-00000.arrow").stat()
        read = []
        monkeypatch.setattr(ImageFiles, "read", lambda self, row: read.append(row) or read_bytes(self, row))
        pack_small(drawn, tmp_path / "split")
        assert sorted(read) == sorted(packing_order(drawn.ids)[128:])
        assert (tmp_path / "split" / "shard-00000.arrow").stat().st_ino == first.st_ino
        read.clear()
        pack_small(drawn, tmp_path / "split")
        assert read == []
        assert contents(tmp_path / "split") == contents(packed)

    @pytest.mark.parametrize("name", ["shard-00000.arrow", "shard-00002.arrow", "index.arrow"])
    @pytest.mark.parametrize("damage", ["missing", "truncated"])
    def test_what_is_missing_is_made_again(
        self, drawn: ImageFiles, images: ShardedImages, packed: Path, name: str, damage: str
    ) -> None:
        path = images.folder / name
        path.unlink() if damage == "missing" else os.truncate(path, 1000)
        pack_small(drawn, images.folder)
        assert contents(images.folder) == contents(packed)

    def test_a_lost_shard_of_changed_images_is_said(self, images: ShardedImages, drawn: ImageFiles) -> None:
        other = ImageFiles(drawn.root, (*drawn.paths[1:], drawn.paths[0]), drawn.ids)
        (images.folder / "shard-00001.arrow").unlink()
        with pytest.raises(DataError, match=r"shard-00001.arrow was lost and cannot be made again as it was, because"):
            pack_small(other, images.folder)

    @pytest.mark.parametrize(
        ("options", "difference"),
        [
            ({"short_side": 20}, "short_side 24, not 20"),
            ({"quality": 80}, "quality 92, not 80"),
            ({"rows_per_shard": 64}, "rows_per_shard 128, not 64"),
        ],
    )
    def test_other_settings_are_refused(
        self, drawn: ImageFiles, images: ShardedImages, packed: Path, options: dict[str, int], difference: str
    ) -> None:
        with pytest.raises(DataError, match=f"split was packed with {difference}; prepare with the same settings"):
            pack_small(drawn, images.folder, **options)
        assert contents(images.folder) == contents(packed)

    def test_other_images_are_refused(self, drawn: ImageFiles, images: ShardedImages) -> None:
        with pytest.raises(DataError, match=r"images [0-9a-f]{64}, not [0-9a-f]{64}, num_images 300, not 299"):
            pack_small(drawn.subset(np.arange(299)), images.folder)

    def test_a_full_disk_is_a_sentence_and_packing_goes_on_later(
        self, drawn: ImageFiles, packed: Path, tmp_path: Path
    ) -> None:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        try:
            with pytest.raises(
                StoreError, match=r"could not write .*shard-0000.\.arrow: File too large; free some space"
            ):
                pack_small(drawn, tmp_path / "split")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, before)
        assert list((tmp_path / "split").glob(".*.tmp")) == []
        pack_small(drawn, tmp_path / "split")
        assert contents(tmp_path / "split") == contents(packed)

    def test_a_place_that_cannot_be_written_to(self, drawn: ImageFiles, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(StoreError, match=r"could not write .*file/split: Not a directory"):
            pack_small(drawn, tmp_path / "file" / "split")


read_bytes = ImageFiles.read


class TestReading:
    def test_a_subset_keeps_the_order_asked_for(self, packed: Path) -> None:
        images = ShardedImages(packed)
        assert len(images.ids) == NUM_IMAGES
        part = images.subset(np.array([250, 3, 129])).subset(np.array([2, 0]))
        assert len(part) == 2
        assert part._open is images._open, "a file is opened once for all subsets"
        assert list(part.ids) == [images.ids[129], images.ids[250]]
        assert [part.read(0), part.read(1)] == [images.read(129), images.read(250)]
        assert part.name(0) == f"{images.ids[129]} (row 1 of shard-00001.arrow)"
        assert len(images) == NUM_IMAGES

    def test_rows_that_jump_about_are_no_blocks(self, packed: Path) -> None:
        images = ShardedImages(packed)
        assert images.block_rows == images.subset(np.arange(0, 300, 2)).block_rows == BLOCK_ROWS
        assert images.subset(np.arange(300)[::-1]).block_rows == 1

    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_workers_read_the_same(self, packed: Path, method: str) -> None:
        images = ShardedImages(packed).subset(np.arange(10, 90))
        order = EpochOrder(len(images), 16, seed=0, epoch=0, block_rows=8, window_blocks=4)
        alone = [views[0] for views, _ in ImageLoader(images, BASE, min_side=16, workers=0).batches(order)]
        before = multiprocessing.get_start_method()
        multiprocessing.set_start_method(method, force=True)
        try:
            both = [views[0] for views, _ in ImageLoader(images, BASE, min_side=16, workers=1).batches(order)]
        finally:
            multiprocessing.set_start_method(before, force=True)
        assert all(torch.equal(a, b) for a, b in zip(alone, both, strict=True))

    def test_it_pickles_by_its_place(self, packed: Path) -> None:
        images = ShardedImages(packed)
        images.read(200)
        pickled = pickle.dumps(images.subset(np.array([7, 5])))
        assert len(pickled) < 1000
        assert pickle.loads(pickled).read(1) == images.read(5)

    def test_no_more_files_stay_open_than_allowed(self, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("plbench.data.shards.shards._MAX_OPEN", 1)
        images = ShardedImages(packed)

        def num_open() -> int:
            targets = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.exists()]
            return sum(str(packed) in target and "shard-" in target for target in targets)

        others = num_open()
        for row in (0, 299, 130, 1):
            images.read(row)
            assert num_open() == others + 1
        del images
        assert num_open() == others

    def test_a_block_is_asked_of_the_system_in_its_shards(self, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[tuple[int, int]] = []
        monkeypatch.setattr(os, "posix_fadvise", lambda file, start, size, advice: asked.append((start, size)))
        monkeypatch.setattr("plbench.data.shards.shards._ADVICE_BYTES", 4096)
        images = ShardedImages(packed)
        for part in (images, images.subset(np.arange(0, 300, 2)), images.subset(np.arange(300)[::-1].copy())):
            asked.clear()
            part.expect(range(50, 140))
            covered = {byte for start, size in asked for byte in range(start, start + size)}
            for row in range(50, 140):
                begin = int(images._begins[part.rows[row]])
                assert {begin, begin + len(part.read(row)) - 1} <= covered
            assert max(size for _, size in asked) <= 4096
        images.expect(range(0))


class TestDamage:
    @pytest.mark.parametrize("damage", ["truncated", "missing", "foreign"])
    def test_a_shard_is_named_with_what_mends_it(self, images: ShardedImages, damage: str) -> None:
        path = images.folder / "shard-00001.arrow"
        size = path.stat().st_size
        if damage == "missing":
            path.unlink()
            says = f"{path} cannot be read: No such file or directory"
        else:
            os.truncate(path, 5000) if damage == "truncated" else path.write_text("something else")
            says = f"{path} has {path.stat().st_size:,} bytes, not the {size:,} packed"
        assert images.absent() == list(range(128, 256))
        assert images.subset(np.arange(250, 260)).absent() == [0, 1, 2, 3, 4, 5]
        for broken in (lambda: images.load(130), lambda: images.read(130), lambda: images.expect(range(100, 140))):
            with pytest.raises(DataError) as caught:
                broken()
            assert str(caught.value) == f"{says}; run plbench data prepare again, which makes what is missing"
        assert images.load(0).mode == "RGB"
        for workers in (0, 1):
            with pytest.raises(DataError, match="^" + str(path)):
                list(ImageLoader(images, BASE, min_side=16, workers=workers).batches(ordered_batches(300, 50)))

    def test_a_shard_cut_off_while_it_is_open(self, images: ShardedImages) -> None:
        images.read(128)
        os.truncate(images.folder / "shard-00001.arrow", 5000)
        with pytest.raises(DataError, match=r"shard-00001.arrow ends before byte [\d,]+; run plbench data prepare"):
            images.read(255)

    def test_an_image_overwritten_is_named(self, images: ShardedImages) -> None:
        path = images.folder / "shard-00001.arrow"
        content = path.read_bytes()
        begin, size = int(images._begins[130]), int(images._sizes[130])
        path.write_bytes(content[:begin] + bytes(size) + content[begin + size :])
        name = rf"{images.ids[130]} \(row 2 of shard-00001.arrow\)"
        with pytest.raises(DataError, match=f"^image {name} has other bytes than were packed; delete .*shard-00001"):
            images.load(130)
        checksum, picture = verify(images.folder, decode=True)
        assert (
            checksum
            == f"{path} has other bytes than were packed; delete it and run plbench data prepare again, "
            + ("which makes what is missing")
        )
        assert picture.startswith(f"image {images.ids[130]} (row 2 of")
        assert verify(images.folder, decode=False) == [checksum]

    def test_verify_finds_nothing_where_nothing_is_wrong(self, packed: Path) -> None:
        steps: list[tuple[int, int]] = []
        assert verify(packed, decode=True, report=lambda done, total: steps.append((done, total))) == []
        assert steps[-1] == (NUM_IMAGES, NUM_IMAGES)
        assert (steps[3][0] == steps[3][1]) and steps[3][0] > 100_000

    def test_verify_lists_missing_files_once(self, images: ShardedImages) -> None:
        (images.folder / "shard-00002.arrow").unlink()
        problems = verify(images.folder, decode=True)
        assert len(problems) == 1 and "shard-00002.arrow is missing or not whole" in problems[0]

    def test_an_index_that_is_not_whole(self, images: ShardedImages) -> None:
        os.truncate(images.folder / "index.arrow", 100)
        with pytest.raises(DataError, match=r"index.arrow is not there or not whole; run plbench data prepare again"):
            ShardedImages(images.folder)

    def test_a_foreign_index(self, images: ShardedImages) -> None:
        path = images.folder / "index.arrow"
        path.write_bytes(bytes(path.stat().st_size))
        with pytest.raises(
            DataError, match=r"index.arrow does not match its checksum in .*packed.json; delete it and run plbench data"
        ):
            ShardedImages(images.folder)

    @pytest.mark.parametrize("content", ["", "[]", '{"settings": 1}', "\0\0"])
    def test_a_foreign_manifest(self, images: ShardedImages, drawn: ImageFiles, content: str) -> None:
        (images.folder / "packed.json").write_text(content)
        for use in (lambda: ShardedImages(images.folder), lambda: pack_small(drawn, images.folder)):
            with pytest.raises(
                DataError, match=r"packed.json is not the manifest of a packed split: .*; delete the folder"
            ):
                use()

    def test_a_format_to_come(self, images: ShardedImages) -> None:
        path = images.folder / "packed.json"
        manifest = json.loads(path.read_text())
        manifest["settings"]["format"] = 3
        path.write_text(json.dumps(manifest))
        with pytest.raises(DataError, match=r"packed.json is not the manifest of a packed split"):
            ShardedImages(images.folder)

    def test_no_split_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(
            DataError, match=r"the packed split .*nowhere does not exist; run plbench data prepare again"
        ):
            ShardedImages(tmp_path / "nowhere")

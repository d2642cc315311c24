"""Packed and prepared folders from strangers: no name and no link in them leads to a file outside."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plbench.api import DataError, ImageFiles
from plbench.data.download.archives import unpack
from plbench.data.shards.packing import pack
from plbench.data.shards.prepared import PREPARED, Preparation, prepared_kind, read_preparation
from plbench.data.shards.shards import MANIFEST, ShardedImages, verify
from plbench.errors import PlbenchError
from plbench.runs.inspect.prepare import prepare
from plbench.runs.workspace import Workspace

NUM_IMAGES = 130  # three shards of 64 rows


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageFiles:
    root = tmp_path_factory.mktemp("images")
    names = tuple(f"{row}.png" for row in range(NUM_IMAGES))
    for row, name in enumerate(names):
        Image.fromarray(np.full((4, 4, 3), row, np.uint8)).save(root / name)
    return ImageFiles(root, names, names)


@pytest.fixture
def folder(images: ImageFiles, tmp_path: Path) -> Path:
    pack(images, tmp_path / "out" / "train", short_side=8, rows_per_shard=64)
    return tmp_path / "out" / "train"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim.txt"
    path.write_text("nobody else's")
    return path


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    change(content)
    (folder / MANIFEST).write_text(json.dumps(content))


NAMES = ["../../victim.txt", "{victim}", "shard-00001.arrow", "shard-00000.arrow\0", "../train/shard-00000.arrow", ""]


@pytest.mark.parametrize("name", NAMES)
def test_a_manifest_names_no_file_but_its_own(folder: Path, images: ImageFiles, victim: Path, name: str) -> None:
    """As found: `data prepare` deleted ../../victim.txt, and `run` read through it."""
    edit(folder, lambda content: content["shards"][0].update(name=name.format(victim=victim)))
    for work in (lambda: pack(images, folder, short_side=8, rows_per_shard=64), lambda: ShardedImages(folder)):
        with pytest.raises(DataError, match=r"packed.json is not the manifest .* where shard-00000.arrow is expected"):
            work()
    assert victim.read_text() == "nobody else's"


@pytest.mark.parametrize("name", ["../../victim.txt", "shard-00000.arrow"])
def test_the_index_is_the_index(folder: Path, victim: Path, name: str) -> None:
    edit(folder, lambda content: content["index"].update(name=name))
    with pytest.raises(DataError, match=r"where index.arrow is expected"):
        ShardedImages(folder)


@pytest.mark.parametrize(("field", "value"), [("rows_per_shard", 0), ("num_images", -1)])
def test_numbers_of_a_manifest_are_possible(folder: Path, field: str, value: int) -> None:
    edit(folder, lambda content: content["settings"].update({field: value}))
    with pytest.raises(DataError, match=r"packed.json is not the manifest"):
        ShardedImages(folder)


def test_a_shard_that_is_a_link_is_not_read_and_made_anew(folder: Path, images: ImageFiles, tmp_path: Path) -> None:
    shard = folder / "shard-00001.arrow"
    shard.rename(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere").read_bytes()
    shard.symlink_to(tmp_path / "elsewhere")
    packed = ShardedImages(folder)
    assert len(packed.absent()) == 64 and "is missing or not whole" in verify(folder, decode=False)[0]
    with pytest.raises(PlbenchError, match="is a link to"):
        packed.read(64)
    pack(images, folder, short_side=8, rows_per_shard=64)
    assert not shard.is_symlink() and shard.read_bytes() == before == (tmp_path / "elsewhere").read_bytes()


@pytest.mark.parametrize("name", ["", ".lock"])
def test_nothing_is_packed_through_a_link(images: ImageFiles, victim: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "else").mkdir()
    place = tmp_path / "out" / "train" / name
    place.parent.mkdir(parents=True)
    place.symlink_to(victim if name else tmp_path / "else")
    with pytest.raises(PlbenchError, match="is a link to"):
        pack(images, tmp_path / "out" / "train", short_side=8)
    assert victim.read_text() == "nobody else's" and list((tmp_path / "else").iterdir()) == []


class TestPrepared:
    @pytest.fixture
    def out(self, make_workspace: Callable[..., Workspace], tmp_path: Path) -> Path:
        prepare("tiny", make_workspace(), tmp_path / "tiny", short_side=8, quality=90)
        return tmp_path / "tiny"

    @pytest.mark.parametrize("place", ["train", "train/labels", "train/labels/image_ids.arrow", "train/.lock"])
    def test_links_in_it_are_neither_read_nor_written_through(
        self, out: Path, make_workspace: Callable[..., Workspace], tiny_dataset: type[Any], tmp_path: Path, place: str
    ) -> None:
        (out / place).rename(tmp_path / "moved")
        (out / place).symlink_to(tmp_path / "moved")
        if not place.endswith("lock"):
            with pytest.raises(PlbenchError, match="is a link to"):
                prepared_kind(tiny_dataset)(out).split("train")
        if place != "train/labels/image_ids.arrow":  # which is made anew, as all labels are
            with pytest.raises(PlbenchError, match="is a link to"):
                prepare("tiny", make_workspace(), out, short_side=8, quality=90)

    @pytest.mark.parametrize("split", ["../elsewhere", "/tmp", "a/b", "", ".."])
    def test_a_split_is_a_plain_name(self, out: Path, split: str) -> None:
        about = json.loads((out / PREPARED).read_text())
        (out / PREPARED).write_text(json.dumps({**about, "splits": [split]}))
        with pytest.raises(DataError, match=r"prepared.json cannot be read"):
            read_preparation(out)
        assert Preparation.model_validate(about).splits == ("train", "test")

    def test_its_description_is_no_link(self, out: Path, tmp_path: Path) -> None:
        (out / PREPARED).rename(tmp_path / "moved")
        (out / PREPARED).symlink_to(tmp_path / "moved")
        with pytest.raises(PlbenchError, match="is a link to"):
            read_preparation(out)


@pytest.mark.parametrize("place", ["train2017", "train2017/deep", "train2017/deep/a.txt"])
def test_an_archive_is_not_unpacked_through_links(victim: Path, tmp_path: Path, place: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("train2017/deep/a.txt", "from a stranger")
    (tmp_path / "else" / "deep").mkdir(parents=True)
    link = tmp_path / "root" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(victim if place.endswith("txt") else tmp_path / "else")
    with pytest.raises(PlbenchError, match="is a link to"):
        unpack(tmp_path / "a.zip", tmp_path / "root")
    assert victim.read_text() == "nobody else's" and [p for p in (tmp_path / "else").rglob("*") if p.is_file()] == []
    shutil.rmtree(tmp_path / "root")
    (tmp_path / "root").symlink_to(tmp_path / "else")  # a folder that a person named may be one
    unpack(tmp_path / "a.zip", tmp_path / "root")
    assert (tmp_path / "else" / "train2017" / "deep" / "a.txt").read_text() == "from a stranger"

"""Prepared folders hold what they were made from, to the same bytes however often the making was interrupted."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_cli import Outcome, plbench

from plbench.data.annotations.collect import Annotations
from plbench.data.shards import packing
from plbench.data.shards.prepared import PREPARED, PreparedDataset, is_prepared, prepared_kind
from plbench.datasets.coco import Coco2014
from plbench.datasets.openimages import OpenImagesV3, OpenImagesV6
from plbench.errors import DataError, PlbenchError, StoreError
from plbench.files.checksums import write_sums
from plbench.progress import ProgressReport, Reporter
from plbench.runs.inspect import prepare as preparing
from plbench.runs.inspect.prepare import prepare
from plbench.runs.registry import Registry
from plbench.runs.store import Store
from plbench.runs.workspace import Workspace, open_dataset

SHORT_SIDE = 48  # of pictures of 112 px
NUM_IMAGES = {"train": 60, "test": 40}
Make = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small V3: not to be written to."""
    root = tmp_path_factory.mktemp("v3")
    OpenImagesV3(root).make_fixture()
    return root


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache and a folder of runs for each test."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("PLBENCH_CACHE", str(home / "cache"))
    monkeypatch.setenv("PLBENCH_RUNS", str(home / "runs"))
    return home


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four shards of train and three of test, and reports of every eight images."""
    shrink(monkeypatch.setattr)


def shrink(set_attribute: Callable[[object, str, Any], None]) -> None:
    set_attribute(packing, "BLOCK_ROWS", 8)
    set_attribute(preparing, "pack", partial(packing.pack, rows_per_shard=16))


@pytest.fixture
def make(make_workspace: Callable[..., Workspace], source: Path) -> Make:
    """Prepares the small V3: `make(out, reporter=…, root=…, splits=…)`."""

    def make_it(out: Path, *, reporter: Reporter | None = None, root: Path = source, **options: Any) -> dict[str, Any]:
        workspace = replace(make_workspace(name="prepare"), data_root=root, reporter=reporter or Reporter())
        return prepare("openimages-v3", workspace, out, **{"short_side": SHORT_SIDE, "quality": 90, **options})

    return make_it


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small V3, prepared by the command: not to be written to."""
    out = tmp_path_factory.mktemp("made") / "v3"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PLBENCH_CACHE", str(out.parent / "cache"))
        said = command("prepare", "--data-root", source, "--out", out, "--short-side", SHORT_SIDE, "--workers", 0)
    assert said.code == 0, said.err
    assert [len(shard_names(out / split)) for split in NUM_IMAGES] == [1, 1]
    return out


def shard_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("shard-*.arrow"))


def command(name: str, *options: object) -> Outcome:
    return plbench("data", name, "openimages-v3", *options, *(["--quiet"] if name != "list" else []))


def opened(root: Path, workspace: Workspace) -> PreparedDataset:
    dataset = open_dataset("openimages-v3", replace(workspace, data_root=root))
    assert isinstance(dataset, PreparedDataset)
    return dataset


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


class TestWhatItHolds:
    def test_the_same_labels_by_image(self, made: Path, source: Path, make_workspace: Callable[..., Workspace]) -> None:
        prepared, original = opened(made, make_workspace()), OpenImagesV3(source)
        for split, number in NUM_IMAGES.items():
            found, expected = prepared.split(split), original.split(split)
            assert len(found.images) == found.labels.num_images == number
            assert sorted(found.images.ids) == sorted(expected.images.ids)
            assert list(found.images.ids) != list(expected.images.ids)  # packed in an order of its own
            rows = [list(expected.images.ids).index(identity) for identity in found.images.ids]
            assert found.labels.fingerprint() == expected.labels.subset(rows).fingerprint()
            assert found.labels.class_names == expected.labels.class_names

    def test_the_same_images_at_the_short_side(
        self, made: Path, source: Path, make_workspace: Callable[..., Workspace]
    ) -> None:
        found, original = opened(made, make_workspace()).split("test").images, OpenImagesV3(source).split("test").images
        rows = {identity: row for row, identity in enumerate(original.ids)}
        for row, identity in enumerate(found.ids):
            image, before = found.load(row), original.load(rows[identity])
            assert min(image.size) == SHORT_SIDE < min(before.size)
            difference = np.abs(np.asarray(image, np.int16) - np.asarray(before.resize(image.size), np.int16))
            assert difference.mean() < 8  # of 255
        assert not np.array_equal(np.asarray(found.load(0)), np.asarray(found.load(1)))

    def test_groups_notes_and_words(self, made: Path, source: Path, make_workspace: Callable[..., Workspace]) -> None:
        prepared, original = opened(made, make_workspace()), OpenImagesV3(source)
        original.prepare(lambda done, total: None)
        assert prepared.groups() == original.groups() and len(prepared.groups()) == 5
        for split, notes in prepared.notes().items():
            assert notes[1:] == original.notes()[split] and len(notes) == 4
            assert f"short side of {SHORT_SIDE} px" in notes[0] and original.fingerprint()[:12] in notes[0]
        for name in ("name", "title", "licence", "sources", "protocols", "recipes", "official_num_classes"):
            assert getattr(prepared, name) == getattr(original, name)

    def test_published_masks_are_drawn_in_the_published_order_or_not_at_all(
        self, made: Path, tmp_path: Path, make_workspace: Callable[..., Workspace]
    ) -> None:
        own_order = opened(made, make_workspace())
        rows, num_rows = own_order.published_rows("train", "cole2021")
        assert rows.tolist() == list(range(num_rows)) and num_rows == own_order.about.num_images["train"]
        own_order.about = own_order.about.model_copy(update={"num_images": {"train": num_rows + 1}})
        with pytest.raises(DataError, match=r"does not keep the order in which cole2021 draws labels; give the folder"):
            own_order.published_rows("train", "cole2021")  # one image could not be read
        Coco2014(tmp_path / "coco").make_fixture()
        workspace = replace(make_workspace(name="prepare"), data_root=tmp_path / "coco")
        prepare("coco", workspace, tmp_path / "packed", short_side=SHORT_SIDE, quality=90)
        coco = prepared_kind(Coco2014)(tmp_path / "packed")
        with pytest.raises(DataError, match=r"order in which mlr-pl draws labels; .* published files of 'coco'"):
            coco.published_rows("train", "mlr-pl")
        with pytest.raises(DataError, match="does not say how large its objects are"):
            coco.prominence("train", "size")

    def test_its_fingerprint_is_its_own_and_stable(
        self, made: Path, source: Path, make_workspace: Callable[..., Workspace], tmp_path: Path
    ) -> None:
        fingerprint = opened(made, make_workspace()).fingerprint()
        assert fingerprint != OpenImagesV3(source).fingerprint()
        shutil.copytree(made, tmp_path / "moved")
        assert opened(tmp_path / "moved", make_workspace(name="other")).fingerprint() == fingerprint
        values = tmp_path / "moved" / "test" / "labels" / "values.npy"
        np.save(values, -np.load(values))
        with pytest.raises(
            DataError, match=r"values.npy does not match .*; delete .*labels and run plbench data prepare"
        ):
            opened(tmp_path / "moved", make_workspace(name="third")).split("test")
        write_sums(values.parent)  # as if they had been prepared so
        assert opened(tmp_path / "moved", make_workspace(name="third")).fingerprint() != fingerprint

    def test_others_may_read_it(self, made: Path) -> None:
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in made.rglob("*") if path.name != ".lock"}
        assert {mode & 0o444 for mode in modes.values()} == {0o444}

    def test_it_can_be_prepared_in_part(
        self, make: Make, make_workspace: Callable[..., Workspace], tmp_path: Path
    ) -> None:
        summary = make(tmp_path / "out", splits=("validation", "validation"))
        assert [(split["split"], split["images"]) for split in summary["splits"]] == [("validation", 16)]
        with pytest.raises(DataError, match=r"needs train, test, not found in .*data prepare openimages-v3 packs"):
            opened(tmp_path / "out", make_workspace())


class Interrupting(Reporter):
    """Raises after some reports: what a person's Ctrl-C does."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    @contextlib.contextmanager
    def task(self, title: str, *, bytes: bool = False) -> Iterator[ProgressReport]:
        def report(done: int, total: int) -> None:
            if title.startswith("Packing"):
                self.left -= 1
                if self.left < 0:
                    self.stop()

        yield report

    def stop(self) -> None:
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an uninterrupted process writes, with small shards."""
    top = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patched:
        shrink(patched.setattr)
        prepare_there(source, top / "out", Reporter())
    found = contents(top / "out")
    assert sum(name.startswith("train/shard-") for name in found) == 4
    return found


def prepare_there(source: Path, out: Path, reporter: Reporter) -> None:
    store = Store(out.parent / "runs", out.parent / "cache")
    workspace = Workspace(store, Registry.discover(), reporter, torch.device("cpu"), 0, data_root=source)
    prepare("openimages-v3", workspace, out, short_side=SHORT_SIDE, quality=90)


_SCRIPT = """
import os, signal, sys
from pathlib import Path
from plbench.data.text_column import TextColumn
from test_prepared import Interrupting, prepare_there, shrink
class Dying(Interrupting):
    def stop(self):
        os.kill(os.getpid(), signal.SIGKILL)
    def task(self, title, *, bytes=False):
        if self.left > 100 and title.startswith("Packing"):  # from now on, after the first column of labels
            TextColumn.save = lambda column, path: (save(column, path), self.stop())
        return super().task(title, bytes=bytes)
save = TextColumn.save
shrink(setattr)
prepare_there(Path(sys.argv[1]), Path(sys.argv[2]), Dying(6 if sys.argv[3] == "packing" else 1000))
"""


def run_script(source: Path, out: Path, when: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-c", _SCRIPT, source, out, when], env=environment, check=False)


class TestInterruption:
    @pytest.mark.parametrize("after", [0, 1, 5, 9, 12, 16])
    def test_called_again_it_ends_with_the_same_bytes(
        self, after: int, make: Make, small_shards: None, whole: dict[str, bytes], tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        with pytest.raises(KeyboardInterrupt):
            make(out, reporter=Interrupting(after))
        assert contents(out) != whole
        make(out)
        assert contents(out) == whole
        make(out)  # nothing is left to do
        assert contents(out) == whole

    def test_stopped_again_and_again(
        self, make: Make, small_shards: None, whole: dict[str, bytes], tmp_path: Path
    ) -> None:
        for attempt in range(40):  # noqa: B007  (how many it took)
            try:
                make(tmp_path / "out", reporter=Interrupting(5))
                break
            except KeyboardInterrupt:
                pass
        assert attempt >= 3 and contents(tmp_path / "out") == whole

    @pytest.mark.parametrize("when", ["packing", "labels"])
    def test_killed(
        self, when: str, source: Path, make: Make, small_shards: None, whole: dict[str, bytes], tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        assert run_script(source, out, when).returncode == -signal.SIGKILL
        assert bool(list(out.glob("*/.labels.*"))) == (when == "labels")
        make(out)
        assert contents(out) == whole

    def test_labels_are_whole_or_not_there(self, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write = Annotations.write

        def fill_the_disk(self: Annotations, folder: Path) -> None:
            write(self, folder)
            if folder.name.startswith(".labels"):
                raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(Annotations, "write", fill_the_disk)
            with pytest.raises(StoreError, match=r"could not write .*out/train/labels: No space left on device"):
                make(tmp_path / "out")
        assert not (tmp_path / "out" / "train" / "labels").exists()
        make(tmp_path / "out")

    def test_an_unfinished_folder_is_refused_with_what_mends_it(
        self, make: Make, make_workspace: Callable[..., Workspace], tmp_path: Path
    ) -> None:
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "out", reporter=Interrupting(3))
        with pytest.raises(DataError, match="was not prepared completely; run plbench data prepare openimages-v3 "):
            opened(tmp_path / "out", make_workspace())
        said = plbench("run", "-m", "ce-ignore", "-d", "openimages-v3", "--data-root", tmp_path / "out")
        assert said.code == 2 and "run plbench data prepare openimages-v3 again" in said.err
        make(tmp_path / "out")
        assert len(opened(tmp_path / "out", make_workspace()).split("train").images) == 60


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"short_side": 64}, "was prepared with short_side 48, not 64; give the same options, or another `out=`"),
            ({"quality": 80}, "was prepared with quality 90, not 80; "),
            ({"splits": ("train",)}, r"was prepared with splits \('train', 'test'\), not \('train',\); "),
        ],
    )
    def test_other_settings(self, options: dict[str, Any], says: str, make: Make, tmp_path: Path) -> None:
        make(tmp_path / "out")
        before = contents(tmp_path / "out")
        with pytest.raises(DataError, match=says):
            make(tmp_path / "out", **options)
        assert contents(tmp_path / "out") == before

    def test_another_source(self, make: Make, source: Path, tmp_path: Path) -> None:
        make(tmp_path / "out")
        shutil.copytree(source, tmp_path / "other")
        path = tmp_path / "other" / OpenImagesV3.label_files["test"]
        path.write_text(path.read_text().replace(",1\n", ",0\n"))
        with pytest.raises(DataError, match=r"was prepared with source [0-9a-f]+, not [0-9a-f]+; "):
            make(tmp_path / "out", root=tmp_path / "other")

    def test_a_folder_with_other_files(self, make: Make, source: Path, tmp_path: Path) -> None:
        (tmp_path / "photographs").write_text("mine")
        with pytest.raises(DataError, match="holds other files; give an empty or new folder as `out=`"):
            make(tmp_path)
        assert [path.name for path in tmp_path.iterdir() if path.name != "prepare"] == ["photographs"]
        with pytest.raises(DataError, match="holds other files"):
            make(source)

    def test_a_split_that_there_is_not_leaves_nothing(self, make: Make, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="has splits train, validation, test, not 'val'"):
            make(tmp_path / "out", splits=("train", "val"))
        assert not (tmp_path / "out").exists()
        make(tmp_path / "out", splits=("validation",))

    def test_what_is_prepared_already(self, make: Make, made: Path, tmp_path: Path) -> None:
        with pytest.raises(PlbenchError, match="is prepared already; give the folder of the published files"):
            make(tmp_path / "out", root=made)
        assert not (tmp_path / "out").exists()

    def test_the_name_of_another_dataset(self, made: Path) -> None:
        said = plbench("run", "-m", "ce-ignore", "-d", "openimages-v6", "--data-root", made, "--dry-run")
        assert said.code == 2 and f"{made} holds 'openimages-v3', prepared; give --dataset openimages-v3" in said.err

    @pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 9}', "\xff"])
    def test_a_damaged_description(self, content: str, made: Path, tmp_path: Path) -> None:
        (tmp_path / PREPARED).write_text(content)
        assert is_prepared(tmp_path)
        with pytest.raises(DataError, match=r"prepared\.json cannot be read: .*; run plbench data prepare") as caught:
            prepared_kind(OpenImagesV3)(tmp_path)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("name", ["train/labels/values.npy", "test/labels/image_ids.arrow", "train/packed.json"])
    def test_a_damaged_file(
        self, name: str, made: Path, make_workspace: Callable[..., Workspace], tmp_path: Path
    ) -> None:
        shutil.copytree(made, tmp_path / "v3")
        (tmp_path / "v3" / name).write_bytes(b"\0" * 9)
        dataset = opened(tmp_path / "v3", make_workspace())
        with pytest.raises(DataError, match=str(tmp_path / "v3")):
            dataset.split(name.partition("/")[0])
        shutil.rmtree(tmp_path / "v3" / "test" / "labels")
        with pytest.raises(DataError, match="needs test, not found in"):
            opened(tmp_path / "v3", make_workspace())


def break_images(kind: type[OpenImagesV3] | type[OpenImagesV6], root: Path, what: str) -> str:
    """A copy in which one train image is not there or cannot be read; its id."""
    kind(root).make_fixture()
    images = kind(root).split("train").images
    path = Path(images.name(7))
    if what == "broken":
        path.write_bytes(path.read_bytes()[:700])
    elif what == "absent":
        path.unlink()
    return str(images.ids[7])


class TestLeftOut:
    @pytest.mark.parametrize(
        ("kind", "what"),
        [(OpenImagesV3, "broken"), (OpenImagesV3, "absent"), (OpenImagesV3, "nothing"), (OpenImagesV6, "broken")],
    )
    def test_it_is_named_and_a_run_is_no_longer_official(
        self, kind: Any, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if kind is OpenImagesV6:
            monkeypatch.setattr(kind, "official_num_images", NUM_IMAGES)
        monkeypatch.setattr(kind, "official_num_classes", 10, raising=False)
        identity = break_images(kind, tmp_path / "data", what)
        where = ["--data-root", tmp_path / "data", "--out", tmp_path / "out", "--short-side", 48, "--workers", 0]
        summary = plbench("data", "prepare", kind.name, *where, "--json", "--quiet").json
        train, test = summary["splits"]
        left_out = 0 if what == "nothing" else 1
        assert (train["images"], test["images"]) == (60 - left_out, 40)
        assert train["absent"] == (what == "absent") and test["absent"] == 0
        assert [item["image"] for item in train["unreadable"]] == ([identity] if what == "broken" else [])
        said = plbench("data", "prepare", kind.name, *where)
        assert said.code == 0 and (identity in said.out) == (what == "broken")
        assert ("1 of 60 train images are missing" in said.err) == (what == "absent")
        run = ["run", "-m", "ce-ignore", "-d", kind.name, "--data-root", tmp_path / "out", "--recipe", "quick"]
        plan = plbench(*run, "--dry-run", "--json", "--quiet").json
        official = f"{kind.name}/v1" if what == "nothing" else f"custom/{kind.name}"
        assert plan["spec"]["protocol"]["name"] == official

    def test_no_image_at_all_is_refused(self, make: Make, source: Path, tmp_path: Path) -> None:
        shutil.copytree(source, tmp_path / "data")
        shutil.rmtree(tmp_path / "data" / "train")
        (tmp_path / "data" / "train").mkdir()
        with pytest.raises(DataError, match="none of the 60 train images is there, such as "):
            make(tmp_path / "out", root=tmp_path / "data")


RUN = ["run", "--method", "selective", "--dataset", "openimages-v3", "--recipe", "quick"]
SHORT = ["--image-size", "32", "--epochs", "1", "--workers", "0", "--json", "--quiet"]


@pytest.mark.slow
@pytest.mark.parametrize("regime", ["probe", "finetune"])
def test_a_run_on_it_is_the_same_wherever_it_lies(regime: str, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "here")
    run = [*RUN, "--regime", regime, *SHORT, "--data-root"]
    first = plbench(*run, tmp_path / "here").json
    assert first["status"] == "done" and first["spec"]["protocol"]["name"] == "custom/openimages-v3"
    assert (first["data"]["num_train"], first["data"]["num_test"]) == (60, 40)
    (tmp_path / "here").rename(tmp_path / "there")
    second = plbench(*run, tmp_path / "there").json
    assert second == first  # done already
    third = plbench(*run, tmp_path / "there", "--force").json
    assert third["key"] == first["key"] and third["metrics"] == first["metrics"]


def test_commands_say_what_was_packed_and_look_at_it(made: Path, source: Path, tmp_path: Path) -> None:
    where = ["--data-root", made]
    shown = plbench("data", "show", "openimages-v3", *where, "--out", tmp_path / "sheet.png", "--json").json
    assert shown["state"] == "here" and shown["folder"] == str(made) and (tmp_path / "sheet.png").stat().st_size > 1000
    stats, before = (command("stats", "--data-root", root, "--json").json for root in (made, source))
    for name in ("splits", "classes", "positives_in_an_image", "protocol"):
        assert stats[name] == before[name]
    assert all(notes[1:] == before["notes"][split] for split, notes in stats["notes"].items())
    said = command("download", *where)
    assert said.code == 2 and "has no files to download; plbench data prepare openimages-v3 packs it" in said.err
    assert json.loads((made / PREPARED).read_text())["done"] is True

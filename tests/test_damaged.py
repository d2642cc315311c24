"""What is stored is what is used: a bit flipped in any stored file is said, set aside and made again, or refused."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from plbench.data import digests
from plbench.data.shards.packing import pack
from plbench.data.shards.shards import ShardedImages
from plbench.errors import DataError, StoreError
from plbench.files.checksums import DAMAGED, Damaged, read_checked, read_checked_json, write_checked, write_checked_json
from plbench.loading.resumable_array import GrowingMatrix, find_damage, forget_damaged, open_checked, open_matrix
from plbench.progress import Reporter
from plbench.runs import run as runner
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.record import whole_file
from plbench.runs.store import CHECKPOINT, RECORD
from plbench.runs.workspace import Workspace, fingerprint, open_dataset

pytestmark = pytest.mark.usefixtures("quick_records")


@pytest.fixture
def workspace(
    make_workspace: Callable[..., Workspace], listening: Reporter, monkeypatch: pytest.MonkeyPatch
) -> Workspace:
    """A workspace that listens; files count as written long ago."""
    monkeypatch.setattr(digests, "_FRESH_NS", 0)
    return replace(make_workspace(), reporter=listening)


def said(workspace: Workspace, text: str) -> list[str]:
    return [line for line in workspace.reporter.lines if text in line]


def flip(path: Path, at: float = 0.5, bit: int = 1) -> None:
    """One bit, in place, with size and time of modification kept."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= bit
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def zero_half(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 4)
        file.write(bytes(path.stat().st_size // 2))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "a bit": flip,
    "a sign": lambda path: flip(path, 0.3, 128),
    "the last value": lambda path: flip(path, 0.98),
    "half of them zero": zero_half,
    "the header": lambda path: flip(path, 0.0),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "another array": lambda path: np.save(path, np.ones((48, 8), np.float32)),
}


class TestFeatures:
    @pytest.mark.parametrize("name", DAMAGES)
    def test_damaged_ones_are_computed_again(self, workspace: Workspace, name: str) -> None:
        plan = plan_run(Request("tiny", "ce-negative"), workspace)
        fresh = runner.run(plan, workspace).test.map_c
        paths = sorted((workspace.store.cache / "features").glob("*.npy"))
        contents = [path.read_bytes() for path in paths]
        DAMAGES[name](paths[0])
        assert runner.run(plan, workspace, force=True).test.map_c == fresh
        assert [path.read_bytes() for path in paths] == contents
        assert len(said(workspace, f"Cached features {paths[0]} are damaged: ")) == 1
        assert paths[0].with_name(paths[0].name + DAMAGED).exists()
        assert runner.run(plan, workspace, force=True).test.map_c == fresh
        assert len(said(workspace, "damaged")) == 1

    def test_each_row_is_under_a_checksum(self, tmp_path: Path) -> None:
        matrix = GrowingMatrix(tmp_path / "x.npy", (10, 3), 4)
        values = np.arange(30, dtype=np.float32).reshape(10, 3)
        with matrix.opened(owner=True):
            for batch in matrix.batches_to_do(0, 1):
                rows = matrix.rows_of(batch)
                matrix.write(batch, values[rows.start : rows.stop])
            matrix.finish(owner=True)
        whole = (tmp_path / "x.npy").read_bytes()
        assert find_damage(tmp_path / "x.npy") is None
        np.testing.assert_array_equal(open_matrix(tmp_path / "x.npy", 10), values)
        assert open_matrix(tmp_path / "x.npy", 9) is None
        for place in range(len(whole)):
            path = tmp_path / f"{place}.npy"
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            assert find_damage(path) is not None, place

    def test_rows_that_were_damaged_before_the_last_came_are_made_again(self, tmp_path: Path) -> None:
        values = np.arange(30, dtype=np.float32).reshape(10, 3)

        def fill(place: str, number: int) -> GrowingMatrix:
            matrix = GrowingMatrix(tmp_path / f"{place}.npy", values.shape, 4)
            with matrix.opened(owner=True):
                for batch in matrix.batches_to_do(0, 1)[:number]:
                    rows = matrix.rows_of(batch)
                    matrix.write(batch, values[rows.start : rows.stop])
                matrix.note()
                if number == matrix.num_batches:
                    matrix.finish(owner=True)
            return matrix

        begun = fill("begun", 2).partial.read_bytes()
        assert forget_damaged(tmp_path / "begun.npy") is None
        forgotten = 0
        for place in range(len(begun)):
            partial = tmp_path / f"{place}.partial"
            partial.write_bytes(begun[:place] + bytes([begun[place] ^ 4]) + begun[place + 1 :])
            assert open_checked(tmp_path / f"{place}.npy", 10) is None
            forgotten += partial.read_bytes().count(bytes(8)) > begun.count(bytes(8))
            fill(str(place), 3)
            np.testing.assert_array_equal(open_checked(tmp_path / f"{place}.npy", 10), values)
        assert forgotten >= 8 * 3 * 4


def own_table(folder: Path, suffix: str = ".bmp", *, wrong: bool = False) -> dict[str, str]:
    """40 images of 8 x 8 px, one class by brightness; options of the dataset `table`."""
    (folder / "images").mkdir(parents=True)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "split", "bright", "red"])
        for row in range(40):
            bright, red = row % 2, row // 2 % 2
            pixels = np.random.default_rng(row).integers(0, 100, (8, 8, 3), np.uint8) + np.uint8(120 * bright)
            pixels[..., 1:] //= 1 + red
            Image.fromarray(pixels).save(folder / "images" / f"{row}{suffix}")
            writer.writerow([f"{row}{suffix}", "test" if row % 5 == 0 else "train", bright, red])
    return {"labels": str(folder / "labels.csv"), "images": str(folder / "images"), "negative_value": "0"}


def planned(workspace: Workspace, **changes: Any) -> ResolvedRun:
    model = {"backbone": "test_resnet", "weights": "random", "image_size": 32}
    return plan_run(
        Request("table", "ce-negative", model=model, plan={"epochs": 2, "batch_size": 16}, **changes), workspace
    )


class TestFilesOfADataset:
    def test_images_exchanged_in_place_are_another_dataset(self, workspace: Workspace, tmp_path: Path) -> None:
        own = replace(workspace, data_options=own_table(tmp_path / "own"))
        before = planned(own)
        runner.run(before, own)
        for row in range(0, 40, 2):
            paths = [tmp_path / "own" / "images" / f"{number}.bmp" for number in (row, row + 1)]
            contents, times = [path.read_bytes() for path in paths], [path.stat().st_mtime_ns for path in paths]
            assert len(contents[0]) == len(contents[1])
            for path, content, time in zip(paths, contents[::-1], times, strict=True):
                path.write_bytes(content)
                os.utime(path, ns=(time, time))
        after = planned(own)
        assert after.spec.key != before.spec.key
        fresh = replace(own, store=replace(own.store, runs=tmp_path / "runs", cache=tmp_path / "other-cache"))
        assert after.spec == planned(fresh).spec
        assert runner.run(after, own).metrics == runner.run(planned(fresh), fresh).metrics

    def test_annotations_edited_in_place_are_read_again(self, workspace: Workspace, tmp_path: Path) -> None:
        own = replace(workspace, data_options=own_table(tmp_path / "own"))
        before = planned(own)
        path = tmp_path / "own" / "labels.csv"
        status = path.stat()
        path.write_bytes(path.read_bytes().replace(b"train,1,0", b"train,0,1"))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert path.stat().st_size == status.st_size
        after = planned(own)
        assert after.spec.dataset_fingerprint != before.spec.dataset_fingerprint
        assert after.protocol_data.train().labels.fingerprint() != before.protocol_data.train().labels.fingerprint()

    @pytest.mark.parametrize("file", ["values.npy", "indices.npy", "image_ids.arrow", "class_ids.arrow", "said.json"])
    def test_a_bit_of_the_index_is_said_and_it_is_made_again(
        self, workspace: Workspace, tmp_path: Path, file: str
    ) -> None:
        own = replace(workspace, data_options=own_table(tmp_path / "own"))
        labels = planned(own).protocol_data.train().labels.fingerprint()
        (path,) = own.store.cache.glob(f"index/table-train-*/{file}")
        flip(path, 0.9)
        assert planned(own).protocol_data.train().labels.fingerprint() == labels
        assert said(own, f"{path} does not match the checksum")[0].endswith(f"{path.parent}{DAMAGED} and made again")
        assert planned(own).protocol_data.train().labels.fingerprint() == labels
        assert len(said(own, "does not match")) == 1


class TestShards:
    @pytest.fixture
    def packed(self, tiny_images: Any, tmp_path: Path) -> Path:
        pack(tiny_images, tmp_path / "packed", short_side=16)
        return tmp_path / "packed"

    def test_places_reversed_are_refused(self, packed: Path) -> None:
        path = packed / "index.arrow"
        with pa.memory_map(str(path)) as file:
            batch = pa.ipc.open_file(file).get_batch(0)
            columns = {name: batch.column(name).to_pylist() for name in batch.schema.names}
        columns["begin"].reverse()
        columns["size"].reverse()
        size = path.stat().st_size
        other = pa.record_batch([pa.array(columns[f.name], f.type) for f in batch.schema], schema=batch.schema)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, other.schema) as writer:
            writer.write_batch(other)
        assert path.stat().st_size == size
        with pytest.raises(
            DataError, match=r"index.arrow does not match its checksum in .*packed.json; delete it and run"
        ):
            ShardedImages(packed)

    def test_the_manifest_decides_the_fingerprint(self, packed: Path) -> None:
        before = ShardedImages(packed).fingerprint()
        manifest = json.loads((packed / "packed.json").read_text())
        manifest["settings"]["quality"] = 11
        (packed / "packed.json").write_text(json.dumps(manifest))
        assert ShardedImages(packed).fingerprint() != before

    def test_a_bit_of_an_image_is_refused_when_it_is_read(self, packed: Path) -> None:
        images = ShardedImages(packed)
        begin = int(images._begins[5]) + int(images._sizes[5]) // 2
        path = packed / "shard-00000.arrow"
        flip(path, begin / (path.stat().st_size - 1))
        opened = ShardedImages(packed)
        opened.load(4)
        with pytest.raises(DataError, match=r"has other bytes than were packed; delete .*shard-00000.arrow and run"):
            opened.load(5)

    def test_hashes_are_those_of_the_images(self, packed: Path) -> None:
        images = ShardedImages(packed)
        chosen = images.subset(np.array([7, 3]))
        assert [row.tobytes() for row in chosen.sha256s()] == [
            digests.hashlib.sha256(images.read(row)).digest() for row in (7, 3)
        ]


class TestRuns:
    @pytest.fixture
    def plan(self, workspace: Workspace) -> ResolvedRun:
        plan = plan_run(Request("tiny", "selective"), workspace)
        runner.run(plan, workspace)
        return plan

    @pytest.mark.parametrize("damage", [flip, lambda p: flip(p, 0.99), lambda p: np.save(p, np.ones(6))])
    def test_a_damaged_prior_is_made_again(
        self, plan: ResolvedRun, workspace: Workspace, damage: Callable[[Path], Any]
    ) -> None:
        prior = runner.stage_artifact(plan, "prior", workspace)
        (path,) = workspace.store.runs.glob("*/artifacts/prior-*.npy")
        damage(path)
        assert torch.equal(runner.stage_artifact(plan, "prior", workspace), prior)
        assert said(
            workspace, f"{path} does not match the checksum that it was written with; renamed to {path}.damaged"
        )

    @pytest.mark.parametrize("at", [0.1, 0.5, 0.7])
    def test_a_stage_with_damaged_weights_is_trained_again(
        self, plan: ResolvedRun, workspace: Workspace, at: float
    ) -> None:
        prior = runner.stage_artifact(plan, "prior", workspace)
        folder = workspace.store.run_folder(plan.stages["prior"][1].spec.key)
        record = (folder / RECORD).read_bytes()
        flip(folder / CHECKPOINT, at)
        next((folder / "artifacts").iterdir()).unlink()
        assert torch.equal(runner.stage_artifact(plan, "prior", workspace), prior)
        assert said(workspace, f"{folder / CHECKPOINT} was changed since run")
        assert (folder / f"{CHECKPOINT}{DAMAGED}").exists()
        assert (folder / f"{RECORD}{DAMAGED}").read_bytes() == record
        again = plan.stages["prior"][1].finished(workspace.store)
        assert again is not None and whole_file(folder, again, CHECKPOINT)

    @pytest.mark.parametrize(
        "name", ["cells.npz", "replicates.csv", "group_replicates.csv", "per_class.csv", CHECKPOINT]
    )
    def test_a_file_of_a_finished_run_is_refused(self, plan: ResolvedRun, workspace: Workspace, name: str) -> None:
        folder, record = workspace.store.run_folder(plan.spec.key), plan.finished(workspace.store)
        assert record is not None
        flip(folder / name)
        with pytest.raises(StoreError, match=rf"{name} was changed since run .*; run it again with `force=True`"):
            whole_file(folder, record, name)


class TestNotes:
    def test_json(self, tmp_path: Path) -> None:
        path = tmp_path / "note.json"
        write_checked_json(path, {"unreadable": ["a", "b"]})
        assert read_checked_json(path) == {"unreadable": ["a", "b"]}
        for old, new in (('"a"', '"c"'), ("unreadable", "unreadablf"), ("}", ""), ("{", "[")):
            path.write_text(path.read_text().replace(old, new))
            assert read_checked_json(path) is None
        assert read_checked_json(tmp_path / "none.json") is None

    def test_a_note_of_unreadable_images_that_was_edited_is_made_again(
        self, workspace: Workspace, tmp_path: Path
    ) -> None:
        own = replace(workspace, data_options=own_table(tmp_path / "own"))
        (tmp_path / "own" / "images" / "3.bmp").write_bytes(b"BM broken")
        with pytest.raises(DataError, match=r"3\.bmp .*1 such images"):
            planned(own)
        for note in own.store.cache.glob("checked/*.json"):
            note.write_text(note.read_text().replace('"3.bmp"', '"4.bmp"'))
        with pytest.raises(DataError, match=r"3\.bmp .*1 such images"):
            planned(own)

    @pytest.mark.parametrize("content", [b"", b"x", b"x" * 32, b"y" * 99])
    def test_a_file_with_a_trailer(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "file"
        write_checked(path, lambda file: file.write(b"content"))
        assert bytes(read_checked(path)) == b"content"
        path.write_bytes(content)
        with pytest.raises(Damaged):
            read_checked(path)
        with pytest.raises(FileNotFoundError):
            read_checked(tmp_path / "none")


def test_a_fingerprint_is_the_same_wherever_the_files_lie(workspace: Workspace, tmp_path: Path) -> None:
    found = set()
    for place in ("one", "two"):
        own = replace(workspace, data_options=own_table(tmp_path / place))
        found.add(fingerprint(open_dataset("table", own), own))
    assert len(found) == 1

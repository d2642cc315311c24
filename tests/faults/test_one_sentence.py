"""Whatever a damaged file or a poor machine brings about is one sentence: no traceback, no hang, no crash."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from plbench.api import ImageFiles, PartialLabels
from plbench.cli import _name_bus_errors, main
from plbench.cli.options import echo
from plbench.data.annotations.collect import Annotations
from plbench.data.embeddings import read_embeddings
from plbench.data.label_file import read_label_file
from plbench.data.shards.packing import pack
from plbench.data.shards.shards import INDEX, MANIFEST, ShardedImages
from plbench.data.text_column import TextColumn
from plbench.data.workers import failures_in_words
from plbench.errors import DataError, PlbenchError, StoreError
from plbench.files.arrays import damage_in_words
from plbench.files.checksums import hash_file, write_sums
from plbench.files.plain_json import parse_json
from plbench.loading.batches import ImageLoader
from plbench.loading.resumable_array import GrowingMatrix
from plbench.loading.transforms import eval_transform
from plbench.metrics.cells import Cells
from plbench.runs import run as runner
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.record import read_record
from plbench.runs.store import RECORD
from plbench.spec import ModelSpec
from plbench.sweeps.grid import read_grid


def header(text: bytes) -> bytes:
    """A .npy file of 48 zeros with a header of somebody else's."""
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117) + b"\n" + bytes(48)


ARRAYS = {
    "parenthesis": header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (4, 3 , }"),
    "another parenthesis": header(b")'descr': '<f4', 'fortran_order': False, 'shape': (4, 3), }"),
    "nested": header(b"(" * 110),
    "absurd shape": header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999, 3), }"),
    "negative shape": header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-4, 3), }"),
    "objects": header(b"{'descr': '|O', 'fortran_order': False, 'shape': (4, 3), }"),
    "type of no kind": header(b"{'descr': '\0', 'fortran_order': False, 'shape': (4, 3), }"),
    "nothing": b"",
}


class TestArrays:
    @pytest.mark.parametrize("name", ARRAYS)
    def test_of_numpy(self, name: str, tmp_path: Path) -> None:
        images = ImageFiles(tmp_path, ("a.png",), ("a",))
        labels = PartialLabels.from_dense(np.ones((1, 2)), ("a", "b"))
        (tmp_path / "labels.npy").write_bytes(ARRAYS[name])
        with pytest.raises(DataError, match=r"labels\.npy is not an array"):
            read_label_file(tmp_path / "labels.npy", images, labels)
        labels.write(tmp_path)
        (tmp_path / "values.npy").write_bytes(ARRAYS[name])
        with pytest.raises(DataError, match="does not hold labels"):
            PartialLabels.open(tmp_path)

    @pytest.mark.parametrize("name", ARRAYS)
    def test_of_archives(self, name: str, tmp_path: Path) -> None:
        with zipfile.ZipFile(path := tmp_path / "x.npz", "w") as archive:
            for member in ("rows", "class_ids", "indptr"):
                archive.writestr(f"{member}.npy", ARRAYS[name])
        for read, says in (
            (Cells.load, "does not hold"),
            (PartialLabels.load, "does not hold"),
            (read_embeddings, "is not|has no"),
        ):
            with pytest.raises(PlbenchError, match=says):
                read(path)  # type: ignore[operator]

    def test_an_error_of_ours_or_of_the_disk_passes(self) -> None:
        for error in (DataError("x"), OSError(errno.EIO, "x")):
            with pytest.raises(type(error)), damage_in_words():
                raise error


CHANGED_INDEX: dict[str, Callable[[pa.RecordBatch], pa.RecordBatch]] = {
    "a type": lambda b: b.set_column(1, "begin", b["begin"].cast(pa.float64())),
    "a narrower type": lambda b: b.set_column(1, "begin", b["begin"].cast(pa.int32())),
    "text": lambda b: b.set_column(2, "size", b["size"].cast(pa.string())),
    "another text": lambda b: b.set_column(0, "id", b["id"].cast(pa.string())),
    "a shorter hash": lambda b: b.set_column(3, "sha256", pa.array([bytes(31)] * len(b), pa.binary(31))),
    "a name": lambda b: b.rename_columns(["id", "start", "size", "sha256"]),
    "a column": lambda b: b.drop_columns(["sha256"]),
    "nulls": lambda b: b.set_column(2, "size", pa.array([None] * len(b), pa.int32())),
    "rows": lambda b: b.slice(0, 5),
    "a place": lambda b: b.set_column(1, "begin", pa.array([2**62] * len(b))),
    "a place before": lambda b: b.set_column(1, "begin", pa.array([-1] * len(b))),
    "a size": lambda b: b.set_column(2, "size", pa.array([-5] * len(b), pa.int32())),
}


class TestShards:
    @pytest.fixture
    def packed(self, tiny_images: ImageFiles, tmp_path: Path) -> Path:
        pack(tiny_images, tmp_path / "packed", short_side=16)
        return tmp_path / "packed"

    @pytest.mark.parametrize("name", CHANGED_INDEX)
    def test_an_index_of_another_kind(self, name: str, packed: Path) -> None:
        with pa.OSFile(str(packed / INDEX)) as file:
            batch = CHANGED_INDEX[name](pa.ipc.open_file(file).get_batch(0))
        with pa.OSFile(str(packed / INDEX), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
        manifest = json.loads((packed / MANIFEST).read_text())
        manifest["index"]["sha256"] = hash_file(packed / INDEX)
        manifest["index"]["num_bytes"] = (packed / INDEX).stat().st_size
        (packed / MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(DataError, match=r"index\.arrow is not an index of shards: .*; delete it and run"):
            ShardedImages(packed)

    @pytest.mark.parametrize("number", [-1, 2**31, 10**12, 2**63, 10**30])
    @pytest.mark.parametrize(
        ("outer", "name"),
        [("shards", "rows"), ("shards", "taken"), ("shards", "num_bytes"), ("settings", "rows_per_shard")],
    )
    def test_absurd_counts(self, outer: str, name: str, number: int, packed: Path) -> None:
        manifest = json.loads((packed / MANIFEST).read_text())
        inner = manifest[outer][0] if outer == "shards" else manifest[outer]
        inner[name] = number
        (packed / MANIFEST).write_text(json.dumps(manifest))
        with contextlib.suppress(DataError):  # and nothing else; numbers that another packing could have may pass
            images = ShardedImages(packed)
            images.absent()
            images.read(0)
        if outer == "shards" and name != "taken":
            with pytest.raises(DataError, match=r"delete|prepare"):
                ShardedImages(packed).read(0)


class TestAnnotations:
    @pytest.mark.parametrize(
        ("said", "says"),
        [
            ({"groups": {"rare": ["a", "zebra"]}, "notes": []}, "group 'rare' names class 'zebra'"),
            ({"groups": {"rare": [1]}, "notes": []}, "1 where text is expected"),
            ({"groups": {}, "notes": [{}]}, "{} where text is expected"),
            ({"groups": [], "notes": []}, "does not hold annotations"),
        ],
    )
    def test_words_that_do_not_fit(self, said: Any, says: str, tmp_path: Path) -> None:
        labels = PartialLabels.from_dense(np.ones((1, 2)), ("a", "b"))
        Annotations(TextColumn.of(["1"]), labels, groups={"rare": ("a",)}).write(tmp_path)
        assert Annotations.open(tmp_path).groups == {"rare": ("a",)}
        (tmp_path / "said.json").write_text(json.dumps(said))
        write_sums(tmp_path)
        with pytest.raises(DataError, match=says):
            Annotations.open(tmp_path)


class TestGrowingMatrix:
    def test_one_that_is_cut_short_before_it_is_opened_is_begun_again(self, tmp_path: Path) -> None:
        matrix = GrowingMatrix(tmp_path / "x.npy", (10, 3), 4)
        with matrix.opened(owner=True):
            matrix.write(0, np.ones((4, 3), np.float32))
            matrix.note()
        for size in (0, 7, 100, matrix.partial.stat().st_size - 1):
            os.truncate(matrix.partial, size)
            with matrix.opened(owner=True):
                assert matrix.batches_to_do(0, 1) == [0, 1, 2]

    def test_one_that_is_cut_short_meanwhile_is_an_error_of_the_disk(self, tmp_path: Path) -> None:
        matrix = GrowingMatrix(tmp_path / "x.npy", (10, 3), 4)
        with matrix.opened(owner=True):
            os.truncate(matrix.partial, matrix.partial.stat().st_size - 3)
            with pytest.raises(OSError, match="cut short"):
                matrix.num_rows_done()


@pytest.mark.usefixtures("quick_records")
@pytest.mark.parametrize("missing", ["metrics", "cost"])
def test_a_record_without_figures(missing: str, make_workspace: Callable[..., Any]) -> None:
    workspace = make_workspace()
    plan = plan_run(Request("tiny", "ce-negative"), workspace)
    runner.run(plan, workspace)
    folder = workspace.store.run_folder(plan.spec.key)
    record = parse_json((folder / RECORD).read_bytes())
    (folder / RECORD).write_text(json.dumps({**record, missing: {} if missing == "metrics" else None}))
    for read in (lambda: read_record(folder), lambda: plan.finished(workspace.store)):
        with pytest.raises(StoreError, match=f"has no {missing}; run it again with"):
            read()


@pytest.mark.parametrize(
    ("field", "value"), [("head_width", 10**12), ("image_size", 10**6), ("head_layers", 10**9), ("head_groups", 10**30)]
)
def test_absurd_models(field: str, value: int) -> None:
    own = {"backbone": "test_resnet", "weights": "random", "image_size": 32, "pooling": "none", "head": "ml-decoder"}
    with pytest.raises(ValidationError, match="less than or equal to 65536"):
        ModelSpec(**{**own, field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "line",
    ['exclude = { method = "a" }', 'exclude = ["a"]', "exclude = [{ method = { a = 1 } }]", "seeds = 1000000000000"],
)
def test_a_grid_that_leaves_out_what_cannot_be(line: str, tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(f'methods = ["ce-negative"]\ndatasets = ["tiny"]\n{line}\n')
    with pytest.raises(PlbenchError, match=r"grid\.toml: (exclude|seeds)") as caught:
        read_grid(tmp_path / "grid.toml")
    assert "\n" not in str(caught.value)


class TestMachine:
    @pytest.mark.parametrize(
        "error",
        [
            RuntimeError(
                "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that\nshared memory"
            ),
            RuntimeError(
                "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback:\n  x\nRuntimeError: y"
            ),
            RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"),
            RuntimeError("received 0 items of ancdata"),
            OSError(errno.EMFILE, "Too many open files"),
        ],
    )
    def test_processes_that_fail(self, error: Exception) -> None:
        says = r"a process that decodes images failed: .*`workers=0`"
        with pytest.raises(PlbenchError, match=says) as caught, failures_in_words():
            raise error
        assert "\n" not in str(caught.value)

    def test_other_errors_pass(self) -> None:
        for error in (RuntimeError("shapes differ"), OSError(errno.EIO, "Input/output error")):
            with pytest.raises(type(error), match=str(error.args[-1])), failures_in_words():
                raise error

    def test_few_open_files(self, tiny_images: ImageFiles, in_a_process: Callable[..., Any]) -> None:
        def load() -> None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # torch's complaint about what it could not start
            least = os.open(os.devnull, os.O_RDONLY)
            resource.setrlimit(resource.RLIMIT_NOFILE, (least + 3, least + 3))
            model = ModelSpec(backbone="test_resnet", weights="random", image_size=32)
            loader = ImageLoader(tiny_images, eval_transform(model), min_side=32, workers=2)
            with pytest.raises(PlbenchError, match=r"Too many open files.*ulimit -n"):
                list(loader.batches([range(4)]))

        process = in_a_process(load)
        process.join(60)
        assert process.exitcode == 0

    def test_a_mapped_file_that_is_cut_short(
        self, tmp_path: Path, in_a_process: Callable[..., Any], capfd: pytest.CaptureFixture[str]
    ) -> None:
        np.save(path := tmp_path / "x.npy", np.zeros(1 << 20))

        def read() -> None:
            _name_bus_errors()
            mapped = np.load(path, mmap_mode="r")
            os.truncate(path, 4096)
            mapped.sum()

        process = in_a_process(read)
        process.join(60)
        assert process.exitcode == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("plbench: error: a file was cut short while it was in use")


START = """
import os, signal, sys
class Killer:
    def find_spec(self, name, path=None, target=None):
        if name == "plbench.cli":
            os.kill(os.getpid(), signal.{})
sys.meta_path.insert(0, Killer())
from plbench.__main__ import main
main()
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_while_the_program_starts(name: str, code: int) -> None:
    program = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{START.format(name)}"
    done = subprocess.run([sys.executable, "-c", program, "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "plbench: stopped before anything had begun\n")


def test_an_output_of_few_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
    monkeypatch.setattr(sys, "argv", ["plbench", "--version"])
    with pytest.raises(SystemExit):
        main()
    echo("51.20 ±0.93 – naïve")
    sys.stdout.flush()
    assert written.getvalue().endswith(b"51.20 \xb10.93 \\u2013 na\xefve\n")

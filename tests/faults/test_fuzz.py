"""Whatever a file holds, it is read or refused in one sentence: no other error, no hang, nothing written elsewhere.

Valid files are damaged (bytes and slices; numbers, values and members by extremes) and given to their readers.
`PLBENCH_FUZZ` is how many such inputs each kind of file is tried with (`make soak`: thousands), and with more than the
few of CI, `PLBENCH_KILL_SEED` chooses which. Hypothesis makes them; no coverage guides it. `-rP` shows how many were
tried and refused. What was found is in CORPUS.
"""

from __future__ import annotations

import io
import json
import os
import re
import resource
import shutil
import signal
import warnings
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from plbench.api import ImageFiles, PartialLabels
from plbench.board.boards import BoardFolder, Quotations, read_model
from plbench.cli.request import plan_from_file
from plbench.data.annotations.collect import Annotations
from plbench.data.embeddings import read_embeddings
from plbench.data.label_file import read_label_file
from plbench.data.shards.packing import pack
from plbench.data.shards.shards import INDEX, MANIFEST, ShardedImages
from plbench.data.text_column import TextColumn
from plbench.datasets.coco import Coco2017
from plbench.datasets.lvis import Lvis
from plbench.datasets.openimages import OpenImagesV3, OpenImagesV6, OpenImagesV6Csl
from plbench.datasets.table import Table
from plbench.errors import PlbenchError
from plbench.files.checksums import hash_file, write_sums
from plbench.metrics.cells import Cells
from plbench.runs import run as runner
from plbench.runs.outcome import CHECKPOINT
from plbench.runs.page.reading import read_files
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.record import RECORD, read_record
from plbench.runs.stored import read_run
from plbench.runs.tables import parse_per_class
from plbench.sweeps.grid import read_grid
from plbench.training import checkpoint

CI_EXAMPLES = 4
NUM_EXAMPLES = int(os.environ.get("PLBENCH_FUZZ", CI_EXAMPLES))
SEED = int(os.environ.get("PLBENCH_KILL_SEED", "0"))
MOST_SECONDS, MOST_MEMORY = 5, 2 << 20  # of processor time; KB

Read = Callable[[Path], object]


@dataclass(frozen=True)
class Reader:
    """Files that are read.

    Attributes:
        files: valid ones, by path. read: each reads the folder that holds them.
        seal: makes checksums agree with changed files again, so that what lies behind them is reached.
    """

    files: dict[str, bytes]
    read: tuple[Read, ...]
    seal: Callable[[Path], None] = field(default=lambda folder: None)


def document(split: str, **extra: Any) -> bytes:
    images = [
        {
            "id": row,
            "file_name": f"{row}.jpg",
            "coco_url": f"http://x/{split}/{row}.jpg",
            "width": 8,
            "height": 8,
            "neg_category_ids": [7],
            "not_exhaustive_category_ids": [9],
        }
        for row in range(4)
    ]
    shape = {"iscrowd": 0, "bbox": [0, 0, 2.5, 2], "area": 4.0, "segmentation": [[1, 2, 3, 4, 5, 6]]}
    annotations = [{"id": row, "image_id": row % 4, "category_id": 3 + row % 2, **shape} for row in range(6)]
    categories = [{"id": key, "name": f"c{key}", "frequency": "r", "synset": f"c{key}.n.01"} for key in (3, 4, 7, 9)]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories, **extra}).encode()


def coco(folder: Path) -> Reader:
    def prominence(where: Path) -> object:
        return [Coco2017(where).prominence("train", by) for by in ("size", "place")]

    path = "annotations/instances_train2017.json"
    return Reader({path: document("train2017")}, (lambda where: Coco2017(where).annotations("train"), prominence))


def lvis(folder: Path) -> Reader:
    path = "annotations/lvis_v1_train.json"
    return Reader({path: document("train2017")}, (lambda where: Lvis(where).annotations("train"),))


def openimages(folder: Path) -> Reader:
    mids = ("/m/04hgtk", "/m/01bqvp", "/m/0csby")
    rows = [f"{image:016x},verification,{mids[image % 3]},{image % 2}" for image in range(6)]
    names = [f'{mid},"a, {mid}"' for mid in mids]
    kinds = (OpenImagesV6, OpenImagesV3)
    files = {}
    for kind in kinds:
        files[kind.class_list] = "\n".join(mids)
        files[kind.descriptions] = "\n".join(["LabelName,DisplayName", *names])
        files[kind.label_files["train"]] = "\n".join(["ImageID,Source,LabelName,Confidence", *rows, ""])
    files["data.csv"] = "filepath,label,label_neg,split_name\n" + "".join(
        f"train/{row}.jpg,\"['{mids[0]}', '{mids[1]}']\",['{mids[2]}'],train\n" for row in range(4)
    )
    read = [lambda where, kind=kind: kind(where).annotations("train") for kind in (*kinds, OpenImagesV6Csl)]
    return Reader({name: text.encode() for name, text in files.items()}, tuple(read))


def table(folder: Path) -> Reader:
    files = {
        "long.csv": "image,label,value,split\na.jpg,cat,1,train\nb.jpg,cat,0,train\nc.jpg,dog,1,test\nd.jpg,dog,-1,val",
        "wide.csv": 'image,split,cat,"d,og"\na.jpg,train,1,\nb.jpg,train,0,\nc.jpg,test,,1\nd.jpg,test,-1,\n',
        "lists.csv": "image,labels,split\na.jpg,\"['cat', 'dog']\",train\nb.jpg,\"['cat']\",test\n",
    }
    given: dict[str, dict[str, Any]] = {
        "long.csv": {"negative_value": "0"},
        "wide.csv": {"negative_value": "0"},
        "lists.csv": {"label_column": "labels", "value_column": "none", "label_separator": "list"},
    }

    def reads(name: str) -> Read:
        def read(where: Path) -> object:
            own = {"labels": where / name, "images": where, **given[name]}
            dataset = Table(where, options=Table.Options.model_validate(own))
            return [dataset.annotations(split) for split in dataset.splits]

        return read

    return Reader({name: text.encode() for name, text in files.items()}, tuple(map(reads, files)))


def grid(folder: Path) -> Reader:
    text = (
        'methods = ["ce-negative", { name = "selective", params = { top_k = [1, 2] } }]\ndatasets = ["scenes"]\n'
        'simulations = ["fpc=4"]\nseeds = 2\nexclude = [{ method = "selective", seed = 0 }]\n'
        "[model]\nimage_size = 32\n[plan]\nlr = [1e-3, 2e-3]\nepochs = 2\n"
    )
    return Reader({"grid.toml": text.encode()}, (lambda where: [*read_grid(where / "grid.toml").settings()],))


def boards(folder: Path) -> Reader:
    top, name = Path(__file__).parents[2] / "leaderboards", "coco-fpc1000"
    events = [{"event": "added", "key": "ab" * 8, "at": "2026-11-01T00:00:00Z", "sha256": "cd" * 32}]
    events.append({"event": "withdrawn", "key": "ab" * 8, "at": "2026-11-02T00:00:00Z", "why": "a test"})
    files = {f"{name}/board.json": (top / name / "board.json").read_bytes()}
    files[f"{name}/ledger.json"] = json.dumps({"events": events}).encode()
    files[f"published/{name}.json"] = (top / "published" / f"{name}.json").read_bytes()

    def published(where: Path) -> object:
        return read_model(Quotations, where, where / "published" / f"{name}.json")

    return Reader(files, (lambda where: BoardFolder(where / name).quotations(), published))


def shards(folder: Path) -> Reader:
    for row in range(4):
        pixels = np.random.default_rng(row).integers(0, 255, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{row}.png")
    images = ImageFiles(folder, tuple(f"{row}.png" for row in range(4)), tuple("abcd"))
    pack(images, folder / "packed", short_side=16)

    def read(where: Path) -> object:
        opened = ShardedImages(where / "packed")
        return opened.absent(), [opened.load(row) for row in range(len(opened))], opened.ids[0], opened.fingerprint()

    def seal(where: Path) -> None:
        with suppress(ValueError, LookupError, TypeError, OSError, RecursionError):  # where the manifest is damaged
            manifest = json.loads((where / "packed" / MANIFEST).read_bytes())
            index = where / "packed" / INDEX
            manifest["index"] |= {"sha256": hash_file(index), "num_bytes": index.stat().st_size}
            (where / "packed" / MANIFEST).write_text(json.dumps(manifest))

    files = {str(path.relative_to(folder)): path.read_bytes() for path in (folder / "packed").iterdir()}
    return Reader({name: content for name, content in files.items() if "/." not in name}, (read,), seal)


def images(folder: Path) -> Reader:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 9, 3), np.uint8))
    files = {}
    for ending, options in {
        "jpg": {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"},
        "png": {},
        "gif": {},
        "bmp": {},
        "webp": {},
        "tiff": {"compression": "tiff_lzw"},
        "ppm": {},
    }.items():
        picture.save(folder / f"a.{ending}", **options)
        files[f"a.{ending}"] = (folder / f"a.{ending}").read_bytes()
    Image.fromarray(np.arange(99, dtype=np.uint16).reshape(9, 11) * 600).save(folder / "deep.png")
    files["deep.png"] = (folder / "deep.png").read_bytes()

    def reads(name: str) -> Read:
        return lambda where: [ImageFiles(where, (name,), ("a",)).load(0, side) for side in (0, 4)]

    return Reader(files, tuple(map(reads, files)))


def label_files(folder: Path) -> Reader:
    matrix = np.array([[1, -1, 0], [0, 1, -1], [1, 0, 0], [-1, 0, 1]], np.int8)
    np.save(folder / "a.npy", matrix.astype(np.float32))
    torch.save(torch.from_numpy(matrix), folder / "a.pt")
    texts = {
        "a.txt": "0.jpg, 0 2\n1.jpg, 1\n2.jpg,\n3.jpg, 0\n",
        "long.csv": "image,label,value\n0,a,1\n1,b,-1\n2,c,0\n",
        "wide.csv": "image,a,b,c\n0,1,-1,0\n1,,1,\n2,0,0,1\n3,1,1,1\n",
    }
    files = {path.name: path.read_bytes() for path in folder.iterdir()} | {n: t.encode() for n, t in texts.items()}
    truth = PartialLabels.from_dense(matrix, tuple("abc"))

    def reads(name: str) -> Read:
        def read(where: Path) -> object:
            found = ImageFiles(where, tuple(f"{row}.jpg" for row in range(4)), tuple("0123"))
            return read_label_file(where / name, found, truth).counts()

        return read

    return Reader(files, tuple(map(reads, files)))


def stored(folder: Path) -> Reader:
    """What plbench itself keeps of labels, embeddings and unfinished features."""
    labels = PartialLabels.from_dense(np.array([[1, -1, 0], [0, 1, -1]]), tuple("abc"))
    (folder / "index").mkdir()
    Annotations(TextColumn.of("01"), labels, TextColumn.of(("0.jpg", "1.jpg")), {"rare": ("a",)}, ("n",)).write(
        folder / "index"
    )
    labels.save(folder / "labels.npz")
    vectors = np.eye(3, dtype=np.float32)
    ids = {"class_ids": np.array(list("abc")), "image_ids": np.array(["train/0", "train/1", "test/0"])}
    np.savez(folder / "embeddings.npz", **ids, class_embeddings=vectors, image_embeddings=vectors, logit_scale=9.0)

    def seal(where: Path) -> None:
        write_sums(where / "index")

    names = [path for path in folder.rglob("*") if path.is_file()]
    files = {str(path.relative_to(folder)): path.read_bytes() for path in names}
    read = (
        lambda where: (found := Annotations.open(where / "index"), found.labels.counts(), list(found.image_ids)),
        lambda where: PartialLabels.load(where / "labels.npz").counts(),
        lambda where: read_embeddings(where / "embeddings.npz"),
    )
    return Reader(files, read, seal)


MAKERS = (coco, lvis, openimages, table, grid, boards, shards, images, label_files, stored)


@pytest.fixture
def of_a_run(make_workspace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Reader:
    """The files of a run, and a checkpoint of its training."""
    workspace = replace(make_workspace(), save_every=0.0)
    monkeypatch.setattr(checkpoint.Checkpoints, "remove", lambda self: None)
    plan = plan_run(Request("tiny", "ce-negative", plan={"epochs": 1}), workspace)
    runner.run(plan, workspace)
    folder, spec = workspace.store.run_folder(plan.spec.key), plan.spec
    (newest,) = sorted(folder.glob("checkpoints/step-*.json"))[-1:]
    names = [RECORD, "spec.toml", "cells.npz", "per_class.csv", "log.jsonl", "task.npz", CHECKPOINT]
    files = {name: (folder / name).read_bytes() for name in names}
    files |= {f"checkpoints/{path.name}": path.read_bytes() for path in (newest, newest.with_suffix(".pt"))}
    given: dict[str, Any] = defaultdict(lambda: None)

    def newest_checkpoint(where: Path) -> object:
        checkpoints = checkpoint.Checkpoints(where, spec)
        found = checkpoints.newest(lambda text: None)
        return found and checkpoints.load(found)

    def unfinished(where: Path) -> object:
        (where / RECORD).unlink(missing_ok=True)
        return read_files(where)

    def seal(where: Path) -> None:
        path = where / "checkpoints" / newest.name
        with suppress(ValueError, LookupError, TypeError, OSError, RecursionError, AttributeError):
            note = json.loads(path.read_bytes())
            note["sha256"] = hash_file(path.with_suffix(".pt"))
            path.write_text(json.dumps(note))
        with suppress(ValueError, LookupError, TypeError, OSError, RecursionError, AttributeError):
            record = json.loads((where / RECORD).read_bytes())
            for name, about in record["files"].items():
                if (where / name).is_file():
                    about |= {"sha256": hash_file(where / name), "num_bytes": (where / name).stat().st_size}
            (where / RECORD).write_text(json.dumps(record))

    read: tuple[Read, ...] = (
        read_record,
        read_run,
        lambda where: parse_per_class((where / "per_class.csv").read_bytes()),
        lambda where: Cells.load(where / "cells.npz"),
        lambda where: plan_from_file(where / "spec.toml", given, workspace),
        lambda where: checkpoint.load(where / CHECKPOINT, spec.sha256()),
        newest_checkpoint,
        read_files,
        unfinished,
    )
    return Reader(files, read, seal)


# --- damage ---------------------------------------------------------------------------------------------------------

NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
EXTREMES = [b"-1", b"0", b"1e309", b"-1e309", b"NaN", b"nan", b"inf", b"Infinity", b"-0.0", b"1.5", b"1e-400", b"0x1f"]
EXTREMES += [str(2**power + more).encode() for power, more in ((31, -1), (31, 0), (63, -1), (63, 0), (64, 0), (200, 0))]
EXTREMES += [b"9" * 5000, b"1" + b"0" * 400, b"", b"null", b"true", b'""', b"[]", b"{}", "٣".encode(), b"1_000"]
PIECES = [b"\0", b"\n", b'"', b"'", b",", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\\", b"=", b"[", b"]]", b"#"]
PIECES += [
    b"[" * 100_000,
    b"{" * 5000,
    b'{"a":' * 20_000,
    b"x" * 200_000,
    b"\xe2\x80\xae",
    b"../../../etc/passwd",
    b"%s",
]
VALUES: list[Any] = [None, True, -1, 0, 1.5, 2**31, 2**63, -(2**63) - 1, 2**64, 10**400, 1e308, float("nan")]
VALUES += [float("inf"), "", "a", "\0", "../x", "/etc/passwd", "x" * 100_000, "\ud800", [], {}, [[]], [None], {"a": 1}]


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        end = min(len(content), at + draw(st.integers(1, 64)))
        match draw(st.sampled_from(["flip", "number", "truncate", "double", "insert", "delete", "swap"])):
            case "flip" if content:
                content = content[:at] + bytes([content[at] ^ (1 << draw(st.integers(0, 7)))]) + content[at + 1 :]
            case "number" if found := list(NUMBER.finditer(content)):
                one = draw(st.sampled_from(found))
                content = content[: one.start()] + draw(st.sampled_from(EXTREMES)) + content[one.end() :]
            case "truncate":
                content = content[:at]
            case "double":
                content = content[:end] + content[at:]
            case "delete":
                content = content[:at] + content[end:]
            case "swap":
                content = content[:at] + draw(st.binary(min_size=end - at, max_size=end - at)) + content[end:]
            case _:
                content = content[:at] + draw(st.sampled_from(PIECES) | st.binary(max_size=16)) + content[at:]
    return content


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each container inside, with each of its keys."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        yield value, key
        yield from places(inner)


@st.composite
def damaged_json(draw: st.DrawFn, content: bytes) -> bytes:
    found = json.loads(content)
    for _ in range(draw(st.integers(1, 2))):
        spots = list(places(found))
        if not spots:
            break
        holder, key = draw(st.sampled_from(range(len(spots))).map(spots.__getitem__))
        match draw(st.sampled_from(["value", "value", "delete", "double", "other"])):
            case "delete":
                del holder[key]
            case "double" if isinstance(holder, list):
                holder.append(holder[key])
            case "other":
                source, name = draw(st.sampled_from(range(len(spots))).map(spots.__getitem__))
                with suppress(LookupError):
                    holder[key] = json.loads(json.dumps(source[name]))
            case _:
                holder[key] = draw(st.sampled_from(VALUES))
    return json.dumps(found).encode()


@st.composite
def damaged_archive(draw: st.DrawFn, content: bytes) -> bytes:
    """A zip whose members are damaged and whose own checksums are right."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    victim = draw(st.sampled_from(sorted(members)))
    inner = members[victim]
    if victim.endswith(".npy") and draw(st.booleans()):
        file = io.BytesIO()
        np.save(file, draw(st.sampled_from(ARRAYS)))
        members[victim] = file.getvalue()
    elif draw(st.integers(0, 9)) == 0:
        del members[victim]
    else:
        members[victim] = draw(damaged_bytes(inner))
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return made.getvalue()


ARRAYS = [
    np.array(3),
    np.array(-1),
    np.array("a"),
    np.zeros((0,)),
    np.zeros((2, 2)),
    np.array([np.nan]),
    np.array(2**62),
]
ARRAYS += [
    np.zeros(3, "V8"),
    np.array([1 + 2j]),
    np.array(["\ud7ff" * 9] * 3),
    np.full(4, 255, np.uint64),
    np.arange(4),
]
ARRAYS += [
    np.array([[2**63]], np.uint64),
    np.array(["NaT"], "M8[s]"),
    np.array([True, False]),
    np.array([-5, 5], np.int8),
]


class Shown(bytes):
    """Bytes of which a report shows no more than a person reads."""

    def __repr__(self) -> str:
        return super().__repr__() if len(self) < 4000 else f"{bytes(self[:2000])!r} and {len(self) - 2000:,} more"


def damaged(name: str, content: bytes) -> st.SearchStrategy[bytes]:
    kinds = [damaged_bytes(content), damaged_bytes(content)]
    if name.endswith((".json", ".jsonl")):
        with suppress(ValueError):
            json.loads(content)
            kinds += [damaged_json(content)] * 2
    elif content[:2] == b"PK":
        kinds += [damaged_archive(content)] * 2
    others = [st.binary(max_size=300), st.binary(max_size=40).map(lambda tail: content[:12] + tail)]
    return st.one_of(*kinds, *others).map(Shown)


# --- the property ---------------------------------------------------------------------------------------------------


@contextmanager
def bounded() -> Iterator[None]:
    """Fails what takes too much processor time; on a busy machine the clock would tell of others."""

    def stop(*_: object) -> None:
        raise AssertionError(f"it takes more than {MOST_SECONDS} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def try_reading(
    reader: Reader, files: dict[str, bytes], top: Path, sealed: bool = False, valid: bool = False
) -> Counter[str]:
    """Reads the files in every way, and returns how many ways read and refused them; anything else fails.

    Valid files are not refused.
    """
    where, tally = top / "files", Counter[str]()
    for name, content in files.items():
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).write_bytes(content)
    if sealed:
        reader.seal(where)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in reader.read:
        try:
            with bounded(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(where)
            tally["read"] += 1
        except PlbenchError as error:
            if valid:
                raise
            tally["refused"] += 1
            said = " ".join(str(error).splitlines())  # as the command line says it: names from files may hold any
            assert said.strip() and "Value error, " not in said and len(said) < 3000, repr(said)[:3500]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MOST_MEMORY
    shutil.rmtree(where)
    assert list(top.iterdir()) == list(Path().iterdir()) == []
    return tally


def attack(reader: Reader, top: Path, name: str) -> None:
    (top / "from").mkdir()  # the current folder, where a name from data would write
    os.chdir(top / "from")
    (top / "in").mkdir()
    try_reading(reader, reader.files, top / "in", valid=True)
    tally = Counter[str]()
    for victim in sorted(reader.files):

        @seed(SEED)
        @settings(
            max_examples=NUM_EXAMPLES,
            deadline=None,
            database=None,
            derandomize=NUM_EXAMPLES <= CI_EXAMPLES,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        )
        @given(damaged(victim, reader.files[victim]), st.booleans())
        def holds(victim: str, content: bytes, sealed: bool) -> None:
            tally.update({victim: 1, **try_reading(reader, {**reader.files, victim: content}, top / "in", sealed)})

        cast(Any, holds)(victim)
    print(f"{name}: {dict(tally)}")


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_what_is_read(make: Callable[[Path], Reader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made").mkdir()
    attack(make(tmp_path / "made"), tmp_path, make.__name__)


@pytest.mark.usefixtures("quick_records")
def test_a_run(of_a_run: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    attack(of_a_run, tmp_path, "run")


# --- what was found ---------------------------------------------------------------------------------------------------


def archive(content: bytes, **members: bytes | np.ndarray) -> bytes:
    """An .npz with some members replaced: by an array, or by bytes that are none."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            value, file = members.get(name.removesuffix(".npy")), io.BytesIO()
            if isinstance(value, np.ndarray):
                np.save(file, value)
            new.writestr(name, old.read(name) if value is None else file.getvalue() or value)
    return made.getvalue()


NO_TEXT = np.frombuffer((0x110000).to_bytes(4, "little") * 3, "<U1")  # beyond what Unicode has
MANY_DIGITS = b"9" * 5000  # more than Python turns into a number
DEEP = b"[" * 100_000

CORPUS: dict[str, tuple[Callable[[Path], Reader], str, Callable[[bytes], bytes]]] = {
    "digits before what is none took years": (label_files, "a.txt", lambda old: b"0.jpg, " + b"1" * 60 + b"x"),
    "blanks without a comma took hours": (label_files, "a.txt", lambda old: b" " * 100_000),
    "a class of many digits": (label_files, "a.txt", lambda old: b"0.jpg, " + MANY_DIGITS),
    "a row without an image": (label_files, "long.csv", lambda old: b"image,label,value\n0,a,1\n,b,-1\n"),
    "a column of a long name": (label_files, "wide.csv", lambda old: b"x" * 100_000 + b",a\n1,1\n"),
    "a row without a class": (label_files, "long.csv", lambda old: b"image,label,value\n0,a,1\n1,,-1\n"),
    "a tensor of an old kind, damaged": (label_files, "a.pt", lambda old: b"Q" + old[1:]),
    "no tensor": (label_files, "a.pt", lambda old: b"\0"),
    "a number of many digits in TOML": (grid, "grid.toml", lambda old: old + b"x = " + MANY_DIGITS),
    "NaN among checksums": (stored, "index/sha256.json", lambda old: b'{"": NaN, "sha256": ""}'),
    "an infinity among checksums": (stored, "index/sha256.json", lambda old: b'{"": 1e309, "sha256": ""}'),
    "deep checksums": (stored, "index/sha256.json", lambda old: DEEP),
    "a name of many bytes in a zip": (
        stored,
        "embeddings.npz",
        lambda old: old[:26] + b"\xff\x01" + old[28:],
    ),
    "ids that are no text": (stored, "embeddings.npz", lambda old: archive(old, class_ids=NO_TEXT)),
    "a scale of bytes": (stored, "embeddings.npz", lambda old: archive(old, logit_scale=np.zeros((), "V8"))),
    "a member that is no array": (stored, "embeddings.npz", lambda old: archive(old, class_ids=b"x")),
    "labels of classes that are no text": (stored, "labels.npz", lambda old: archive(old, class_ids=NO_TEXT)),
    "labels that are no array": (stored, "labels.npz", lambda old: archive(old, values=b"x")),
}
OF_A_RUN: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "a number of many digits in TOML": ("spec.toml", lambda old: b"x = " + MANY_DIGITS),
    "weights that are a number": (CHECKPOINT, lambda old: saved(3)),
    "a checkpoint that is a list": ("checkpoints/step-00000003.pt", lambda old: saved([3])),
    "a note whose spec is a text": (
        "checkpoints/step-00000003.json",
        lambda old: json.dumps({**json.loads(old), "spec": "x"}).encode(),
    ),
    "a note whose step is a list": (
        "checkpoints/step-00000003.json",
        lambda old: json.dumps({**json.loads(old), "step": [1]}).encode(),
    ),
    "a deep note": ("checkpoints/step-00000003.json", lambda old: DEEP),
    "a deep log": ("log.jsonl", lambda old: DEEP),
    "a log of infinite epochs": ("log.jsonl", lambda old: b'{"epoch": 1' + b"0" * 400 + b"}"),
    "counts that are texts": ("task.npz", lambda old: archive(old, positives=np.array(list("abcdef")))),
    "a task without text": ("task.npz", lambda old: archive(old, class_names=np.arange(6))),
    "scores that are no array": ("cells.npz", lambda old: archive(old, scores=b"x")),
    "a size that is a matrix": ("cells.npz", lambda old: archive(old, num_images=np.zeros((2, 2)))),
}


def saved(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


@pytest.mark.parametrize("found", CORPUS)
def test_what_was_found(found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, name, damage = CORPUS[found]
    for folder in ("made", "from", "in"):
        (tmp_path / folder).mkdir()
    reader = make(tmp_path / "made")
    monkeypatch.chdir(tmp_path / "from")
    content = damage(reader.files[name])
    assert try_reading(reader, {**reader.files, name: content}, tmp_path / "in")["refused"]
    try_reading(reader, {**reader.files, name: content}, tmp_path / "in", sealed=True)


@pytest.mark.usefixtures("quick_records")
def test_what_was_found_of_a_run(of_a_run: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("from", "in"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "from")
    for name, damage in OF_A_RUN.values():
        files = {**of_a_run.files, name: damage(of_a_run.files[name])}
        assert try_reading(of_a_run, files, tmp_path / "in", sealed=True)["refused"]
        try_reading(of_a_run, files, tmp_path / "in")

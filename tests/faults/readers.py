"""The readers of files that strangers wrote, with valid files for each, and what holds whatever such a file says.

`test_fuzz.py` damages the files by hypothesis, `coverage_fuzz.py` by atheris, guided by coverage.
"""

from __future__ import annotations

import functools
import hashlib
import http.client
import io
import json
import lzma
import os
import resource
import shutil
import signal
import threading
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import requests
import torch
import urllib3
from optuna.pruners import NopPruner
from PIL import Image

from plbench.api import ImageFiles, ModelSpec, PartialLabels
from plbench.board.boards import BoardFolder, Quotations, read_model
from plbench.board.brought import read_archives
from plbench.board.class_tables import COLUMNS, as_columns, from_columns
from plbench.board.entries import FILES, parse_entry, parse_whole_entry, read_contents
from plbench.board.evidence import Place, check_scores, digest_of_labels, read_published
from plbench.board.packs import pack_records, unpack_records
from plbench.board.replicates import DIFFERENCES, as_differences, from_differences
from plbench.cli.request import plan_from_file
from plbench.data.annotations.collect import Annotations
from plbench.data.digests import file_sha256
from plbench.data.download import transfer
from plbench.data.download.answers import Version, content_range
from plbench.data.download.archives import unpack
from plbench.data.download.remote import FileRecord, RemoteFile, is_here, record_path, write_record
from plbench.data.download.transfer import Transfer
from plbench.data.embeddings import read_embeddings
from plbench.data.label_file import read_label_file
from plbench.data.shards.packing import pack
from plbench.data.shards.shards import INDEX, MANIFEST, ShardedImages
from plbench.data.shards.tars import TarImages
from plbench.data.text_column import TextColumn
from plbench.datasets.coco import Coco2017
from plbench.datasets.lvis import Lvis
from plbench.datasets.openimages import OpenImagesV3, OpenImagesV6, OpenImagesV6Csl
from plbench.datasets.table import Table
from plbench.errors import PlbenchError
from plbench.experiments import mechanism
from plbench.experiments.mechanism.advice import MapCell, ModeMap, leave_one_out, read_maps, winners
from plbench.experiments.mechanism.placement import Placement
from plbench.files.checksums import hash_file, write_checked, write_checked_json, write_sums
from plbench.loading import features as loading
from plbench.loading.features import cached_features, features_name, set_damaged_aside
from plbench.metrics.cells import Cells
from plbench.models.backbones import build_backbone
from plbench.progress import Reporter
from plbench.runs import artifacts, summary
from plbench.runs import run as runner
from plbench.runs.answered import recall, recall_rows, remember, remember_rows
from plbench.runs.findings import Findings
from plbench.runs.outcome import CHECKPOINT
from plbench.runs.page.reading import read_files
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.record import RECORD, read_record
from plbench.runs.registry import Registry
from plbench.runs.removal import needed_weights
from plbench.runs.store import Store
from plbench.runs.stored import read_run
from plbench.runs.tables import PER_CLASS, REPLICATES, parse_per_class, parse_replicates
from plbench.runs.workspace import Workspace
from plbench.sweeps.grid import read_grid
from plbench.training import checkpoint
from plbench.tuning import shared
from plbench.tuning.shared import SharedStudy
from plbench.tuning.storage import open_study
from plbench.tuning.study import STUDY, StudyRecord, read_study, study_spec, write_study
from plbench.tuning.trials import TrialResult

MOST_SECONDS, MOST_MEMORY = 5, 2 << 20  # of processor time; KB

CORPUS = Path(__file__).parent / "corpus"

Read = Callable[[Path], object]


@dataclass(frozen=True)
class Reader:
    """Files that are read.

    Attributes:
        files: valid ones, by path. read: each reads the folder that holds them.
        seal: makes checksums agree with changed files again, so that what lies behind them is reached.
        apart: whether each file is read by what stands at its place in `read`, and by that alone.
        victims: those of the files that are damaged; the others are like them.
    """

    files: dict[str, bytes]
    read: tuple[Read, ...]
    seal: Callable[[Path], None] | None = None
    apart: bool = False
    victims: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "victims", self.victims or tuple(sorted(self.files)))

    def of(self, victim: str) -> Reader:
        """Where files are read apart, the one with what reads it."""
        if not self.apart:
            return self
        return replace(self, files={victim: self.files[victim]}, read=(self.read[[*self.files].index(victim)],))


Maker = Callable[[Path], Reader]


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
    for name in ("long", "wide"):
        pd.read_csv(io.StringIO(files[f"{name}.csv"])).to_parquet(folder / f"{name}.parquet")
    given: dict[str, dict[str, Any]] = {
        "long.csv": {"negative_value": "0"},
        "wide.csv": {"negative_value": "0"},
        "long.parquet": {"negative_value": "0"},
        "wide.parquet": {"negative_value": "0"},
        "lists.csv": {"label_column": "labels", "value_column": "none", "label_separator": "list"},
    }

    def reads(name: str) -> Read:
        def read(where: Path) -> object:
            own = {"labels": where / name, "images": where, **given[name]}
            dataset = Table(where, options=Table.Options.model_validate(own))
            return [dataset.annotations(split) for split in dataset.splits]

        return read

    contents = {name: text.encode() for name, text in files.items()}
    contents |= {path.name: path.read_bytes() for path in folder.iterdir()}
    return Reader(contents, tuple(map(reads, contents)), apart=True)


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
    files[f"{name}/cells.sha256"] = f"{'0' * 64}  https://example.org/cells.zip\n".encode()

    def published(where: Path) -> object:
        return read_model(Quotations, where, where / "published" / f"{name}.json")

    read: tuple[Read, ...] = (
        lambda where: BoardFolder(where / name).quotations(),
        published,
        lambda where: read_archives(BoardFolder(where / name)),
    )
    return Reader(files, read)


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

    return Reader(files, tuple(map(reads, files)), apart=True)


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

    return Reader(files, tuple(map(reads, files)), apart=True)


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


def planned(folder: Path, method: str) -> tuple[ResolvedRun, Workspace]:
    """A run on a table of a few images."""
    random, lines = np.random.default_rng(0), ["image,split,a,b,c,d,e,f"]
    for row in range(24):
        Image.fromarray(random.integers(0, 255, (16, 16, 3), np.uint8)).save(folder / f"{row}.png")
        lines.append(",".join([f"{row}.png", "test" if row % 2 else "train", *map(str, random.choice([1, 0], 6))]))
    (folder / "labels.csv").write_text("\n".join(lines))
    options = {"labels": folder / "labels.csv", "images": folder, "negative_value": "0"}
    places, cpu = Store(folder / "runs", folder / "cache"), torch.device("cpu")
    workspace = Workspace(places, Registry.discover(), Reporter(), cpu, 0, data_options=options, save_every=0.0)
    model = {"backbone": "test_resnet", "weights": "random", "image_size": 32}
    return plan_run(Request("table", method, model=model, plan={"epochs": 1, "batch_size": 4}), workspace), workspace


def run(folder: Path) -> Reader:
    """The files of a run, and a checkpoint of its training."""
    plan, workspace = planned(folder, "ce-negative")
    with mock.patch.object(checkpoint.Checkpoints, "remove"), mock.patch.object(summary, "NUM_REPLICATES", 20):
        runner.run(plan, workspace)
    made, spec = workspace.store.run_folder(plan.spec.key), plan.spec
    (newest,) = sorted(made.glob("checkpoints/step-*.json"))[-1:]
    names = [RECORD, "spec.toml", "cells.npz", PER_CLASS, REPLICATES, "log.jsonl", "task.npz", CHECKPOINT]
    files = {name: (made / name).read_bytes() for name in names}
    files |= {f"checkpoints/{path.name}": path.read_bytes() for path in (newest, newest.with_suffix(".pt"))}
    given: dict[str, Any] = defaultdict(lambda: None)

    def newest_checkpoint(where: Path) -> object:
        checkpoints = checkpoint.Checkpoints(where, spec)
        found = checkpoints.newest(lambda text: None)
        return found and checkpoints.load(found)

    def needs(where: Path) -> object:
        store, spec = Store(where.parent, where.parent / "cache"), where / "spec.toml"
        found = [needed_weights(store)]
        spec.rename(where / "aside")
        found.append(needed_weights(store))  # by the record
        (where / "aside").rename(spec)
        return found

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
        lambda where: parse_per_class((where / PER_CLASS).read_bytes()),
        lambda where: Cells.load(where / "cells.npz"),
        lambda where: plan_from_file(where / "spec.toml", given, workspace),
        lambda where: checkpoint.load(where / CHECKPOINT, spec.sha256()),
        newest_checkpoint,
        read_files,
        needs,
        unfinished,
    )
    return Reader(files, read, seal)


def published(folder: Path) -> Reader:
    """Records as boards have them: one by one, in a pack, and what a pack joins of their tables."""
    contents = {name: content for name, content in run(folder).files.items() if name in FILES}
    archive = lzma.decompress(pack_records({key * 16: contents for key in "ab"}))
    columns = as_columns([contents[PER_CLASS]] * 2)
    differences = as_differences([contents[REPLICATES]] * 2)
    assert columns is not None and differences is not None

    def unpacked(where: Path) -> object:
        packed = lzma.compress((where / "pack.tar").read_bytes(), preset=0)
        return [parse_entry(found) for found in unpack_records(packed).values()]

    read: tuple[Read, ...] = (
        lambda where: parse_whole_entry(read_contents(where), where),
        unpacked,
        lambda where: unpack_records((where / "pack.tar.xz").read_bytes()),
        lambda where: [*map(parse_per_class, from_columns((where / COLUMNS).read_bytes(), 2))],
        lambda where: [*map(parse_replicates, from_differences((where / DIFFERENCES).read_bytes(), 2))],
    )
    files = contents | {"pack.tar": archive, "pack.tar.xz": lzma.compress(archive), COLUMNS: columns}
    return Reader(files | {DIFFERENCES: differences}, read)


def downloads(folder: Path) -> Reader:
    """What a server says of a file, and what is noted of one that was fetched."""
    file = RemoteFile("https://localhost/a.zip", "a.zip", "images", checksum="md5:" + "0" * 32)
    write_record(file, folder, FileRecord(12, file.checksum, "unpacked"))
    note = record_path(file, folder)
    answer = b"Content-Length: 12\r\nContent-Range: bytes 3-11/12\r\nContent-MD5: AAAAAAAAAAAAAAAAAAAAAA==\r\n"

    def answers(where: Path) -> object:
        response = requests.Response()
        response.url = file.url
        with (where / "answer.txt").open("rb") as opened, suppress(http.client.HTTPException):
            response.headers.update(http.client.parse_headers(opened))
        return Version.of(file.url, response), content_range(response.headers)

    files = {"answer.txt": answer + b'ETag: "a"\r\nServer: AmazonS3\r\nx-goog-hash: crc32c=AAAAAA==,md5=AAAA\r\n\r\n'}
    return Reader(
        files | {str(note.relative_to(folder)): note.read_bytes()}, (answers, lambda where: is_here(file, where))
    )


def archives(folder: Path) -> Reader:
    """Archives that are unpacked, and a tar whose images are read where they lie."""
    (folder / "in" / "b").mkdir(parents=True)
    for name in ("a.txt", "b/c.txt"):
        (folder / "in" / name).write_text(name * 9)
    for kind in ("zip", "tar", "gztar"):
        shutil.make_archive(str(folder / "a"), kind, folder / "in")
    files = {path.name: path.read_bytes() for path in folder.glob("a.*")}
    files["images.tar"] = files["a.tar"]

    def reads(name: str) -> Read:
        def read(where: Path) -> object:
            if name == "images.tar":
                images = TarImages.open([where / name], TextColumn.of("abc"), None)
                return [images.read(row) for row in range(3) if row not in images.absent()]
            return unpack(where / name, where / "to")

        return read

    return Reader(files, tuple(map(reads, files)), apart=True)


def evidence(folder: Path) -> Reader:
    """Cells as a board's are published, which are verified against a record."""
    files = run(folder).files
    entry = parse_entry({name: files[name] for name in FILES})
    (folder / "cells.npz").write_bytes(files["cells.npz"])
    cells, classes = Cells.load(folder / "cells.npz"), [row.class_id for row in entry.per_class]
    columns: dict[str, Any] = {"image_id": [f"i{row}" for row in cells.rows]}
    columns |= {"class_id": [classes[column] for column in cells.class_index], "score": cells.scores}
    columns |= {"label": np.where(cells.positives, 1, -1).astype(np.int8), "top3": cells.in_top}
    pd.DataFrame(columns).to_parquet(folder / "cells.parquet")
    pd.DataFrame({"split": "test", "image_id": [f"i{row}" for row in range(cells.num_images)]}).to_parquet(
        folder / "images.parquet"
    )

    def read(where: Path) -> object:
        place, findings = Place(where, "board"), Findings("k")
        path = place.find("k")
        assert path is not None
        found = read_published(entry, path, place.image_ids(path, "test"), findings)
        if found is not None:
            check_scores(found, findings)
            digest_of_labels(found)
        return findings.problems

    names = {"cells/m/k.parquet": "cells.parquet", "images.parquet": "images.parquet"}
    return Reader({path: (folder / name).read_bytes() for path, name in names.items()}, (read,))


def studies(folder: Path) -> Reader:
    """A study's journal as Optuna keeps it, which workers go on with, and what is written of one that ended."""
    plan, workspace = planned(folder, "pasl-negative")
    spec = study_spec(plan, 0, frozenset(), {}, workspace.registry, sampler="a sampler", pruner="none")

    @contextmanager
    def opened(where: Path) -> Iterator[SharedStudy]:
        with mock.patch.object(shared, "_ASKED_SECONDS", 0.1):
            study = open_study(spec, where, None, None, NopPruner())
            try:
                yield study
            finally:
                study.liveness.close()

    with opened(folder) as study:
        for trial, value in zip(study.claim(9, 3), (50.0, None, 60.0), strict=True):
            study.tell(trial, TrialResult(value, 1.0, "no reason" if value is None else None))
        study.claim(9, 2)  # which are left to whoever goes on
        trials = study.trials()
    about = {"key": spec.key, "spec_sha256": spec.sha256(), "spec": spec, "trials": trials, "winner": 2}
    write_study(folder, StudyRecord.model_validate(about))

    def go_on(where: Path) -> object:
        with opened(where) as study:
            for trial in study.claim(9, 4):
                study.values(trial)
                study.tell(trial, TrialResult(40.0, 1.0))
            return study.trials()

    files = {name: (folder / name).read_bytes() for name in ("journal.log", STUDY)}
    return Reader(files, (go_on, lambda where: read_study(where).report()), apart=True)


def maps(folder: Path) -> Reader:
    """A map of modes, which advice is read from."""
    with (resources.files(mechanism) / "maps" / "ucm17.json").open("rb") as file:
        files = {"map.json": file.read()}
    others = read_maps()[:2]

    def read(where: Path) -> object:
        (found,) = read_maps([where / "map.json"])
        return leave_one_out([found, *others]), [winners([found], seen, seen) for _, seen in placed(found)]

    def placed(found: ModeMap) -> list[tuple[MapCell, Placement]]:
        return [(cell, seen) for cell in found.cells if (seen := cell.estimated)]

    return Reader(files, (read,))


def features(folder: Path) -> Reader:
    """Cached features, pooled ones and maps, and those that an interruption left: damaged ones are computed again."""

    class Means(torch.nn.Module):
        def __init__(self, side: int) -> None:
            super().__init__()
            self.feature_shape = (3, side, side) if side > 1 else (3,)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            pooled = torch.nn.functional.adaptive_avg_pool2d(pixels, self.feature_shape[1:] or 1)
            return pooled.reshape(-1, *self.feature_shape)

    for row in range(5):
        pixels = np.random.default_rng(row).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{row}.png")
    pictures = ImageFiles(folder, tuple(f"{row}.png" for row in range(5)), tuple("abcde"))
    model = ModelSpec(backbone="test_resnet", weights="random", image_size=8, mean=(0.5,) * 3, std=(0.25,) * 3)
    sides = {"a" * 64: 1, "b" * 64: 2, "c" * 64: 2}

    def computed(where: Path, key: str, stop: Callable[[int], None] = lambda done: None) -> np.ndarray:
        set_damaged_aside(where, key, lambda text: None)
        with mock.patch.multiple(loading, BATCH_SIZE=2, _SAVE_EVERY=1):
            return cached_features(
                where,
                key,
                pictures,
                lambda: Means(sides[key]),
                model,
                device=torch.device("cpu"),
                precision="float32",
                workers=0,
                report=lambda done, total: stop(done),
            )

    def interrupt(done: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    expected = {key: np.array(computed(folder, key)) for key in sides}
    (folder / features_name("c" * 64)).unlink()
    with suppress(KeyboardInterrupt):
        computed(folder, "c" * 64, interrupt)
    paths = [path for path in (folder / "features").iterdir() if path.suffix in (".npy", ".partial")]
    assert len(paths) == 3

    def reads(key: str) -> Read:
        def read(where: Path) -> object:
            found = computed(where, key)
            assert found.dtype == expected[key].dtype and np.array_equal(found, expected[key])
            return found

        return read

    return Reader({str(path.relative_to(folder)): path.read_bytes() for path in paths}, tuple(map(reads, sides)))


def answered(folder: Path) -> Reader:
    """What was noted of commands: the run that one made, and the rows that one listed."""
    files, runs, commands = run(folder).files, {}, ("a" * 64, "b" * 64)
    key = json.loads(files[RECORD])["key"]
    runs = {f"runs/{key}/{name}": files[name] for name in FILES}
    store = Store(folder / "runs", folder / "cache")
    remember(store, commands[0], key, ["plbench runs show"], {"files": {}, "notes": ["a note"]})
    remember_rows(store, commands[1], [{"name": "coco", "images": 3}], [])
    notes = [folder / "cache" / "answered" / f"{command}.json" for command in commands]
    own = {str(path.relative_to(folder)): path.read_bytes() for path in notes}

    def seal(where: Path) -> None:
        for name in own:
            with suppress(ValueError, LookupError, TypeError, OSError, RecursionError, AttributeError):
                content = json.loads((where / name).read_bytes())
                content.pop("sha256", None)
                write_checked_json(where / name, content)

    def the_run(where: Path) -> object:
        found = recall(Store(where / "runs", where / "cache"), commands[0])
        return found and "".join((*found[1], *found[2]))

    def the_rows(where: Path) -> object:
        found = recall_rows(Store(where / "runs", where / "cache"), commands[1])
        return found and [{**row} for row in found]

    return Reader(runs | own, (the_run, the_rows), seal, victims=tuple(own))


def caches(folder: Path) -> Reader:
    """What the cache knows of files: their sha256, the members of tars, and what stages computed."""
    (folder / "a.txt").write_text("a")
    shutil.make_archive(str(folder / "a"), "tar", folder, "a.txt")
    for name in ("a.txt", "a.tar"):
        os.utime(folder / name, (1e9, 1e9))
    value = np.arange(6.0).reshape(2, 3)

    def hashed(where: Path) -> object:
        assert file_sha256(folder / "a.txt", where) == hashlib.sha256(b"a").hexdigest()
        return where

    def members(where: Path) -> object:
        images = TarImages.open([folder / "a.tar"], TextColumn.of("ab"), where)
        assert list(images.absent()) == [1] and images.read(0) == b"a"
        return images

    def artifact(where: Path) -> object:
        found = artifacts.read(where / "a.npy", lambda text: None)
        assert found is None or np.array_equal(found, value)
        return found

    with mock.patch("plbench.data.digests.settled", lambda status: True), mock.patch(f"{TarImages.__module__}.settled"):
        hashed(folder / "cache")
        members(folder / "cache")
    write_checked(folder / "cache" / "a.npy", lambda file: np.save(file, value))
    paths = [path for path in (folder / "cache").rglob("*") if path.is_file()]
    assert len(paths) == 3

    def settled(read: Read) -> Read:
        def reads(where: Path) -> object:
            with mock.patch(f"{TarImages.__module__}.settled"), mock.patch("plbench.data.digests.settled"):
                return read(where)

        return reads

    files = {str(path.relative_to(folder / "cache")): path.read_bytes() for path in paths}
    return Reader(files, tuple(map(settled, (hashed, members, artifact))))


class Served(requests.adapters.BaseAdapter):
    """A server that knows ranges, without a network."""

    content = b"0123456789" * 20

    def send(self, request: requests.PreparedRequest, *_: object, **options: object) -> requests.Response:
        start = int(request.headers.get("Range", "bytes=0-")[6:-1])
        part = self.content[start:]
        headers = {"Content-Length": str(len(part)), "ETag": '"a"'}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
        response = requests.Response()
        response.status_code = (206 if part else 416) if start else 200
        response.url, response.headers = str(request.url), requests.structures.CaseInsensitiveDict(headers)
        response.raw = urllib3.HTTPResponse(io.BytesIO(part), headers, preload_content=False)
        return response

    def close(self) -> None:
        pass


def unfinished_downloads(folder: Path) -> Reader:
    """A download that was interrupted, and the note of the version that it is of."""
    checksum = f"sha256:{hashlib.sha256(Served.content).hexdigest()}"
    stated = RemoteFile("https://localhost/a.bin", "a.bin", "images", checksum=checksum)
    silent = RemoteFile("https://localhost/b.bin", "b.bin", "images")

    class Session(transfer._Session):
        def __init__(self) -> None:
            super().__init__()
            self.mount("https://", Served())

    def fetches(file: RemoteFile) -> Read:
        def read(where: Path) -> object:
            with mock.patch.multiple(transfer, _Session=Session, _BACKOFF=0.0):
                Transfer(file, where, threading.Event(), lambda text: None).run()
            found = (where / file.path).read_bytes()
            assert found == Served.content if file.checksum else len(found) == len(Served.content)
            return found

        return read

    files = {}
    for file in (stated, silent):
        version = Version(file.url, '"a"', "", len(Served.content), None)
        files[f"{file.path}.part"] = Served.content[:70]
        files[f"{file.path}.part.json"] = json.dumps(vars(version)).encode()
    return Reader(files, (fetches(stated), fetches(silent)))


def weights(folder: Path) -> Reader:
    """Weights of a backbone that somebody trained."""
    spec = ModelSpec(backbone="test_resnet", weights="file", image_size=32)
    network = build_backbone(spec.model_copy(update={"weights": "random"}), None, seed=0).net
    torch.save(network.state_dict(), folder / "a.pt")
    return Reader(
        {"a.pt": (folder / "a.pt").read_bytes()}, (lambda where: build_backbone(spec, where / "a.pt", seed=0),)
    )


OTHER_DATASETS = ("chexpert", "mimic-cxr-jpg", "coco-20k", "cub-attributes", "imagenet-real", "l48", "nus-wide")
OTHER_DATASETS += ("nus-wide-cole", "nus-wide-asl", "vaw", "vg-200", "vireo-food-172", "vispr", "voc2007", "ucm17")


def dataset(name: str, folder: Path) -> Reader:
    """A dataset's own fixture, without its images."""
    kind = Registry.discover().dataset(name)
    fixture = kind(folder)
    fixture.make_fixture()
    splits = fixture.used_splits()
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".jpg", ".png", ".tif")]
    files = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    annotated = [path for split in splits for path in fixture.annotation_files(split)[:5]]  # others are like them

    def read(where: Path) -> object:
        opened = kind(where)
        weights = [opened.prominence(splits[0], by) for by in ("size", "place")] if name == "coco-20k" else None
        return [opened.split(split) for split in splits], opened.groups(), weights

    victims = tuple(dict.fromkeys(str(path.relative_to(folder)) for path in annotated))
    return Reader(files, (read,), victims=victims)


OWN = (coco, lvis, openimages, table, grid, boards, shards, images, label_files, stored, run, published, downloads)
OWN += (archives, evidence, weights, studies, maps, features, answered, caches, unfinished_downloads)
MAKERS: dict[str, Maker] = {make.__name__: make for make in OWN}
MAKERS |= {name: functools.partial(dataset, name) for name in OTHER_DATASETS}


# --- what holds -------------------------------------------------------------------------------------------------------


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
    shutil.rmtree(where, ignore_errors=True)  # what a failure left
    for name, content in files.items():
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).write_bytes(content)
    if sealed and reader.seal is not None:
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

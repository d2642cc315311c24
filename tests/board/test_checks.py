"""Verification: genuine records pass, and whatever is changed in one of them is named."""

import contextlib
import csv
import hashlib
import io
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packing import packed

from plbench.api import BenchmarkProtocol, Dataset
from plbench.board import recompute
from plbench.board.boards import LEDGER, RECORDS, Board, BoardFolder, Event
from plbench.board.checks import check_entry, verify_board
from plbench.board.entries import parse_entry, read_contents
from plbench.board.installed import Installed
from plbench.board.names import flaw_of_name
from plbench.board.packs import records_of
from plbench.runs import environment
from plbench.runs import run as runner
from plbench.runs.findings import Findings, Problem
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.record import RECORD, Estimate, reference
from plbench.runs.store import CELLS
from plbench.runs.summary import image_estimate
from plbench.runs.workspace import Workspace
from plbench.spec import RunSpec
from plbench.training.clock import PHASES

COMMIT = "0123456789abcdef0123456789abcdef01234567"
AT = f"{datetime.now(UTC) + timedelta(hours=12):%Y-%m-%dT%H:%M:%SZ}"  # after the runs, as a clock may be ahead
TABLES = ("per_class.csv", "replicates.csv")
NOTHING = hashlib.sha256().hexdigest()
Content = dict[str, Any]

_GENUINE: dict[str, Path] = {}


class Forger:
    """A copy of the genuine board, to be tampered with.

    Attributes:
        path: of the board. key: of the record that is tampered with, by default the one of method selective.
        is_packed: whether its pack is as it is to be verified; else it is made of the record's files.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key, self.is_packed = path, key, False

    @property
    def record(self) -> Path:
        """Where the record's files lie before they are packed."""
        return self.path.parent / "loose" / self.key

    @property
    def pack(self) -> Path:
        return self.path / RECORDS / f"{self.key}.tar.xz"

    def members(self) -> dict[str, bytes]:
        return {f"{self.key}/{path.name}": path.read_bytes() for path in self.record.iterdir()}

    def read(self) -> Content:
        return json.loads((self.record / RECORD).read_text())

    def write(self, content: Content | str) -> None:
        """Writes the record, and its hash into the ledger, as whoever can change one file can change the other."""
        text = content if isinstance(content, str) else json.dumps(content)
        (self.record / RECORD).write_text(text)
        self.sign()

    def sign(self) -> None:
        digest = hashlib.sha256((self.record / RECORD).read_bytes()).hexdigest()
        ledger = json.loads((self.path / LEDGER).read_text())
        for event in ledger["events"]:
            if event["key"] == self.key:
                event["sha256"] = digest
        (self.path / LEDGER).write_text(json.dumps(ledger))

    def edit(self, change: Callable[[Content], Any]) -> None:
        content = self.read()
        change(content)
        self.write(content)

    def set(self, path: str, value: Any) -> None:
        self.edit(lambda content: put(content, path, value))

    def restate(self, change: Callable[[Content], Any]) -> None:
        """Changes the spec and all that is derived from it: hashes, key, folder, ledger."""
        content = self.read()
        change(content["spec"])
        spec = RunSpec.model_validate(content["spec"])
        content |= {"key": spec.key, "spec_sha256": spec.sha256(), "protocol_sha256": spec.protocol.sha256()}
        ledger = (self.path / LEDGER).read_text().replace(self.key, spec.key)
        (self.path / LEDGER).write_text(ledger)
        if spec.key != self.key:
            self.record.rename(self.record.with_name(spec.key))
            self.pack.unlink()
        self.key = spec.key
        self.write(content)

    def rewrite(self, name: str, change: Callable[[str], str], *, reseal: bool = True) -> None:
        """Changes a table, and its hash and size in the record unless told otherwise."""
        path = self.record / name
        path.write_text(change(path.read_text()))
        if reseal:
            self.edit(lambda content: content["files"].update({name: reference(path).model_dump()}))

    def table(self, change: Callable[[list[dict[str, str]]], Any], *, reseal: bool = True) -> None:
        """Changes rows of the per-class table."""

        def changed(text: str) -> str:
            rows = list(csv.DictReader(io.StringIO(text)))
            change(rows)
            out = io.StringIO()
            writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            return out.getvalue()

        self.rewrite("per_class.csv", changed, reseal=reseal)

    def verify(self, **options: Any) -> list[Problem]:
        if not self.is_packed:
            self.pack.write_bytes(packed(self.members().items()))
        return verify_board(BoardFolder(self.path), **options)


def put(content: Any, path: str, value: Any) -> None:
    *parents, last = path.split("/")
    for name in parents:
        content = content[int(name) if isinstance(content, list) else name]
    content[int(last) if isinstance(content, list) else last] = value


def got(content: Any, path: str) -> Any:
    for name in path.split("/"):
        content = content[int(name) if isinstance(content, list) else name]
    return content


@pytest.fixture
def genuine(
    make_workspace: Callable[..., Workspace],
    tiny_dataset: type[Dataset],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """Runs, made once, and the board of them: CE of three seeds, Selective, and CE on complete labels."""
    if "boards" in _GENUINE:
        return _GENUINE["boards"]

    class WithCeiling(tiny_dataset):  # type: ignore[valid-type, misc]
        protocols = (*tiny_dataset.protocols, BenchmarkProtocol(name="tiny-complete/v1", dataset="tiny"))

    monkeypatch.setattr(environment, "git_state", lambda: {"git_commit": COMMIT, "git_dirty": False})
    workspace = make_workspace()
    workspace.registry.sources["dataset"]["tiny"][0] = workspace.registry.sources["dataset"]["tiny"][0].__class__(
        "tiny", "the tests", loaded=WithCeiling
    )
    requests = [Request("tiny", "selective"), *(Request("tiny", "ce-negative", seed=seed) for seed in range(3))]
    requests.append(Request("tiny", "ce-ignore"))  # with two others of seed 0: most tell what its labels are
    requests.append(Request("tiny", "ce-negative", simulate="none"))
    records = [runner.run(plan_run(request, workspace), workspace) for request in requests]
    root = tmp_path_factory.mktemp("genuine")
    shutil.copytree(workspace.store.runs, root / "runs")
    row, ceiling = records[0].spec, records[-1].spec
    board = Board(
        name="tiny-fpc8",
        title="Tiny",
        dataset="tiny",
        protocol=row.protocol.name,
        protocol_sha256=row.protocol.sha256(),
        ceiling_sha256=ceiling.protocol.sha256(),
        dataset_fingerprint=row.dataset_fingerprint,
    )
    path = root / "boards" / board.name
    (path / RECORDS).mkdir(parents=True)
    (path / "board.json").write_text(board.model_dump_json())
    events = []
    for record in records:
        loose = Forger(path, record.key).record
        loose.mkdir(parents=True)
        for name in (RECORD, *TABLES):
            shutil.copy(root / "runs" / record.key / name, loose / name)
        Forger(path, record.key).verify()  # packs it
        sha256 = hashlib.sha256((loose / RECORD).read_bytes()).hexdigest()
        events.append(Event(event="added", key=record.key, at=AT, sha256=sha256))
    BoardFolder(path).append(events)
    _GENUINE["boards"] = root
    return root


@contextlib.contextmanager
def forging(genuine: Path, place: Path) -> Iterator[Forger]:
    """A fresh copy of the board below `place`, removed at the end."""
    path = place / f"forged-{time.monotonic_ns()}" / "tiny-fpc8"
    shutil.copytree(genuine / "boards", path.parent)
    try:
        yield Forger(path, BoardFolder(path).ledger[0].key)
    finally:
        shutil.rmtree(path.parent)


@pytest.fixture
def forger(genuine: Path, tmp_path: Path) -> Iterator[Forger]:
    with forging(genuine, tmp_path) as made:
        yield made


def fields(problems: list[Problem]) -> set[str]:
    return {problem.field for problem in problems}


def as_before_schema_5(split: Content) -> None:
    """Figures at 0.5 where there are now others."""
    for name in ("f1", "thresholds", "f1_top3", "auroc", "ece"):
        del split[name]
    split.update(cf1=12.8, of1=5.3, threshold=0.5)


class TestGenuine:
    def test_it_passes(self, forger: Forger) -> None:
        assert forger.verify() == []

    def test_it_passes_with_its_cells(self, forger: Forger, genuine: Path) -> None:
        notes: list[str] = []
        assert forger.verify(cells=genuine / "runs", note=notes.append) == []
        assert not any("recomputed" in note for note in notes)

    def test_cells_that_are_not_there_are_said(self, forger: Forger, tmp_path: Path) -> None:
        notes: list[str] = []
        assert forger.verify(cells=tmp_path / "none", note=notes.append) == []
        assert any("6 of 6 records were not recomputed" in note for note in notes)

    def test_a_ceiling_is_no_row_and_a_row_no_ceiling(self, forger: Forger) -> None:
        board = BoardFolder(forger.path)
        records = records_of(board)
        *_, seed_2, ceiling = [parse_entry(records[key]) for key in board.added]
        assert check_entry(seed_2, board.board, role="row") == check_entry(ceiling, board.board, role="ceiling") == []
        assert "spec.protocol" in fields(check_entry(ceiling, board.board, role="row"))
        assert "spec.protocol.simulation" in fields(check_entry(seed_2, board.board, role="ceiling"))

    def test_an_installed_wheel_serves_for_a_commit(self, forger: Forger) -> None:
        forger.edit(lambda c: c["environment"].update(git_commit=None, git_dirty=None))
        assert forger.verify() == []

    def test_a_table_without_groups_and_quintiles_is_refused(self, forger: Forger) -> None:
        def without_parts(text: str) -> str:
            rows = list(csv.reader(io.StringIO(text)))
            out = io.StringIO()
            csv.writer(out, lineterminator="\n").writerows(row[:5] for row in rows)
            return out.getvalue()

        forger.rewrite("per_class.csv", without_parts)
        assert fields(forger.verify()) >= {"per_class.csv.quintile"}

    def test_a_record_of_schema_4_passes_with_its_cells(self, forger: Forger, genuine: Path) -> None:
        def older(content: Content) -> None:
            del content["pretraining"], content["test_seen_in_pretraining"]
            for split in content["metrics"].values():
                as_before_schema_5(split)
            content["schema_version"] = 4

        def without_thresholds(text: str) -> str:
            rows = list(csv.reader(io.StringIO(text)))
            out = io.StringIO()
            csv.writer(out, lineterminator="\n").writerows(row[:5] + row[10:] for row in rows)
            return out.getvalue()

        forger.rewrite("per_class.csv", without_thresholds)
        forger.edit(older)
        assert forger.verify(cells=genuine / "runs") == []

    def test_what_is_installed_says_what_is_default(
        self, forger: Forger, make_workspace: Callable[..., Workspace]
    ) -> None:
        """By the method's version: the source of plbench was another when the record was made."""
        forger.edit(lambda content: content["environment"].update(source_sha256="0" * 64))
        installed = Installed(make_workspace().registry)
        assert forger.verify(installed=installed) == []
        for name, value in {"configuration": "custom", "paper": "Somebody, 2020", "title": "Selective+"}.items():
            before = forger.read()[name]
            forger.set(name, value)
            assert fields(forger.verify(installed=installed)) == {name}
            forger.set(name, before)

    def test_of_a_method_of_another_version_nothing_is_known(
        self, forger: Forger, make_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registry = make_workspace().registry
        method = registry.method("selective")
        forger.set("configuration", "custom")
        assert fields(forger.verify(installed=Installed(registry))) == {"configuration"}
        monkeypatch.setattr(method, "version", "2")
        assert forger.verify(installed=Installed(registry)) == []

    @pytest.mark.slow
    def test_150_records_of_56_classes_take_less_than_20_seconds(self, forger: Forger) -> None:
        contents = read_contents(forger.record)
        entry = parse_entry(contents)
        board = BoardFolder(forger.path).board
        rows = [entry.per_class[n % 6] for n in range(56)]
        wide = entry.__class__(**{**vars(entry), "per_class": tuple(rows)})
        start = time.perf_counter()
        for _ in range(150):
            parse_entry(contents)
            check_entry(wide, board, role="row")
        taken = time.perf_counter() - start
        print(f"150 records: {taken:.1f} s")
        assert taken < 20


def spec_edit(path: str, value: Any) -> Callable[[Forger], None]:
    return lambda forger: forger.set(f"spec/{path}", value)


def restated(path: str, value: Any) -> Callable[[Forger], None]:
    return lambda forger: forger.restate(lambda spec: put(spec, path, value))


def edit(path: str, value: Any) -> Callable[[Forger], None]:
    return lambda forger: forger.set(path, value)


def moved(path: str, by: float) -> Callable[[Forger], None]:
    return lambda forger: forger.edit(lambda content: put(content, path, got(content, path) + by))


def cell(row: int, column: str, value: Any, *, reseal: bool = True) -> Callable[[Forger], None]:
    return lambda forger: forger.table(lambda rows: rows[row].update({column: value}), reseal=reseal)


def replicate(name: str, by: float, *, reseal: bool) -> Callable[[Forger], None]:
    def change(text: str) -> str:
        lines = [line.split(",") for line in text.splitlines()]
        column = lines[0].index(name)
        value = float(lines[7][column])
        lines[7][column] = f"{value + (by if value < 50 else -by):.6f}"
        return "\n".join(",".join(line) for line in lines) + "\n"

    return lambda forger: forger.rewrite("replicates.csv", change, reseal=reseal)


def without_signing(act: Callable[[Forger], None]) -> Callable[[Forger], None]:
    """The same with a ledger that nobody changed."""

    def tamper(forger: Forger) -> None:
        ledger = (forger.path / LEDGER).read_text()
        act(forger)
        (forger.path / LEDGER).write_text(ledger)

    return tamper


def text_replaced(old: str, new: str) -> Callable[[Forger], None]:
    def tamper(forger: Forger) -> None:
        text = json.dumps(forger.read())
        assert old in text
        forger.write(text.replace(old, new, 1))

    return tamper


def many_classes(forger: Forger) -> None:
    rows = "".join(f"c{n},c{n},50.0,1,1,,1\n" for n in range(1_000_000))
    (forger.record / "per_class.csv").write_text(f"class_id,class_name,ap,positives,negatives,groups,quintile\n{rows}")


def twenty_thousand_and_one(forger: Forger) -> None:
    rows = "".join(f"c{n},c,50.0,1,1\n" for n in range(20_001))
    (forger.record / "per_class.csv").write_text(f"class_id,class_name,ap,positives,negatives\n{rows}")


def linked(forger: Forger) -> None:
    target = forger.path / "elsewhere"
    forger.pack.rename(target)
    forger.pack.symlink_to(target)
    forger.is_packed = True


def gone(forger: Forger) -> None:
    forger.pack.unlink()
    forger.is_packed = True


def duplicated(forger: Forger) -> None:
    members = [(f"{'0' * 16}/{name.partition('/')[2]}", content) for name, content in forger.members().items()]
    forger.pack.with_name(f"{'0' * 16}.tar.xz").write_bytes(packed(members))


def nested(forger: Forger) -> None:
    deep: Any = 1
    for _ in range(400):
        deep = {"x": deep}
    forger.edit(lambda content: content["environment"].update(deep=deep))


# Where a spec's hash, a table's checksum or the ledger gives a change away, the field named is the one that holds the
# hash, or `spec` where the key and the hash agree that it was the spec: nothing tells which of its values.
ONE_FIELD: dict[str, tuple[Callable[[Forger], None], str]] = {
    # figures: the per-class table determines means and counts, the replicates determine ends
    "mAP(C)": (moved("metrics/test/map_c/value", 0.01), "metrics.test.map_c.value"),
    "mAP(C) by the sixth decimal": (moved("metrics/test/map_c/value", 0.000003), "metrics.test.map_c.value"),
    "mAP(C) undefined": (edit("metrics/test/map_c/value", None), "metrics.test.map_c.value"),
    "low end": (moved("metrics/test/map_c/low", -0.5), "metrics.test.map_c.low"),
    "high end": (moved("metrics/test/map_c/high", -0.1), "metrics.test.map_c.high"),
    "no end": (edit("metrics/test/map_c/low", None), "metrics.test.map_c.low"),
    "mAP(O)": (moved("metrics/test/map_o/value", -1.0), "metrics.test.map_o.value"),
    "mAP(O) low end": (moved("metrics/test/map_o/low", 0.5), "metrics.test.map_o.low"),
    "a group": (moved("metrics/test/groups/rare/map_c/value", 0.1), "metrics.test.groups.rare.map_c.value"),
    # whose replicates stayed with the run: both ends are of one variance, and the one nearer its bound is named
    "high end of a group": (moved("metrics/test/groups/rare/map_c/high", -0.1), "metrics.test.groups.rare.map_c.low"),
    "low end of a group": (moved("metrics/test/groups/rare/map_c/low", -0.5), "metrics.test.groups.rare.map_c.low"),
    "no end of a group": (edit("metrics/test/groups/rare/map_c/low", None), "metrics.test.groups.rare.map_c.low"),
    "ends of a group": (
        lambda f: f.edit(lambda c: c["metrics"]["test"]["groups"]["rare"]["map_c"].update(low=None, high=None)),
        "metrics.test.groups.rare.map_c.low",
    ),
    "size of a group": (edit("metrics/test/groups/rare/num_classes", 4), "metrics.test.groups.rare.num_classes"),
    "scored in a group": (
        edit("metrics/test/groups/rare/num_classes_scored", 2),
        "metrics.test.groups.rare.num_classes_scored",
    ),
    "a quintile": (moved("metrics/test/quintiles/0/map_c/value", -0.1), "metrics.test.quintiles.0.map_c.value"),
    "quintiles": (lambda f: f.edit(lambda c: c["metrics"]["test"]["quintiles"].pop()), "metrics.test.quintiles"),
    "a group left out": (lambda f: f.edit(lambda c: c["metrics"]["test"]["groups"].pop("rare")), "metrics.test.groups"),
    "classes": (edit("metrics/test/num_classes", 7), "metrics.test.num_classes"),
    "classes scored": (edit("metrics/test/num_classes_scored", 5), "metrics.test.num_classes_scored"),
    "cells": (moved("metrics/test/num_cells", 1), "metrics.test.num_cells"),
    "positives": (moved("metrics/test/num_positives", -1), "metrics.test.num_positives"),
    "images": (moved("metrics/test/num_images", 6), "metrics.test.num_images"),
    "ranking loss": (edit("metrics/test/ranking_loss", 1.5), "metrics.test.ranking_loss"),
    "mAP(C) of raw weights": (moved("metrics/test_raw/map_c/value", 0.1), "metrics.test_raw.map_c.value"),
    "positives of raw weights": (moved("metrics/test_raw/num_positives", 1), "metrics.test_raw.num_positives"),
    "no figures": (edit("metrics", {}), "metrics.test"),
    # tables: their checksum gives them away, which the record holds
    "AP of a class": (cell(2, "ap", "99.5", reseal=False), "files.per_class.csv.sha256"),
    "positives of a class": (cell(2, "positives", "1", reseal=False), "files.per_class.csv.sha256"),
    "name of a class": (cell(2, "class_name", "dog", reseal=False), "files.per_class.csv.sha256"),
    "a replicate": (replicate("map_c", 0.5, reseal=False), "files.replicates.csv.sha256"),
    "checksum of a table": (edit("files/per_class.csv/sha256", "0" * 64), "files.per_class.csv.sha256"),
    "size of a table": (moved("files/replicates.csv/num_bytes", 1), "files.replicates.csv.num_bytes"),
    "no checksum": (lambda f: f.edit(lambda c: c["files"].pop("per_class.csv")), "files.per_class.csv"),
    "no hash of cells": (lambda f: f.edit(lambda c: c["files"].pop("cells.npz")), "files.cells.npz"),
    "hash of cells": (edit("files/cells.npz/sha256", "x" * 64), "files.cells.npz"),
    "cells of no bytes": (edit("files/cells.npz/num_bytes", 0), "files.cells.npz.num_bytes"),
    "cells of a hash of no bytes": (edit("files/cells.npz/sha256", NOTHING), "files.cells.npz.num_bytes"),
    # identity: the one of spec, its hash, key and folder that the others outvote
    "key": (edit("key", "0" * 16), "key"),
    "hash of the spec": (edit("spec_sha256", "0" * 64), "spec_sha256"),
    "end of the hash": (
        lambda f: f.edit(lambda c: c.update(spec_sha256=c["spec_sha256"][:60] + "0000")),
        "spec_sha256",
    ),
    "hash of the protocol": (edit("protocol_sha256", "0" * 64), "protocol_sha256"),
    "no hash of the protocol": (edit("protocol_sha256", None), "protocol_sha256"),
    "seed": (spec_edit("seed", 7), "spec"),
    "learning rate": (spec_edit("plan/lr", 0.5), "spec"),
    "precision": (spec_edit("precision", "bfloat16"), "spec"),
    "parameter": (spec_edit("method/params/gamma_neg", 9.0), "spec"),
    "source": (spec_edit("method/source_sha256", "0" * 64), "spec"),
    "stage": (spec_edit("stages/prior", "0" * 16), "spec"),
    "name of the protocol": (spec_edit("protocol/name", "tiny-fpc9/v1"), "spec.protocol"),
    "simulation": (spec_edit("protocol/simulation", "fpc=9"), "spec.protocol"),
    "seed of the simulation": (spec_edit("protocol/simulation_seed", 1), "spec.protocol"),
    "what is not hashed": (spec_edit("protocol/suggested", {"selective": {"eta": 1}}), "spec.protocol.suggested"),
    # the rest of the record
    "status": (edit("status", "failed"), "status"),
    "error": (edit("error", "it stopped"), "error"),
    "dirty": (edit("environment/git_dirty", True), "environment.git_dirty"),
    "dirty unknown": (edit("environment/git_dirty", None), "environment.git_dirty"),
    "commit": (edit("environment/git_commit", "main"), "environment.git_commit"),
    "no commit, no source": (
        lambda f: f.edit(lambda c: c["environment"].update(git_commit=None, git_dirty=None, source_sha256=None)),
        "environment.source_sha256",
    ),
    "no commit, no version": (
        lambda f: f.edit(lambda c: c["environment"].update(git_commit=None, git_dirty=None, plbench="newest")),
        "environment.plbench",
    ),
    "tuned": (edit("configuration", "tuned"), "configuration"),
    "time to come": (edit("finished_at", "2999-01-02T00:00:00+00:00"), "finished_at"),
    "no time": (edit("finished_at", "yesterday"), "finished_at"),
    "time without a zone": (edit("finished_at", "2026-01-01T00:00:00"), "finished_at"),
    "rule": (edit("selection/rule", "validation"), "selection.rule"),
    "labels that select": (edit("selection/labels", "complete"), "selection.labels"),
    "test selects": (edit("selection/labels", "test"), "selection"),
    "epoch": (edit("selection/epoch", 3), "selection.epoch"),
    "train images": (moved("data/num_train", 1), "data.num_train"),
    "density": (edit("data/train_density", 0.9), "data.train_density"),
    "known labels": (moved("data/num_train_known", 1), "data.num_train_known"),
    "train positives": (moved("data/train_positives", -1), "data.train_positives"),
    "classes without positives": (
        moved("data/classes_without_train_positives", 1),
        "data.classes_without_train_positives",
    ),
    "test images": (moved("data/num_test", 1), "data.num_test"),
    "validation images": (edit("data/num_validation", 5), "data.num_validation"),
    "skipped images": (edit("data/skipped_images", 5), "data.skipped_images"),
    "no data": (edit("data", None), "data"),
    "seconds below 0": (edit("cost/seconds/data", -1.0), "cost.seconds.data"),
    "memory": (edit("cost/peak_memory_mb", 0.0), "cost.peak_memory_mb"),
    "others beside": (edit("cost/shared_with", 3), "cost.shared_with"),
    "correlation": (edit("priors/prior/spearman_by_depth/6", 2.0), "priors.prior.spearman_by_depth.6"),
    "base rate": (moved("hidden_truth/base_rate", 0.1), "hidden_truth.base_rate"),
    "no hidden truth": (edit("hidden_truth", None), "hidden_truth"),
    # what no record may hold
    "markup": (edit("title", "<script>alert(1)</script>"), "title"),
    "script as a paper": (edit("paper", "javascript:alert(1)"), "paper"),
    "foreign scheme": (edit("paper", "see ftp://example.org/x"), "paper"),
    "bidirectional override": (edit("title", "Selective \u202e evitceleS"), "title"),
    "control character": (edit("warnings", ["a\x1b[2Jb"]), "warnings.0"),
    "long title": (edit("title", "x" * 201), "title"),
    "no title": (edit("title", ""), "title"),
    "path": (edit("source_file", "../../etc/passwd.py"), "source_file"),
    "path of a machine": (edit("environment/device", "/home/ann/gpu"), "environment.device"),
    "name of a key": (edit("environment/<b>", 1), "environment"),
    "no Python file": (edit("source_file", "methods/selective.sh"), "source_file"),
    "NaN": (text_replaced('"final_loss": ', '"final_loss": NaN, "x": '), "record.json"),
    "1e400": (text_replaced('"final_loss": ', '"final_loss": 1e400, "x": '), "training.final_loss"),
    "1e400 where anything may be": (
        text_replaced('"cpu_cores": ', '"cpu_cores": 1e400, "x": '),
        "environment.cpu_cores",
    ),
    "too large a number": (edit("environment/cpu_cores", 10**300), "environment.cpu_cores"),
    "deeply nested": (nested, "environment.deep" + ".x" * 10),
    "above 100": (edit("metrics/test/map_c/value", 100.1), "metrics.test.map_c.value"),
    "unknown field": (edit("approved", True), "approved"),
    "future schema": (edit("schema_version", 6), "schema_version"),
    "schema 4 with fields of schema 5": (edit("schema_version", 4), "record.json"),
    "schema 2": (edit("schema_version", 2), "schema_version"),
    "no JSON": (lambda f: f.write("{"), "record.json"),
    "a text of 50 MB": (edit("title", "x" * 50_000_000), "PACK"),
    "a million classes": (many_classes, "PACK"),
    "too many classes": (twenty_thousand_and_one, "per_class.csv"),
    "a million classes by number": (edit("metrics/test/num_classes", 1_000_000), "metrics.test.num_classes"),
    "markup in a class": (cell(0, "class_name", "<img src=x>"), "per_class.csv[a].class_name"),
    "path in a class": (cell(0, "class_id", "../a"), "per_class.csv[../a].class_id"),
    "NaN in a class": (cell(0, "ap", "nan"), "per_class.csv, line 2"),
    "1e400 in a replicate": (
        lambda f: f.rewrite("replicates.csv", lambda text: text.replace("\n", "\n1e400,1\n", 1)),
        "replicates.csv, line 2",
    ),
    "a line too short": (
        lambda f: f.rewrite("replicates.csv", lambda text: text.replace("\n", "\n50.0\n", 1)),
        "replicates.csv, line 2",
    ),
    # files and ledger
    "missing table": (lambda f: (f.record / "replicates.csv").unlink(), "PACK"),
    "extra file": (lambda f: (f.record / "cells.npz").write_bytes(b""), "PACK"),
    "a record that nobody added": (duplicated, f"{RECORDS}/{'0' * 16}.tar.xz"),
    "a record that is gone": (gone, RECORDS),
    "a linked record": (linked, "PACK"),
    "record against the ledger": (without_signing(edit("training/final_loss", 0.001)), "record.json"),
}


@pytest.mark.parametrize("name", ONE_FIELD)
def test_what_was_changed_is_named(forger: Forger, name: str) -> None:
    tamper, field = ONE_FIELD[name]
    key = forger.key
    tamper(forger)
    problems = forger.verify()
    field = f"{RECORDS}/{key}.tar.xz" if field == "PACK" else field
    assert field in fields(problems), [str(problem) for problem in problems]
    named = next(problem for problem in problems if problem.field == field)
    assert named.key == ("0" * 16 if name == "a record that nobody added" else key)
    assert all(problem.key == named.key for problem in problems)  # nobody else is blamed
    assert all(str(problem).isprintable() and len(str(problem)) < 1500 for problem in problems)


# Whoever changes a table may change its checksum, and whoever changes the spec its hash, the key and the folder.
TWO_STEPS: dict[str, tuple[Callable[[Forger], None], str]] = {
    "AP of a class": (cell(2, "ap", "99.5"), "metrics.test.map_c.value"),
    "AP of a class, by its group": (cell(2, "ap", "99.5"), "metrics.test.groups.frequent.map_c.value"),
    "AP left out": (cell(2, "ap", ""), "per_class.csv[c].ap"),
    "positives of a class": (cell(2, "positives", "1"), "per_class.csv[c].positives"),
    "negatives of a class": (cell(2, "negatives", "1"), "metrics.test.num_cells"),
    "name of a class": (cell(2, "class_name", "dog"), "per_class.csv[c].class_name"),
    "id of a class": (cell(2, "class_id", "dog"), "per_class.csv"),
    "a class twice": (cell(2, "class_id", "a"), "per_class.csv[a].class_id"),
    "group of a class": (cell(2, "groups", "rare"), "metrics.test.groups.rare.num_classes"),
    "quintile of a class": (cell(2, "quintile", "6"), "per_class.csv.quintile"),
    "a class left out": (lambda f: f.table(lambda rows: rows.pop()), "metrics.test.num_classes"),
    "a replicate": (replicate("map_c", 20.0, reseal=True), "metrics.test.map_c.low"),
    "fewer replicates": (
        lambda f: f.rewrite("replicates.csv", lambda text: text.rsplit("\n", 2)[0] + "\n"),
        "replicates.csv",
    ),
    "another replicate": (
        lambda f: f.rewrite("replicates.csv", lambda text: text.replace("map_o", "common", 1)),
        "replicates.csv",
    ),
    "custom protocol": (restated("protocol/name", "custom/tiny"), "spec.protocol.name"),
    "name of the protocol": (restated("protocol/name", "tiny-fpc8/v2"), "spec.protocol"),
    "simulation": (restated("protocol/simulation", "rpa=0.5"), "spec.protocol"),
    "data": (restated("dataset_fingerprint", "0" * 64), "spec.dataset_fingerprint"),
    "numerics": (restated("numerics", 99), "spec.numerics"),
    "part": (restated("train_part", "fit"), "spec.train_part"),
    "skipped images": (restated("skipped_images", ["test/1"]), "spec.skipped_images"),
    "selected on test": (restated("selection", "best-on-test"), "spec.selection"),
    "selected on validation": (restated("selection", "validation"), "selection.rule"),
    "epochs": (restated("plan/epochs", 40), "selection.epoch"),
    "source": (restated("method/source_sha256", "none"), "spec.method.source_sha256"),
    "weights": (restated("model/weights", "file"), "spec.model.weights_sha256"),
    "stage": (restated("stages/prior", "../prior"), "spec.stages.prior"),
    "markup in a parameter": (restated("method/params/mode", "<b>"), "spec.method.params.mode"),
}


@pytest.mark.parametrize("name", TWO_STEPS)
def test_a_changed_hash_does_not_help(forger: Forger, name: str) -> None:
    tamper, field = TWO_STEPS[name]
    tamper(forger)
    problems = forger.verify()
    assert field in fields(problems), [str(problem) for problem in problems]
    assert {problem.key for problem in problems} == {forger.key}


def test_a_log_may_be_empty(forger: Forger) -> None:
    """That of a method that trains nothing."""
    forger.edit(lambda content: content["files"].update({"log.jsonl": {"sha256": NOTHING, "num_bytes": 0}}))
    assert forger.verify() == []


def test_a_training_set_of_its_own_is_named(forger: Forger) -> None:
    """Data that adds up, but is not that of the other records of the protocol."""
    data = forger.read()["data"]
    changed = {"train_positives": data["train_positives"] - 1, "train_negatives": data["train_negatives"] + 1}
    forger.edit(lambda content: content["data"].update(changed))
    assert fields(forger.verify()) == {"data.train_positives", "data.train_negatives"}


def test_a_seed_counts_once_in_a_row(forger: Forger) -> None:
    """Two runs of one spec but for the key of a stage, which the row does not tell apart."""
    forger.key = BoardFolder(forger.path).ledger[2].key
    forger.restate(lambda spec: spec.update(seed=0, stages={"prior": "0" * 16}))
    problems = forger.verify()
    assert fields(problems) == {"spec.seed"}
    assert {problem.key for problem in problems} == {forger.key}


class TestCells:
    """What the tables do not determine, the cells do."""

    @pytest.mark.parametrize(
        ("path", "by"),
        [
            ("micro_ap", 0.1),
            ("f1/cf1", 0.1),
            ("f1/overall_recall", -0.1),
            ("f1_top3/of1", -0.1),
            ("auroc", 0.1),
            ("ece", -0.1),
            ("ranking_loss", 0.01),
            ("precision_at_k/1", -0.5),
            ("map_c/low", -0.5),
            ("groups/rare/map_c/value", 0.01),
        ],
    )
    def test_figures(self, forger: Forger, genuine: Path, path: str, by: float) -> None:
        moved(f"metrics/test/{path}", by)(forger)
        assert f"metrics.test.{path.replace('/', '.')}" in fields(forger.verify(cells=genuine / "runs"))

    @pytest.mark.parametrize(
        ("tamper", "field"),
        [
            (cell(2, "ap", "99.5"), "per_class.csv[c].ap"),
            (cell(2, "positives", "1"), "per_class.csv[c].positives"),
            (replicate("map_o", 0.01, reseal=True), "replicates.csv.map_o"),
            (edit("files/cells.npz/sha256", "0" * 64), "files.cells.npz.sha256"),
            (moved("files/cells.npz/num_bytes", 1), "files.cells.npz.num_bytes"),
            (moved("metrics/test/num_images", 1), "metrics.test.num_images"),
        ],
    )
    def test_tables(self, forger: Forger, genuine: Path, tamper: Callable[[Forger], None], field: str) -> None:
        tamper(forger)
        assert field in fields(forger.verify(cells=genuine / "runs"))

    def test_a_narrower_interval_of_a_group(self, forger: Forger, genuine: Path) -> None:
        """Both ends, as half the deviation has them: the replicates stayed with the run."""
        group = Estimate.model_validate(got(forger.read(), "metrics/test/groups/rare/map_c"))
        estimate = image_estimate(group)
        low, high = replace(estimate, image_variance=estimate.image_variance / 4).interval
        forger.edit(lambda c: put(c, "metrics/test/groups/rare/map_c", group.model_dump() | {"low": low, "high": high}))
        assert forger.verify() == []
        ends = {f"metrics.test.groups.rare.map_c.{end}" for end in ("low", "high")}
        assert fields(forger.verify(cells=genuine / "runs")) == ends

    @pytest.mark.parametrize(
        ("end", "by", "is_refused"), [("low", 9e-5, False), ("high", 1e-3, True), ("value", 9e-6, True)]
    )
    def test_an_end_may_differ_by_replicates_at_the_edge_of_rounding(
        self, end: str, by: float, is_refused: bool
    ) -> None:
        findings = Findings("a key")
        recompute._compare("map_c", {end: 40.0}, {end: 40.0 + by}, findings)
        assert bool(findings.problems) == is_refused

    def test_all_figures_in_the_favour_of_a_model_that_never_was(
        self, forger: Forger, genuine: Path, tmp_path: Path
    ) -> None:
        """The record of a better run whose cells are this one's: every hash is in order, and no figure."""
        runs = tmp_path / "runs"
        other = BoardFolder(forger.path).ledger[1].key
        shutil.copytree(genuine / "runs" / other, runs / forger.key)
        file = reference(runs / forger.key / CELLS).model_dump()
        forger.edit(lambda content: content["files"].update({CELLS: file}))
        assert forger.verify() == []  # nothing on the board tells
        assert {"metrics.test.map_c.value", "replicates.csv.map_c", "per_class.csv[a].ap"} <= fields(
            forger.verify(cells=runs)
        )

    @pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(18), b"nothing of the kind"])
    def test_what_is_no_file_of_cells_is_refused(self, forger: Forger, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "runs" / forger.key / CELLS
        path.parent.mkdir(parents=True)
        path.write_bytes(content or b"\0")
        forger.edit(lambda c: c["files"].update({CELLS: reference(path).model_dump()}))
        assert CELLS in fields(forger.verify(cells=tmp_path / "runs"))

    def test_cells_that_unpack_to_more_than_they_say_are_not_unpacked(self, forger: Forger, tmp_path: Path) -> None:
        path = tmp_path / "runs" / forger.key / CELLS
        path.parent.mkdir(parents=True)
        np.savez_compressed(path, rows=np.zeros(10**7, np.int64))
        forger.edit(lambda c: c["files"].update({CELLS: reference(path).model_dump()}))
        found = [problem for problem in forger.verify(cells=tmp_path / "runs") if problem.field == CELLS]
        assert "bytes unpacked" in found[0].found


class TestLedger:
    @pytest.mark.parametrize(
        ("events", "sentence"),
        [
            (lambda events: events.append(events[0]), "added twice"),
            (lambda events: events.insert(0, {**events[0], "event": "verified"}), "verified before it was added"),
            (lambda events: events.insert(0, {**events[0], "event": "withdrawn", "why": "x"}), "withdrawn before"),
            (lambda events: events.append({**events[0], "event": "withdrawn"}), "without a word why"),
            (lambda events: events[0].pop("sha256"), "without a sha256"),
            (lambda events: events[-1].update(at="2026-01-01T00:00:00Z"), "at is 2026-01-01"),
            (lambda events: events[-1].update(at="2099-01-01T00:00:00Z"), "expected a time that has passed"),
            (
                lambda events: events.extend(
                    [{**events[0], "event": "withdrawn", "why": "x"}, {**events[0], "event": "verified"}]
                ),
                "verified after it was withdrawn",
            ),
        ],
    )
    def test_what_cannot_have_been_is_refused(
        self, forger: Forger, events: Callable[[list[Content]], Any], sentence: str
    ) -> None:
        content = json.loads((forger.path / LEDGER).read_text())
        events(content["events"])
        (forger.path / LEDGER).write_text(json.dumps(content))
        assert any(sentence in str(problem) for problem in forger.verify())

    def test_a_withdrawn_record_need_only_be_the_one_that_was_added(self, forger: Forger) -> None:
        moved("metrics/test/map_c/value", 1.0)(forger)
        assert forger.verify() != []
        board = BoardFolder(forger.path)
        board.append([Event(event="withdrawn", key=forger.key, at=AT, why="its mAP is not its own")])
        assert forger.verify() == []
        (forger.record / RECORD).write_text((forger.record / RECORD).read_text() + " ")
        assert fields(forger.verify()) == {"record.json"}
        forger.sign()
        cell(2, "ap", "99.5", reseal=False)(forger)
        assert "files.per_class.csv.sha256" in fields(forger.verify())

    def test_a_board_without_a_fingerprint_has_no_records(self, forger: Forger) -> None:
        board = json.loads((forger.path / "board.json").read_text())
        (forger.path / "board.json").write_text(json.dumps({**board, "dataset_fingerprint": None}))
        assert fields(forger.verify()) == {"board.json: dataset_fingerprint"}


class TestNames:
    @pytest.mark.parametrize(
        "name",
        [
            "P-ASL, Selective (both)",
            "Ben-Baruch et al., CVPR 2022, arXiv 2110.10955",
            "https://example.org/a?b=c",
            "ε-SVM",
        ],
    )
    def test_names(self, name: str) -> None:
        assert flaw_of_name(name) is None

    @pytest.mark.parametrize(
        "name",
        ["/m/01g317", "Salt & pepper", 'the "real" one', "dog's; cat", "crème brûlée", "می\u200cخواهم", "1:2", "a..b"],
    )
    def test_names_of_classes(self, name: str) -> None:
        assert flaw_of_name(name, of_class=True) is None

    @pytest.mark.parametrize(
        "name",
        [
            *("<b>", "a>b", "a\\b", "a\nb", "\x00", "\u202e", "\u2066x", "\ufeff", "\ud800", "a/../b", "..", "x" * 201),
            *("javascript:alert(1)", " JavaScript:x", "data:text/html,x", "file:///etc/passwd"),
            *("/home/ann", "~ann", "C:/x"),
        ],
    )
    def test_what_is_no_name(self, name: str) -> None:
        assert flaw_of_name(name) is not None

    def test_a_joiner_is_for_classes_only(self) -> None:
        assert flaw_of_name("selec\u200dtive") is not None


F1 = ("cf1", "class_precision", "class_recall", "of1", "overall_precision", "overall_recall")
UNDETERMINED = {
    # pooled over cells, which stay behind: with --cells they are recomputed (TestCells)
    "metrics/test/micro_ap",
    "metrics/test/ece",
    "metrics/test/auroc",
    *(f"metrics/test/f1/{name}" for name in F1),
    *(f"metrics/test/f1_top3/{name}" for name in F1),
    # of the validation part, whose scores stay behind
    "metrics/test/thresholds/num_images",
    "metrics/test/thresholds/num_pooled",
    "metrics/test/thresholds/pooled",
    "metrics/test/ranking_loss",
    "metrics/test/precision_at_k/1",
    "metrics/test/precision_at_k/3",
    "metrics/test/precision_at_k/5",
    # of the last weights, whose cells are not kept; no board shows them. mAP(C) there is the mean of its quintiles.
    "metrics/test_raw/map_o/value",
    "metrics/test_raw/micro_ap",
    "metrics/test_raw/auroc",
    "metrics/test_raw/ece",
    "metrics/test_raw/num_images",
    *(f"metrics/test_raw/f1_top3/{name}" for name in F1),
    "metrics/test_raw/ranking_loss",
    "metrics/test_raw/precision_at_k/1",
    "metrics/test_raw/precision_at_k/3",
    "metrics/test_raw/precision_at_k/5",
    # what it took: counts that the run itself made, and times, which depend on the machine
    *(f"cost/seconds/{name}" for name in ("data", "evaluation", "intervals", "total", "training")),
    "cost/images_per_second",
    *(f"cost/standard/{name}" for name in ("extracted/train", "extracted/test", "forward", "head", "trained")),
    "cost/standard/trainings",
    "training/steps",
    *(f"cost/phases/{name}" for name in PHASES),
    # of the train split, whose images and scores stay behind
    "training/final_loss",
    "hidden_truth/map_c_unknown",
    "hidden_truth/precision/ignored",
    "hidden_truth/num_marked/ignored",
    "priors/prior/total",
    *(f"priors/prior/top/{place}/1" for place in range(6)),
    "priors/prior/spearman_by_depth/6",
    # of the machine that it ran on
    "environment/cpu_cores",
    "environment/torch_threads",
    "cost/peak_memory_mb",
    # of files that stay behind, by whoever has them
    "files/spec.toml/num_bytes",
    "files/log.jsonl/num_bytes",
    "files/cells.npz/num_bytes",
    "files/group_replicates.csv/num_bytes",
    "files/checkpoint.pt/num_bytes",
    "files/task.npz/num_bytes",
}


def numbers(content: Any, path: str = "") -> Iterator[str]:
    """Paths of all numbers in a record's JSON."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for name, value in items:
        yield from numbers(value, f"{path}/{name}")
    if isinstance(content, int | float) and not isinstance(content, bool):
        yield path.lstrip("/")


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_number_that_anything_determines_may_not_change(genuine: Path, tmp_path: Path, data: st.DataObject) -> None:
    with forging(genuine, tmp_path) as forger:
        content = forger.read()
        paths = sorted(set(numbers(content)))
        assert set(paths) >= UNDETERMINED
        path = data.draw(st.sampled_from([path for path in paths if path not in UNDETERMINED]))
        value = got(content, path)
        if isinstance(value, int):
            changed: float = value + data.draw(st.integers(-1000, 1000).filter(bool))
        else:
            changed = value + data.draw(st.floats(0.001, 1000)) * data.draw(st.sampled_from([-1, 1]))
        forger.set(path, changed)
        problems = forger.verify()
        assert problems, f"{path}: {value} -> {changed}"
        assert {problem.key for problem in problems} == {forger.key}


def test_the_ledger_determines_the_rest(forger: Forger) -> None:
    for path in UNDETERMINED & set(numbers(forger.read())):
        value = got(forger.read(), path)
        without_signing(edit(path, value / 2 if isinstance(value, float) else value + 1))(forger)
        assert "record.json" in fields(forger.verify()), path
        forger.set(path, value)
        forger.sign()

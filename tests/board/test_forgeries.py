"""Forged records, each with all its hashes in order: what is refused by files alone, by cells, and by neither.

The board is of 4 methods with 3 seeds. Their scores are drawn, alike as those of trainings are; all figures are
plbench's own. `CLAIMS` need a maintainer's
signature; `REMAINS` is what only a repetition exposes, and what docs/leaderboards.md says remains possible.
"""

from __future__ import annotations

import copy
import hashlib
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packing import packed

from plbench.api import PartialLabels
from plbench.board import likeness
from plbench.board.boards import LEDGER, RECORDS, Board, BoardFolder
from plbench.board.checks import verify_board
from plbench.board.installed import Installed
from plbench.board.signatures import SIGNATURE, SIGNERS
from plbench.metrics.cells import Cells, top_places
from plbench.randomness import derive_seed
from plbench.runs import run as runner
from plbench.runs import summary
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.record import RECORD, Estimate, SearchedRange, reference
from plbench.runs.registry import source_file
from plbench.runs.store import CELLS
from plbench.runs.tables import parse_replicates
from plbench.runs.workspace import Workspace
from plbench.spec import RunSpec

METHODS = ("ce-ignore", "asl-ignore", "focal-ignore", "wce-ignore")
SEEDS = (0, 1, 2)
CLASSES = ("a", "b", "c", "d", "e", "f")
GROUPS = {"frequent": CLASSES[:3], "rare": CLASSES[3:]}
NUM_IMAGES = 200
NOW = datetime.now(UTC)
WITNESSES = ((1, 0), (1, 1), (2, 0))
Content = dict[str, Any]
Name = tuple[int, int]


@dataclass
class Made:
    """A record with its tables and cells, before it is sealed with hashes."""

    record: Content
    cells: Cells
    per_class: bytes
    replicates: bytes

    def evaluate(self, cells: Cells, folder: Path) -> None:
        """Takes the figures and tables of other cells; its own cells stay."""
        protocol = RunSpec.model_validate(self.record["spec"]).protocol
        labels = PartialLabels.from_dense(np.ones((1, len(CLASSES)), np.int8), CLASSES)
        seed = derive_seed(0, "bootstrap", protocol.sha256(), protocol.test_split)
        drawn = summary.draw_replicates(cells, labels, GROUPS, seed, lambda done, total: None)
        order = np.arange(len(CLASSES))
        figures = summary.summarise(cells, labels, GROUPS, order, drawn)
        summary.write_per_class(folder / "per_class.csv", cells, labels, GROUPS, order)
        summary.write_replicates(folder / "replicates.csv", summary.headline(drawn))
        self.per_class = (folder / "per_class.csv").read_bytes()
        self.replicates = (folder / "replicates.csv").read_bytes()
        self.record["metrics"] = {"test": figures.model_dump(mode="json")}
        self.record["data"] |= {"num_test": cells.num_images}

    def redraw(self, change: Callable[[str, np.ndarray, float], np.ndarray]) -> None:
        """Changes replicates, and the intervals with them."""
        columns = parse_replicates(self.replicates)
        test = self.record["metrics"]["test"]
        for name, drawn in columns.items():
            value = test[name]["value"]
            written = np.round(np.clip(change(name, drawn, value), 0, 100), 2)
            low, high = summary.image_interval(value, written, test[name]["lowest"])
            test[name] |= {"low": round(low, 6), "high": round(high, 6)}
            columns[name] = written
        lines = [",".join(columns), *(",".join(f"{v:.2f}" for v in row) for row in zip(*columns.values(), strict=True))]
        self.replicates = ("\n".join(lines) + "\n").encode()


class Copies(dict[Name, Made]):
    """Records, each copied from the genuine ones as soon as somebody looks at it."""

    def __init__(self, genuine: dict[Name, Made]) -> None:
        super().__init__()
        self.genuine = genuine

    def __missing__(self, name: Name) -> Made:
        self[name] = copy.deepcopy(self.genuine[name])
        return self[name]


@dataclass(frozen=True)
class Sealed:
    """A record with all its hashes: key, sha256 of its JSON, pack, and file of cells."""

    key: str
    sha256: str
    pack: bytes
    cells: bytes


def sealed(one: Made, folder: Path) -> Sealed:
    folder.mkdir(parents=True, exist_ok=True)
    spec = RunSpec.model_validate(one.record["spec"])
    one.record |= {"key": spec.key, "spec_sha256": spec.sha256(), "protocol_sha256": spec.protocol.sha256()}
    one.cells.save(folder / CELLS)
    files = {"per_class.csv": one.per_class, "replicates.csv": one.replicates}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    one.record["files"] = {name: reference(folder / name).model_dump() for name in (*files, CELLS)}
    files[RECORD] = json.dumps(one.record).encode()
    pack = packed((f"{spec.key}/{name}", content) for name, content in files.items())
    return Sealed(spec.key, hashlib.sha256(files[RECORD]).hexdigest(), pack, (folder / CELLS).read_bytes())


class Forgery:
    """A board on its way to be verified. Record (m, s) is that of method number m and seed s."""

    def __init__(self, genuine: dict[str, Any], place: Path) -> None:
        self.board, self.made = dict(genuine["board"]), Copies(genuine["made"])
        self.genuine: dict[Name, Sealed] = genuine["sealed"]
        self.place = place
        self.at = f"{NOW - timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}"
        self.events: list[Content] = []
        self.left_out: set[Name] = set()
        self.keys: dict[Name, str] = {}
        self.rng = np.random.default_rng(0)

    @property
    def own(self) -> Made:
        """The record of the forger: its best seed."""
        return self.made[0, 0]

    def write(self) -> None:
        """Seals everything: hashes, keys, packs, ledger, and cells: of what was touched, and of two others."""
        path = self.place / "boards" / self.board["name"]
        (path / RECORDS).mkdir(parents=True)
        (path / "board.json").write_text(json.dumps(self.board))
        events = []
        for name in [name for name in self.genuine if name not in self.left_out]:
            one = sealed(self.made[name], self.place / "sealing") if name in self.made else self.genuine[name]
            self.keys[name] = one.key
            if name in self.made or name in WITNESSES:
                (self.place / "runs" / one.key).mkdir(parents=True)
                (self.place / "runs" / one.key / CELLS).write_bytes(one.cells)
            (path / RECORDS / f"{one.key}.tar.xz").write_bytes(one.pack)
            events.append({"event": "added", "key": one.key, "at": self.at, "sha256": one.sha256})
        more = [{**event, "key": self.keys[event["key"]]} for event in self.events]
        (path / LEDGER).write_text(json.dumps({"events": events + more}))

    def verify(self, installed: Installed, *, cells: bool) -> list[str]:
        folder = BoardFolder(self.place / "boards" / self.board["name"])
        runs = self.place / "runs" if cells else None
        return [str(problem) for problem in verify_board(folder, cells=runs, installed=installed)]


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `forgery` keeps from its first use: specs need the tiny dataset, which is a fixture of each test."""
    return {}


@pytest.fixture
def forgery(
    genuine: dict[str, Any], make_workspace: Callable[..., Workspace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Forgery:
    monkeypatch.setattr(likeness, "MIN_PEERS", 9)
    if not genuine:
        genuine.update(board_of(make_workspace(), tmp_path))
        genuine["sealed"] = {name: sealed(one, tmp_path / "sealing") for name, one in genuine["made"].items()}
    return Forgery(genuine, tmp_path / "forged")


def board_of(workspace: Workspace, folder: Path) -> dict[str, Any]:
    template = json.loads(runner.run(plan_run(Request("tiny", "ce-ignore"), workspace), workspace).model_dump_json())
    template["environment"] |= {"git_commit": "0" * 40, "git_dirty": False}
    template |= {"files": {}, "finished_at": f"{NOW - timedelta(hours=2):%Y-%m-%dT%H:%M:%S+00:00}"}
    draws = np.random.default_rng(0)
    labels = draws.random((NUM_IMAGES, len(CLASSES))) < np.linspace(0.6, 0.25, len(CLASSES))
    common = draws.normal(0, 1, labels.shape)  # what makes an image hard for all of them
    made = {}
    for m, method in enumerate(METHODS):
        for seed in SEEDS:
            spec = plan_run(Request("tiny", method, seed=seed), workspace).spec
            kind = workspace.registry.method(method)
            record = copy.deepcopy(template) | {"spec": spec.model_dump(mode="json")}
            record |= {"title": kind.title, "paper": kind.paper, "source_file": source_file(kind)}
            logits = (1.2 + 0.2 * m) * labels + common + draws.normal(0, 0.5, labels.shape) - 1
            made[m, seed] = Made(record, cells_of(logits, labels), b"", b"")
            made[m, seed].evaluate(made[m, seed].cells, folder)
    board = Board(
        name="tiny-fpc8",
        title="Tiny",
        dataset="tiny",
        protocol=spec.protocol.name,
        protocol_sha256=spec.protocol.sha256(),
        dataset_fingerprint=spec.dataset_fingerprint,
        max_trials=spec.protocol.budget,
    )
    return {"board": board.model_dump(mode="json"), "made": made, "installed": Installed(workspace.registry)}


def cells_of(logits: np.ndarray, labels: np.ndarray) -> Cells:
    scores = (1 / (1 + np.exp(-logits))).astype(np.float32)
    cells = Cells.from_scores(scores, np.where(labels, 1, -1))
    return replace(cells, in_top=top_places(scores).ravel())


def rescored(cells: Cells, change: Callable[[np.ndarray], np.ndarray]) -> Cells:
    scores = change(cells.scores).astype(np.float32)
    return replace(cells, scores=scores, in_top=top_places(scores.reshape(NUM_IMAGES, -1)).ravel())


def relabelled(cells: Cells, change: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Cells:
    labels, scores = cells.positives.reshape(NUM_IMAGES, -1), cells.scores.reshape(NUM_IMAGES, -1)
    columns = [change(labels[:, c], scores[:, c]) for c in range(labels.shape[1])]
    return replace(cells, positives=np.stack(columns, axis=1).ravel())


def better(cells: Cells) -> Cells:
    """Scores of a model that never was."""
    return rescored(cells, lambda scores: np.clip(scores + 0.15 * cells.positives, 0, 1))


def with_tables_of(f: Forgery, own: Name, other: Name, *, cells: bool = False) -> None:
    mine, theirs = f.made[own], f.made[other]
    mine.per_class, mine.replicates = theirs.per_class, theirs.replicates
    mine.record["metrics"] = copy.deepcopy(theirs.record["metrics"])
    if cells:
        mine.cells = theirs.cells


def evaluated(f: Forgery, name: Name, cells: Cells, *, brings: bool = True) -> None:
    f.place.mkdir(parents=True, exist_ok=True)
    f.made[name].evaluate(cells, f.place)
    if brings:
        f.made[name].cells = cells


def noisy(f: Forgery, name: Name, other: Name, noise: float) -> None:
    drawn = f.rng.normal(0, noise, len(f.own.cells.scores))
    evaluated(f, name, rescored(f.made[other].cells, lambda scores: np.clip(scores + drawn, 0, 1)))


def redrawn(change: Callable[[Forgery, str, np.ndarray, float], np.ndarray]) -> Callable[[Forgery], None]:
    return lambda f: f.own.redraw(lambda name, drawn, value: change(f, name, drawn, value))


def shuffled_alike(f: Forgery) -> None:
    order = f.rng.permutation(1000)
    for seed in SEEDS:
        f.made[0, seed].redraw(lambda name, drawn, value: drawn[order])


def put(path: str, value: Any, *names: Name) -> Callable[[Forgery], None]:
    def change(f: Forgery) -> None:
        for name in names or ((0, 0),):
            content: Any = f.made[name].record
            *parents, last = path.split("/")
            for parent in parents:
                content = content[parent]
            content[last] = value(content[last]) if callable(value) else value

    return change


def every_seed(path: str, value: Any) -> Callable[[Forgery], None]:
    return put(path, value, *((0, seed) for seed in SEEDS))


def both(*changes: Callable[[Forgery], None]) -> Callable[[Forgery], None]:
    def change(f: Forgery) -> None:
        for one in changes:
            one(f)

    return change


def dated(at: str) -> Callable[[Forgery], None]:
    return lambda f: setattr(f, "at", at)


def tables_of(own: Name, other: Name) -> Callable[[Forgery], None]:
    return lambda f: with_tables_of(f, own, other)


def one_seed_thrice(f: Forgery) -> None:
    for seed in SEEDS[1:]:
        with_tables_of(f, (0, seed), (0, 0), cells=True)


def thrice_with_noise(noise: float) -> Callable[[Forgery], None]:
    def change(f: Forgery) -> None:
        for seed in SEEDS[1:]:
            noisy(f, (0, seed), (0, 0), noise)

    return change


def rivals_rows(f: Forgery) -> None:
    for seed in SEEDS:
        with_tables_of(f, (0, seed), (3, seed), cells=True)


def rivals_replicates(f: Forgery) -> None:
    theirs = parse_replicates(f.made[3, 0].replicates)
    f.own.redraw(lambda name, drawn, value: theirs[name])


def exchanged(number: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Labels of the first images, each as another of them has it: counts stay."""
    return lambda own, scores: np.concatenate([np.roll(own[:number], 2), own[number:]])


def dropped_images(f: Forgery) -> None:
    keep = f.own.cells.rows < NUM_IMAGES - 20
    columns = {
        name: getattr(f.own.cells, name)[keep] for name in ("rows", "class_index", "scores", "positives", "in_top")
    }
    evaluated(f, (0, 0), Cells(**{**columns, "num_images": NUM_IMAGES - 20, "num_classes": len(CLASSES)}))  # type: ignore[arg-type]


def event(kind: str, name: Name, **more: str) -> Callable[[Forgery], None]:
    return lambda f: f.events.append({"event": kind, "key": name, "at": f.at, **more})


def new_version(f: Forgery) -> None:
    f.board["version"] += 1
    f.left_out |= {(3, seed) for seed in SEEDS}


def many_trials(f: Forgery) -> None:
    f.board |= {"version": 2, "max_trials": 100_000}
    spec = f.own.record["spec"]
    rate = spec["plan"]["lr"]
    spec["tuned_by"] = "0" * 16
    f.own.record |= {
        "configuration": "tuned",
        "tuning": {
            "study": "0" * 16,
            "regime": spec["regime"],
            "num_trials": 90_000,
            "space": {"lr": SearchedRange(low=1e-4, high=1.0, log=True).model_dump(mode="json")},
            "sampler": "random",
            "pruner": "none",
            "seed": 0,
            "labels": spec["protocol"]["validation_labels"],
            "chosen": {"lr": rate},
            "default": {"lr": rate},
            "value": 50.0,
            "default_value": 50.0,
        },
    }


def narrower_group(f: Forgery) -> None:
    group = f.own.record["metrics"]["test"]["groups"]["rare"]["map_c"]
    estimate = summary.image_estimate(Estimate.model_validate(group))
    low, high = replace(estimate, image_variance=estimate.image_variance / 4).interval
    group |= {"low": round(low, 6), "high": round(high, 6)}


FIGURE = "metrics/test/"
COPY, SPREAD, PLACE = "expected other ones for another seed or method", "of a spread", "standard deviations off"
ORDER, NOT_DEFAULT = "correlated to at most", "configuration is 'default'; expected 'custom'"
FUTURE = "expected a time that has passed"
BY_FILES: dict[str, tuple[str, Callable[[Forgery], None]]] = {
    "tables of another method": (COPY, lambda f: with_tables_of(f, (0, 0), (3, 0))),
    "tables and cells of another method, one seed": (COPY, lambda f: with_tables_of(f, (0, 0), (3, 0), cells=True)),
    "tables of another method, every seed": (COPY, both(*(tables_of((0, seed), (3, seed)) for seed in SEEDS))),
    "tables of another method with a little noise": (COPY, lambda f: noisy(f, (0, 0), (3, 0), 1e-7)),
    "replicates of another method": (COPY, rivals_replicates),
    "one good seed three times": (COPY, one_seed_thrice),
    "one good seed three times, with a little noise": (COPY, thrice_with_noise(1e-7)),
    "another seed's tables": (COPY, lambda f: with_tables_of(f, (0, 0), (0, 1))),
    "replicates shrunk to 5 %": (SPREAD, redrawn(lambda f, name, drawn, value: value + 0.05 * (drawn - value))),
    "replicates shrunk to 15 %": (SPREAD, redrawn(lambda f, name, drawn, value: value + 0.15 * (drawn - value))),
    "replicates of no spread": (SPREAD, redrawn(lambda f, name, drawn, value: np.full(1000, value))),
    "replicates 5 times as wide": (SPREAD, redrawn(lambda f, name, drawn, value: value + 5 * (drawn - value))),
    "replicates moved": (PLACE, redrawn(lambda f, name, drawn, value: drawn + 4 * drawn.std())),
    "replicates moved down": (PLACE, redrawn(lambda f, name, drawn, value: drawn - 4 * drawn.std())),
    "replicates shuffled": (ORDER, redrawn(lambda f, name, drawn, value: f.rng.permutation(drawn))),
    "replicates of mAP(C) shuffled": (
        ORDER,
        redrawn(lambda f, n, drawn, value: f.rng.permutation(drawn) if n == "map_c" else drawn),
    ),
    "replicates of mAP(O) shuffled": (
        ORDER,
        redrawn(lambda f, n, drawn, value: f.rng.permutation(drawn) if n == "map_o" else drawn),
    ),
    "replicates of all seeds shuffled alike": (ORDER, shuffled_alike),
    "replicates turned round": (ORDER, redrawn(lambda f, name, drawn, value: 2 * drawn.mean() - drawn)),
    "replicates sorted": (ORDER, redrawn(lambda f, name, drawn, value: np.sort(drawn))),
    "replicates of a normal law": (
        ORDER,
        redrawn(lambda f, name, drawn, value: f.rng.normal(drawn.mean(), drawn.std(), 1000)),
    ),
    "chosen values as default": (NOT_DEFAULT, every_seed("spec/plan/lr", 0.02)),
    "more epochs as default": (
        NOT_DEFAULT,
        both(every_seed("spec/plan/epochs", 20), every_seed("selection/epoch", 20)),
    ),
    "another width as default": (NOT_DEFAULT, every_seed("spec/model/head_width", 1024)),
    "a parameter that the method has not": (
        "spec.method.params.gamma is 2.0",
        put("spec/method/params", {"gamma": 2.0}),
    ),
    "the paper of another method": ("paper is", put("paper", "Somebody else, 2020")),
    "the name of another method": ("title is", put("title", "Best of all")),
    "a ledger of 2099": (FUTURE, dated("2099-01-01T00:00:00Z")),
    "a run of 2099": (FUTURE, both(put("finished_at", "2099-01-01T00:00:00+00:00"), dated("2099-01-02T00:00:00Z"))),
    "a run that ended after it was added": ("when it was added", put("finished_at", f"{NOW:%Y-%m-%dT%H:%M:%S+00:00}")),
    "schema 1": ("schema_version", put("schema_version", 1)),
    "fewer test images": ("metrics.test.num_images", dropped_images),
    "labels turned round": (
        "a].positives",
        lambda f: evaluated(f, (0, 0), relabelled(f.own.cells, lambda own, scores: ~own)),
    ),
    "a seed that its row has": (
        "a seed once in a row",
        both(put("spec/seed", 1), put("spec/stages", {"prior": "0" * 16})),
    ),
    "labels of all images exchanged": (
        ORDER,
        lambda f: evaluated(f, (0, 0), relabelled(f.own.cells, exchanged(NUM_IMAGES))),
    ),
    "withdrawn without a word why": ("without a word why", event("withdrawn", (3, 0))),
    "100,000 trials by a new version": ("tuning.num_trials is 90000; expected at most 64", many_trials),
}
BY_CELLS: dict[str, Callable[[Forgery], None]] = {
    "all figures moved together": lambda f: evaluated(f, (0, 0), better(f.own.cells), brings=False),
    "labels of its cells permuted, AP 100": lambda f: evaluated(
        f, (0, 0), relabelled(f.own.cells, lambda own, scores: np.sort(own)[np.argsort(np.argsort(scores))])
    ),
    "labels of some images exchanged": lambda f: evaluated(f, (0, 0), relabelled(f.own.cells, exchanged(10))),
    "scores outside 0 and 1": lambda f: evaluated(f, (0, 0), rescored(f.own.cells, lambda scores: 4 * scores - 2)),
    "replicates shrunk to 60 %": redrawn(lambda f, name, drawn, value: value + 0.6 * (drawn - value)),
    "replicates moved a little": redrawn(lambda f, name, drawn, value: drawn + 0.5),
    "some replicates exchanged": redrawn(lambda f, name, drawn, value: np.concatenate([drawn[99::-1], drawn[100:]])),
    "calibration error": put(f"{FIGURE}ece", lambda value: value / 2),
    "AUROC": put(f"{FIGURE}auroc", lambda value: value + 1),
    "F1 of the top 3": put(f"{FIGURE}f1_top3/cf1", lambda value: value + 1),
    "ranking loss": put(f"{FIGURE}ranking_loss", lambda value: value / 2),
    "precision at 1": put(f"{FIGURE}precision_at_k/1", lambda value: value - 0.1),
    "micro AP": put(f"{FIGURE}micro_ap", lambda value: value + 1),
    "a narrower interval of a group": narrower_group,
}
REMAINS: dict[str, Callable[[Forgery], None]] = {
    "scores made up as a whole": lambda f: evaluated(f, (0, 0), better(f.own.cells)),
    "one good seed three times, with much noise": thrice_with_noise(0.05),
    "a rival's model as a row of one's own": rivals_rows,  # which the board then shows as one row with it
    "another seed under this one's number": lambda f: noisy(f, (0, 0), (0, 1), 0.05),
    "half the cost": put("cost/seconds/total", lambda value: value / 2),
    "another machine": put("environment/device", "an abacus"),
}
CLAIMS: dict[str, Callable[[Forgery], None]] = {
    "a verified line without evidence": event("verified", (0, 0), by="somebody"),
    "a rival's withdrawal": event("withdrawn", (3, 0), why="it is too good"),
    "a new version without a rival's row": new_version,
}


def test_the_genuine_board_passes(forgery: Forgery, genuine: dict[str, Any]) -> None:
    forgery.write()
    assert forgery.verify(genuine["installed"], cells=False) == forgery.verify(genuine["installed"], cells=True) == []


@pytest.mark.parametrize("name", BY_FILES)
def test_refused_by_its_files(forgery: Forgery, genuine: dict[str, Any], name: str) -> None:
    words, change = BY_FILES[name]
    change(forgery)
    forgery.write()
    problems = forgery.verify(genuine["installed"], cells=False)
    assert any(words in problem for problem in problems), problems
    assert all(problem.isprintable() for problem in problems)


@pytest.mark.parametrize("name", BY_CELLS)
def test_refused_by_its_cells_alone(forgery: Forgery, genuine: dict[str, Any], name: str) -> None:
    BY_CELLS[name](forgery)
    forgery.write()
    assert forgery.verify(genuine["installed"], cells=False) == []
    problems = forgery.verify(genuine["installed"], cells=True)
    assert problems and all(f"record {forgery.keys[0, 0]}: " in problem for problem in problems)


@pytest.mark.parametrize("name", REMAINS)
def test_what_remains_possible(forgery: Forgery, genuine: dict[str, Any], name: str) -> None:
    """Where one of these is refused one day, docs/leaderboards.md has to say so."""
    REMAINS[name](forgery)
    forgery.write()
    assert forgery.verify(genuine["installed"], cells=False) == forgery.verify(genuine["installed"], cells=True) == []


@pytest.mark.parametrize("name", CLAIMS)
def test_refused_where_maintainers_sign(forgery: Forgery, genuine: dict[str, Any], name: str) -> None:
    """Where nobody is named who may, they stand as claims."""
    CLAIMS[name](forgery)
    forgery.write()
    assert forgery.verify(genuine["installed"], cells=True) == []
    (forgery.place / "boards" / SIGNERS).write_text("maintainer@example.org ssh-ed25519 AAAA\n")
    (problem,) = forgery.verify(genuine["installed"], cells=False)
    assert f"{SIGNATURE} is missing" in problem


def test_a_commit_that_the_repository_has_not(forgery: Forgery, genuine: dict[str, Any]) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
        command = ["git", *identity, "-C", str(forgery.place), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (forgery.place / "plbench").mkdir(parents=True)
    (forgery.place / "plbench" / "__init__.py").write_text("")
    git("init", "-q", ".")
    git("add", "-A")
    git("commit", "-q", "-m", "plbench")
    commit = git("rev-parse", "HEAD")
    for name in forgery.genuine:
        forgery.made[name].record["environment"]["git_commit"] = commit
    forgery.own.record["environment"]["git_commit"] = "1" * 40
    forgery.write()
    (problem,) = forgery.verify(genuine["installed"], cells=False)
    assert f"record {forgery.keys[0, 0]}: environment.git_commit is {'1' * 40}; expected a commit" in problem
    git("rm", "-q", "--cached", "plbench/__init__.py")
    git("commit", "-q", "-m", "a repository of something else")
    notes: list[str] = []
    assert verify_board(BoardFolder(forgery.place / "boards" / "tiny-fpc8"), note=notes.append) == []
    assert any("no repository of plbench" in note for note in notes)

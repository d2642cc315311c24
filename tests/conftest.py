"""What many test files need: a tiny dataset, a workspace in `tmp_path`, and a task for a method.

Everything comes as a fixture, so that no test imports this file. Subclass the class that `tiny_dataset` gives where a
test needs a variant, and hand the subclass to `make_workspace`.
"""

import collections
import copy
import functools
import io
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch loads: pytest-xdist fills the cores already

import numpy as np
import pytest
import torch
import typer.main
from PIL import Image

from plbench.api import (
    BenchmarkProtocol,
    Dataset,
    ImageFiles,
    LabelledSplit,
    ModelSpec,
    PartialLabels,
    Plan,
    ProgressReport,
    Recipe,
    Task,
)
from plbench.board import packs
from plbench.metrics import bootstrap
from plbench.progress import Reporter
from plbench.runs import environment, summary
from plbench.runs import registry as registries
from plbench.runs.registry import Registry, Source
from plbench.runs.store import Store
from plbench.runs.workspace import Workspace
from plbench.testing import pair

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it runs in the background: tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)

# what tests start by a fork server starts with what takes seconds to import
multiprocessing.set_forkserver_preload(
    ["plbench.runs.run", "plbench.models.torchvision_ops", "timm", "plbench.testing.pair", "pytest", "typer.main"]
)
pair.CONTEXT = multiprocessing.get_context("forkserver")
os.fsync = lambda descriptor: None  # what tests write need not outlive a power cut


def ask_once(owner: Any, name: str, keep: int = 1) -> None:
    """Makes a process of tests, of thousands of runs and command lines, ask once what does not change meanwhile."""
    ask = functools.lru_cache(keep)(getattr(owner, name))
    setattr(owner, name, functools.wraps(ask)(lambda *values, **named: copy.copy(ask(*values, **named))))


for question in ("git_state", "package_versions", "source_sha256"):
    ask_once(environment, question)
ask_once(bootstrap, "resample_weights", keep=32)
ask_once(packs, "compress", keep=64)  # at its best, as boards pack, it takes 0.1 s for whatever is small
installed = functools.cache(lambda path: entry_points())  # by sys.path, which tests of plugins prolong
registries.entry_points = lambda: installed(tuple(sys.path))


def of_app(app: typer.Typer) -> tuple[Any, ...]:
    """The functions behind an app's commands, those of its groups nested: each command line has an app of its own."""
    groups = [of_app(group.typer_instance) for group in app.registered_groups if group.typer_instance is not None]
    return (*(command.callback for command in app.registered_commands), *groups)


built: dict[tuple[Any, ...], Any] = {}
build = typer.main.get_command
typer.main.get_command = lambda app: built[key] if (key := of_app(app)) in built else built.setdefault(key, build(app))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts long files first: started last, one of them would leave one of two processes with nothing to do."""
    files = collections.defaultdict(list)
    for item in items:
        files[item.path].append(item)
    of_length = sorted(files.values(), key=lambda tests: (any(map(is_slow, tests)), len(tests)), reverse=True)
    items[:] = [item for tests in of_length for item in tests]


def is_slow(item: pytest.Item) -> bool:
    return item.get_closest_marker("slow") is not None


IMAGE_PIXELS = 16
SPLITS = {"train": 48, "test": 24}
CLASSES = ("a", "b", "c", "d", "e", "f")


def block_labels(split: str) -> np.ndarray:
    """[N, 6] of +1 and -1: frequent classes first."""
    draws = np.random.default_rng(len(split)).random((SPLITS[split], len(CLASSES)))
    return np.where(draws < np.linspace(0.6, 0.2, len(CLASSES)), 1, -1).astype(np.int8)


@functools.cache
def drawn(split: str) -> list[bytes]:
    """The PNG files of a split, for each test to write into a folder of its own."""
    files = []
    for row, labels in enumerate(block_labels(split)):
        pixels = np.random.default_rng(row).integers(0, 80, (IMAGE_PIXELS, IMAGE_PIXELS, 3), np.uint8)
        for place in np.flatnonzero(labels > 0):
            top, left = 8 * (place // 3), 5 * (place % 3)
            pixels[top : top + 8, left : left + 5] += np.uint8(150)
        files.append(io.BytesIO())
        Image.fromarray(pixels).save(files[-1], "png")
    return [file.getvalue() for file in files]


class TinyDataset(Dataset):
    """Complete labels of 48 train and 24 test images of 16 px in PNG files: class c is a bright block at place c."""

    name = "tiny"
    title = "Tiny blocks"
    licence = "CC0"
    protocols = (
        BenchmarkProtocol(name="tiny-fpc8/v1", dataset="tiny", simulation="fpc=8", validation_share=0.3),
        BenchmarkProtocol(name="tiny-rpa/v1", dataset="tiny", simulation="rpa=0.5", validation_share=0.3),
    )
    recipes = (
        Recipe(
            name="tiny",
            title="random tiny ResNet, probe",
            regime="probe",
            model=ModelSpec(backbone="test_resnet", weights="random", image_size=32, head_dropout=0.1),
            plans={
                "probe": Plan(epochs=4, batch_size=16, lr=1e-2, ema_horizon=0.5),
                "finetune": Plan(
                    epochs=2, batch_size=16, lr=1e-3, ema_horizon=0.5, randaugment="rand-m9-mstd0.5", cutout=0.5
                ),
            },
            sources={"all": "ours"},
        ),
    )
    needs_files = False

    def fetch_hint(self) -> str:
        return "the tests draw it"

    def prepare(self, report: ProgressReport) -> None:
        for split, number in SPLITS.items():
            folder = self.root / split
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / f"{number - 1}.png").exists():
                continue
            for row, content in enumerate(drawn(split)):
                beside = folder / f".{row}.{os.getpid()}"  # whole once it has its name: processes that draw are killed
                beside.write_bytes(content)
                beside.replace(folder / f"{row}.png")
            report(number, number)

    def truth(self, split: str) -> np.ndarray:
        """Labels [N, C]; a subclass may say others of the same images."""
        return block_labels(split)

    def fingerprint(self) -> str:
        return self.split("train").labels.fingerprint()

    def split(self, name: str) -> LabelledSplit:
        names = tuple(f"{name}-{row}" for row in range(SPLITS[name]))
        paths = tuple(f"{name}/{row}.png" for row in range(SPLITS[name]))
        labels = PartialLabels.from_dense(self.truth(name), CLASSES)
        return LabelledSplit(ImageFiles(self.root, paths, names), labels)

    def groups(self) -> dict[str, tuple[str, ...]]:
        return {"frequent": CLASSES[:3], "rare": CLASSES[3:]}


@pytest.fixture
def tiny_dataset() -> type[TinyDataset]:
    """The dataset class, to subclass."""
    return TinyDataset


@pytest.fixture
def tiny_images(tmp_path: Path) -> ImageFiles:
    """The 48 train images of the tiny dataset, drawn into `tmp_path`."""
    dataset = TinyDataset(tmp_path / "images")
    dataset.prepare(lambda done, total: None)
    return dataset.split("train").images


class Listening(Reporter):
    """Keeps the lines that it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def listening() -> Reporter:
    """A reporter for a workspace whose `lines` a test reads."""
    return Listening()


@pytest.fixture
def make_workspace(tmp_path: Path) -> Callable[..., Workspace]:
    """Builds a workspace with stores of its own below `tmp_path`: `make_workspace(*plugin_classes, name="store")`.

    Its registry holds what is installed, the tiny dataset, and the classes given.
    """

    def make(*plugins: type[Any], name: str = "store") -> Workspace:
        registry = Registry.discover()
        for plugin in (TinyDataset, *plugins):
            kind = "dataset" if issubclass(plugin, Dataset) else "method"
            registry.sources[kind][plugin.name] = [Source(plugin.name, "the tests", loaded=plugin)]
        store = Store(tmp_path / name / "runs", tmp_path / name / "cache")
        return Workspace(store, registry, Reporter(), torch.device("cpu"), workers=0)

    return make


@pytest.fixture
def make_task() -> Callable[..., Task]:
    """Builds what a method may know: `make_task(num_classes, artifacts={...}, seed=0)`."""

    def make(num_classes: int, artifacts: dict[str, torch.Tensor] | None = None, seed: int = 0) -> Task:
        names = tuple(f"class-{index}" for index in range(num_classes))
        return Task(
            num_classes=num_classes,
            class_ids=names,
            class_names=names,
            positives=np.full(num_classes, 8),
            negatives=np.full(num_classes, 24),
            num_train=64,
            epochs=2,
            steps_per_epoch=4,
            regime="probe",
            generator=torch.Generator().manual_seed(seed),
            artifacts=artifacts or {},
            expected_positives=2.0,
        )

    return make


@pytest.fixture
def quick_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records take no time: few bootstrap replicates, and no git process for each of them."""
    monkeypatch.setattr(summary, "NUM_REPLICATES", 20)
    monkeypatch.setattr(environment, "git_state", lambda: {"git_commit": None, "git_dirty": None})


@pytest.fixture
def in_a_process() -> Callable[[Callable[[], Any]], Any]:
    """Starts a function in a forked process, which ends with 0, or with 1 and a traceback; gives the process."""

    def start(work: Callable[[], Any]) -> Any:
        def run() -> None:
            try:
                work()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)

        process = multiprocessing.get_context("fork").Process(target=run)
        process.start()
        return process

    return start

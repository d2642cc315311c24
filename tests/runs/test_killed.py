"""Trainings killed without warning, again and again, end as the one that nobody disturbed."""

import functools
import importlib.util
import json
import multiprocessing
import multiprocessing.connection
import os
import random
import signal
import socket
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from plbench.api import Dataset
from plbench.errors import StoreError
from plbench.files import atomic
from plbench.progress import Reporter
from plbench.runs import environment, summary
from plbench.runs import run as runner
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.record import Record, read_record
from plbench.runs.registry import Registry, Source
from plbench.runs.store import CHECKPOINT, Store
from plbench.runs.workspace import Workspace
from plbench.training import checkpoint
from plbench.training.checkpoint import Checkpoints
from plbench.training.distributed import ALONE, joined
from plbench.training.step import Stepper

pytestmark = pytest.mark.slow

CONTEXT = multiprocessing.get_context("forkserver")
NUM_KILLS = 10


@functools.cache
def tiny_dataset() -> type[Dataset]:
    """The tests' dataset, in whatever process: pytest's own names for conftest files are not to be relied on there."""
    path = Path(__file__).parents[1] / "conftest.py"
    spec = importlib.util.spec_from_file_location("conftest_of_killed", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TinyDataset  # type: ignore[no-any-return]


def planned(folder: Path, world: Any, regime: str) -> tuple[ResolvedRun, Workspace]:
    """A run of a method that remembers cells, on augmented images or with dropout; every step is saved."""
    registry, dataset = Registry.discover(), tiny_dataset()
    registry.sources["dataset"][dataset.name] = [Source(dataset.name, "the tests", loaded=dataset)]
    places = Store(folder / "runs", folder / "cache")
    cpu = torch.device("cpu")
    workspace = Workspace(places, registry, Reporter(), cpu, workers=0, world=world, save_every=0.0)
    plan = {"epochs": 9 if regime == "finetune" else 12, "batch_size": 16}
    params = {"delta_percent": 2.0}
    return plan_run(Request("tiny", "ll-cp", params, regime=regime, plan=plan), workspace), workspace  # type: ignore[arg-type]


def train(folder: Path, regime: str, rank: int, size: int, port: int, kill: Any) -> None:
    """One process of a run.

    Args:
        kill: None, or (where, count): the process kills itself before its so manyth step, or before so many files reach
            the disk.
    """
    torch.set_num_threads(1)
    tiny_dataset()  # whose module changes `os.fsync`, which is a place to die at
    summary.NUM_REPLICATES = 20
    environment.git_state = lambda: {"git_commit": None, "git_dirty": None}
    if size > 1:
        names = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()}, GLOO_SOCKET_IFNAME="lo")
        os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    if kill is not None:
        where, count = kill
        dies_at(Stepper, "take", count) if where == "step" else dies_at(atomic.os, "fsync", count)
    with joined(torch.device("cpu")) as world:
        plan, workspace = planned(folder, world, regime)
        runner.run(plan, workspace)


def dies_at(owner: Any, name: str, count: int) -> None:
    """Makes the so manyth call of a function the end of this process."""
    function, calls = getattr(owner, name), iter(range(1, 1_000_000))

    def fatal(*arguments: Any, **options: Any) -> Any:
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    setattr(owner, name, fatal)


def started(folder: Path, regime: str, size: int, kill: Any, victim: int) -> list[BaseProcess]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    processes = [
        CONTEXT.Process(target=train, args=(folder, regime, rank, size, port, kill if rank == victim else None))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    return processes


def ended(processes: list[BaseProcess]) -> list[int | None]:
    """Waits for a process to end; if it did not end well, ends the others, as what launched them would."""
    multiprocessing.connection.wait([process.sentinel for process in processes], timeout=120)
    for process in processes:
        process.join(timeout=0.1)
    if any(process.exitcode for process in processes):
        for process in processes:
            process.kill()
    for process in processes:
        process.join(timeout=120)
    return [process.exitcode for process in processes]


def outcome(folder: Path, regime: str) -> tuple[Record, dict[str, Any], list[dict[str, Any]]]:
    """Record, weights and log of a run that is done."""
    plan, workspace = planned(folder, ALONE, regime)
    run = workspace.store.run_folder(plan.spec.key)
    log = [{**json.loads(line), "seconds": 0} for line in (run / "log.jsonl").read_text().splitlines()]
    return read_record(run), checkpoint.load(run / CHECKPOINT, plan.spec.sha256()), log


@pytest.mark.parametrize(("regime", "size"), [("finetune", 1), ("probe", 2)])
def test_what_is_killed_ten_times_ends_as_what_never_was(tmp_path: Path, regime: str, size: int) -> None:
    assert ended(started(tmp_path / "whole", regime, size, None, 0)) == [0] * size
    chance, kills, steps = random.Random(size), 0, []
    disturbed = tmp_path / "disturbed"
    while True:
        kill = (chance.choice(["step", "step", "save"]), chance.randint(1, 4)) if kills < NUM_KILLS else None
        victim = 0 if kill is not None and kill[0] == "save" else chance.randrange(size)  # only the first one saves
        codes = ended(started(disturbed, regime, size, kill, victim))
        steps += sorted(path.stem for path in disturbed.glob("runs/*/checkpoints/*.json"))[-1:]
        if not any(codes):
            break
        assert -signal.SIGKILL in codes
        kills += 1
    assert kills >= NUM_KILLS
    assert len(set(steps)) >= 5  # it was killed here and there, and not always at the start
    (one, weights, log), (other, expected, undisturbed) = (
        outcome(tmp_path / name, regime) for name in ("disturbed", "whole")
    )
    for kind in ("model", "ema"):
        assert all(torch.equal(value, expected[kind][name]) for name, value in weights[kind].items())
    assert log == undisturbed
    assert one.metrics == other.metrics and one.selection == other.selection and one.data == other.data
    assert one.files["cells.npz"] == other.files["cells.npz"]
    assert one.training == other.training and one.hidden_truth == other.hidden_truth


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on_inside_an_epoch(tmp_path: Path, before: int, after: int) -> None:
    ended(started(tmp_path / "whole", "probe", 1, None, 0))
    ended(started(tmp_path / "moved", "probe", before, ("step", 8), 0))
    assert list(tmp_path.glob("moved/runs/*/checkpoints/step-*7.json"))  # of 3 steps in an epoch
    assert ended(started(tmp_path / "moved", "probe", after, None, 0)) == [0] * after
    one, other = (outcome(tmp_path / name, "probe")[1]["model"] for name in ("whole", "moved"))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5)  # sums over processes round otherwise


@pytest.mark.parametrize("harm", ["truncated", "edited", "gone"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, harm: str) -> None:
    ended(started(tmp_path, "probe", 1, ("step", 6), 0))
    plan, workspace = planned(tmp_path, ALONE, "probe")
    checkpoints = Checkpoints(workspace.store.run_folder(plan.spec.key), plan.spec)
    found = checkpoints.newest(print)
    assert found is not None and found.step == 5
    content = bytearray(found.path.read_bytes())
    if harm == "truncated":
        found.path.write_bytes(content[: len(content) // 2])
    elif harm == "edited":
        content[len(content) // 2] ^= 1
        found.path.write_bytes(content)
    else:
        found.path.unlink()
    said: list[str] = []
    older = checkpoints.newest(said.append)
    assert older is not None and older.step == 4
    assert said == [f"Checkpoint {found.path} is damaged; continuing from the one before, at step 4"]
    older.path.write_bytes(b"half")
    with pytest.raises(StoreError, match=r"truncated or changed since it was written.*`force=True`") as caught:
        checkpoints.newest(said.append)
    assert "\n" not in str(caught.value)


def test_one_of_another_run_is_refused_with_what_differs(tmp_path: Path) -> None:
    ended(started(tmp_path, "probe", 1, ("step", 3), 0))
    plan, workspace = planned(tmp_path, ALONE, "probe")
    other = plan.spec.model_copy(update={"seed": 3, "plan": plan.spec.plan.model_copy(update={"lr": 0.5})})
    with pytest.raises(StoreError, match=r"another run: plan.lr is 0.01, here 0.5; seed is 0, here 3; delete"):
        Checkpoints(workspace.store.run_folder(plan.spec.key), other).newest(print)


def test_they_can_be_made_by_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    save = Checkpoints.save

    def noting(self: Checkpoints, state: dict[str, Any], size: int) -> Path:
        saved.append(state["step"])
        return save(self, state, size)

    monkeypatch.setattr(Checkpoints, "save", noting)
    monkeypatch.setattr(summary, "NUM_REPLICATES", 20)
    plan, workspace = planned(tmp_path, ALONE, "probe")
    runner.run(plan, replace(workspace, save_every=1000.0, save_epochs=5))
    assert saved == [15, 30]


def test_no_more_than_two_are_kept(tmp_path: Path) -> None:
    ended(started(tmp_path, "probe", 1, ("step", 9), 0))
    names = sorted(path.name for path in tmp_path.glob("runs/*/checkpoints/*"))
    assert names == [f"step-0000000{step}.{kind}" for step in (7, 8) for kind in ("json", "pt")]
    ended(started(tmp_path, "probe", 1, None, 0))
    assert not list(tmp_path.glob("runs/*/checkpoints"))

"""A sweep on a Ray cluster of two nodes: nodes die, trainings fail, a person stops it, and nothing is made twice."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plbench.errors import PlbenchError, TrainingError
from plbench.progress import Reporter, Tally
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.plan.resolved import ResolvedRun, in_order
from plbench.runs.record import Record
from plbench.runs.registry import Registry
from plbench.runs.schedule import standings
from plbench.runs.store import RECORD
from plbench.runs.workspace import Workspace
from plbench.sweeps import task as tasks
from plbench.sweeps.ray import driver
from plbench.sweeps.ray.cluster import Cluster, check_room, slots_of
from plbench.sweeps.task import in_bundles

os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # as `joined` sets it: 127.0.0.1 stays what it is
pytest.importorskip("ray")
from ray._private import ray_constants
from ray.cluster_utils import Cluster as LocalCluster

pytestmark = pytest.mark.slow
MAX_SECONDS = 90.0

SLOW = '''
"""Takes its time, and writes down where each of its trainings began; there it stays if it is told to."""

import time
from pathlib import Path

import torch

from plbench.api import Loss, Method, MethodParams, Stage


class Slow(Method):
    name, title = "slow", "Slow"

    class Params(MethodParams):
        seconds: float = 0.1
        tag: int = 0
        breaks: bool = False

    def epoch_start(self, view, progress):
        if progress.epoch == 0:
            import ray

            node = ray.get_runtime_context().get_node_id()
            with (Path(__file__).parent / "begun.txt").open("a") as file:
                file.write(f"{self.name} {self.params.tag} {node}\\n")
            while Path(__file__).with_name(f"hold-{node}").exists():
                time.sleep(0.05)

    def loss(self, output, batch, progress):
        time.sleep(self.params.seconds)
        known = (batch.labels != 0).to(output)
        terms = torch.nn.functional.softplus(-output * batch.labels) * known
        return Loss.of_images(terms.sum(dim=-1) * (float("nan") if self.params.breaks else 1.0))


class Second(Slow):
    """Needs a run of the other one first."""

    name, title = "second", "Second"

    @classmethod
    def stages(cls, params, task):
        values = {"seconds": params.seconds, "tag": 100, "breaks": params.breaks}
        return (Stage("first", "slow", lambda view: torch.zeros(1), values),)
'''


class Told(Reporter):
    """Keeps what a person would see."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.views: list[tuple[int, int, str]] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    @contextlib.contextmanager
    def tally(self, title: str) -> Iterator[Tally]:
        yield lambda done, total, words: self.views.append((done, total, words))


class Versions(threading.Thread):
    """Watches records while a sweep goes on: each version of a file that was ever there."""

    def __init__(self, runs: Path) -> None:
        super().__init__(daemon=True)
        self.seen: set[tuple[str, int, int]] = set()
        self._runs, self._ended = runs, threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.01):
            self.look()

    def look(self) -> None:
        for path in self._runs.glob(f"*/{RECORD}"):
            with contextlib.suppress(FileNotFoundError):
                found = path.stat()
                self.seen.add((path.parent.name, found.st_ino, found.st_mtime_ns))

    def end(self) -> Counter[str]:
        """How many records each run ever had."""
        self._ended.set()
        self.join()
        self.look()
        return Counter(key for key, _, _ in self.seen)


@pytest.fixture(scope="module")
def local_cluster() -> Iterator[LocalCluster]:
    """Two nodes of one core on this machine, which nobody else can reach."""
    ray_constants.ENABLE_RAY_CLUSTER = False  # where another test imported Ray before
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    settings = {"worker_niceness": 0}  # workers that give way to all others starve on a busy machine
    cluster = LocalCluster(initialize_head=True, head_node_args={**node_of(), "_system_config": settings})
    cluster.add_node(**node_of())
    yield cluster
    cluster.shutdown()


def node_of() -> dict[str, Any]:
    return {"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_dashboard": False}


@pytest.fixture
def place(tmp_path: Path, make_workspace: Callable[..., Workspace]) -> tuple[Workspace, Told, tuple[Path, Path]]:
    """A workspace whose plugins other processes can load, too; the tiny dataset comes from the tests' own file."""
    plugin = tmp_path / "slow.py"
    plugin.write_text(SLOW)
    plugins = (Path(__file__).parents[2] / "conftest.py", plugin)
    told = Told()
    workspace = replace(make_workspace(), registry=Registry.discover(plugins), reporter=told)
    return workspace, told, plugins


def plan(workspace: Workspace, method: str, tag: int, **params: Any) -> ResolvedRun:
    return plan_run(Request("tiny", method, method_params={"tag": tag, **params}), workspace)


def begun(tmp_path: Path) -> list[list[str]]:
    """Method, tag and node of each training that began."""
    path = tmp_path / "begun.txt"
    return [line.split() for line in path.read_text().splitlines()] if path.is_file() else []


def once(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + MAX_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.05)


def test_what_fails_is_said_and_what_needs_it_fails_with_it(
    local_cluster: LocalCluster, place: tuple[Workspace, Told, tuple[Path, Path]], tmp_path: Path
) -> None:
    workspace, told, plugins = place
    good = [plan(workspace, "slow", 1, seconds=0.0), plan(workspace, "second", 2, seconds=0.0)]
    bad = [plan(workspace, "second", tag, seconds=0.0, breaks=True) for tag in (3, 4)]
    results = driver.run_all([*good, *bad], workspace, Cluster(local_cluster.address), plugins)
    assert [type(result) for result in results] == [Record, Record, TrainingError, TrainingError]
    assert results[0] == good[0].finished(workspace.store)
    assert "a run that it depends on failed: " in str(results[2])
    assert "loss" in str(results[2])
    assert Counter((name, tag) for name, tag, _ in begun(tmp_path)) == {
        **{("slow", "1"): 1, ("slow", "100"): 2, ("second", "2"): 1}  # a stage that works, and one that does not
    }
    assert sum(line.startswith("Failed: ") for line in told.lines) == 3
    assert told.views[-1] == (6, 6, "3 failed, 0 running")
    states = standings(good + bad, workspace.store)
    assert [state.state for state in states] == ["done", "done", "missing", "missing"]
    driver.run_all(good, workspace, Cluster("nobody asks it"), plugins)  # all done: no cluster is joined


def test_stopping_saves_and_the_same_call_goes_on(
    local_cluster: LocalCluster, place: tuple[Workspace, Told, tuple[Path, Path]], tmp_path: Path
) -> None:
    workspace, told, plugins = place
    plans = [plan(workspace, "slow", tag, seconds=0.2) for tag in range(3)]

    def stop() -> None:
        once(lambda: len(begun(tmp_path)) > 0)
        os.kill(os.getpid(), signal.SIGINT)

    stopper = threading.Thread(target=stop)
    stopper.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        driver.run_all(plans, workspace, Cluster(local_cluster.address), plugins)
    stopper.join()
    assert time.monotonic() - start < MAX_SECONDS
    assert any(line.startswith("Stopping: ") for line in told.lines)
    assert workspace.store.held(plan.spec.key for plan in plans) == set()
    made = len(workspace.store.keys())
    assert made < 3
    results = driver.run_all(plans, workspace, Cluster(local_cluster.address), plugins)
    assert all(isinstance(result, Record) for result in results)
    assert told.views[-1][:2] == (3 - made, 3 - made)


def test_a_node_dies_in_the_middle_and_all_runs_end_done_and_none_is_made_twice(
    local_cluster: LocalCluster, place: tuple[Workspace, Told, tuple[Path, Path]], tmp_path: Path
) -> None:
    workspace, told, plugins = place
    plans = [plan(workspace, "slow", tag) for tag in range(6)] + [plan(workspace, "second", tag) for tag in (6, 7)]
    every = in_order(plans)
    assert len(every) == 9
    versions = Versions(workspace.store.runs)
    victim = next(iter(local_cluster.worker_nodes))
    killed: list[set[str]] = []

    def on_victim() -> set[str]:
        return {tag for _, tag, node in begun(tmp_path) if node == victim.node_id}

    def kill() -> None:
        once(lambda: len(workspace.store.keys()) >= 2)
        (tmp_path / f"hold-{victim.node_id}").touch()
        before = len(on_victim())
        once(lambda: len(on_victim()) > before)  # a training that has just begun there, and does not end
        killed.append(on_victim())
        local_cluster.remove_node(victim, allow_graceful=False)

    killer = threading.Thread(target=kill)
    versions.start()
    killer.start()
    results = driver.run_all(plans, workspace, Cluster(local_cluster.address), plugins)
    killer.join()

    assert all(isinstance(result, Record) and result.status == "done" for result in results)
    assert versions.end() == dict.fromkeys(every, 1)  # one record each, never written again
    starts = Counter(tag for _, tag, _ in begun(tmp_path))
    assert set(starts) == {*map(str, range(8)), "100"}
    again = {tag for tag, number in starts.items() if number > 1}
    assert again <= killed[0] and len(again) == 1  # only what was under way on it: it has one core
    assert max(starts.values()) == 2
    assert "A task was lost with its worker or node; it is tried again" in told.lines
    assert told.views[-1] == (9, 9, "0 running")
    assert max(int(words.split(" running")[0].split()[-1]) for _, _, words in told.views) <= 2


def test_runs_that_train_together_are_one_task_and_stages_come_first(
    place: tuple[Workspace, Told, tuple[Path, Path]],
) -> None:
    workspace, _, _ = place
    alike = [plan_run(Request("tiny", "selective", method_params={"top_k": top_k}), workspace) for top_k in range(1, 6)]
    others = [plan(workspace, "slow", tag) for tag in range(2)]
    missing = list(in_order([*alike, *others]).values())
    assert len(missing) == 8  # the five share one prior
    bundles = in_bundles(missing, 2)
    assert [len(bundle) for bundle in bundles] == [1, 1, 1, 3, 2]
    seen: set[str] = set()
    for bundle in bundles:
        assert all(first.spec.key in seen for plan in bundle for first in plan.prerequisites)
        seen |= {plan.spec.key for plan in bundle}
    assert len(seen) == 8


@pytest.mark.parametrize(
    ("cpus", "gpus", "slots"), [(1, 0, 12), (1, 0.5, 6), (2, 0.5, 3), (4, 1, 1), (1, 2, 1), (16, 0, 0), (3, 0, 3)]
)
def test_a_share_is_of_one_node(cpus: float, gpus: float, slots: int) -> None:
    resources = [{"CPU": 4.0, "GPU": 2.0}, {"CPU": 2.0, "GPU": 1.0}, {"CPU": 6.0}, {"CPU": 64.0, "GPU": 8.0}]
    nodes = [{"Alive": number < 3, "Resources": one} for number, one in enumerate(resources)]
    assert slots_of(SimpleNamespace(nodes=lambda: nodes), {"CPU": cpus, "GPU": gpus}) == slots


def test_a_run_that_no_node_has_room_for_is_refused(
    place: tuple[Workspace, Told, tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, told, _ = place
    with pytest.raises(PlbenchError, match=r"no node has room for a run \(1 CPUs and 4 GPUs\).*`gpus_per_run=`"):
        check_room({"CPU": 1, "GPU": 4}, 0, Cluster(), told)
    check_room({"CPU": 1, "GPU": 4}, 0, Cluster("host:6379"), told)
    assert told.lines[-1].startswith("Waiting for a node: ")
    monkeypatch.setattr(tasks, "SHARED_SECONDS", 0.0)
    with pytest.raises(PlbenchError, match="`runs=` must be a folder that all nodes share"):
        tasks.result_of(plan(workspace, "slow", 0), None, workspace)

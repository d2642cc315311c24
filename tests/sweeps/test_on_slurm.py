"""A sweep as Slurm jobs: of a Slurm that this file plays, and of processes that submitit starts here."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plbench.errors import PlbenchError, TrainingError
from plbench.progress import Reporter, Tally
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.record import Record
from plbench.runs.registry import Registry
from plbench.runs.workspace import Workspace
from plbench.sweeps import slurm
from plbench.sweeps.slurm import Jobs, minutes_of

submitit = pytest.importorskip("submitit")
from submitit.core.utils import DelayedSubmission, cloudpickle_dump  # noqa: E402

MAX_SECONDS = 60.0

CHAIN = '''
"""Trains in no time, and writes down where each of its trainings began."""

from pathlib import Path

import torch

from plbench.api import Loss, Method, MethodParams, Stage


class First(Method):
    name, title = "first", "First"

    class Params(MethodParams):
        tag: int = 0
        breaks: bool = False

    def epoch_start(self, view, progress):
        if progress.epoch == 0:
            with Path(__file__).with_name("begun.txt").open("a") as file:
                file.write(f"{self.name} {self.params.tag}\\n")

    def loss(self, output, batch, progress):
        terms = torch.nn.functional.softplus(-output * batch.labels) * (batch.labels != 0).to(output)
        return Loss.of_images(terms.sum(dim=-1) * (float("nan") if self.params.breaks else 1.0))


class Second(First):
    """Needs a run of the other one first."""

    name, title = "second", "Second"

    @classmethod
    def stages(cls, params, task):
        return (Stage("first", "first", lambda view: torch.zeros(1), {"tag": 100, "breaks": params.breaks}),)
'''

PROGRAMS = {
    "srun": "exit 1",  # that there is one is how submitit knows
    "sbatch": (
        'if [ -e {d}/full ]; then echo "sbatch: error: invalid partition specified: gone" >&2; exit 1; fi\n'
        "n=$(ls {d}/*.sh 2>/dev/null | wc -l); n=$((n + 100))\n"
        'cp "$1" {d}/new; mv {d}/new {d}/$n.sh; echo "Submitted batch job $n"'
    ),
    "sacct": "cat {d}/states",
    "scancel": 'echo "$@" >> {d}/cancelled',
}


class PlayedSlurm(threading.Thread):
    """Queues what `sbatch` is given, and makes jobs in this process once those that they wait for have ended."""

    def __init__(self, place: Path) -> None:
        super().__init__(daemon=True)
        self.place, self.held, self.ended = place, set[str](), threading.Event()
        self.order: list[str] = []
        self.say({})

    def say(self, states: dict[str, str]) -> None:
        """What `sacct` prints."""
        lines = ["JobID|State|NodeList", *(f"{job}|{state}|node" for job, state in states.items())]
        (self.place / "states").write_text("\n".join(lines) + "\n")

    def scripts(self) -> dict[str, str]:
        """What was submitted, by number."""
        return {path.stem: path.read_text() for path in sorted(self.place.glob("*.sh"))}

    def options(self, job: str) -> dict[str, str]:
        return dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", self.scripts()[job], flags=re.MULTILINE))

    def run(self) -> None:
        while not self.ended.wait(0.01):
            for number in self.scripts():
                options = self.options(number)
                folder = Path(options["output"]).parent
                needs = options.get("dependency", "").removeprefix("afterany:").split(":")
                if any(need and not self.has_ended(need, folder) for need in needs) or number in self.held:
                    continue
                last = re.match(r"0-(\d+)", options.get("array", ""))
                for job in [f"{number}_{task}" for task in range(int(last[1]) + 1)] if last else [number]:
                    given, result = folder / f"{job}_submitted.pkl", folder / f"{job}_0_result.pkl"
                    if given.is_file() and not result.exists():
                        self.order.append(job)
                        cloudpickle_dump(("success", DelayedSubmission.load(given).result()), self.place / "result")
                        (self.place / "result").rename(result)

    def has_ended(self, job: str, folder: Path) -> bool:
        return (folder / f"{job}_0_result.pkl").exists()


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


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PlayedSlurm]:
    place, programs = tmp_path / "played", tmp_path / "bin"
    place.mkdir(), programs.mkdir()
    for name, text in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/bash\n{text.format(d=place)}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "LOOK_EVERY_SECONDS", 0.02)
    monkeypatch.setattr(slurm, "SAVING_SECONDS", 0.1)
    submitit.SlurmJob.watcher.clear()
    submitit.SlurmJob.watcher._registered.clear()
    thread = PlayedSlurm(place)
    thread.start()
    yield thread
    thread.ended.set()
    thread.join()


@pytest.fixture
def place(
    tmp_path: Path, make_workspace: Callable[..., Workspace], quick_records: None
) -> tuple[Workspace, Told, tuple[Path, Path]]:
    """A workspace whose plugins other processes can load, too; the tiny dataset comes from the tests' own file."""
    plugin = tmp_path / "chain.py"
    plugin.write_text(CHAIN)
    plugins = (Path(__file__).parents[1] / "conftest.py", plugin)
    told = Told()
    return replace(make_workspace(), registry=Registry.discover(plugins), reporter=told), told, plugins


def plan(workspace: Workspace, method: str, tag: int, **params: Any) -> ResolvedRun:
    return plan_run(Request("tiny", method, method_params={"tag": tag, **params}), workspace)


def begun(tmp_path: Path) -> list[str]:
    path = tmp_path / "begun.txt"
    return path.read_text().splitlines() if path.is_file() else []


def once(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + MAX_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.02)


def test_all_jobs_are_queued_at_once_behind_what_they_need(
    played: PlayedSlurm, place: tuple[Workspace, Told, tuple[Path, Path]], tmp_path: Path
) -> None:
    workspace, told, plugins = place
    good = [plan(workspace, "second", tag) for tag in (1, 2)] + [plan(workspace, "first", 3)]
    bad = plan(workspace, "second", 4, breaks=True)
    asked = Jobs("gpu", "lab", 90, "32G", cpus=2, gpus=0, parallel=8, options={"qos": "high"})
    results = slurm.run_all([*good, bad], workspace, asked, plugins)
    assert [type(result) for result in results] == [Record, Record, Record, TrainingError]
    assert "a run that it depends on failed: " in str(results[3])
    assert results[0] == good[0].finished(workspace.store)
    assert sorted(begun(tmp_path)) == ["first 100", "first 100", "first 3", "second 1", "second 2"]
    first, second = (played.options(job) for job in ("100", "101"))
    assert first["array"] == "0-2%3" and second["array"] == "0-2%3" and "dependency" not in first
    assert set(second["dependency"].removeprefix("afterany:").split(":")) < {"100_0", "100_1", "100_2"}
    assert (first["partition"], first["account"], first["time"], first["mem"]) == ("gpu", "lab", "90", "32G")
    assert (first["cpus-per-task"], first["qos"]) == ("2", "high") and "gpus-per-node" not in first
    assert "Slurm: 6 runs in 6 jobs; 2 CPU cores and no GPU a job, 1.5 h at most" in told.lines
    assert told.views[-1] == (6, 6, "2 failed, 0 running")
    before = len(played.scripts())
    assert slurm.run_all(good, workspace, asked, plugins) == results[:3]  # all done: nothing is submitted
    assert len(played.scripts()) == before


def stopped_once_queued(played: PlayedSlurm, folder: Path) -> threading.Thread:
    """Sends Ctrl-C to this process as soon as all jobs are noted."""

    def stop() -> None:
        once(lambda: (folder / "jobs.json").is_file() and len(played.scripts()) == 2)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=stop)
    thread.start()
    return thread


def test_jobs_that_are_left_in_the_queue_are_followed_by_the_same_call(
    played: PlayedSlurm, place: tuple[Workspace, Told, tuple[Path, Path]], tmp_path: Path
) -> None:
    workspace, told, plugins = place
    plans = [plan(workspace, "second", tag) for tag in (1, 2)]
    asked = Jobs(is_left=True, logs=tmp_path / "logs")
    played.held = {"100"}
    stopper = stopped_once_queued(played, tmp_path / "logs")
    with pytest.raises(KeyboardInterrupt):
        slurm.run_all(plans, workspace, asked, plugins)
    stopper.join()
    assert told.lines[-1] == "Left in the queue: 3 jobs; scancel 100 101 ends them"
    assert not (played.place / "cancelled").exists() and begun(tmp_path) == []
    played.say({"100": "PENDING", "101_[0-1]": "PENDING"})
    played.held = set()
    results = slurm.run_all(plans, workspace, asked, plugins)
    assert all(isinstance(result, Record) for result in results) and len(begun(tmp_path)) == 3
    assert len(played.scripts()) == 2  # no job was submitted again
    assert "Slurm: 3 jobs of an earlier command still queued or running" in told.lines


def test_stopping_cancels_and_jobs_that_are_gone_are_submitted_again(
    played: PlayedSlurm, place: tuple[Workspace, Told, tuple[Path, Path]], tmp_path: Path
) -> None:
    workspace, told, plugins = place
    plans = [plan(workspace, "second", tag) for tag in (1, 2)]
    played.held = {"100"}
    stopper = stopped_once_queued(played, workspace.store.runs / "slurm")
    with pytest.raises(KeyboardInterrupt):
        slurm.run_all(plans, workspace, Jobs(), plugins)
    stopper.join()
    assert told.lines[-1].startswith("Stopping: 0 of 3 runs are finished; ")
    assert (played.place / "cancelled").read_text().split() == ["100", "101_0", "101_1"]
    played.say({"100": "CANCELLED by 0", "101_0": "CANCELLED by 0", "101_1": "CANCELLED by 0"})
    results = slurm.run_all(plans, workspace, Jobs(), plugins)
    assert all(isinstance(result, Record) for result in results)
    assert sorted(played.scripts()) == ["100", "101", "102", "103"]


def test_a_job_that_was_killed_says_so_and_one_that_is_refused_too(
    played: PlayedSlurm,
    place: tuple[Workspace, Told, tuple[Path, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workspace, told, plugins = place
    plans = [plan(workspace, "first", 1)]
    played.held = {"100"}
    played.say({"100": "OUT_OF_MEMORY"})
    monkeypatch.setattr(submitit.SlurmJob, "_results_timeout_s", 0)
    (error,) = slurm.run_all(plans, workspace, Jobs(), plugins)
    assert "its job 100 ended before the run was finished (Slurm says OUT_OF_MEMORY); its log is" in str(error)
    assert told.lines[-1].startswith(f"Failed: {plans[0].spec.key}, First: ")
    (played.place / "full").touch()
    with pytest.raises(PlbenchError, match=r"Slurm refused the jobs: .*invalid partition specified: gone"):
        slurm.run_all(plans, workspace, Jobs(partition="gone"), plugins)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(PlbenchError, match=r"Slurm is not on this machine \(there is no srun\)"):
        slurm.run_all(plans, workspace, Jobs(), plugins)


def test_what_has_to_end_early_is_queued_again_as_it_was(place: tuple[Workspace, Told, tuple[Path, Path]]) -> None:
    workspace, _, plugins = place
    one = plan(workspace, "first", 1)
    where = slurm.place_of_tasks(workspace, plugins, cpus=1, gpus=0)
    again = slurm.MakeRuns().checkpoint(*where, *slurm.travelling([one]), [])
    assert again.result() == {one.spec.key: None} and one.finished(workspace.store) is not None


@pytest.mark.slow
def test_processes_of_this_machine_make_runs_as_jobs_would(
    place: tuple[Workspace, Told, tuple[Path, Path]], tmp_path: Path
) -> None:
    workspace, told, plugins = place
    one = plan(workspace, "first", 1)
    (result,) = slurm.run_all([one], workspace, Jobs(cluster="local", minutes=5), plugins)
    assert result == one.finished(workspace.store), told.lines
    assert begun(tmp_path) == ["first 1"]
    assert len(list((workspace.store.runs / "slurm").glob("*_0_log.out"))) == 1


@pytest.mark.parametrize(
    ("text", "minutes"), [("30", 30), ("30:01", 31), ("1:00:00", 60), ("2-0", 2880), ("1-2:03", 1563), ("0:00:30", 1)]
)
def test_time_limits_as_sbatch_takes_them(text: str, minutes: int) -> None:
    assert minutes_of(text) == minutes


@pytest.mark.parametrize("text", ["", "0", "4h", "-1", "1-", "1:2:3:4", "1-1:1:1:1"])
def test_what_is_no_time_limit(text: str) -> None:
    with pytest.raises(PlbenchError, match="give minutes, hours:minutes:seconds, or days-hours"):
        minutes_of(text)

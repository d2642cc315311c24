"""How many threads torch computes with: measured where others are at work, and never against what a person said."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from plbench.cli.setting import workspace_for
from plbench.runs.active import ActiveRun
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.workspace import Workspace
from plbench.training import threads
from plbench.training.threads import allowed_cores, busy_others, seconds_of_products, settle_threads


@pytest.fixture(autouse=True)
def usual(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A machine on which torch takes 8 threads, and nobody says another number."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield 8
    torch.set_num_threads(before)


class Machine:
    """Stands for what is measured; `seconds` by number of threads."""

    def __init__(self, running: int, seconds: Mapping[int, float], cores: int = 8) -> None:
        self.running, self.seconds, self.cores = running, seconds, cores
        self.said: list[str] = []
        self.tried: list[int] = []

    def settle(self, asked: int | None = None) -> bool:
        def measure(numbers: list[int]) -> dict[int, float]:
            self.tried += numbers
            return {number: self.seconds[number] for number in numbers}

        own: dict[str, Any] = {"cores": lambda: self.cores, "others": lambda: self.running, "measure": measure}
        return settle_threads(asked, self.said.append, **own)


def test_an_idle_machine_keeps_its_threads_and_nothing_is_measured() -> None:
    machine = Machine(0, {})
    assert machine.settle() and torch.get_num_threads() == 8
    assert machine.said == machine.tried == []


def test_beside_others_the_fastest_is_taken_and_said_once() -> None:
    machine = Machine(6, {8: 3.0, 2: 0.9, 1: 1.0})
    assert machine.settle() and torch.get_num_threads() == 2
    assert machine.tried == [8, 2, 1]
    (sentence,) = machine.said
    assert "Computing with 2 of 8 threads" in sentence and "3.3 times as long" in sentence
    assert "`threads=8`" in sentence


@pytest.mark.parametrize("seconds", [{8: 1.0, 2: 0.95, 1: 2.0}, {8: 1.0, 2: 3.0, 1: 2.0}])
def test_noise_chooses_nothing(seconds: dict[int, float]) -> None:
    machine = Machine(6, seconds)
    assert machine.settle() and torch.get_num_threads() == 8 and machine.said == []


def test_a_container_of_two_cores_takes_two() -> None:
    machine = Machine(0, {}, cores=2)
    assert machine.settle() and torch.get_num_threads() == 2
    assert "this process may use 2 of the machine's cores" in machine.said[0]


def test_what_a_person_says_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(99, {8: 9.0, 1: 1.0})
    assert not machine.settle(5) and torch.get_num_threads() == 5
    torch.set_num_threads(8)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert not machine.settle() and torch.get_num_threads() == 8
    assert machine.said == machine.tried == []


def test_what_is_measured_is_there() -> None:
    assert allowed_cores() >= 1 and busy_others() >= 0
    seconds = seconds_of_products([2, 1])
    assert seconds.keys() == {1, 2} and min(seconds.values()) > 0 and torch.get_num_threads() == 8


def test_a_quota_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_QUOTA", tmp_path / "cpu.max")
    without = allowed_cores()
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert allowed_cores() == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert allowed_cores() == without


def test_a_count_of_what_runs_is_not_a_memory_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_LOAD", tmp_path / "loadavg")
    assert busy_others() == 0
    (tmp_path / "loadavg").write_text("9.00 8.00 7.00 1/200 4242\n")
    assert busy_others() == 0
    (tmp_path / "loadavg").write_text("0.00 0.00 0.00 4/200 4242\n")
    assert busy_others() == 3


def test_commands_take_it(tmp_path: Path) -> None:
    workspace = workspace_for({"threads": 3, "runs": tmp_path, "quiet": True})
    assert torch.get_num_threads() == 3 and not workspace.chose_threads
    torch.set_num_threads(8)
    assert workspace_for({"runs": tmp_path, "quiet": True}).chose_threads


@pytest.mark.parametrize("chose", [True, False])
def test_a_training_goes_on_with_the_threads_it_began_with(
    make_workspace: Callable[..., Workspace], chose: bool
) -> None:
    workspace = make_workspace()
    plan = plan_run(Request("tiny", "ce-negative", {}, plan={"epochs": 1}), workspace)
    active = ActiveRun(plan, workspace, {})
    active.prepare()
    torch.set_num_threads(2)
    active.save()
    torch.set_num_threads(8)
    again = ActiveRun(plan, replace(workspace, chose_threads=chose), {})
    again.prepare()
    again.resume()
    assert torch.get_num_threads() == (2 if chose else 8)

"""Several processes from one command: they end together, and what went wrong is one sentence."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from test_cli import SHORT, Outcome, plbench, words_with, write_coco

from plbench.errors import PlbenchError
from plbench.training import distributed, launch
from plbench.training.distributed import joined

FAILING = '''
import os
import time

import torch
from plbench.api import Loss, Method, PlbenchError


class Failing(Method):
    """Fails in one process only, at its second step."""

    name, title = "failing", "Failing"

    def loss(self, output, batch, progress):
        if progress.step == 1 and os.environ.get("RANK") == "1":
            raise PlbenchError("this process alone cannot go on; give it what it needs")
        return Loss.of_images((output ** 2).sum(dim=-1))


class Slow(Failing):
    """Takes its time."""

    name, title = "slow", "Slow"

    def loss(self, output, batch, progress):
        time.sleep(0.05)
        return Loss.of_images((output ** 2).sum(dim=-1))
'''


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A run on a tiny COCO folder, with two methods of its own at hand."""
    monkeypatch.setenv("PLBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "plugin.py").write_text(FAILING)
    root = write_coco(tmp_path / "coco")
    where = ["--dataset", "coco2017", "--data-root", str(root), "--simulate", "fpc=4", "--runs", str(tmp_path / "runs")]
    return ["run", *where, "--plugin", str(tmp_path / "plugin.py"), *SHORT, "--batch-size", "4"]


def started(command: list[str], *options: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "plbench", *command, *options]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.slow
def test_an_error_in_one_process_ends_all_with_its_sentence(command: list[str]) -> None:
    start = time.monotonic()
    process = started(command, "--method", "failing", "--nproc", "2", "--quiet")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    assert err == "plbench: error: this process alone cannot go on; give it what it needs\n"
    assert time.monotonic() - start < 100


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_goes_on(command: list[str], tmp_path: Path) -> None:
    slow = ["--method", "slow", "--nproc", "2", "--epochs", "12", "--save-every", "0.2"]
    words = ["run", *map(str, words_with(command[1:], *slow))]
    process = started(words)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/*/checkpoints/*.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (128 + signal.SIGTERM, "")
    last = err.splitlines()[-1]
    assert last.startswith("plbench: stopped; to continue: plbench run") and "--nproc 2" in last
    assert "Saved at step" in err and "Traceback" not in err
    again = subprocess.run([sys.executable, "-m", "plbench", *words], capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert "Continuing after step" in again.stderr and "mAP(C)" in again.stdout
    assert again.stdout.count("mAP(C)") == again.stdout.count("mAP(O)")  # printed by one process only


class TestRefusals:
    def test_more_processes_than_gpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        with pytest.raises(
            PlbenchError, match=r'^`nproc=2`: this machine has 1 GPU, .*; give `nproc=1`, or `device="cpu"`'
        ):
            launch.launch(2, ["run"])

    def test_one_gpu_for_all(self) -> None:
        with pytest.raises(PlbenchError, match='`device="cuda:0"` is one GPU, which 2 processes cannot share'):
            launch.launch(2, ["run"], "cuda:0")

    def test_many_more_processes_than_cores(self, command: list[str]) -> None:
        said = plbench(*command, "--method", "slow", "--nproc", 1000, "--device", "cpu")
        assert said.code == 2 and said.out == ""
        assert said.err.startswith("plbench: error: --nproc 1000: this machine has")

    @pytest.fixture
    def environment(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
        """What a process among two finds in its environment; the port of the main process is taken."""
        monkeypatch.setattr(distributed, "_MEETING", timedelta(seconds=2))
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            names = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])}
            for name, value in names.items():
                monkeypatch.setenv(name, value)
            yield server

    def test_a_main_process_that_is_not_there(
        self, environment: socket.socket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RANK", "1")
        sentence = (
            r"^the main process at 127.0.0.1:\d+ could not be reached within 2 s; check MASTER_ADDR and MASTER_PORT"
        )
        with pytest.raises(PlbenchError, match=sentence), joined(torch.device("cpu")):
            pass

    def test_a_port_in_use(self, environment: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
        environment.listen()
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(PlbenchError, match=r"^port of 127.0.0.1:\d+ is in use"), joined(torch.device("cpu")):
            pass

    def test_an_environment_that_is_not_complete(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "0")
        monkeypatch.delenv("MASTER_ADDR", raising=False)
        sentence = r"is not complete: .*MASTER_ADDR.*; use torchrun"
        with pytest.raises(PlbenchError, match=sentence), joined(torch.device("cpu")):
            pass

    @pytest.mark.parametrize("name", ["tune", "compare"])
    def test_a_command_that_does_not_know_of_others(
        self, name: str, command: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "0")
        options = ["--method", "slow"] if name == "tune" else ["--methods", "slow"]
        said = plbench(name, *command[1:], *options)
        assert said == Outcome(
            2, "", "plbench: error: only plbench run trains over several processes; start this command by itself\n"
        )

    def test_nproc_below_torchrun(self, command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "0")
        said = plbench(*command, "--method", "slow", "--nproc", 2)
        assert said.code == 2 and "--nproc starts processes, but this is already one of several" in said.err


class TestFailures:
    def test_the_first_one_counts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PLBENCH_FAILURES", str(tmp_path))
        for rank, text in ((1, "plbench: error: first"), (0, "Traceback of what followed\nfrom it")):
            monkeypatch.setenv("RANK", str(rank))
            launch.write_failure(text, 2 - (rank == 0))
        assert launch._first_failure(tmp_path) == (2, "plbench: error: first")

    def test_arguments_without_an_option(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "argv", ["plbench", "run", "--nproc", "2", "-m", "x", "--nproc=3"])
        assert launch.arguments_without("--nproc") == ["run", "-m", "x"]

"""Two processes that train together: started once, and then asked for one training after another.

This process sends each of them the same request through a pipe and gets each one's weights back. They end when it does.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from plbench.errors import PlbenchError
from plbench.method import Method
from plbench.runs.registry import Registry, import_plugin_file
from plbench.testing.findings import NotApplicable, in_words
from plbench.testing.small_data import Size
from plbench.testing.small_job import SmallJob, Subject
from plbench.training.distributed import World
from plbench.training.state import FitState

NUM_PROCESSES = 2
CONTEXT = torch.multiprocessing.get_context("spawn")  # there is no other way on every system
_LEVEL = "TORCH_CPP_LOG_LEVEL"
_START_SECONDS, _ANSWER_SECONDS = 120.0, 60.0


@dataclass(frozen=True)
class Request:
    """A training to be made; the method is named by where its class can be found again."""

    module: str
    file: str
    qualname: str
    values: Mapping[str, Any]
    plugins: tuple[Path, ...]
    paths: tuple[str, ...]
    size: Size
    seed: int

    @classmethod
    def of(cls, job: SmallJob) -> Request:
        """Of a job in this process.

        Raises:
            NotApplicable: if the class cannot be found from another process.
        """
        kind = job.subject.kind
        if "<locals>" in kind.__qualname__:
            raise NotApplicable(
                f"class {kind.__name__} is defined inside a function, where another process cannot find it; move it to "
                "the top of its file"
            )
        plugins = tuple(path.resolve() for path in job.subject.registry.plugin_files())
        values, paths = dict(job.subject.values), tuple(sys.path)
        file = os.path.abspath(inspect.getfile(kind))
        return cls(kind.__module__, file, kind.__qualname__, values, plugins, paths, job.size, job.seed)

    def kind(self) -> type[Method]:
        """Return the class, in the process that was asked."""
        sys.path[:] = list(dict.fromkeys([*self.paths, *sys.path]))
        module: Any = None
        if self.module != "__main__":
            with contextlib.suppress(ImportError):
                module = importlib.import_module(self.module)
        found = import_plugin_file(Path(self.file)) if module is None else module
        for name in self.qualname.split("."):
            found = getattr(found, name)
        kind: type[Method] = found
        return kind


class Pair:
    """Both processes, seen from the one that asks."""

    def __init__(self) -> None:
        """Start them and does not wait."""
        self._meeting = tempfile.TemporaryDirectory(prefix="plbench-pair-", ignore_cleanup_errors=True)
        self._has_answered = False
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []
        level = os.environ.get(_LEVEL)
        os.environ[_LEVEL] = "ERROR"  # inherited: torch reads it as it is imported, and warns of what is meant here
        try:
            for rank in range(NUM_PROCESSES):
                self._start(rank)
        finally:
            del os.environ[_LEVEL]
            if level is not None:
                os.environ[_LEVEL] = level

    def _start(self, rank: int) -> None:
        here, there = CONTEXT.Pipe()
        process = CONTEXT.Process(target=_serve, args=(rank, f"{self._meeting.name}/store", there), daemon=True)
        process.start()
        there.close()  # so that the pipe ends when the process does
        self._processes.append(process)
        self._pipes.append(here)

    def train(self, request: Request) -> list[dict[str, Any]]:
        """Return what each of them has after a training.

        Raises:
            PlbenchError: if one fails; both are ended then.
        """
        try:
            for pipe in self._pipes:
                pipe.send(request)
            answers = self._answers()
        except (OSError, EOFError) as error:
            self.end()
            raise PlbenchError("one of two processes ended before it answered") from error
        except PlbenchError:
            self.end()
            raise
        self._has_answered = True
        return answers

    def _answers(self) -> list[dict[str, Any]]:
        """Return both answers. The first error is the last that is waited for.

        The other process may wait for that one.
        """
        answers: dict[int, dict[str, Any]] = {}
        deadline = time.monotonic() + (_ANSWER_SECONDS if self._has_answered else _START_SECONDS)
        while waiting := [pipe for rank, pipe in enumerate(self._pipes) if rank not in answers]:
            ready = wait(waiting, max(0.0, deadline - time.monotonic()))
            if not ready:
                raise PlbenchError(
                    "two processes did not come to the end of a small training; does one wait for the other?"
                )
            for pipe in (pipe for pipe in waiting if pipe in ready):
                answer = pipe.recv()
                if "error" in answer:
                    raise PlbenchError(f"process {answer['rank']} of two: {answer['error']}")
                answers[answer["rank"]] = answer
        return [answers[rank] for rank in range(NUM_PROCESSES)]

    def end(self) -> None:
        """End both."""
        for process, pipe in zip(self._processes, self._pipes, strict=True):
            process.kill()
            process.join()
            pipe.close()
        self._meeting.cleanup()

    @property
    def is_alive(self) -> bool:
        """Whether both can be asked."""
        return all(process.is_alive() for process in self._processes)


class _Shared:
    """The one pair of this process."""

    pair: Pair | None = None


def shared_pair() -> Pair:
    """Return the pair that serves all methods: started at the first call, again if one is gone, ended at the end."""
    if _Shared.pair is None or not _Shared.pair.is_alive:
        if _Shared.pair is not None:
            _Shared.pair.end()
        _Shared.pair = Pair()
    return _Shared.pair


def outcome(state: FitState) -> dict[str, Any]:
    """Return what is compared of a training: weights, averaged weights, and what the method remembers."""
    averaged = state.averaged().state_dict()
    return {
        "weights": {name: value.detach().clone() for name, value in state.model.state_dict().items()},
        "averaged weights": {name: value.detach().clone() for name, value in averaged.items()},
        "method state": state.method.state_dict(),
    }


def _serve(rank: int, store: str, pipe: Connection) -> None:
    """Answer requests, in a process of its own, until there are no more."""
    os.dup2(2, 1)  # what a plugin prints is none of a command's answer
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # a host name that does not resolve would keep them apart
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(_answer(pipe.recv(), rank, store))


def _answer(request: Request, rank: int, store: str) -> dict[str, Any]:
    try:
        if not dist.is_initialized():
            dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=NUM_PROCESSES)
        subject = Subject(request.kind(), request.values, Registry.discover(request.plugins))
        job = SmallJob(subject, request.size, request.seed, wide=True, world=World(rank, NUM_PROCESSES))
        return {"rank": rank, **outcome(job.trained())}
    except Exception as error:  # whatever it is, the other waits for this process
        return {"rank": rank, "error": in_words(error)}

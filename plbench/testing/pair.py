"""Two processes that train together: started once, and then asked for one training after another.

This process sends each of them the same request through a pipe and gets each one's weights back. They end when it does.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import inspect
import os
import pickle
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from plbench.errors import PlbenchError
from plbench.method import Method
from plbench.runs.registry import import_plugin_file
from plbench.testing.findings import NotApplicable
from plbench.testing.small_data import Size
from plbench.testing.small_job import SmallJob
from plbench.training.state import FitState

NUM_PROCESSES = 2
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
        return cls(
            kind.__module__,
            os.path.abspath(inspect.getfile(kind)),
            kind.__qualname__,
            values,
            plugins,
            paths,
            job.size,
            job.seed,
        )

    def kind(self) -> type[Method]:
        """The class, in the process that was asked."""
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
        """Starts them and does not wait."""
        self._meeting = tempfile.TemporaryDirectory(prefix="plbench-pair-", ignore_cleanup_errors=True)
        self._processes = [self._started(rank) for rank in range(NUM_PROCESSES)]
        self._has_answered = False

    def _started(self, rank: int) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
        if sys.platform == "linux":
            environment["GLOO_SOCKET_IFNAME"] = "lo"  # a host name that does not resolve would keep them apart
        command = [
            sys.executable,
            "-m",
            "plbench.testing.pair_process",
            str(rank),
            str(Path(self._meeting.name) / "store"),
        ]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def train(self, request: Request) -> list[dict[str, Any]]:
        """What each of them has after a training.

        Raises:
            PlbenchError: if one fails; both are ended then.
        """
        try:
            for process in self._processes:
                assert process.stdin is not None
                send(process.stdin, request)
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
        """Both answers. The first error is the last that is waited for: the other process may wait for that one."""
        waiting: list[Any] = [process.stdout for process in self._processes]
        answers: dict[int, dict[str, Any]] = {}
        deadline = time.monotonic() + (_ANSWER_SECONDS if self._has_answered else _START_SECONDS)
        while waiting:
            ready = select.select(waiting, [], [], max(0.0, deadline - time.monotonic()))[0]
            if not ready:
                raise PlbenchError(
                    "two processes did not come to the end of a small training; does one wait for the other?"
                )
            for pipe in ready:
                answer = pickle.load(pipe)  # our own process wrote it
                if "error" in answer:
                    raise PlbenchError(f"process {answer['rank']} of two: {answer['error']}")
                answers[answer["rank"]] = answer
                waiting.remove(pipe)
        return [answers[rank] for rank in range(NUM_PROCESSES)]

    def end(self) -> None:
        """Ends both."""
        for process in self._processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        self._meeting.cleanup()

    @property
    def is_alive(self) -> bool:
        """Whether both can be asked."""
        return all(process.poll() is None for process in self._processes)


class _Shared:
    """The one pair of this process."""

    pair: Pair | None = None


def shared_pair() -> Pair:
    """The pair that serves all methods: started at the first call, again if one is gone, ended at the end."""
    if _Shared.pair is None or not _Shared.pair.is_alive:
        if _Shared.pair is not None:
            _Shared.pair.end()
        else:
            atexit.register(_end)
        _Shared.pair = Pair()
    return _Shared.pair


def _end() -> None:
    if _Shared.pair is not None:
        _Shared.pair.end()


def outcome(state: FitState) -> dict[str, Any]:
    """What is compared of a training: weights, averaged weights, and what the method remembers."""
    averaged = state.averaged().state_dict()
    return {
        "weights": {name: value.detach().clone() for name, value in state.model.state_dict().items()},
        "averaged weights": {name: value.detach().clone() for name, value in averaged.items()},
        "method state": state.method.state_dict(),
    }


def send(pipe: IO[bytes], content: Any) -> None:
    """Writes what the other end loads."""
    pickle.dump(content, pipe)
    pipe.flush()

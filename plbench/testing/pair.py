"""Two processes for distributed training, started once and reused for several trainings."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

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
CONTEXT = torch.multiprocessing.get_context("spawn")  # the only start method on all systems
_START_SECONDS, _ANSWER_SECONDS = 120.0, 60.0


@dataclass(frozen=True)
class Request:
    """A training request; the method is given by the location of its class."""

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
        """Make the request for a job of this process.

        Raises:
            NotApplicable: if the class cannot be imported in another process.
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
        """Return the class, in the worker process."""
        sys.path[:] = list(dict.fromkeys([*self.paths, *sys.path]))
        found: Any = None
        if self.module != "__main__":
            with contextlib.suppress(ImportError):
                found = importlib.import_module(self.module)
        if found is None:
            found = import_plugin_file(Path(self.file))
        for name in self.qualname.split("."):
            found = getattr(found, name)
        kind: type[Method] = found
        return kind


class Pair:
    """Both processes, as seen from the requesting one."""

    def __init__(self) -> None:
        self._meeting = tempfile.TemporaryDirectory(prefix="plbench-pair-", ignore_cleanup_errors=True)
        self._seconds = _START_SECONDS
        self._pools = [ProcessPoolExecutor(1, mp_context=CONTEXT) for _ in range(NUM_PROCESSES)]
        # inherited: torch reads it on import and would warn about intended behaviour
        with patch.dict(os.environ, TORCH_CPP_LOG_LEVEL="ERROR"):
            for pool in self._pools:
                pool.submit(_begin)

    def train(self, request: Request) -> list[dict[str, Any]]:
        """Return the state of each process after a training.

        Raises:
            PlbenchError: if one fails; both are then ended, since the other may be waiting for it.
        """
        store = f"{self._meeting.name}/store"
        try:
            futures = [pool.submit(_train, request, rank, store) for rank, pool in enumerate(self._pools)]
            for future in as_completed(futures, self._seconds):
                future.result()
            self._seconds = _ANSWER_SECONDS
            return [future.result() for future in futures]
        except BaseException as error:
            self.end()
            if isinstance(error, TimeoutError):
                what = "two processes did not come to the end of a small training; does one wait for the other?"
            elif isinstance(error, BrokenProcessPool):
                what = "one of two processes ended before it answered"
            elif isinstance(error, RuntimeError):
                what = str(error)
            else:
                raise
            raise PlbenchError(what) from error

    def end(self) -> None:
        """End both, and let `shared_pair` start new ones."""
        _Shared.pair = None
        for pool in self._pools:
            for process in list(pool._processes.values()):  # one that waits for the other would never stop
                process.kill()
            pool.shutdown(cancel_futures=True)
        self._meeting.cleanup()


class _Shared:
    """Holder of this process's only pair."""

    pair: Pair | None = None


def shared_pair() -> Pair:
    """Return the pair for all methods: started at the first call, and again after a failure."""
    if _Shared.pair is None:
        _Shared.pair = Pair()
    return _Shared.pair


@contextlib.contextmanager
def pair_at_hand() -> Iterator[None]:
    """Start the pair while other checks run, and end it afterwards, whether or not it was used."""
    shared_pair()
    try:
        yield
    finally:
        if _Shared.pair is not None:
            _Shared.pair.end()


def outcome(state: FitState) -> dict[str, Any]:
    """Return the parts of a training to compare: weights, averaged weights, and the method's state."""
    averaged = state.averaged().state_dict()
    return {
        "weights": {name: value.detach().clone() for name, value in state.model.state_dict().items()},
        "averaged weights": {name: value.detach().clone() for name, value in averaged.items()},
        "method state": state.method.state_dict(),
    }


def _begin() -> None:
    os.dup2(2, 1)  # a plugin's prints must not mix with the command's output
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # the host name may not resolve
    torch.set_num_threads(1)


def _train(request: Request, rank: int, store: str) -> dict[str, Any]:
    try:
        if not dist.is_initialized():
            dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=NUM_PROCESSES)
        subject = Subject(request.kind(), request.values, Registry.discover(request.plugins))
        world = World(rank, NUM_PROCESSES)
        return outcome(SmallJob(subject, request.size, request.seed, wide=True, world=world).trained())
    except Exception as error:  # as text: a plugin's own exception may not be picklable
        raise RuntimeError(f"process {rank} of two: {in_words(error)}") from None

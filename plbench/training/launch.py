"""Starting one command in several processes, and telling what went wrong in the first of them that failed."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from plbench.errors import PlbenchError

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

_FAILURES = "PLBENCH_FAILURES"
"""Environment variable: the folder in which processes that were started here write down why they failed."""

_GRACE_SECONDS = 30
"""What processes get to save and leave when they are told to stop."""


def is_worker() -> bool:
    """Return whether `launch` started this process."""
    return _FAILURES in os.environ


def write_failure(text: str, code: int) -> None:
    """Leave the reason of a failure, a sentence or a traceback, for `launch`, which gives back the first."""
    # names sort by time: what fails first is the cause, what fails later follows from it
    path = Path(os.environ[_FAILURES]) / f"{time.time_ns():020d}-{os.environ.get('RANK', '0')}"
    path.write_text(f"{code}\n{text}")


def launch(
    num_processes: int, arguments: Sequence[str], device: str | None = None, module: str = "plbench"
) -> tuple[int, str]:
    """Run `plbench` with these arguments in several processes here, by `torch.distributed.run`, which end together.

    Args:
        num_processes: at least 2.
        arguments: as typed after `plbench`.
        device: the kind that all compute on; None for GPUs where there are any.
        module: that each process runs, which leaves the reason of a failure by `write_failure`.

    Returns:
        The exit code, and what the first process that failed had to say; "" where none did.

    Raises:
        PlbenchError: if there are fewer GPUs than processes.
    """
    import logging

    import torch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as run

    _check_devices(num_processes, device)
    settings = {
        # torch's launcher would give each process a single thread
        "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // num_processes)),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(_GRACE_SECONDS),
        "GLOO_SOCKET_IFNAME": "lo",  # all on this machine
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # without a hint at what DDP is asked to do on purpose
    }
    before = dict(os.environ)
    # port 0 is whichever is free, so that several launches on a machine do not collide
    how = ["--nproc-per-node", str(num_processes), "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    how += ["--rdzv-id", f"plbench-{os.getpid()}", "--local-addr", "127.0.0.1", "--max-restarts", "0"]
    with tempfile.TemporaryDirectory(prefix="plbench-") as folder:
        # what the caller's environment says goes before our settings
        os.environ.update({**settings, **before, _FAILURES: folder})
        logging.disable(logging.ERROR)  # this process only waits, and says in one sentence what torch's launcher logs
        try:
            run([*how, "-m", module, *arguments])
        except ChildFailedError as error:
            # one that was killed wrote nothing, and what the others wrote only follows from it
            return _killed(error) or _first_failure(Path(folder)) or (1, f"plbench: {error}")
        except SignalException as signalled:
            return 128 + int(signalled.sigval), ""
        finally:
            logging.disable(logging.NOTSET)
            os.environ.clear()
            os.environ.update(before)
    return 0, ""


def _first_failure(folder: Path) -> tuple[int, str] | None:
    for path in sorted(folder.iterdir()):
        code, _, text = path.read_text().partition("\n")
        return int(code), text
    return None


def _killed(error: ChildFailedError) -> tuple[int, str] | None:
    """Return what to say where a process was killed from outside; the others then fail for want of it."""
    for rank, failure in error.failures.items():
        if failure.exitcode < 0 and -failure.exitcode != signal.SIGTERM:  # that is how the others are ended
            name = signal.Signals(-failure.exitcode).name
            why = ", perhaps because memory ran out" if name == "SIGKILL" else ""
            return 1, (
                f"plbench: error: process {rank} was ended by {name}{why}; the same command continues from the last "
                "checkpoint"
            )
    return None


def _check_devices(num_processes: int, device: str | None) -> None:
    import torch

    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    gpus, cores = torch.cuda.device_count(), os.cpu_count() or 1
    if kind.startswith("cuda:"):
        raise PlbenchError(f'`device="{kind}"` is one GPU, which {num_processes} processes cannot share; leave it out')
    if kind == "cuda" and num_processes > gpus:
        raise PlbenchError(
            f"`nproc={num_processes}`: this machine has {gpus} GPU{'' if gpus == 1 else 's'}, and each process needs "
            f'its own; give `nproc={max(1, gpus)}`, or `device="cpu"`'
        )
    if kind == "cpu" and num_processes > 4 * cores:
        raise PlbenchError(
            f"`nproc={num_processes}`: this machine has {cores} cores; more processes than cores do not help"
        )


def arguments_without(option: str) -> list[str]:
    """Return this program's arguments but for an option and its value."""
    kept, skip = [], False
    for word in sys.argv[1:]:
        if skip or word == option:
            skip = not skip
        elif not word.startswith(f"{option}="):
            kept.append(word)
    return kept

"""Run one command in several processes, and report the first failure."""

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
"""Environment variable: the folder in which launched processes report why they failed."""

_GRACE_SECONDS = 30
"""Grace period for processes to save and exit when they are stopped."""


def is_worker() -> bool:
    """Return whether `launch` started this process."""
    return _FAILURES in os.environ


def write_failure(text: str, code: int) -> None:
    """Write the reason of a failure, a message or a traceback, for `launch`, which returns the first."""
    # names sort by time: the first failure is the cause of later ones
    path = Path(os.environ[_FAILURES]) / f"{time.time_ns():020d}-{os.environ.get('RANK', '0')}"
    path.write_text(f"{code}\n{text}")


def launch(
    num_processes: int, arguments: Sequence[str], device: str | None = None, module: str = "plbench"
) -> tuple[int, str]:
    """Run `plbench` with these arguments in several local processes by `torch.distributed.run`.

    Args:
        num_processes: at least 2.
        arguments: the arguments after `plbench`.
        device: type of device for all; None for GPUs if available.
        module: run by each process; reports failures by `write_failure`.

    Returns:
        The exit code, and the reason of the first failed process; "" if none failed.

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
        # torch's launcher would set a single thread per process
        "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // num_processes)),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(_GRACE_SECONDS),
        "GLOO_SOCKET_IFNAME": "lo",  # all processes are local
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # hide DDP's hint about intended behaviour
    }
    before = dict(os.environ)
    # port 0 is any free port, so that several launches do not collide
    how = ["--nproc-per-node", str(num_processes), "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    how += ["--rdzv-id", f"plbench-{os.getpid()}", "--local-addr", "127.0.0.1", "--max-restarts", "0"]
    with tempfile.TemporaryDirectory(prefix="plbench-") as folder:
        # the caller's environment takes precedence
        os.environ.update({**settings, **before, _FAILURES: folder})
        logging.disable(logging.ERROR)  # this process only waits, and reports failures itself
        try:
            run([*how, "-m", module, *arguments])
        except ChildFailedError as error:
            # a killed process wrote nothing, and errors of the others only follow from it
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
    """Return code and message if a process was killed from outside, which makes the others fail."""
    for rank, failure in error.failures.items():
        if failure.exitcode < 0 and -failure.exitcode != signal.SIGTERM:  # torch's launcher ends the others by SIGTERM
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
    """Return this program's arguments without an option and its value."""
    kept, skip = [], False
    for word in sys.argv[1:]:
        if skip or word == option:
            skip = not skip
        elif not word.startswith(f"{option}="):
            kept.append(word)
    return kept

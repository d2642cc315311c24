"""Distributed training of a run by several local processes, started by one that does not take part.

They are started by `plbench.training.launch`, each as `python -m plbench.runs.processes FILE`, with the run in JSON.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from types import FrameType

import torch

import plbench
from plbench.errors import PlbenchError, TrainingError
from plbench.runs import run as runner
from plbench.runs.elsewhere import Data, Place, data_of, place_of
from plbench.runs.environment import choose_device, source_sha256
from plbench.runs.plan.resolve import plan_from_spec
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.record import Record
from plbench.runs.workspace import Workspace
from plbench.spec import Frozen, RunSpec
from plbench.training.distributed import joined
from plbench.training.interruption import Stopped
from plbench.training.launch import launch, write_failure

_FAILED, _REFUSED, _BROKEN = 3, 2, 1  # exit codes: training failed, invalid request, internal error


class _Job(Frozen):
    place: Place
    data: Data
    spec: RunSpec
    is_shown: bool


def run(plan: ResolvedRun, workspace: Workspace) -> Record:
    """Do the same as `plbench.runs.run.run` with the workspace's `nproc` processes, each with its own GPU if available.

    Raises:
        TrainingError: if the training fails, or a process was killed. PlbenchError: if the run is not possible.
            Stopped: if the processes were interrupted and have saved.
    """
    if (record := plan.finished(workspace.store)) is not None:
        return record
    device = workspace.device.type
    place = place_of(workspace, workspace.registry.plugin_files(), device=device, workers=workspace.workers)
    job = _Job(place=place, data=data_of(plan), spec=plan.spec, is_shown=workspace.reporter.is_shown)
    with tempfile.TemporaryDirectory(prefix="plbench-") as folder:
        file = Path(folder) / "job.json"
        file.write_text(job.model_dump_json(), encoding="utf-8")
        code, text = launch(workspace.nproc, [str(file)], device, module=__name__)
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        raise Stopped(code - 128)
    if code == _REFUSED:
        raise PlbenchError(text)
    if code:
        raise TrainingError(text.strip().splitlines()[-1].removeprefix("plbench: error: "))
    record = plan.finished(workspace.store)
    assert record is not None
    return record


def _work(job: _Job) -> None:
    """Take part in a run, as one of its processes."""
    with joined(choose_device(job.place.device)) as world:
        world.check_same({"plbench": plbench.__version__, "its source": source_sha256(), "torch": torch.__version__})
        reporter = plbench.show_progress() if job.is_shown and world.is_main else None
        workspace = job.place.workspace(job.data, reporter, world)
        runner.run(plan_from_spec(job.spec, workspace), workspace)


def main() -> None:
    """Take part in the run given in a file, and report failures to the requesting process."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    signal.signal(signal.SIGTERM, stop)
    try:
        _work(_Job.model_validate_json(Path(sys.argv[1]).read_bytes()))
    except PlbenchError as error:
        code = _FAILED if isinstance(error, TrainingError) else _REFUSED
        write_failure(" ".join(str(error).splitlines()), code)
        sys.exit(code)
    except KeyboardInterrupt as error:
        sys.exit(128 + (error.number if isinstance(error, Stopped) else signal.SIGINT))
    except Exception:
        write_failure(traceback.format_exc(), _BROKEN)
        os._exit(_BROKEN)  # without another traceback


if __name__ == "__main__":
    main()

"""TensorBoard, MLflow and Weights & Biases as implementations of `plbench.tracking.tracker.Tracker`.

Each imports its package when it starts. Target and server are set by their own environment variables. Interrupted runs
continue in the same tracked run, whose id is stored in the run's folder.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from plbench.files import write_text
from plbench.spec import RunSpec
from plbench.tracking.tracker import Tracker, settings

PROJECT = "plbench"
"""W&B project and MLflow experiment, unless set in the environment."""

_MAX_PARAMS = 100  # limit of MLflow per call


class TensorBoard:
    """Writes scalars, the spec, and values for the table of hyper-parameters to the run's folder `tensorboard`."""

    def started(self, spec: RunSpec, folder: Path) -> None:
        """Open an event file; an interrupted run has several, which TensorBoard combines."""
        from torch.utils.tensorboard import SummaryWriter

        self._settings = settings(spec)
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))
        rows = "\n".join(f"| {name} | {value} |" for name, value in self._settings.items())
        self._writer.add_text("spec", f"| setting | value |\n|---|---|\n{rows}", 0)

    def logged(self, step: int, values: Mapping[str, float]) -> None:
        """Write values immediately, for live monitoring."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finished(self, step: int, figures: Mapping[str, float]) -> None:
        """Write the figures."""
        from torch.utils.tensorboard.summary import hparams

        self.logged(step, figures)
        for summary in hparams(dict(self._settings), dict(figures)):
            self._writer.file_writer.add_summary(summary)
        self._writer.close()

    def failed(self, error: BaseException) -> None:
        """Write the reason, and keep what was logged."""
        self._writer.add_text("error", _reason(error))
        self._writer.close()


class MLflow:
    """A run in the experiment set in MLflow's environment: parameters, metrics, and tags with key and protocol.

    It uses `MlflowClient`, since MLflow's active run is shared by the whole process.
    """

    def started(self, spec: RunSpec, folder: Path) -> None:
        """Create the run, or continue it after an interruption."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        note = folder / "tracking" / "mlflow"
        if note.is_file():
            self._run = note.read_text()
            self._client.update_run(self._run, status="RUNNING")
            return
        tags = {f"plbench.{name}": value for name, value in _tags(spec).items()}
        run = self._client.create_run(self._experiment(), run_name=_title(spec), tags=tags)
        self._run = str(run.info.run_id)
        write_text(note, self._run)
        params = [Param(name, str(value)) for name, value in settings(spec).items()]
        for start in range(0, len(params), _MAX_PARAMS):
            self._client.log_batch(self._run, params=params[start : start + _MAX_PARAMS])

    def _experiment(self) -> str:
        """Return the id of the experiment, which is created if missing."""
        if identity := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return identity
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name))
            except Exception:
                found = self._client.get_experiment_by_name(name)  # another process was faster
                if found is None:
                    raise
        return str(found.experiment_id)

    def logged(self, step: int, values: Mapping[str, float]) -> None:
        """Log metrics in one call."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run, [Metric(name, value, now, step) for name, value in values.items()])

    def finished(self, step: int, figures: Mapping[str, float]) -> None:
        """Log the figures and end the run."""
        self.logged(step, figures)
        self._client.set_terminated(self._run, "FINISHED")

    def failed(self, error: BaseException) -> None:
        """End the run as failed, or as killed if it was stopped."""
        self._client.set_tag(self._run, "plbench.error", _reason(error))
        self._client.set_terminated(self._run, "FAILED" if isinstance(error, Exception) else "KILLED")


class WandB:
    """A run in the project set in W&B's environment: its config, a history by step, and the figures as summary."""

    def started(self, spec: RunSpec, folder: Path) -> None:
        """Start the run, or continue it after an interruption; its files are in the run's folder `wandb`."""
        import wandb

        note = folder / "tracking" / "wandb"
        goes_on = note.is_file()
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=_title(spec),
            id=note.read_text() if goes_on else None,
            resume="allow" if goes_on else None,
            dir=os.environ.get("WANDB_DIR") or str(folder),
            tags=[f"{name}:{value}"[:64] for name, value in _tags(spec).items()],
            config={"key": spec.key, **spec.model_dump(mode="json", exclude_none=True)},
            reinit="create_new",  # several runs may train together
            settings=wandb.Settings(console="off", silent=True),  # keep W&B's output and ours apart
        )
        write_text(note, str(self._run.id))
        # W&B's own counter never decreases, as it would need to after an interruption
        self._run.define_metric("*", step_metric="step")

    def logged(self, step: int, values: Mapping[str, float]) -> None:
        """Log one row of the history."""
        self._run.log({"step": step, **values})

    def finished(self, step: int, figures: Mapping[str, float]) -> None:
        """Write the figures to the summary, and end the run."""
        self._run.summary.update(figures)
        self._run.finish(exit_code=0)

    def failed(self, error: BaseException) -> None:
        """End the run as failed, or as stopped."""
        self._run.summary["error"] = _reason(error)
        self._run.finish(exit_code=1 if isinstance(error, Exception) else 255)


KINDS: dict[str, Callable[[], Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}
"""Trackers by their names in settings, the same as in `plbench.tracking.tracker.PACKAGES`."""


def _title(spec: RunSpec) -> str:
    return f"{spec.method.name} {spec.protocol.name} seed {spec.seed} {spec.key[:8]}"


def _tags(spec: RunSpec) -> dict[str, str]:
    """Return tags by which runs can be searched."""
    tags = {"key": spec.key, "protocol": spec.protocol.name, "method": spec.method.name, "regime": spec.regime}
    return {**tags, "seed": str(spec.seed), "part": spec.train_part}


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]

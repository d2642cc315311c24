"""A workspace and runs in plain values, for a process on another node: paths are absolute and valid on every node."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plbench.data.dataset import Dataset
from plbench.progress import Reporter
from plbench.runs.environment import choose_device
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.registry import Registry
from plbench.runs.store import Store
from plbench.runs.workspace import Workspace
from plbench.spec import Frozen
from plbench.training.distributed import ALONE, World


class Data(Frozen):
    """The files of a dataset: its folder, and its other options."""

    root: Path
    options: dict[str, Any]


class Place(Frozen):
    """Locations and compute options.

    Attributes:
        plugins: files with methods or datasets.
        own_only: whether methods and datasets of other distributions are left out.
        device: its type, "cpu" or "cuda".
        nproc: processes per run.
        others: as in `Workspace`.
    """

    runs: Path
    cache: Path
    plugins: tuple[Path, ...]
    own_only: bool
    device: str
    workers: int
    nproc: int
    weights_file: Path | None
    pretraining: tuple[str, ...] | None
    track: tuple[str, ...]
    decode: str
    save_every: float
    compiles: bool
    profiles: bool

    def workspace(self, data: Data, reporter: Reporter | None = None, world: World = ALONE) -> Workspace:
        """Return a workspace of this process, for runs on this data.

        Args:
            data: of the runs.
            reporter: receives progress; None for none.
            world: the processes that train together.

        Raises:
            PlbenchError: if this machine has no such device, or plugins cannot be loaded.
        """
        return Workspace(
            store=Store(self.runs, self.cache),
            registry=Registry.discover(self.plugins, self.own_only),
            reporter=reporter or Reporter(),
            device=choose_device(self.device),
            workers=self.workers,
            data_root=data.root,
            data_options=data.options,
            weights_file=self.weights_file,
            pretraining=self.pretraining,
            track=self.track,
            decode=self.decode,
            world=world,
            save_every=self.save_every,
            compiles=self.compiles,
            profiles=self.profiles,
            nproc=self.nproc if world.size == 1 else 1,
        )


def place_of(workspace: Workspace, plugins: Sequence[Path], *, device: str, workers: int) -> Place:
    """Return a workspace in plain values.

    Args:
        workspace: on this machine.
        plugins: files with methods or datasets.
        device: type of the other process's device.
        workers: number of processes that decode images there, for each training process.
    """
    same = ("nproc", "pretraining", "track", "decode", "save_every", "compiles", "profiles")
    return Place(
        runs=workspace.store.runs.absolute(),
        cache=workspace.store.cache.absolute(),
        plugins=tuple(path.absolute() for path in plugins),
        own_only=workspace.registry.is_own_only,
        device=device,
        workers=workers,
        weights_file=workspace.weights_file and workspace.weights_file.absolute(),
        **{name: getattr(workspace, name) for name in same},
    )


def data_of(plan: ResolvedRun) -> Data:
    """Return the files with which a run's dataset was opened."""
    dataset: Dataset = plan.protocol_data.dataset
    told = dataset.options.model_dump(exclude_unset=True).items()
    options = {name: value.absolute() if isinstance(value, Path) else value for name, value in told}
    return Data(root=dataset.root.absolute(), options=options)

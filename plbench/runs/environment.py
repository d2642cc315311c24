"""The environment of a run: versions, device, commit; without host or user names and paths."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import plbench
from plbench.errors import PlbenchError
from plbench.training.distributed import local_rank

PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "pillow", "pydantic")


def describe(device: torch.device, decode: str = "pil") -> dict[str, Any]:
    """Return the environment as plain values.

    Args:
        device: the compute device.
        decode: the JPEG decoder, as named by `plbench.loading.jpegs.jpeg_decoder`.
    """
    return {
        "plbench": plbench.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": package_versions(),
        "device": device_name(device),
        "decode": decode,
        "cpu": cpu_name(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        **git_state(),
        "source_sha256": source_sha256(),
    }


def source_sha256() -> str:
    """Return the hex sha256 over all Python files of plbench, to identify the code without a commit."""
    digest = hashlib.sha256()
    for package in ("plbench", "plbench.methods", "plbench.datasets"):
        spec = importlib.util.find_spec(package)
        for place in sorted(spec.submodule_search_locations or ()) if spec is not None else ():
            for path in sorted(Path(place).rglob("*.py")):
                digest.update(f"{package}/{path.relative_to(place).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def package_versions() -> dict[str, str | None]:
    """Return installed versions of packages that affect results; None for missing ones."""
    versions: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def device_name(device: torch.device) -> str:
    """Return the GPU's name, or the type of device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@functools.cache
def cpu_name() -> str:
    """Return the CPU model reported by the system, otherwise the machine type."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(filter(None, named), "") or platform.processor() or platform.machine()


def choose_device(name: str | None) -> torch.device:
    """Return the requested or the best available device.

    Raises:
        PlbenchError: if it is not available.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and torch.cuda.is_available():  # each local process has its own GPU
        place = local_rank()
        if place >= torch.cuda.device_count():
            raise PlbenchError(
                f"process {place} of this machine has no GPU: there are {torch.cuda.device_count()}; start one process "
                'for each, or give `device="cpu"`'
            )
        torch.cuda.set_device(place)
        return torch.device("cuda", place)
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # "meta" allows allocation but holds no data
    except (RuntimeError, AssertionError, ImportError) as error:
        found = "cpu" + "".join(f", cuda:{i}" for i in range(torch.cuda.device_count()))
        raise PlbenchError(f"device {name!r} cannot be used here (available: {found})") from error
    return device


def git_state() -> dict[str, Any]:
    """Return the commit of the running source tree, and whether it has changes; None if it is not a checkout."""
    folder = Path(plbench.__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        changed = git("status", "--porcelain", "--", "..", ":!../leaderboards")
        return {"git_commit": git("rev-parse", "HEAD"), "git_dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return {"git_commit": None, "git_dirty": None}

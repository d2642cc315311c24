"""Join a Ray cluster, or start one on this machine; its capacity and its messages."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from plbench.errors import PlbenchError
from plbench.progress import Reporter

_ANSWER_SECONDS = 5.0
_OBJECTS_BYTES = 100 << 20  # of the object store, which only holds keys and messages

_TOLD = {
    "retries remaining": "A task was lost with its worker or node; it is tried again",
    "memory pressure": "A node was short of memory, and a task on it was ended; give more `cpus_per_run=`",
}
"""Ray's messages that matter to users, and how we word them."""


@dataclass(frozen=True)
class Cluster:
    """A cluster, and the resources of a run.

    Attributes:
        address: of a cluster to join; None to start one on this machine for this sweep.
        cpus, gpus: per task, including fractions of a GPU; None for one GPU if the cluster has any.
        retries: of a task whose worker or node dies. Failed trainings are not repeated.
    """

    address: str | None = None
    cpus: float = 1.0
    gpus: float | None = None
    retries: int = 3


class Overheard(io.TextIOBase):
    """Replaces standard output, which is reserved for results, while Ray writes its warnings there."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def write(self, text: str) -> int:
        """Report the messages that matter."""
        for part, sentence in _TOLD.items():
            if part in text:
                self._reporter.line(sentence)
        return len(text)


@contextlib.contextmanager
def joined(cluster: Cluster) -> Iterator[Any]:
    """Connect Ray to the cluster with this address, or to one on this machine that ends with the scope."""
    if cluster.address is None or cluster.address.rpartition(":")[0] in ("127.0.0.1", "localhost"):
        # Ray's own way to listen on 127.0.0.1 only, which it otherwise replaces with the machine's address
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    # silences a warning; plbench selects devices itself
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise PlbenchError("`executor='ray'` needs Ray; pip install 'plbench[ray]' installs it") from error
    if ray.is_initialized():  # a connection of the caller
        yield ray
        return
    if cluster.address is not None:
        host, _, port = cluster.address.rpartition(":")
        try:
            if port.isdigit():  # unlike "auto"; Ray itself would try an address for minutes
                socket.create_connection((host, int(port)), _ANSWER_SECONDS).close()
        except OSError as error:
            raise _no_cluster(cluster.address, error.strerror or str(error)) from error
    told_to_stop = signal.getsignal(signal.SIGTERM)
    own: dict[str, Any] = {}
    if cluster.address is None:
        own = {
            "_node_ip_address": "127.0.0.1",
            "include_dashboard": False,
            "object_store_memory": _OBJECTS_BYTES,
            "_system_config": {"task_oom_retries": cluster.retries},  # otherwise a run that never fits is tried forever
        }
    try:
        ray.init(address=cluster.address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise _no_cluster(cluster.address, first_line(error)) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, told_to_stop)  # Ray would exit without a message
    try:
        yield ray
    finally:
        ray.shutdown()


def _no_cluster(address: str | None, why: str) -> PlbenchError:
    if address is None:
        return PlbenchError(
            f"Ray could not be started on this machine: {why}; plbench sweep does without `executor='ray'`"
        )
    return PlbenchError(
        f"no Ray cluster at {address} can be joined: {why}; ray start --head starts one and says its address; without "
        "`address=` one is started for this sweep"
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip().splitlines() or [""])[0]


def slots_of(ray: Any, taken: Mapping[str, float]) -> int:
    """Return the number of tasks that the cluster can run at a time."""
    wanted = {name: amount for name, amount in taken.items() if amount > 0}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(min(int(node.get(name, 0) / amount + 1e-9) for name, amount in wanted.items()) for node in nodes)


def check_room(taken: Mapping[str, float], slots: int, cluster: Cluster, reporter: Reporter) -> None:
    """Check that a run fits in the cluster; one that was joined may still grow, one on this machine cannot."""
    if slots:
        return
    text = f"no node has room for a run ({taken['CPU']:g} CPUs and {taken['GPU']:g} GPUs)"
    if cluster.address is None:
        raise PlbenchError(f"{text}; ask for less with `cpus_per_run=` and `gpus_per_run=`")
    reporter.line(f"Waiting for a node: {text} yet")

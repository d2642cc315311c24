"""Processes that train one model together, and their communication. With a single process, every call is free.

Batches do not depend on the number of processes: each takes its share of the global batch, gradients are summed, and
losses are divided by the weight of the whole batch. Only the main process writes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from plbench.errors import PlbenchError
from plbench.loading.order import share_of

T = TypeVar("T")

_MEETING = timedelta(seconds=60)
"""Timeout for joining the other processes."""

_WORKING = timedelta(hours=2)
"""Timeout later on, since the main process may work alone for long. The launcher ends all processes when one fails."""


@dataclass(frozen=True)
class World:
    """All processes of a training, from the view of one of them.

    Attributes:
        rank: number of this process, from 0. size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def shares(self, num_rows: int) -> list[int]:
        """Return the number of rows of a global batch for each process; 0 if a short batch leaves none."""
        return [len(share_of(num_rows, rank, self.size)) for rank in range(self.size)]

    def sum_(self, values: Tensor) -> Tensor:
        """Replace values by their sum over all processes, bit-identical in each; shapes must be equal."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, values: Tensor, shares: Sequence[int]) -> Tensor:
        """Return the rows of all processes, in order. Gradients only flow to this process's own rows.

        Args:
            values: [b, …], of which the first `shares[rank]` rows are used. shares: number of rows of each process.
        """
        if self.size == 1:
            return values
        gathered: Tensor = _Gather.apply(values, self, tuple(shares))  # type: ignore[no-untyped-call]
        return gathered

    def gather_objects(self, value: T) -> list[T]:
        """Return one plain value from each process, in order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def shared(self, make: Callable[[], T]) -> T:
        """Call `make` in the main process, and return its result in all; it must be picklable. The others wait."""
        if self.size == 1:
            return make()
        values = [make() if self.is_main else None]
        dist.broadcast_object_list(values, src=0)
        return values[0]  # type: ignore[return-value]

    @torch.no_grad()
    def copy_from_main_(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors, with equal number, order and shapes in all processes, by those of the main process."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def check_same(self, facts: Mapping[str, str]) -> None:
        """Check that facts are equal in all processes; names are those in the error message.

        Raises:
            PlbenchError: in all of them, with the first process and fact that differ.
        """
        # each process compares, so that all raise and none waits for one that has ended
        found = self.gather_objects(dict(facts))
        for rank, theirs in enumerate(found):
            for name, value in found[0].items():
                if theirs.get(name) != value:
                    raise PlbenchError(
                        f"process {rank} has {name} {theirs.get(name)}, process 0 has {value}; give all of them the "
                        "same command, the same data and one version of plbench and torch"
                    )

    def wrapped(self, network: nn.Module) -> nn.Module:
        """Return the network in torch's DistributedDataParallel, with summed gradients; unchanged for one process.

        Parameters that a step does not use have no gradient, as in one process.
        """
        # torch rejects networks without trainable parameters
        if self.size == 1 or not any(parameter.requires_grad for parameter in network.parameters()):
            return network
        parallel = nn.parallel.DistributedDataParallel(
            network,
            # a method's forward may skip parameters, for whose gradients DDP would wait
            find_unused_parameters=True,
            # gradients are views of the communication buckets, to avoid a second copy
            gradient_as_bucket_view=True,
        )

        def sum_gradients(state, bucket):  # type: ignore[no-untyped-def]  # torch refuses annotations that are strings
            # DDP's own hook divides by the number of processes, but the engine divides by the batch's weight. It does
            # not wait here, so that a bucket is sent while backward fills the next one
            return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda future: future.value()[0])

        parallel.register_comm_hook(None, sum_gradients)
        return parallel


ALONE = World()


class _Gather(torch.autograd.Function):
    """All-gather of unequal numbers of rows.

    Every process computes the same loss from all rows, so the gradient of its own rows is complete.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, world: World, shares: tuple[int, ...]) -> Tensor:
        ctx.place, ctx.num_rows = (sum(shares[: world.rank]), shares[world.rank]), len(values)
        # all_gather needs equal shapes in all processes; rows beyond the share are placeholders, which do not count
        padded = values.new_zeros((max(shares), *values.shape[1:]))
        padded[: shares[world.rank]] = values[: shares[world.rank]]
        parts = [torch.empty_like(padded) for _ in shares]
        dist.all_gather(parts, padded)
        return torch.cat([part[:share] for part, share in zip(parts, shares, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        start, share = ctx.place
        # for all given rows: placeholders have a gradient of 0
        own = gradients[0].new_zeros((ctx.num_rows, *gradients[0].shape[1:]))
        own[:share] = gradients[0][start : start + share]
        return own, None, None


def is_launched() -> bool:
    """Return whether this process is one of several started by `torchrun` or `plbench.training.launch`."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Join the processes set in the environment (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) inside the scope.

    Yields `ALONE` if this process was not launched as one of several.

    Args:
        device: of this process; GPU tensors are sent by NCCL, all others by gloo.

    Raises:
        PlbenchError: if the other processes cannot be reached.
    """
    if not is_launched():
        yield ALONE
        return
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        # manually, since init_process_group has only one timeout for joining and working
        store, rank, size = next(rendezvous("env://", timeout=_MEETING))
        store.set_timeout(_WORKING)
        # gloo as well, since scores and plain values are on the CPU
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_WORKING)
    except (RuntimeError, ValueError, OSError) as error:
        text = str(error)
        if "EADDRINUSE" in text or "address already in use" in text.lower():
            why = f"port of {place} is in use by another program; set MASTER_PORT to a free one, or use `nproc=`"
        elif isinstance(error, ValueError):
            why = f"the environment of a process among several is not complete: {text.splitlines()[0]}; use torchrun"
        else:
            why = (
                f"the main process at {place} could not be reached within {_MEETING.seconds} s; check MASTER_ADDR and "
                "MASTER_PORT, and that all processes were started"
            )
        raise PlbenchError(why) from error
    try:
        yield World(rank, size)
    finally:
        dist.destroy_process_group()


def local_rank() -> int:
    """Return the number of this process on its machine, which selects its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_size() -> int:
    """Return the number of processes of this training on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))

"""Processes that train one model together: who is who, and what they tell each other. Alone, every call is free.

What a batch is does not depend on their number: each takes its share of the global batch, gradients are summed, and
losses are divided by the weight of the whole. Only the main process writes.
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
"""How long a process waits for the others at the start."""

_WORKING = timedelta(hours=2)
"""How long it waits later: the main process may have much to do alone. What launched them ends all when one fails."""


@dataclass(frozen=True)
class World:
    """All processes of a training, as one of them sees it.

    Attributes:
        rank: this process's number, from 0 on. size: their number.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def shares(self, num_rows: int) -> list[int]:
        """Return rows of a global batch that fall to each process, 0 where a short batch leaves it without a row."""
        return [len(share_of(num_rows, rank, self.size)) for rank in range(self.size)]

    def sum_(self, values: Tensor) -> Tensor:
        """Replace values, of one shape in all processes, by their sum over them, the same bits in each."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, values: Tensor, shares: Sequence[int]) -> Tensor:
        """Return rows of all processes, in order. A gradient flows back to this process's own rows only.

        Args:
            values: [b, …], of which the first `shares[rank]` rows count. shares: rows of each process.
        """
        if self.size == 1:
            return values
        gathered: Tensor = _Gather.apply(values, self, tuple(shares))  # type: ignore[no-untyped-call]
        return gathered

    def gather_objects(self, value: T) -> list[T]:
        """Return one plain value of each process, in order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def shared(self, make: Callable[[], T]) -> T:
        """Return what the main process makes, for all; it must be picklable. The others wait."""
        if self.size == 1:
            return make()
        values = [make() if self.is_main else None]
        dist.broadcast_object_list(values, src=0)
        return values[0]  # type: ignore[return-value]

    @torch.no_grad()
    def copy_from_main_(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors, of the same number, order and shapes in all processes, by those of the main one."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def check_same(self, facts: Mapping[str, str]) -> None:
        """Make sure that all processes are about to do the same: facts by name, as they are said in the error.

        Raises:
            PlbenchError: in all of them, naming the first process and fact that differ.
        """
        # each process compares for itself, so that all raise and none waits for one that is gone
        found = self.gather_objects(dict(facts))
        for rank, theirs in enumerate(found):
            for name, value in found[0].items():
                if theirs.get(name) != value:
                    raise PlbenchError(
                        f"process {rank} has {name} {theirs.get(name)}, process 0 has {value}; give all of them the "
                        "same command, the same data and one version of plbench and torch"
                    )

    def wrapped(self, network: nn.Module) -> nn.Module:
        """Return the network under torch's DistributedDataParallel, gradients summed; as it is in one process.

        Parameters that a step does not use have no gradient, as in one process.
        """
        # torch refuses to wrap a network without a parameter to train
        if self.size == 1 or not any(parameter.requires_grad for parameter in network.parameters()):
            return network
        parallel = nn.parallel.DistributedDataParallel(
            network,
            # a method's forward may leave parameters out, whose gradients DDP would wait for
            find_unused_parameters=True,
            # gradients lie in the buckets that travel, so that there is no second copy of them
            gradient_as_bucket_view=True,
        )

        def sum_gradients(state, bucket):  # type: ignore[no-untyped-def]  # torch refuses annotations that are strings
            # where DDP's own hook divides by the processes: the engine divides by the whole batch's weight;
            # not waited for here: a bucket travels while backward fills the next one
            return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda future: future.value()[0])

        parallel.register_comm_hook(None, sum_gradients)
        return parallel


ALONE = World()


class _Gather(torch.autograd.Function):
    """All-gather of unequal numbers of rows.

    Every process computes the same from the whole, so its own rows' part of that gradient is complete.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, world: World, shares: tuple[int, ...]) -> Tensor:
        ctx.place, ctx.num_rows = (sum(shares[: world.rank]), shares[world.rank]), len(values)
        # all_gather wants one shape in all processes; rows beyond the share are stand-ins, which must not count
        padded = values.new_zeros((max(shares), *values.shape[1:]))
        padded[: shares[world.rank]] = values[: shares[world.rank]]
        parts = [torch.empty_like(padded) for _ in shares]
        dist.all_gather(parts, padded)
        return torch.cat([part[:share] for part, share in zip(parts, shares, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        start, share = ctx.place
        # of all rows that were given: stand-ins get a gradient of 0
        own = gradients[0].new_zeros((ctx.num_rows, *gradients[0].shape[1:]))
        own[:share] = gradients[0][start : start + share]
        return own, None, None


def is_launched() -> bool:
    """Return whether this process is one of several, as `torchrun` and `plbench.training.launch` start them."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Join the world that the environment names (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), while the scope lasts.

    Yields `ALONE` where this process was not launched as one of several.

    Args:
        device: of this process; on a GPU, tensors there travel by NCCL and all others by gloo.

    Raises:
        PlbenchError: if the other processes cannot be reached.
    """
    if not is_launched():
        yield ALONE
        return
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        # by hand: init_process_group has one timeout for meeting and for working
        store, rank, size = next(rendezvous("env://", timeout=_MEETING))
        store.set_timeout(_WORKING)
        # with NCCL alone, scores and plain values, which are on the CPU, could not be gathered
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
    """Return number of this process among those of its machine: which of its GPUs it takes."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_size() -> int:
    """Return number of processes on this machine that belong together."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))

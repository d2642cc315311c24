"""One of the two processes of `plbench.testing.pair`, from within: answers requests until there are no more."""

from __future__ import annotations

import os
import pickle
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist

from plbench.runs.registry import Registry
from plbench.testing.findings import in_words
from plbench.testing.pair import NUM_PROCESSES, Request, outcome, send
from plbench.testing.small_job import SmallJob, Subject
from plbench.training.distributed import World


@dataclass
class Served:
    """This process."""

    rank: int
    store: str

    @cached_property
    def world(self) -> World:
        """Meets the other."""
        dist.init_process_group("gloo", init_method=f"file://{self.store}", rank=self.rank, world_size=NUM_PROCESSES)
        return World(self.rank, NUM_PROCESSES)

    def answer(self, request: Request) -> dict[str, Any]:
        """Trains."""
        try:
            subject = Subject(request.kind(), request.values, Registry.discover(request.plugins))
            job = SmallJob(subject, request.size, request.seed, wide=True, world=self.world)
            return {"rank": self.rank, **outcome(job.trained())}
        except Exception as error:  # whatever it is, the other waits for this process
            return {"rank": self.rank, "error": in_words(error)}


def serve(rank: int, store: str) -> None:
    """Answers requests until there are no more."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a plugin prints is no answer
    torch.set_num_threads(1)
    served = Served(rank, store)
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)  # the process that started this one wrote it
        except EOFError:
            return
        send(answers, served.answer(request))


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2])

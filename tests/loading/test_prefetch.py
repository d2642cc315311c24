"""Batches on their way to the device: all of them, in order, and nothing left running."""

from collections.abc import Generator, Iterator
from typing import Any, ClassVar
from weakref import WeakSet

import pytest
import torch
from torch import Tensor

from plbench.loading.prefetch import ahead, prefetched, tensors_in

CPU = torch.device("cpu")


class Source:
    """Numbers up to a limit; notes what was asked for and whether it was closed."""

    def __init__(self, limit: int, failing: bool = False) -> None:
        self.limit, self.failing, self.asked, self.closed = limit, failing, 0, False

    def __call__(self) -> Generator[int, None, None]:
        try:
            for number in range(self.limit):
                self.asked = number + 1
                yield number
            if self.failing:
                raise ValueError("broken")
        finally:
            self.closed = True


class Stream:
    """Stands in for a CUDA stream: remembers, in one log for all, what is done in it."""

    log: ClassVar[list[tuple[Any, ...]]] = []

    def __init__(self, device: Any = None) -> None:
        self.events = 0

    def __enter__(self) -> None:
        Stream.log.append(("enter",))

    def __exit__(self, *exception: object) -> None:
        Stream.log.append(("exit",))

    def record_event(self) -> int:
        self.events += 1
        return self.events

    def wait_event(self, event: int) -> None:
        Stream.log.append(("wait", event))


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """CUDA's streams replaced by a log."""
    monkeypatch.setattr(Stream, "log", [])
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    return Stream.log


def doubled(number: int) -> int:
    if Stream.log and Stream.log[-1] == ("enter",):
        Stream.log.append(("move", number))
    return 2 * number


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.usefixtures("streams")
class TestAnyDevice:
    @pytest.mark.parametrize("limit", [0, 1, 2, 5])
    def test_every_batch_comes_once_and_in_order(self, device: str, limit: int) -> None:
        source = Source(limit)
        assert list(prefetched(source(), doubled, torch.device(device))) == [2 * number for number in range(limit)]
        assert source.closed

    @pytest.mark.parametrize("limit", [0, 1, 3])
    def test_an_error_comes_after_what_came_before_it(self, device: str, limit: int) -> None:
        source, seen = Source(limit, failing=True), []
        with pytest.raises(ValueError, match="broken"):
            for batch in prefetched(source(), doubled, torch.device(device)):
                seen.append(batch)
        assert seen == [2 * number for number in range(limit)]

    def test_leaving_early_closes_the_source(self, device: str) -> None:
        source = Source(100)
        batches = prefetched(source(), doubled, torch.device(device))
        assert [next(batches), next(batches)] == [0, 2]
        assert not source.closed
        batches.close()
        assert source.closed
        assert source.asked == (2 if device == "cpu" else 3)


def test_on_a_gpu_the_next_batch_is_moved_first_and_only_its_own_copy_is_waited_for(
    streams: list[tuple[Any, ...]],
) -> None:
    for number in prefetched(Source(3)(), doubled, torch.device("cuda")):
        streams.append(("use", number))
    moves = (
        [("enter",), ("move", 0), ("exit",)],
        [("enter",), ("move", 1), ("exit",)],
        [("enter",), ("move", 2), ("exit",)],
    )
    assert streams == [
        *moves[0],
        *moves[1],
        ("wait", 1),
        ("use", 0),
        *moves[2],
        ("wait", 2),
        ("use", 2),
        ("wait", 3),
        ("use", 4),
    ]


def test_never_more_than_two_batches_are_held() -> None:
    alive: WeakSet[Tensor] = WeakSet()

    def items() -> Iterator[Tensor]:
        for number in range(6):
            item = torch.tensor(number)
            alive.add(item)
            yield item
            del item

    for item in ahead(items()):
        del item
        assert len(alive) <= 2
    assert not alive


def test_tensors_are_found_in_tuples_and_lists() -> None:
    one, two = torch.zeros(1), torch.ones(2)
    assert [id(tensor) for tensor in tensors_in((one, [None, (two,), 3], "x"))] == [id(one), id(two)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_reads_what_was_copied_whatever_the_streams_do() -> None:
    device = torch.device("cuda")

    def batches() -> Generator[Tensor, None, None]:
        for number in range(50):
            yield torch.full((64, 3, 128, 128), number, dtype=torch.uint8).pin_memory()

    sums = []
    for batch in prefetched(batches(), lambda batch: batch.to(device, non_blocking=True), device):
        torch.cuda._sleep(2_000_000)  # the step is late: the next copy comes long before this sum
        sums.append(batch.sum(dtype=torch.int64))
        del batch
    assert [int(each) for each in sums] == [number * 64 * 3 * 128 * 128 for number in range(50)]

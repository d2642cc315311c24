"""A method says which of its parts did nothing: from parameters, from state, from counts, alone and in a stack."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from plbench.api import Batch, Method, Progress, Task
from plbench.board.names import flaw_of_name
from plbench.method import LabelCount
from plbench.runs import run as runner
from plbench.runs import schedule
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.plan.resolved import ResolvedRun, validate_params
from plbench.runs.record import Record
from plbench.runs.registry import Registry
from plbench.runs.workspace import Workspace

NUM_CLASSES = 5
PRIOR = torch.tensor([0.4, 0.1, 0.3, 0.2, 0.0])


@pytest.fixture
def build(make_task: Callable[..., Task]) -> Callable[..., Method]:
    def make(name: str, prior: Tensor = PRIOR, known: int | None = None, **params: Any) -> Method:
        method, task = Registry.discover().method(name), make_task(NUM_CLASSES, {"prior": prior})
        if known is not None:
            task = replace(task, positives=np.full(NUM_CLASSES, known), negatives=np.full(NUM_CLASSES, 0))
        return method(validate_params(method, params), task)

    return make


def take_step(method: Method, epoch: int = 1, logits: float = 0.0) -> None:
    output = torch.full((4, NUM_CLASSES), logits, requires_grad=True)
    labels = torch.zeros(4, NUM_CLASSES, dtype=torch.int8)
    method.loss(output, Batch(output, labels, torch.arange(4)), Progress(4 * epoch, 8, epoch, 2))


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({}, ["O_P is empty"]),
        ({"eta": 0.35}, []),
        ({"eta": 0.4}, ["O_P is empty"]),
        ({"eta_top": 2}, []),
        ({"mode": "likelihood"}, []),
        ({"mode": "likelihood", "top_k": 0}, ["O_L is empty"]),
        ({"mode": "likelihood", "top_k": NUM_CLASSES}, ["the limit Ignore"]),
        ({"top_k": 0}, ["O_P is empty", "O_L is empty"]),
        ({"mode": "prior", "top_k": 0}, ["O_P is empty"]),
        ({"mode": "prior", "eta": 0.1, "top_k": 0}, []),
        ({"mode": "soft-prior"}, []),
        ({"mode": "soft-prior", "alpha": 0.0}, ["the soft prior is 1"]),
    ],
)
def test_selective(build: Callable[..., Method], params: dict[str, Any], said: list[str]) -> None:
    found = build("selective", **{"top_k": 2, **params}).idle()
    assert len(found) == len(said)
    assert all(words in sentence for words, sentence in zip(said, found, strict=True))


def test_selective_where_nothing_is_known_to_be_ignored(build: Callable[..., Method]) -> None:
    assert build("selective", prior=torch.zeros(NUM_CLASSES), mode="soft-prior").idle()[0].startswith("the soft prior")
    assert build("selective", known=64, mode="likelihood", top_k=2).idle() == [
        "no label is unknown, so O_L and O_P are empty"
    ]


@pytest.mark.parametrize("name", ["ll-r", "ll-ct", "ll-cp"])
def test_large_losses_are_counted(build: Callable[..., Method], name: str) -> None:
    method = build(name, delta_percent=10.0)
    take_step(method, epoch=0)
    assert len(method.idle()) == 1
    take_step(method, epoch=1)
    assert method.idle() == []
    still = build(name, delta_percent=0.0)
    take_step(still, epoch=1)
    assert len(still.idle()) == 1


@pytest.mark.parametrize(("logits", "epoch", "is_idle"), [(3.0, 1, False), (3.0, 0, True), (-3.0, 1, True)])
def test_splc_counts_what_it_corrects(build: Callable[..., Method], logits: float, epoch: int, is_idle: bool) -> None:
    method = build("splc")
    take_step(method, epoch, logits)
    assert bool(method.idle()) == is_idle


@pytest.mark.parametrize("name", ["em-apl", "curriculum"])
def test_pseudo_labels_are_looked_at(build: Callable[..., Method], name: str) -> None:
    method = build(name)
    assert len(method.idle()) == 1
    method.pseudo.add(torch.tensor([3]), torch.tensor([1.0]))  # type: ignore[attr-defined]
    assert method.idle() == []


def test_a_board_may_show_every_sentence(build: Callable[..., Method]) -> None:
    methods = [
        build(n, **p) for n, p in (("ll-r", {}), ("ll-ct", {}), ("splc", {}), ("em-apl", {}), ("curriculum", {}))
    ]
    methods += [build("selective", mode=mode, top_k=k) for mode in ("both", "soft-prior") for k in (0, NUM_CLASSES)]
    assert [flaw_of_name(sentence) for method in methods for sentence in method.idle() if flaw_of_name(sentence)] == []


class TestCount:
    def test_a_stack_counts_for_each_head_and_goes_on_from_what_each_had(self) -> None:
        heads = [LabelCount() for _ in range(3)]
        heads[1].add(torch.ones(2, 4, dtype=torch.bool))
        marks = torch.zeros(3, 2, 4, dtype=torch.bool)
        marks[0, 0, 0] = marks[1] = True
        for _ in range(2):  # a stack is made anew whenever one of its heads is done
            LabelCount.stacked(heads).add(marks)
        assert [head.total() for head in heads] == [2, 24, 0]

    def test_it_goes_on_from_a_checkpoint(self) -> None:
        count = LabelCount()
        count.restart(7)
        count.add(torch.ones(1, 2, dtype=torch.bool))
        assert count.total() == 9


@pytest.mark.usefixtures("quick_records")
class TestRecord:
    def plans(self, workspace: Workspace) -> list[ResolvedRun]:
        wanted = [
            ("splc", {"tau": 1.0}),
            ("splc", {"tau": 0.0}),
            ("selective", {"top_k": 6}),
            ("selective", {"top_k": 2, "eta": 0.0}),
        ]
        return [plan_run(Request("tiny", name, method_params=params), workspace) for name, params in wanted]

    def check(self, records: list[Any]) -> None:
        warnings = [[w for w in record.warnings if "classes have no known" not in w] for record in records]
        assert "taken for positive" in warnings[0][0]
        assert warnings[1] == []
        assert any("the limit Ignore" in warning for warning in warnings[2])
        assert warnings[3] == []

    def test_a_run_warns(self, make_workspace: Callable[..., Workspace]) -> None:
        workspace = make_workspace()
        self.check([runner.run(plan, workspace) for plan in self.plans(workspace)])

    def test_so_does_each_head_of_a_stack(self, make_workspace: Callable[..., Workspace]) -> None:
        workspace = make_workspace()
        records = schedule.run_all(self.plans(workspace), workspace)
        assert all(isinstance(record, Record) for record in records)
        self.check(records)

"""What every installed method must do, whatever its loss: a new method is tested by existing.

The checks are those of `plbench methods check`; they are tested themselves in tests/testing/test_kit.py.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_flatten

from plbench.runs.registry import Registry
from plbench.testing.findings import raise_failed
from plbench.testing.methods import method_findings, subjects
from plbench.testing.pair import shared_pair
from plbench.testing.small_job import SmallJob, Subject

REGISTRY = Registry.discover()
SUBJECTS = [subject for name in REGISTRY.names("method") for subject in subjects(name, REGISTRY)]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors are slower with more. The pair of processes starts while the first checks run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    shared_pair()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.label)
def test_a_method_does_what_it_must(subject: Subject) -> None:
    raise_failed(list(method_findings(subject)))


@pytest.mark.parametrize("subject", [one for one in SUBJECTS if one.kind.learns], ids=lambda subject: subject.label)
def test_half_precision_outputs_reach_the_loss_widened(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    job = SmallJob(subject, precision="bfloat16")
    state = job.state()
    forward, loss = state.method.forward, state.method.loss
    given, taken = set(), set()

    def kinds(output: Any) -> set[torch.dtype]:
        return {part.dtype for part in tree_flatten(output)[0] if isinstance(part, torch.Tensor)}

    def spied_forward(*args: Any) -> Any:
        given.update(kinds(output := forward(*args)))
        return output

    def spied_loss(output: Any, *args: Any) -> Any:
        taken.update(kinds(output))
        return loss(output, *args)

    monkeypatch.setattr(state.method, "forward", spied_forward)
    monkeypatch.setattr(state.method, "loss", spied_loss)
    job.go_on(state)
    assert torch.float32 in taken and torch.bfloat16 not in taken
    assert given <= {torch.bfloat16, torch.float32, torch.int64}  # log-probabilities of an RNN are wider already


def test_there_are_methods_and_each_stands_once() -> None:
    assert {"ce-ignore", "selective", "ll-cp"} <= {subject.kind.name for subject in SUBJECTS}
    labels = [subject.label for subject in SUBJECTS]
    assert len(set(labels)) == len(labels) > len(REGISTRY.names("method"))

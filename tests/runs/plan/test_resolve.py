"""What a plan says before any time is spent."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from plbench.api import LabelledSplit, PartialLabels
from plbench.errors import DataError, PlbenchError
from plbench.progress import Reporter
from plbench.runs import run as runner
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.workspace import Workspace
from plbench.training.distributed import World


@pytest.mark.parametrize(
    ("regime", "backbone", "size", "expected"),
    [
        ("finetune", "test_resnet", 2, 2),  # batch normalisation, of each process's share on a CPU
        ("finetune", "test_resnet", 1, None),
        ("probe", "test_resnet", 2, None),
        ("finetune", "test_vit", 2, None),
    ],
)
def test_the_number_of_processes_is_in_the_key_where_it_decides(
    make_workspace: Callable[..., Workspace], regime: Any, backbone: str, size: int, expected: int | None
) -> None:
    workspace = make_workspace()
    request = Request("tiny", "ce-ignore", regime=regime, model={"backbone": backbone, "weights": "random"})
    spec = plan_run(request, replace(workspace, world=World(0, size))).spec
    assert spec.processes == expected
    assert (spec.key == plan_run(request, workspace).spec.key) is (expected is None)


Make = Callable[..., Workspace]


@pytest.fixture
def holding(tiny_dataset: type[Any], make_workspace: Make, listening: Reporter) -> Make:
    """A workspace whose dataset says something else of the same images: `holding(change, names=...)`."""

    def make(change: Callable[[str, np.ndarray], np.ndarray], names: list[str] | None = None) -> Workspace:
        class Changed(tiny_dataset):  # type: ignore[misc]
            def split(self, name: str) -> Any:
                whole = super().split(name)
                labels = change(name, whole.labels.rows(np.arange(whole.labels.num_images)).copy())
                ids = whole.labels.class_ids
                matrix = PartialLabels.from_dense(labels, ids, names or ids)
                return LabelledSplit(whole.images, matrix)

        return replace(make_workspace(Changed), reporter=listening)

    return make


def without(*columns: int, part: str, sign: int = 0) -> Callable[[str, np.ndarray], np.ndarray]:
    """Takes labels out of a split: of some columns, or of all; of one sign, or of both."""

    def change(name: str, labels: np.ndarray) -> np.ndarray:
        if name == part:
            chosen = list(columns) or list(range(labels.shape[1]))
            labels[:, chosen] = np.where((labels[:, chosen] == sign) | (sign == 0), 0, labels[:, chosen])
        return labels

    return change


@pytest.mark.parametrize("method", ["ce-ignore", "selective", "ce-negative"])
@pytest.mark.parametrize("simulate", ["none", "rpa=0.5"])
def test_a_train_part_of_which_nothing_is_known(holding: Make, method: str, simulate: str) -> None:
    workspace = holding(without(part="train"))
    with pytest.raises(DataError, match=r"no label of the 48 images .* is known, so there is nothing to learn"):
        params = {"mode": "likelihood"} if method == "selective" else {}
        plan_run(Request("tiny", method, params, simulate=simulate), workspace)


def test_a_simulation_that_hides_all(make_workspace: Make) -> None:
    with pytest.raises(DataError, match=r"the simulation rpa=1 hides them all; give one that keeps more .*`simulate=`"):
        plan_run(Request("tiny", "ce-negative", simulate="rpa=1"), make_workspace())


@pytest.mark.parametrize("sign", [1, -1, 0])
def test_a_test_part_that_cannot_be_scored(holding: Make, sign: int) -> None:
    workspace = holding(without(part="test", sign=sign))
    request = Request("tiny", "ce-negative")
    with pytest.raises(DataError, match=r"no class in the split 'test' .* so none can be scored"):
        plan_run(request, workspace)
    assert plan_run(replace(request, scores_test=False), workspace)  # a study does not look there


@pytest.mark.parametrize(
    ("columns", "sign", "said"),
    [
        ((2,), 0, "1 of 6 classes have no known label in train: nothing is learned about them (the first: "),
        ((0, 4), 0, "2 of 6 classes have no known label in train: nothing is learned about them (the first: "),
        ((1,), 1, "1 of 6 classes have no known positive in train (the first: "),
    ],
)
def test_classes_of_which_nothing_is_known_are_noted(
    holding: Make, columns: tuple[int, ...], sign: int, said: str
) -> None:
    workspace = holding(without(*columns, part="train", sign=sign))
    plan_run(Request("tiny", "ce-negative", simulate="none"), workspace)
    assert [line for line in workspace.reporter.lines if line.startswith(f"Note: {said}")]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["mop", "mop", "c", "d", "e", "f"], "are both named 'mop'"),
        (["a", "mop ", "c", "d", "e", " mop"], "are both named 'mop'"),
        (["x", "x", "x", "d", "y", "y"], "are all named 'x', and 1 more names are shared by several classes"),
    ],
)
@pytest.mark.usefixtures("quick_records")
def test_names_of_several_classes_are_noted_once_and_recorded(holding: Make, names: list[str], said: str) -> None:
    workspace = holding(lambda name, labels: labels, names)
    plan = plan_run(Request("tiny", "ce-negative"), workspace)
    plan_run(Request("tiny", "ce-ignore"), workspace)
    assert len([line for line in workspace.reporter.lines if said in line]) == 1
    assert any(said in note for note in runner.run(plan, workspace).notes)


def test_a_table_that_would_not_fit_is_refused_before_anything_trains(
    make_workspace: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request("tiny", "curriculum", regime="finetune", model={"backbone": "test_resnet", "weights": "random"})
    plan_run(request, make_workspace())
    monkeypatch.setattr("plbench.losses.sample_state.MAX_STATE_BYTES", 100)
    with pytest.raises(PlbenchError, match="keeps pseudo-labels"):
        plan_run(request, make_workspace())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"simulate": "fpc=abc"}, "fpc needs a number, not 'abc'"),
        ({"simulate": "fcp=3"}, "there is no simulation 'fcp'"),
        ({"recipe": "nothere"}, "has no recipe 'nothere'"),
        ({"plan": {"epochs": 0}}, "epochs"),
        ({"model": {"backbone": "resnet51"}}, "'resnet51' is not a timm model"),
        ({"model": {"head_width": 0}}, "head_width"),
    ],
)
def test_what_needs_no_data_is_refused_before_any_is_read(
    wrong: dict[str, Any], message: str, tiny_dataset: type[Any], make_workspace: Make
) -> None:
    class Unread(tiny_dataset):  # type: ignore[misc]
        def prepare(self, report: Any) -> None:
            raise AssertionError("it was read")

    with pytest.raises(PlbenchError, match=re.escape(message)):
        plan_run(Request("tiny", "ce-ignore", **wrong), make_workspace(Unread))

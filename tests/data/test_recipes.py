"""Recipes of papers: they go with the protocols of these papers, and each value has its source."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plbench.data.recipes import cole2021_recipe, mlr_pl_recipe, robust_loss_recipe
from plbench.errors import PlbenchError
from plbench.progress import Reporter
from plbench.runs.plan.resolve import Request, resolve_setting
from plbench.runs.registry import Registry
from plbench.runs.workspace import Workspace
from plbench.spec import Plan, Recipe

RECIPES = (cole2021_recipe(8, 1e-4), mlr_pl_recipe(), robust_loss_recipe())
REGISTRY = Registry.discover()


@pytest.mark.parametrize("name", REGISTRY.names("dataset"))
def test_a_protocol_of_a_paper_has_the_recipe_of_that_paper(name: str) -> None:
    kind = REGISTRY.dataset(name)
    of_papers = {protocol.simulation.partition("=")[0] for protocol in kind.protocols} & {"cole2021", "mlr-pl"}
    assert of_papers <= {recipe.name for recipe in kind.recipes}
    assert kind.recipes[0].name in ("quick", "paper")  # a default that was there before stays


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_each_value_that_is_no_default_has_a_source(recipe: Recipe) -> None:
    assert recipe.notes
    assert all("/" in why or why.startswith("ours") for why in recipe.sources.values())
    said = " ".join(recipe.sources)
    for regime, plan in recipe.plans.items():
        chosen = {name for name, value in plan if value != Plan.model_fields[name].default}
        assert f"{regime} plan" in said or all(name in said for name in chosen), chosen


class Notes(Reporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def voc(tmp_path: Path, make_workspace: Any) -> Workspace:
    REGISTRY.dataset("voc2007")(tmp_path / "voc").make_fixture()
    return replace(make_workspace(), reporter=Notes(), data_root=tmp_path / "voc")


def a_request(**changes: Any) -> Request:
    small = {"backbone": "test_resnet", "weights": "random", "image_size": 32}
    return Request("voc2007", "", recipe="mlr-pl", simulate="mlr-pl=0.5", model=small, **changes)


def test_what_a_plan_cannot_say_is_noted_where_a_run_is_planned(voc: Workspace) -> None:
    setting = resolve_setting(a_request(), voc)
    assert setting.spec.plan == mlr_pl_recipe().plans["finetune"]
    assert isinstance(voc.reporter, Notes)
    assert [text for text in voc.reporter.said if text.startswith("recipe mlr-pl: ")] == [
        f"recipe mlr-pl: {note}" for note in mlr_pl_recipe().notes
    ]


def test_a_regime_without_a_plan_is_refused(voc: Workspace) -> None:
    with pytest.raises(PlbenchError, match="recipe 'mlr-pl' of dataset 'voc2007' has no plan for the probe regime"):
        resolve_setting(a_request(regime="probe"), voc)

"""Convert command-line options to a request, and a stored spec to a plan."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from plbench.cli.options import command, parse_assignments, typed
from plbench.data.embeddings import keep_embeddings
from plbench.errors import PlbenchError, first_invalid
from plbench.python.settings import (
    FLAGS,
    MODEL_SETTINGS,
    OF_DATA,
    PLAN_SETTINGS,
    REQUEST_SETTINGS,
    WEIGHTS,
    request_of,
)
from plbench.runs.environment import choose_device
from plbench.runs.plan.resolve import Request, ResolvedSetting, plan_from_spec, plan_run
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.protocol import choose_protocol
from plbench.runs.workspace import Workspace
from plbench.spec import RunSpec


def plan_from_options(given: Mapping[str, Any], workspace: Workspace, *, scores_test: bool = True) -> ResolvedRun:
    """Return the plan of `plbench run` with these options; without `scores_test` the test split stays closed.

    Raises:
        PlbenchError: if method or dataset is missing, or anything does not fit.
    """
    return plan_run(replace(request_from_options(given), scores_test=scores_test), workspace)


def request_from_options(given: Mapping[str, Any]) -> Request:
    """Return the request that options describe; options that are None, or missing in a command, are not given.

    Raises:
        PlbenchError: if method or dataset is missing, or a parameter is not of the form name=value.
    """
    given = {name: value for name, value in given.items() if value is not None}
    for name in ("method", "dataset"):
        if name not in given:
            listing = f"plbench {'methods' if name == 'method' else 'data'} list shows them"
            raise PlbenchError(f"--{name} is missing; {listing}")
    if given.get("no_retrain"):
        if given.get("selection") != "validation":
            raise PlbenchError("--no-retrain needs --selection validation")
        given["selection"] = "validation-no-retrain"
    return request_of(given, parse_assignments(given.get("param")))


def plan_from_file(path: Path, given: Mapping[str, Any], workspace: Workspace) -> ResolvedRun:
    """Return the plan of a stored spec, such as `runs/<key>/spec.toml`.

    Raises:
        PlbenchError: if the file is not a spec, the run cannot be the same here, or other options would change it.
    """
    names = ("method", "dataset", "param", "no_retrain", *FLAGS, *MODEL_SETTINGS, *PLAN_SETTINGS, *REQUEST_SETTINGS)
    changing = {name: given[name] for name in names if name != "embeddings"}  # embeddings only give a location
    if given["weights"] in WEIGHTS:  # but a file gives a location
        changing["weights"] = given["weights"]
    if changed := typed(**changing):
        raise PlbenchError(f"{changed[0]} would change the run described in {path}; use one or the other")
    try:
        with path.open("rb") as file:
            spec = RunSpec.model_validate(tomllib.load(file))
    except OSError as error:
        raise PlbenchError(
            f"{path} cannot be read: {error.strerror}; give a file such as runs/KEY/spec.toml"
        ) from error
    except ValidationError as error:
        field, message, *_ = first_invalid(error)
        raise PlbenchError(f"{path} is not a run's spec: {field}: {message}") from error
    except (ValueError, RecursionError) as error:  # including Python's limit on digits, a plain ValueError
        raise PlbenchError(f"{path} is not valid TOML: {error}") from error
    if (
        given["embeddings"] is not None
        and keep_embeddings(given["embeddings"], workspace.store.cache) != spec.embeddings
    ):
        raise PlbenchError(f"--embeddings would change the run described in {path}; use one or the other")
    return plan_from_spec(spec, workspace)


def next_steps(plan: ResolvedRun, workspace: Workspace, was_done: bool) -> list[str]:
    """Return suggestions after a run, as commands that work as printed."""
    runs, registry = workspace.store.runs, workspace.registry
    steps = [command("runs", "compare", runs=runs)]
    broken = registry.broken("method")
    others = [name for name in registry.names("method") if name not in broken and not registry.method(name).needs]
    # compare with a stage that is already trained, otherwise with any method without special needs
    stages = [stage.method for stage, _ in plan.stages.values()]
    other = next((name for name in (*stages, *others) if name != plan.spec.method.name), None)
    if other is not None:
        which = typed(method=other, dataset=plan.spec.protocol.dataset)
        plan = replace(plan, spec=plan.spec.model_copy(update={"embeddings": None}))  # which that method does not use
        steps.insert(0, command("run", *which, *options_of(plan, workspace), runs=runs))
    return ["this run was finished already; --force repeats it", *steps] if was_done else steps


def options_of(plan: ResolvedRun | ResolvedSetting, workspace: Workspace) -> list[str]:
    """Return the options of `plbench run` for a run's setting: the inverse of `plan_from_options`."""
    spec, recipe, dataset = plan.spec, plan.recipe, plan.protocol_data.dataset
    protocol = choose_protocol(dataset, spec.protocol.simulation, None)
    pretraining = None if workspace.pretraining is None else ",".join(workspace.pretraining) or "none"
    weights = workspace.weights_file if spec.model.weights == "file" else spec.model.weights
    values: dict[str, tuple[Any, Any]] = {  # requested value, and the value without the option
        "simulate": (spec.protocol.simulation, None),
        "simulation_seed": (spec.protocol.simulation_seed, protocol.simulation_seed),
        "recipe": (recipe.name, dataset.recipes[0].name),
        "regime": (spec.regime, recipe.regime),
        "weights": (weights, recipe.model.weights),
        "pretraining": (pretraining, None),
        "precision": (spec.precision, "bfloat16" if workspace.device.type == "cuda" else "float32"),
        "seed": (spec.seed, 0),
        "selection": (spec.selection.removesuffix("-no-retrain"), "last"),
        "embeddings": (spec.embeddings, None),
        "no_retrain": (spec.selection == "validation-no-retrain", False),
        "data_root": (workspace.data_root, None),
        "device": (str(workspace.device), str(choose_device(None))),
        "decode": (workspace.decode, "pil"),
        **{name: (getattr(spec.model, name), getattr(recipe.model, name)) for name in MODEL_SETTINGS},
        **{name: (getattr(spec.plan, name), getattr(recipe.plans[spec.regime], name)) for name in PLAN_SETTINGS},
    }
    of_data = workspace.data_options
    return typed(
        **{name: value for name, (value, default) in values.items() if value != default},
        **{name: of_data[name] for name in OF_DATA if name in of_data},
        data_option=[f"{name}={value}" for name, value in of_data.items() if name not in OF_DATA],
        skip_unreadable=bool(spec.skipped_images),
        allow_duplicates=bool(spec.duplicates),
    )

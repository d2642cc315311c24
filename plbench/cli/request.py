"""From command-line options to a request, and from a written spec to a plan."""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from plbench.errors import PlbenchError
from plbench.runs.environment import choose_device
from plbench.runs.plan.resolve import Request, ResolvedSetting, plan_from_spec, plan_run
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.protocol import choose_protocol
from plbench.runs.workspace import Workspace
from plbench.spec import RunSpec

_MODEL_OPTIONS = ("backbone", "pooling", "head", "head_width", "image_size")
_PLAN_OPTIONS = (
    "epochs",
    "batch_size",
    "accumulate",
    "lr",
    "weight_decay",
    "optimizer",
    "clip_grad",
    "grad_checkpointing",
)
_REQUEST_OPTIONS = ("simulate", "simulation_seed", "recipe", "regime", "precision", "seed", "selection")
_DATA_OPTIONS = ("labels", "images", "negative_value")  # of a dataset, with options of their own
_WEIGHTS = ("packaged", "pretrained", "random")


def plan_from_options(given: Mapping[str, Any], workspace: Workspace, *, scores_test: bool = True) -> ResolvedRun:
    """Return the plan of `plbench run` with these options; None means not given.

    Args:
        given: values by option.
        workspace: where and how.
        scores_test: False where the test split must stay closed.

    Raises:
        PlbenchError: if method or dataset is missing, or anything does not fit.
    """
    return plan_run(replace(request_from_options(given), scores_test=scores_test), workspace)


def request_from_options(given: Mapping[str, Any]) -> Request:
    """Return what these options ask for; one that a command does not have counts as not given.

    Raises:
        PlbenchError: if method or dataset is missing, or a parameter is not of the form name=value.
    """
    given = {name: value for name, value in given.items() if value is not None}
    for name in ("method", "dataset"):
        if name not in given:
            listing = f"plbench {'methods' if name == 'method' else 'data'} list shows them"
            raise PlbenchError(f"--{name} is missing; {listing}")
    model = {name: _plain(given[name]) for name in _MODEL_OPTIONS if name in given}
    if "weights" in given:
        model["weights"] = given["weights"] if given["weights"] in _WEIGHTS else "file"
    return Request(
        dataset=given["dataset"],
        method=given["method"],
        method_params=parse_assignments(given.get("param", ())),
        model=model,
        plan={name: given[name] for name in _PLAN_OPTIONS if name in given},
        skip_unreadable=given.get("skip_unreadable", False),
        allow_duplicates=given.get("allow_duplicates", False),
        **{name: _plain(given[name]) for name in _REQUEST_OPTIONS if name in given},
    )


def parse_assignments(texts: Sequence[str]) -> dict[str, str]:
    """Return texts "name=value" as a dictionary.

    Raises:
        PlbenchError: if one has no "=", or a name comes twice.
    """
    values: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise PlbenchError(f"-P {text!r} is not of the form name=value, such as -P gamma_unann=4")
        if name in values:
            raise PlbenchError(f"-P {name} is given twice ({values[name]} and {value})")
        values[name] = value
    return values


def plan_from_file(path: Path, given: Mapping[str, Any], workspace: Workspace) -> ResolvedRun:
    """Return the plan of a run that was written down, such as `runs/<key>/spec.toml`.

    Args:
        path: of the file.
        given: the other options; those that would change the run are refused.
        workspace: where and how.

    Raises:
        PlbenchError: if the file is not such a spec, or cannot be the same run here.
    """
    flags = ("skip_unreadable", "allow_duplicates")
    changing = ("method", "dataset", "param", *flags, *_MODEL_OPTIONS, *_PLAN_OPTIONS, *_REQUEST_OPTIONS)
    changed = [name for name in changing if given[name] is not None and given[name] is not False and given[name] != []]
    if given["weights"] in _WEIGHTS:  # but a file may have to be said where it is
        changed.append("weights")
    if changed:
        raise PlbenchError(
            f"{_option(changed[0])} would change the run that {path} writes down; give the one or the other"
        )
    try:
        with path.open("rb") as file:
            spec = RunSpec.model_validate(tomllib.load(file))
    except OSError as error:
        raise PlbenchError(
            f"{path} cannot be read: {error.strerror}; give a file such as runs/KEY/spec.toml"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PlbenchError(f"{path} is not valid TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise PlbenchError(f"{path} is not a run's spec: {name}: {first['msg']}") from error
    return plan_from_spec(spec, workspace)


def next_steps(plan: ResolvedRun, workspace: Workspace, was_done: bool) -> list[str]:
    """Return what a person might do after a run, as commands that work as they stand."""
    runs = [] if workspace.store.runs == Path("runs") else ["--runs", str(workspace.store.runs)]
    steps = [shlex.join(["plbench", "runs", "compare", *runs])]
    registry, stages = workspace.registry, [stage.method for stage, _ in plan.stages.values()]
    broken = registry.broken("method")
    others = [name for name in registry.names("method") if name not in broken and not registry.method(name).needs]
    # one to compare with: that a stage has trained already, else any that needs nothing special
    other = next((name for name in (*stages, *others) if name != plan.spec.method.name), None)
    if other is not None:
        words = ["plbench", "run", "--method", other, "--dataset", plan.spec.protocol.dataset]
        steps.insert(0, shlex.join([*words, *options_of(plan, workspace), *runs]))
    return ["this run was done already; --force repeats it", *steps] if was_done else steps


def options_of(plan: ResolvedRun | ResolvedSetting, workspace: Workspace) -> list[str]:
    """Return the options of `plbench run` that ask for the setting of a run.

    `plan_from_options` the other way round.
    """
    spec, recipe, dataset = plan.spec, plan.recipe, plan.protocol_data.dataset
    protocol = choose_protocol(dataset, spec.protocol.simulation, None)
    usual = "bfloat16" if workspace.device.type == "cuda" else "float32"
    values: dict[str, tuple[Any, Any]] = {  # what is asked for, and what it is without the option
        "simulate": (spec.protocol.simulation, None),
        "simulation_seed": (spec.protocol.simulation_seed, protocol.simulation_seed),
        "recipe": (recipe.name, dataset.recipes[0].name),
        "regime": (spec.regime, recipe.regime),
        "weights": (
            workspace.weights_file if spec.model.weights == "file" else spec.model.weights,
            recipe.model.weights,
        ),
        "pretraining": (None if workspace.pretraining is None else ",".join(workspace.pretraining) or "none", None),
        "precision": (spec.precision, usual),
        "seed": (spec.seed, 0),
        "selection": (spec.selection, "last"),
        "data_root": (workspace.data_root, None),
        "device": (str(workspace.device), str(choose_device(None))),
        "decode": (workspace.decode, "pil"),
    }
    values |= {name: (getattr(spec.model, name), getattr(recipe.model, name)) for name in _MODEL_OPTIONS}
    values |= {name: (getattr(spec.plan, name), getattr(recipe.plans[spec.regime], name)) for name in _PLAN_OPTIONS}
    words = [w for name, (value, default) in values.items() if value != default for w in (_option(name), str(value))]
    for name, value in workspace.data_options.items():
        words += [_option(name), str(value)] if name in _DATA_OPTIONS else ["-D", f"{name}={value}"]
    words += ["--skip-unreadable"] if spec.skipped_images else []
    return [*words, *(["--allow-duplicates"] if spec.duplicates else [])]


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, str) else value

"""From command-line options to a request, and from a written spec to a plan."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from plbench.errors import PlbenchError
from plbench.resolve import Request, RunPlan, parse_assignments, plan_from_spec, plan_run
from plbench.spec import RunSpec
from plbench.workspace import Workspace

_MODEL_OPTIONS = ("backbone", "pooling", "head", "head_width", "image_size")
_PLAN_OPTIONS = ("epochs", "batch_size", "accumulate", "lr", "weight_decay", "optimizer", "clip_grad")
_NOT_GIVEN: tuple[Any, ...] = (None, [], False, 0, "last")  # the defaults of `plbench run`
_REQUEST_OPTIONS = ("simulate", "simulation_seed", "recipe", "regime", "precision", "seed", "selection")


def plan_from_options(given: Mapping[str, Any], workspace: Workspace) -> RunPlan:
    """The plan of `plbench run` with these options; None means not given.

    Raises:
        PlbenchError: if method or dataset is missing, or anything does not fit.
    """
    for name in ("method", "dataset"):
        if given[name] is None:
            listing = f"plbench {'methods' if name == 'method' else 'data'} list shows them"
            raise PlbenchError(f"--{name} is missing; {listing}")
    model = {name: _plain(given[name]) for name in _MODEL_OPTIONS if given[name] is not None}
    if given["weights"] is not None:
        kinds = ("packaged", "pretrained", "random")
        model["weights"] = given["weights"] if given["weights"] in kinds else "file"
    request = Request(
        dataset=given["dataset"],
        method=given["method"],
        method_params=parse_assignments(given["param"] or ()),
        model=model,
        plan={name: given[name] for name in _PLAN_OPTIONS if given[name] is not None},
        skip_unreadable=given["skip_unreadable"],
        **{name: _plain(given[name]) for name in _REQUEST_OPTIONS},
    )
    return plan_run(request, workspace)


def plan_from_file(path: Path, given: Mapping[str, Any], workspace: Workspace) -> RunPlan:
    """The plan of a run that was written down, such as `runs/<key>/spec.toml`.

    Args:
        path: of the file.
        given: the other options; those that would change the run are refused.
        workspace: where and how.

    Raises:
        PlbenchError: if the file is not such a spec, or cannot be the same run here.
    """
    changing = ("method", "dataset", "param", "skip_unreadable", *_MODEL_OPTIONS, *_PLAN_OPTIONS, *_REQUEST_OPTIONS)
    for name in changing:
        if given[name] not in _NOT_GIVEN:
            option = "--" + name.replace("_", "-")
            raise PlbenchError(f"{option} would change the run that {path} writes down; give the one or the other")
    try:
        with path.open("rb") as file:
            spec = RunSpec.model_validate(tomllib.load(file))
    except OSError as error:
        raise PlbenchError(
            f"{path} cannot be read: {error.strerror}; give a file such as runs/KEY/spec.toml"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlbenchError(f"{path} is not valid TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise PlbenchError(f"{path} is not a run's spec: {name}: {first['msg']}") from error
    return plan_from_spec(spec, workspace)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, str) else value

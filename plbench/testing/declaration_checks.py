"""Checks of a method's declarations: names, parameters and ranges."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import numpy as np

from plbench.errors import PlbenchError
from plbench.method import Method, Task
from plbench.randomness import generator
from plbench.runs.plan.resolved import validate_params
from plbench.runs.registry import source_sha256
from plbench.testing.findings import Mismatch, NotApplicable, check
from plbench.testing.small_data import Size
from plbench.testing.small_job import SmallJob, Subject
from plbench.training.hooks import Guarded

_NUM_CLASSES = (6, 80, 9600)
_NEEDS = frozenset({"negatives", "images", "feature_map", "sample_state", "embeddings"})
_NUM_SAMPLES = 5


def literal_variants(kind: type[Method]) -> Iterator[dict[str, Any]]:
    """Yield the defaults, all other values of parameters with a few named values, and declared variants."""
    seen: list[Any] = [kind.Params()]
    yield {}
    choices = [
        {name: value}
        for name, info in kind.Params.model_fields.items()
        if get_origin(info.annotation) is Literal
        for value in get_args(info.annotation)
    ]
    for values in [*choices, *(dict(variant) for variant in kind.variants.values())]:
        if (params := validate_params(kind, values)) not in seen:
            seen.append(params)
            yield values


@check("says what it is", "a title, a docstring, and a description of each parameter")
def check_words(subject: Subject) -> None:
    """Check title, description, and the description of each parameter."""
    kind = subject.kind
    if not inspect.cleandoc(kind.__doc__ or "").strip() or kind.__doc__ == Method.__doc__:
        raise Mismatch("no docstring on the class; say there what the method does, with its formula")
    if not kind.title.strip():
        raise Mismatch("an empty title")
    for name, info in kind.Params.model_fields.items():
        if not info.description:
            raise Mismatch(f'no description of parameter {name!r}; add description="…" to its field')
    unknown = set(kind.needs) - _NEEDS
    if unknown:
        raise Mismatch(", ".join(sorted(unknown)), expected=f"needs that are known: {', '.join(sorted(_NEEDS))}")
    source_sha256(kind)  # part of a run's identity


@check("can be built", "stages, constructor and build that do not fail")
def check_built(subject: Subject) -> None:
    """Check stages, constructor and model."""
    job = SmallJob(subject, Size(rows=16, batch_size=8))
    job.model(job.method())


@check("parameter ranges", "valid values throughout, the same after a trip through text and JSON")
def check_ranges(subject: Subject) -> None:
    """Check values from each range, on tasks with few and with many classes."""
    kind = subject.kind
    if not kind.Params.model_fields:
        raise NotApplicable("the method has no parameters")
    for num_classes in _NUM_CLASSES:
        names = tuple(f"class-{index}" for index in range(num_classes))
        counts = np.full(num_classes, 8)
        task = Task(num_classes, names, names, counts, 3 * counts, 64, 2, 4, "probe", generator(0, "check"))
        for name, search in kind.Params.search_space().items():
            low, high = search.bounds(task)
            if not low < high or (search.log and low <= 0):
                raise Mismatch(
                    f"{low:g} to {high:g} of {name} for {num_classes:,} classes",
                    expected="a range of low < high, and above 0 where it is searched by its logarithm",
                )
            space = np.geomspace if search.log else np.linspace
            values = [low, *space(low, high, _NUM_SAMPLES).tolist()[1:-1], high]
            for value in sorted(set(map(round, values))) if kind.Params.is_whole(name) else values:
                _check_value(kind, {**subject.values, name: value}, task, name)
    _check_trip(kind, validate_params(kind, subject.values), "the defaults")


def _check_value(kind: type[Method], values: dict[str, Any], task: Task, name: str) -> None:
    where = f"{name} = {values[name]:g} for {task.num_classes:,} classes"
    try:
        params = validate_params(kind, values)
    except PlbenchError as error:
        raise Mismatch(f"{where}: {error}", expected="every value of a searched range is valid") from error
    if getattr(params, name) != values[name]:
        raise Mismatch(f"{where} became {getattr(params, name)!r}", expected="the value that was given")
    if validate_params(kind, {**values, name: str(values[name])}) != params:
        raise Mismatch(f"others for {where}", expected="the same parameters from text, as after -P")
    _check_trip(kind, params, where)
    Guarded(kind).stages(params, task)


def _check_trip(kind: type[Method], params: Any, where: str) -> None:
    """Check the round trip through JSON, as in a run's spec."""
    text = json.dumps(params.model_dump(mode="json", exclude_none=True), allow_nan=False)
    if validate_params(kind, json.loads(text)) != params:
        raise Mismatch(f"others for {where}: {text}", expected="the same parameters after a trip through JSON")

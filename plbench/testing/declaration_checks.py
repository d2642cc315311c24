"""Checks of what a method says of itself: its names, its parameters and their ranges."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import numpy as np

from plbench.errors import PlbenchError
from plbench.method import Method, SearchRange, Task
from plbench.randomness import generator
from plbench.runs.plan.resolved import validate_params
from plbench.runs.registry import source_sha256
from plbench.testing.findings import Check, Mismatch, NotApplicable
from plbench.testing.small_data import Size
from plbench.testing.small_job import SmallJob, Subject
from plbench.training.hooks import Guarded

_NUM_CLASSES = (6, 80, 9600)
_NEEDS = frozenset({"negatives", "images", "feature_map", "sample_state"})
_NUM_SAMPLES = 5


def literal_variants(kind: type[Method]) -> Iterator[dict[str, Any]]:
    """Yield the defaults, every further value of a parameter that is one of a few words, and declared variants."""
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


def check_words(subject: Subject) -> None:
    """Check title, description, and a line on each parameter."""
    kind = subject.kind
    if not inspect.cleandoc(kind.__doc__ or "").strip() or kind.__doc__ == Method.__doc__:
        raise Mismatch(WORDS.expected, "no docstring on the class; say there what the method does, with its formula")
    if not kind.title.strip():
        raise Mismatch(WORDS.expected, "an empty title")
    for name, info in kind.Params.model_fields.items():
        if not info.description:
            raise Mismatch(WORDS.expected, f'no description of parameter {name!r}; add description="…" to its field')
    unknown = set(kind.needs) - _NEEDS
    if unknown:
        raise Mismatch(f"needs that are known: {', '.join(sorted(_NEEDS))}", ", ".join(sorted(unknown)))
    source_sha256(kind)  # a run's identity


def check_built(subject: Subject) -> None:
    """Check stages, constructor and model."""
    job = SmallJob(subject, Size(rows=16, batch_size=8))
    job.model(job.method())


def check_ranges(subject: Subject) -> None:
    """Check values from each range, on tasks of few and of many classes.

    Valid, and the same after a trip through text.
    """
    kind = subject.kind
    space = kind.Params.search_space()
    if not space and not kind.Params.model_fields:
        raise NotApplicable("the method has no parameters")
    for num_classes in _NUM_CLASSES:
        names = tuple(f"class-{index}" for index in range(num_classes))
        counts = np.full(num_classes, 8)
        task = Task(num_classes, names, names, counts, 3 * counts, 64, 2, 4, "probe", generator(0, "check"))
        for name, search in space.items():
            values = _samples(kind, name, search, task)
            for value in values:
                _check_value(kind, {**subject.values, name: value}, task, name)
    _check_trip(kind, validate_params(kind, subject.values), "the defaults")


def _samples(kind: type[Method], name: str, search: SearchRange, task: Task) -> list[float]:
    """Yield both ends of a range, and values between."""
    where = f"{name} for {task.num_classes:,} classes"
    low, high = search.bounds(task)
    if not low < high or (search.log and low <= 0):
        rule = "low < high, and above 0 where it is searched by its logarithm"
        raise Mismatch(f"a range of {rule}", f"{low:g} to {high:g} of {where}")
    shares = np.linspace(0.0, 1.0, _NUM_SAMPLES)
    inner = [
        math.exp(math.log(low) + s * (math.log(high) - math.log(low))) if search.log else low + s * (high - low)
        for s in shares
    ]
    values = [low, *inner[1:-1], high]
    return sorted({round(value) for value in values}) if kind.Params.is_whole(name) else values


def _check_value(kind: type[Method], values: dict[str, Any], task: Task, name: str) -> None:
    where = f"{name} = {values[name]:g} for {task.num_classes:,} classes"
    try:
        params = validate_params(kind, values)
    except PlbenchError as error:
        raise Mismatch("every value of a searched range is valid", f"{where}: {error}") from error
    if getattr(params, name) != values[name]:
        raise Mismatch("the value that was given", f"{where} became {getattr(params, name)!r}")
    if validate_params(kind, {**values, name: str(values[name])}) != params:
        raise Mismatch("the same parameters from text, as after -P", f"others for {where}")
    _check_trip(kind, params, where)
    Guarded(kind).stages(params, task)


def _check_trip(kind: type[Method], params: Any, where: str) -> None:
    """Through JSON, as a run's spec stores them."""
    text = json.dumps(params.model_dump(mode="json", exclude_none=True), allow_nan=False)
    if validate_params(kind, json.loads(text)) != params:
        raise Mismatch("the same parameters after a trip through JSON", f"others for {where}: {text}")


WORDS = Check("says what it is", "a title, a docstring, and a description of each parameter", check_words)
BUILT = Check("can be built", "stages, constructor and build that do not fail", check_built)
RANGES = Check("parameter ranges", "valid values throughout, the same after a trip through text and JSON", check_ranges)

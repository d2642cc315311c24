"""A grid of runs in a file: what varies, what is fixed, and what is left out. No data is opened here."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from plbench.comparison.candidates import Candidate
from plbench.comparison.plan import MOST_SEEDS
from plbench.errors import PlbenchError, did_you_mean, plain_words
from plbench.spec import ModelSpec, Plan, Precision, Regime, Selection

Scalar = str | int | float | bool
_OWN_AXIS = {"backbone"}
_NOT_ASKED_FOR = {"weights_sha256", "mean", "std"}  # these depend on the backbone
MODEL_FIELDS = tuple(name for name in ModelSpec.model_fields if name not in _OWN_AXIS | _NOT_ASKED_FOR)
PLAN_FIELDS = tuple(Plan.model_fields)
REQUEST_FIELDS = (
    "simulation_seed",
    "recipe",
    "regime",
    "precision",
    "selection",
    "skip_unreadable",
    "allow_duplicates",
    "embeddings",
)
AXES = ("method", "dataset", "simulation", "backbone", *REQUEST_FIELDS, *MODEL_FIELDS, *PLAN_FIELDS, "seed")


_KINDS = ("str", "int", "float", "bool")  # pydantic appends these to the location of union values


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _distinct(values: list[Any]) -> list[Any]:
    if len({repr(value) for value in values}) < len(values):
        raise ValueError("a value comes twice")
    return values


_Value = TypeVar("_Value")
Listed = Annotated[list[_Value], BeforeValidator(_listed), AfterValidator(_distinct)]
"""Distinct values; a single value is a list of one."""

Text = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0)]
Table = dict[str, Annotated[Listed[Scalar], Field(min_length=1)]]
"""Values, or lists of values, by name."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class MethodEntry(_Strict):
    """Methods: a name, `method:variant`, `method:*`, a tag or `all`; only a single method can have parameters."""

    name: Text
    params: Table = {}


class DatasetEntry(_Strict):
    """A dataset, with the location of its files, or the options that it declares."""

    name: Text
    root: str | None = None
    options: dict[str, Scalar] = {}


def _entries(value: Any) -> Any:
    return [{"name": entry} if isinstance(entry, str) else entry for entry in _listed(value)]


class Grid(_Strict):
    """Content of a sweep file. Fields may be single values or lists, of which all combinations are used.

    Attributes:
        simulations: as in protocols, such as fpc=4; empty for each dataset's own protocol.
        backbones: empty for the recipe's.
        seeds: their number, starting at 0, or a list.
        model, plan: fields of `ModelSpec` and `Plan` that differ from the recipe's.
        exclude: combinations to leave out; one matches a run if everything it names does.
    """

    methods: Annotated[list[MethodEntry], BeforeValidator(_entries), Field(min_length=1)]
    datasets: Annotated[list[DatasetEntry], BeforeValidator(_entries), Field(min_length=1)]
    simulations: Listed[Text] = []
    backbones: Listed[Text] = []
    seeds: Annotated[list[Seed], AfterValidator(_distinct)] = [0]
    simulation_seed: Listed[Seed] = []
    recipe: Listed[Text] = []
    regime: Listed[Regime] = []
    precision: Listed[Precision] = []
    selection: Listed[Selection] = []
    skip_unreadable: Listed[bool] = []
    allow_duplicates: Listed[bool] = []
    embeddings: Listed[Text] = []
    model: Table = {}
    plan: Table = {}
    exclude: list[dict[str, Any]] = []

    @field_validator("seeds", mode="before")
    @classmethod
    def _count_or_list(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            if value < 1:
                raise ValueError("a sweep needs at least one seed")
            if value > MOST_SEEDS:
                raise ValueError(f"{value:,} seeds are more than the {MOST_SEEDS:,} that a sweep may have")
            return list(range(value))
        return value

    @field_validator("datasets")
    @classmethod
    def _no_dataset_twice(cls, entries: list[DatasetEntry]) -> list[DatasetEntry]:
        _distinct([entry.name for entry in entries])
        return entries

    @field_validator("model", "plan")
    @classmethod
    def _known_fields(cls, values: Table, info: Any) -> Table:
        known = MODEL_FIELDS if info.field_name == "model" else PLAN_FIELDS
        for name in values:
            if name not in known:
                raise ValueError(f"there is no {name!r}; {did_you_mean(name, known)}")
        return values

    @model_validator(mode="after")
    def _exclusions_speak_of_the_grid(self) -> Grid:
        axes = {*self.axes(), "method", "dataset", "seed", "params"}
        for number, exclusion in enumerate(self.exclude, 1):
            which = f"exclude: the {_ordinal(number)}"
            for name in exclusion:
                if name not in (*AXES, "params"):
                    raise ValueError(f"{which}: {_unknown(name, (*AXES, 'params'))}")
                if name not in axes:
                    raise ValueError(f"{which} names {name!r}, which the grid does not set")
            params = exclusion.get("params", {})
            if not isinstance(params, dict):
                raise ValueError(f"{which}: params is a table, such as {{ top_k = 5 }}")
            for name, value in {**exclusion, **params, "params": None}.items():
                if any(isinstance(one, dict | list) for one in _listed(value)):
                    raise ValueError(
                        f"{which}: {name} is a table or a list of lists; give a value, or a list of values"
                    )
        return self

    def axes(self) -> dict[str, list[Any]]:
        """Return the values of each named axis, except method, dataset and seed."""
        own: dict[str, list[Any]] = {"simulation": self.simulations, "backbone": self.backbones}
        own |= {name: getattr(self, name) for name in REQUEST_FIELDS}
        return {name: values for name, values in {**own, **self.model, **self.plan}.items() if values}

    def settings(self) -> Iterator[dict[str, Any]]:
        """Yield all combinations of `axes`; the last one changes fastest."""
        axes = self.axes()
        for values in itertools.product(*axes.values()):
            yield dict(zip(axes, values, strict=True))

    def leaves_out(self, cell: Cell) -> bool:
        """Return whether an exclusion matches: everything it names must match, and any member of a list suffices."""
        own: dict[str, list[Any]] = {name: [value] for name, value in cell.setting.items()}
        own |= {"method": [cell.candidate.method, cell.candidate.words], "dataset": [cell.dataset], "seed": [cell.seed]}

        def is_so(name: str, wanted: Any) -> bool:
            if name == "params":
                return all(cell.params.get(param) in _listed(value) for param, value in wanted.items())
            return any(value in own[name] for value in _listed(wanted))

        return any(all(is_so(*named) for named in exclusion.items()) for exclusion in self.exclude)


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        params: parameters of the method in the grid, in addition to those of its variant.
        setting: values of `Grid.axes` by name.
    """

    dataset: str
    setting: Mapping[str, Any]
    candidate: Candidate
    params: Mapping[str, Any]
    seed: int

    @property
    def values(self) -> dict[str, Any]:
        """All values by name, in the order of a table's columns."""
        row = {"method": self.candidate.words, **self.params, "dataset": self.dataset, **self.setting}
        return {**row, "seed": self.seed}


def read_grid(path: Path) -> Grid:
    """Read a grid from its file.

    Raises:
        PlbenchError: if the file cannot be read or is not a valid grid, with the field.
    """
    try:
        with path.open("rb") as file:
            return Grid.model_validate(tomllib.load(file))
    except OSError as error:
        raise PlbenchError(f"{path} cannot be read: {error.strerror}; give a file such as grid.toml") from error
    except ValidationError as error:
        raise PlbenchError(f"{path}: {_sentence(error)}") from error
    except (ValueError, RecursionError) as error:  # including Python's limit on digits, a plain ValueError
        raise PlbenchError(f"{path} is not valid TOML: {error}") from error


def _sentence(error: ValidationError) -> str:
    """Return the first error of a grid in words; mistyped names before missing ones."""
    found = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    *outer, name = first_place = found[0]["loc"] or ("",)
    place, kind = _place(first_place), found[0]["type"]
    if kind == "extra_forbidden":
        entries: dict[Any, type[_Strict]] = {"methods": MethodEntry, "datasets": DatasetEntry}
        known = entries.get(outer[0], Grid) if outer else Grid
        unknown = _unknown(str(name), known.model_fields)
        return f"{_place(outer)}: {unknown}" if outer else unknown
    if kind == "missing":
        return f'{place} is missing, such as {place} = {"" if outer else "["}"…"{"" if outer else "]"}'
    if kind == "too_short":
        return f"{place} is empty; give at least one value, or leave it out"
    message = plain_words(found[0]["msg"])
    if kind == "value_error":
        return f"{place}: {message}" if place else message
    return f"{place} = {found[0]['input']!r} is not valid: {message}"


def _unknown(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    return f"there is no field {name!r}; {did_you_mean(name, known)}"


def _place(location: Sequence[str | int]) -> str:
    """Return a location in the file, as in "methods[2].params.top_k", counted from 1."""
    text = ""
    for part in (part for part in location if part not in _KINDS):
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _ordinal(number: int) -> str:
    return f"{number}{'th' if 10 < number % 100 < 14 else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"

"""Checks of a dataset's declarations: names, protocols and recipes. No files are read."""

from __future__ import annotations

import inspect
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plbench.api import BenchmarkProtocol
from plbench.data.dataset import Dataset
from plbench.data.simulation import WITHOUT_NEGATIVES, parse
from plbench.errors import PlbenchError
from plbench.models.backbones import resolve_backbone
from plbench.runs.plan.resolved import validate_params
from plbench.runs.registry import Registry
from plbench.spec import PACKAGES, Plan
from plbench.testing.findings import Mismatch, check


@dataclass(frozen=True)
class DatasetSubject:
    """The dataset to check, and the location of its files.

    Attributes:
        root: its folder. options: its other options.
        registry: registry of the methods for which its protocols suggest values.
        is_fixture: whether the files are small and were generated for the check, so that they may be copied and edited.
        cache: folder for data derived from the files; None for none.
        opens: the class that reads the files, if they are prepared files instead of the published ones.
    """

    kind: type[Dataset]
    root: Path
    options: Any
    registry: Registry
    is_fixture: bool
    cache: Path | None = None
    opens: type[Dataset] | None = None

    def opened(self, root: Path | None = None, options: Any = None) -> Dataset:
        """Return a new, prepared instance, optionally of another folder."""
        place = self.root if root is None else root
        reader = self.opens or self.kind
        dataset = reader(place, cache=self.cache, options=self.options if options is None else options)
        dataset.prepare(lambda done, total: None)
        return dataset


@check("says what it is", "a name, a title, a licence, a docstring, sources at https://")
def check_words(subject: DatasetSubject) -> None:
    """Check name, title, licence, docstring and sources."""
    kind = subject.kind
    for attribute in ("name", "title", "licence"):
        text = getattr(kind, attribute, None)
        if not isinstance(text, str) or not text or text != text.strip():
            raise Mismatch(f"{attribute} = {text!r}", expected=f"{attribute}, a text without spaces around it")
    if not re.fullmatch(r"[a-z0-9]+([.-][a-z0-9]+)*", kind.name):
        raise Mismatch(f"name = {kind.name!r}", expected='name of small letters, digits, "." and "-"')
    if not inspect.cleandoc(kind.__doc__ or "") or kind.__doc__ == Dataset.__doc__:
        raise Mismatch("no docstring on the class; say there what the images and labels are")
    for address in kind.sources:
        if not address.startswith("https://"):
            raise Mismatch(repr(address), expected="sources at https://")


@check("protocols", "at least one protocol, each valid and named after what it asks")
def check_protocols(subject: DatasetSubject) -> None:
    """Check that protocol names match their content, simulations can be parsed, and suggested values are valid."""
    protocols = subject.kind.protocols
    if not protocols:
        raise Mismatch("none; the first is what `dataset=NAME` alone means")
    for what in ("name", "simulation"):
        values = [getattr(protocol, what) for protocol in protocols]
        if len(set(values)) != len(values):
            raise Mismatch(", ".join(values), expected=f"protocols that differ in {what}")
    for protocol in protocols:
        _check_protocol(subject, protocol)


def _check_protocol(subject: DatasetSubject, protocol: BenchmarkProtocol) -> None:
    own, simulation = subject.kind.name, parse(protocol.simulation)
    if protocol.dataset != own:
        raise Mismatch(f"dataset = {protocol.dataset!r}", expected=f"protocol {protocol.name} of dataset {own!r}")
    if simulation.text != protocol.simulation:
        raise Mismatch(repr(protocol.simulation), expected=f"simulation {simulation.text!r}, which `simulate=` finds")
    as_labelled = rf"{re.escape(own)}/v[1-9]\d*|custom/{re.escape(own)}" if simulation.text == "none" else r"(?!)"
    if not re.fullmatch(rf"{as_labelled}|{re.escape(own)}-{re.escape(simulation.slug)}/v[1-9]\d*", protocol.name):
        right = f"{own}/v1" if simulation.text == "none" else f"{own}-{simulation.slug}/v1"
        raise Mismatch(protocol.name, expected=f"a name such as {right}")
    if (protocol.validation_labels == "complete") != (simulation.kind in WITHOUT_NEGATIVES):
        raise Mismatch(
            f"{protocol.validation_labels!r} of {protocol.name}",
            expected='validation_labels="complete" where a simulation leaves no negatives, else "partial"',
        )
    if bool(protocol.suggested) != bool(protocol.sources) or not all(protocol.sources.values()):
        raise Mismatch(f"sources = {protocol.sources} of {protocol.name}", expected="a source for suggested values")
    for name, values in protocol.suggested.items():
        params = validate_params(subject.registry.method(name), values)
        if {key: getattr(params, key) for key in values} != values:
            raise Mismatch(f"{values} of {protocol.name}", expected=f"values that method {name!r} takes as they are")


@check("recipes", "at least one recipe, each of another name")
def check_recipes(subject: DatasetSubject) -> None:
    """Check for unique names, a plan per regime, existing backbones, and a source of each value."""
    recipes = subject.kind.recipes
    names = [recipe.name for recipe in recipes]
    if not recipes or len(set(names)) != len(names):
        raise Mismatch(f"recipes {names}")
    for recipe in recipes:
        if recipe.regime not in recipe.plans:
            raise Mismatch(
                f"{sorted(recipe.plans)} of recipe {recipe.name!r}", expected=f"a plan for regime {recipe.regime!r}"
            )
        if not recipe.sources or not all(recipe.sources.values()):
            raise Mismatch(
                f"{recipe.sources} of {recipe.name!r}", expected='sources of each value, such as {"all": "ours"}'
            )
        for plan in recipe.plans.values():
            if Plan.model_validate(plan.model_dump()) != plan:
                raise Mismatch(
                    f"one of recipe {recipe.name!r} does not", expected="plans that survive being written down"
                )
        backbone = recipe.model.backbone
        if resolve_backbone(backbone) != backbone:
            raise Mismatch(
                f"{backbone!r} of recipe {recipe.name!r}", expected=f"timm's name {resolve_backbone(backbone)!r}"
            )
        if recipe.model.weights == "packaged" and backbone not in PACKAGES:
            raise Mismatch(
                f"{backbone!r} of recipe {recipe.name!r}", expected=f"packaged weights of {', '.join(PACKAGES)} alone"
            )


@check("says what is missing", "what is missing and how to get it, for a folder without files")
def check_missing(subject: DatasetSubject) -> None:
    """Check the error for a folder that does not exist."""
    with tempfile.TemporaryDirectory() as folder:
        nowhere = Path(folder) / "nowhere"
        dataset = subject.kind(nowhere)
        hint, missing = dataset.fetch_hint(), dataset.missing()
        if nowhere.exists():
            raise Mismatch(f"{nowhere} was made", expected="that asking makes no folder")
    if not hint or "\n" in hint:
        raise Mismatch(repr(hint), expected="fetch_hint in one line")
    if bool(missing) != subject.kind.needs_files:
        right = "the files it needs" if subject.kind.needs_files else "nothing, since needs_files is False"
        raise Mismatch(repr(missing), expected=f"missing() to name {right}")
    sources = subject.kind.sources
    if sources and subject.kind.needs_files and not any(address in hint for address in sources):
        raise Mismatch(repr(hint), expected=f"fetch_hint with an address, such as {sources[0]}")


@check("unknown split", "a DataError for a split that is not there")
def check_unknown_split(subject: DatasetSubject) -> None:
    """Check the error for a split that does not exist."""
    try:
        subject.opened().split("no-such-split")
    except PlbenchError as error:
        if "no-such-split" in str(error):
            return
        raise Mismatch(str(error), expected="an error that names the split") from error
    except Exception as error:
        raise Mismatch(f"{type(error).__name__}: {error}", expected="a DataError that names the split") from error
    raise Mismatch("no error", expected="a DataError")

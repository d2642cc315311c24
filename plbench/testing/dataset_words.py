"""Checks of what a dataset says of itself: its names, protocols and recipes; nothing of its files is read."""

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
from plbench.models import PACKAGED_BACKBONE, resolve_backbone
from plbench.runs.plan.resolved import validate_params
from plbench.runs.registry import Registry
from plbench.spec import Plan
from plbench.testing.findings import Check, Mismatch


@dataclass(frozen=True)
class DatasetSubject:
    """What is checked: a dataset, and where its files are.

    Attributes:
        root: its folder. options: what it is told beside it.
        registry: where the methods are found that its protocols suggest values for.
        is_fixture: whether the files are small, and made for the check, so that they may be copied and edited.
        cache: where what is made of the files is kept; None to keep nothing.
        opens: the class that reads the files, where they are prepared ones and no longer the published ones.
    """

    kind: type[Dataset]
    root: Path
    options: Any
    registry: Registry
    is_fixture: bool
    cache: Path | None = None
    opens: type[Dataset] | None = None

    def opened(self, root: Path | None = None, options: Any = None) -> Dataset:
        """Return a new instance, prepared; of another folder where one is given."""
        place = self.root if root is None else root
        reader = self.opens or self.kind
        dataset = reader(place, cache=self.cache, options=self.options if options is None else options)
        dataset.prepare(lambda done, total: None)
        return dataset


def check_words(subject: DatasetSubject) -> None:
    """Name, title, licence, docstring and sources."""
    kind = subject.kind
    for attribute in ("name", "title", "licence"):
        text = getattr(kind, attribute, None)
        if not isinstance(text, str) or not text or text != text.strip():
            raise Mismatch(f"{attribute}, a text without spaces around it", f"{attribute} = {text!r}")
    if not re.fullmatch(r"[a-z0-9]+([.-][a-z0-9]+)*", kind.name):
        raise Mismatch('name of small letters, digits, "." and "-"', f"name = {kind.name!r}")
    if not inspect.cleandoc(kind.__doc__ or "") or kind.__doc__ == Dataset.__doc__:
        raise Mismatch(WORDS.expected, "no docstring on the class; say there what the images and labels are")
    for address in kind.sources:
        if not address.startswith("https://"):
            raise Mismatch("sources at https://", repr(address))


def check_protocols(subject: DatasetSubject) -> None:
    """Check names that say what they ask, simulations that can be read, suggested values that are valid."""
    protocols = subject.kind.protocols
    if not protocols:
        raise Mismatch(PROTOCOLS.expected, "none; the first is what `dataset=NAME` alone means")
    for what in ("name", "simulation"):
        values = [getattr(protocol, what) for protocol in protocols]
        if len(set(values)) != len(values):
            raise Mismatch(f"protocols that differ in {what}", ", ".join(values))
    for protocol in protocols:
        _check_protocol(subject, protocol)


def _check_protocol(subject: DatasetSubject, protocol: BenchmarkProtocol) -> None:
    own, simulation = subject.kind.name, parse(protocol.simulation)
    if protocol.dataset != own:
        raise Mismatch(f"protocol {protocol.name} of dataset {own!r}", f"dataset = {protocol.dataset!r}")
    if simulation.text != protocol.simulation:
        raise Mismatch(f"simulation {simulation.text!r}, which `simulate=` finds", repr(protocol.simulation))
    as_labelled = rf"{re.escape(own)}/v[1-9]\d*|custom/{re.escape(own)}" if simulation.text == "none" else r"(?!)"
    if not re.fullmatch(rf"{as_labelled}|{re.escape(own)}-{re.escape(simulation.slug)}/v[1-9]\d*", protocol.name):
        right = f"{own}/v1" if simulation.text == "none" else f"{own}-{simulation.slug}/v1"
        raise Mismatch(f"a name such as {right}", protocol.name)
    if (protocol.validation_labels == "complete") != (simulation.kind in WITHOUT_NEGATIVES):
        raise Mismatch(
            'validation_labels="complete" where a simulation leaves no negatives, else "partial"',
            f"{protocol.validation_labels!r} of {protocol.name}",
        )
    if bool(protocol.suggested) != bool(protocol.sources) or not all(protocol.sources.values()):
        raise Mismatch("a source for suggested values", f"sources = {protocol.sources} of {protocol.name}")
    for name, values in protocol.suggested.items():
        params = validate_params(subject.registry.method(name), values)
        if {key: getattr(params, key) for key in values} != values:
            raise Mismatch(f"values that method {name!r} takes as they are", f"{values} of {protocol.name}")


def check_recipes(subject: DatasetSubject) -> None:
    """Check unique names, a plan for each regime, a backbone that exists, a source for each value."""
    recipes = subject.kind.recipes
    names = [recipe.name for recipe in recipes]
    if not recipes or len(set(names)) != len(names):
        raise Mismatch(RECIPES.expected, f"recipes {names}")
    for recipe in recipes:
        if recipe.regime not in recipe.plans:
            raise Mismatch(f"a plan for regime {recipe.regime!r}", f"{sorted(recipe.plans)} of recipe {recipe.name!r}")
        if not recipe.sources or not all(recipe.sources.values()):
            raise Mismatch('sources of each value, such as {"all": "ours"}', f"{recipe.sources} of {recipe.name!r}")
        for plan in recipe.plans.values():
            if Plan.model_validate(plan.model_dump()) != plan:
                raise Mismatch("plans that survive being written down", f"one of recipe {recipe.name!r} does not")
        backbone = recipe.model.backbone
        if resolve_backbone(backbone) != backbone:
            raise Mismatch(f"timm's name {resolve_backbone(backbone)!r}", f"{backbone!r} of recipe {recipe.name!r}")
        if recipe.model.weights == "packaged" and backbone != PACKAGED_BACKBONE:
            raise Mismatch(f"packaged weights of {PACKAGED_BACKBONE} alone", f"{backbone!r} of recipe {recipe.name!r}")


def check_missing(subject: DatasetSubject) -> None:
    """Check what it says of a folder that does not exist."""
    with tempfile.TemporaryDirectory() as folder:
        nowhere = Path(folder) / "nowhere"
        dataset = subject.kind(nowhere)
        hint, missing = dataset.fetch_hint(), dataset.missing()
        if nowhere.exists():
            raise Mismatch("that asking makes no folder", f"{nowhere} was made")
    if not hint or "\n" in hint:
        raise Mismatch("fetch_hint in one line", repr(hint))
    if bool(missing) != subject.kind.needs_files:
        right = "the files it needs" if subject.kind.needs_files else "nothing, since needs_files is False"
        raise Mismatch(f"missing() to name {right}", repr(missing))
    sources = subject.kind.sources
    if sources and subject.kind.needs_files and not any(address in hint for address in sources):
        raise Mismatch(f"fetch_hint with an address, such as {sources[0]}", repr(hint))


def check_unknown_split(subject: DatasetSubject) -> None:
    """Check a split that is not there."""
    try:
        subject.opened().split("no-such-split")
    except PlbenchError as error:
        if "no-such-split" in str(error):
            return
        raise Mismatch("an error that names the split", str(error)) from error
    except Exception as error:
        raise Mismatch("a DataError that names the split", f"{type(error).__name__}: {error}") from error
    raise Mismatch("a DataError", "no error")


WORDS = Check("says what it is", "a name, a title, a licence, a docstring, sources at https://", check_words)
PROTOCOLS = Check("protocols", "at least one protocol, each valid and named after what it asks", check_protocols)
RECIPES = Check("recipes", "at least one recipe, each of another name", check_recipes)
MISSING = Check("says what is missing", "what is missing and how to get it, for a folder without files", check_missing)
UNKNOWN_SPLIT = Check("unknown split", "a DataError for a split that is not there", check_unknown_split)

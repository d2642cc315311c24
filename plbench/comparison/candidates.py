"""Who takes part in a comparison: methods and variants, by name, tag or all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plbench.errors import PlbenchError, did_you_mean
from plbench.method import Method
from plbench.runs.registry import Registry

ALL = "all"
"""What stands for everything that is installed."""


@dataclass(frozen=True)
class Candidate:
    """A method, or a variant of one, that takes part.

    Attributes:
        params: the variant's.
        named: whether a person asked for this very one, so that it may not be left out.
    """

    method: str
    variant: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict, compare=False)
    named: bool = field(default=False, compare=False)

    @property
    def words(self) -> str:
        """As a person names it."""
        return f"{self.method}:{self.variant}" if self.variant else self.method


@dataclass(frozen=True)
class Skipped:
    """What is not in the table, and why."""

    who: str
    why: str


def choose_candidates(texts: Sequence[str], registry: Registry) -> tuple[list[Candidate], list[Skipped]]:
    """Return who takes part, in the order in which they are named.

    Args:
        texts: "all", tags, methods, "method:variant" and "method:*", separated by commas. A tag brings the variants of
            its methods along; a method that is named comes alone.
        registry: what is installed.

    Returns:
        The candidates, and what a group would have brought but for its being broken.

    Raises:
        PlbenchError: if a name is none of these. PluginError: if a method that is named is broken.
    """
    names = [name.strip() for text in texts for name in text.split(",") if name.strip()]
    if not names:
        raise PlbenchError("`methods=` names nobody; give all, a tag such as paper, or names of methods")
    broken = registry.broken("method")
    sound = {name: registry.method(name) for name in registry.names("method") if name not in broken}
    candidates: dict[tuple[str, str | None], Candidate] = {}
    has_group = False
    for name in names:
        group = _members(name, sound)
        has_group |= group is not None
        for candidate in [_named(name, registry, sound)] if group is None else group:
            known = candidates.get((candidate.method, candidate.variant))
            if known is None or candidate.named:
                candidates[candidate.method, candidate.variant] = candidate
    skipped = [Skipped(name, why) for name, why in broken.items()] if has_group else []
    return list(candidates.values()), skipped


def _members(name: str, sound: Mapping[str, type[Method]]) -> list[Candidate] | None:
    """Return whom the name of a group stands for, variants included; None where it is no group's."""
    method, colon, variant = name.partition(":")
    if colon and variant == "*" and method in sound:
        return _with_variants(sound[method])
    if name in sound or (name != ALL and not any(name in kind.tags for kind in sound.values())):
        return None
    return [
        candidate for kind in sound.values() if name == ALL or name in kind.tags for candidate in _with_variants(kind)
    ]


def _with_variants(method: type[Method]) -> list[Candidate]:
    return [Candidate(method.name), *(Candidate(method.name, name, params) for name, params in method.variants.items())]


def _named(name: str, registry: Registry, sound: Mapping[str, type[Method]]) -> Candidate:
    method, colon, variant = name.partition(":")
    if method not in registry.names("method"):
        tags = {tag for kind in sound.values() for tag in kind.tags}
        known = sound if colon else {ALL, *tags, *sound}
        raise PlbenchError(f"there is no method{'' if colon else ' or tag'} {method!r}; {did_you_mean(method, known)}")
    variants = registry.method(method).variants
    if not colon:
        return Candidate(method, named=True)
    if variant not in variants:
        listing = did_you_mean(variant, {"*", *variants}) if variants else "it has none"
        raise PlbenchError(f"method {method!r} has no variant {variant!r}; {listing}")
    return Candidate(method, variant, variants[variant], named=True)

"""Candidates of a comparison: methods and variants, by name or tag, or all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plbench.errors import PlbenchError, did_you_mean
from plbench.runs.registry import Registry

ALL = "all"
"""Name of the group of all installed methods."""


@dataclass(frozen=True)
class Candidate:
    """A method or variant in a comparison.

    Attributes:
        params: the variant's.
        named: whether it was named explicitly, so that it must not be left out.
    """

    method: str
    variant: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict, compare=False)
    named: bool = field(default=False, compare=False)

    @property
    def words(self) -> str:
        """Its name on the command line."""
        return f"{self.method}:{self.variant}" if self.variant else self.method


@dataclass(frozen=True)
class Skipped:
    """A method that is not in the table, and why."""

    who: str
    why: str


def choose_candidates(texts: Sequence[str], registry: Registry) -> tuple[list[Candidate], list[Skipped]]:
    """Return the candidates, in the order in which they are named.

    Args:
        texts: "all", tags, methods, "method:variant" and "method:*", separated by commas. A tag includes the variants
            of its methods; a named method does not.
        registry: the installed plugins.

    Returns:
        The candidates, and broken members of a group.

    Raises:
        PlbenchError: if a name is none of these. PluginError: if a method that is named is broken.
    """
    names = [name.strip() for text in texts for name in text.split(",") if name.strip()]
    if not names:
        raise PlbenchError("`methods=` names nobody; give all, a tag such as paper, or names of methods")
    broken = registry.broken("method")
    sound = {name: registry.method(name) for name in registry.names("method") if name not in broken}
    groups: dict[str, list[Candidate]] = {ALL: []}
    for name, method in sound.items():
        own = [Candidate(name), *(Candidate(name, variant, params) for variant, params in method.variants.items())]
        for group in (ALL, f"{name}:*", *method.tags):
            groups.setdefault(group, []).extend(own)
    for name in sound:  # a method takes precedence over a tag of the same name
        groups.pop(name, None)
    candidates: dict[Candidate, Candidate] = {}
    for name in names:
        for candidate in groups[name] if name in groups else [_named(name, registry, groups, sound)]:
            if candidate.named or candidate not in candidates:
                candidates[candidate] = candidate
    skipped = [Skipped(name, why) for name, why in broken.items()] if not groups.keys().isdisjoint(names) else []
    return list(candidates.values()), skipped


def _named(name: str, registry: Registry, groups: Iterable[str], sound: Iterable[str]) -> Candidate:
    method, colon, variant = name.partition(":")
    if method not in registry.names("method"):
        known = [*sound, *(group for group in groups if not colon and ":" not in group)]
        raise PlbenchError(f"there is no method{'' if colon else ' or tag'} {method!r}; {did_you_mean(method, known)}")
    variants = registry.method(method).variants
    if not colon:
        return Candidate(method, named=True)
    if variant not in variants:
        listing = did_you_mean(variant, {"*", *variants}) if variants else "it has none"
        raise PlbenchError(f"method {method!r} has no variant {variant!r}; {listing}")
    return Candidate(method, variant, variants[variant], named=True)

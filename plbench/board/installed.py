"""Facts from installed methods and datasets that records must agree with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plbench.comparison.identity import same_but_seed
from plbench.errors import PlbenchError
from plbench.runs.record import Record
from plbench.spec import RunSpec

if TYPE_CHECKING:
    from plbench.method import Method
    from plbench.runs.registry import Registry


class Installed:
    """Registered methods and datasets; others are unknown and not compared."""

    def __init__(self, registry: Registry | None = None) -> None:
        """Use a registry; None for the installed plugins."""
        if registry is None:
            from plbench.runs.registry import Registry  # imports torch

            registry = Registry.discover()
        self._registry = registry
        self._methods: dict[str, type[Method] | None] = {}
        self._configurations: dict[str, str | None] = {}
        self._sources: dict[str, str] = {}

    def learns(self, name: str) -> bool:
        """Return whether a method's trainings may differ by seed; True if unknown."""
        method = self._method(name)
        return method is None or method.learns

    def params(self, name: str) -> frozenset[str] | None:
        """Return the names of a method's parameters; None if unknown."""
        method = self._method(name)
        return None if method is None else frozenset(method.Params.model_fields)

    def facts(self, record: Record) -> dict[str, Any]:
        """Return fields that must agree with what is installed: the method's names, and the configuration.

        Names are compared if the method's file is byte-identical. Whether values are the defaults is decided by the
        current protocol, recipe and method, if the method's version and the protocol's hash match.
        """
        from plbench.runs.registry import source_file, source_sha256

        spec, method = record.spec, self._method(record.spec.method.name)
        if method is None:
            return {}
        known: dict[str, Any] = {}
        if method.name not in self._sources:
            self._sources[method.name] = source_sha256(method)
        if self._sources[method.name] == spec.method.source_sha256:
            known |= {"title": method.title, "paper": method.paper, "source_file": source_file(method)}
        if record.configuration in ("default", "custom") and method.version == spec.method.version:
            row = same_but_seed(spec)
            if row not in self._configurations:
                self._configurations[row] = self._configuration(spec, method)
            if (found := self._configurations[row]) is not None:
                known["configuration"] = found
        return known

    def _configuration(self, spec: RunSpec, method: type[Method]) -> str | None:
        """Return "default" or "custom"; None if dataset, protocol or recipe is unknown."""
        from plbench.runs.plan.resolved import ResolvedRun, is_default
        from plbench.runs.protocol import ProtocolData

        try:
            dataset: Any = self._registry.dataset(spec.protocol.dataset)
            sha256 = spec.protocol.sha256()
            protocol = next((own for own in dataset.protocols if own.sha256() == sha256), None)
            recipe = next((own for own in dataset.recipes if own.name == spec.recipe), None)
            if protocol is None or recipe is None or spec.regime not in recipe.plans:
                return None
            plan = ResolvedRun(spec, method, None, ProtocolData(dataset, protocol), recipe, {})
            return "default" if is_default(plan, opens_data=False) else "custom"
        except PlbenchError:
            return None

    def _method(self, name: str) -> type[Method] | None:
        if name not in self._methods:
            try:
                self._methods[name] = self._registry.method(name)
            except PlbenchError:
                self._methods[name] = None
        return self._methods[name]

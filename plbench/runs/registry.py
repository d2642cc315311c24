"""Registry of methods and datasets by entry point; names are listed without importing plugins."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import inspect
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from plbench.errors import PluginError, did_you_mean
from plbench.runs.no_plugins import NO_PLUGINS, has_no_plugins

if TYPE_CHECKING:
    from plbench.data.dataset import Dataset
    from plbench.method import Method

Kind = Literal["method", "dataset"]
_GROUPS: dict[Kind, str] = {"method": "plbench.methods", "dataset": "plbench.datasets"}

_OWN = "plbench"


@dataclass(frozen=True)
class Source:
    """Source of a plugin: an installed entry point, or a class in a plugin file."""

    name: str
    origin: str
    entry_point: EntryPoint | None = None
    loaded: type[Any] | None = None

    @property
    def place(self) -> str:
        """Location of the code: the file, or version, folder and entry point of the distribution."""
        if self.entry_point is None or self.entry_point.dist is None:
            return self.origin
        dist = self.entry_point.dist
        return f"{self.origin} {dist.version}, {self.entry_point.value} in {dist.locate_file('')}"


@dataclass
class Registry:
    """The methods and datasets of this process, by name.

    Attributes:
        sources: by kind and name; duplicate names are an error when used.
        left_out: plugins of other distributions, if only plbench's own are loaded.
        is_own_only: whether only plbench's own plugins are loaded.
    """

    sources: dict[Kind, dict[str, list[Source]]] = field(default_factory=dict)
    left_out: dict[Kind, dict[str, list[Source]]] = field(default_factory=dict)
    is_own_only: bool = False

    @classmethod
    def discover(cls, plugins: tuple[Path, ...] = (), own_only: bool | None = None) -> Registry:
        """Read the entry points of all installed distributions, and import the plugin files given.

        Args:
            plugins: files with methods or datasets.
            own_only: leave out plugins of other distributions; None to read it from the environment.

        Raises:
            PluginError: if a plugin file cannot be imported or contains no plugin, or is given with `own_only`.
        """
        own_only = has_no_plugins() if own_only is None else own_only
        if own_only and plugins:
            raise PluginError(
                f"plugin file {plugins[0]} is third-party code, which {NO_PLUGINS}=1 disables; leave out one of the two"
            )
        registry = cls(_empty(), _empty(), own_only)
        installed = entry_points()
        # property of a distribution, which parses its metadata at each access
        name_of = functools.cache(attrgetter("name"))
        for kind, group in _GROUPS.items():
            for point in installed.select(group=group):
                origin = name_of(point.dist) if point.dist is not None else "an unknown distribution"
                into = registry.left_out if own_only and origin != _OWN else registry.sources
                into[kind][point.name].append(Source(point.name, origin, entry_point=point))
        for path in plugins:
            registry._add_file(path)
        return registry

    def names(self, kind: Kind) -> list[str]:
        """Return all names, sorted; nothing is imported."""
        return sorted(self.sources[kind])

    def origin(self, kind: Kind, name: str) -> str:
        """Return the distribution or file of a plugin."""
        return " and ".join(source.origin for source in self.sources[kind][name])

    def others(self) -> list[tuple[Kind, Source, bool]]:
        """Return third-party methods and datasets, and whether they are loaded when used."""
        both = ((self.sources, True), (self.left_out, False))
        return [
            (kind, source, used)
            for kind in _GROUPS
            for by_kind, used in both
            for _, found in sorted(by_kind.get(kind, {}).items())
            for source in found
            if source.origin != _OWN
        ]

    def plugin_files(self) -> tuple[Path, ...]:
        """Return the plugin files with registered plugins."""
        sources = [source for by_name in self.sources.values() for found in by_name.values() for source in found]
        files = (Path(source.origin) for source in sources if source.loaded is not None)
        return tuple(dict.fromkeys(path for path in files if path.is_file()))

    def method(self, name: str) -> type[Method]:
        """Return the class of a method.

        Raises:
            PluginError: if there is none or more than one with that name, or it is broken.
        """
        return self._load("method", name)

    def dataset(self, name: str) -> type[Dataset]:
        """Return the class of a dataset; raises as `method` does."""
        return self._load("dataset", name)

    def broken(self, kind: Kind) -> dict[str, str]:
        """Return broken plugins with reasons; imports all plugins."""
        reasons = {}
        for name in self.names(kind):
            try:
                self._load(kind, name)
            except PluginError as error:
                reasons[name] = str(error)
        return reasons

    def _load(self, kind: Kind, name: str) -> type[Any]:
        found = self.sources[kind].get(name, [])
        if not found and (left_out := self.left_out.get(kind, {}).get(name)):
            raise PluginError(f"{kind} {name!r} is of {left_out[0].origin}, which {NO_PLUGINS}=1 leaves out")
        if not found:
            listing = did_you_mean(name, self.names(kind))
            raise PluginError(f"there is no {kind} {name!r}; {listing}; for one in a separate file, give `plugin=FILE`")
        source = found[0]
        if len(found) > 1:
            # installed plugins take precedence over files, and plbench's own over third-party ones
            files = [other.origin for other in found if other.entry_point is None]
            way_out = f"uninstall or rename one of them, such as {next(o.origin for o in found if o.origin != _OWN)}"
            if files:
                way_out = (
                    f'rename the class in {files[0]}, as in name = "my-{name}": a plugin file may not hide what is '
                )
                way_out += "installed"
            raise PluginError(f"{kind} {name!r} is provided twice, by {self.origin(kind, name)}; {way_out}")
        what, plugin, base = f"{kind} {name!r} of {source.origin}", source.loaded, _bases()[kind]
        if plugin is None:
            assert source.entry_point is not None
            try:
                plugin = source.entry_point.load()
            except Exception as error:  # a third-party module may raise anything, which must not affect others
                raise PluginError(
                    f"{what} cannot be imported from {source.entry_point.value}: {type(error).__name__}: {error}; fix "
                    f"or uninstall {source.origin}"
                ) from error
        if not _is_plugin(plugin, base):
            missing = ", ".join(sorted(getattr(plugin, "__abstractmethods__", ())))
            fault = f"leaves {missing} undefined" if missing else f"is not a subclass of plbench.api.{base.__name__}"
            raise PluginError(f"{what} {fault}")
        for attribute in ("name", "title"):
            if not isinstance(getattr(plugin, attribute, None), str):
                raise PluginError(f'{what} has no {attribute}; add: {attribute} = "…" to the class')
        if plugin.name != name:
            raise PluginError(f"{what} calls itself {plugin.name!r}; entry point and class must agree on the name")
        return plugin

    def _add_file(self, path: Path) -> None:
        module = import_plugin_file(path)
        found = False
        for kind, base in _bases().items():
            for plugin in vars(module).values():
                if _is_plugin(plugin, base) and plugin.__module__ == module.__name__:
                    found = True
                    name = getattr(plugin, "name", None)
                    if not isinstance(name, str) or not name:
                        raise PluginError(f'class {plugin.__name__} in {path} has no name; add: name = "my-{kind}"')
                    self.sources[kind][name].append(Source(name, str(path), loaded=plugin))
        if not found:
            raise PluginError(f"{path} defines no subclass of plbench.api.Method or plbench.api.Dataset")


def _empty() -> dict[Kind, dict[str, list[Source]]]:
    return {kind: defaultdict(list) for kind in _GROUPS}


def _bases() -> dict[Kind, type[Any]]:
    from plbench.data.dataset import Dataset
    from plbench.method import Method

    return {"method": Method, "dataset": Dataset}


def _is_plugin(candidate: Any, base: type[Any]) -> bool:
    return inspect.isclass(candidate) and issubclass(candidate, base) and not inspect.isabstract(candidate)


def source_sha256(plugin: type[Any]) -> str:
    """Return the hex sha256 of a plugin's file and those of its base classes outside plbench's API.

    It is part of a run's identity.

    Raises:
        PluginError: if the class has no source file.
    """
    own = [base for base in plugin.__mro__ if base.__module__ not in ("plbench.method", "builtins", "abc")]
    try:
        files = dict.fromkeys(inspect.getfile(base) for base in own)
        return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()
    except (OSError, TypeError) as error:
        raise PluginError(f"the source file of {plugin.__name__} cannot be read: {error}") from error


def source_file(plugin: type[Any]) -> str | None:
    """Return the file of one of plbench's own plugins, relative to the repository's root; None for third-party ones."""
    package, _, module = plugin.__module__.rpartition(".")
    return f"{package.removeprefix('plbench.')}/{module}.py" if package.startswith("plbench.") else None


def import_plugin_file(path: Path) -> Any:
    """Return the module of a plugin file, imported once.

    Raises:
        PluginError: if there is no such file, or it fails to import.
    """
    if not path.is_file():
        raise PluginError(f"plugin file {path} does not exist")
    name = f"plbench_plugin_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"plugin file {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic resolves annotations through it
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the file may raise anything
        del sys.modules[name]
        raise PluginError(f"plugin file {path} cannot be imported: {type(error).__name__}: {error}") from error
    return module

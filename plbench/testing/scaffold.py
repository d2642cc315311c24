"""Scaffold a new method: one file, or an installable package."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from plbench.errors import PlbenchError
from plbench.files import write_text
from plbench.runs.registry import Registry


@dataclass(frozen=True)
class Written:
    """The files written, and the next commands."""

    paths: tuple[Path, ...]
    next_commands: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"written": [str(path) for path in self.paths], "next": list(self.next_commands)}

    def text(self) -> str:
        """Return readable lines."""
        return "\n".join([f"Wrote {path}" for path in self.paths] + [f"Next: {line}" for line in self.next_commands])


def new_method(name: str, folder: Path, registry: Registry, *, package: bool) -> Written:
    """Write a method that runs without changes.

    Args:
        name: of the method.
        folder: folder of the file or the package's folder; existing files are not overwritten.
        registry: the existing methods.
        package: write a package instead of one file.

    Raises:
        PlbenchError: if the name is taken or invalid, or a file exists.
        StoreError: if the folder is not writable.
    """
    from jinja2 import Environment, StrictUndefined

    _check_name(name, registry)
    parts, module = name.split("-"), name.replace("-", "_")
    if package:  # named after its package, so that no other module has this name
        module = f"plbench_{module}"
    words = {
        "name": name,
        "title": " ".join(parts).capitalize(),
        "module": module,
        "class_name": "".join(part.capitalize() for part in parts),
        "distribution": f"plbench-{name}",
    }
    top = folder / words["distribution"]
    source = (top / "src" if package else folder) / f"{module}.py"
    contents = {source: "method.py"}
    if package:
        contents |= {top / "pyproject.toml": "pyproject.toml", top / "tests" / f"test_{module}.py": "test_method.py"}
    if (there := top if package else source).exists():
        raise PlbenchError(f"{there} already exists; choose another name or folder, or remove it")
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    for path, template in contents.items():
        text = files("plbench.testing").joinpath("templates", f"{template}.jinja").read_text(encoding="utf-8")
        write_text(path, environment.from_string(text).render(words))
    install = (f"pip install -e ./{top.name}",) if package else ()
    plugin = "" if package else f" --plugin {source.name}"
    commands = (f"plbench methods check {name}{plugin}", f"plbench run --method {name} --dataset scenes{plugin}")
    return Written(tuple(path.relative_to(folder) for path in contents), (*install, *commands))


def _check_name(name: str, registry: Registry) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        likely = re.sub(r"[^a-z0-9]+", "-", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()).strip("-")
        meant = f"; did you mean {likely}?" if re.match(r"[a-z]", likely) else ""
        raise PlbenchError(
            f"{name!r} is not a valid name for a method; use lowercase letters, digits and hyphens, such as "
            f"my-method{meant}"
        )
    if name in registry.names("method"):
        raise PlbenchError(
            f"there is already a method {name!r}, of {registry.origin('method', name)}, which a new one must not hide; "
            f"choose another name, such as my-{name}"
        )
    if keyword.iskeyword(name):
        raise PlbenchError(f"{name!r} is a reserved word of Python; choose another name")

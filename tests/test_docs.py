"""What the documentation shows is run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from plbench.registry import Registry

TOP = Path(__file__).parents[1]


def test_the_example_method_loads_and_has_its_parameter(tmp_path: Path) -> None:
    text = (TOP / "docs" / "adding-a-method.md").read_text(encoding="utf-8")
    source = re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert source is not None
    plugin = tmp_path / "half_negative.py"
    plugin.write_text(source.group(1), encoding="utf-8")
    method = Registry.discover((plugin,)).method("half-negative")
    assert method.Params().weight == 0.5
    assert set(method.Params.search_space()) == {"weight"}
    assert source.group(1).count("\n") < 40


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_the_readme_names_the_two_commands_and_the_makefile_has_them(command: str) -> None:
    assert command in (TOP / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"^{command.split()[1]}:", (TOP / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_the_readme_links_to_files_that_exist() -> None:
    text = (TOP / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (TOP / target).is_file(), target

"""What the documentation shows is run as it stands."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from plbench.cli import main
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


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (TOP / "docs").glob("*.md"))])
def test_pages_link_to_files_that_exist(page: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", (TOP / page).read_text(encoding="utf-8")):
        assert ((TOP / page).parent / target).is_file(), target


@pytest.mark.slow
def test_the_tutorial_on_own_labels_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (TOP / "docs" / "your-own-data.md").read_text(encoding="utf-8")
    commands = [line for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 11
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLBENCH_CACHE", str(tmp_path / "cache"))
    for command in commands:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with contextlib.suppress(SystemExit):
            assert main() is None
        assert "error" not in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["plbench", "runs", "compare", "--dataset", "table", "--json"])
    with contextlib.suppress(SystemExit):
        main()
    settings = json.loads(capsys.readouterr().out)
    means = {row["method"]: row["figures"]["map_c"]["mean"] for row in settings[0]["rows"]}
    assert len(settings) == 1 and [len(row["seeds"]) for row in settings[0]["rows"]] == [2, 2, 2]
    assert min(means["ce-ignore"], means["selective"]) > means["ce-negative"]  # as the page says
    assert (tmp_path / "demo" / "sheet.png").is_file()

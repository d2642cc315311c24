"""Cells of the notebooks run in order in an empty folder. The CI job `docs` executes them in a kernel, too."""

import ast
import re
import shlex
import sys
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import pytest

from plbench.cli import main
from plbench.runs import environment, summary

nbformat = pytest.importorskip("nbformat")
TransformerManager = pytest.importorskip("IPython.core.inputtransformer2").TransformerManager
FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"


class Shell:
    """What IPython's magics do, in this process."""

    def system(self, command):
        words = shlex.split(command)
        assert words[0] == "plbench"
        with patch.object(sys, "argv", words), pytest.raises(SystemExit) as left:
            sys.exit(main())
        assert not left.value.code

    def run_cell_magic(self, name, line, cell):
        assert name == "writefile"
        Path(line).write_text(cell, encoding="utf-8")

    def run_line_magic(self, name, line, **_):
        pytest.fail(f"%{name} {line}: plbench is installed")


def show(source, shown):
    """Runs a cell; the value of its last line, if that is an expression."""
    body = ast.parse(TransformerManager().transform_cell(source)).body
    last = ast.Expression(body.pop().value) if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), shown)
    return None if last is None else eval(compile(last, "cell", "eval"), shown)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own-data", "own-loss"])
def test_cells_show_what_is_stored(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PLBENCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(summary, "NUM_REPLICATES", 20)
    monkeypatch.setattr(environment, "git_state", lambda: {"git_commit": None, "git_dirty": None})
    shown = {"get_ipython": Shell}
    for number, cell in enumerate(nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells):
        if cell.cell_type != "code":
            continue
        value = show(cell.source, shown)
        printed = capsys.readouterr().out.strip()
        stored = {kind: text for output in cell.outputs for kind, text in output.get("data", {}).items()}
        streams = "".join(output.text for output in cell.outputs if output.output_type == "stream")
        if not cell.source.startswith("%%"):
            # figures of other processors differ further on, and what is stored lost white space between its parts
            assert "".join(printed.split())[:30] == "".join(streams.split())[:30], number
        assert (value is None) == (not stored), number
        if isinstance(value, pd.DataFrame):
            heads = re.findall(r"<th>([^<]+)</th>", stored["text/html"])
            assert set(value.columns.map(str)) <= set(heads), number
            assert stored["text/html"].count("<tr") - len(value) in (1, 2), number

"""Notebooks of the documentation: `make notebooks` executes them and stores what their cells show."""

import contextlib
import os
import re
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent / "notebooks").glob("*.ipynb"))
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


@contextlib.contextmanager
def empty_folder() -> Iterator[str]:
    """Yield a folder of a notebook's own, with caches in it and the installed commands within reach."""
    with tempfile.TemporaryDirectory() as folder:
        scripts = sysconfig.get_path("scripts")
        own = {"PLBENCH_CACHE": f"{folder}/.cache", "IPYTHONDIR": f"{folder}/.ipython", "PLBENCH_RUNS": "runs"}
        before = dict(os.environ)
        os.environ.update(own, PATH=os.pathsep.join([scripts, os.environ["PATH"]]))
        try:
            yield folder
        finally:
            os.environ.clear()
            os.environ.update(before)


def execute(path: Path) -> nbformat.NotebookNode:
    """Return a notebook with the outputs of today: without what went to standard error, colours and times.

    Raises:
        CellExecutionError: if a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    with empty_folder() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources, record_timing=False).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if output.output_type == "stream":
                    output.text = "\n".join(line.rstrip() for line in ESCAPE.sub("", output.text).strip().splitlines())
    notebook.metadata.language_info = {"name": "python"}
    return notebook


if __name__ == "__main__":
    for path in NOTEBOOKS:
        nbformat.write(execute(path), path)

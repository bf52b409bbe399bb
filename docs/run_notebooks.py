"""Executes the tutorials in a folder of their own and stores what they print: python docs/run_notebooks.py [NAME …]

The Chinese ones have the same cells of code, and get the outputs of the English ones. Needs the extra `docs`.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

TUTORIALS = Path(__file__).parent / "tutorials"
CHINESE = Path(__file__).parent / "zh" / "tutorials"
# seconds for a cell
TIMEOUT = 600
# the line, and what is indented below it
WARNING = re.compile(r"^.*site-packages.*Warning: .*\n(?:[ \t].*\n?)*\n?", flags=re.MULTILINE)


def execute(
    path: Path, folder: Path, *, shorter: dict[str, str] | None = None, programs: Path = Path(sys.executable).parent
) -> nbformat.NotebookNode:
    """A notebook with the outputs of its cells, run in `folder`, with a cache there.

    shorter: text to be replaced. programs: the folder of the command `vivace`.
    Raises nbclient's CellExecutionError where Python raises. A command that fails shows in its output alone.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        for long, short in (shorter or {}).items():
            cell.source = cell.source.replace(long, short)
    places = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": places, "VIVACE_CACHE": str(folder / "cache"), "COLUMNS": "110", "NO_COLOR": "1"}
    client = NotebookClient(notebook, timeout=TIMEOUT, resources={"metadata": {"path": str(folder)}})
    client.execute(env=env)
    return notebook


def tidy(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """What was printed in pieces becomes one output; left out is what is of this machine alone.

    That is the folder's name, when a cell ran, and Python's warnings that name a library's file here.
    """
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        joined: list[nbformat.NotebookNode] = []
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and joined and joined[-1].get("name") == output.name:
                joined[-1].text += output.text
            else:
                joined.append(output)
        for output in joined:
            if output.output_type == "stream":
                text = re.sub(rf"{re.escape(str(folder))}/?", "", output.text)
                output.text = WARNING.sub("", text)
        joined = [output for output in joined if output.get("text") != ""]
        if cell.cell_type == "code":
            cell.outputs = joined


def store(name: str) -> None:
    """Run a tutorial, and write its outputs into it and into its Chinese twin."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        notebook = execute(TUTORIALS / name, folder)
        tidy(notebook, folder)
    nbformat.write(notebook, TUTORIALS / name)
    twin = nbformat.read(CHINESE / name, as_version=4)
    for cell, done in zip(twin.cells, notebook.cells, strict=True):
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = done.outputs, done.execution_count
    nbformat.write(twin, CHINESE / name)


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(path.name for path in TUTORIALS.glob("*.ipynb")):
        print(name, flush=True)
        store(name)

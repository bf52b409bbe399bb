"""The tutorials run from their first cell to their last, in a folder of their own; the Chinese ones are the same."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pages import DOCS
from vivace.models.pretrained import available_without_download
from vivace.training.recipes.named import PACKAGED_NETWORK

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

TUTORIALS = sorted(path.name for path in (DOCS / "tutorials").glob("*.ipynb"))
# a search that is cut off shows as much of its pages, and takes less time
SHORTER = {
    "--within 5m": "--within 15s",
    "--within 60s": "--within 8s",
    "--epochs 8 --run runs/pictures": "--epochs 2 --run runs/pictures",
    # the head alone reaches it: no epochs of the whole network
    "--target 0.97 --epochs 12": "--target 0.5 --epochs 1",
    'within="40s"': 'within="8s"',
    'within="30s"': 'within="4s"',
    'within="20s"': 'within="4s"',
    "epochs=4": "epochs=1",
}
# all of them take ten minutes on a slow machine: `make pages`
RUN_ALL = os.environ.get("VIVACE_TEST_PAGES") == "all"
RUN_ALWAYS = ("own-module.ipynb",)
# what the commands of a notebook say when they fail: Jupyter goes on then
FAILURES = ("Traceback", "command not found", "Error: ", "internal error")


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    """docs/run_notebooks.py, which stores the outputs."""
    spec = importlib.util.spec_from_file_location("run_notebooks", DOCS / "run_notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(name: str, folder: str = "tutorials") -> Any:
    return nbformat.read(DOCS / folder / name, as_version=4)


def printed(notebook: Any) -> list[str]:
    """What each cell of code printed or showed."""
    texts = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            outputs = cell.outputs
            texts.append("".join(o.text if o.output_type == "stream" else str(sorted(o.data)) for o in outputs))
    return texts


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_runs(runner: ModuleType, programs: Path, name: str, tmp_path: Path) -> None:
    if not RUN_ALL and name not in RUN_ALWAYS:
        pytest.skip("runs with `make pages`")
    for library in ("sklearn", "matplotlib", "onnxruntime", "openvino"):
        pytest.importorskip(library)
    if name == "finetune.ipynb" and available_without_download(PACKAGED_NETWORK) is None:
        pytest.skip("needs pretrained weights")
    done = printed(runner.execute(DOCS / "tutorials" / name, tmp_path, shorter=SHORTER, programs=programs))
    assert not [text for text in done if any(sign in text for sign in FAILURES)]
    # a cell that prints nothing here printed nothing when it was stored
    assert [bool(text) for text in done] == [bool(text) for text in printed(read(name))]


@pytest.mark.parametrize("name", TUTORIALS)
def test_the_outputs_that_are_stored_are_those_of_a_whole_run(name: str) -> None:
    notebook = read(name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert len("".join(printed(notebook))) > 300
    assert not [text for text in printed(notebook) if any(sign in text for sign in FAILURES) or "/tmp/" in text]
    assert "site-packages" not in "".join(printed(notebook))


@pytest.mark.parametrize("name", TUTORIALS)
def test_the_chinese_tutorial_is_the_same_program_with_the_same_outputs(name: str) -> None:
    english, chinese = read(name), read(name, "zh/tutorials")
    assert [cell.cell_type for cell in english.cells] == [cell.cell_type for cell in chinese.cells]
    for ours, theirs in zip(english.cells, chinese.cells, strict=True):
        if ours.cell_type == "code":
            assert (ours.source, ours.outputs) == (theirs.source, theirs.outputs)
        else:
            assert any("\u4e00" <= char <= "\u9fff" for char in theirs.source)


def test_there_is_a_tutorial_for_each_job() -> None:
    jobs = ["accelerate", "deploy", "fast-recipe", "finetune", "multi-label", "own-module", "train"]
    assert [f"{job}.ipynb" for job in jobs] == TUTORIALS

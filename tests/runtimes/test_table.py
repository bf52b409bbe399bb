"""The table of runtimes: nothing else names one, and a row with its modules is all that a new one takes."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch

import vivace
from factories import make_bundle
from vivace.cli import main
from vivace.errors import ConfigError
from vivace.exporting.export import targets
from vivace.exporting.single_file import suffixes_of
from vivace.predictor import Predictor
from vivace.runtimes.loading import load_runtime
from vivace.runtimes.table import PRECISIONS, RUNTIMES, Runtime, imported, listed, runnable, with_graph

ROOT = Path(vivace.__file__).parent
REFERENCES = [
    reference
    for row in RUNTIMES.values()
    for reference in (row.module, row.exporter, row.quantizer, row.layers, row.profiler, row.module_runner)
    if reference is not None
]
# file → why it may name a runtime, or what is called like one
MAY_NAME = {
    "trust.py": "inductor is torch's compiler here, whose cache training uses too",
    "libraries/openvino.py": "it imports the library itself",
    "models/frozen.py": "a network that is not trained is computed there, if OpenVINO is installed",
    "training/recipes/recipe.py": "what computes a frozen network is a field of a recipe",
    "training/execution.py": "eager is what is not compiled",
}
# a graph of one runtime is made from that of another
OF_ONE = {
    "exporting/openvino.py",
    "exporting/tensorrt.py",
    "compression/onnx_layers.py",
    "compression/openvino_layers.py",
}


def sources() -> list[Path]:
    """Files of the package that must not know runtimes apart."""
    own = {f"{reference.partition(':')[0].replace('.', '/').removeprefix('vivace/')}.py" for reference in REFERENCES}
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        inside = path.relative_to(ROOT).as_posix()
        # templates are copied into deployments, where there is no table: they must tell the runtimes apart themselves
        if not inside.startswith("runtimes/") and "/templates/" not in inside and inside not in own:
            found.append(path)
    return found


def test_no_other_file_names_a_runtime() -> None:
    for path in sources():
        if path.relative_to(ROOT).as_posix() in MAY_NAME:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            named = isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in RUNTIMES
            assert not named, f"{path}:{getattr(node, 'lineno', 0)} names a runtime: ask its row in runtimes/table.py"


def test_no_other_file_imports_the_module_of_a_runtime() -> None:
    modules = {reference.partition(":")[0] for reference in REFERENCES} - {"vivace.compression.quantize"}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                assert not names & modules, f"{path}:{node.lineno} imports {names & modules}: its row names it"


def test_what_may_name_a_runtime_still_does() -> None:
    for name in MAY_NAME:
        constants = {
            node.value for node in ast.walk(ast.parse((ROOT / name).read_text())) if isinstance(node, ast.Constant)
        }
        assert constants & set(RUNTIMES), f"{name} names no runtime any more"


@pytest.mark.parametrize("reference", sorted(set(REFERENCES)))
def test_what_a_row_names_is_there(reference: str) -> None:
    assert imported(reference) is not None


@pytest.mark.parametrize("row", RUNTIMES.values(), ids=list(RUNTIMES))
def test_a_row_is_consistent(row: Runtime) -> None:
    assert {variant.precision for variant in row.variants} <= set(row.precisions)
    assert (row.module is not None) or not row.variants
    assert {variant.precision for variant in row.module_variants} <= set(row.precisions)
    assert (row.module_runner is None) == (not row.module_variants)
    if row.graph_files:
        # the file alone has the same suffixes as the graph in a bundle, and what belongs to it must be listed there
        assert tuple(Path(name).suffix for name in row.graph_files) == row.file_suffixes
        assert set(row.file_suffixes) <= set(row.reads)
        assert not row.takes_network
    if row.exporter is not None:
        assert row.file_suffixes
        assert row.export_help
        exporter = imported(row.exporter)
        needed = ["write_file", "load_file"] + (["write_graph", "copy_labelled"] if row.graph_files else [])
        assert all(callable(getattr(exporter, name)) for name in needed)
    if any(variant.precision.startswith("int8") for variant in row.variants):
        assert row.quantizer is not None


def test_the_order_of_what_is_listed() -> None:
    assert runnable() == ["eager", "inductor", "aoti", "onnx", "openvino"]
    assert PRECISIONS == ("fp32", "bf16", "fp16", "int8", "int8+bf16")
    assert with_graph() == ["onnx", "openvino"]
    files = ["pt2", "aoti", "executorch", "litert", "tensorrt", "state-dict"]
    assert targets() == ["onnx", "openvino", *files, "deploy", "web"]
    assert [suffixes_of(name) for name in targets()[:3]] == [(".onnx",), (".xml", ".bin"), (".pt2",)]
    assert [listed("a"), listed("ab"), listed("abc")] == ["a", "a or b", "a, b or c"]


def test_what_is_only_exported_to_runs_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the runtime is unknown: got 'tensorrt'"):
        load_runtime("tensorrt", make_bundle(tmp_path / "bundle"), device=torch.device("cpu"), precision="fp32")


NEW = """
import json, shutil
import torch
from vivace.runtimes.loading import graph_file

loaded = []

def load(bundle, *, device, precision):
    graph_file(bundle, "model.fake", "fake")
    loaded.append(precision)
    return classifier(bundle)

def classifier(bundle):
    from vivace.runtimes.eager import load
    return load(bundle, device=torch.device("cpu"))

def write_graph(bundle, folder):
    (folder / "model.fake").write_text(json.dumps({"from": str(bundle.folder)}))

def write_file(bundle, path):
    write_graph(bundle, path.parent)

def load_file(path):
    from vivace.bundle import load_bundle
    return classifier(load_bundle(json.loads(path.read_text())["from"]))
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    """A runtime that nothing else knows, registered as its row would be."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "new_runtime.py").write_text(NEW)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    row = Runtime(
        name="fake",
        label="A Fake",
        module="new_runtime",
        takes_network=False,
        precisions=("fp32",),
        graph_files=("model.fake",),
        exporter="new_runtime",
        file_suffixes=(".fake",),
        export_help="a bundle of a fake",
    )
    # what the command line offers is said when its module is imported: afterwards it is the one that was there before
    import_module("vivace.cli.export")
    monkeypatch.setitem(RUNTIMES, "fake", row)
    monkeypatch.delitem(sys.modules, "vivace.cli.export")
    yield row
    sys.modules.pop("new_runtime", None)


def test_a_new_row_is_all_that_the_verbs_need(
    fake: Runtime, tmp_path: Path, make_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, data, out = (
        make_bundle(tmp_path / "bundle", widths=[8], depth=1),
        make_folder(per_class=4),
        tmp_path / "out",
    )
    assert "fake" in targets()
    assert main(["export", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "fake" in shown
    assert "a bundle of a fake" in shown
    # a bundle of it, and a file
    assert main(["export", str(bundle.folder), "--to", "fake", "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["target"], told["parity"]["runtime"], told["parity"]["top1_agreement"]) == ("fake", "fake", 1.0)
    assert main(["export", str(bundle.folder), "--to", "fake", "--out", str(tmp_path / "one.fake")]) == 0
    assert main(["export", str(bundle.folder), "--to", "onnx", "--out", str(tmp_path / "two.fake")]) == 2
    assert "a name for fake" in capsys.readouterr().err
    # which the other verbs take
    for verb in (["evaluate", str(out), str(data), "--quiet"], ["predict", str(out), str(data)], ["verify", str(out)]):
        assert main(verb) == 0, capsys.readouterr().err
    assert Predictor(out).runtime == "fake"
    assert len(import_module("new_runtime").loaded) >= 4
    # what it lacks is told, in one line
    capsys.readouterr()
    assert main(["profile", str(out)]) == 2
    assert "there is no profiler for fake" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"fake runs on a CPU in fp32: got cpu and int8\. Use eager"):
        load_runtime("fake", bundle, device=torch.device("cpu"), precision="int8")

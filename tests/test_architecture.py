"""The rules of the architecture: who may import whom, what stays free of torch, how long a file may be."""

from __future__ import annotations

import ast
import functools
import importlib
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent / "src" / "vivace"
MODULES = sorted(
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    # what an export copies elsewhere is no part of the package
    if "templates" not in path.parts
)
LAYER_0 = {
    "bars",
    "browser",
    "errors",
    "plain",
    "config",
    "files",
    "outputs",
    "owned",
    "cpus",
    "hardware",
    "holes",
    "marks",
    "measure",
    "kernels",
    "libraries",
    "cachedir",
    "locks",
    "notices",
    "scratch",
    "screen",
    "signals",
    "silenced",
    "statistics",
    "systems",
    "trained_on",
    "torch_private",
    "trust",
    "uncertainty",
    # facts alone, of which all may ask
    "runtimes.table",
}
BASE = LAYER_0 | {"bundle", "bundleinfo", "manifest"}
# room → rooms that it may import, beside itself; a dotted entry opens one module of a room
ALLOWED = {
    "bars": set(),
    "browser": set(),
    "errors": set(),
    "plain": {"errors"},
    "config": {"errors", "plain"},
    "holes": {"systems"},
    "files": {"systems", "errors", "notices", "holes"},
    "marks": set(),
    "owned": {"errors", "files", "marks", "runtimes.table"},
    "outputs": {"errors", "files", "marks", "notices", "owned"},
    "cpus": set(),
    "torch_private": set(),
    "hardware": {"systems", "errors", "cpus", "notices", "runtimes.table", "torch_private"},
    "locks": {"systems", "errors", "notices"},
    "screen": set(),
    "statistics": set(),
    "signals": set(),
    "silenced": set(),
    "systems": set(),
    "measure": {"statistics"},
    "trust": {"systems", "errors", "cpus", "notices"},
    "cachedir": {"systems", "errors", "files", "locks", "trust"},
    "kernels": {"errors", "cachedir", "cpus", "hardware", "locks", "notices", "scratch", "torch_private", "trust"},
    "libraries": {"errors"},
    "notices": set(),
    "scratch": {"files"},
    "trained_on": {"errors"},
    "uncertainty": {"config", "errors", "files", "plain", "runtimes.table", "statistics"},
    "data": LAYER_0,
    "models": LAYER_0,
    "optim": LAYER_0,
    "metrics": LAYER_0,
    "manifest": LAYER_0,
    "bundleinfo": LAYER_0 | {"manifest", "models", "data.preprocess"},
    "sbom": LAYER_0 | {"bundleinfo", "manifest"},
    "bundle": LAYER_0 | {"bundleinfo", "manifest", "sbom", "models", "data.preprocess"},
    "signing": BASE,
    "training": LAYER_0 | {"data", "models", "optim", "metrics", "bundle", "manifest"},
    "runtimes": BASE | {"models", "data.preprocess"},
    "inputs": {"errors", "data.arrays"},
    "predicted": BASE | {"runtimes"},
    "predictor": BASE | {"inputs", "predicted", "runtimes"},
    "loaded": BASE | {"predictor", "runtimes"},
    "heatmaps": BASE | {"models", "metrics", "runtimes", "inputs", "predicted", "predictor"},
    "sources": BASE | {"data.decoding", "data.layouts"},
    "prediction": BASE | {"inputs", "predictor", "heatmaps", "sources", "data.preprocess"},
    "batch": BASE | {"sources", "predicted", "predictor", "prediction", "data.decoding", "data.layouts.listing"},
    "robustness": BASE | {"models", "runtimes", "predictor"},
    "evaluation": BASE
    | {"data", "models", "optim", "metrics", "runtimes", "predictor", "prediction", "robustness"}
    | {"heatmaps"},
    "timing": BASE | {"runtimes", "data.preprocess"},
    "profiling": BASE | {"runtimes"},
    "compression": BASE | {"models", "runtimes"},
    "exporting": BASE | {"data", "runtimes", "evaluation", "signing"},
    "acceleration": BASE
    | {"data", "models", "optim", "metrics", "runtimes", "prediction", "evaluation", "training"}
    | {"timing", "profiling", "compression", "exporting", "heatmaps", "reporting"},
    "bench": LAYER_0 | {"training"},
    "verbs": BASE
    | {"data", "training", "predictor", "metrics", "evaluation", "profiling", "exporting", "reporting"}
    | {"heatmaps"},
    # of a bundle it knows what predicts, and nothing of what made it
    "serving": BASE | {"predictor", "predicted", "prediction", "heatmaps", "data.preprocess", "data.arrays"},
    # plain values and metrics alone: it knows no bundle and no data
    "reporting": {"errors", "files", "notices", "outputs", "config", "plain", "screen", "statistics", "metrics"},
}
# what stands above all other packages of training/
LATER = ("training.loop", "training.run", "training.resume", "training.finish", "training.train", "training.dataset")
# of the packages in data/ and training/: what each may not import, beside what a whole room may not
NOT_WITHIN = {
    # it is copied into deployments, with `errors` and `silenced`
    "data.decoding": ("",),
    "data.augmentation": ("data.caching", "data.layouts", "data.decoding"),
    # opening a data set reads no image: what is unpacked is found again by the cache, never the reverse
    "data.layouts": ("data.caching", "data.augmentation", "data.loader", "data.workers"),
    "data.caching": ("data.augmentation", "data.loader"),
    "data.objects": ("data.caching", "data.augmentation", "data.loader"),
    # a recipe is read before torch is imported; a run's folder is found without what fills it
    "training.recipes": (*LATER, "training.folder", "training.recording", "training.techniques", "training.tuning"),
    "training.folder": (*LATER, "training.recording", "training.techniques", "training.tuning"),
    "training.recording": (*LATER, "training.techniques", "training.tuning"),
    "training.techniques": (*LATER, "training.folder", "training.recording", "training.tuning"),
    "training.tuning": (*LATER, "training.folder", "training.recording", "training.techniques"),
    # the loop knows nothing of what starts it
    "training.loop": ("training.run", "training.resume", "training.finish", "training.train", "training.tuning"),
}
# decoding starts and help appears before torch is there
TORCH_FREE = [
    "vivace",
    "vivace.cli",
    "vivace.cli.common",
    *(
        f"vivace.cli.{verb}"
        for verb in (
            "train",
            "evaluate",
            "predict",
            "accelerate",
            "profile",
            "export",
            "verify",
            "sign",
            "bench",
            "audit",
            "doctor",
            "cache",
            "runs",
            "compare",
            "report",
            "serve",
        )
    ),
    "vivace.bench.ablation",
    "vivace.config",
    "vivace.plain",
    "vivace.files",
    "vivace.outputs",
    "vivace.hardware",
    "vivace.measure",
    "vivace.statistics.intervals",
    "vivace.data.caching.cache",
    "vivace.data.sources",
    "vivace.data.workers",
    "vivace.predictor",
    "vivace.prediction",
    "vivace.batch.run",
    "vivace.training.recipes.facts",
    "vivace.training.recipes.named",
    "vivace.training.train",
    "vivace.verbs.runs",
    "vivace.reporting.figures",
    "vivace.serving.bundles",
    "vivace.serving.server",
]


@functools.cache
def imports_of(module: str) -> frozenset[str]:
    """Every module of vivace that `module` imports, at its top or inside a function; not for type checking alone."""
    path = ROOT.parent / Path(*module.split("."))
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vivace"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else str(node.module))
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("vivace")}
    return frozenset(found - {module})


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def may_import(room: str, imported: str) -> bool:
    # a module without a dot is a room's whole package, and its parts
    inside = imported.removeprefix("vivace.")
    return room_of(imported) == room or any(inside == name or inside.startswith(name + ".") for name in ALLOWED[room])


# all modules in one test: two thousand tests of a millisecond each take pytest half a minute
def test_a_room_imports_only_what_lies_below_it() -> None:
    modules = [name for name in MODULES if room_of(name) in ALLOWED]
    assert len(modules) > 500
    wrong = [
        f"{module} imports {imported}, which its room may not"
        for module in modules
        for imported in imports_of(module)
        if not may_import(room_of(module), imported)
    ]
    assert wrong == []


def test_within_a_room_a_package_imports_only_what_it_may() -> None:
    modules = [name for name in MODULES if name.startswith(("vivace.data.", "vivace.training."))]
    assert len(modules) > 150
    wrong = []
    for module in modules:
        package = ".".join(module.split(".")[1:3])
        for imported in imports_of(module):
            inside = imported.removeprefix("vivace.")
            kept = inside.startswith(f"{package}.") or inside in ("errors", "silenced")
            if not kept and any(inside.startswith(barred) for barred in NOT_WITHIN.get(package, ())):
                wrong.append(f"{module} imports {imported}, which {package} may not")
    assert wrong == []


def test_the_table_of_runtimes_imports_nothing_and_so_any_layer_may_read_it() -> None:
    assert imports_of("vivace.runtimes.table") == imports_of("vivace.runtimes") == set()


def test_every_room_has_a_rule() -> None:
    free = {"", "cli", "__main__"}
    assert {room_of(module) for module in MODULES} - free == set(ALLOWED)


def test_there_are_no_import_cycles() -> None:
    graph = {module: imports_of(module) & set(MODULES) for module in MODULES}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " → ".join([*trail[trail.index(module) :], module])
        if module not in done:
            for imported in graph[module]:
                visit(imported, (*trail, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_what_must_be_quick_does_not_import_torch() -> None:
    code = f"import sys; [__import__(name) for name in {TORCH_FREE!r}]; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_file_outgrows_one_sitting() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in ROOT.rglob("*.py")}
    assert len(lines) > 500
    assert {path: count for path, count in lines.items() if count > 330} == {}


def test_no_two_files_of_tests_share_a_name() -> None:
    """pytest refuses to collect the second of two, and only where it collects both."""
    names = [path.name for path in TESTS.rglob("test_*.py")]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []


def test_all_names_what_is_there() -> None:
    wrong = []
    for module in MODULES:
        if not module.endswith("__main__"):
            loaded = importlib.import_module(module)
            names = [name for name in getattr(loaded, "__all__", ()) if not hasattr(loaded, name)]
            wrong += [f"{module}.__all__ names {name}, which is not there" for name in names]
    assert wrong == []


def test_the_package_never_trusts_a_pickle() -> None:
    for path in ROOT.rglob("*.py"):
        text = path.read_text()
        assert "weights_only=False" not in text, path
        assert "pickle.load" not in text, path
        for call in (line for line in text.splitlines() if "torch.load(" in line and "`" not in line):
            assert "weights_only=True" in call or '"""' in call or "accept" in call, f"{path}: {call}"


# names of torch that its releases may change, however they are reached
PRIVATE = re.compile(
    r"\btorch(\.\w+)*\._(?!_)\w+|\bfrom torch[\w.]*\._\w+|\bfrom torch[\w.]* import .*\b_[a-zA-Z]"
    r"|\bnn\.\w+(\.\w+)*\._(?!_)\w|\._(forward|backward)_(pre_)?hooks"
)


def test_what_torch_keeps_private_is_used_in_two_files_alone() -> None:
    own = {ROOT / "torch_private.py", ROOT / "runtimes" / "inductor_private.py"}
    for path in sorted(set(ROOT.rglob("*.py")) - own):
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            assert not PRIVATE.search(line), f"{path}:{number} uses what torch keeps private: {line.strip()}"
    assert all(PRIVATE.search(path.read_text("utf-8")) for path in own)


def test_production_code_uses_no_test_tools() -> None:
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"unittest", "pytest", "mock", "doctest"}, path


def test_the_diagram_shows_the_imports_that_there_are() -> None:
    script = ROOT.parents[1] / "docs" / "diagram.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout

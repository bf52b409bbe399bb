"""Benchmarks that no test runs still name what is there: a name that moved would be found at the next measurement."""

from __future__ import annotations

import ast
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_what_benchmarks_import_of_vivace_is_there() -> None:
    named = {
        (node.module, alias.name)
        for path in BENCHMARKS.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "vivace"
        for alias in node.names
    }
    assert len(named) > 50
    missing = [
        f"{module}: {name}"
        for module, name in sorted(named)
        if not hasattr(import_module(module), name) and find_spec(f"{module}.{name}") is None
    ]
    assert missing == []

"""Writes the diagram of docs/architecture.md from the imports of the package: python docs/diagram.py [--check]

An arrow says "imports". A package that is reached through others anyway gets no arrow of its own, and layer 0, which
all import, is one box.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "vivace"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- the imports, by docs/diagram.py -->\n", "<!-- end of the imports -->\n"
LEFT_OUT = {"", "__main__"}


def layer_0() -> set[str]:
    """The packages of the page's first layer, which all import: its table says which."""
    row = next(line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| 0 | "))
    return {name.rstrip("/") for name in re.findall("`([a-z_0-9.]+/?)`", row)}


def package_of(path: Path) -> str:
    """The first folder or module of a file below the package; "" for the package itself."""
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if name == "__init__" else name


def imported_by(path: Path) -> set[str]:
    """Packages that a file imports, at its top or inside a function; not for type checking alone."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vivace":
            inner = (node.module or "").split(".")[1:3]
            # a module of a package may be in another layer than the package
            dotted = ".".join(inner)
            names |= {dotted if dotted in layer_0() else inner[0]} if inner else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("vivace.")}
    return names


def imports() -> dict[str, set[str]]:
    """Package → packages that it imports; those of layer 0 are one, "base"."""
    base, found = layer_0(), dict[str, set[str]]()
    for path in sorted(PACKAGE.rglob("*.py")):
        package = package_of(path)
        if "templates" in path.parts or package in LEFT_OUT:
            continue
        known = {"base" if name in base else name for name in imported_by(path)}
        found.setdefault("base" if package in base else package, set()).update(known)
    packages = set(found)
    return {package: (below & packages) - {package} for package, below in found.items()}


def reached(graph: dict[str, set[str]], package: str) -> set[str]:
    """All packages below a package."""
    below: set[str] = set()
    pending = list(graph[package])
    while pending:
        name = pending.pop()
        if name not in below:
            below.add(name)
            pending += graph[name]
    return below


def diagram() -> str:
    """The imports as a Mermaid flowchart, each package with only those that it does not reach through others."""
    graph = imports()
    lines = ["```mermaid", "flowchart TD"]
    lines.append(f'    base["{", ".join(sorted(layer_0()))}"]')
    for package in sorted(graph):
        direct = {
            name
            for name in graph[package]
            if not any(name in reached(graph, other) for other in graph[package] - {name})
        }
        lines += [f"    {package} --> {name}" for name in sorted(direct)]
    return "\n".join([*lines, "```", ""])


def main() -> int:
    """Write the diagram into the page; with --check only compare, and return 1 if it is another one."""
    before, begin, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        print(f"{PAGE} lacks the lines that the diagram stands between: {BEGIN.strip()} and {END.strip()}")
        return 1
    page = before + BEGIN + diagram() + END + after
    if "--check" in sys.argv[1:]:
        if page == PAGE.read_text("utf-8"):
            return 0
        print("docs/architecture.md shows other imports than there are: run python docs/diagram.py")
        return 1
    PAGE.write_text(page, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

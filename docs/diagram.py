"""Writes the diagram of docs/architecture.md from the imports of the package: python docs/diagram.py [--check]

An arrow says "imports". Rooms that a room reaches through others anyway have none of their own, and layer 0, which all
import, is one box.
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
    """The rooms of the page's first layer, which all import: its table says which."""
    row = next(line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| 0 | "))
    return {name.rstrip("/") for name in re.findall("`([a-z_0-9.]+/?)`", row)}


def room_of(path: Path) -> str:
    """The first folder or module of a file below the package; "" for the package itself."""
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if name == "__init__" else name


def imported_by(path: Path) -> set[str]:
    """Rooms that a file imports, at its top or inside a function; not for type checking alone."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vivace":
            inner = (node.module or "").split(".")[1:3]
            # a module of a room may be in another layer than the room
            dotted = ".".join(inner)
            names |= {dotted if dotted in layer_0() else inner[0]} if inner else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("vivace.")}
    return names


def imports() -> dict[str, set[str]]:
    """Room → rooms that it imports; those of layer 0 are one, "base"."""
    base, found = layer_0(), dict[str, set[str]]()
    for path in sorted(PACKAGE.rglob("*.py")):
        room = room_of(path)
        if "templates" in path.parts or room in LEFT_OUT:
            continue
        known = {"base" if name in base else name for name in imported_by(path)}
        found.setdefault("base" if room in base else room, set()).update(known)
    rooms = set(found)
    return {room: (below & rooms) - {room} for room, below in found.items()}


def reached(graph: dict[str, set[str]], room: str) -> set[str]:
    """All rooms below a room."""
    below: set[str] = set()
    pending = list(graph[room])
    while pending:
        name = pending.pop()
        if name not in below:
            below.add(name)
            pending += graph[name]
    return below


def diagram() -> str:
    """The imports as a Mermaid flowchart, each room with only those that it does not reach through others."""
    graph = imports()
    lines = ["```mermaid", "flowchart TD"]
    lines.append(f'    base["{", ".join(sorted(layer_0()))}"]')
    for room in sorted(graph):
        direct = {
            name for name in graph[room] if not any(name in reached(graph, other) for other in graph[room] - {name})
        }
        lines += [f"    {room} --> {name}" for name in sorted(direct)]
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

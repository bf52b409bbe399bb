"""MkDocs hook: a Mermaid flowchart becomes SVG while the site is built, as no script is loaded from elsewhere.

Only what docs/diagram.py writes is understood: `name["label"]` and `from --> to`.
"""

from __future__ import annotations

import html
import re
import textwrap
from typing import Any

FENCE = re.compile(r"^```mermaid\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
WIDTH, BOX, GAP, LINE = 900, 112, 18, 16
ROW = 84
# the tip of an arrow
TIP = (
    '<marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
    '<path d="M0,0 L8,4 L0,8 z"/></marker>'
)


def on_page_markdown(markdown: str, **_: Any) -> str:
    return FENCE.sub(lambda match: svg(match[1]), markdown)


def edges_of(chart: str) -> list[tuple[str, str]]:
    return re.findall(r"^\s*(\w+) --> (\w+)\s*$", chart, flags=re.MULTILINE)


def levels_of(edges: list[tuple[str, str]]) -> dict[str, int]:
    """How many arrows lead, at most, from each box to the lowest one."""
    below: dict[str, list[str]] = {}
    for above, under in edges:
        below.setdefault(above, []).append(under)
        below.setdefault(under, [])

    def level(name: str) -> int:
        return 1 + max(map(level, below[name]), default=-1)

    return {name: level(name) for name in below}


def svg(chart: str) -> str:
    """The flowchart as an inline SVG: a row for each level, arrows point down."""
    edges = edges_of(chart)
    labels = dict(re.findall(r'^\s*(\w+)\["(.*)"\]\s*$', chart, flags=re.MULTILINE))
    levels = levels_of(edges)
    top = max(levels.values())
    places = {}
    for number in range(top + 1):
        names = sorted(name for name in levels if levels[name] == number)
        for index, name in enumerate(names):
            x = WIDTH * (index + 1) / (len(names) + 1)
            places[name] = (x, (top - number) * ROW + 30)
    lines = {name: textwrap.wrap(labels.get(name, name), 100) for name in levels}
    height = top * ROW + 30 + LINE * max(map(len, lines.values())) + 20
    drawn = [_arrow(places[above], places[under]) for above, under in edges]
    drawn += [_box(*places[name], lines[name]) for name in levels]
    label = f"Import graph of {len(levels)} packages; arrows point to what is imported"
    return (
        f'<svg class="flowchart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}"><defs>{TIP}</defs>'
        + "".join(drawn)
        + "</svg>"
    )


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    (x1, y1), (x2, y2) = start, end
    return f'<line x1="{x1:.0f}" y1="{y1 + 14:.0f}" x2="{x2:.0f}" y2="{y2 - 15:.0f}" marker-end="url(#tip)"/>'


def _box(x: float, y: float, lines: list[str]) -> str:
    width = BOX if len(lines) == 1 and len(lines[0]) < 16 else WIDTH - 2 * GAP
    height = LINE * len(lines) + 12
    words = "".join(
        f'<text x="{x:.0f}" y="{y + 5 + LINE * index:.0f}">{html.escape(line)}</text>'
        for index, line in enumerate(lines)
    )
    return f'<rect x="{x - width / 2:.0f}" y="{y - 14:.0f}" width="{width}" height="{height}" rx="4"/>{words}'

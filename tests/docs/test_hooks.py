"""The hooks of the site, on small examples."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest

from pages import DOCS

pytest.importorskip("mkdocs")
pytest.importorskip("griffe")


def hook(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"hook_{name}", DOCS / "hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
    return module


def test_what_a_docstring_says_of_parameters_becomes_a_list() -> None:
    text = "What comes out.\n\ndata: as for\n`train`. out: a folder; size, other: its sides.\nRaises DataError."
    listed = hook("parameters").as_list(text, ["data", "out", "size", "other"])
    assert listed == (
        "What comes out.\n\n- `data`: as for `train`.\n- `out`: a folder;\n- `size`, `other`: its sides.\n\n"
        "Raises DataError."
    )


def test_a_docstring_without_parameters_stays_as_it_is() -> None:
    text = "The metadata: a word that ends like a parameter.\n\nAnd more."
    assert hook("parameters").as_list(text, ["data", "self"]) == text


HELP = """usage: vivace verb [-h] DATA

╭─ options ────────────────────╮
│ -h, --help  show this        │
│ --size INT  Side, px.        │
│             Default: 32.     │
│ --a-very-long-one {a,b}      │
│             One of | two.    │
╰──────────────────────────────╯
╭─ opening options ────────────╮
│ How it is opened, when       │
│ it is.                       │
│ ──────────────────────────── │
│ --follow    Follow --size.   │
╰──────────────────────────────╯
"""


def test_the_boxes_of_a_help_are_read_with_lines_that_go_on() -> None:
    first, second = hook("options").sections(HELP)
    assert first.rows[1:] == [["--size INT", "Side, px. Default: 32."], ["--a-very-long-one {a,b}", "One of | two."]]
    assert (second.title, second.about) == ("opening options", "How it is opened, when it is.")
    assert second.rows == [["--follow", "Follow --size."]]


def test_a_help_that_is_drawn_otherwise_is_noticed() -> None:
    with pytest.raises(ValueError, match="no option in a box"):
        hook("options").sections("usage: vivace verb\n\n--size INT  Side\n")


def test_a_notebook_is_a_page_with_its_outputs() -> None:
    stream = {"output_type": "stream", "name": "stderr"}
    table = {"output_type": "display_data", "data": {"text/markdown": "# Title\n\n| a |", "text/plain": "object"}}
    cells = [
        {"cell_type": "markdown", "source": ["# A title\n", "\n", "Words."]},
        {
            "cell_type": "code",
            "source": "%%bash\nvivace runs",
            "outputs": [{**stream, "text": "\x1b[1mone, "}, {**stream, "name": "stdout", "text": ["two\n"]}, table],
        },
    ]
    page = hook("notebooks").to_markdown({"cells": cells, "metadata": {}}, "name.ipynb")
    assert page.startswith('# A title\n\n<p><a href="name.ipynb" download>Download this notebook</a></p>\n\nWords.')
    assert "```bash\nvivace runs\n```\n\n```{.text .output}\none, two\n```\n\n**Title**\n\n| a |" in page


def test_a_flowchart_has_a_row_for_each_level() -> None:
    flowchart = hook("flowchart")
    edges = flowchart.edges_of("flowchart TD\n    cli --> search\n    search --> base\n    cli --> base\n")
    assert flowchart.levels_of(edges) == {"cli": 2, "search": 1, "base": 0}
    drawn = flowchart.svg('    base["errors & files"]\n    cli --> base\n')
    assert drawn.count("<rect") == 2
    assert "errors &amp; files" in drawn

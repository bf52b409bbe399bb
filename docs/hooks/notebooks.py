"""MkDocs hook: a notebook below docs/ is a page with the outputs that are stored in it, and can be downloaded."""

from __future__ import annotations

import html
import itertools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

SUFFIX = ".ipynb"
# terminal colours
ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Notebook(File):
    """A notebook, which MkDocs takes for a page."""

    def is_documentation_page(self) -> bool:
        return True


def on_files(files: Files, config: Any, **_: Any) -> Files:
    for file in [file for file in files if file.src_uri.endswith(SUFFIX)]:
        files.remove(file)
        page = Notebook(file.src_uri, file.src_dir, file.dest_dir, config.use_directory_urls, inclusion=file.inclusion)
        files.append(page)
    return files


def on_page_read_source(page: Page, **_: Any) -> str | None:
    if not page.file.src_uri.endswith(SUFFIX):
        return None
    return to_markdown(json.loads(page.file.content_string), Path(page.file.src_uri).name)


def on_post_build(config: Any, **_: Any) -> None:
    """The notebooks themselves, beside the pages that are made of them."""
    docs = Path(config.docs_dir)
    for path in sorted(docs.rglob(f"*{SUFFIX}")):
        place = Path(config.site_dir, path.relative_to(docs)).with_suffix("")
        if place.is_dir():
            shutil.copyfile(path, place / path.name)


def to_markdown(notebook: dict[str, Any], name: str) -> str:
    """A notebook's cells and outputs as Markdown, with a link to the notebook under its title."""
    parts = [cell_to_markdown(cell) for cell in notebook["cells"]]
    words = "下载这个笔记本" if notebook["metadata"].get("language") == "zh" else "Download this notebook"
    title, _, rest = parts[0].partition("\n")
    link = f'<p><a href="{html.escape(name)}" download>{words}</a></p>'
    return "\n\n".join([title, link, rest.strip(), *parts[1:]])


def cell_to_markdown(cell: dict[str, Any]) -> str:
    source = _text(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    if source.startswith("%%bash\n"):
        language, source = "bash", source.removeprefix("%%bash\n")
    else:
        language = "python"
    return "\n\n".join([f"```{language}\n{source}\n```", *filter(None, _outputs(cell["outputs"]))])


def _outputs(outputs: list[dict[str, Any]]) -> Iterator[str]:
    """What a cell printed in a row, on stdout and stderr, is one block."""
    for prints, group in itertools.groupby(outputs, key=lambda output: output["output_type"] == "stream"):
        if prints:
            yield _printed("".join(_text(output["text"]) for output in group))
        else:
            yield from map(_shown, group)


def _shown(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        return f'<p><img alt="figure" src="data:image/png;base64,{_text(data["image/png"]).strip()}"></p>'
    if "text/markdown" in data:
        # the page has a title of its own
        return re.sub(r"^#+ (.*)$", r"**\1**", _text(data["text/markdown"]), flags=re.MULTILINE)
    return _printed(_text(data.get("text/plain", "")))


def _printed(text: str) -> str:
    text = ESCAPES.sub("", text).rstrip()
    return f"```{{.text .output}}\n{text}\n```" if text else ""


def _text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)

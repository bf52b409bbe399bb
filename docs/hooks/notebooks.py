"""MkDocs hook: a notebook below docs/ is a page with the outputs that are stored in it, and can be downloaded."""

from __future__ import annotations

import html
import json
import re
import shutil
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
    outputs = [_output(output) for output in cell["outputs"]]
    return "\n\n".join([f"```{language}\n{source}\n```", *filter(None, outputs)])


def _output(output: dict[str, Any]) -> str:
    if output["output_type"] == "stream":
        return _printed(_text(output["text"]))
    data = output.get("data", {})
    if "image/png" in data:
        return f'<p><img alt="figure" src="data:image/png;base64,{_text(data["image/png"]).strip()}"></p>'
    return _printed(_text(data.get("text/plain", "")))


def _printed(text: str) -> str:
    text = ESCAPES.sub("", text).rstrip()
    return f"```{{.text .output}}\n{text}\n```" if text else ""


def _text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)

"""MkDocs hook: below docs/zh/ the theme speaks Chinese; the log of experiments stays out of the search."""

from __future__ import annotations

from typing import Any

from mkdocs.structure.pages import Page


def on_page_context(context: dict[str, Any], page: Page, config: Any, **_: Any) -> dict[str, Any]:
    # the templates ask for the language of the theme, page by page
    config.theme["language"] = "zh" if page.file.src_uri.startswith("zh/") else "en"
    return context


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    if page.file.src_uri.startswith(("log/", "log.md")):
        page.meta["search"] = {"exclude": True}
    return markdown

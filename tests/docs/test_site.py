"""The site builds strictly and without a network; what its pages say is what the program has."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

import vivace
from pages import DOCS, ROOT, blocks, site_pages
from vivace.cli import VERBS, common, main
from vivace.cli.wording import as_options

SOURCES = ROOT / "src" / "vivace"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. Links and anchors that lead nowhere end the build."""
    if built := os.environ.get("VIVACE_TEST_SITE"):
        # by the same command, just before
        return ROOT / built
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    folder = tmp_path_factory.mktemp("site") / "site"
    argv = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_a_link_or_an_anchor_that_leads_nowhere_ends_the_build(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# A page\n\n[file](missing.md), [anchor](#nowhere)\n")
    settings = f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: {tmp_path / 'docs'}\nsite_dir: {tmp_path / 'site'}\n"
    (tmp_path / "mkdocs.yml").write_text(f"{settings}nav: [index.md]\nhooks: []\n")
    make = (ROOT / "Makefile").read_text("utf-8")
    # --quiet would hide the warnings that end it
    assert "mkdocs build --strict\n" in make
    argv = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(tmp_path / "mkdocs.yml")]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "missing.md" in done.stderr
    assert "#nowhere" in done.stderr


def test_nothing_on_the_pages_is_loaded_from_elsewhere(site: Path) -> None:
    loaded = r'<(?:script|img|iframe|source)[^>]+src="(https?:|//)|<link[^>]+rel="(?:stylesheet|preconnect)"[^>]+http'
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    assert [page for page in pages if re.search(loaded, page.read_text("utf-8"))] == []


def test_every_verb_has_a_page_with_all_of_its_options(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in VERBS:
        page = (site / "commands" / verb / "index.html").read_text("utf-8")
        shown = set(re.findall(r"<td><code class=\"option\">(--[a-z-]+)", page))
        options = common.option_names(importlib.import_module(f"vivace.cli.{verb}").Options)
        assert main([verb, "--help"]) == 0
        help_text = capsys.readouterr().out
        # positional arguments are among the fields
        assert shown == {option for option in options if f"{option} " in help_text}, verb


def test_the_site_leads_to_every_page_of_a_verb() -> None:
    navigation = yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Loader=yaml.BaseLoader)["nav"]
    assert set(re.findall(r"commands/(\w+)\.md", str(navigation))) - {"index"} == set(VERBS)


def test_every_public_name_has_an_entry_in_the_reference(site: Path) -> None:
    page = (site / "api" / "index.html").read_text("utf-8")
    documented = set(re.findall(r'<span id="vivace\.(\w+)"', page))
    assert documented == set(vivace.__all__) - {"errors"}
    # what mkdocstrings made of them: a signature, and a docstring's words
    assert "Raises the errors of vivace.errors" in page
    errors = (site / "api-errors" / "index.html").read_text("utf-8")
    assert "ParityError" in errors


@cache
def messages_of_the_sources() -> tuple[str, ...]:
    """Every text of the package, with … for what varies."""
    found = []
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.append("".join(map(str, parts)))
    # the page quotes the command line, which names options where the library names parameters
    return tuple(found) + tuple(as_options(text, "train") for text in found if "`" in text)


def explained_messages() -> list[str]:
    text = (DOCS / "troubleshooting.md").read_text("utf-8")
    return re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE)


def test_messages_that_are_explained_are_many_and_different() -> None:
    assert len(explained_messages()) == len(set(explained_messages())) >= 50


@pytest.mark.parametrize("message", explained_messages())
def test_a_message_that_is_explained_still_exists(message: str) -> None:
    parts = [re.escape(part.strip()) for part in message.split("…") if part.strip()]
    pattern = re.compile(r".*".join(parts), flags=re.DOTALL)
    assert any(map(pattern.search, messages_of_the_sources())), message


def shown_programs() -> list[tuple[str, str]]:
    return [
        (str(page.relative_to(ROOT)), text)
        for page in site_pages()
        for language, text in blocks(page)
        if language == "python"
    ]


@pytest.mark.parametrize(("page", "program"), shown_programs())
def test_programs_on_the_pages_call_what_there_is(page: str, program: str) -> None:
    """They parse, import what exists, and give functions of vivace only arguments that these have."""
    tree = ast.parse(program)
    known: dict[str, object] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("vivace"):
            for alias in node.names:
                known[alias.name] = getattr(importlib.import_module(node.module), alias.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "vivace":
            known[f"vivace.{node.attr}"] = getattr(vivace, node.attr)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (called := known.get(ast.unparse(node.func))) is not None:
            arguments = [None for _ in node.args]
            keywords = {keyword.arg: None for keyword in node.keywords if keyword.arg}
            if not (isinstance(called, type) and issubclass(called, Exception)):
                inspect.signature(called).bind(*arguments, **keywords)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["index.md", "install.md", "quickstart.md", "own-network.md"])
def test_the_chinese_pages_show_the_same_programs(name: str) -> None:
    def programs(page: Path) -> list[tuple[str, str]]:
        return [(language, re.sub(r" *#.*", "", text)) for language, text in blocks(page)]

    assert programs(DOCS / "zh" / name) == programs(DOCS / name)


def named_objects() -> list[tuple[str, str]]:
    """(page, name) of everything like `vivace.timing.interleaved` that a page names."""
    return sorted(
        {
            (str(page.relative_to(ROOT)), name)
            for page in site_pages()
            for name in re.findall(r"\bvivace(?:\.[A-Za-z_]\w*)+", page.read_text("utf-8"))
        }
    )


@pytest.mark.parametrize(("page", "name"), named_objects())
def test_what_a_page_names_exists(page: str, name: str) -> None:
    found: object = vivace
    place = "vivace"
    for part in name.split(".")[1:]:
        place = f"{place}.{part}"
        if not hasattr(found, part):
            importlib.import_module(place)
        found = getattr(found, part)

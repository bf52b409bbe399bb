"""The commands and programs of the README run as they stand: blocks marked bash and python, in their order.

Those of the Chinese one are the same.
Blocks marked sh need a network or the reader's own files; they are held to the options that exist.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pages import shell_commands, site_pages
from vivace.cli import VERBS

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README.zh.md")


def blocks(name: str) -> list[tuple[str, str]]:
    """(language, text) of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / name).read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_the_commands_of_the_readme_run(tmp_path: Path, programs: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    env = {
        **os.environ,
        "PATH": os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "VIVACE_CACHE": str(tmp_path / "cache"),
    }
    shown = [text for language, text in blocks("README.md") if language == "bash"]
    programs = [text for language, text in blocks("README.md") if language == "python"]
    assert shown
    assert programs
    # the programs in one process, each in a namespace of its own
    each = f"for text in {programs!r}: exec(compile(text, text, 'exec'), {{'__name__': '__main__'}})"
    for argv in (*(["bash", "-euc", text] for text in shown), [sys.executable, "-c", each]):
        done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{argv[2]}\n{done.stdout}\n{done.stderr}"
    for path in ("runs/digits/curves.png", "runs/digits/bundle/bundle.json", "runs/digits/evaluation/confusion.png"):
        assert (tmp_path / path).stat().st_size > 0


def test_both_readmes_show_the_same_programs() -> None:
    english, chinese = (blocks(name) for name in READMES)
    without_comments = [[(kind, re.sub(r" *#.*", "", text)) for kind, text in found] for found in (english, chinese)]
    assert without_comments[0] == without_comments[1]


def commands() -> Iterator[str]:
    for name in (*READMES, "docs/recipes.md"):
        for line in (ROOT / name).read_text().splitlines():
            if match := re.match(r"\s*(vivace (?!was )[a-z].*)", line):
                yield match[1].partition("#")[0].strip()
    for page in site_pages():
        yield from shell_commands(page)


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_every_verb_and_option_that_is_shown_exists(command: str) -> None:
    verb, *words = command.split()[1:]
    assert verb in VERBS
    help_text = _option_names(verb)
    for word in words:
        if word.startswith("--"):
            assert word.partition("=")[0] in help_text, command


def _option_names(verb: str) -> set[str]:
    """All options of a verb, from the fields of its dataclasses."""
    import dataclasses
    import typing

    def names(kind: type) -> Iterator[str]:
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            if dataclasses.is_dataclass(hints[field.name]):
                yield from names(hints[field.name])
            else:
                # "from" is a word of Python: its field ends with an underscore
                yield "--" + field.name.rstrip("_").replace("_", "-")

    return set(names(importlib.import_module(f"vivace.cli.{verb}").Options))


def test_links_inside_the_documentation_lead_somewhere() -> None:
    pages = [ROOT / name for name in READMES] + sorted((ROOT / "docs").rglob("*.md")) + [ROOT / "CHANGELOG.md"]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"

"""What the documentation shows: its pages, and the commands and programs on them."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def site_pages() -> list[Path]:
    """The pages of the site that people are led to; the log of experiments is none."""
    return [path for path in sorted(DOCS.rglob("*.md")) if "log" not in path.relative_to(DOCS).parts[0]]


def blocks(path: Path) -> list[tuple[str, str]]:
    """(language, text) of each fenced block, those in tabs too."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [(language, textwrap.dedent(text)) for _, language, text in found]


def shell_commands(path: Path) -> list[str]:
    """Each `vivace VERB …` of the blocks marked sh, without its comment."""
    lines = "".join(text for language, text in blocks(path) if language == "sh").splitlines()
    commands = [line.partition("  #")[0].strip() for line in lines]
    return [command for command in commands if re.match(r"vivace [a-z]", command)]

"""Empty figures, names that fit into them, and PNG files of them, whatever the script of the names.

matplotlib is used without pyplot, hence without windows and global state.
"""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from vivace.errors import MissingExtra, printable
from vivace.notices import warn
from vivace.outputs import write_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MAX_NAME_WIDTH", "new_figure", "save_figure", "short_name", "width_of"]

DPI = 150
# columns that fit beside a row
MAX_NAME_WIDTH = 18
# matplotlib's font lacks Chinese, Japanese and Korean; these fonts are common on Linux, macOS and Windows
CJK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "PingFang SC",
    "Hiragino Sans GB",
    "Arial Unicode MS",
    "Microsoft YaHei",
    "SimHei",
)
MISSING_GLYPH = r"Glyph (\d+) .*missing from font"
# characters that are named where no font has them
NUM_NAMED = 5
FONT = "one that has them, such as Noto Sans CJK (Debian and Ubuntu: fonts-noto-cjk)"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches. Raises MissingExtra without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("matplotlib", "report", "drawing figures") from None
    return Figure(figsize=(width, height), dpi=DPI, layout="compressed")


def short_name(name: str, width: int = MAX_NAME_WIDTH) -> str:
    """A class name on one line, shortened in the middle to `width` columns, with $ escaped for matplotlib."""
    # category C: surrogates (invalid UTF-8), line ends and control characters
    text = "".join(letter if unicodedata.category(letter)[0] != "C" else " " for letter in name)
    if width_of(text) > width:
        # keep the end, because names often differ only there
        head, tail = text, text
        while width_of(head) > width * 2 // 3 - 1:
            head = head[:-1]
        while width_of(tail) > width // 3:
            tail = tail[1:]
        text = f"{head.rstrip()}…{tail.lstrip()}"
    return text.replace("$", r"\$")


def width_of(text: str) -> int:
    """Columns; a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def save_figure(figure: Figure, path: Path) -> None:
    """Write it as a PNG file. A warning names characters that no font has. Raises what `write_picture` raises."""
    from matplotlib import font_manager
    from matplotlib.text import Text

    installed = {font.name for font in font_manager.fontManager.ttflist}
    families = ["DejaVu Sans", *(name for name in CJK_FONTS if name in installed)]
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_fontfamily(families)
    picture = io.BytesIO()
    with warnings.catch_warnings(record=True) as told:
        warnings.filterwarnings("always", message=MISSING_GLYPH)
        figure.savefig(picture, format="png", bbox_inches="tight", pad_inches=0.1)
    write_picture(path, picture.getvalue())
    missing: dict[str, None] = {}
    for one in told:
        if found := re.match(MISSING_GLYPH, str(one.message)):
            missing[found[1]] = None
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    if missing:
        # no reason to fail
        names = " ".join(printable(chr(int(code))) for code in list(missing)[:NUM_NAMED])
        names += f" and {len(missing) - NUM_NAMED:,} more" if len(missing) > NUM_NAMED else ""
        warn(f"boxes are drawn for characters that no installed font has, in {path.name}: {names}. Install {FONT}.")

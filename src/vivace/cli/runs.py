"""List the training runs in FOLDER: data, recipe, accuracy, time and size. Nothing is changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from vivace.cli.answers import print_json
from vivace.cli.columns import left, right, widest
from vivace.cli.options import verb_options
from vivace.errors import one_line, printable

if TYPE_CHECKING:
    from vivace.verbs.runs import Run

HEADER = ("run", "data", "recipe", "model", "val", "test", "epochs", "time", "size", "finished (UTC)")
# these are numbers
RIGHT = range(4, 9)
MAX_PASSED_OVER = 5
# of each column, in characters; the folder's name is at the end of its path
LIMITS = (200, *(40,) * (len(HEADER) - 1))


@verb_options
class Options:
    """The options of `vivace runs`."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="[FOLDER]")] = Path("runs")
    """The folder that holds runs, or a run's own."""
    json: bool = False
    """Print the list as one JSON object on the last line."""


def run(options: Options) -> None:
    """List, the run that finished last first."""
    import sys

    from vivace.verbs.runs import runs

    found = runs(options.folder)
    if options.json:
        print_json("runs", found.to_dict())
        return
    if found.runs:
        print("\n".join(table(found.runs)))
    print(f"{len(found)} {'run' if len(found) == 1 else 'runs'} in {printable(str(options.folder))}")
    for one in found:
        if one.problem:
            print(one_line(printable(f"{one.status}: {one.path} ({one.problem})")), file=sys.stderr)
    if others := found.passed_over:
        shown = [name + " (a link)" * (found.folder / name).is_symlink() for name in others[:MAX_PASSED_OVER]]
        named = ", ".join(shown) + (" …" if len(others) > MAX_PASSED_OVER else "")
        print(one_line(printable(f"passed over, no runs: {len(others)} ({named})")), file=sys.stderr)


def table(runs: tuple[Run, ...]) -> list[str]:
    """Lines: a header, and one for each run."""
    rows = [HEADER, *(tuple(map(_bounded, cells(one), LIMITS)) for one in runs)]
    widths = [widest(row[column] for row in rows) for column in range(len(HEADER))]
    return [
        "  ".join(
            (right if column in RIGHT else left)(cell, width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _bounded(text: str, limit: int) -> str:
    """`text` in at most `limit` printable characters, shortened in the middle."""
    # cut first: a name may have millions
    shown = printable(text if len(text) <= 2 * limit else f"{text[:limit]}{text[-limit:]}")
    return shown if len(shown) <= limit else f"{shown[: limit // 2 - 1]}…{shown[-limit // 2 :]}"


def cells(one: Run) -> tuple[str, ...]:
    """What a line says; a dash where nothing is known."""
    return (
        str(one.path),
        one.data or "–",
        one.recipe or "–",
        one.model or "–",
        _percent(one.val_top1) if one.val_map is None else f"mAP {_percent(one.val_map)}",
        _percent(one.test_top1) if one.test_map is None else f"mAP {_percent(one.test_map)}",
        "–" if one.epochs is None else few_digits(one.epochs),
        "–" if one.seconds is None else duration(one.seconds),
        "–" if one.bytes is None else f"{one.bytes / 1e6:,.1f} MB",
        one.status if one.finished is None or one.status != "finished" else one.finished[:16].replace("T", " "),
    )


def duration(seconds: float) -> str:
    """Such as "12 s", "3 min 20 s" or "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def few_digits(epochs: float) -> str:
    """A number of epochs for people, such as "20", "6.24" or "0.003"."""
    return f"{epochs:.2f}".rstrip("0").rstrip(".") if epochs >= 0.1 else f"{epochs:.1g}"


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.2f} %"

"""The folder of an ablation: the reports, and a run folder for each technique and seed."""

from __future__ import annotations

from pathlib import Path

from vivace.bench.techniques import TECHNIQUES
from vivace.errors import ConfigError
from vivace.outputs import check_folder
from vivace.training.folder.finding import new_run_path

__all__ = ["folder_name", "free_folder"]

# what the command line writes beside the runs
REPORTS = ("ablation.json", "ablation.md", "ablation.png")


def free_folder(out: Path | None) -> Path:
    """The folder for an ablation; None: the first free one of runs/ablation, runs/ablation-2 …

    Raises ConfigError if it is not empty, and OutputPathError if it can't be written.
    """
    if out is None:
        out = new_run_path(Path("runs"), "ablation")
    elif out.is_dir() and not out.is_symlink():
        found = sorted(path.name for path in out.iterdir())
        if found and all(_is_own(out / name) for name in found):
            raise ConfigError(
                f"`out` holds runs of an earlier ablation: {out} has {', '.join(found[:3])}"
                f"{' …' if len(found) > 3 else ''}. Give another `out`, or remove that folder if you no longer need it."
            )
    if check_folder(out) is not None:
        raise ConfigError(f"`out` is not empty: got {out}. Give another folder, or remove this one.")
    return out


def _is_own(path: Path) -> bool:
    """Whether an entry of a folder is what an ablation leaves there: one of its runs or reports."""
    if path.name in REPORTS:
        return path.is_file()
    names = {"all-on", *(folder_name(technique.name) for technique in TECHNIQUES)}
    name, _, seed = path.name.rpartition("-")
    return name in names and seed.isdecimal() and ((path / "recipe.yaml").is_file() or (path / ".lock").is_file())


def folder_name(name: str) -> str:
    return name.replace(" ", "-").lower()

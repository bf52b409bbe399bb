"""A virtual environment for each peer, made by the benchmark: a peer's pinned versions never conflict with ours.

    python benchmarks/environments.py timm fastai

What a peer needs is listed in peers/requirements/NAME.txt. Its environment is ~/.cache/vivace-benchmarks/NAME unless
another folder is named, with a stamp written last: the hash of the requirements. Where the stamp differs or is missing
(the pins changed, an installation was cut off) the environment is made anew. torch takes 5 GB in each.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

__all__ = ["ENVIRONMENTS", "EnvironmentFailed", "ensure_environment", "python_of"]

ENVIRONMENTS = Path.home() / ".cache" / "vivace-benchmarks"
REQUIREMENTS = Path(__file__).parent / "peers" / "requirements"
STAMP = "requirements.sha256"


class EnvironmentFailed(RuntimeError):
    """An environment could not be made."""


def python_of(name: str | None, folder: Path = ENVIRONMENTS) -> Path:
    """The interpreter of a peer's environment, made or not; None: the one that runs the benchmark."""
    return Path(sys.executable) if name is None else folder / name / "bin" / "python"


def ensure_environment(name: str, folder: Path = ENVIRONMENTS, *, requirements: Path = REQUIREMENTS) -> Path:
    """The interpreter of an environment that holds what NAME.txt asks for, installed now if need be.

    Raises EnvironmentFailed if there is no such list, if something else lies in its place, or if pip fails.
    """
    wanted = requirements / f"{name}.txt"
    if not wanted.is_file():
        known = ", ".join(sorted(path.stem for path in requirements.glob("*.txt"))) or "none"
        raise EnvironmentFailed(f"no requirements for {name!r}: there is no {wanted}. Known: {known}.")
    place, stamp = folder / name, _stamp(wanted)
    if (place / STAMP).is_file() and (place / STAMP).read_text() == stamp:
        return python_of(name, folder)
    _clear(place)
    pins = ", ".join(wanted.read_text().split())
    print(f"{name}: installing {pins} into {place}: some minutes", file=sys.stderr, flush=True)
    began = time.perf_counter()
    place.parent.mkdir(parents=True, exist_ok=True)
    _call(name, [sys.executable, "-m", "venv", str(place)])
    python = str(python_of(name, folder))
    _call(name, [python, "-m", "pip", "install", "--no-input", "--requirement", str(wanted)])
    (place / STAMP).write_text(stamp)
    print(f"{name}: installed after {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return python_of(name, folder)


def _stamp(wanted: Path) -> str:
    # the interpreter too: an environment made by another Python breaks when that one goes
    text = f"{sys.version_info.major}.{sys.version_info.minor}\n{wanted.read_text()}"
    return hashlib.sha256(text.encode()).hexdigest()


def _clear(place: Path) -> None:
    if not place.exists():
        return
    # a slip in --environments must not cost anybody a folder of their own
    if not (place / "pyvenv.cfg").is_file():
        raise EnvironmentFailed(
            f"{place} is no virtual environment and is in the way. Move it, or name another folder."
        )
    shutil.rmtree(place)


def _call(name: str, command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise EnvironmentFailed(
            f"the environment of {name} could not be made: {' '.join(command)} ended with status {done.returncode}. "
            f"Check the network and the free space, and run it again. Its last words:\n{done.stdout[-2000:]}"
        )


def main(names: Iterable[str], folder: Path) -> None:
    for name in names:
        print(ensure_environment(name, folder))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="+", metavar="PEER", help="names of files in peers/requirements, without .txt")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, metavar="FOLDER", help="where to make them")
    args = parser.parse_args()
    try:
        main(args.names, args.environments)
    except EnvironmentFailed as error:
        sys.exit(str(error))
